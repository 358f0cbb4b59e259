"""An MLflow store of a test's own."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import session
from tests.support.environment import without_settings


def put_empty_store(folder: Path) -> None:
    """Put an MLflow store without runs into `folder`, unless it has one: to make it takes long."""
    made = session.made_once("mlflow.db", _make)
    if made is not None and not (folder / made.name).exists():
        shutil.copy(made, folder)


def _make(file: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{file.as_posix()}", "./mlruns").engine.dispose()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Work in `folder`, with an MLflow store there, and without settings from outside."""
    import mlflow  # Takes seconds, and half of the tests need none.

    put_empty_store(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - without_settings().keys():
            patch.delenv(name)
        patch.chdir(folder)
        yield
        mlflow.set_tracking_uri(None)
        # MLflow leaves the address there for child processes.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
