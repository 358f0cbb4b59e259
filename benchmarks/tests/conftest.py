"""A small packed dataset for the tests of the benchmarks."""

from pathlib import Path

import pytest

from emotion_detection.data.dataset import Dataset
from emotion_detection.data.ingest import ingest
from emotion_detection.data.splits import Split, split
from emotion_detection.data.synthetic import draw_sample
from emotion_detection.settings import params


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a packed dataset: 120 train and 60 test faces, 16x16x3."""
    folder = tmp_path_factory.mktemp("faces")
    draw_sample(folder / "sample", train=120, test=60, image_size=16)
    settings = params.Ingest(source=str(folder / "sample"), image_size=(16, 16), color_mode="rgb")
    ingest(folder / "sample", folder / "dataset", settings, seed=0)
    return folder / "dataset"


@pytest.fixture(scope="session")
def dataset(packed: Path) -> Dataset:
    """Return that dataset, opened from disk."""
    return Dataset.open(packed)


@pytest.fixture(scope="session")
def rows(dataset: Dataset) -> Split:
    """Return its rows by split."""
    return split(dataset, params.Split(fraction=0.2, seed=0))


@pytest.fixture(scope="session")
def network() -> params.Network:
    """Return a small network."""
    return params.Network(
        arch="notebook", filters=(8, 8), kernel_sizes=(3, 3), dense_units=(8,), dense_dropout=0.2
    )
