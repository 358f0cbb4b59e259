"""A network and the names of its classes in one .keras file.

Keras reads the file as any other; the names are a member of their own in it, so that they stay
with the network wherever it is copied. A logged model carries this module, so it needs none of the
package's others.
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

CLASSES_MEMBER = "classes.json"


def save(model: keras.Model, path: Path, classes: tuple[str, ...]) -> None:
    """Save `model`, and `classes` in the order of its outputs, as the .keras file `path`."""
    model.save(path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(CLASSES_MEMBER, json.dumps(classes))


def load(path: Path) -> tuple[keras.Model, tuple[str, ...] | None]:
    """Load a network and the names of its classes, None for those if the file holds none.

    No code of the file's own is run: it is loaded in Keras's safe mode. Raises what Keras does,
    mostly ValueError, if there is no sound .keras file at `path`.
    """
    model = keras.models.load_model(path, compile=False, safe_mode=True)
    with zipfile.ZipFile(path) as file:
        if CLASSES_MEMBER not in file.namelist():
            return model, None
        return model, tuple(json.loads(file.read(CLASSES_MEMBER)))


def compiled(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from images (N, H, W, C) uint8 to the model's outputs (N, classes) float32.

    It is compiled once for every N, here and not at its first call, and threads may share it.
    """
    shape = model.input_shape[1:]
    graph = tf.function(
        lambda images: model(images, training=False),
        input_signature=[tf.TensorSpec((None, *shape), tf.uint8)],
    )
    graph(np.zeros((1, *shape), np.uint8))
    return lambda images: graph(images).numpy()
