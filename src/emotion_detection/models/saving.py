"""A network and the names of its classes in one .keras file, and the networks that are put in one.

Keras reads the file as any other; the names are a member of their own in it, so that they stay
with the network wherever it is copied. A logged model carries this module, so it needs none of the
package's others.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

CLASSES_MEMBER = "classes.json"
NOTES = {"notice": "notice.txt", "lineage": "lineage.json", "coverage": "coverage.json"}
"""The members of what else a file says: a sentence for whoever uses the network, what it learnt
from (tracking.lineage), and what its sets of classes rest on (models.coverage)."""

SCALE = "temperature"
"""The name of the layer that divides by it."""

LONGEST_MEMBER = 64 * 2**20
"""Bytes of one of them; the lineage of a million images has less."""

BATCH_PIXELS = 256 * 48 * 48
"""Of the images that are predicted at once, so that memory does not grow with their size."""

SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""Below it a probability counts as this in the loss. A softmax in float32 goes down to it, so that
the loss is that of the logits; Keras computes it so in a training."""

ROWS_AT_ONCE = 1024
"""Images that are read from a memory map at once."""


def save(
    model: keras.Model,
    path: Path,
    classes: Sequence[str],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Save `model`, and `classes` in the order of its outputs, as the .keras file `path`.

    `notes` are texts by the names of NOTES.
    """
    model.save(path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(CLASSES_MEMBER, json.dumps(classes))
        for name, text in (notes or {}).items():
            file.writestr(NOTES[name], text)


def load(path: Path) -> tuple[keras.Model, tuple[str, ...] | None]:
    """Load a network and the names of its classes, None for those if the file holds none.

    No code of the file's own is run: it is loaded in Keras's safe mode. Raises what Keras does,
    mostly ValueError, if there is no sound .keras file at `path`.
    """
    model = keras.models.load_model(path, compile=False, safe_mode=True)
    text = _text(path, CLASSES_MEMBER)
    if text is None:
        return model, None
    classes = json.loads(text)
    if not isinstance(classes, list):
        raise ValueError(f"its {CLASSES_MEMBER} is no list")
    return model, tuple(classes)


def notes(path: Path) -> dict[str, str]:
    """Return the notes of the .keras file `path` by the names of NOTES; those that it has."""
    found = {name: _text(path, member) for name, member in NOTES.items()}
    return {name: text for name, text in found.items() if text is not None}


def _text(path: Path, member: str) -> str | None:
    with zipfile.ZipFile(path) as file:
        if member not in file.namelist():
            return None
        if file.getinfo(member).file_size > LONGEST_MEMBER:
            raise ValueError(f"its {member} is larger than {LONGEST_MEMBER // 2**20} MiB")
        return file.read(member).decode()


def scaled(model: keras.Model, scale: float) -> keras.Model:
    """Return a model that takes images (N, H, W, C) uint8 for one that takes them times `scale`."""
    images = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    return keras.Model(images, model(keras.layers.Rescaling(scale)(images)))


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


def predictor(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Return what `compiled` does, for any number of images: they are predicted in batches."""
    probabilities = compiled(model)
    size = max(1, BATCH_PIXELS // int(np.prod(model.input_shape[1:3])))

    def predict_in_batches(images: np.ndarray) -> np.ndarray:
        starts = range(0, len(images), size)
        return np.concatenate([probabilities(images[start : start + size]) for start in starts])

    return predict_in_batches


def predict(
    model: keras.Model,
    images: np.ndarray,
    rows: np.ndarray,
    advance: Callable[[int], None] = lambda number: None,
) -> np.ndarray:
    """Return the probabilities (len(rows), classes) float32 of `images[rows]`, read in batches.

    `images` (N, H, W, C) uint8 may be a memory map, `rows` are integers. `advance` is called with
    the number of images of every batch that is done.
    """
    probabilities = predictor(model)
    answers = []
    for chunk in np.array_split(rows, max(1, len(rows) // ROWS_AT_ONCE)):
        answers.append(probabilities(np.asarray(images[chunk])))
        advance(len(chunk))
    return np.concatenate(answers)


def cross_entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean loss of `probabilities` (N, classes) against `labels` (N,), not smoothed."""
    of_label = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(of_label.clip(min=SMALLEST_PROBABILITY)).mean())


def combined(
    members: Sequence[keras.Model],
    *,
    flips: bool = False,
    shifts: int = 0,
    temperature: float = 1.0,
) -> keras.Model:
    """Return one model whose answer is the mean over `members` and over views of the image.

    With `flips` the views are the image and its mirror image, with `shifts` also the image moved by
    so many pixels to each of its four corners; what comes in at an edge is the edge's mirror image.
    Each member is in the model once, whatever the number of views. The logits of the mean are
    divided by `temperature`. Members take images (N, H, W, C)
    uint8 of one size and return probabilities (N, classes) float32.
    """
    if len(members) == 1 and not flips and not shifts and temperature == 1:
        return members[0]
    images = keras.Input(members[0].input_shape[1:], dtype="uint8", name="images")
    views = [images]
    if shifts:
        height, width = images.shape[1:3]
        around = [(0, 0), (shifts, shifts), (shifts, shifts), (0, 0)]
        wider = keras.ops.pad(images, around, mode="symmetric")
        corners = [(top, left) for top in (0, 2 * shifts) for left in (0, 2 * shifts)]
        views += [wider[:, top : top + height, left : left + width] for top, left in corners]
    if flips:
        views += [keras.ops.flip(view, axis=2) for view in views]
    answers = []
    for number, member in enumerate(members, start=1):
        if len(members) > 1:
            # Two layers of one name are refused; each member keeps the names of its own layers.
            member.name = f"member_{number}"
        answers += [member(view) for view in views]
    outputs = answers[0]
    if len(answers) > 1:
        outputs = keras.layers.Average(dtype="float32", name="mean")(answers)
    if temperature != 1:
        logits = keras.ops.log(keras.ops.maximum(outputs, SMALLEST_PROBABILITY))
        scaled = keras.layers.Rescaling(1 / temperature, dtype="float32", name=SCALE)(logits)
        outputs = keras.layers.Softmax(dtype="float32", name="calibrated")(scaled)
    return keras.Model(images, outputs, name="emotion_model")


def temperature(model: keras.Model) -> float:
    """Return the temperature that `combined` was given for `model`."""
    scales = [layer.scale for layer in model.layers if layer.name == SCALE]
    return 1 / scales[0] if scales else 1.0


def single(model: keras.Model) -> keras.Model:
    """Return the one trained network in what `combined` made.

    Raises:
        ValueError: if it has several members.

    """
    inner = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    if len(inner) > 1:
        raise ValueError(f"it is an ensemble of {len(inner)} networks")
    return inner[0] if inner else model


def digest(model: keras.Model) -> str:
    """Return the SHA-256, in hex, of the weights of `model`: their types, shapes and values."""
    found = hashlib.sha256()
    for weight in model.get_weights():
        found.update(f"{weight.dtype} {weight.shape} ".encode())
        found.update(np.ascontiguousarray(weight).tobytes())
    return found.hexdigest()
