"""Predict the emotions in pictures: find the faces, prepare them as in training, label them."""

import contextlib
import os
import re
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
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
from emotion_detection.data.dataset import CHANNELS, BadFile, ColorMode, are_emotions
from emotion_detection.data.image import FORMATS, NO_MEMORY, BadImageError, open_image, prepare
from emotion_detection.data.source import FolderSource, natural_key
from emotion_detection.inference import onnx
from emotion_detection.inference.faces import (
    CROP_FACTOR,
    LARGEST_CROP,
    Box,
    FaceFinder,
    is_crop,
    whole,
)

if TYPE_CHECKING:
    import keras

    from emotion_detection.tracking.models import Origin

ANNOTATED_SUFFIXES = (".jpg", ".jpeg", ".png")
BATCH_FACES = 64
# Pictures are kept only to be annotated, and a batch ends where they become so many pixels.
BATCH_PIXELS = 100_000_000
CAMERA_FRAMES = 10
# So many pictures of one size at the beginning are the images of a set, and no photos.
SAME_SIZE = 10
# As evaluation.metrics has it: wide enough for a softmax in bfloat16, far too narrow for logits.
ROW_SUM_TOLERANCE = 0.01
NO_FACE = "no face found; --no-detect takes a picture whole"


@dataclass(frozen=True)
class Network:
    """A network that is ready to label faces, and what it was trained on.

    `probabilities` takes (N, H, W, C) uint8 and gives (N, classes) float32. `notice` is what
    whoever uses it has to know, None if there is nothing.
    """

    probabilities: Callable[[np.ndarray], np.ndarray]
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    color_mode: ColorMode
    notice: str | None = None


@dataclass(frozen=True, eq=False)
class Face:
    """A face and the probability of each class, (classes,) float32."""

    box: Box
    probabilities: np.ndarray

    @property
    def label(self) -> int:
        """The most probable class's number."""
        return int(self.probabilities.argmax())

    @property
    def confidence(self) -> float:
        """The most probable class's probability."""
        return float(self.probabilities.max())


class Picture(NamedTuple):
    """A picture still to be read.

    `name` is for people, and `file` for what is written of it: no two of a list have the same
    `annotated_name`. `path` is where it is, if it is a file.
    """

    name: str
    file: Path
    open: Callable[[], Image.Image]
    path: Path | None = None


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
        network, names = _logged(uri)
        notice = origin(uri).notice
    else:
        network, names, notice = _saved(Path(where), classes, scale)
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
    )


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


def _logged(uri: str) -> tuple["keras.Model", tuple[str, ...]]:
    _saving()
    from emotion_detection.tracking.models import CHAMPION, load_network

    try:
        return load_network(uri)
    except UserError as error:
        if uri != CHAMPION:
            raise
        raise UserError(
            f"{error}; give a version of the model the alias champion in MLflow, or name a file, "
            "as export's models/model.keras (--model on the command line)"
        ) from error


def _saved(
    path: Path, classes: Sequence[str] | None, scale: float | None
) -> tuple["keras.Model | onnx.OnnxNetwork", tuple[str, ...], str | None]:
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
        notice = (network.notes if is_onnx else _saving().notes(path)).get("notice")
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
    return network, tuple(classes or names or ()), notice


# --- Pictures: files, folders and a camera.


def annotated_name(file: Path) -> Path:
    """Return the name of a picture with boxes on it: JPEG stays JPEG, all else becomes PNG."""
    return file if file.suffix.lower() in ANNOTATED_SUFFIXES else Path(f"{file}.png")


