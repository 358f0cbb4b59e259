"""Learning curves and trials."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from emotion_detection.figures import style
from emotion_detection.figures.training import learning_curves, trials
from tests.support.figures import (
    ensemble_history,
    history,
    orange_points,
    texts,
    title_of,
    trial_table,
)


def vertical_lines(axes: Axes) -> list[float]:
    points = [np.unique(np.asarray(line.get_xdata(), dtype=float)) for line in axes.lines]
    return [float(x[0]) for x in points if len(x) == 1]


def test_learning_curves_mark_the_best_epoch() -> None:
    figure = learning_curves(history(12, best=8))
    assert title_of(figure) == "Best epoch 8 of 12: validation loss 1.000, accuracy 60.0 %"
    for axes, value in zip(figure.axes, (1.0, 0.6), strict=True):
        (marker,) = orange_points(axes)
        assert (marker.get_xdata(), marker.get_ydata()) == ([8], [pytest.approx(value)])
        assert {"train", "validation"} <= set(texts(axes))
    assert "epoch 8: 60.0 %" in texts(figure.axes[1])


def test_learning_curves_mark_where_the_rate_falls_but_not_a_smooth_schedule() -> None:
    stepwise = history()
    loss = learning_curves(stepwise).axes[0]
    assert 6 in vertical_lines(loss)
    assert "0.001 to 0.0005" in loss.get_xlabel()
    smooth = stepwise.assign(lr=np.linspace(1e-3, 1e-5, len(stepwise)))
    loss = learning_curves(smooth).axes[0]
    assert set(vertical_lines(loss)) == {8}
    assert "schedule" in loss.get_xlabel()
    without = learning_curves(stepwise.drop(columns="lr")).axes[0]
    assert without.get_xlabel() == "epoch"


def test_learning_curves_of_an_ensemble_have_a_line_per_network() -> None:
    table = ensemble_history(3)
    figure = learning_curves(table)
    assert title_of(figure) == (
        "3 networks, best epoch 8 to 10 of 12: validation loss 1.000, accuracy 60.0 % to 62.0 %"
    )
    alone = learning_curves(table[table["network"] == 1])
    assert title_of(alone) == title_of(learning_curves(history(12, best=8)))
    for axes, of_one, measure in zip(figure.axes, alone.axes, ("loss", "accuracy"), strict=True):
        assert 8 in vertical_lines(of_one)
        assert vertical_lines(axes) == [6, 8, 9, 10]  # where the rate falls, and the best epochs
        points = [(line.get_xdata(), line.get_ydata()) for line in orange_points(axes)]
        best = table[table["epoch"] == table["network"] + 7]
        assert points == [
            ([row.epoch], [getattr(row, f"val_{measure}")]) for row in best.itertuples()
        ]
        curves = [line for line in axes.lines if np.size(line.get_xdata()) == 12]
        for lines, column, colour in (
            (curves[:3], measure, style.GREY),
            (curves[3:], f"val_{measure}", style.BLUE),
        ):
            for line, (_, each) in zip(lines, table.groupby("network"), strict=True):
                np.testing.assert_array_equal(line.get_ydata(), each[column])
                assert line.get_color() == colour
                assert (line.get_alpha() or 1) < 1
        assert [text for text in texts(axes) if text in ("train", "validation")] != []


def test_learning_curves_of_networks_that_ended_apart() -> None:
    table = ensemble_history(2)
    table = table[(table["network"] == 1) | (table["epoch"] <= 10)]
    lower = table["network"] == 2
    table.loc[lower, "lr"] = np.where(table.loc[lower, "epoch"] < 3, 1e-3, 2.5e-4)
    axes = learning_curves(table).axes[0]
    assert vertical_lines(axes) == [8, 9]  # the rate falls at other epochs: no line would be true
    assert "learning rate lowered, 0.001 to 0.00025" in axes.get_xlabel()
    table.loc[lower, "val_accuracy"] = np.nan
    assert title_of(learning_curves(table)).startswith("2 networks, best epoch 8 of 12")


def test_learning_curves_of_a_training_that_diverged(tmp_path: Path) -> None:
    diverged = history(4, best=2)
    diverged.loc[2:, ["loss", "val_loss"]] = np.nan
    figure = learning_curves(diverged)
    assert title_of(figure).startswith("Best epoch 2 of 4")
    style.save(figure, tmp_path / "some.png")
    diverged[["loss", "val_loss", "val_accuracy"]] = np.nan
    figure = learning_curves(diverged)
    assert title_of(figure) == "4 epochs, none with a validation accuracy"
    style.save(figure, tmp_path / "none.png")


def test_a_single_epoch_or_trial_has_its_tick_and_no_other() -> None:
    for figure in (learning_curves(history(1)), trials(trial_table().head(1))):
        axes = figure.axes[0]
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_learning_curves_need_their_columns() -> None:
    with pytest.raises(ValueError, match="history lacks val_loss"):
        learning_curves(history().drop(columns="val_loss"))
    with pytest.raises(ValueError, match="history lacks epochs"):
        learning_curves(history().head(0))


def test_trials_show_the_best_the_early_and_the_failed() -> None:
    figure = trials(trial_table())
    assert title_of(figure) == (
        "Best of 5 trials: 03, 61.0 % with 0.56 GFLOP per image; 1 did not complete"
    )
    by_order, by_cost = figure.axes
    best_so_far, scores, early, own, failed = by_order.lines[:5]
    np.testing.assert_array_equal(best_so_far.get_ydata(), [0.50, 0.50, 0.50, 0.61, 0.61])
    np.testing.assert_array_equal(scores.get_xdata(), [1, 4, 5])
    np.testing.assert_array_equal(early.get_xdata(), [3])
    assert early.get_markerfacecolor() == "none"
    np.testing.assert_array_equal(own.get_ydata(), [0.50, 0.50])
    assert failed.get_marker() == "x"
    np.testing.assert_array_equal(failed.get_xdata(), [2])
    assert by_cost.get_xscale() == "log"
    whole, early, front = by_cost.lines[:3]
    np.testing.assert_array_equal(whole.get_xdata(), [0.04, 0.56, 0.9])
    np.testing.assert_array_equal(early.get_xdata(), [2.5])
    np.testing.assert_array_equal(front.get_xdata(), [0.04, 0.56])
    for axes, x in ((by_order, 4), (by_cost, 0.56)):
        (marker,) = orange_points(axes)
        assert (marker.get_xdata(), marker.get_ydata()) == ([x], [0.61])


@pytest.mark.parametrize("gflops", [[0.2] * 5, [0.52] * 4 + [0.54], [3e-3] * 4 + [9.0]])
def test_trials_of_any_cost_have_a_tick_to_read_it_by(gflops: list[float]) -> None:
    axes = trials(trial_table().assign(gflops=gflops)).axes[1]
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high]


def test_trials_that_all_failed() -> None:
    figure = trials(trial_table().assign(status="FAILED"))
    assert title_of(figure) == "Trials: 5, and none completed"
    with pytest.raises(ValueError, match="trials lack status"):
        trials(trial_table().drop(columns="status"))
    with pytest.raises(ValueError, match="trials lack rows"):
        trials(trial_table().head(0))
