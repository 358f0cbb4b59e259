"""Boxes and labels on pictures."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emotion_detection.console import UserError
from emotion_detection.inference import annotate
from emotion_detection.inference.faces import Box
from emotion_detection.inference.predict import Face
from tests.support.astronaut import astronaut

CLASSES = ("angry", "happy", "sad")


def test_boxes_and_labels_are_drawn() -> None:
    photo = astronaut()
    faces = tuple(
        Face(box, np.eye(3, dtype=np.float32)[label])
        for label, box in enumerate((Box(168, 58, 112, 112), Box(180, 60, 112, 112)))
    )
    drawn = np.asarray(annotate.annotated(photo, faces, CLASSES)).astype(int)
    changed = np.abs(drawn - np.asarray(photo)).sum(axis=2) > 0
    assert changed[58, 168:280].all()  # the first box's upper edge
    assert changed[60:172, 180].all()  # the second one's left edge
    assert not changed[300:].any()
    assert not changed[:, 400:].any()
    # Labels do not cover each other: the second is below its box.
    assert changed[172:190, 180:240].mean() > 0.5
    assert changed[40:56, 168:230].mean() > 0.5


def test_a_small_picture_is_enlarged_for_its_label() -> None:
    face = Face(Box(0, 0, 48, 48), np.array([0.1, 0.8, 0.1], np.float32))
    drawn = annotate.annotated(Image.new("L", (48, 48)), (face,), CLASSES)
    assert drawn.size == (240, 240)
    assert (np.asarray(drawn) == 255).all(axis=2).sum() > 1000  # the label's ground
    narrow = annotate.annotated(Image.new("L", (8, 900)), (face,), CLASSES)
    assert narrow.size == (32, 3600)


@pytest.mark.parametrize(
    ("name", "kept", "kind"),
    [("a/b.JPG", "a/b.JPG", "JPEG"), ("b.png", "b.png", "PNG"), ("b.webp", "b.webp.png", "PNG")],
)
def test_an_annotated_picture_keeps_its_name(
    tmp_path: Path, name: str, kept: str, kind: str
) -> None:
    annotate.save(Image.new("RGB", (16, 16), "red"), tmp_path / "out", Path(name))
    data = (tmp_path / "out" / kept).read_bytes()
    assert Image.open(io.BytesIO(data)).format == kind


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 2), (2, 3000), (5000, 1)])
def test_a_picture_a_pixel_wide_is_drawn_on(size: tuple[int, int]) -> None:
    face = Face(Box(0, 0, *size), np.array([0.1, 0.8, 0.1], np.float32))
    drawn = annotate.annotated(Image.new("L", size), (face,), CLASSES)
    assert drawn.width >= size[0]


def test_only_what_was_written_here_is_replaced(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16))
    for name in ("a.jpg", "a.png"):
        for _ in range(2):
            annotate.save(picture, tmp_path, Path(name))
    (tmp_path / "folder.png").mkdir()
    picture.save(tmp_path / "own.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "text.jpg").write_text("mine")
    before = {path: path.lstat() for path in tmp_path.iterdir()}
    for name in ("folder.png", "own.png", "link.png", "text.jpg"):
        with pytest.raises(UserError, match=f"{name} is there, and was not written by --annotate"):
            annotate.save(picture, tmp_path, Path(name))
    assert {path: path.lstat() for path in tmp_path.iterdir()} == before
