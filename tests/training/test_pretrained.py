"""Networks in MLflow that a training builds on: which are taken, and what they give."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

from emotion_detection import tracking
from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset, Split
from emotion_detection.models.network import Architecture, build, export, single_networks
from emotion_detection.training.fit import fit, pretrained
from tests.support.stores import alone

Make = Callable[..., Architecture]
LABELS = np.eye(3, dtype=np.float32)
HELD_OUT = {"seed": 0, "split.validation": "holdout", "split.fraction": 0.2}


@pytest.fixture(autouse=True)
def _store(tmp_path: Path) -> Iterator[None]:
    with alone(tmp_path):
        yield


@pytest.fixture
def network(architecture: Make) -> keras.Model:
    """Return a network as the pipeline saves it, which asks itself of several views."""
    chosen = architecture(average_flips=True)
    return export(build(chosen, image_shape=(16, 16, 3), classes=3, seed=0), chosen)


def ask(uri: str, dataset: Dataset, **changes: object) -> fit.Teach:
    """Return a single teacher, by 0.75."""
    return pretrained.teacher(
        [uri], 0.75, dataset=dataset, held=HELD_OUT | changes, precision="float32"
    )


def logged(network: keras.Model, dataset: Dataset, selected_on_test: str = "false") -> str:
    with tracking.run(
        "train",
        note="",
        dataset=dataset,
        params=HELD_OUT,
        tags={"selected_on_test": selected_on_test},
    ) as run_id:
        tracking.log_model(network, dataset.images[:2], dataset.classes)
    return f"runs:/{run_id}/{tracking.MODEL_NAME}"


def test_what_is_learnt_are_labels_and_the_mean_of_models_in_the_store(
    toy: Dataset, network: keras.Model, architecture: Make, caplog: pytest.LogCaptureFixture
) -> None:
    other = build(architecture(), image_shape=(16, 16, 3), classes=3, seed=1)
    mlflow.register_model(logged(export(other, architecture()), toy), "faces")
    teach = pretrained.teacher(
        [logged(network, toy), "models:/faces/1"],
        0.75,
        dataset=toy,
        held=HELD_OUT,
        precision="float32",
    )
    images, labels = toy.images[:8], LABELS[toy.labels[:8]]
    # Of an image as it is, without the views that a saved network averages.
    said = [net.predict(images, verbose=0) for net in (network.get_layer("emotion_network"), other)]
    found = np.asarray(teach(images, labels))
    np.testing.assert_allclose(found, 0.25 * labels + 0.75 * np.mean(said, axis=0), atol=1e-5)
    assert "learnt from" not in caplog.text
    assert "trained with" not in caplog.text


def test_a_training_starts_from_a_model_in_the_store(
    toy: Dataset, network: keras.Model, architecture: Make
) -> None:
    uri = logged(network, toy)
    model = build(architecture(), image_shape=(16, 16, 3), classes=3, seed=1)
    pretrained.start(model, uri, dataset=toy, held=HELD_OUT)
    for found, expected in zip(model.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    wider = build(architecture(filters=(24,)), image_shape=(16, 16, 3), classes=3)
    with pytest.raises(UserError, match=rf"^train\.init_from: {uri}: is another network"):
        pretrained.start(wider, uri, dataset=toy, held=HELD_OUT)
    with pytest.raises(UserError, match=r"^train\.init_from: models:/gone/1: cannot be loaded"):
        pretrained.start(wider, "models:/gone/1", dataset=toy, held=HELD_OUT)


def test_a_network_is_given_the_members_of_models_in_the_store(
    toy: Dataset, network: keras.Model, architecture: Make
) -> None:
    pair = architecture(members=2)
    both = export(build(pair, image_shape=(16, 16, 3), classes=3, seed=1), pair)
    uris = [logged(network, toy), logged(both, toy)]

    def members(chosen: Architecture) -> list[keras.Model]:
        return pretrained.members(uris, chosen, dataset=toy, held=HELD_OUT)

    found = members(architecture(members=4))
    expected = [network.get_layer("emotion_network"), *single_networks(both)]
    assert len(expected) == 3
    images = toy.images[:8]
    for mine, its in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine(images), its(images), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"^network\.members = 3: .* have 3, .* at least 4$"):
        members(architecture(members=3))
    with pytest.raises(UserError, match=rf"^train\.members_from: {uris[0]}: is another network"):
        members(architecture(filters=(24,), members=4))


def test_a_teacher_that_cannot_teach_is_refused(toy: Dataset, network: keras.Model) -> None:
    uri = logged(network, toy)
    gone = logged(network, toy)
    mlflow.register_model(gone, "faces")
    mlflow.MlflowClient().delete_tag(gone.split("/")[1], "dataset.digest")
    for teacher, dataset, reason in (
        ("models:/gone/1", toy, r"models:/gone/1: cannot be loaded"),
        ("models:/faces/1", toy, r"its run is not in MLflow"),
        (logged(network, toy, selected_on_test="true"), toy, r"chosen on the test images.*holdout"),
        (uri, dataclasses.replace(toy, images=toy.images[:, :8, :8]), r"\(16, 16, 3\).*\(8, 8, 3"),
        (uri, dataclasses.replace(toy, classes=("angry", "happy", "surprised")), r"sad.*surprised"),
    ):
        with pytest.raises(UserError, match=rf"^train\.distillation\.teachers: .*{reason}"):
            ask(teacher, dataset)


def test_a_teacher_that_has_seen_other_images_is_warned_of(
    toy: Dataset, network: keras.Model, caplog: pytest.LogCaptureFixture
) -> None:
    uri = logged(network, toy)
    ask(uri, toy, **{"split.fraction": 0.1})
    assert f"{uri} was trained with other seed, split.validation, split.fraction" in caplog.text
    caplog.clear()
    ask(uri, dataclasses.replace(toy, digest="0" * 32))
    assert f"{uri} learnt from other data, toy.zip" in caplog.text


def test_what_is_taught_is_learnt_and_labels_are_what_it_is_scored_by(
    toy: Dataset, rows: Split, architecture: Make
) -> None:
    model = build(architecture(), image_shape=(16, 16, 3), classes=3, seed=0)
    history = fit.fit(
        model,
        toy,
        train=rows.train,
        validation=rows.validation,
        recipe=fit.Recipe(lr=1e-2, batch_size=12, epochs=4, early_stopping_patience=None),
        seed=0,
        log_epoch=lambda figures, epoch: None,
        teach=lambda images, targets: tf.roll(targets, 1, axis=1),
        verbose=False,
    )
    learnt = fit.predict(model, toy, rows.validation, 30).argmax(axis=1)
    np.testing.assert_array_equal(learnt, (toy.labels[rows.validation] + 1) % 3)
    assert history["accuracy"].iloc[-1] == 0
    assert history["val_accuracy"].iloc[-1] == 0
