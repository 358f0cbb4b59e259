"""Learning from other networks: which are taken, and what they teach."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from stores import alone

from emotion_detection import distillation, tracking, training
from emotion_detection.console import UserError
from emotion_detection.dataset import Dataset, Split
from emotion_detection.network import Architecture, build, export

Make = Callable[..., Architecture]
Ask = Callable[..., np.ndarray]
LABELS = np.eye(3, dtype=np.float32)
HELD_OUT = {"seed": 0, "split.validation": "holdout", "split.fraction": 0.2}


@pytest.fixture(autouse=True)
def _store(tmp_path: Path) -> Iterator[None]:
    with alone(tmp_path):
        yield


@pytest.fixture
def network(architecture: Make) -> keras.Model:
    chosen = architecture()
    return export(build(chosen, image_shape=(16, 16, 3), classes=3, seed=0), chosen)


@pytest.fixture
def ask(rows: Split, tmp_path: Path) -> Ask:
    """Give a function that asks teachers of the train images: by 0.75, besides the labels."""

    kept = tmp_path / "taught.npy"

    def ask(teachers: Sequence[str], dataset: Dataset, **changes: object) -> np.ndarray:
        kept.unlink(missing_ok=True)
        return distillation.targets(
            teachers,
            0.75,
            dataset=dataset,
            rows=rows.train,
            held_out=HELD_OUT | changes,
            kept=kept,
        )

    return ask


def logged(network: keras.Model, dataset: Dataset, leaking: str = "false") -> str:
    with tracking.run(
        "train", note="", dataset=dataset, params=HELD_OUT, tags={"leaking": leaking}
    ) as run_id:
        tracking.log_model(network, dataset.images[:2], dataset.classes)
    return f"runs:/{run_id}/{tracking.MODEL_NAME}"


def test_targets_are_labels_and_the_mean_of_models_in_the_store(
    toy: Dataset,
    rows: Split,
    network: keras.Model,
    architecture: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    chosen = architecture()
    other = export(build(chosen, image_shape=(16, 16, 3), classes=3, seed=1), chosen)
    mlflow.register_model(logged(other, toy), "faces")
    teachers = [logged(network, toy), "models:/faces/1"]
    learn = partial(
        distillation.targets,
        weight=0.75,
        dataset=toy,
        rows=rows.train,
        held_out=HELD_OUT,
        kept=tmp_path / "taught.npy",
    )
    found = learn(teachers)
    assert (found.shape, found.dtype) == ((len(toy), 3), np.float32)
    labels = LABELS[toy.labels]
    said = [model.predict(toy.images[rows.train], verbose=0) for model in (network, other)]
    expected = 0.25 * labels[rows.train] + 0.75 * np.mean(said, axis=0)
    np.testing.assert_allclose(found[rows.train], expected, atol=1e-5)
    np.testing.assert_array_equal(found[rows.validation], labels[rows.validation])
    np.testing.assert_array_equal(found[rows.test], labels[rows.test])
    assert "learnt from" not in caplog.text
    assert "trained with" not in caplog.text
    # A training that goes on asks nobody again.
    again = learn(["models:/gone/1"])
    np.testing.assert_array_equal(again, found)


def test_a_teacher_that_cannot_teach_is_refused(
    toy: Dataset, network: keras.Model, ask: Ask
) -> None:
    uri = logged(network, toy)
    gone = logged(network, toy)
    mlflow.register_model(gone, "faces")
    mlflow.MlflowClient().delete_tag(gone.split("/")[1], "dataset.digest")
    for teacher, dataset, reason in (
        ("models:/gone/1", toy, r"models:/gone/1: cannot be loaded"),
        ("models:/faces/1", toy, r"its run is not in MLflow"),
        (logged(network, toy, leaking="true"), toy, r"chosen on the test images.*holdout"),
        (uri, dataclasses.replace(toy, images=toy.images[:, :8, :8]), r"\(16, 16, 3\).*\(8, 8, 3"),
        (uri, dataclasses.replace(toy, classes=("angry", "happy", "surprised")), r"sad.*surprised"),
    ):
        with pytest.raises(UserError, match=rf"^train\.distillation\.teachers: .*{reason}"):
            ask([teacher], dataset)


def test_a_teacher_that_has_seen_other_images_is_warned_of(
    toy: Dataset, network: keras.Model, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    uri = logged(network, toy)
    ask([uri], toy, **{"split.fraction": 0.1})
    assert f"{uri} was trained with other seed, split.validation, split.fraction" in caplog.text
    caplog.clear()
    ask([uri], dataclasses.replace(toy, digest="0" * 32))
    assert f"{uri} learnt from other data, toy.zip" in caplog.text


def test_targets_are_learnt_and_labels_validated(
    toy: Dataset, rows: Split, architecture: Make
) -> None:
    model = build(architecture(), image_shape=(16, 16, 3), classes=3, seed=0)
    history = training.fit(
        model,
        toy,
        train=rows.train,
        validation=rows.validation,
        recipe=training.Recipe(lr=1e-2, batch_size=12, epochs=4, early_stopping_patience=None),
        seed=0,
        log_epoch=lambda figures, epoch: None,
        targets=LABELS[(toy.labels + 1) % 3],
        verbose=False,
    )
    learnt = training.predict(model, toy, rows.validation, 30).argmax(axis=1)
    np.testing.assert_array_equal(learnt, (toy.labels[rows.validation] + 1) % 3)
    assert history["accuracy"].iloc[-1] == 1
    assert history["val_accuracy"].iloc[-1] == 0
