"""A network of plain Keras layers that is made in no time, for tests of what surrounds networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

    from emotion_detection.data.dataset import Dataset


def tiny(dataset: Dataset, seed: int = 0) -> keras.Model:
    """Return an untrained network for `dataset`: images (N, H, W, C) uint8 to probabilities."""
    import keras  # It takes seconds, and half of the tests need none.

    keras.utils.set_random_seed(seed)
    images = keras.Input(dataset.images.shape[1:], dtype="uint8")
    pixels = keras.layers.Rescaling(1 / 255)(images)
    features = keras.layers.Dense(8, activation="relu")(keras.layers.Flatten()(pixels))
    probabilities = keras.layers.Dense(len(dataset.classes), activation="softmax")(features)
    return keras.Model(images, probabilities)
