"""Synthetic grey faces, so that a fresh clone has something to learn from.

A face is an expression, a person and a shot, chosen at random and independently of each other. The
expression is a set of action units of the Facial Action Coding System (P. Ekman and W. Friesen,
Facial Action Coding System, Consulting Psychologists Press, 1978), of random intensity, with a
trace of another emotion: weak expressions overlap, as they do in the real sets, and no label is
flipped.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from emotion_detection import paths
from emotion_detection.console import UserError, log, progress
from emotion_detection.files import atomic

Array = NDArray[np.float64]

SPLITS = ("train", "test")
MARK = (
    "A program drew these faces. Ingest reads from this file that they are no photographs, so that "
    "a model that has learnt from them alone says so.\n"
)
FEWEST_PER_CLASS = 2
SMALLEST_IMAGE = 16
SUPERSAMPLING = 4


@dataclass(frozen=True)
class ActionUnits:
    """How far each movement of the face goes, from 0 (at rest) to 1, in the order of `CODES`."""

    inner_brow_raise: float
    outer_brow_raise: float
    brow_lower: float
    upper_lid_raise: float
    cheek_raise: float
    lid_tighten: float
    nose_wrinkle: float
    upper_lip_raise: float
    lip_corner_pull: float
    lip_corner_depress: float
    chin_raise: float
    lip_stretch: float
    lip_press: float
    jaw_drop: float
    lid_droop: float


CODES = (1, 2, 4, 5, 6, 7, 9, 10, 12, 15, 17, 20, 24, 26, 43)
"""The numbers that FACS gives to the fields of `ActionUnits`."""


@dataclass(frozen=True)
class Emotion:
    """How often, how strongly and by which action units an emotion shows.

    `images` counts FER-2013's train and test images, whose imbalance the sample keeps; `intensity`
    is a mean, of 1 at most; a display is in the notation of FACS, from A (a trace) to E (the most).
    """

    images: tuple[int, int]
    intensity: float
    displays: tuple[str, ...]


EMOTIONS = {
    "angry": Emotion((3995, 958), 0.9, ("4E+5B+7D+24E", "4E+5C+7B+10C+20B+26C")),
    "disgusted": Emotion((436, 111), 0.74, ("4C+6B+7C+9E+10E+17B", "4C+7C+9D+10C+15D+17D+43B")),
    "fearful": Emotion((4097, 1024), 0.9, ("1E+2B+4C+5E+7A+20E+26B", "1E+2C+4B+5E+20C+26D")),
    "happy": Emotion((7215, 1774), 0.92, ("6E+10B+12E+26A", "6E+10B+12E+26D", "6C+12D")),
    "neutral": Emotion((4965, 1233), 0.5, ("", "43B")),
    "sad": Emotion((4830, 1247), 0.87, ("1E+4B+15E+17C+43C", "1D+4C+6B+15D+20B+26A+43D")),
    "surprised": Emotion((3171, 831), 0.92, ("1E+2E+5E+26E", "1E+2E+5E+26C")),
}


class Person:
    """What stays the same in a face whatever it expresses.

    Lengths are in half heights of the head, with the origin in its middle, x to the right and y
    down; tones go from 0 (black) to 255.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        """Choose a person at random."""
        self.age = rng.uniform(0, 1) ** 2
        self.skin = rng.uniform(150, 210)
        self.iris = rng.uniform(20, 90)
        self.shirt = rng.uniform(20, 235)
        self.head_width = rng.uniform(0.68, 0.8)
        self.jaw = rng.uniform(0.05, 0.3)
        self.bald = rng.random() < 0.08
        self.hair = rng.uniform(140, 200) if rng.random() < 0.2 else rng.uniform(15, 95)
        self.hairline = rng.uniform(-0.82, -0.5)
        self.hair_volume = rng.uniform(0.04, 0.22)
        self.hair_length = float(rng.choice([-0.25, 0.0, 0.6, 1.2]))
        self.parting = rng.uniform(-0.5, 0.5)
        self.beard = rng.uniform(0.25, 0.8) if rng.random() < 0.12 else 0.0
        self.eye_distance = rng.uniform(0.29, 0.36)
        self.eye_width = rng.uniform(0.15, 0.2)
        self.eye_height = rng.uniform(0.075, 0.115)
        self.brow_height = rng.uniform(0.2, 0.29)
        self.brow_width = rng.uniform(0.045, 0.1)
        self.brow_slope = rng.normal(0, 0.03)
        self.nose_length = rng.uniform(0.28, 0.4)
        self.nose_width = rng.uniform(0.1, 0.16)
        self.mouth_height = rng.uniform(0.5, 0.6)
        self.mouth_width = rng.uniform(0.26, 0.34)
        self.mouth_curve = rng.normal(0, 0.025)
        self.lips = rng.uniform(0.03, 0.075)
        self.glasses = rng.random() < 0.12


