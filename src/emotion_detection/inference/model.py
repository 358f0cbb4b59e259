"""A trained network in Python: load it, and label the faces in pictures."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from emotion_detection.console import UserError
from emotion_detection.data.dataset import CHANNELS, BadFile, ColorMode
from emotion_detection.data.image import open_image
from emotion_detection.inference import detector as detectors
from emotion_detection.inference import pictures as files
from emotion_detection.inference import predict
from emotion_detection.inference.faces import Box, FaceFinder
from emotion_detection.inference.formats import Sets
from emotion_detection.inference.pictures import Picture
from emotion_detection.inference.predict import NO_FACE, Face, Network

CHAMPION = "champion"

BATCH_IMAGES = 256
"""Images that a network sees at once, so that memory does not grow with their number."""

PictureLike: TypeAlias = str | os.PathLike[str] | bytes | np.ndarray
"""A path, the bytes of an image file, or pixels (H, W[, C]) from 0 to 255."""


@dataclass(frozen=True)
class LabelledFace:
    """A face: its most probable class, the probability of each class, and where it is.

    `detection_confidence` is how sure the detector is that it is a face, None if it does not say.
    `prediction_set` holds the classes that a coverage takes, the most probable first, None if none
    was asked for.
    """

    label: str
    confidence: float
    probabilities: dict[str, float] = field(repr=False)
    box: Box
    detection_confidence: float | None = None
    prediction_set: tuple[str, ...] | None = None


class Model:
    """A trained network and what it was trained on; `load_model` makes one."""

    def __init__(self, network: Network, name: str) -> None:
        """Take a loaded network; `name` says which it is, for people."""
        self._network, self.name = network, name
        self._finders: dict[tuple[str | None, float, int], FaceFinder | None] = {}

    def __repr__(self) -> str:
        """Return its name and classes."""
        return f"<Model {self.name}: {', '.join(self.classes)}>"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the network's outputs."""
        return self._network.classes

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the network takes, in pixels."""
        return self._network.image_size

    @property
    def color_mode(self) -> ColorMode:
        """What the channels of those images are, grayscale or rgb."""
        return self._network.color_mode

    def predict(
        self,
        pictures: PictureLike | Sequence[PictureLike],
        *,
        detector: str | None = None,
        min_confidence: float = detectors.MIN_CONFIDENCE,
        min_face: int = detectors.MIN_FACE,
        coverage: float | None = None,
    ) -> list[list[LabelledFace]]:
        """Return the faces of each picture, from left to right: a list for each picture.

        `pictures` is one picture or a list of them, each a path, the bytes of an image file, or
        pixels (H, W), (H, W, 1) or (H, W, 3), integers from 0 to 255; or pixels of several, (N, H,
        W) or (N, H, W, C). The list of a picture without a face is empty.

        Faces are found by `detector`: yunet, haar or the path of YuNet's file; none takes each
        picture whole. By default it is yunet if the classes are emotions, else none. A picture that
        is a cropped face already is taken whole: its one face fills it, or no face is found in a
        square one of at most 256 pixels, or in ten and more of one size. Faces of which YuNet is
        less sure than `min_confidence`, or of less than `min_face` pixels, are left out. With
        `coverage`, as 0.9, each face has the classes that hold the right one for this share of the
        faces of each class.

        Raises:
            UserError: if a picture cannot be read, or is none of these, there is no such detector,
                or the model has nothing that a coverage rests on.

        """
        listed = [_picture(item, number) for number, item in enumerate(_items(pictures))]
        sets = None if coverage is None else self._network.sets(coverage)
        chosen = (detector, min_confidence, min_face)
        if chosen not in self._finders:
            self._finders[chosen] = detectors.load(detector, self.classes, min_confidence, min_face)
        found: list[list[LabelledFace]] = []
        for result in predict.predict(listed, self._network, self._finders[chosen], keep=False):
            if isinstance(result, BadFile):
                if result.reason != NO_FACE:
                    raise UserError(f"{result.path}: {result.reason}")
                found.append([])
            else:
                found.append([self._labelled(face, sets) for face in result.faces])
        return found

    def probabilities(self, images: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the probabilities (N, classes) float32 of images as the network takes them.

        `images` (N, H, W, C) uint8 may be a memory map, as `Dataset.images`; `rows` chooses some.

        Raises:
            UserError: if they have another shape or type.

        """
        expected = (*self.image_size, CHANNELS[self.color_mode])
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise UserError(
                f"images of {images.dtype} {images.shape}: {self.name} takes uint8 "
                f"(N, {', '.join(map(str, expected))}); predict takes pictures of any size"
            )
        rows = np.arange(len(images)) if rows is None else rows
        batches = [
            rows[start : start + BATCH_IMAGES] for start in range(0, len(rows), BATCH_IMAGES)
        ]
        answers = [self._network.probabilities(np.asarray(images[batch])) for batch in batches]
        return np.concatenate([np.empty((0, len(self.classes)), np.float32), *answers])

    def _labelled(self, face: Face, sets: Sets | None) -> LabelledFace:
        held = None if sets is None else sets(face.probabilities)
        return LabelledFace(
            label=self.classes[face.label],
            confidence=face.confidence,
            probabilities=dict(zip(self.classes, face.probabilities.tolist(), strict=True)),
            box=face.box,
            detection_confidence=face.detection_confidence,
            prediction_set=None if held is None else tuple(self.classes[each] for each in held),
        )


