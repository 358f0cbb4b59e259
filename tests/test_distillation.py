"""Learning from other networks: which are taken, and what they teach."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest

from emotion_detection import distillation, tracking, training
from emotion_detection.console import UserError
from emotion_detection.dataset import Dataset, Split
from emotion_detection.network import Architecture, build, export

Make = Callable[..., Architecture]
LABELS = np.eye(3, dtype=np.float32)


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "DVC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    yield
    mlflow.set_tracking_uri(None)
    # MLflow leaves the address there for child processes.
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture
def network(architecture: Make) -> keras.Model:
    chosen = architecture()
    return export(build(chosen, image_shape=(16, 16, 3), classes=3, seed=0), chosen)


HELD_OUT = {"seed": 0, "split.validation": "holdout", "split.fraction": 0.2}


def logged(network: keras.Model, dataset: Dataset, leaking: str = "false") -> str:
    with tracking.run(
        "train", note="", dataset=dataset, params=HELD_OUT, tags={"leaking": leaking}
    ) as run_id:
        tracking.log_model(network, dataset.images[:2], dataset.classes)
    return f"runs:/{run_id}/{tracking.MODEL_NAME}"


def test_a_teacher_is_a_model_of_the_store(
    toy: Dataset, network: keras.Model, caplog: pytest.LogCaptureFixture
) -> None:
    uri = logged(network, toy)
    mlflow.register_model(uri, "faces")
    teachers = distillation.load([uri, "models:/faces/1"], toy, HELD_OUT)
    assert [training.digest(teacher) for teacher in teachers] == [training.digest(network)] * 2
    assert "images" not in caplog.text


def test_a_teacher_that_cannot_teach_is_refused(toy: Dataset, network: keras.Model) -> None:
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
            distillation.load([teacher], dataset, HELD_OUT)


def test_a_teacher_that_has_seen_other_images_is_warned_of(
    toy: Dataset, network: keras.Model, caplog: pytest.LogCaptureFixture
) -> None:
    uri = logged(network, toy)
    distillation.load([uri], toy, HELD_OUT | {"split.fraction": 0.1})
    assert f"{uri} was trained with other seed, split.validation, split.fraction" in caplog.text
    caplog.clear()
    distillation.load([uri], dataclasses.replace(toy, digest="0" * 32), HELD_OUT)
    assert f"{uri} learnt from other data, toy.zip" in caplog.text


def test_targets_are_labels_and_the_teachers_mean(
    toy: Dataset, rows: Split, network: keras.Model, architecture: Make, tmp_path: Path
) -> None:
    other = build(architecture(), image_shape=(16, 16, 3), classes=3, seed=1)
    teachers = [network, other]
    kept = tmp_path / "taught.npy"
    found = distillation.targets(teachers, toy, rows.train, 0.75, kept)
    assert (found.shape, found.dtype) == ((len(toy), 3), np.float32)
    labels = LABELS[toy.labels]
    said = [model.predict(toy.images[rows.train], verbose=0) for model in teachers]
    expected = 0.25 * labels[rows.train] + 0.75 * np.mean(said, axis=0)
    np.testing.assert_allclose(found[rows.train], expected, atol=1e-5)
    np.testing.assert_array_equal(found[rows.validation], labels[rows.validation])
    np.testing.assert_array_equal(found[rows.test], labels[rows.test])
    # A training that goes on asks nobody again.
    again = distillation.targets([], toy, rows.train, 0.75, kept)
    np.testing.assert_array_equal(again, found)


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