class Shot:
    """How a face was photographed; angles in radians, the noise in tones."""

    def __init__(self, rng: np.random.Generator) -> None:
        """Choose a pose, a light and a camera at random."""
        self.background = rng.uniform(25, 230)
        self.scale = rng.uniform(0.52, 0.56)
        self.shift = rng.normal((0, 0.01), 0.01)
        self.roll = rng.normal(0, 0.04)
        self.turn = rng.normal(0, (0.04, 0.03))
        self.gaze = rng.normal(0, (0.02, 0.012))
        self.lopsided = rng.normal(0, 0.02)
        self.light = rng.uniform((-0.2, -0.15), (0.2, 0.1))
        self.contrast = rng.uniform(0.8, 1.1)
        self.blur = rng.uniform(0.2, 0.7)
        self.noise = rng.uniform(1, 4)
        self.hand = rng.uniform(-0.6, 0.6) if rng.random() < 0.06 else None


_LINE = np.linspace(-1, 1, 17)
_ARCH = 1 - _LINE**2
_BRUSH = np.maximum(np.sqrt(_ARCH), 0.3)[:, None]
_BEZIER = np.array([(1 - _LINE) ** 2, 2 * _ARCH, (1 + _LINE) ** 2]).T / 4
_ANGLES = np.linspace(0, 2 * np.pi, 40, endpoint=False)
_CIRCLE = np.array([np.cos(_ANGLES), np.sin(_ANGLES)]).T


def path(x: Array, y: Array) -> Array:
    """Return the curve of shape (n, 2) with coordinates `x` and `y` of shape (n,)."""
    return np.array([x, y]).T


def curve(*controls: tuple[float, float]) -> Array:
    """Return the quadratic Bezier curve of three control points."""
    return _BEZIER @ np.array(controls)


def ellipse(x: float, y: float, half_width: float, half_height: float) -> Array:
    """Return the outline of an ellipse, clockwise from the right: the lower half comes first."""
    return _CIRCLE * (half_width, half_height) + (x, y)


def between(upper: Array, lower: Array) -> Array:
    """Return the outline of the area between two curves that run the same way."""
    return np.concatenate([upper, lower[::-1]])


def mix(tone: float, other: float, share: float) -> float:
    """Return `tone` with a `share` of `other`."""
    return tone + (other - tone) * share


class Drawing:
    """Areas of one tone each, laid over one another in the coordinates of a face."""

    def __init__(self) -> None:
        """Begin an empty drawing."""
        self.areas: list[tuple[Array, float]] = []

    def fill(self, outline: Array, tone: float) -> None:
        """Lay an area on top."""
        self.areas.append((outline, tone))

    def stroke(self, line: Array, width: float, tone: float) -> None:
        """Lay a curve of 17 points on top, thick in the middle and thin at its ends as by brush."""
        along = np.empty_like(line)
        along[1:-1] = line[2:] - line[:-2]
        along[0], along[-1] = line[1] - line[0], line[-1] - line[-2]
        across = along[:, ::-1] * (-0.5 * width, 0.5 * width)
        across *= _BRUSH / np.hypot(along[:, :1], along[:, 1:])
        self.fill(between(line - across, line + across), tone)


def draw_backdrop(drawing: Drawing, person: Person) -> None:
    """Draw what is behind the head: hair, neck and shoulders."""
    if not person.bald:
        width = person.head_width + person.hair_volume
        hair_top = ellipse(0, -0.1, width, 0.9 + person.hair_volume)[20:]
        tips = np.array([[1.02, person.hair_length], [-1.02, person.hair_length]]) * (width, 1)
        drawing.fill(np.concatenate([hair_top, tips]), person.hair * 0.8)
    neck = np.array([[-0.62, 0.5], [0.62, 0.5], [0.62, 1.4], [-0.62, 1.4]])
    drawing.fill(neck * (person.head_width, 1), person.skin * 0.6)
    drawing.fill(ellipse(0, 2.0, 1.4, 0.85), person.shirt)


