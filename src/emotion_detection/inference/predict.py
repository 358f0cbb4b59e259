"""Predict the emotions in pictures: find the faces, prepare them as in training, label them."""

import contextlib
import os
import re
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from emotion_detection.console import UserError, first_line, log, quiet
from emotion_detection.data.dataset import CHANNELS, BadFile, ColorMode
from emotion_detection.data.image import NO_MEMORY, BadImageError, prepare
from emotion_detection.inference import onnx
from emotion_detection.inference.faces import (
    CROP_FACTOR,
    LARGEST_CROP,
    Box,
    Detection,
    FaceFinder,
    cut,
    look,
    whole,
)
from emotion_detection.inference.pictures import Picture
from emotion_detection.models import coverage
from emotion_detection.models.coverage import Coverage

if TYPE_CHECKING:
    import keras

    from emotion_detection.tracking.models import Origin

BATCH_FACES = 64
# Pictures are kept only to be annotated, and a batch ends where they become so many pixels.
BATCH_PIXELS = 100_000_000
# So many pictures of one size at the beginning are the images of a set, and no photos.
SAME_SIZE = 10
# As evaluation.metrics has it: wide enough for a softmax in bfloat16, far too narrow for logits.
ROW_SUM_TOLERANCE = 0.01
NO_FACE = "no face found; --detector none takes a picture whole"


@dataclass(frozen=True)
class Network:
    """A network that is ready to label faces, and what it was trained on.

    `probabilities` takes (N, H, W, C) uint8 and gives (N, classes) float32. `notice` is what
    whoever uses it has to know, None if there is nothing. `coverage` is what prediction sets rest
    on, None if that is not known.
    """

    probabilities: Callable[[np.ndarray], np.ndarray]
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    color_mode: ColorMode
    notice: str | None = None
    coverage: Coverage | None = None

    def sets(self, share: float) -> Callable[[np.ndarray], tuple[int, ...]]:
        """Return what gives the prediction set for the probabilities (classes,) of a face.

        It holds the numbers of classes, the most probable first: the face's own class for `share`
        or more of the faces of each class, see `models.coverage`.

        Raises:
            UserError: if what they rest on is not known.

        """
        known = self.coverage
        if known is None:
            raise UserError(
                "--coverage: this model has no validation images to go by; take one that `dvc "
                "repro` exported with a validation split, or leave it out"
            )

        def found(probabilities: np.ndarray) -> tuple[int, ...]:
            (held,) = known.sets(probabilities[np.newaxis], share)
            order = np.argsort(-probabilities, kind="stable")
            return tuple(order[held[order]].tolist())

        return found


@dataclass(frozen=True, eq=False)
class Face:
    """A face and the probability of each class, (classes,) float32.

    `detection_confidence` and `angle` are as `Detection` has them.
    """

    box: Box
    probabilities: np.ndarray
    detection_confidence: float | None = None
    angle: float = 0.0

    @property
    def label(self) -> int:
        """The most probable class's number."""
        return int(self.probabilities.argmax())

    @property
    def confidence(self) -> float:
        """The most probable class's probability."""
        return float(self.probabilities.max())


@dataclass(frozen=True, eq=False)
class Prediction:
    """The faces of a picture, from left to right; the picture itself if it was to be kept.

    `guessed_crop` says that it was taken whole, as a cropped face, and is large enough for a photo.
    """

    picture: Picture
    faces: tuple[Face, ...]
    image: Image.Image | None
    guessed_crop: bool


# --- The network.


def load(
    model: str | None, classes: Sequence[str] | None = None, scale: float | None = None
) -> Network:
    """Load a network: a .keras or .onnx file, or a model in MLflow by its URI, None the champion.

    `classes` names the outputs of a file that does not name them itself. A .keras file that this
    project did not save does not say what values its pixels have: `scale` is what they are
    multiplied by from 0 to 255, as 1/255. Warns where the network has learnt from synthetic faces
    only.

    Raises:
        UserError: if it cannot be loaded, takes no images, names no classes or does not know the
            scale of its pixels. `probabilities` raises one if the outputs are no probabilities.

    """
    where = model or "the champion"
    network: keras.Model | onnx.OnnxNetwork
    if _is_logged(model):
        if classes or scale is not None:
            raise UserError(
                "--classes and --scale: only for a file, since a model in MLflow has its own"
            )
        uri = pinned(model)
        network, names, notes = _logged(uri)
        notice = origin(uri).notice
    else:
        network, names, notes = _saved(Path(where), classes, scale)
        notice = notes.get("notice")
    shape, outputs = network.input_shape, (network.output_shape or [None])[-1]
    _check_takes_images(where, shape)
    named = all(isinstance(name, str) and name.strip() for name in names)
    if not named or len(set(names)) < len(names):
        raise UserError(
            f"{where}: each class needs a name of its own, not {', '.join(map(str, names))}"
        )
    if outputs != len(names):
        raise UserError(
            f"{where}: has {outputs} outputs, but {len(names)} classes are named: "
            f"{', '.join(names)}"
        )
    if notice is not None:
        log.warning("%s: %s", where, notice)
    try:
        answer = network if isinstance(network, onnx.OnnxNetwork) else _saving().compiled(network)
    except Exception as error:  # As below: whatever a network from elsewhere does.
        raise UserError(f"{where}: cannot be used ({first_line(error)})") from error
    return Network(
        probabilities=partial(_probabilities, answer, where, outputs),
        classes=names,
        image_size=shape[1:3],
        color_mode="grayscale" if shape[3] == CHANNELS["grayscale"] else "rgb",
        notice=notice,
        coverage=_coverage(notes, where, len(names)),
    )


