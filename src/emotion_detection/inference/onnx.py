"""A network and the names of its classes in one .onnx file, for programs without TensorFlow.

Its packages are the extra `onnx`. They are imported in the functions that need them, since most
installations have none.
"""

import contextlib
import json
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emotion_detection.console import UserError, log, progress
from emotion_detection.data.dataset import Dataset

if TYPE_CHECKING:
    import keras

CLASSES_KEY, NOTES_KEYS = "classes", ("notice", "coverage")
INPUT, OUTPUT = "images", "probabilities"
BATCH = 256
TIMED_SECONDS = 1.0
LONGEST_ANSWER = 120.0
"""Seconds that a batch may take."""

# Of a probability: a larger difference from Keras on a test image is an error.
TOLERANCE = 1e-4

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


def save(
    model: "keras.Model",
    path: Path,
    classes: tuple[str, ...],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Save `model`, and `classes` in the order of its outputs, as the ONNX file `path`.

    The file takes `images` (N, H, W, C) uint8 and returns `probabilities` (N, classes) float32, for
    any N. Its metadata are `classes`, their names as a JSON list, and those of `notes` that are
    needed to use it, by the names of `saving.NOTES`.

    Raises:
        UserError: if a package of the extra onnx is missing.

    """
    with _extra():
        import onnx
        import tf2onnx  # noqa: F401  Keras's own error would not name the extra.
    import keras

    images = keras.InputSpec(shape=(None, *model.input_shape[1:]), dtype="uint8", name=INPUT)
    with warnings.catch_warnings():
        # Keras patches tf2onnx for NumPy 2, which warns of how it does so.
        warnings.simplefilter("ignore", FutureWarning)
        model.export(path, format="onnx", verbose=False, input_signature=[images])
    file = onnx.load(path)
    (output,) = file.graph.output
    for node in file.graph.node:
        for names in (node.input, node.output):
            names[:] = [OUTPUT if name == output.name else name for name in names]
    output.name = OUTPUT
    for value in (*file.graph.input, output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    file.metadata_props.add(key=CLASSES_KEY, value=json.dumps(classes, ensure_ascii=False))
    for key, value in (notes or {}).items():
        if key in NOTES_KEYS:
            file.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(file, full_check=True)
    onnx.save(file, path)


def export(
    model: "keras.Model",
    path: Path,
    dataset: Dataset,
    notes: Mapping[str, str] | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> dict[str, float]:
    """Save `model` as the ONNX file `path`, and return how it compares with Keras on test images.

    `notes` are those of `save`. The metrics are the largest difference in a probability, and the
    images per second of each, in batches of `BATCH` and one by one.

    Raises:
        UserError: if a package of the extra onnx is missing, or if a probability differs by more
            than `tolerance`.

    """
    from emotion_detection.models import saving

    save(model, path, dataset.classes, notes)
    networks: dict[str, Probabilities] = {"keras": saving.compiled(model), "onnx": load(path)[0]}
    rows = dataset.is_test.nonzero()[0]
    difference = largest_difference(networks["keras"], networks["onnx"], dataset.images, rows)
    if not difference <= tolerance:
        raise UserError(
            f"{path.name}: a probability differs from Keras's by {difference:.1e}, and at most "
            f"{tolerance:g} is allowed; export.onnx = false leaves the file out"
        )
    metrics = {"export/onnx_largest_difference": difference}
    for size, suffix in ((BATCH, ""), (1, "_one_by_one")):
        images = np.resize(dataset.images[rows[:size]], (size, *dataset.images.shape[1:]))
        for name, probabilities in networks.items():
            key = f"export/{name}_images_per_second{suffix}"
            metrics[key] = images_per_second(probabilities, images)
    log.info(
        "%s: a probability differs from Keras's by at most %.1e on %s test images; images per "
        "second, Keras and ONNX: %.0f and %.0f in batches of %d, %.0f and %.0f one by one",
        *(path.name, difference, f"{len(rows):,}"),
        *list(metrics.values())[1:3],
        BATCH,
        *list(metrics.values())[3:],
    )
    return metrics


@dataclass(frozen=True)
class OnnxNetwork:
    """A network that onnxruntime runs; shapes are as Keras gives them, None for any number."""

    input_shape: tuple[Any, ...]
    output_shape: tuple[Any, ...]
    session: Any

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs (N, classes) float32 for images (N, H, W, C) uint8."""
        import onnxruntime

        feeds = {self.session.get_inputs()[0].name: images}
        # A file may hold a loop without end, and nothing else would interrupt it.
        options = onnxruntime.RunOptions()
        clock = threading.Timer(LONGEST_ANSWER, setattr, (options, "terminate", True))
        clock.daemon = True
        clock.start()
        try:
            return np.asarray(self.session.run(None, feeds, options)[0])
        finally:
            clock.cancel()

    @property
    def notes(self) -> dict[str, str]:
        """What the file says besides the names of its classes, by `saving.NOTES`."""
        said = self.session.get_modelmeta().custom_metadata_map
        return {key: said[key] for key in NOTES_KEYS if key in said}


def load(path: Path) -> tuple[OnnxNetwork, tuple[str, ...] | None]:
    """Load a network and the names of its classes, None for those if the file holds none.

    Raises:
        UserError: if the package onnxruntime is missing.
        ValueError: if the network takes no uint8.
        Exception: what onnxruntime raises, if there is no sound ONNX file at `path`.

    """
    with _extra():
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it would write errors to the terminal before they are raised
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    images, outputs = session.get_inputs()[0], session.get_outputs()[0]
    if images.type != "tensor(uint8)":
        raise ValueError(f"takes {images.type}, not uint8")
    classes = session.get_modelmeta().custom_metadata_map.get(CLASSES_KEY)
    names = None if classes is None else json.loads(classes)
    if not isinstance(names, list | None):
        raise ValueError(f"its {CLASSES_KEY} are no list")
    return OnnxNetwork(_shape(images), _shape(outputs), session), None if names is None else tuple(
        names
    )


def _shape(of: Any) -> tuple[Any, ...]:
    return tuple(size if isinstance(size, int) else None for size in of.shape)


def largest_difference(
    one: Probabilities, other: Probabilities, images: np.ndarray, rows: np.ndarray
) -> float:
    """Return the largest difference between two networks in a probability of `images[rows]`."""
    batches = np.split(rows, range(BATCH, len(rows), BATCH))
    differences = []
    for batch in progress(batches, description="compare", unit="batches", total=len(batches)):
        pixels = np.asarray(images[batch])
        differences.append(np.abs(one(pixels) - other(pixels)).max())
    return float(np.max(differences))


def images_per_second(probabilities: Probabilities, images: np.ndarray) -> float:
    """Return the speed of a network with `images` as one batch.

    It is measured over about a second, and that of the fastest batch, since other processes can
    only slow one down.
    """
    probabilities(images)
    fastest, end = math.inf, time.perf_counter() + TIMED_SECONDS
    while (start := time.perf_counter()) < end:
        probabilities(images)
        fastest = min(fastest, time.perf_counter() - start)
    return len(images) / fastest