def draw_head(drawing: Drawing, person: Person, shot: Shot, units: ActionUnits) -> None:
    """Draw ears, skin with its creases, and a beard."""
    for side in (-person.head_width, person.head_width):
        drawing.fill(ellipse(side, 0.05, 0.1, 0.19), person.skin * 0.85)
        drawing.fill(ellipse(side, 0.05, 0.05, 0.11), person.skin * 0.65)
    x, y = _CIRCLE.T
    chin = np.maximum(y, 0)
    x = x * person.head_width * (1 - person.jaw * chin**2)
    outline = path(x, y * (1 + 0.1 * units.jaw_drop * chin))
    # Shrinking outlines, ever lighter and nearer to the light, make the head round.
    for step in np.linspace(0, 1, 7):
        lit = outline * (1 - 0.6 * step) + 0.7 * step * shot.light
        drawing.fill(lit, person.skin * (0.74 + 0.3 * step))
    draw_creases(drawing, person, units)
    if person.beard:
        tone = mix(person.skin, person.hair, person.beard)
        jaw = outline[1:20]
        cheeks = curve((jaw[0, 0], jaw[0, 1]), (0, 0.85), (jaw[-1, 0], jaw[-1, 1]))
        drawing.fill(between(jaw, cheeks), tone)
        drawing.stroke(curve((-0.27, 0.45), (0, 0.27), (0.27, 0.45)), 0.11, tone)


def draw_creases(drawing: Drawing, person: Person, units: ActionUnits) -> None:
    """Draw the lines that movement and age leave in the skin."""

    def crease(strength: float, width: float, *controls: tuple[float, float]) -> None:
        if strength > 0.1:
            tone = person.skin * (1 - 0.55 * min(strength, 1))
            drawing.stroke(curve(*controls), width, tone)

    old = 0.35 * person.age
    forehead = 0.6 * min(units.inner_brow_raise, units.outer_brow_raise + 0.3) + 0.5 * old
    for y in (-0.56, -0.65, -0.74):
        crease(forehead, 0.03, (-0.34, y), (0, y - 0.04), (0.34, y))
    frown = 0.8 * units.brow_lower + 0.3 * old
    nose = 0.9 * units.nose_wrinkle
    cheek = old + 0.75 * max(units.lip_corner_pull, units.nose_wrinkle, 0.8 * units.upper_lip_raise)
    lift = 0.05 * units.nose_wrinkle
    pull = 0.1 * units.lip_corner_pull
    eye = 0.6 * units.cheek_raise + 0.5 * old
    for s in (-1, 1):
        crease(frown, 0.045, (s * 0.05, -0.4), (s * 0.03, -0.32), (s * 0.06, -0.24))
        for y in (-0.1, -0.03):
            crease(nose, 0.045, (s * 0.03, y + 0.02), (s * 0.09, y - 0.02), (s * 0.15, y + 0.05))
        crease(cheek, 0.045, (s * 0.17, 0.2 - lift), (s * 0.36, 0.3), (s * (0.36 + pull), 0.55))
        crease(eye, 0.045, (s * 0.18, 0.04), (s * 0.35, 0.11), (s * 0.52, 0))
    crease(0.8 * units.chin_raise, 0.045, (-0.1, 0.8), (0, 0.74), (0.1, 0.8))


def draw_nose(drawing: Drawing, person: Person, shot: Shot, units: ActionUnits) -> None:
    """Draw the nose, its wings lifted by a wrinkle."""
    tip = person.nose_length - 0.1 - 0.04 * units.nose_wrinkle
    width = person.nose_width * (1 + 0.25 * units.nose_wrinkle)
    wing = tip - 0.04 * units.nose_wrinkle
    dark = -np.sign(shot.light[0])
    bridge = curve((dark * 0.06, -0.2), (dark * 0.05, 0), (dark * width, tip - 0.06))
    drawing.stroke(bridge, 0.05, person.skin * 0.78)
    drawing.fill(ellipse(0, tip - 0.06, width * 0.5, 0.06), mix(person.skin, 255, 0.25))
    for side in (-width, width):
        rim = curve(
            (side * 0.8, wing - 0.1), (side * 1.35, wing - 0.03), (side * 0.75, wing + 0.03)
        )
        drawing.stroke(rim, 0.04, person.skin * 0.6)
        drawing.fill(ellipse(side * 0.5, tip + 0.01, width * 0.28, 0.025), person.skin * 0.3)


