"""What the tests of training share."""

from collections.abc import Callable

import pytest

from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.params import Network
from tests.support.trainer import Trainer


@pytest.fixture
def trainer(toy: Dataset, rows: Split, network: Callable[..., Network]) -> Trainer:
    """Return what trains the smallest network."""
    return Trainer(toy, rows, network())
