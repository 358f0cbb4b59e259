"""Small untrained networks in plain Keras layers, as they are saved."""

from typing import Any

import keras

from emotion_detection.models.layers import plain
from emotion_detection.models.network import build
from emotion_detection.settings import params

SMALL = {"arch": "notebook", "filters": (8, 8), "kernel_sizes": (3, 3), "dense_units": (8,)}


def untrained(image_shape: tuple[int, int, int], *, seed: int = 0, **options: Any) -> keras.Model:
    """Return a network of three classes; `options` are settings of params.Network."""
    settings = params.Network(**{**SMALL, **options})
    return plain(build(settings, image_shape=image_shape, classes=3, seed=seed), image_shape)
