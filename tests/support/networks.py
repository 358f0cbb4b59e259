"""Small networks, and images for them."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from emotion_detection.models.network import build
from emotion_detection.settings import params

KINDS: dict[str, dict[str, Any]] = {
    "notebook": {"arch": "notebook"},
    "plain": {"arch": "plain", "dense_units": ()},
    "residual": {"arch": "residual", "dense_units": ()},
    "deep": {"arch": "residual", "squeeze_excitation": True, "kernel": 5, "convolutions": 3},
    "single": {"arch": "plain", "squeeze_excitation": True, "convolutions": 1},
}
"""Arguments of the fixture `network` that between them use every kind of layer."""


def small(network: params.Network, **changes: Any) -> keras.Model:
    """Return `network` for images of 16x16x3 and three classes, built with `changes`."""
    settings: dict[str, Any] = {"image_shape": (16, 16, 3), "classes": 3, "seed": 1, **changes}
    return build(network, **settings)


def noise(images: int, seed: int = 0) -> np.ndarray:
    """Return random `images` (N, 16, 16, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (images, 16, 16, 3), np.uint8)


def same_weights(first: keras.Model, second: keras.Model) -> bool:
    """Return whether two networks have the same weights to the last bit."""
    pairs = zip(first.get_weights(), second.get_weights(), strict=True)
    return all(np.array_equal(mine, its) for mine, its in pairs)


def leaves(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yield the layers of `model` and of the models in it, one after the other."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer)
        else:
            yield layer
