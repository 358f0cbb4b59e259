"""From the bytes of an image file to the pixels that a network sees.

Training, prediction and the served model all prepare images here. A model in MLflow carries a copy
of this file, so it imports nothing of the package when it runs.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from emotion_detection.data.dataset import ColorMode

# By default Pillow tries every format it knows, and for some of them starts other programs.
# The formats whose plug-ins Pillow loads by default come first, which is quicker.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF")
MAX_PIXELS = 50_000_000


class BadImageError(Exception):
    """A file that cannot be used. The message is the reason."""


def decode(data: bytes, image_size: tuple[int, int], color_mode: ColorMode) -> bytes:
    """Return the pixels of an encoded image, (H, W, C) uint8 in C order.

    It is `open_image` and `prepare` in one.

    Raises:
        BadImageError: as `open_image` does.

    """
    return prepare(open_image(data), image_size, color_mode)


def open_image(data: bytes) -> Image.Image:
    """Return the decoded image, in Pillow's mode L or RGB.

    It is turned upright as its EXIF says, laid on white where it is transparent, and scaled from 16
    bits to 8. Of an animation it is the first frame.

    Raises:
        BadImageError: if the data are not those of a complete image in one of `FORMATS`, or it has
            more than `MAX_PIXELS` pixels.

    """
    if not data:
        raise BadImageError("empty file")
    try:
        image = _to_eight_bits(_load(data))
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image if image.mode in ("L", "RGB") else image.convert("RGB")
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("not an image") from error
    except Exception as error:  # Pillow lets nearly any exception out of a malformed file.
        raise BadImageError(str(error) or type(error).__name__) from error


def prepare(image: Image.Image, image_size: tuple[int, int], color_mode: ColorMode) -> bytes:
    """Return the pixels of an image of mode L or RGB as a network sees them.

    They are (H, W, C) uint8 in C order, of `image_size` (height, width), stretched where the
    proportions differ. Colour becomes grey as its luma (ITU-R 601).
    """
    image = image.convert("L" if color_mode == "grayscale" else "RGB")
    size = image_size[::-1]
    if image.size != size:
        # Of Pillow's filters, all of which average over the area when they shrink, this one
        # keeps the most detail, and a small face has none to spare.
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image.tobytes()


def _load(data: bytes) -> Image.Image:
    """Return the first frame, decoded and upright."""
    image: Image.Image = _open(data)
    if image.format == "PNG":
        # Decoding ignores the checksums, and sometimes returns other pixels for damaged data.
        image.verify()
        image = _open(data)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImageError(f"more than {MAX_PIXELS:,} pixels") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImageError(f"more than {MAX_PIXELS:,} pixels")
    return image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Return 16-bit grey values scaled to 8 bits; Pillow's own conversion would clip them."""
    if image.mode == "F":
        raise BadImageError("floating-point pixels, whose range is not known")
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise BadImageError("integer pixels of more than 16 bits")
    return Image.fromarray(((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
