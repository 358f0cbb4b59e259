"""A network in MLflow that a training starts from: which are taken, and what is warned of."""

import dataclasses
from collections.abc import Callable, Iterator

import keras
import mlflow
import numpy as np
import pytest

from emotion_detection import params
from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.models.layers import plain
from emotion_detection.models.saving import combined
from emotion_detection.tracking import models, runs
from emotion_detection.training.pretrained import start
from tests.support.networks import small
from tests.support.stores import alone

Make = Callable[..., params.Network]
SPLIT = params.flat(params.Split(), "split.")


@pytest.fixture(scope="module", autouse=True)
def _store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with alone(tmp_path_factory.mktemp("store")):
        yield


@pytest.fixture(scope="module")
def saved(network: Make) -> keras.Model:
    """Return a network as the pipeline saves it, averaged over two views."""
    return combined([plain(small(network(), seed=0))], flips=True)


def logged(model: keras.Model, dataset: Dataset, selected_on_test: str = "false") -> str:
    """Log `model` to a run of its own, and return its URI."""
    tags = {"selected_on_test": selected_on_test}
    with runs.run("train", note="", dataset=dataset, params=SPLIT, tags=tags) as run_id:
        runs.log_model(model, dataset.classes)
    return f"runs:/{run_id}/{models.MODEL_NAME}"


@pytest.fixture(scope="module")
def uri(saved: keras.Model, toy: Dataset, _store: None) -> str:
    """Return the URI of `saved` in the store."""
    return logged(saved, toy)


def test_a_training_starts_with_the_weights_of_a_model_in_the_store(
    toy: Dataset, saved: keras.Model, uri: str, network: Make, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow.register_model(uri, "faces")
    for each in (uri, "models:/faces/1"):
        model = small(network(), seed=1)
        start(model, each, dataset=toy, split=SPLIT)
        for found, expected in zip(model.get_weights(), saved.get_weights(), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert "learnt from" not in caplog.text
    assert "trained with" not in caplog.text


def test_another_network_or_an_ensemble_is_refused(toy: Dataset, uri: str, network: Make) -> None:
    wider = small(network(filters=(24,)))
    with pytest.raises(UserError, match=rf"^train\.init_from: {uri}: is another network"):
        start(wider, uri, dataset=toy, split=SPLIT)
    both = logged(combined([plain(small(network(), seed=seed)) for seed in (0, 1)]), toy)
    message = rf"^train\.init_from: {both}: it is an ensemble of 2 networks; take a model of one"
    with pytest.raises(UserError, match=message):
        start(small(network()), both, dataset=toy, split=SPLIT)


def test_a_model_that_would_score_too_well_or_knows_another_task_is_refused(
    toy: Dataset, saved: keras.Model, uri: str, network: Make
) -> None:
    mlflow.register_model(logged(saved, toy), "orphans")
    run_id = mlflow.MlflowClient().get_model_version("orphans", "1").run_id
    mlflow.MlflowClient().delete_tag(run_id, "dataset.digest")
    chosen_on_test = logged(saved, toy, selected_on_test="true")
    smaller = dataclasses.replace(toy, images=toy.images[:, :8, :8])
    others = dataclasses.replace(toy, classes=("angry", "happy", "surprised"))
    for each, dataset, reason in (
        ("models:/gone/1", toy, r"models:/gone/1: cannot be loaded"),
        ("models:/orphans/1", toy, r"its run is not in MLflow"),
        (chosen_on_test, toy, r"selected on the test images.*holdout"),
        (uri, smaller, r"\(16, 16, 3\).*\(8, 8, 3\).*ingest\.image_size"),
        (uri, others, r"sad.*surprised"),
    ):
        with pytest.raises(UserError, match=rf"^train\.init_from: .*{reason}"):
            start(small(network()), each, dataset=dataset, split=SPLIT)


def test_a_model_that_has_seen_other_images_is_warned_of(
    toy: Dataset, uri: str, network: Make, caplog: pytest.LogCaptureFixture
) -> None:
    model = small(network())
    start(model, uri, dataset=toy, split=SPLIT | {"split.fraction": 0.1})
    assert f"{uri} was trained with other split.validation, split.fraction" in caplog.text
    caplog.clear()
    start(model, uri, dataset=dataclasses.replace(toy, digest="0" * 32), split=SPLIT)
    assert f"{uri} learnt from other data, toy.zip" in caplog.text
