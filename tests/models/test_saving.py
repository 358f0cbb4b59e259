"""A network and its classes in one file, which Keras reads as any other."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from emotion_detection.data.dataset import Dataset
from emotion_detection.models import saving
from emotion_detection.models.network import build, export

CLASSES = ("très triste", "怒り", "happy")


@pytest.fixture(scope="module")
def network(architecture: Any) -> keras.Model:
    chosen = architecture()
    return export(build(chosen, image_shape=(16, 16, 3), classes=3, seed=0), chosen)


def test_the_classes_travel_with_the_network(
    tmp_path: Path, network: keras.Model, toy: Dataset
) -> None:
    path = tmp_path / "model.keras"
    saving.save(network, path, CLASSES)
    expected = network.predict(toy.images[:5], verbose=0)

    loaded, classes = saving.load(path.rename(tmp_path / "other.keras"))
    assert classes == CLASSES
    np.testing.assert_array_equal(loaded.predict(toy.images[:5], verbose=0), expected)
    plain = keras.models.load_model(tmp_path / "other.keras")
    np.testing.assert_array_equal(plain.predict(toy.images[:5], verbose=0), expected)


def test_a_file_of_keras_names_no_classes(tmp_path: Path, network: keras.Model) -> None:
    network.save(tmp_path / "model.keras")
    loaded, classes = saving.load(tmp_path / "model.keras")
    assert classes is None
    assert loaded.output_shape == (None, 3)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    inputs = keras.Input((16, 16, 3))
    outputs = keras.layers.Lambda(lambda images: images * 2)(inputs)
    saving.save(keras.Model(inputs, outputs), tmp_path / "model.keras", CLASSES)
    with pytest.raises(ValueError, match="safe_mode"):
        saving.load(tmp_path / "model.keras")


def test_compiled_once_it_takes_any_number_of_images(network: keras.Model, toy: Dataset) -> None:
    probabilities = saving.compiled(network)
    for count in (1, 2, 7):
        found = probabilities(toy.images[:count])
        assert found.dtype == np.float32
        np.testing.assert_allclose(
            found, network.predict(toy.images[:count], verbose=0), rtol=1e-5, atol=1e-6
        )