def load_model(
    name_or_path: str | int | os.PathLike[str] = CHAMPION,
    *,
    classes: Sequence[str] | None = None,
    scale: float | None = None,
) -> Model:
    """Return a trained network, ready to label faces.

    `name_or_path` is `champion`, the number of a version in MLflow's registry, an MLflow URI such
    as models:/emotion-detection/3 or runs:/<id>/model, or the path of a .keras or .onnx file.
    A file that this project did not save needs `classes`, the names of its outputs, and, if it is a
    .keras file, `scale`: what its pixels are multiplied by from 0 to 255, as 1/255.

    Raises:
        UserError: if there is no such model, it cannot be loaded, or it takes no images.

    """
    name = os.fspath(name_or_path) if isinstance(name_or_path, os.PathLike) else str(name_or_path)
    if re.fullmatch(r"[0-9]+", name):
        # It imports MLflow, which takes seconds and which no file needs.
        from emotion_detection.tracking.models import REGISTERED_MODEL

        name = f"models:/{REGISTERED_MODEL}/{name}"
    return Model(predict.load(None if name == CHAMPION else name, classes, scale), name)


def _items(pictures: PictureLike | Sequence[PictureLike]) -> Iterator[PictureLike]:
    if isinstance(pictures, np.ndarray):
        # Three axes are one picture if the last one can be its channels.
        several = pictures.ndim == 4 or (pictures.ndim == 3 and not _has_channels(pictures))
        yield from pictures if several else [pictures]
    elif isinstance(pictures, str | bytes | os.PathLike):
        yield pictures
    else:
        yield from pictures


def _picture(item: PictureLike, number: int) -> Picture:
    name = f"picture {number}"
    if isinstance(item, str | os.PathLike):
        path = Path(item)
        return Picture(str(path), path, partial(files.open_file, path), path)
    if isinstance(item, bytes):
        return Picture(name, Path(name), partial(open_image, item))
    if not isinstance(item, np.ndarray):
        raise UserError(
            f"{name}: it is {type(item).__name__}; give a path, the bytes of an image file, or an "
            "array"
        )
    image = _image(item, name)
    return Picture(name, Path(name), lambda: image)


def _image(pixels: np.ndarray, name: str) -> Image.Image:
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and _has_channels(pixels))):
        raise UserError(
            f"{name}: its shape is {pixels.shape}, and pixels must be (height, width), with 1 or 3 "
            "channels after them or without"
        )
    if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
        raise UserError(
            f"{name}: its pixels are not all whole numbers from 0 to 255; of pixels from 0 to 1 "
            "give (255 * pixels).round().astype('uint8')"
        )
    one = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(one, np.uint8))


def _has_channels(pixels: np.ndarray) -> bool:
    return pixels.shape[-1] in CHANNELS.values()