def _coverage(notes: Mapping[str, str], where: str, classes: int) -> Coverage | None:
    if "coverage" not in notes:
        return None
    try:
        return coverage.from_json(notes["coverage"], classes)
    except ValueError as error:
        raise UserError(f"{where}: what it says of its coverage is damaged ({error})") from error


def _probabilities(
    answer: Callable[[np.ndarray], np.ndarray], where: str, classes: int, images: np.ndarray
) -> np.ndarray:
    """Return what the network answers, if it is a row of probabilities an image."""
    try:
        found = answer(images)
    except Exception as error:  # TensorFlow and onnxruntime let nearly any exception out.
        raise UserError(f"{where}: fails on {len(images)} images ({first_line(error)})") from error
    if found.shape != (len(images), classes):
        raise UserError(
            f"{where}: answers {len(images)} images with {found.shape}, not ({len(images)}, "
            f"{classes})"
        )
    sums = found.sum(axis=1, dtype=np.float64)
    # What is not finite fails each comparison.
    if not ((found >= 0).all() and (np.abs(sums - 1) <= ROW_SUM_TOLERANCE).all()):
        worst = sums[np.argmax(np.where(np.isfinite(sums), np.abs(sums - 1), np.inf))]
        raise UserError(
            f"{where}: its outputs are no probabilities: those of an image add up to {worst:.4g}, "
            "not 1; does it end without a softmax?"
        )
    return found


def pinned(model: str | None) -> str:
    """Return the name of what `load` loads, with the version that an alias is now.

    The alias may move while that is loaded, described or used.
    """
    if not _is_logged(model):
        return str(model)
    # It imports MLflow, which takes seconds and which no file needs.
    from emotion_detection.tracking import models

    return models.pinned(model or models.CHAMPION)


def _check_takes_images(where: object, shape: Any) -> None:
    several = isinstance(shape, tuple) and len(shape) == 4
    if not several or None in shape[1:] or shape[3] not in CHANNELS.values():
        raise UserError(f"{where}: takes {shape}, not images of one size, grey or colour")


def origin(model: str) -> "Origin":
    """Return where the network that `load` loads comes from."""
    from emotion_detection.tracking import models

    return models.origin(model) if _is_logged(model) else models.Origin(model, None)


def _is_logged(model: str | None) -> bool:
    return model is None or re.match(r"[a-z]{2,}:/", model) is not None


def _saving() -> ModuleType:
    with quiet(), _absent("matplotlib", "sklearn"):
        from emotion_detection.models import saving
    return saving


@contextlib.contextmanager
def _absent(*packages: str) -> Iterator[None]:
    """Have none of the packages found while the block lasts, unless they are loaded already.

    Keras imports them where they are, a third of its start, for what a prediction has no use for.
    """
    names = [name for name in packages if name not in sys.modules]
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _logged(uri: str) -> tuple["keras.Model", tuple[str, ...], dict[str, str]]:
    _saving()
    from emotion_detection.tracking.models import CHAMPION, load_with_notes

    try:
        return load_with_notes(uri)
    except UserError as error:
        if uri != CHAMPION:
            raise
        raise UserError(
            f"{error}; give a version of the model the alias champion in MLflow, or name a file, "
            "as export's models/model.keras (--model on the command line)"
        ) from error


def _saved(
    path: Path, classes: Sequence[str] | None, scale: float | None
) -> tuple["keras.Model | onnx.OnnxNetwork", tuple[str, ...], dict[str, str]]:
    if path.suffix.lower() in (".h5", ".hdf5"):
        raise UserError(
            f"{path}: HDF5 files are not taken; save it as a .keras file, with "
            f"keras.models.load_model({path.name!r}).save('{path.stem}.keras')"
        )
    # Before TensorFlow is imported; and a named pipe would never open.
    if not path.is_file():
        what = "is not a file" if path.exists() else "there is no such file"
        raise UserError(f"{path}: {what}; give a .keras or .onnx file, or a model in MLflow")
    is_onnx = path.suffix.lower() == ".onnx"
    try:
        network, names = (onnx if is_onnx else _saving()).load(path)
        notes = network.notes if is_onnx else _saving().notes(path)
        # Keras raises here where a network was never built.
        _check_takes_images(path, network.input_shape)
    except UserError:
        raise
    except Exception as error:  # Keras lets nearly any exception out of a malformed file.
        raise UserError(f"{path}: cannot be loaded ({first_line(error)})") from error
    if names is not None and classes is not None and tuple(classes) != names:
        raise UserError(
            f"{path}: its classes are {', '.join(map(str, names))}, in this order; leave --classes "
            "out"
        )
    if names is None and not classes:
        raise UserError(
            f"{path}: names no classes; give them with --classes A,B,..., in the order of the "
            "network's outputs"
        )
    # The file names its classes only if this project saved it.
    if names is not None or is_onnx or network.inputs[0].dtype == "uint8":
        if scale is not None:
            raise UserError(f"{path}: takes pixels from 0 to 255; leave --scale out")
    elif scale is None:
        raise UserError(
            f"{path}: was not saved by this project, and does not say how its pixels are scaled; "
            "give --scale 1/255 if it was trained on pixels from 0 to 1, --scale 1 if on 0 to 255"
        )
    else:
        network = _saving().scaled(network, scale)
    return network, tuple(classes or names or ()), notes


