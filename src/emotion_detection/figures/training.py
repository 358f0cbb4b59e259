"""Figures of a training and of a search: learning curves, trials."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from emotion_detection.figures.style import (
    ACCENT,
    BLUE,
    BODY,
    FAINT,
    GREY,
    INK,
    SMALL,
    add_panels,
    label_line_ends,
    new_figure,
    note,
    percent,
    percent_tick,
    whole_numbers,
)


def learning_curves(history: pd.DataFrame) -> Figure:
    """Return loss and accuracy by epoch, with the epoch of the highest validation accuracy marked.

    `history` has a row an epoch and the columns epoch, loss, accuracy, val_loss, val_accuracy and
    optionally lr. That of several networks has the column network too, from 1: each then has
    fainter lines of its own.

    Raises:
        ValueError: for a missing column or no rows.

    """
    missing = {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"} - set(history.columns)
    if missing or history.empty:
        raise ValueError(f"history lacks {', '.join(sorted(missing)) or 'epochs'}")
    networks = [history]
    if "network" in history.columns:
        networks = [each for _, each in history.groupby("network")]
    best = [
        each.iloc[int(np.nanargmax(each["val_accuracy"]))]
        for each in networks
        if each["val_accuracy"].notna().any()
    ]
    epochs = history["epoch"]
    figure = new_figure(9.2, 3.7, _best_title(epochs.max(), len(networks), best))
    lowered, remark = _learning_rate(networks)
    for axes, measure in zip(add_panels(figure, 2), ("loss", "accuracy"), strict=True):
        for epoch in lowered:
            axes.axvline(epoch, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
        ends = _draw_curves(axes, measure, networks)
        if len(networks) == 1 and best:
            _mark_epoch(axes, measure, best[0])
        for epoch in best:
            size = 6 if len(networks) == 1 else 4.5
            point = (epoch["epoch"], epoch[f"val_{measure}"])
            axes.plot(*point, "o", color=ACCENT, markersize=size, zorder=3)
        if measure == "accuracy":
            axes.yaxis.set_major_formatter(FuncFormatter(percent_tick))
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        whole_numbers(axes, epochs.min(), epochs.max())
        axes.set_ylabel(measure, fontsize=BODY, color=INK)
        axes.set_xlabel(f"epoch{remark}", fontsize=BODY, color=INK)
        label_line_ends(axes, epochs.max(), ends)
    return figure


def _best_title(epochs: int, networks: int, best: Sequence[pd.Series]) -> str:
    if not best:
        several = f"{networks} networks: " if networks > 1 else ""
        return f"{several}{epochs} epochs, none with a validation accuracy"
    return (
        f"{f'{networks} networks, best' if networks > 1 else 'Best'} epoch "
        f"{_span(best, 'epoch', '{:.0f}'.format)} of {epochs}: validation loss "
        f"{_span(best, 'val_loss', '{:.3f}'.format)}, "
        f"accuracy {_span(best, 'val_accuracy', percent)}"
    )


def _span(best: Sequence[pd.Series], column: str, number: Callable[[float], str]) -> str:
    values = [epoch[column] for epoch in best]
    ends = dict.fromkeys(number(value) for value in (min(values), max(values)))
    return " to ".join(ends)


def _draw_curves(
    axes: Axes, measure: str, networks: Sequence[pd.DataFrame]
) -> list[tuple[str, float, str]]:
    """Draw the lines of all networks, and return name, mean last value and colour of each kind."""
    alone = len(networks) == 1
    ends = []
    for name, column, colour in (("train", measure, GREY), ("validation", f"val_{measure}", BLUE)):
        for each in networks:
            axes.plot(
                each["epoch"],
                each[column],
                color=colour,
                linewidth=1.8 if alone else 1.1,
                alpha=1.0 if alone else 0.6,
                # A line through a single point cannot be seen.
                marker="o" if len(each) == 1 else "",
            )
        last = pd.Series([each[column].iloc[-1] for each in networks])
        ends.append((name, float(last.mean()), colour))
    return ends


def _mark_epoch(axes: Axes, measure: str, best: pd.Series) -> None:
    number = percent if measure == "accuracy" else "{:.3f}".format
    axes.axvline(best["epoch"], color=ACCENT, linewidth=1.0, zorder=1)
    axes.annotate(
        f"epoch {best['epoch']:.0f}: {number(best[f'val_{measure}'])}",
        (best["epoch"], 1.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=SMALL,
        color=INK,
    )


def _learning_rate(networks: Sequence[pd.DataFrame]) -> tuple[list[float], str]:
    """Return the epochs at which a stepwise learning rate fell, and a remark for the axis."""
    if any("lr" not in each.columns for each in networks):
        return [], ""
    rates = [each["lr"].to_numpy(dtype=float) for each in networks]
    if all(len(set(each)) < 2 for each in rates):
        return [], ""
    ends = f"{rates[0][0]:.3g} to {min(each[-1] for each in rates):.3g}"
    # A rate that moves at most epochs is a smooth schedule: a line at each would hide the curves.
    if any(np.count_nonzero(np.diff(rate)) > len(rate) / 2 for rate in rates):
        return [], f"  (learning rate on a schedule, {ends})"
    lowered = [
        list(each["epoch"].to_numpy()[1:][np.diff(rate) < 0])
        for each, rate in zip(networks, rates, strict=True)
    ]
    if any(each != lowered[0] for each in lowered):
        return [], f"  (learning rate lowered, {ends})"
    return lowered[0], f"  (dotted: learning rate lowered, {ends})"


def trials(table: pd.DataFrame) -> Figure:
    """Return the score of each trial of a search, in order and against the cost of its network.

    `table` has a row a trial and the columns trial, status, end, val_accuracy and gflops. The first
    has the settings of params.yaml. A trial that did not complete, or ended early, is marked as
    such. The best networks for their cost are joined by a line, the Pareto front.

    Raises:
        ValueError: for a missing column or no rows.

    """
    missing = {"trial", "status", "end", "val_accuracy", "gflops"} - set(table.columns)
    if missing or table.empty:
        raise ValueError(f"trials lack {', '.join(sorted(missing)) or 'rows'}")
    score = table["val_accuracy"].to_numpy(dtype=float)
    gflops = table["gflops"].to_numpy(dtype=float)
    done = (table["status"].str.upper() == "COMPLETED").to_numpy() & np.isfinite(score)
    whole = done & (table["end"] == "complete").to_numpy()
    if not whole.any():
        return note(f"Trials: {len(table)}, and none completed")

    best = int(np.flatnonzero(whole)[score[whole].argmax()])
    noun = "trial" if len(table) == 1 else "trials"
    title = f"Best of {len(table)} {noun}: {table['trial'].iloc[best]}, {percent(score[best])}"
    title += f" with {gflops[best]:.3g} GFLOP per image"
    if not done.all():
        title += f"; {np.count_nonzero(~done)} did not complete"
    figure = new_figure(10.0, 3.7, title)
    by_order, by_cost = add_panels(figure, 2, sharey=True)
    _draw_trials_in_order(by_order, score, done, whole)
    _draw_trials_by_cost(by_cost, score, gflops, done, whole)
    for axes, x in ((by_order, best + 1), (by_cost, gflops[best])):
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
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


def _draw_points(
    axes: Axes,
    x: npt.NDArray[np.float64],
    score: npt.NDArray[np.float64],
    done: npt.NDArray[np.bool_],
    whole: npt.NDArray[np.bool_],
) -> None:
    axes.plot(x[whole], score[whole], "o", color=BLUE, markersize=5.5)
    early = done & ~whole
    if early.any():
        axes.plot(x[early], score[early], "o", color=BLUE, markersize=5.5, markerfacecolor="none")


def _draw_trials_in_order(
    axes: Axes,
    score: npt.NDArray[np.float64],
    done: npt.NDArray[np.bool_],
    whole: npt.NDArray[np.bool_],
) -> None:
    order = np.arange(1, len(score) + 1).astype(np.float64)
    so_far = np.maximum.accumulate(np.where(whole, score, -np.inf))
    known = np.isfinite(so_far)
    axes.step(order[known], so_far[known], where="post", color=GREY, linewidth=1.2)
    _draw_points(axes, order, score, done, whole)
    legend = "line: best so far"
    if whole[0]:
        axes.axhline(score[0], color=GREY, linewidth=1.0, linestyle=(0, (4, 3)), zorder=0)
        legend += "; dashed: params.yaml"
    if (done & ~whole).any():
        legend += "; hollow: ended early"
    if not done.all():
        legend += "; ×: did not complete"
        failed, just_above_axis = order[~done], np.full(np.count_nonzero(~done), 0.03)
        in_panel = axes.get_xaxis_transform()
        axes.plot(failed, just_above_axis, "x", color=INK, markersize=6, transform=in_panel)
    whole_numbers(axes, 1, len(score))
    axes.yaxis.set_major_formatter(FuncFormatter(percent_tick))
    axes.set_xlabel(f"trials, in order\n({legend})", fontsize=BODY, color=INK)
    axes.set_ylabel("validation accuracy", fontsize=BODY, color=INK)


def _draw_trials_by_cost(
    axes: Axes,
    score: npt.NDArray[np.float64],
    gflops: npt.NDArray[np.float64],
    done: npt.NDArray[np.bool_],
    whole: npt.NDArray[np.bool_],
) -> None:
    _draw_points(axes, gflops, score, done, whole)
    cost, of_cost = gflops[whole], score[whole]
    order = np.lexsort((-of_cost, cost))
    front = [n for k, n in enumerate(order) if of_cost[n] > max(of_cost[order[:k]], default=-1.0)]
    axes.step(cost[front], of_cost[front], where="post", color=GREY, linewidth=1.2, zorder=0)
    axes.set_xlabel(
        "GFLOP per image (log scale)\n(line: best for their cost)", fontsize=BODY, color=INK
    )
    low, high = gflops[done].min(), gflops[done].max()
    # From one tick of 1, 2, 5, 10... to the next is at most a factor of 2.5, so that an axis
    # this wide always has one.
    margin = max(1.15, math.sqrt(2.5 * low / high))
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 50 else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
