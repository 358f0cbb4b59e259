"""Figures of a dataset: how many images each class has, what they look like, conflicts."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from emotion_detection.figures.style import (
    BODY,
    GREY,
    INK,
    SMALL,
    add_panels,
    canvas,
    class_colour,
    class_colours,
    gallery,
    name_rows,
    names_width,
    new_figure,
    note,
    percent,
    place,
    rows_height,
    shortened,
    thousands,
)


def class_balance(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Return a bar chart of the images of each class, a panel a split: `counts[split][class]`.

    Classes keep the order in which they first appear, which has to be that of the dataset for the
    colours to agree with other figures. Bars of equal length are equal shares of their split.

    Raises:
        ValueError: without splits or classes.

    """
    classes = list(dict.fromkeys(name for split in counts.values() for name in split))
    if not classes:
        raise ValueError("class_balance needs at least one split and one class")
    shares = {
        split: [of_class.get(name, 0) / max(sum(of_class.values()), 1) for name in classes]
        for split, of_class in counts.items()
    }
    longest = max(max(of_split) for of_split in shares.values()) or 1.0
    figure = new_figure(
        1.8 + 4.0 * len(counts), 0.9 + rows_height(len(classes)), _balance_title(counts, classes)
    )
    panels = add_panels(figure, len(counts), sharey=True)
    for axes, (split, of_class) in zip(panels, counts.items(), strict=True):
        total = sum(of_class.values())
        values = [of_class.get(name, 0) for name in classes]
        bars = axes.barh(range(len(classes)), values, height=0.72, color=class_colours(classes))
        axes.bar_label(
            bars,
            [f"{n:,} ({percent(p)})" for n, p in zip(values, shares[split], strict=True)],
            padding=4,
            fontsize=SMALL,
            color=INK,
        )
        room_for_label = 1.5
        axes.set_xlim(0, longest * max(total, 1) * room_for_label)
        axes.set_title(f"{split}: {total:,} images", fontsize=BODY, loc="left", color=INK)
        axes.set_xlabel("images", fontsize=SMALL, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    name_rows(panels[0], [shortened(name) for name in classes])
    return figure


def _balance_title(counts: Mapping[str, Mapping[str, int]], classes: Sequence[str]) -> str:
    split = next(iter(counts))
    values = {name: counts[split].get(name, 0) for name in classes}
    total = sum(values.values())
    rarest, commonest = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    if values[commonest] == values[rarest]:
        return f"All classes are equal: {values[rarest]:,} {split} images each"
    title = f"Rarest class: {shortened(rarest)} with {values[rarest]:,} of {total:,} {split} images"
    if values[rarest] == 0:
        return title
    title += f" ({percent(values[rarest] / total)})"
    ratio = values[commonest] / values[rarest]
    return f"{title}; {shortened(commonest)} has {ratio:.1f} times as many"


def sample_grid(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    classes: Sequence[str],
    per_class: int,
) -> Figure:
    """Return a grid of the first `per_class` images of each class, a row a class.

    `images` is (N, H, W, C) uint8 and `labels` (N,) holds indices into `classes`; shuffle both
    for a random choice.
    """
    height, width, channels = images.shape[1:]
    gap = 0.06
    inches = 0.85 if len(classes) <= 10 else 0.6
    kind = "grey" if channels == 1 else "colour"
    chosen = [np.flatnonzero(labels == k)[:per_class] for k in range(len(classes))]
    number = str(per_class) if min(map(len, chosen)) == per_class else f"Up to {per_class}"
    figure = new_figure(
        max(6.0, 0.4 + names_width(classes) + per_class * (1 + gap) * inches),
        0.2 + len(classes) * (1 + gap) * inches,
        f"{number} samples of each of {len(classes)} classes ({width}×{height}, {kind})",
    )
    axes = canvas(figure, per_class * (1 + gap), len(classes) * (1 + gap))
    for row, name in enumerate(classes):
        top = row * (1 + gap)
        for column, index in enumerate(chosen[row]):
            place(axes, images[index], column * (1 + gap), top)
        if len(chosen[row]) == 0:
            axes.text(0.1, top + 0.5, "no images", fontsize=BODY, color=GREY, va="center")
        axes.add_patch(
            Rectangle((-0.11, top), 0.06, 1, color=class_colour(row), linewidth=0, clip_on=False)
        )
        axes.text(
            -0.2, top + 0.5, shortened(name), fontsize=BODY, color=INK, ha="right", va="center"
        )
    return figure


def near_duplicates_grid(
    pairs: Sequence[tuple[npt.NDArray[np.uint8], Sequence[str]]], *, limit: int = 40
) -> Figure:
    """Return a gallery of the near-duplicates that are least alike, so that a person can judge.

    `pairs` holds two images beside each other, (H, 2 W, C) uint8, and their classes each, the least
    alike first.
    """
    if not pairs:
        return note("No images are near-duplicates")
    shown = pairs[:limit]
    which = f"; the {len(shown)} least alike" if len(shown) < len(pairs) else ""
    return gallery(
        [image for image, _ in shown],
        [list(labels) for _, labels in shown],
        f"{len(pairs):,} pairs of near-duplicates{which}",
    )


def duplicates_grid(
    conflicts: Sequence[tuple[npt.NDArray[np.uint8], Sequence[str]]], *, limit: int = 24
) -> Figure:
    """Return a gallery of images that occur under more than one class.

    `conflicts` holds an image (H, W, C) uint8 and its classes each. The first `limit` are drawn,
    and the title gives the number of all.
    """
    shown = conflicts[:limit]
    if not shown:
        return note("No image occurs under more than one class")
    which = "" if len(shown) == len(conflicts) else f"; the first {len(shown)}"
    noun = "image occurs" if len(conflicts) == 1 else "images occur"
    return gallery(
        [image for image, _ in shown],
        [list(labels) for _, labels in shown],
        f"{len(conflicts):,} {noun} under more than one class{which}",
    )
