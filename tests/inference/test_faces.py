"""Faces in photos, and how each is framed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from emotion_detection.inference import faces
from emotion_detection.inference.faces import (
    Box,
    FaceFinder,
    HaarFinder,
    YuNetFinder,
    cut,
    framed,
    is_crop,
    look,
)
from tests.support.astronaut import around_the_face, astronaut


@pytest.fixture(params=["haar", "yunet"])
def finder(request: pytest.FixtureRequest) -> FaceFinder:
    found: FaceFinder = HaarFinder(20)
    return request.getfixturevalue("yunet") if request.param == "yunet" else found


def test_faces_are_numbered_from_left_to_right(finder: FaceFinder) -> None:
    both = Image.new("RGB", (1024, 512))
    both.paste(astronaut(), (0, 0))
    both.paste(astronaut(), (512, 0))
    first, second = finder(both)
    assert around_the_face(first.box)
    assert around_the_face(second.box, shift=512)


def test_a_large_photo_has_its_boxes_in_its_own_pixels(finder: FaceFinder) -> None:
    large = Image.new("L", (2600, 1300), 190)
    large.paste(astronaut().resize((1024, 1024)).convert("L"), (1000, 200))
    (face,) = finder(large)
    left, top, width, height = face.box
    assert around_the_face(Box((left - 1000) // 2, (top - 200) // 2, width // 2, height // 2))


def test_a_face_at_the_edge_is_cut_out_inside_the_picture(finder: FaceFinder) -> None:
    edge = astronaut().crop((165, 45, 290, 180))
    ((box, _, _),) = finder(edge)
    left, top, right, bottom = box.corners
    assert 0 <= left < right <= edge.width
    assert 0 <= top < bottom <= edge.height
    assert box.width == box.height > 90


def test_a_face_as_those_of_training_is_framed_as_itself_in_a_photo(yunet: YuNetFinder) -> None:
    as_trained_on = astronaut().crop((172, 65, 272, 165)).resize((96, 96))
    edges = []
    for left, top in ((30, 40), (301, 222), (250, 170), (90, 250), (430, 100)):
        photo = Image.fromarray(skimage.data.coffee())
        photo.paste(as_trained_on, (left, top))
        ((box, confidence, angle),) = yunet(photo)
        edges.append(np.subtract(box.corners, (left, top, left + 96, top + 96)) * 48 / 96)
        assert confidence is not None
        assert 0.7 < confidence <= 1
        assert angle == 0
    # Within two of the 48 pixels that a network of FER-2013 sees, but for where YuNet's grid lies.
    assert np.abs(np.median(edges, axis=0)).max() <= 2
    assert np.abs(edges).max() <= 5


@pytest.mark.parametrize(("turned_by", "angle"), [(0, 0), (19, 0), (-19, 0), (21, 21), (-40, -40)])
def test_a_face_is_framed_by_its_landmarks_and_turned_if_it_is_turned_far(
    turned_by: float, angle: float
) -> None:
    upright = np.array([[-20, 0], [20, 0], [0, 22], [-16, 40], [16, 40]])
    cosine, sine = np.cos(np.radians(turned_by)), np.sin(np.radians(turned_by))
    landmarks = upright @ np.array([[cosine, sine], [-sine, cosine]]) + (300, 200)
    row = np.concatenate([[250, 150, 90, 100], landmarks.ravel(), [0.9]])
    found = framed(row, (640, 480))
    assert found.box.width == found.box.height == 93
    middle = (found.box.left + 46.5, found.box.top + 46.5)
    expected = (300 - 0.315 * 40 * sine, 200 + 0.315 * 40 * cosine)
    np.testing.assert_allclose(middle, expected, atol=0.51)
    assert found.angle == pytest.approx(angle)
    assert found.confidence == 0.9


def test_smaller_and_less_certain_faces_are_left_out(yunet_file: Path) -> None:
    model = yunet_file.read_bytes()
    ((box, confidence, _),) = YuNetFinder(model, 0.5, 1)(astronaut())
    assert confidence is not None
    assert YuNetFinder(model, min(1.0, confidence + 0.01), 1)(astronaut()) == []
    assert YuNetFinder(model, 0.5, 2 * box.height)(astronaut()) == []
    assert HaarFinder(2 * box.height)(astronaut()) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (2, 700)])
def test_a_picture_a_pixel_wide_has_no_face_in_it(
    finder: FaceFinder, size: tuple[int, int]
) -> None:
    assert finder(Image.new("RGB", size)) == []


@pytest.mark.parametrize("side", [48, 100, 224, 900])
def test_a_face_that_fills_its_picture_is_taken_whole_at_any_size(
    yunet: YuNetFinder, side: int
) -> None:
    (face,) = yunet(astronaut())
    crop = cut(astronaut(), face.box).resize((side, side))
    ((box, confidence, _),), whole = look(crop, yunet, (48, 48), of_a_set=False)
    assert whole
    assert box == (0, 0, side, side)
    assert confidence is not None


def test_a_small_square_photo_of_a_person_is_none(yunet: YuNetFinder) -> None:
    avatar = astronaut().resize((256, 256))
    ((box, _, _),), whole = look(avatar, yunet, (48, 48), of_a_set=False)
    assert not whole
    assert around_the_face(Box(*(2 * edge for edge in box)))
    # The cascade takes parts of cropped faces for faces, and is not asked.
    ((box, _, _),), whole = look(avatar, HaarFinder(20), (48, 48), of_a_set=False)
    assert whole
    assert box == (0, 0, 256, 256)


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
def test_a_small_square_picture_without_a_face_is_a_cropped_one(
    size: tuple[int, int], side: int, crop: bool
) -> None:
    assert is_crop(Image.new("L", size), (side, side)) == crop


def test_what_is_turned_is_cut_out_as_it_is_where_it_is_not_turned() -> None:
    photo, box = astronaut(), Box(150, 30, 128, 128)
    still = np.asarray(cut(photo, box)).astype(int)
    nearly = np.asarray(cut(photo, box, 1e-6)).astype(int)
    assert np.abs(still - nearly).max() <= 1
    quarter = np.asarray(cut(photo.rotate(-90), Box(512 - 30 - 128, 150, 128, 128), 90)).astype(int)
    assert np.abs(still - quarter).max() <= 1
    corner = cut(photo.convert("L"), Box(0, 0, 100, 100), 45)
    assert corner.size == (100, 100)


def test_it_can_be_copied_without_the_package() -> None:
    code = (
        "import runpy, sys; sys.modules['emotion_detection'] = None; "
        f"runpy.run_path({faces.__file__!r})"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True)
