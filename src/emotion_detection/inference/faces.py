"""Find the faces in a picture, and frame each as the images that a network was trained on are."""

import math
import threading
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeAlias

import cv2
import numpy as np
from cv2.data import haarcascades
from PIL import Image

CASCADE = "haarcascade_frontalface_alt2.xml"
# A large photo is searched in this size, since the time grows with the area. The cascade knows
# faces from 20 pixels on, but takes much else for ones so small.
SEARCHED_SIDE = 1000
SMALLEST_FACE = 30
# YuNet misses many faces that fill a picture: of FER-2013's one in six in their 48 pixels, one in
# four in 512, and one in fifty in this size.
SMALL_SIDE = 160
OVERLAP = 0.3  # of two boxes that are one face, as YuNet's authors have it
# Of the box that the cascade draws from eyebrow to chin; FER-2013's faces have some more around.
MARGIN = 0.1
# FER-2013's images by YuNet's box and landmarks: the side in heights of the box, and the centre on
# the way from the eyes to the mouth.
SIDE, CENTRE = 0.93, 0.315
# Degrees from which on a face is turned upright. Networks are trained on faces that are turned by
# less.
UPRIGHT = 20.0
# Sets of cropped faces have square images of 48 to 256 pixels: FER-2013, RAF-DB, AffectNet. A
# square picture up to so many pixels, or times the network's images, is taken for such a face if no
# face is found in it.
LARGEST_CROP = 256
CROP_FACTOR = 2
# A picture whose one face takes this share of its shorter side is cropped already: so do 99 % of
# FER-2013's. Sets with more around their faces, as CelebA, are known by their one size.
FILLS, FILLS_OF_A_SET = 0.6, 0.4
LONGEST_CROP = 1.25  # in shorter sides: CelebA's images have 178x218 pixels


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


class Detection(NamedTuple):
    """A face in a picture.

    `confidence` is the detector's, from 0 to 1, None if it has none. `angle` is how far the face in
    the box is turned clockwise, in degrees, and 0 where that is too little to be turned back.
    """

    box: Box
    confidence: float | None = None
    angle: float = 0.0


class HaarFinder:
    """OpenCV's cascade of Haar features for frontal faces (Viola and Jones 2001).

    It misses faces that are turned, tilted, covered, or smaller than 30 pixels, in a large picture
    those smaller than a thirtieth of its longer side; and now and then it takes something else for
    a face, most often a part of one that fills the picture.
    """

    knows_crops: ClassVar[bool] = False

    def __init__(self, min_face: int) -> None:
        """Load nothing yet: threads must not share a cascade, so each loads its own."""
        self._min_face = min_face
        self._own = threading.local()

    def __call__(self, image: Image.Image) -> list[Detection]:
        """Return the faces of at least `min_face` pixels, from left to right."""
        if not hasattr(self._own, "cascade"):
            self._own.cascade = cv2.CascadeClassifier(str(Path(haarcascades, CASCADE)))
        grey, scale = _scaled(image.convert("L"), SEARCHED_SIDE)
        found = self._own.cascade.detectMultiScale(
            cv2.equalizeHist(grey),
            scaleFactor=1.1,
            minNeighbors=4,
            minSize=(SMALLEST_FACE, SMALLEST_FACE),
        )
        boxes = [np.asarray(box) / scale for box in found]
        return sorted(
            Detection(_square(box[:2] + box[2:] / 2, box[2:].max() * (1 + 2 * MARGIN), image.size))
            for box in boxes
            if box[3] >= self._min_face
        )


class YuNetFinder:
    """OpenCV's YuNet, a small network that finds faces and their eyes, nose and mouth.

    Wu, Peng and Yu, "YuNet: a tiny millisecond-level face detector" (Machine Intelligence Research
    2023).
    """

    knows_crops: ClassVar[bool] = True

    def __init__(self, model: bytes, min_confidence: float, min_face: int) -> None:
        """Take the bytes of the ONNX file; OpenCV raises cv2.error if they are no such network."""
        self._model = np.frombuffer(model, np.uint8)
        self._min_confidence, self._min_face = min_confidence, min_face
        # Threads must not share a network, so each loads its own.
        self._own = threading.local()
        self(Image.new("RGB", (SMALL_SIDE, SMALL_SIDE)))

    def __call__(self, image: Image.Image) -> list[Detection]:
        """Return the faces of at least `min_face` pixels, from left to right."""
        if not hasattr(self._own, "network"):
            self._own.network = cv2.FaceDetectorYN.create(
                *("onnx", self._model, np.empty(0, np.uint8), (1, 1)),
                score_threshold=self._min_confidence,
                nms_threshold=OVERLAP,
            )
        # It takes a picture of a few rows for anything.
        if min(image.size) < self._min_face:
            return []
        colour = image.convert("RGB")
        found = self._found(colour, SEARCHED_SIDE)
        if not len(found) and max(image.size) > SMALL_SIDE:
            found = self._found(colour, SMALL_SIDE)
        return sorted(framed(row, image.size) for row in found if row[3] >= self._min_face)

    def _found(self, image: Image.Image, side: int) -> np.ndarray:
        """Return the faces (N, 15): box, landmarks and confidence, as OpenCV has them."""
        pixels, scale = _scaled(image, side, least=SMALL_SIDE)
        self._own.network.setInputSize(pixels.shape[1::-1])
        _, found = self._own.network.detect(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        rows = np.empty((0, 15)) if found is None else found.astype(float)
        rows[:, :14] /= scale
        return rows


FaceFinder: TypeAlias = HaarFinder | YuNetFinder


def _scaled(image: Image.Image, most: int, least: int = 0) -> tuple[np.ndarray, float]:
    """Return the pixels to be searched, the longer side `least` to `most`, and their scale."""
    longest = max(image.size)
    scale = max(min(1.0, most / longest), least / longest)
    if scale != 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image), scale


