"""Boxes and labels on pictures."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
