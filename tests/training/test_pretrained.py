"""A network in MLflow that a training starts from: which are taken, and what is warned of."""

import dataclasses
from collections.abc import Callable, Iterator

import keras
import mlflow
import numpy as np
import pytest

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.models.layers import plain
from emotion_detection.models.saving import combined
from emotion_detection.settings import params
from emotion_detection.tracking import lineage, models, runs
from emotion_detection.tracking.lineage import Lineage
from emotion_detection.training.pretrained import start
from tests.support.networks import small
from tests.support.stores import alone

Make = Callable[..., params.Network]


@pytest.fixture(scope="module", autouse=True)
def _store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with alone(tmp_path_factory.mktemp("store")):
        yield


@pytest.fixture(scope="module")
def saved(network: Make) -> keras.Model:
    """Return a network as the pipeline saves it, averaged over two views."""
    return combined([plain(small(network(), seed=0))], flips=True)


def logged(
    model: keras.Model,
    dataset: Dataset,
    selected_on_test: str = "false",
    learnt: Lineage | None = None,
) -> str:
    """Log `model` to a run of its own, and return its URI."""
    tags = {"selected_on_test": selected_on_test}
    with runs.run("train", note="", dataset=dataset, params={}, tags=tags) as run_id:
        text = None if learnt is None else learnt.to_json()
        runs.log_model(model, dataset.classes, {"lineage": text} if text else None)
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
        learnt = start(model, each, dataset=toy)
        assert (learnt.ancestors, learnt.unknown) == ((each,), (each,))
        for found, expected in zip(model.get_weights(), saved.get_weights(), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert "learnt from other data" not in caplog.text


def test_another_network_or_an_ensemble_is_refused(toy: Dataset, uri: str, network: Make) -> None:
    wider = small(network(filters=(24,)))
    with pytest.raises(UserError, match=rf"^train\.init_from: {uri}: is another network"):
        start(wider, uri, dataset=toy)
    both = logged(combined([plain(small(network(), seed=seed)) for seed in (0, 1)]), toy)
    message = rf"^train\.init_from: {both}: it is an ensemble of 2 networks; take a model of one"
    with pytest.raises(UserError, match=message):
        start(small(network()), both, dataset=toy)


def test_a_model_that_would_score_too_well_or_knows_another_task_is_refused(
    toy: Dataset, saved: keras.Model, uri: str, network: Make
) -> None:
    chosen_on_test = logged(saved, toy, selected_on_test="true")
    smaller = dataclasses.replace(toy, images=toy.images[:, :8, :8])
    others = dataclasses.replace(toy, classes=("angry", "happy", "surprised"))
    for each, dataset, reason in (
        ("models:/gone/1", toy, r"models:/gone/1: cannot be loaded"),
        (chosen_on_test, toy, r"selected on the test images.*holdout"),
        (uri, smaller, r"\(16, 16, 3\).*\(8, 8, 3\).*ingest\.image_size"),
        (uri, others, r"sad.*surprised"),
    ):
        with pytest.raises(UserError, match=rf"^train\.init_from: .*{reason}"):
            start(small(network()), each, dataset=dataset)


def test_what_an_ancestor_learnt_from_comes_with_its_weights(
    toy: Dataset, saved: keras.Model, network: Make, caplog: pytest.LogCaptureFixture
) -> None:
    test = np.flatnonzero(toy.is_test)
    of_test = lineage.of_images(toy.digests[row] for row in test)
    grandparent = lineage.joined([of_test], ancestors=["models:/faces/7"])
    uri = logged(saved, toy, learnt=grandparent)
    other = dataclasses.replace(toy, digest="0" * 32, source="other.zip")
    learnt = start(small(network()), uri, dataset=other)
    np.testing.assert_array_equal(learnt.images, of_test.images)
    assert (learnt.ancestors, learnt.unknown) == ((uri, "models:/faces/7"), ())


def test_a_model_from_elsewhere_may_be_started_from(
    toy: Dataset, saved: keras.Model, network: Make
) -> None:
    uri = logged(saved, toy)
    mlflow.MlflowClient().delete_tag(uri.split("/")[1], "dataset.digest")
    assert start(small(network()), uri, dataset=toy).unknown == (uri,)
