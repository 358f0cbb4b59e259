"""An MLflow store of a test's own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.environment import without_settings


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Work in `folder`, with an MLflow store there, and without settings from outside."""
    import mlflow  # Takes seconds, and half of the tests need none.

    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - without_settings().keys():
            patch.delenv(name)
        patch.chdir(folder)
        yield
        mlflow.set_tracking_uri(None)
        # MLflow leaves the address there for child processes.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
