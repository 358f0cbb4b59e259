"""Predictions drawn on the picture they are of."""

import contextlib
import os
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from emotion_detection.console import UserError
from emotion_detection.figures.style import INK, class_colour, font_file
from emotion_detection.files import atomic
from emotion_detection.inference.pictures import annotated_name
from emotion_detection.inference.predict import Face

# A face that was cut out is enlarged to so many pixels, else its label would not fit.
SMALLEST_SIDE = 240
LARGEST_SIDE = 4000  # to which a narrow one is enlarged
SMALLEST_TEXT = 14
MADE_BY, MAKER = 305, "emotion-detection predict"  # the EXIF tag Software of what is written here


def annotated(image: Image.Image, faces: tuple[Face, ...], classes: tuple[str, ...]) -> Image.Image:
    """Draw a box around each face, with its label, confidence and, of several, number.

    The boxes have the colours that the classes have in every figure. A small picture comes back
    enlarged.
    """
    factor = max(1, min(-(-SMALLEST_SIDE // min(image.size)), LARGEST_SIDE // max(image.size)))
    canvas = image.convert("RGB").resize((image.width * factor, image.height * factor))
    draw = ImageDraw.Draw(canvas)
    taken: list[tuple[float, float, float, float]] = []
    for number, face in enumerate(faces, start=1):
        left, top, right, bottom = (factor * edge for edge in face.box.corners)
        colour = class_colour(face.label)
        line = max(2, (right - left) // 80)
        draw.rectangle((left, top, right - 1, bottom - 1), outline="white", width=line + 2)
        if min(right - left, bottom - top) > 3:
            draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline=colour, width=line)

        text = f"{classes[face.label]} {face.confidence:.0%}"
        if len(faces) > 1:
            text = f"{number} {text}"
        size = max(SMALLEST_TEXT, min(right - left, bottom - top) // 12)
        font = ImageFont.truetype(font_file(text), size)
        _, _, text_width, text_height = font.getbbox(text, anchor="lt")
        pad = size / 3
        width, height = text_width + 2 * pad, text_height + 2 * pad
        x = max(0.0, min(left, canvas.width - width))
        # Above the box if there is room, else below, else in it.
        places = [
            (x, y, x + width, y + height)
            for y in (top - height, bottom, top, bottom - height)
            if 0 <= y <= canvas.height - height
        ] or [(x, 0.0, x + width, height)]
        place = next((p for p in places if not any(_overlap(p, q) for q in taken)), places[0])
        taken.append(place)
        draw.rectangle(place, fill="white", outline=colour, width=max(1, line // 2))
        draw.text((place[0] + pad, place[1] + pad), text, fill=INK, font=font, anchor="lt")
    return canvas


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def check_free(path: Path) -> None:
    """Check that an annotated picture may be written to `path`.

    Raises:
        UserError: if there is anything else than an annotated picture, which may be replaced.

    """
    if not os.path.lexists(path):
        return
    # Whatever opening it says, it is not ours.
    with contextlib.suppress(Exception):
        if path.is_file() and not path.is_symlink():
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                if image.getexif().get(MADE_BY) == MAKER:
                    return
    raise UserError(
        f"--annotate: {path} is there, and was not written by --annotate; give another folder"
    )


def save(image: Image.Image, folder: Path, file: Path) -> None:
    """Write a picture to `folder`, as `pictures.annotated_name` calls it.

    Raises:
        UserError: if what has its name there was not written by this.

    """
    path = folder / annotated_name(file)
    check_free(path)
    made_by = Image.Exif()
    made_by[MADE_BY] = MAKER
    with atomic(path) as temporary:
        image.save(temporary, quality=90, exif=made_by)
