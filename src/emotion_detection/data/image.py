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
MAX_SIDE = 65_500
"""Of JPEG, the widest of the usual formats. A longer line needs gigabytes to be resized."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"eXIf"}
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"

PHOTOMETRIC, WHITE_IS_ZERO, BITS_PER_SAMPLE = 262, 0, 258  # of TIFF

NO_MEMORY = "too large for the memory that is free"

DARK = "its 16-bit values are all below 256, so it is nearly black"


class BadImageError(Exception):
    """A file that cannot be used. The message is the reason."""


def decode(data: bytes, image_size: tuple[int, int], color_mode: ColorMode) -> bytes:
    """Return the pixels of an encoded image, (H, W, C) uint8 in C order.

    It is `open_image` and `prepare` in one.

    Raises:
        BadImageError: as `open_image` does.

    """
    try:
        return prepare(open_image(data), image_size, color_mode)
    except MemoryError as error:
        raise BadImageError(NO_MEMORY) from error


def open_image(data: bytes) -> Image.Image:
    """Return the decoded image, in Pillow's mode L or RGB.

    It is turned upright as its EXIF says, laid on white where it is transparent, and scaled from up
    to 16 bits to 8. Of an animation it is the first frame. Where it may not be what is meant,
    `info["doubt"]` says why.

    Raises:
        BadImageError: if the data are not those of a complete image in one of `FORMATS`, or it has
            more than `MAX_PIXELS` pixels or `MAX_SIDE` on a side.

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
    except MemoryError as error:
        raise BadImageError(NO_MEMORY) from error
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
    if data.startswith(PNG_SIGNATURE):
        data = _plain_png(data)
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
    if max(image.size) > MAX_SIDE:
        raise BadImageError(f"more than {MAX_SIDE:,} pixels on a side")
    return image


def _plain_png(data: bytes) -> bytes:
    """Return a PNG file with nothing but the chunks that its pixels need, and with its end.

    Viewers show a file whose comments or colour profile are damaged; Pillow refuses it.
    """
    kept, at = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] in PNG_CHUNKS:
            if end > len(data):
                raise BadImageError("truncated PNG file")
            kept.append(data[at:end])
        at = end
    return b"".join((*kept, PNG_END))


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Return grey values of up to 16 bits scaled to 8; Pillow's own conversion would clip them."""
    if image.mode == "F":
        raise BadImageError("floating-point pixels, whose range is not known")
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise BadImageError("integer pixels of more than 16 bits")
    tags = getattr(image, "tag_v2", {})
    (bits,) = tags.get(BITS_PER_SAMPLE, (16,))[:1]
    highest = 2**bits - 1 if 8 <= bits < 16 else 65535
    grey = (pixels.astype(np.uint32) * 255 + highest // 2) // highest
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[pixels == transparent] = 255
    scaled = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    if 1 < pixels.max() < 256 and highest == 65535:
        scaled.info["doubt"] = DARK
    return scaled