def draw_mouth(drawing: Drawing, person: Person, shot: Shot, units: ActionUnits) -> None:
    """Draw lips, teeth and tongue."""
    smile, stretch = units.lip_corner_pull, units.lip_stretch
    x = person.mouth_width * _LINE
    x *= 1 + 0.3 * smile + 0.35 * stretch - 0.15 * units.lip_press
    x *= 1 - 0.4 * units.jaw_drop * (1 - stretch) * (1 - smile)
    corners = person.mouth_curve + 0.05 * units.chin_raise + 0.04 * stretch
    corners += 0.22 * units.lip_corner_depress - 0.24 * smile
    middle = person.mouth_height + 0.06 * (smile - units.lip_corner_depress)
    seam = middle + corners * _LINE**2 + shot.lopsided * _LINE
    rise = 0.11 * units.upper_lip_raise + 0.03 * units.nose_wrinkle
    drop = max(0, 0.36 * units.jaw_drop + 0.07 * stretch - 0.04 * units.chin_raise)
    upper, lower = seam - rise * np.sqrt(_ARCH), seam + drop * np.sqrt(_ARCH)
    full = person.lips * (1 - 0.65 * units.lip_press - 0.3 * stretch) * _ARCH
    bow = full * (1 - 0.35 * np.exp(-((_LINE / 0.18) ** 2)))
    lips = mix(person.skin * 0.68, 60, 0.15)
    drawing.fill(between(path(x, upper - bow), path(x, lower + 1.4 * full)), lips)
    if rise + drop < 0.03:
        drawing.stroke(path(x, seam), 0.04, person.skin * 0.3)
        return
    drawing.fill(between(path(x, upper), path(x, lower)), 25)
    tongue = np.minimum(np.maximum(upper + 0.14, lower - 0.08), lower)
    drawing.fill(between(path(x, tongue), path(x, lower)), lips * 0.6)
    bared = max(smile, units.upper_lip_raise, 0.7 * stretch)
    teeth = np.minimum(upper + 0.11 * bared, lower)
    drawing.fill(between(path(x, upper), path(x, teeth)), mix(person.skin, 245, 0.75))


def draw_eyes(drawing: Drawing, person: Person, shot: Shot, units: ActionUnits) -> None:
    """Draw eyes and brows."""
    tight, cheek = units.lid_tighten, units.cheek_raise
    above = 1 + 0.75 * units.upper_lid_raise - 0.65 * units.lid_droop - 0.4 * tight - 0.2 * cheek
    below = 0.75 - 0.35 * tight - 0.5 * cheek
    above, below = (person.eye_height * max(share, 0.1) for share in (above, below))
    # The lid's outer end sinks when the brow's inner end is pulled up, as in sadness.
    sunk = 0.05 * units.inner_brow_raise * (1 - units.upper_lid_raise)
    lash = person.skin * 0.25
    for side in (-1, 1):
        x = side * person.eye_distance + person.eye_width * _LINE
        axis = -0.12 + side * sunk * _LINE
        lid, rim = axis - above * _ARCH, axis + below * _ARCH
        drawing.fill(between(path(x, lid - 0.07), path(x, rim + 0.03)), person.skin * 0.82)
        drawing.fill(between(path(x, lid), path(x, rim)), mix(person.skin, 250, 0.7))
        pupil = np.array([side * person.eye_distance, -0.12]) + shot.gaze
        for offset, radius, tone in (
            ((0, 0), 0.088, person.iris),
            ((0, 0), 0.045, 10),
            ((0.03, -0.035), 0.02, 235),
        ):
            disc_x, disc_y = (pupil + offset + radius * _CIRCLE).T
            seen = np.clip(disc_y, np.interp(disc_x, x, lid), np.interp(disc_x, x, rim))
            drawing.fill(path(disc_x, seen), tone)
        drawing.stroke(path(x, lid), 0.05, lash)
        drawing.stroke(path(x, rim), 0.022, mix(person.skin, lash, 0.5))
        draw_brow(drawing, person, units, side)


