"""Every plot of the project, in one look.

Each function returns a figure that no global state knows of (no pyplot), so that plots can be
drawn without a display and from several threads; `save` writes it.
"""

import functools
import math
import textwrap
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from emotion_detection.console import log
from emotion_detection.files import atomic

if TYPE_CHECKING:  # scikit-learn comes with it, and takes a second that most plots do not need
    from emotion_detection.evaluation.metrics import ClassScores, Estimate, Evaluation

DPI = 120
# Okabe and Ito's palette, told apart with any colour vision; their yellow is too faint on white.
PALETTE = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#0072B2", "#4D4D4D")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
INK, GREY, FAINT, BLUE, ACCENT = "#222222", "#767676", "#DDDDDD", "#0072B2", "#D55E00"
SMALL, BODY, TITLE = 8.5, 10.0, 12.0
POINTS_PER_INCH = 72
LETTER_WIDTH = 0.6  # of DejaVu Sans, in ems, on the generous side
LONGEST_NAME = 22
# WebP, in the report, ends at 16,383.
LONGEST_SIDE = 16_000  # pixels
# Of a confusion matrix of hundreds of classes colours tell more than numbers.
LARGEST_MATRIX = 24  # inches
MOST_NUMBERS = 4096
SMALLEST = 5.5

# matplotlib's own, which lacks many scripts: class names may be in any.
FONT = "DejaVu Sans"
# These have letters at wrong places, or a box for each.
NO_TEXT = ("cm", "STIX", "Last Resort")