def framed(row: np.ndarray, size: tuple[int, int]) -> Detection:
    """Return a face that YuNet found, framed by its landmarks.

    `row` is left, top, width and height of its box; x and y of the eyes, the right one first, the
    nose and the corners of the mouth; and the confidence, (15,) in pixels of the picture, whose
    width and height `size` is.
    """
    points = row[4:14].reshape(5, 2)
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    across, down = points[1] - points[0]
    angle = math.degrees(math.atan2(down, across))
    box = _square(eyes + CENTRE * (mouth - eyes), SIDE * row[3], size)
    return Detection(box, float(row[14]), angle if abs(angle) > UPRIGHT else 0.0)


def _square(centre: np.ndarray, side: float, size: tuple[int, int]) -> Box:
    """Return the square around `centre`, moved and made smaller to lie inside the picture."""
    whole = max(1, min(round(float(side)), *size))
    left, top = (
        int(np.clip(round(float(middle - whole / 2)), 0, length - whole))
        for middle, length in zip(centre, size, strict=True)
    )
    return Box(left, top, whole, whole)


def cut(image: Image.Image, box: Box, angle: float = 0.0) -> Image.Image:
    """Return what is in the box, turned upright if a face there is turned by `angle` degrees."""
    if not angle:
        return image.crop(box.corners)
    # What the turned square may reach; OpenCV turns no picture of more than 32,767 pixels.
    reach = box.width // 4 + 1
    left, top = max(0, box.left - reach), max(0, box.top - reach)
    right, bottom = (
        min(image.width, box.corners[2] + reach),
        min(image.height, box.corners[3] + reach),
    )
    around = np.asarray(image.crop((left, top, right, bottom)))
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = np.array([[cosine, -sine], [sine, cosine]])
    half = np.array([(box.width - 1) / 2, (box.height - 1) / 2])
    start = half + np.array([box.left - left, box.top - top]) - turn @ half
    turned = cv2.warpAffine(
        around,
        np.column_stack([turn, start]),
        (box.width, box.height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return Image.fromarray(turned)


def whole(image: Image.Image, confidence: float | None = None) -> list[Detection]:
    """Return the whole picture as one face."""
    return [Detection(Box(0, 0, image.width, image.height), confidence)]


def look(
    image: Image.Image, finder: FaceFinder, image_size: tuple[int, int], *, of_a_set: bool
) -> tuple[list[Detection], bool]:
    """Return the faces in a picture, and whether it was taken for a cropped face, and whole.

    It is if its one face fills it; and if none is found, but it has the shape of a cropped face: by
    `is_crop`, or because `of_a_set` says so. The cascade, which finds faces in parts of faces, is
    not asked about a picture of this shape.
    """
    shaped = of_a_set or is_crop(image, image_size)
    if shaped and not finder.knows_crops:
        return whole(image), True
    found = finder(image)
    if not found and shaped:
        return whole(image), True
    shorter, longer = sorted(image.size)
    share = FILLS_OF_A_SET if of_a_set else FILLS
    if (
        finder.knows_crops
        and len(found) == 1
        and found[0].box.width >= share * shorter
        and longer <= LONGEST_CROP * shorter
    ):
        return whole(image, found[0].confidence), True
    return found, False


def is_crop(image: Image.Image, image_size: tuple[int, int]) -> bool:
    """Return whether a picture is small and square, as a face that is cropped already.

    `image_size` is the (height, width) of the network's images.
    """
    largest = max(LARGEST_CROP, CROP_FACTOR * max(image_size))
    return image.width == image.height <= largest