def draw_brow(drawing: Drawing, person: Person, units: ActionUnits, side: int) -> None:
    """Draw the left (-1) or right (1) brow."""
    inner = 0.17 * units.brow_lower - 0.19 * units.inner_brow_raise + 0.05 * units.nose_wrinkle
    outer = 0.03 * units.brow_lower - 0.17 * units.outer_brow_raise
    inner, outer = inner + person.brow_slope, outer - person.brow_slope
    arch = (inner + outer) / 2 - 0.07 - 0.05 * units.outer_brow_raise
    x, y = person.eye_distance, -0.12 - person.brow_height
    line = curve(
        (side * (x - 0.2 - 0.04 * units.brow_lower), y + inner),
        (side * (x + 0.03), y + arch),
        (side * (x + 0.21), y + outer + 0.02),
    )
    drawing.stroke(line, person.brow_width, mix(min(person.hair, person.skin * 0.6), 20, 0.3))


def draw_hair(drawing: Drawing, person: Person, shot: Shot) -> None:
    """Draw the hair over the forehead, parted."""
    width = person.head_width + 0.7 * person.hair_volume
    hair_top = ellipse(0, -0.12, width, 0.9 + person.hair_volume)[20:]
    temple, line, parting = 0.96 * person.head_width, person.hairline, person.parting
    right = curve((temple, -0.12), (0.85 * temple, line), (parting, line - 0.1))
    left = curve((parting, line - 0.1), (-0.85 * temple, line), (-temple, -0.12))
    drawing.fill(np.concatenate([hair_top, right, left]), person.hair)
    for x in (-0.8, -0.4, 0.0, 0.4, 0.8):
        bend, end = (0.6 * x + 0.4 * parting, -0.85), (width * x, -0.3 - 0.5 * np.sqrt(1 - x**2))
        shine = 255 if x * shot.light[0] > 0 else 0
        strand = curve((parting, line - 0.2), bend, end)
        drawing.stroke(strand, 0.05, mix(person.hair, shine, 0.12))


def draw_obstacles(drawing: Drawing, person: Person, shot: Shot) -> None:
    """Draw what hides part of the face: glasses, a hand."""
    if person.glasses:
        for x in (-person.eye_distance, person.eye_distance):
            outside, inside = ellipse(x, -0.1, 0.24, 0.2), ellipse(x, -0.1, 0.21, 0.17)
            ring = between(np.vstack([outside, outside[:1]]), np.vstack([inside, inside[:1]]))
            drawing.fill(ring, 30)
        drawing.stroke(curve((-0.14, -0.12), (0, -0.18), (0.14, -0.12)), 0.05, 30)
    if shot.hand is not None:
        for finger, y in enumerate((0.88, 0.83, 0.86, 0.91)):
            x = shot.hand + 0.13 * (finger - 1.5)
            drawing.fill(ellipse(x, y, 0.085, 0.4), person.skin * 0.6)
            drawing.fill(ellipse(x, y, 0.07, 0.39), person.skin * 0.95)


def photograph(
    drawing: Drawing, person: Person, shot: Shot, image_size: int, rng: np.random.Generator
) -> Image.Image:
    """Return the picture of a drawing: mode L, `image_size` pixels square."""
    side = image_size * SUPERSAMPLING
    large = Image.new("L", (side, side), round(shot.background))
    brush = ImageDraw.Draw(large)
    cosine, sine = np.cos(shot.roll), np.sin(shot.roll)
    upright = np.array([[cosine, sine], [-sine, cosine]]) * shot.scale * side
    points = np.concatenate([outline for outline, _ in drawing.areas])
    # A turned head moves what is near to the camera, its middle, and keeps its outline.
    depth = np.maximum(1 - points**2 @ (person.head_width**-2, 1.0), 0)[:, None]
    points = (points + shot.turn * depth) @ upright + (shot.shift + 0.5) * side
    numbers, start = points.ravel().tolist(), 0
    for outline, tone in drawing.areas:
        end = start + outline.size
        brush.polygon(numbers[start:end], fill=round(min(max(tone, 0), 255)))
        start = end
    # The blur is of the optics, so it grows with the image: 48 pixels are FER-2013's.
    blurred = large.reduce(SUPERSAMPLING).filter(
        ImageFilter.GaussianBlur(shot.blur * image_size / 48)
    )
    ramp = np.linspace(-1, 1, image_size)
    light = 1 + shot.light[0] * ramp + shot.light[1] * ramp[:, None]
    tones = 120 + shot.contrast * (np.asarray(blurred) * light - 120)
    tones += rng.normal(0, shot.noise, tones.shape)
    return Image.fromarray(np.clip(tones, 0, 255).astype(np.uint8))


