"""Find the faces in a picture, and frame each as the images that a network was trained on are."""

import threading
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from cv2.data import haarcascades
from PIL import Image

CASCADE = "haarcascade_frontalface_alt2.xml"
# A large photo is searched in this size, since the time grows with the area. The cascade knows
# faces from 20 pixels on, but takes much else for ones so small.
SEARCHED_SIDE = 1000
SMALLEST_FACE = 30
# Of the box that the cascade draws from eyebrow to chin; FER-2013's faces have some more around.
MARGIN = 0.1
# Sets of cropped faces have square images of 48 to 256 pixels: FER-2013, RAF-DB, AffectNet. A
# square picture up to so many pixels, or times the network's images, is taken for such a face.
LARGEST_CROP = 256
CROP_FACTOR = 2


class Box(NamedTuple):
    """A part of a picture, in its pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom; the last two are just outside."""
        return self.left, self.top, self.left + self.width, self.top + self.height


class FaceFinder:
    """OpenCV's cascade of Haar features for frontal faces (Viola and Jones 2001).

    It misses faces that are turned, tilted, covered, or smaller than 30 pixels, in a large picture
    those smaller than a thirtieth of its longer side; and now and then it takes something else for
    a face.
    """

    def __init__(self) -> None:
        """Load nothing yet: threads must not share a cascade, so each loads its own."""
        self._own = threading.local()

    def __call__(self, image: Image.Image) -> list[Box]:
        """Return the boxes of the faces, from left to right."""
        if not hasattr(self._own, "cascade"):
            self._own.cascade = cv2.CascadeClassifier(str(Path(haarcascades, CASCADE)))
        scale = min(1.0, SEARCHED_SIDE / max(image.size))
        grey = image.convert("L")
        if scale < 1:
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            grey = grey.resize(size, Image.Resampling.BILINEAR)
        found = self._own.cascade.detectMultiScale(
            cv2.equalizeHist(np.asarray(grey)),
            scaleFactor=1.1,
            minNeighbors=4,
            minSize=(SMALLEST_FACE, SMALLEST_FACE),
        )
        return sorted(_with_margin(np.asarray(box) / scale, image.size) for box in found)


def _with_margin(box: np.ndarray, size: tuple[int, int]) -> Box:
    """Widen a box (left, top, width, height) to a square with a margin, inside the picture."""
    side = min(round(float(box[2:].max()) * (1 + 2 * MARGIN)), *size)
    left, top = (
        int(np.clip(round(start + extent / 2 - side / 2), 0, length - side))
        for start, extent, length in zip(box[:2], box[2:], size, strict=True)
    )
    return Box(left, top, side, side)


def whole(image: Image.Image) -> list[Box]:
    """Return the box of the whole picture."""
    return [Box(0, 0, image.width, image.height)]


def is_crop(image: Image.Image, image_size: tuple[int, int]) -> bool:
    """Return whether a picture is small and square, as a face that is cropped already.

    `image_size` is the (height, width) of the network's images.
    """
    largest = max(LARGEST_CROP, CROP_FACTOR * max(image_size))
    return image.width == image.height <= largest
