"""The look that all figures share: fonts, colours, panels and numbers; and how one is saved.

Figures are made without pyplot, which keeps global state, so that they can be drawn without a
display and from several threads.
"""

import functools
import math
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator

from emotion_detection.console import log
from emotion_detection.files import atomic

DPI = 120
# Okabe and Ito's palette, which colour-blind people can tell apart, without its pale yellow.
PALETTE = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#0072B2", "#4D4D4D")
INK, GREY, FAINT, BLUE, ACCENT = "#222222", "#767676", "#DDDDDD", "#0072B2", "#D55E00"
# What stands in for each colour on a dark page.
DARK = {
    INK: "#ECECEC",
    GREY: "#A0A5AA",
    FAINT: "#3A3F44",
    "#FFFFFF": "#212427",
    "#D55E00": "#FF8A3D",
    "#009E73": "#2BC79B",
    "#CC79A7": "#E39CC5",
    "#E69F00": "#F2B53A",
    "#56B4E9": "#A5DBF8",
    "#0072B2": "#4B9CD9",
    "#4D4D4D": "#C4C4C4",
}
SMALL, BODY, TITLE = 8.5, 10.0, 12.0
POINTS_PER_INCH = 72
LETTER_WIDTH = 0.6  # of DejaVu Sans, in ems, rounded up
LONGEST_NAME = 22
# Browsers refuse pictures that are longer than 16,383.
LONGEST_SIDE = 16_000  # pixels

# The font that matplotlib brings along. It lacks many scripts, and class names may be in any.
FONT = "DejaVu Sans"
# Fonts that have letters in the wrong places, or draw a box for each.
NO_TEXT = ("cm", "STIX", "Last Resort")

