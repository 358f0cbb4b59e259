"""Figures of an evaluation: confusion, scores by class, calibration, corruptions, mistakes."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from emotion_detection.figures.style import (
    ACCENT,
    BLUE,
    BODY,
    FAINT,
    GREY,
    INK,
    LETTER_WIDTH,
    PALETTE,
    POINTS_PER_INCH,
    SMALL,
    add_panels,
    class_colour,
    class_colours,
    gallery,
    name_rows,
    names_width,
    new_figure,
    note,
    percent,
    percent_tick,
    rows_height,
    shortened,
    thousands,
)

if TYPE_CHECKING:  # scikit-learn comes with it, and a figure reads what it is given alone.
    from emotion_detection.evaluation.intervals import Estimate
    from emotion_detection.evaluation.metrics import ClassScores, Evaluation

MISTAKES = 24
ROC_WIDTH = 4.6  # inches
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
LARGEST_MATRIX = 24  # inches
# Above so many cells a confusion matrix has colours only: its numbers could not be read.
MOST_NUMBERS = 4096
SMALLEST = 5.5  # points of text
# On all its shades text in INK, or on a dark page its light grey, has a contrast of 4.5 or more.
CELL, DARKEST = "#2B7BB3", 0.65


def evaluation_figures(
    result: "Evaluation",
    corrupted: pd.DataFrame,
    images: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
) -> dict[str, Figure]:
    """Return all figures of an evaluation by name.

    `images[rows]` (N, H, W, C) uint8 are those that `result` is about, in its order; of `images`,
    which may be a memory map, only those shown are read. `corrupted` is a table of
    `corruptions.measure`; without rows there is no figure of it.
    """
    wrong = result.most_confident_mistakes(MISTAKES)
    figures = {
        "confusion_counts": confusion_matrix(result.confusion, result.classes, normalize=False),
        "confusion_normalized": confusion_matrix(result.confusion, result.classes, normalize=True),
        "per_class": per_class_bars(result),
        "reliability": reliability(result),
        "answered": answered(result),
        "roc": roc_curves(result),
        "mistakes": mistakes(
            images[rows[wrong]],
            [result.classes[label] for label in result.labels[wrong]],
            [result.classes[label] for label in result.predicted[wrong]],
            result.confidence[wrong],
        ),
    }
    if not corrupted.empty:
        figures["corruptions"] = corruptions(corrupted)
    return figures


def confusion_matrix(
    matrix: npt.NDArray[np.integer], classes: Sequence[str], *, normalize: bool
) -> Figure:
    """Return `matrix` (K, K) of actual classes (rows) and predicted ones (columns) in colours.

    Cells hold counts, or with `normalize` the percentage of their row; a dash where the row has
    no images.
    """
    totals = matrix.sum(axis=1, keepdims=True)
    values = matrix / np.maximum(totals, 1) if normalize else matrix
    cells = _cells(matrix, normalize)
    names = [shortened(name) for name in classes]
    inches = max(0.5, 2.8 / len(classes)) if len(classes) <= 10 else 0.44
    side = min(inches * len(classes), LARGEST_MATRIX)
    inches = side / len(classes)
    name_width = names_width(classes)
    slanted = name_width > inches
    widest = max(len(text) for row in cells for text in row)
    size = min(BODY, inches * POINTS_PER_INCH * 0.9 / (LETTER_WIDTH * max(widest, 1)))

    title = _recall_title(matrix, classes) if normalize else _mistakes_title(matrix, classes)
    figure = new_figure(
        side + name_width + 0.6, side + (0.75 * name_width if slanted else 0.2) + 0.5, title
    )
    (axes,) = add_panels(figure, 1)
    axes.imshow(_shades(values, 1 if normalize else matrix.max()), interpolation="none")
    for i, row in enumerate(cells if matrix.size <= MOST_NUMBERS else []):
        for j, text in enumerate(row):
            label = axes.text(j, i, text, ha="center", va="center", fontsize=size, color=INK)
            # It fits into its cell, and the layout takes long to measure thousands of texts.
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


def _shades(values: npt.NDArray[Any], highest: float) -> npt.NDArray[np.uint8]:
    """Return (K, K, 4) uint8: CELL, the more opaque the higher the value.

    So they are shades of the page, be it white or dark, and its ink can be read on all of them.
    """
    opacity = DARKEST * values / max(highest, 1)
    shades = np.stack(np.broadcast_arrays(*to_rgb(CELL), opacity), axis=-1)
    return np.rint(255 * shades).astype(np.uint8)


def _cells(matrix: npt.NDArray[np.integer], normalize: bool) -> list[list[str]]:
    if not normalize:
        return [[f"{count:,}" for count in row] for row in matrix]
    return [
        [f"{100 * count / row.sum():.0f}" if row.any() else "–" for count in row] for row in matrix
    ]


def _mistakes_title(matrix: npt.NDArray[np.integer], classes: Sequence[str]) -> str:
    total, right = int(matrix.sum()), int(np.trace(matrix))
    title = f"Accuracy {percent(right / max(total, 1))} ({right:,} of {total:,} images)"
    if right == total:
        return title
    wrong = matrix - np.diag(np.diag(matrix))
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    return (
        f"{title}; most frequent mistake: {shortened(classes[i])} predicted as "
        f"{shortened(classes[j])} ({wrong[i, j]:,})"
    )


def _recall_title(matrix: npt.NDArray[np.integer], classes: Sequence[str]) -> str:
    totals = matrix.sum(axis=1)
    present = np.flatnonzero(totals)
    if len(present) == 0:
        return "No images"
    recall = np.diag(matrix)[present] / totals[present]
    worst, best = recall.argmin(), recall.argmax()
    return (
        f"Recall is highest for {shortened(classes[present[best]])} ({percent(recall[best], 0)}) "
        f"and lowest for {shortened(classes[present[worst]])} ({percent(recall[worst], 0)})"
    )


def per_class_bars(evaluation: "Evaluation") -> Figure:
    """Return precision, recall and F1 of each class, a panel each, with their 95 % intervals."""
    per_class = evaluation.per_class
    measures: dict[str, tuple[str, Callable[[ClassScores], Estimate]]] = {
        "precision": ("share of the predictions that are correct", lambda of: of.precision),
        "recall": ("share of the class that is found", lambda of: of.recall),
        "F1": ("harmonic mean of the two", lambda of: of.f1),
    }
    figure = new_figure(11.0, 0.9 + rows_height(len(per_class)), _f1_title(evaluation))
    panels = add_panels(figure, 3, sharey=True)
    rows = range(len(per_class))
    for axes, (measure, (meaning, score)) in zip(panels, measures.items(), strict=True):
        estimates = [score(of_class) for of_class in per_class]
        values = [estimate.value for estimate in estimates]
        lows = [estimate.low for estimate in estimates]
        highs = [estimate.high for estimate in estimates]
        axes.barh(rows, values, height=0.72, color=class_colours(evaluation.classes))
        # A white halo keeps the line visible on dark bars.
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
    name_rows(panels[0], [f"{shortened(of.name)} ({of.support:,})" for of in per_class])
    panels[0].set_ylabel("class (images)", fontsize=SMALL, color=INK)
    return figure


def _f1_title(evaluation: "Evaluation") -> str:
    per_class, macro = evaluation.per_class, evaluation.macro_f1
    worst = min(per_class, key=lambda of_class: of_class.f1.value)
    best = max(per_class, key=lambda of_class: of_class.f1.value)
    return (
        f"Macro F1 {macro.value:.3f} ({macro.low:.3f} to {macro.high:.3f}): "
        f"from {worst.f1.value:.2f} ({shortened(worst.name)}) to {best.f1.value:.2f} "
        f"({shortened(best.name)}); lines are 95\u00a0% intervals"
    )


def roc_curves(evaluation: "Evaluation") -> Figure:
    """Return the ROC curve of each class against the rest; without one it is in the legend only."""
    per_class = evaluation.per_class
    curves = {of_class.name: of_class.roc for of_class in per_class if of_class.roc is not None}
    title = "No ROC curves: each needs images of its class and of others"
    if curves:
        worst = min(curves, key=lambda name: curves[name].auc)
        best = max(curves, key=lambda name: curves[name].auc)
        title = f"Macro AUC {evaluation.macro_auc:.3f}"
        if len(curves) > 2:  # two classes share one curve, seen from either side
            title += (
                f": lowest for {shortened(worst)} ({curves[worst].auc:.3f}), "
                f"highest for {shortened(best)} ({curves[best].auc:.3f})"
            )
    columns = max(1, int(ROC_WIDTH / (1.2 + names_width(evaluation.classes))))
    rows = math.ceil(len(per_class) / columns)
    figure = new_figure(ROC_WIDTH, ROC_WIDTH + 0.3 + 0.17 * rows, title)
    (axes,) = add_panels(figure, 1)
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
            label=f"{'  –  ' if curve is None else f'{curve.auc:.3f}'}  {shortened(of_class.name)}",
        )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_anchor("NW")
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
        bbox_to_anchor=(0.0, -0.13),
        borderaxespad=0,
        borderpad=0,
        columnspacing=1.2,
        handlelength=2.6,
    )
    return figure


def reliability(evaluation: "Evaluation") -> Figure:
    """Return accuracy against confidence in bins, with the number of images of each bin below.

    After Guo et al. (2017), cited at `Evaluation.calibration_error`: every bar of a calibrated
    classifier ends at the dashed line.
    """
    bins = evaluation.reliability()
    left, width = bins["confidence_from"], bins["confidence_to"] - bins["confidence_from"]
    confidence, accuracy = float(evaluation.confidence.mean()), evaluation.accuracy.value
    gap = confidence - accuracy
    direction = "overconfident" if gap > 0 else "underconfident"
    figure = new_figure(
        5.0,
        4.2,
        f"Calibration error {percent(evaluation.calibration_error)}: mean confidence "
        f"{percent(confidence)}, accuracy {percent(accuracy)}"
        + (f" ({direction})" if abs(gap) >= 0.0005 else ""),
    )
    above, below = add_panels(figure, 1, heights=(3.2, 1.0))
    bars: dict[str, Any] = {"align": "edge", "linewidth": 0.8, "edgecolor": "white"}
    above.bar(left, bins["accuracy"], width, color=BLUE, **bars)
    above.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (2, 2)))
    above.vlines(bins["confidence"], bins["accuracy"], bins["confidence"], color="white", lw=4.5)
    above.vlines(bins["confidence"], bins["accuracy"], bins["confidence"], color=ACCENT, lw=2)
    above.set_ylim(0, 1.02)
    above.yaxis.set_major_formatter(FuncFormatter(percent_tick))
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
    below.yaxis.set_major_formatter(FuncFormatter(thousands))
    below.set_ylabel("images", fontsize=BODY, color=INK)
    below.set_xlim(0, 1)
    below.xaxis.set_major_formatter(FuncFormatter(percent_tick))
    below.set_xlabel(
        "confidence (orange: from the mean confidence of a bin to its accuracy)",
        fontsize=SMALL,
        color=INK,
    )
    return figure


def answered(evaluation: "Evaluation") -> Figure:
    """Return accuracy against the share of images that are answered, the surest first."""
    table = evaluation.answered()
    half, all_of = table.iloc[(table["share"] - 0.5).abs().argmin()], table.iloc[-1]
    figure = new_figure(
        5.0,
        3.4,
        f"Accuracy {percent(all_of['accuracy'])}; on the surest {percent(half['share'], 0)} of the "
        f"images {percent(half['accuracy'])}",
    )
    (axes,) = add_panels(figure, 1)
    axes.fill_between(
        table["share"], table["accuracy_low"], table["accuracy_high"], color=BLUE, alpha=0.18, lw=0
    )
    axes.plot(table["share"], table["accuracy"], color=BLUE, linewidth=1.8)
    axes.plot(half["share"], half["accuracy"], "o", color=ACCENT, markersize=6)
    axes.annotate(
        f"confidence {percent(half['confidence'])} or more",
        (half["share"], half["accuracy"]),
        xytext=(6, 6),
        textcoords="offset points",
        fontsize=SMALL,
        color=INK,
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(max(0, table["accuracy_low"].min() - 0.05), 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(percent_tick))
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_xlabel("images that are answered, the surest first", fontsize=BODY, color=INK)
    axes.set_ylabel("accuracy", fontsize=BODY, color=INK)
    return figure


def corruptions(table: pd.DataFrame) -> Figure:
    """Return accuracy by severity, a panel a corruption, with 95 % intervals of the change.

    `table` is that of `corruptions.measure`: a row a corruption and severity, the first one of
    the clean images, with the columns condition, corruption, severity, unit, images, accuracy,
    change, change_low and change_high.
    """
    clean = table["accuracy"].iloc[0]
    lowest = table.loc[table["accuracy"].idxmin()]
    kinds = list(dict.fromkeys(table["corruption"].iloc[1:]))
    figure = new_figure(
        1.95 * len(kinds) + 0.5,
        3.0,
        f"Accuracy {percent(clean)} on {table['images'].iloc[0]:,} clean test images, lowest "
        f"{percent(lowest['accuracy'])} ({lowest['condition']}); lines are 95\u00a0% intervals of "
        "the change",
    )
    panels = add_panels(figure, len(kinds), sharey=True)
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
    panels[0].yaxis.set_major_formatter(FuncFormatter(percent_tick))
    panels[0].set_ylabel("accuracy", fontsize=BODY, color=INK)
    return figure


def mistakes(
    images: Sequence[npt.NDArray[np.uint8]] | npt.NDArray[np.uint8],
    actual: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float] | npt.NDArray[np.float64],
) -> Figure:
    """Return a gallery of wrongly classified `images` (H, W, C) uint8, in the order given.

    `actual` and `predicted` are names of classes.
    """
    if len(images) == 0:
        return note("No mistakes: every image is classified correctly")
    span = f"{percent(max(confidence), 0)} to {percent(min(confidence), 0)}"
    return gallery(
        list(images),
        [
            [label, f"→ {prediction}", percent(probability)]
            for label, prediction, probability in zip(actual, predicted, confidence, strict=True)
        ],
        f"Most confident mistakes ({len(images)}), actual → predicted: confidence {span}",
    )
