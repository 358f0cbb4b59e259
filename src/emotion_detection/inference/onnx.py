"""A network and the names of its classes in one .onnx file, for programs without TensorFlow.

The packages for it are the extra `onnx`, and imported where they are needed: most people have none.
"""

import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emotion_detection.console import UserError, progress

if TYPE_CHECKING:
    import keras

CLASSES_KEY = "classes"
INPUT, OUTPUT = "images", "probabilities"
BATCH = 256
TIMED_SECONDS = 1.0

Probabilities = Callable[[np.ndarray], np.ndarray]


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"the package {error.name} is missing, which the extra onnx brings: run `make "
            ".venv/.extras`, or `pip install --require-hashes -r requirements-extras.txt`"
        ) from error


def save(model: "keras.Model", path: Path, classes: tuple[str, ...]) -> None:
    """Save `model`, and `classes` in the order of its outputs, as the ONNX file `path`.

    It takes `images` (N, H, W, C) uint8 and gives `probabilities` (N, classes) float32, for any N;
    the names of the classes are its metadata `classes`, as a JSON list.

    Raises:
        UserError: if a package of the extra onnx is missing.

    """
    with _extra():
        import onnx
        import tf2onnx  # noqa: F401  Keras would tell less well that it is missing.
    import keras

    images = keras.InputSpec(shape=(None, *model.input_shape[1:]), dtype="uint8", name=INPUT)
    with warnings.catch_warnings():
        # Keras patches tf2onnx for NumPy 2, which warns of how it does so.
        warnings.simplefilter("ignore", FutureWarning)
        model.export(path, format="onnx", verbose=False, input_signature=[images])
    file = onnx.load(path)
    (given,) = file.graph.output
    for node in file.graph.node:
        for names in (node.input, node.output):
            names[:] = [OUTPUT if name == given.name else name for name in names]
    given.name = OUTPUT
    for of in (*file.graph.input, given):
        of.type.tensor_type.shape.dim[0].dim_param = "N"
    file.metadata_props.add(key=CLASSES_KEY, value=json.dumps(classes, ensure_ascii=False))
    onnx.checker.check_model(file, full_check=True)
    onnx.save(file, path)


@dataclass(frozen=True)
class OnnxNetwork:
    """A network that onnxruntime runs; shapes are as Keras gives them, None for any number."""

    input_shape: tuple[Any, ...]
    output_shape: tuple[Any, ...]
    session: Any

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs (N, classes) float32 for images (N, H, W, C) uint8."""
        feeds = {self.session.get_inputs()[0].name: images}
        return np.asarray(self.session.run(None, feeds)[0])


def load(path: Path) -> tuple[OnnxNetwork, tuple[str, ...] | None]:
    """Load a network and the names of its classes, None for those if the file holds none.

    Raises what onnxruntime does if there is no sound ONNX file at `path`.

    Raises:
        UserError: if the package onnxruntime is missing.
        ValueError: if it takes no uint8.

    """
    with _extra():
        import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images, outputs = session.get_inputs()[0], session.get_outputs()[0]
    if images.type != "tensor(uint8)":
        raise ValueError(f"takes {images.type}, not uint8")
    classes = session.get_modelmeta().custom_metadata_map.get(CLASSES_KEY)
    names = None if classes is None else tuple(json.loads(classes))
    return OnnxNetwork(_shape(images), _shape(outputs), session), names


def _shape(of: Any) -> tuple[Any, ...]:
    return tuple(size if isinstance(size, int) else None for size in of.shape)


def largest_difference(
    one: Probabilities, other: Probabilities, images: np.ndarray, rows: np.ndarray
) -> float:
    """Return how far two networks are apart, at most, in a probability of `images[rows]`."""
    batches = np.split(rows, range(BATCH, len(rows), BATCH))
    apart = []
    for batch in progress(batches, description="compare", unit="batches", total=len(batches)):
        pixels = np.asarray(images[batch])
        apart.append(np.abs(one(pixels) - other(pixels)).max())
    return float(np.max(apart))


def images_per_second(probabilities: Probabilities, images: np.ndarray) -> float:
    """Measure the speed of a network, given `images` in one batch.

    It is that of the fastest of many, since what else runs makes them slower alone.
    """
    probabilities(images)
    fastest, end = math.inf, time.perf_counter() + TIMED_SECONDS
    while (start := time.perf_counter()) < end:
        probabilities(images)
        fastest = min(fastest, time.perf_counter() - start)
    return len(images) / fastest