# --- From pictures to predictions.


class _Examined(NamedTuple):
    """A picture's faces, prepared for the network; and itself, if it is to be kept."""

    picture: Picture
    faces: list[Detection]
    pixels: list[bytes]
    image: Image.Image | None
    guessed_crop: bool


def predict(
    listed: Sequence[Picture], network: Network, finder: FaceFinder | None, *, keep: bool
) -> Generator[Prediction | BadFile]:
    """Predict the faces of pictures, one after the other, in their order.

    Faces are looked for by `finder`, see `detector.load`, but a picture that is cropped already, as
    those that the network was trained on, is taken whole, see `faces.look`; so is every picture if
    it is None. Of one that cannot be read, or shows no face, the reason comes. `keep` gives the
    pictures too. Memory does not grow with their number.
    """
    size_of_crops = _size_of_crops(listed) if finder else None

    def examine(picture: Picture) -> _Examined | BadFile:
        try:
            return found_in(picture, picture.open())
        except BadImageError as error:
            return BadFile(picture.name, str(error))
        except MemoryError:
            return BadFile(picture.name, NO_MEMORY)
        except cv2.error as error:
            return BadFile(picture.name, first_line(error))

    def found_in(picture: Picture, image: Image.Image) -> _Examined | BadFile:
        of_a_set = image.size == size_of_crops
        found, crop = (
            look(image, finder, network.image_size, of_a_set=of_a_set)
            if finder
            else (whole(image), False)
        )
        if not found:
            return BadFile(picture.name, NO_FACE)
        pixels = [
            prepare(cut(image, face.box, face.angle), network.image_size, network.color_mode)
            for face in found
        ]
        guessed = crop and max(image.size) > CROP_FACTOR * max(network.image_size)
        return _Examined(picture, found, pixels, image if keep else None, guessed)

    batch: list[_Examined | BadFile] = []
    faces = kept = 0
    with contextlib.closing(_in_threads(examine, listed)) as results:
        for result in results:
            batch.append(result)
            if isinstance(result, _Examined):
                faces += len(result.faces)
                kept += result.image.width * result.image.height if result.image else 0
            if faces >= BATCH_FACES or kept >= BATCH_PIXELS or len(batch) >= BATCH_FACES:
                yield from _labelled(batch, network)
                batch, faces, kept = [], 0, 0
    yield from _labelled(batch, network)


def _size_of_crops(listed: Sequence[Picture]) -> tuple[int, int] | None:
    """Return the (width, height) that the first pictures share if a set of crops would have it.

    Such a set has square images, or small ones.
    """
    found = None
    if len(listed) < SAME_SIZE:
        return None
    for picture in listed[:SAME_SIZE]:
        try:
            size = picture.open().size
        except (BadImageError, MemoryError):
            continue
        if size != (found or size) or (size[0] != size[1] and max(size) > LARGEST_CROP):
            return None
        found = size
    return found


def _in_threads(
    examine: Callable[[Picture], _Examined | BadFile], listed: Sequence[Picture]
) -> Generator[_Examined | BadFile]:
    """Examine pictures in their order, few of them at a time."""
    workers = min(os.cpu_count() or 1, 16)
    # Threads enough come from here, and each of OpenCV's own would get in another's way.
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(workers)
    under_way: deque[Future[_Examined | BadFile]] = deque()
    try:
        with warnings.catch_warnings():
            # Pillow warns of flaws that it can work around: the pixels are sound.
            warnings.simplefilter("ignore")
            for picture in listed:
                under_way.append(pool.submit(examine, picture))
                if len(under_way) > 2 * workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _labelled(
    batch: Sequence[_Examined | BadFile], network: Network
) -> Iterator[Prediction | BadFile]:
    encoded = [pixels for item in batch if isinstance(item, _Examined) for pixels in item.pixels]
    shape = (len(encoded), *network.image_size, CHANNELS[network.color_mode])
    images = np.frombuffer(b"".join(encoded), np.uint8).reshape(shape)
    rows = iter(network.probabilities(images) if encoded else ())
    for item in batch:
        if isinstance(item, BadFile):
            yield item
        else:
            faces = tuple(
                Face(face.box, next(rows), face.confidence, face.angle) for face in item.faces
            )
            yield Prediction(item.picture, faces, item.image, item.guessed_crop)