def pictures(paths: Sequence[Path]) -> list[Picture]:
    """Return files, and of folders every image file at any depth, in natural name order.

    Hidden files and folders are passed over, links to folders are not followed, and a folder that
    cannot be listed is warned of.
    """

    def tell(error: OSError) -> None:
        log.warning("%s left out: cannot be listed (%s)", error.filename, error.strerror)

    Image.init()
    suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in FORMATS}
    found: list[Picture] = []
    taken: set[Path] = set()

    def add(path: Path, file: Path) -> None:
        stem, number = file.stem, 1
        while annotated_name(file) in taken:
            number += 1
            file = file.with_stem(f"{stem}-{number}")
        taken.add(annotated_name(file))
        found.append(Picture(str(path), file, partial(open_file, path), path))

    for path in paths:
        if not path.is_dir():
            add(path, Path(path.name))
            continue
        inside: list[Path] = []
        for folder, folder_names, file_names in os.walk(path, onerror=tell):
            folder_names[:] = [name for name in folder_names if not name.startswith(".")]
            inside += [
                Path(folder, name)
                for name in file_names
                if not name.startswith(".") and Path(name).suffix.lower() in suffixes
            ]
        for file in sorted(inside, key=lambda file: natural_key(str(file))):
            add(file, file.relative_to(path))
    return found


def open_file(path: Path) -> Image.Image:
    """Return the picture at `path` as `open_image` does, which says what it raises."""
    return open_image(FolderSource(path.parent).read(path.name))


def camera(source: int | str) -> Picture:
    """Take a picture with a camera, by its number, or the path of a video.

    Raises UserError if none comes.
    """
    if isinstance(source, int) and not 0 <= source < 2**31:
        raise UserError(f"--camera {source}: must be 0, the first, or more")
    # Its own lines tell which drivers it tried.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture(source)
    taken = None
    # A camera needs some frames to find out how bright it is.
    for _ in range(CAMERA_FRAMES):
        came, frame = capture.read()
        if not came:
            break
        taken = frame
    capture.release()
    if taken is None:
        raise UserError(f"--camera: no picture comes from camera {source}: is it there and free?")
    image = Image.fromarray(cv2.cvtColor(taken, cv2.COLOR_BGR2RGB))
    return Picture(f"camera {source}", Path(f"camera_{source}.png"), lambda: image)


# --- From pictures to predictions.


class _Examined(NamedTuple):
    """A picture's faces, prepared for the network; and itself, if it is to be kept."""

    picture: Picture
    boxes: list[Box]
    pixels: list[bytes]
    image: Image.Image | None
    guessed_crop: bool


def predict(
    listed: Sequence[Picture], network: Network, *, detect: bool | None, keep: bool
) -> Generator[Prediction | BadFile]:
    """Predict the faces of pictures, one after the other, in their order.

    With `detect` true faces are looked for in each picture, with false each is taken whole. With
    None they are looked for if the network's classes are emotions, but not in a picture that is
    cropped already, as those that it was trained on: by `is_crop`, or of a size that all pictures
    of a set have. Of one that cannot be read, or shows no face, the reason comes. `keep` gives the
    pictures too. Memory does not grow with their number.
    """
    choose = detect is None and are_emotions(network.classes)
    size_of_crops = _size_of_crops(listed) if choose else None
    finder = FaceFinder() if detect or choose else None

    def examine(picture: Picture) -> _Examined | BadFile:
        try:
            return look_at(picture, picture.open())
        except BadImageError as error:
            return BadFile(picture.name, str(error))
        except MemoryError:
            return BadFile(picture.name, NO_MEMORY)
        except cv2.error as error:
            return BadFile(picture.name, first_line(error))

    def look_at(picture: Picture, image: Image.Image) -> _Examined | BadFile:
        crop = choose and (image.size == size_of_crops or is_crop(image, network.image_size))
        found = whole(image) if crop or finder is None else finder(image)
        if not found:
            return BadFile(picture.name, NO_FACE)
        pixels = [
            prepare(image.crop(box.corners), network.image_size, network.color_mode)
            for box in found
        ]
        guessed = crop and max(image.size) > CROP_FACTOR * max(network.image_size)
        return _Examined(picture, found, pixels, image if keep else None, guessed)

    batch: list[_Examined | BadFile] = []
    faces = kept = 0
    with contextlib.closing(_in_threads(examine, listed)) as results:
        for result in results:
            batch.append(result)
            if isinstance(result, _Examined):
                faces += len(result.boxes)
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
            faces = tuple(Face(box, next(rows)) for box in item.boxes)
            yield Prediction(item.picture, faces, item.image, item.guessed_crop)