rcParams["text.color"] = INK
# A $ in the name of a class does not start a formula.
rcParams["text.parse_math"] = False
# An SVG has its texts as text, and the same ids each time.
rcParams["svg.fonttype"] = "none"
rcParams["svg.hashsalt"] = "figure"
# `_families` warns once, instead of matplotlib for every letter of every figure.
warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path` as PNG, atomically.

    Letters that FONT lacks are drawn in another installed font. The same figure gives the same
    bytes: no version or date goes into the file.
    """
    texts = figure.findobj(Text)
    letters = {letter for text in texts for letter in text.get_text()}
    families = _families("".join(sorted(_lacking(letters, font_manager.findfont(FONT)))))
    for text in texts if len(families) > 1 else []:
        text.set_fontfamily(families)
    dpi = min(DPI, LONGEST_SIDE / max(figure.get_size_inches()))
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, metadata={"Software": None})


def font_file(text: str) -> str:
    """Return the file of a font that has all of `text`, or else of FONT."""
    lacking = "".join(sorted(_lacking(text, font_manager.findfont(FONT))))
    files = [font_manager.findfont(family) for family in _families(lacking)]
    return next((file for file in files if not _lacking(text, file)), files[0])


@functools.cache
def _families(lacking: str) -> list[str]:
    """Return FONT and the installed fonts that have the letters that it lacks."""
    families, left = [FONT], set(lacking)
    fonts = font_manager.fontManager.ttflist if lacking else []
    files = {font.name: font.fname for font in fonts if not font.name.startswith(NO_TEXT)}
    while left:
        fewest, best = min((len(_lacking(left, files[name])), name) for name in sorted(files))
        if fewest == len(left):
            log.warning(
                "no installed font has %s, so figures show boxes there; install one that does",
                "".join(sorted(left)),
            )
            break
        families.append(best)
        left = _lacking(left, files[best])
    return families


def _lacking(letters: Iterable[str], file: str) -> set[str]:
    font = font_manager.get_font(file)
    return {letter for letter in letters if letter > " " and not font.get_char_index(ord(letter))}


def class_colour(index: int) -> str:
    """Return the colour of the class at `index` in every figure; colours repeat after seven."""
    return PALETTE[index % len(PALETTE)]


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return a figure with `height` inches for the content, below as many as the title takes."""
    lines = _wrapped(title, width - 0.3)
    line_height = 1.35 * TITLE / POINTS_PER_INCH
    figure = Figure(
        figsize=(width, height + 0.15 + len(lines) * line_height),
        facecolor="white",
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03),
    )
    figure.suptitle(
        "\n".join(lines), x=0.09 / width, ha="left", fontsize=TITLE, fontweight="bold", color=INK
    )
    return figure


def _wrapped(title: str, inches: float) -> list[str]:
    """Return the lines of a bold title, none longer than `inches`, of about equal length."""
    bold = FontProperties(weight="bold", size=TITLE)
    points, _, _ = text_to_path.get_text_width_height_descent(title, bold, ismath=False)
    letters = int(0.95 * inches * POINTS_PER_INCH * len(title) / points)
    fewest = len(textwrap.wrap(title, letters))
    # The longest word is the name of a class in brackets, so that no word is broken.
    widths = range(min(LONGEST_NAME + 3, letters), letters + 1)
    return next(lines for width in widths if len(lines := textwrap.wrap(title, width)) <= fewest)


def add_panels(
    figure: Figure, columns: int, *, sharey: bool = False, heights: Sequence[float] = (1.0,)
) -> list[Axes]:
    """Return new axes in reading order; several rows, of relative `heights`, share their x axes."""
    panels = list(
        figure.subplots(
            len(heights),
            columns,
            sharex="col" if len(heights) > 1 else False,
            sharey=sharey,
            squeeze=False,
            height_ratios=heights,
        ).flat
    )
    for axes in panels:
        axes.set_facecolor("white")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(labelsize=SMALL, labelcolor=INK, color=GREY, length=3)
    return panels


def name_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Name the rows of horizontal bars, the first class at the top."""
    axes.set_yticks(range(len(labels)), labels, fontsize=BODY, color=INK)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    for panel in axes.figure.axes:
        panel.tick_params(axis="y", length=0)


def whole_numbers(axes: Axes, first: float, last: float) -> None:
    """Limit the x axis to `first`..`last` with some room, and its ticks to whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    room = max(0.5, 0.02 * (last - first))
    axes.set_xlim(first - room, last + room)


def names_width(classes: Sequence[str]) -> float:
    """Return the width in inches of the longest class name."""
    letters = max(_letters(shortened(name)) for name in classes)
    return letters * LETTER_WIDTH * BODY / POINTS_PER_INCH


def rows_height(rows: int) -> float:
    """Return the height in inches of so many horizontal bars."""
    return rows * (0.4 if rows <= 10 else 0.27)


def canvas(figure: Figure, width: float, height: float) -> Axes:
    """Return bare axes for pictures of side 1, with the origin at the top left."""
    (axes,) = add_panels(figure, 1)
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.set_anchor("NW")
    axes.set_autoscale_on(False)
    return axes


def place(axes: Axes, image: npt.NDArray[np.uint8], left: float, top: float) -> None:
    """Draw `image` (H, W) or (H, W, C) uint8 centred in the square of side 1 at `left`, `top`."""
    grey = image.ndim == 2 or image.shape[-1] == 1
    height, width = (side / max(image.shape[:2]) for side in image.shape[:2])
    left, top = left + (1 - width) / 2, top + (1 - height) / 2
    axes.imshow(
        image.reshape(image.shape[:2]) if grey else image,
        cmap="gray",
        vmin=0,
        vmax=255,
        extent=(left, left + width, top + height, top),
        interpolation="bilinear",
    )


def gallery(
    images: Sequence[npt.NDArray[np.uint8]], captions: Sequence[Sequence[str]], title: str
) -> Figure:
    """Return a figure of pictures in reading order, each with its lines of caption below."""
    rows = math.ceil(len(images) / 8)
    columns = math.ceil(len(images) / rows)
    inches, gap = 1.2, 0.1
    line = 1.3 * SMALL / POINTS_PER_INCH / inches
    cell_height = 1 + 0.16 + line * max(map(len, captions))
    letters = int(inches * POINTS_PER_INCH / (SMALL * LETTER_WIDTH))
    figure = new_figure(
        max(6.0, columns * (1 + gap) * inches + 0.2), rows * cell_height * inches, title
    )
    axes = canvas(figure, columns * (1 + gap), rows * cell_height)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = index % columns * (1 + gap), index // columns * cell_height
        place(axes, image, left, top)
        for number, text in enumerate(caption):
            axes.text(
                left,
                top + 1.04 + number * line,
                shortened(text, letters),
                fontsize=SMALL,
                color=INK,
                va="top",
            )
    return figure


def note(text: str) -> Figure:
    """Return a figure that has only a title."""
    return new_figure(6.0, 0.2, text)


def label_line_ends(axes: Axes, x: float, ends: Sequence[tuple[str, float, str]]) -> None:
    """Write two (name, value, colour) beside the ends of their lines at `x`, without overlap."""
    low, high = axes.get_ylim()
    gap = 0.065 * (high - low)
    ordered = sorted((end for end in ends if math.isfinite(end[1])), key=lambda end: end[1])
    heights = [value for _, value, _ in ordered]
    if len(heights) == 2 and heights[1] - heights[0] < gap:
        middle = sum(heights) / 2
        heights = [middle - gap / 2, middle + gap / 2]
    for (name, _, colour), y in zip(ordered, heights, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            color=colour,
            annotation_clip=False,
        )


def class_colours(classes: Sequence[str]) -> list[str]:
    """Return the colour of each class."""
    return [class_colour(index) for index in range(len(classes))]


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """Return `name`, cut in the middle where it is too long: both ends help to tell names apart."""
    if _letters(name) <= longest:
        return name
    kept = int(longest * len(name) / _letters(name)) - 1
    head = kept * 2 // 3
    return f"{name[:head]}…{name[len(name) - (kept - head) :]}"


def _letters(text: str) -> int:
    """Return the width of `text` in letters of LETTER_WIDTH; a Chinese one is as wide as high."""
    wide = sum(unicodedata.east_asian_width(letter) in "FW" for letter in text)
    return len(text) + math.ceil(wide * (1 / LETTER_WIDTH - 1))


def percent(share: float, digits: int = 1) -> str:
    """Return 0.123 as 12.3 %, with a no-break space, so that a title does not wrap there."""
    return f"{100 * share:.{digits}f}\u00a0%"


def percent_tick(share: float, _: int | None = None) -> str:
    """Return 0.25 as 25 %, for the ticks of an axis."""
    return f"{100 * share:.4g}\u00a0%"


def thousands(value: float, _: int | None = None) -> str:
    """Return 1234 as 1,234, for the ticks of an axis."""
    return f"{value:,.0f}"


def compact(value: float, _: int | None = None) -> str:
    """Return 1200 as 1.2k, for the ticks of an axis."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
