"""From the bytes of an image file to pixels."""

import functools
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emotion_detection.data.dataset import ColorMode
from emotion_detection.data.image import BadImageError, decode, open_image
from tests.support import sources
from tests.support.sources import encoded, png

picture = functools.partial(sources.picture, height=6, width=5)


def pixels_of(data: bytes, mode: ColorMode = "grayscale") -> np.ndarray:
    return np.frombuffer(decode(data, (6, 5), mode), np.uint8).reshape(6, 5, -1)


def test_grey_becomes_colour_by_copies_and_colour_grey_by_luma() -> None:
    grey = np.asarray(picture(0))
    colour = pixels_of(encoded(picture(0)), "rgb")
    assert np.array_equal(colour, np.stack([grey] * 3, axis=-1))
    red = encoded(Image.new("RGB", (5, 6), (255, 0, 0)))
    assert np.unique(pixels_of(red)).tolist() == [76]


@pytest.mark.parametrize("kind", ["BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF"])
def test_other_formats_decode_to_the_same_pixels(kind: str) -> None:
    found = pixels_of(encoded(picture(0), kind, lossless=True, quality=100))[..., 0]
    difference = found.astype(int) - np.asarray(picture(0))
    assert np.abs(difference).max() <= (2 if kind == "AVIF" else 0)


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (5, 6), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    palette = picture(0).convert("P")
    palette.putpixel((1, 1), 7)
    for grey in (pixels_of(encoded(image)), pixels_of(encoded(image.convert("LA")))):
        assert grey[0, 0, 0] == 0
        assert (grey.ravel()[1:] == 255).all()
    assert pixels_of(encoded(palette, transparency=7))[1, 1, 0] == 255


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.array([[0, 128, 257, 32896, 65535]] * 6, np.uint16)
    expected = [0, 0, 1, 128, 255]
    for kind in ("PNG", "TIFF"):
        assert pixels_of(encoded(Image.fromarray(values), kind))[0, :, 0].tolist() == expected
    portable = b"P5 5 6 65535\n" + values.astype(">u2").tobytes()
    assert pixels_of(portable)[0, :, 0].tolist() == expected


def test_cmyk_and_one_bit_are_converted() -> None:
    ink = encoded(Image.new("CMYK", (5, 6), (0, 0, 0, 255)), "TIFF")
    assert not pixels_of(ink).any()
    paper = encoded(Image.new("CMYK", (5, 6)), "JPEG")
    assert (pixels_of(paper, "rgb") >= 254).all()
    assert (pixels_of(encoded(Image.new("1", (5, 6), 1))) == 255).all()


def test_a_photo_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    image = picture(0, height=5, width=6)
    data = encoded(image, exif=exif)
    assert np.array_equal(pixels_of(data)[..., 0], np.rot90(np.asarray(image), k=-1))


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [picture(seed) for seed in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(pixels_of(data)[..., 0], np.asarray(frames[0]))
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert np.array_equal(pixels_of(data)[..., 0], np.asarray(frames[0]))


def test_another_size_is_resized_without_aliasing() -> None:
    stripes = np.zeros((60, 50), np.uint8)
    stripes[:, ::2] = 255
    small = pixels_of(encoded(Image.fromarray(stripes)))
    assert small.shape == (6, 5, 1)
    assert (np.abs(small.astype(int) - 127) < 12).all()


# --- As a viewer shows it.


def grey_tiff(values: np.ndarray, **tags: Any) -> bytes:
    """Return a TIFF of 16-bit grey values with other tags."""
    data = bytearray(encoded(Image.fromarray(values.astype(np.uint16)), "TIFF"))
    for tag, value in tags.items():
        number = {"photometric": 262, "bits": 258}[tag]
        at = data.index(struct.pack("<HHI", number, 3, 1))
        data[at + 8 : at + 10] = struct.pack("<H", value)
    return bytes(data)


def test_white_is_zero_in_sixteen_bits_too() -> None:
    ramp = np.tile(np.arange(16) * 4369, (16, 1))
    shown = np.frombuffer(decode(grey_tiff(ramp, photometric=0), (16, 16), "grayscale"), np.uint8)
    assert shown[:16].tolist() == list(range(255, -1, -17))


def test_a_transparent_value_of_sixteen_bits_is_laid_on_white() -> None:
    ramp = (np.tile(np.arange(16) * 4369, (16, 1))).astype(np.uint16)
    data = encoded(Image.fromarray(ramp), "PNG")
    at = data.index(b"IDAT") - 4
    chunk = b"tRNS" + struct.pack(">H", 4369)
    data = (
        data[:at] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at:]
    )
    shown = np.frombuffer(decode(data, (16, 16), "grayscale"), np.uint8)
    assert shown[:4].tolist() == [0, 255, 34, 51]


def test_sixteen_bits_that_hold_eight_are_a_doubt() -> None:
    image = open_image(grey_tiff(np.tile(np.arange(16) * 17, (16, 1))))
    assert "below 256" in image.info["doubt"]
    assert "doubt" not in open_image(grey_tiff(np.tile(np.arange(16) * 4369, (16, 1)))).info


@pytest.mark.parametrize(
    "change",
    [
        lambda data, at: data[:-12],
        lambda data, at: data + b"more",
        lambda data, at: data[:at] + b"\0\0\0\1tEXtaXXXX" + data[at:],
        lambda data, at: data[:at] + b"\0\0\0\4iCCPjunkXXXX" + data[at:],
    ],
)
def test_a_png_with_odd_chunks_or_without_its_end_is_what_it_shows(
    change: Callable[[bytes, int], bytes],
) -> None:
    data = png(3, 16, 16)
    changed = change(data, data.index(b"IDAT") - 4)
    assert decode(changed, (16, 16), "grayscale") == decode(data, (16, 16), "grayscale")


def test_a_picture_that_is_wider_than_any_format_needs_is_refused() -> None:
    with pytest.raises(BadImageError, match="more than 65,500 pixels on a side"):
        open_image(encoded(Image.new("L", (70_000, 1)), "PNG"))
