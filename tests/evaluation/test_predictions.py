"""Predictions that are kept from one run to the next."""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from emotion_detection.data.dataset import Dataset
from emotion_detection.evaluation import predictions
from emotion_detection.models import saving


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> keras.Model:
    monkeypatch.chdir(tmp_path)
    images = keras.Input((16, 16, 3), dtype="uint8")
    means = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(images))
    return keras.Model(images, keras.layers.Dense(3, activation="softmax")(means))


def test_a_model_predicts_the_same_images_once(
    model: keras.Model, toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.flatnonzero(toy.is_test)
    saving.save(model, tmp_path / "one.keras", toy.classes)
    saving.save(model, tmp_path / "two.keras", toy.classes)
    expected = saving.predict(model, toy.images, rows)
    one, two = (saving.load(tmp_path / f"{name}.keras")[0] for name in ("one", "two"))
    np.testing.assert_array_equal(predictions.predict(one, toy, rows), expected)

    monkeypatch.setattr(saving, "predict", None)
    np.testing.assert_array_equal(predictions.predict(two, toy, rows), expected)


def test_another_model_or_other_images_are_predicted(model: keras.Model, toy: Dataset) -> None:
    rows = np.flatnonzero(toy.is_test)
    first = predictions.predict(model, toy, rows)
    others = {
        "images": (model, replace(toy, images=255 - toy.images), rows),
        "rows": (model, toy, rows[::-1]),
        "views": (saving.combined([model], shifts=2), toy, rows),
    }
    for of in others.values():
        expected = saving.predict(of[0], of[1].images, of[2])
        np.testing.assert_array_equal(predictions.predict(*of), expected)
        assert not np.array_equal(expected, first)
    model.set_weights([np.ones_like(weight) for weight in model.get_weights()])
    assert not np.array_equal(predictions.predict(model, toy, rows), first)


def test_the_predictions_used_last_are_kept(
    model: keras.Model, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "KEPT", 2)
    for row in range(4):
        predictions.predict(model, toy, np.array([row]))
    assert len(list(predictions.FOLDER.glob("*.npy"))) == 2
