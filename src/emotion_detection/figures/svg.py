"""Figures as SVG for a page: text stays text, and colours and fonts follow those of the page."""

import io
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from emotion_detection.figures.style import POINTS_PER_INCH

PIXELS_PER_POINT = 96 / 72  # of CSS
MARGIN = 0.04  # inches around a panel
SIZE = (("svg", "width"), ("svg", "height"))  # which the page decides
LEGIBLE = 0.7  # of the full width: below, its text is too small to read


@dataclass(frozen=True)
class Panel:
    """A column of a figure, as an SVG element that is `width` CSS pixels wide at its full size."""

    svg: str
    width: int

    @property
    def narrowest(self) -> int:
        """The width below which the page scrolls it instead of making it smaller."""
        return round(LEGIBLE * self.width)


def panels(figure: Figure, name: str) -> list[Panel]:
    """Return `figure` without its title as SVG elements, one a column of its panels.

    A page puts them side by side or, on a phone, below each other. Each colour is a CSS variable
    that is named by its hex digits, such as `var(--d55e00, #d55e00)`. `name` is unique on the
    page: ids begin with it.
    """
    # A copy, since what follows changes the figure.
    figure = pickle.loads(pickle.dumps(figure))
    for axes in figure.axes:
        axes.tick_params(labelleft=axes.yaxis.get_visible())
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    title = " ".join(figure.get_suptitle().split())
    figure.suptitle("")
    return [
        _panel(figure, column, f"{name}-{number}", title)
        for number, column in enumerate(_columns(figure))
    ]


def _columns(figure: Figure) -> list[list[Axes]]:
    columns: dict[int, list[Axes]] = {}
    for axes in figure.axes:
        place = axes.get_subplotspec()
        columns.setdefault(place.colspan.start if place else 0, []).append(axes)
    return list(columns.values())


def _panel(figure: Figure, column: list[Axes], name: str, title: str) -> Panel:
    for axes in figure.axes:
        axes.set_visible(axes in column)
    box = Bbox.union([box for axes in column if (box := axes.get_tightbbox()) is not None])
    inches = box.transformed(figure.dpi_scale_trans.inverted()).padded(MARGIN)
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", bbox_inches=inches, metadata=nothing)
    label = ": ".join(filter(None, (title, column[0].get_title(loc="left"))))
    svg = _for_a_page(file.getvalue(), name, label)
    return Panel(svg, round(inches.width * POINTS_PER_INCH * PIXELS_PER_POINT))


def _for_a_page(text: str, name: str, label: str) -> str:
    """Return the SVG document `text` as an element of an HTML page."""
    root = ElementTree.fromstring(text)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        if element.tag != "text":
            element.text = None
        attributes = dict(_attributes(element, name))
        element.attrib.clear()
        element.attrib.update(attributes)
    for parent in list(root.iter()):
        for child in list(parent):
            # The page has the style of all its figures, and a rule of one of them would be its too.
            if child.tag in ("metadata", "style"):
                parent.remove(child)
    root.attrib.update({"role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(element: ElementTree.Element, name: str) -> Iterator[tuple[str, str]]:
    for key, value in element.items():
        key = key.rpartition("}")[2]
        if key == "id" and element.tag != "g":
            yield key, f"{name}-{value}"
        elif key == "href":
            yield key, f"#{name}-{value[1:]}" if value.startswith("#") else value
        elif key == "clip-path":
            yield key, value.replace("#", f"#{name}-")
        elif key == "style":
            yield key, _style(value)
        elif key == "d":
            # Points, of which a hundredth is too small to see.
            yield key, " ".join(re.sub(r"(\.\d\d)\d+", r"\1", value).split())
        elif not (
            key in ("id", "version") or (element.tag == "svg" and key in ("width", "height"))
        ):
            yield key, value


def _style(text: str) -> str:
    text = re.sub(r"font-family: [^;]*;? ?", "", text)
    return re.sub(r"#([0-9a-f]{6})\b", r"var(--\1, #\1)", text)