def express(rng: np.random.Generator, emotion: str) -> ActionUnits:
    """Return random action units of a face that shows `emotion`, a key of `EMOTIONS`."""

    def display(name: str) -> Array:
        notation = str(rng.choice(EMOTIONS[name].displays))
        units = {int(code): grade for code, grade in re.findall(r"(\d+)([A-E])", notation)}
        return np.array([" ABCDE".index(units.get(code, " ")) / 5 for code in CODES])

    mean = EMOTIONS[emotion].intensity
    intensity = rng.beta(5 * mean, 5 * (1 - mean))
    shown = intensity * display(emotion) * rng.uniform(0.6, 1.3, len(CODES))
    trace = rng.uniform(0, 0.3) * display(str(rng.choice(list(EMOTIONS))))
    twitch = np.abs(rng.normal(0, 0.06, len(CODES)))
    return ActionUnits(*np.clip(shown + trace + twitch, 0, 1).tolist())


def draw_face(rng: np.random.Generator, emotion: str, image_size: int) -> Image.Image:
    """Return a face that shows `emotion`, a key of `EMOTIONS`: mode L, `image_size` square."""
    units, person, shot = express(rng, emotion), Person(rng), Shot(rng)
    drawing = Drawing()
    draw_backdrop(drawing, person)
    draw_head(drawing, person, shot, units)
    draw_nose(drawing, person, shot, units)
    draw_mouth(drawing, person, shot, units)
    draw_eyes(drawing, person, shot, units)
    if not person.bald:
        draw_hair(drawing, person, shot)
    draw_obstacles(drawing, person, shot)
    return photograph(drawing, person, shot, image_size, rng)


def apportion(total: int, weights: dict[str, int]) -> dict[str, int]:
    """Return how many of `total` images each class has: in proportion to `weights`, at least two.

    Remainders go to the classes with the largest ones. `total` must be enough for two of each.
    """
    whole = sum(weights.values())
    counts = {name: total * weight // whole for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: total * weights[name] % whole, reverse=True)
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    while min(counts.values()) < FEWEST_PER_CLASS:
        counts[min(counts, key=counts.__getitem__)] += 1
        counts[max(counts, key=counts.__getitem__)] -= 1
    return counts


def draw_sample(
    folder: Path, *, train: int, test: int, image_size: int = 48, seed: int = 2013
) -> dict[str, dict[str, int]]:
    """Write `train` and `test` faces as grey PNG files `folder/<split>/<class>/im<index>.png`.

    The classes are as unequal as FER-2013's. A picture depends on `image_size`, `seed` and its own
    split, class and index, not on how many others there are. The folder appears when it is
    complete, and then replaces what was there. Returns the number of images by split, then class.

    Raises:
        UserError: if a number is too small.

    """
    fewest = FEWEST_PER_CLASS * len(EMOTIONS)
    for name, value, least in (
        ("train", train, fewest),
        ("test", test, fewest),
        ("image_size", image_size, SMALLEST_IMAGE),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UserError(f"sample: {name} = {value} must be at least {least}")
    counts = {
        split: apportion(total, {name: e.images[column] for name, e in EMOTIONS.items()})
        for column, (split, total) in enumerate(zip(SPLITS, (train, test), strict=True))
    }
    log.info("sample: drawing %s synthetic faces", f"{train + test:,}")
    with atomic(folder) as fresh:
        fresh.mkdir()
        (fresh / paths.SYNTHETIC_MARK).write_text(MARK, encoding="utf-8", newline="\n")
        faces = []
        for split_number, split in enumerate(SPLITS):
            for class_number, (name, count) in enumerate(counts[split].items()):
                (fresh / split / name).mkdir(parents=True)
                faces += [(split_number, class_number, index) for index in range(count)]
        for key in progress(faces, description="sample", unit="images"):
            split, name = SPLITS[key[0]], list(EMOTIONS)[key[1]]
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
            face = draw_face(rng, name, image_size)
            face.save(fresh / split / name / f"im{key[2]}.png")
    log.info("sample: %s train and %s test images; %s", f"{train:,}", f"{test:,}", folder)
    return counts