# A $ in the name of a class is no formula.
rcParams["text.parse_math"] = False
# `save` says it once, and not for every letter of every figure.
warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as PNG; a reader sees the old file or the new one, never half of one.

    The same figure gives the same bytes: no version or date goes into the file.
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
    """Return FONT and what is installed for the letters that it lacks, which is searched once."""
    families, left = [FONT], set(lacking)
    fonts = font_manager.fontManager.ttflist if lacking else []
    files = {font.name: font.fname for font in fonts if not font.name.startswith(NO_TEXT)}
    while left:
        fewest, best = min((len(_lacking(left, files[name])), name) for name in sorted(files))
        if fewest == len(left):
            log.warning(
                "no installed font has %s, and figures have boxes there: install one that does",
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
    """The colour of the class at `index`, the same in every figure; repeats after seven."""
    return PALETTE[index % len(PALETTE)]


def class_balance(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Images of each class, a panel for each split: `counts[split][class]`.

    Classes keep the order in which they first appear, which must be that of the other figures for
    the colours to agree. Equal lengths are equal shares of their split. Raises ValueError without
    splits or classes.
    """
    classes = list(dict.fromkeys(name for split in counts.values() for name in split))
    if not classes:
        raise ValueError("class_balance needs at least one split and one class")
    shares = {
        split: [of_class.get(name, 0) / max(sum(of_class.values()), 1) for name in classes]
        for split, of_class in counts.items()
    }
    longest = max(max(of_split) for of_split in shares.values()) or 1.0
    figure = _figure(
        1.8 + 4.0 * len(counts), 0.9 + _rows_height(len(classes)), _balance_title(counts, classes)
    )
    panels = _panels(figure, len(counts), sharey=True)
    for axes, (split, of_class) in zip(panels, counts.items(), strict=True):
        total = sum(of_class.values())
        values = [of_class.get(name, 0) for name in classes]
        bars = axes.barh(range(len(classes)), values, height=0.72, color=_colours(classes))
        axes.bar_label(
            bars,
            [f"{n:,} ({_percent(p)})" for n, p in zip(values, shares[split], strict=True)],
            padding=4,
            fontsize=SMALL,
            color=INK,
        )
        room_for_label = 1.5
        axes.set_xlim(0, longest * max(total, 1) * room_for_label)
        axes.set_title(f"{split}: {total:,} images", fontsize=BODY, loc="left", color=INK)
        axes.set_xlabel("images", fontsize=SMALL, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    _class_rows(panels[0], [_short(name) for name in classes])
    return figure


def _balance_title(counts: Mapping[str, Mapping[str, int]], classes: Sequence[str]) -> str:
    split = next(iter(counts))
    values = {name: counts[split].get(name, 0) for name in classes}
    total = sum(values.values())
    rarest, commonest = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    if values[commonest] == values[rarest]:
        return f"All classes are equal: {values[rarest]:,} {split} images each"
    title = f"Rarest class: {_short(rarest)} with {values[rarest]:,} of {total:,} {split} images"
    if values[rarest] == 0:
        return title
    title += f" ({_percent(values[rarest] / total)})"
    return (
        f"{title}; {_short(commonest)} has {values[commonest] / values[rarest]:.1f} times as many"
    )


def sample_grid(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    classes: Sequence[str],
    per_class: int,
) -> Figure:
    """The first `per_class` of `images` (N, H, W, C) uint8 of each class, a row a class.

    `labels` (N,) holds indices into `classes`; shuffle beforehand for a random choice.
    """
    height, width, channels = images.shape[1:]
    gap = 0.06
    inches = 0.85 if len(classes) <= 10 else 0.6
    kind = "grey" if channels == 1 else "colour"
    chosen = [np.flatnonzero(labels == k)[:per_class] for k in range(len(classes))]
    number = str(per_class) if min(map(len, chosen)) == per_class else f"Up to {per_class}"
    figure = _figure(
        max(6.0, 0.4 + _names_width(classes) + per_class * (1 + gap) * inches),
        0.2 + len(classes) * (1 + gap) * inches,
        f"{number} samples of each of {len(classes)} classes ({width}×{height}, {kind})",
    )
    axes = _canvas(figure, per_class * (1 + gap), len(classes) * (1 + gap))
    for row, name in enumerate(classes):
        top = row * (1 + gap)
        for column, index in enumerate(chosen[row]):
            _place(axes, images[index], column * (1 + gap), top)
        if len(chosen[row]) == 0:
            axes.text(0.1, top + 0.5, "no images", fontsize=BODY, color=GREY, va="center")
        axes.add_patch(
            Rectangle((-0.11, top), 0.06, 1, color=class_colour(row), linewidth=0, clip_on=False)
        )
        axes.text(-0.2, top + 0.5, _short(name), fontsize=BODY, color=INK, ha="right", va="center")
    return figure


def duplicates_grid(
    conflicts: Sequence[tuple[npt.NDArray[np.uint8], Sequence[str]]], *, limit: int = 24
) -> Figure:
    """Images that occur under more than one class: (image (H, W, C) uint8, its classes) each.

    Draws the first `limit`, and says how many there are.
    """
    shown = conflicts[:limit]
    if not shown:
        return _note("No image occurs under more than one class")
    which = "" if len(shown) == len(conflicts) else f"; the first {len(shown)}"
    noun = "image occurs" if len(conflicts) == 1 else "images occur"
    return _gallery(
        [image for image, _ in shown],
        [list(labels) for _, labels in shown],
        f"{len(conflicts):,} {noun} under more than one class{which}",
    )


def learning_curves(history: pd.DataFrame) -> Figure:
    """Loss and accuracy by epoch, the epoch of the highest validation accuracy marked.

    `history` has a row an epoch and the columns epoch, loss, accuracy, val_loss, val_accuracy and
    optionally lr. Raises ValueError for a missing column or no rows.
    """
    missing = {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"} - set(history.columns)
    if missing or history.empty:
        raise ValueError(f"history lacks {', '.join(sorted(missing)) or 'epochs'}")
    epochs = history["epoch"]
    best = None
    title = f"{len(history)} epochs, none with a validation accuracy"
    if history["val_accuracy"].notna().any():
        best = history.iloc[int(np.nanargmax(history["val_accuracy"]))]
        title = (
            f"Best epoch {best['epoch']:.0f} of {epochs.max():.0f}: validation loss "
            f"{best['val_loss']:.3f}, accuracy {_percent(best['val_accuracy'])}"
        )
    figure = _figure(10.0, 3.7, title)
    drops, schedule = _learning_rate(history)
    for axes, measure in zip(_panels(figure, 2), ("loss", "accuracy"), strict=True):
        number = _percent if measure == "accuracy" else "{:.3f}".format
        for epoch in drops:
            axes.axvline(epoch, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
        ends = []
        for name, column, colour in (
            ("train", measure, GREY),
            ("validation", f"val_{measure}", BLUE),
        ):
            marker = "o" if len(history) == 1 else ""
            axes.plot(epochs, history[column], color=colour, linewidth=1.8, marker=marker)
            ends.append((name, history[column].iloc[-1], colour))
        if best is not None:
            value = best[f"val_{measure}"]
            axes.axvline(best["epoch"], color=ACCENT, linewidth=1.0, zorder=1)
            axes.plot(best["epoch"], value, "o", color=ACCENT, markersize=6, zorder=3)
            axes.annotate(
                f"epoch {best['epoch']:.0f}: {number(value)}",
                (best["epoch"], 1.0),
                xycoords=axes.get_xaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL,
                color=ACCENT,
            )
        if measure == "accuracy":
            axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        _whole_numbers(axes, epochs.min(), epochs.max())
        axes.set_ylabel(measure, fontsize=BODY, color=INK)
        axes.set_xlabel(f"epoch{schedule}", fontsize=BODY, color=INK)
        _label_line_ends(axes, epochs.iloc[-1], ends)
    return figure


def _learning_rate(history: pd.DataFrame) -> tuple[list[float], str]:
    """Epochs at which a stepwise learning rate fell, and a remark for the axis."""
    if "lr" not in history.columns or history["lr"].nunique() < 2:
        return [], ""
    rates = history["lr"].to_numpy(dtype=float)
    ends = f"{rates[0]:.3g} to {rates[-1]:.3g}"
    # A rate that moves at most epochs is a smooth schedule: a line at each would bury the curves.
    if np.count_nonzero(np.diff(rates)) > len(rates) / 2:
        return [], f"  (learning rate on a schedule, {ends})"
    fallen = history["epoch"].to_numpy()[1:][np.diff(rates) < 0]
    return list(fallen), f"  (dotted: learning rate lowered, {ends})"


def confusion_matrix(
    matrix: npt.NDArray[np.integer], classes: Sequence[str], *, normalize: bool
) -> Figure:
    """Actual classes (rows) against predicted ones (columns) of `matrix` (K, K).

    Counts, or with `normalize` the percentage of each row; dashes in a row without images.
    """
    totals = matrix.sum(axis=1, keepdims=True)
    values = matrix / np.maximum(totals, 1) if normalize else matrix
    cells = _cells(matrix, normalize)
    names = [_short(name) for name in classes]
    inches = max(0.78, 4.2 / len(classes)) if len(classes) <= 10 else 0.44
    side = min(inches * len(classes), LARGEST_MATRIX)
    inches = side / len(classes)
    name_width = _names_width(classes)
    slanted = name_width > inches
    widest = max(len(text) for row in cells for text in row)
    size = min(BODY, inches * POINTS_PER_INCH * 0.9 / (LETTER_WIDTH * max(widest, 1)))

    title = _recall_title(matrix, classes) if normalize else _mistakes_title(matrix, classes)
    figure = _figure(
        side + name_width + 0.6, side + (0.75 * name_width if slanted else 0.2) + 0.5, title
    )
    (axes,) = _panels(figure, 1)
    shown = axes.imshow(values, cmap="Blues", vmin=0, vmax=1 if normalize else max(matrix.max(), 1))
    backgrounds = shown.to_rgba(values)
    for i, row in enumerate(cells if matrix.size <= MOST_NUMBERS else []):
        for j, text in enumerate(row):
            colour = _readable_on(backgrounds[i, j])
            label = axes.text(j, i, text, ha="center", va="center", fontsize=size, color=colour)
            # It stays in its cell: measuring hundreds of them is most of the time to draw.
            label.set_in_layout(False)
    room = inches * POINTS_PER_INCH / 1.2
    named = slice(None, None, max(1, math.ceil(SMALLEST / room)))
    size = max(SMALLEST, min(BODY, room))
    ticks = range(len(classes))[named]
    axes.set_xticks(ticks, names[named], fontsize=size, color=INK)
    axes.set_yticks(ticks, names[named], fontsize=size, color=INK)
    if slanted:
        for tick_label in axes.get_xticklabels():
            tick_label.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted", fontsize=BODY, color=INK)
    unit = " (each row in % of its images)" if normalize else " (images)"
    axes.set_ylabel(f"actual{unit}", fontsize=BODY, color=INK)
    return figure


def _cells(matrix: npt.NDArray[np.integer], normalize: bool) -> list[list[str]]:
    if not normalize:
        return [[f"{count:,}" for count in row] for row in matrix]
    return [
        [f"{100 * count / row.sum():.0f}" if row.any() else "–" for count in row] for row in matrix
    ]


def _mistakes_title(matrix: npt.NDArray[np.integer], classes: Sequence[str]) -> str:
    total, right = int(matrix.sum()), int(np.trace(matrix))
    title = f"{right:,} of {total:,} images right ({_percent(right / max(total, 1))})"
    if right == total:
        return title
    wrong = matrix - np.diag(np.diag(matrix))
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    return (
        f"{title}; most frequent mistake: {_short(classes[i])} taken for "
        f"{_short(classes[j])} ({wrong[i, j]:,})"
    )


def _recall_title(matrix: npt.NDArray[np.integer], classes: Sequence[str]) -> str:
    totals = matrix.sum(axis=1)
    present = np.flatnonzero(totals)
    if len(present) == 0:
        return "No images"
    recall = np.diag(matrix)[present] / totals[present]
    worst, best = recall.argmin(), recall.argmax()
    return (
        f"Recall is highest for {_short(classes[present[best]])} ({_percent(recall[best], 0)}) "
        f"and lowest for {_short(classes[present[worst]])} ({_percent(recall[worst], 0)})"
    )


def per_class_bars(evaluation: "Evaluation") -> Figure:
    """Precision, recall and F1 of each class, a panel each, with their 95 % intervals."""
    per_class = evaluation.per_class
    measures: dict[str, tuple[str, Callable[[ClassScores], Estimate]]] = {
        "precision": ("share of the predictions that are right", lambda of: of.precision),
        "recall": ("share of the class that is found", lambda of: of.recall),
        "F1": ("harmonic mean of the two", lambda of: of.f1),
    }
    figure = _figure(11.0, 0.9 + _rows_height(len(per_class)), _f1_title(evaluation))
    panels = _panels(figure, 3, sharey=True)
    rows = range(len(per_class))
    for axes, (measure, (meaning, score)) in zip(panels, measures.items(), strict=True):
        estimates = [score(of_class) for of_class in per_class]
        values = [estimate.value for estimate in estimates]
        lows = [estimate.low for estimate in estimates]
        highs = [estimate.high for estimate in estimates]
        axes.barh(rows, values, height=0.72, color=_colours(evaluation.classes))
        # The halo keeps the line visible on the darkest bars.
        axes.hlines(rows, lows, highs, color="white", linewidth=4.5)
        axes.hlines(rows, lows, highs, color=INK, linewidth=1.5)
        for row, (of_class, value, high) in enumerate(zip(per_class, values, highs, strict=True)):
            axes.annotate(
                f"{value:.2f}" if of_class.support else "no images",
                (max(value, high), row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=SMALL,
                color=INK if of_class.support else GREY,
            )
        axes.set_xlim(0, 1.18)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.spines["bottom"].set_bounds(0, 1)
        axes.set_title(measure, fontsize=BODY, loc="left", color=INK)
        axes.set_xlabel(meaning, fontsize=SMALL, color=INK)
    _class_rows(panels[0], [f"{_short(of.name)} ({of.support:,})" for of in per_class])
    panels[0].set_ylabel("class (images)", fontsize=SMALL, color=INK)
    return figure


def _f1_title(evaluation: "Evaluation") -> str:
    per_class, macro = evaluation.per_class, evaluation.macro_f1
    worst = min(per_class, key=lambda of_class: of_class.f1.value)
    best = max(per_class, key=lambda of_class: of_class.f1.value)
    return (
        f"Macro F1 {macro.value:.3f} ({macro.low:.3f} to {macro.high:.3f}): "
        f"from {worst.f1.value:.2f} ({_short(worst.name)}) to {best.f1.value:.2f} "
        f"({_short(best.name)}); lines are 95\u00a0% intervals"
    )


def roc_curves(evaluation: "Evaluation") -> Figure:
    """The ROC curve of each class against the rest; a class without one is only in the legend."""
    per_class = evaluation.per_class
    columns = math.ceil(len(per_class) / 26)
    curves = {of_class.name: of_class.roc for of_class in per_class if of_class.roc is not None}
    title = "No class has a ROC curve: it takes images of the class and of others"
    if curves:
        worst = min(curves, key=lambda name: curves[name].auc)
        best = max(curves, key=lambda name: curves[name].auc)
        title = f"Macro AUC {evaluation.macro_auc:.3f}"
        if len(curves) > 2:  # two classes share one curve, seen from either side
            title += (
                f": lowest for {_short(worst)} ({curves[worst].auc:.3f}), "
                f"highest for {_short(best)} ({curves[best].auc:.3f})"
            )
    figure = _figure(5.6 + columns * (1.3 + _names_width(evaluation.classes)), 5.4, title)
    (axes,) = _panels(figure, 1)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 2)))
    axes.annotate(
        "chance", (0.82, 0.79), fontsize=SMALL, color=GREY, rotation=45, ha="center", va="center"
    )
    for index, of_class in enumerate(per_class):
        curve = of_class.roc
        axes.plot(
            [] if curve is None else curve.false_positive_rate,
            [] if curve is None else curve.true_positive_rate,
            color=class_colour(index),
            linestyle=DASHES[index // len(PALETTE) % len(DASHES)],
            linewidth=1.7,
            label=f"{'  –  ' if curve is None else f'{curve.auc:.3f}'}  {_short(of_class.name)}",
        )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_anchor("W")
    axes.set_xlabel("false positive rate", fontsize=BODY, color=INK)
    axes.set_ylabel("true positive rate", fontsize=BODY, color=INK)
    axes.legend(
        title="AUC   class",
        title_fontsize=SMALL,
        alignment="left",
        fontsize=SMALL,
        labelspacing=0.3,
        ncols=columns,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        handlelength=2.6,
    )
    return figure


def reliability(evaluation: "Evaluation") -> Figure:
    """Accuracy against confidence in bins, and beneath it how many images each bin has.

    After Guo et al. (2017), whom `Evaluation.calibration_error` names: of a classifier that knows
    how sure it may be, every bar ends at the dashed line.
    """
    bins = evaluation.reliability()
    left, width = bins["confidence_from"], bins["confidence_to"] - bins["confidence_from"]
    confidence, accuracy = float(evaluation.confidence.mean()), evaluation.accuracy.value
    gap = confidence - accuracy
    decision = "too sure" if gap > 0 else "not sure enough"
    figure = _figure(
        7.2,
        5.4,
        f"Calibration error {_percent(evaluation.calibration_error)}: on average "
        f"{_percent(confidence)} sure and {_percent(accuracy)} right"
        + (f", {decision}" if abs(gap) >= 0.0005 else ""),
    )
    above, below = _panels(figure, 1, heights=(3.2, 1.0))
    bars: dict[str, Any] = {"align": "edge", "linewidth": 0.8, "edgecolor": "white"}
    above.bar(left, bins["accuracy"], width, color=BLUE, **bars)
    above.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (2, 2)))
    above.vlines(bins["confidence"], bins["accuracy"], bins["confidence"], color="white", lw=4.5)
    above.vlines(bins["confidence"], bins["accuracy"], bins["confidence"], color=ACCENT, lw=2)
    above.set_ylim(0, 1.02)
    above.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
    above.set_ylabel("accuracy", fontsize=BODY, color=INK)
    above.grid(axis="y", color=FAINT, linewidth=0.6)
    images = below.bar(left, bins["images"], width, color=GREY, **bars)
    below.bar_label(
        images,
        [f"{n:,}" if n < 10_000 else f"{n / 1000:,.0f}k" for n in bins["images"]],
        padding=2,
        fontsize=SMALL - 1,
        color=INK,
    )
    below.set_ylim(0, 1.3 * bins["images"].max())
    below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    below.yaxis.set_major_formatter(FuncFormatter(_thousands))
    below.set_ylabel("images", fontsize=BODY, color=INK)
    below.set_xlim(0, 1)
    below.xaxis.set_major_formatter(FuncFormatter(_percent_tick))
    below.set_xlabel(
        "confidence (orange: from its mean in a bin to the accuracy there)",
        fontsize=BODY,
        color=INK,
    )
    return figure


def robustness(table: pd.DataFrame) -> Figure:
    """Accuracy by severity, a panel for each corruption, with 95 % intervals of the change.

    `table` has a row a corruption and severity, the first one of the images as they are, and the
    columns condition, corruption, severity, unit, images, accuracy, change, change_low and
    change_high.
    """
    clean = table["accuracy"].iloc[0]
    worst = table.loc[table["accuracy"].idxmin()]
    kinds = list(dict.fromkeys(table["corruption"].iloc[1:]))
    figure = _figure(
        2.3 * len(kinds) + 0.5,
        3.0,
        f"{_percent(clean)} of {table['images'].iloc[0]:,} test images right as they are, "
        f"{_percent(worst['accuracy'])} at worst ({worst['condition']}); lines are "
        "95\u00a0% intervals of the change",
    )
    panels = _panels(figure, len(kinds), sharey=True)
    for axes, kind in zip(panels, kinds, strict=True):
        of_kind = table[(table["corruption"] == kind) | (table.index == table.index[0])]
        of_kind = of_kind.sort_values("severity")
        severity = of_kind["severity"]
        axes.axhline(clean, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
        axes.vlines(
            severity, clean + of_kind["change_low"], clean + of_kind["change_high"], color=BLUE
        )
        axes.plot(severity, of_kind["accuracy"], "-o", color=BLUE, linewidth=1.5, markersize=5)
        axes.plot(0, clean, "o", color=GREY, markersize=6, zorder=3)
        axes.set_xticks(severity, [f"{by:g}" for by in severity])
        axes.margins(x=0.12)
        axes.set_title(kind, fontsize=BODY, loc="left", color=INK)
        axes.set_xlabel(of_kind["unit"].iloc[-1], fontsize=SMALL, color=INK)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
    panels[0].set_ylim(0, min(1.0, 1.15 * table["accuracy"].max()) + 0.02)
    panels[0].yaxis.set_major_formatter(FuncFormatter(_percent_tick))
    panels[0].set_ylabel("accuracy", fontsize=BODY, color=INK)
    return figure


def mistakes(
    images: Sequence[npt.NDArray[np.uint8]] | npt.NDArray[np.uint8],
    actual: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float] | npt.NDArray[np.float64],
) -> Figure:
    """Wrongly classified `images` (H, W, C) uint8, in the order given, with names of classes."""
    if len(images) == 0:
        return _note("No mistakes: every image is classified right")
    span = f"{_percent(max(confidence), 0)} to {_percent(min(confidence), 0)}"
    return _gallery(
        list(images),
        [
            [was, f"→ {said}", _percent(p)]
            for was, said, p in zip(actual, predicted, confidence, strict=True)
        ],
        f"Most confident mistakes ({len(images)}), actual → predicted: {span} sure",
    )


def trials(table: pd.DataFrame) -> Figure:
    """The score of each trial of a search, in order and against the size of its network.

    `table` has a row a trial and the columns trial, status, val_accuracy and parameters; a trial
    whose status is not COMPLETED, or that has no score, is marked as such. Raises ValueError for
    a missing column or no rows.
    """
    missing = {"trial", "status", "val_accuracy", "parameters"} - set(table.columns)
    if missing or table.empty:
        raise ValueError(f"trials lack {', '.join(sorted(missing)) or 'rows'}")
    score = table["val_accuracy"].to_numpy(dtype=float)
    parameters = table["parameters"].to_numpy(dtype=float)
    done = (table["status"].str.upper() == "COMPLETED").to_numpy() & np.isfinite(score)
    if not done.any():
        return _note(f"Trials: {len(table)}, and none completed")

    best = int(np.flatnonzero(done)[score[done].argmax()])
    noun = "trial" if len(table) == 1 else "trials"
    title = f"Best of {len(table)} {noun}: {table['trial'].iloc[best]}, {_percent(score[best])}"
    if np.isfinite(parameters[best]):
        title += f" with {parameters[best]:,.0f} parameters"
    if not done.all():
        title += f"; {np.count_nonzero(~done)} did not complete"
    figure = _figure(10.0, 3.7, title)
    by_order, by_size = _panels(figure, 2, sharey=True)
    _draw_trials_in_order(by_order, score, done)
    sized = done & (parameters > 0)
    _draw_trials_by_size(by_size, score[sized], parameters[sized])
    for axes, x in ((by_order, best + 1), (by_size, parameters[best])):
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        if np.isfinite(x):
            axes.plot(x, score[best], "o", color=ACCENT, markersize=8, zorder=3)
            axes.annotate(
                "best",
                (x, score[best]),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL,
                color=ACCENT,
            )
    by_order.margins(y=0.12)
    return figure


def _draw_trials_in_order(
    axes: Axes, score: npt.NDArray[np.float64], done: npt.NDArray[np.bool_]
) -> None:
    order = np.arange(1, len(score) + 1)
    so_far = np.maximum.accumulate(np.where(done, score, -np.inf))
    known = np.isfinite(so_far)
    axes.step(order[known], so_far[known], where="post", color=GREY, linewidth=1.2)
    axes.plot(order[done], score[done], "o", color=BLUE, markersize=5.5)
    legend = "line: best so far"
    if not done.all():
        legend += "; ×: did not complete"
        failed, just_above_axis = order[~done], np.full(np.count_nonzero(~done), 0.03)
        in_panel = axes.get_xaxis_transform()
        axes.plot(failed, just_above_axis, "x", color=INK, markersize=6, transform=in_panel)
    _whole_numbers(axes, 1, len(score))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
    axes.set_xlabel(f"trials, in order ({legend})", fontsize=BODY, color=INK)
    axes.set_ylabel("validation accuracy", fontsize=BODY, color=INK)


def _draw_trials_by_size(
    axes: Axes, score: npt.NDArray[np.float64], parameters: npt.NDArray[np.float64]
) -> None:
    axes.plot(parameters, score, "o", color=BLUE, markersize=5.5)
    axes.set_xlabel("parameters of the network (log scale)", fontsize=BODY, color=INK)
    if len(parameters) == 0:
        return
    low, high = parameters.min(), parameters.max()
    # From a tick of 1, 2, 5, 10... to the next is at most a factor 2.5: one is always in view.
    margin = max(1.15, math.sqrt(2.5 * low / high))
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 50 else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_compact))


def _figure(width: float, height: float, title: str) -> Figure:
    """A figure whose title takes its own room, so that `height` inches stay for the content."""
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
    """Lines of bold title no longer than `inches`, of about equal length."""
    bold = FontProperties(weight="bold", size=TITLE)
    points, _, _ = text_to_path.get_text_width_height_descent(title, bold, ismath=False)
    letters = int(0.95 * inches * POINTS_PER_INCH * len(title) / points)
    fewest = len(textwrap.wrap(title, letters))
    # No word is longer than the name of a class and its brackets: none is torn apart.
    widths = range(min(LONGEST_NAME + 3, letters), letters + 1)
    return next(lines for width in widths if len(lines := textwrap.wrap(title, width)) <= fewest)


def _panels(
    figure: Figure, columns: int, *, sharey: bool = False, heights: Sequence[float] = (1.0,)
) -> list[Axes]:
    """Panels in reading order; rows, of these heights, share their x axes if there are several."""
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


def _class_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Name the rows of horizontal bars, the first class at the top."""
    axes.set_yticks(range(len(labels)), labels, fontsize=BODY, color=INK)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    for panel in axes.figure.axes:
        panel.tick_params(axis="y", length=0)


def _whole_numbers(axes: Axes, first: float, last: float) -> None:
    """Limit the x axis to `first`..`last` with some room, and its ticks to whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    room = max(0.5, 0.02 * (last - first))
    axes.set_xlim(first - room, last + room)


def _names_width(classes: Sequence[str]) -> float:
    """Inches that the longest name of a class takes."""
    return max(_letters(_short(name)) for name in classes) * LETTER_WIDTH * BODY / POINTS_PER_INCH


def _rows_height(rows: int) -> float:
    return rows * (0.4 if rows <= 10 else 0.27)


def _canvas(figure: Figure, width: float, height: float) -> Axes:
    """Bare axes for pictures, of side 1, the origin at the top left."""
    (axes,) = _panels(figure, 1)
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.set_anchor("NW")
    axes.set_autoscale_on(False)
    return axes


def _place(axes: Axes, image: npt.NDArray[np.uint8], left: float, top: float) -> None:
    """Draw an image as large as it fits into the square of side 1 there, in its middle."""
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


def _gallery(
    images: Sequence[npt.NDArray[np.uint8]], captions: Sequence[Sequence[str]], title: str
) -> Figure:
    """Pictures in reading order, each with lines of caption below it."""
    rows = math.ceil(len(images) / 8)
    columns = math.ceil(len(images) / rows)
    inches, gap = 1.2, 0.1
    line = 1.3 * SMALL / POINTS_PER_INCH / inches
    cell_height = 1 + 0.16 + line * max(map(len, captions))
    letters = int(inches * POINTS_PER_INCH / (SMALL * LETTER_WIDTH))
    figure = _figure(
        max(6.0, columns * (1 + gap) * inches + 0.2), rows * cell_height * inches, title
    )
    axes = _canvas(figure, columns * (1 + gap), rows * cell_height)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = index % columns * (1 + gap), index // columns * cell_height
        _place(axes, image, left, top)
        for number, text in enumerate(caption):
            axes.text(
                left,
                top + 1.04 + number * line,
                _short(text, letters),
                fontsize=SMALL,
                color=INK,
                va="top",
            )
    return figure


def _note(text: str) -> Figure:
    """A figure with nothing to show but its title."""
    return _figure(6.0, 0.2, text)


def _label_line_ends(axes: Axes, x: float, ends: Sequence[tuple[str, float, str]]) -> None:
    """Write two (name, value, colour) beside their last points, apart if they would touch."""
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


def _colours(classes: Sequence[str]) -> list[str]:
    return [class_colour(index) for index in range(len(classes))]


def _readable_on(background: npt.NDArray[np.float64]) -> str:
    """White or ink, whichever contrasts more by WCAG 2's relative luminance."""

    def luminance(colour: npt.ArrayLike) -> float:
        channels = np.asarray(colour, dtype=float)[:3]
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ (0.2126, 0.7152, 0.0722))

    behind = luminance(background)
    on_white = 1.05 / (behind + 0.05)
    on_ink = (behind + 0.05) / (luminance(to_rgb(INK)) + 0.05)
    return "white" if on_white > on_ink else INK


def _short(name: str, longest: int = LONGEST_NAME) -> str:
    """Cut a long name in the middle: beginnings and ends tell names apart."""
    if _letters(name) <= longest:
        return name
    kept = int(longest * len(name) / _letters(name)) - 1
    head = kept * 2 // 3
    return f"{name[:head]}…{name[len(name) - (kept - head) :]}"


def _letters(text: str) -> int:
    """Count letters of LETTER_WIDTH; a Chinese one is as wide as high."""
    wide = sum(unicodedata.east_asian_width(letter) in "FW" for letter in text)
    return len(text) + math.ceil(wide * (1 / LETTER_WIDTH - 1))


def _percent(share: float, digits: int = 1) -> str:
    # A no-break space: titles wrap between words only.
    return f"{100 * share:.{digits}f}\u00a0%"


def _percent_tick(share: float, _: int | None = None) -> str:
    return f"{100 * share:.4g}\u00a0%"


def _thousands(value: float, _: int | None = None) -> str:
    return f"{value:,.0f}"


def _compact(value: float, _: int | None = None) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
