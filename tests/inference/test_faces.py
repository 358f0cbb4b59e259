"""Faces in photos, and how each is framed."""

import subprocess
import sys

import pytest
from PIL import Image

from emotion_detection.inference import faces
from emotion_detection.inference.faces import Box, FaceFinder, is_crop
from tests.support.astronaut import around_the_face, astronaut


def test_faces_are_numbered_from_left_to_right() -> None:
    both = Image.new("RGB", (1024, 512))
    both.paste(astronaut(), (0, 0))
    both.paste(astronaut(), (512, 0))
    first, second = FaceFinder()(both)
    assert around_the_face(first)
    assert around_the_face(second, shift=512)


def test_a_large_photo_has_its_boxes_in_its_own_pixels() -> None:
    large = Image.new("L", (2600, 1300), 190)
    large.paste(astronaut().resize((1024, 1024)).convert("L"), (1000, 200))
    (box,) = FaceFinder()(large)
    moved = Box((box.left - 1000) // 2, (box.top - 200) // 2, box.width // 2, box.height // 2)
    assert around_the_face(moved)


def test_a_face_at_the_edge_is_cut_out_inside_the_picture() -> None:
    edge = astronaut().crop((165, 45, 290, 180))
    (box,) = FaceFinder()(edge)
    left, top, right, bottom = box.corners
    assert 0 <= left < right <= edge.width
    assert 0 <= top < bottom <= edge.height
    assert box.width == box.height > 90


@pytest.mark.parametrize(
    ("size", "side", "crop"),
    [
        ((48, 48), 48, True),
        ((256, 256), 48, True),
        ((257, 257), 48, False),
        ((400, 400), 200, True),
        ((401, 401), 200, False),
        ((40, 41), 48, False),
    ],
)
def test_a_small_square_picture_is_a_cropped_face(
    size: tuple[int, int], side: int, crop: bool
) -> None:
    assert is_crop(Image.new("L", size), (side, side)) == crop


def test_it_can_be_copied_without_the_package() -> None:
    code = (
        "import runpy, sys; sys.modules['emotion_detection'] = None; "
        f"runpy.run_path({faces.__file__!r})"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True)
