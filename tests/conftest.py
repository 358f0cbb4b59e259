"""What several test modules need: a small packed dataset that a small network learns."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

from emotion_detection.data.dataset import (
    SPLITS,
    Dataset,
    group_by_digest,
    set_digest,
    write_near_pairs,
)
from emotion_detection.data.splits import Split, split
from emotion_detection.inference import detector
from emotion_detection.inference.faces import YuNetFinder
from emotion_detection.settings import params
from tests.support import servers, session
from tests.support.stores import alone

# TensorFlow takes seconds to import, and half of the tests need none.
if TYPE_CHECKING:
    from tests.support.trainer import Trainer

TOY_CLASSES = ("angry", "happy", "sad")
TOY_SIDE = 16
LONGEST = (
    "test_pipeline.py",
    "test_fit.py",
    "test_outages.py",
    "test_other_sets.py",
    "test_scaling.py",
    "test_reliability.py",
    "test_devices.py",
    "test_ensemble.py",
)
# As whoever runs the tests named it.
YUNET = os.environ.get(detector.VARIABLE, "")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# A shell's job in the background ignores Ctrl-C, and so would whatever a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        session.begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        session.end()


def pytest_collection_finish() -> None:
    _freeze()


def _freeze() -> None:
    # Each garbage collection would walk through all that TensorFlow and the others imported, and
    # through the graphs that were built. Keras asks for one with each session that it clears.
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest files first: the others run beside them, and nothing waits for one in the end.
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))


def _draw_toy(folder: Path, train: int, test: int) -> None:
    """Write `train` and `test` images a class: noise, and a bright quarter that says the class.

    An image's first pixel holds its row.
    """
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(3), train), np.repeat(np.arange(3), test)])
    images = rng.integers(0, 80, (len(labels), TOY_SIDE, TOY_SIDE, 3), np.uint8)
    half = TOY_SIDE // 2
    for row, label in enumerate(labels):
        top, left = half * (label // 2), half * (label % 2)
        images[row, top : top + half, left : left + half] += 150
        images[row, 0, 0] = row
    splits = np.where(np.arange(len(labels)) < 3 * train, 0, SPLITS.index("test"))
    digests = [f"{row:032x}" for row in range(len(labels))]
    dataset = Dataset(
        images=images,
        files=[f"{row}.png" for row in range(len(labels))],
        labels=labels,
        classes=TOY_CLASSES,
        splits=splits,
        digests=digests,
        groups=group_by_digest(digests),
        near_groups=group_by_digest(digests),
        digest=set_digest(digests, labels, splits, TOY_CLASSES, images.shape[1:]),
        source="toy.zip",
        test_is_cut=False,
        bad_files=(),
    )
    folder.mkdir()
    np.save(folder / "images.npy", images)
    dataset.write_index(folder)
    write_near_pairs(folder, np.empty((0, 2), np.int64), np.empty(0))


@pytest.fixture(scope="module", autouse=True)
def _frozen_afterwards() -> Iterator[None]:
    yield
    _freeze()


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_fetched() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(detector.VARIABLE, detector.HAAR)
        yield


@pytest.fixture(scope="session")
def yunet_file() -> Path:
    """Return the path of YuNet's file; a test without one is skipped."""
    if not Path(YUNET).is_file():
        pytest.skip(f"needs YuNet: {detector.VARIABLE}=FILE")
    return Path(YUNET).resolve()


@pytest.fixture(scope="session")
def yunet(yunet_file: Path) -> YuNetFinder:
    """Return YuNet as it is by default."""
    return YuNetFinder(yunet_file.read_bytes(), detector.MIN_CONFIDENCE, detector.MIN_FACE)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the toy set."""
    folder = tmp_path_factory.mktemp("toy") / "dataset"
    _draw_toy(folder, train=30, test=5)
    return folder


@pytest.fixture(scope="session")
def toy(packed: Path) -> Dataset:
    """Return 90 train and 15 test images of three classes, 16x16x3, opened from disk."""
    return Dataset.open(packed)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return the path of a browser; a test without one is skipped."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)}")
    return path


@pytest.fixture(scope="session")
def object_store() -> Iterator[servers.ObjectStore]:
    """Yield an S3 server with an empty bucket."""
    store = servers.ObjectStore()
    yield store
    store.close()


@pytest.fixture(scope="session")
def tracking_server(object_store: servers.ObjectStore) -> Iterator[servers.Server]:
    """Yield an `mlflow server` on PostgreSQL and S3; a test without PostgreSQL is skipped."""
    missing = servers.missing_postgresql()
    if missing:
        pytest.skip(missing)
    with servers.postgresql() as address:
        server = servers.mlflow_server(address, object_store.uri, env=object_store.env)
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="session")
def rows(toy: Dataset) -> Split:
    """Return 72 train, 18 validation and 15 test rows of the toy set."""
    return split(toy, params.Split(fraction=0.2, seed=0))


def small_network(
    filters: tuple[int, ...] = (8, 8),
    dense_units: tuple[int, ...] = (8,),
    *,
    arch: Literal["notebook", "plain", "residual"] = "notebook",
    kernel: int = 3,
    convolutions: int = 2,
    dropout: float = 0.0,
    squeeze_excitation: bool = False,
) -> params.Network:
    """Return a small network for the toy set."""
    return params.Network(
        arch=arch,
        filters=filters,
        kernel_sizes=(kernel,) * len(filters),
        convolutions=convolutions,
        dense_units=dense_units,
        squeeze_excitation=squeeze_excitation,
        conv_dropout=dropout,
        dense_dropout=dropout,
        bn_momentum=0.8,
    )


@pytest.fixture(scope="session")
def network() -> Callable[..., params.Network]:
    """Return what makes a small network for the toy set, as its arguments say."""
    return small_network


@pytest.fixture
def trainer(toy: Dataset, rows: Split, network: Callable[..., params.Network]) -> Trainer:
    """Return what trains the smallest network on the toy set."""
    from tests.support.trainer import Trainer

    # To trace a training takes longer than to run it, and a time in proportion to the layers.
    return Trainer(toy, rows, network((8,), convolutions=1))


@pytest.fixture(scope="session")
def store(toy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose MLflow store has a champion for the toy set, and its file."""
    import mlflow

    from emotion_detection import paths
    from emotion_detection.models import saving
    from emotion_detection.models.layers import plain
    from emotion_detection.models.network import build
    from emotion_detection.tracking import models, runs

    folder = tmp_path_factory.mktemp("store")
    model = plain(build(small_network(), image_shape=toy.images.shape[1:], classes=3, seed=0))
    (folder / paths.MODEL).parent.mkdir()
    saving.save(model, folder / paths.MODEL, toy.classes)
    with alone(folder):
        with runs.run("train", note="", dataset=toy, params={}, tags={}) as run_id:
            runs.log_model(model, toy.classes)
        uri = f"runs:/{run_id}/{models.MODEL_NAME}"
        version = mlflow.register_model(uri, models.REGISTERED_MODEL)
        mlflow.MlflowClient().set_registered_model_alias(
            models.REGISTERED_MODEL, models.CHAMPION_ALIAS, version.version
        )
    return folder
