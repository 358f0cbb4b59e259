import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from emotion_detection import figures
from emotion_detection.evaluation.metrics import Evaluation, corruptions, evaluate

EMOTIONS = ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")
CLASSES = {
    2: ("no", "yes"),
    7: EMOTIONS,
    10: tuple(f"a rather long name of class {k}" for k in range(10)),
    26: tuple("abcdefghijklmnopqrstuvwxyz"[k] + "-class" * (1 + k % 5) for k in range(26)),
}
TRAIN = dict(zip(EMOTIONS, (3995, 436, 4097, 7215, 4965, 4830, 3171), strict=True))
TEST = dict(zip(EMOTIONS, (958, 111, 1024, 1774, 1233, 1247, 831), strict=True))


def evaluation_of(classes: tuple[str, ...], images: int = 900) -> Evaluation:
    rng = np.random.default_rng(len(classes))
    labels = rng.integers(0, len(classes), size=images)
    logits = rng.normal(size=(images, len(classes)))
    logits[np.arange(images), labels] += 1.5
    exponentials = np.exp(logits)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return evaluate(labels, probabilities, classes, bootstrap=200, seed=0)


def noise(images: int, channels: int = 1) -> np.ndarray:
    shape = (images, 48, 48, channels)
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


def history(epochs: int = 12, *, best: int = 8) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "loss": 2.0 / epoch,
            "accuracy": 1 - 0.8 / epoch,
            "val_loss": 1 + 0.05 * np.abs(epoch - best),
            "val_accuracy": 0.6 - 0.01 * np.abs(epoch - best),
            "lr": np.where(epoch < 6, 1e-3, 5e-4),
        }
    )


def trial_table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "trial": ["00", "01", "02", "03", "04"],
            "status": ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED", "COMPLETED"],
            "val_accuracy": [0.50, np.nan, 0.48, 0.61, 0.55],
            "parameters": [40_000, 90_000, 2_500_000, 557_799, 900_000],
            "seconds": [10.0, 1.0, 80.0, 40.0, 50.0],
        }
    )


def robustness_table() -> pd.DataFrame:
    rows = []
    for kind in (corruptions.AS_THEY_ARE, *corruptions.CORRUPTIONS):
        for by in kind.severities:
            lost = 0.006 * abs(by)
            rows.append(
                {
                    "condition": kind.condition(by),
                    "corruption": kind.name,
                    "severity": by,
                    "unit": kind.unit,
                    "images": 1000,
                    "accuracy": 0.64 - lost,
                    "change": -lost,
                    "change_low": -1.1 * lost,
                    "change_high": -0.9 * lost,
                }
            )
    return pd.DataFrame(rows)


def title_of(figure: Figure) -> str:
    """The title as a person reads it, on one line and with plain spaces."""
    return figure.get_suptitle().replace("\n", " ").replace("\u00a0", " ")


def texts(axes: Axes) -> list[str]:
    return [text.get_text().replace("\u00a0", " ") for text in axes.texts]


def bars(axes: Axes) -> list[Any]:
    return [bar for group in axes.containers if isinstance(group, BarContainer) for bar in group]


def orange_points(axes: Axes) -> list[Line2D]:
    return [
        line
        for line in axes.lines
        if line.get_marker() == "o" and line.get_color() == figures.ACCENT
    ]


def every_figure(classes: tuple[str, ...]) -> Iterator[tuple[str, Figure]]:
    evaluation = evaluation_of(classes)
    counts = {name: 37 * (k + 1) ** 2 for k, name in enumerate(classes)}
    wrong = evaluation.most_confident_mistakes(11)
    names = np.array(classes)
    labels = np.arange(60) % len(classes)
    yield "class_balance", figures.class_balance({"train": counts, "test": counts})
    yield "sample_grid", figures.sample_grid(noise(60), labels, classes, 3)
    yield "confusion", figures.confusion_matrix(evaluation.confusion * 9, classes, normalize=False)
    yield "per_class_bars", figures.per_class_bars(evaluation)
    yield "roc_curves", figures.roc_curves(evaluation)
    yield "reliability", figures.reliability(evaluation)
    yield (
        "mistakes",
        figures.mistakes(
            noise(len(wrong)),
            names[evaluation.labels[wrong]].tolist(),
            names[evaluation.predicted[wrong]].tolist(),
            evaluation.confidence[wrong],
        ),
    )


def figures_without_classes() -> Iterator[tuple[str, Figure]]:
    yield "learning_curves", figures.learning_curves(history())
    close = history()
    close[["loss", "accuracy"]] = close[["val_loss", "val_accuracy"]] * 0.999
    yield "lines that end together", figures.learning_curves(close)
    yield "one epoch", figures.learning_curves(history(1, best=1))
    yield "robustness", figures.robustness(robustness_table())
    yield "trials", figures.trials(trial_table())
    yield "one trial", figures.trials(trial_table().head(1))
    yield "conflicts", figures.duplicates_grid([(image, CLASSES[10][:2]) for image in noise(9)])
    yield "no conflicts", figures.duplicates_grid([])
    yield "no mistakes", figures.mistakes([], [], [], [])


def drawn_texts(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """What reaches the page: findobj would also give the tick labels outside the axes."""
    drawn: list[Text] = []
    draw = Text.draw

    def record(self: Text, *args: Any, **kwargs: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            drawn.append(self)
        draw(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Text, "draw", record)
        FigureCanvasAgg(figure).draw()
    return drawn


def assert_legible(name: str, figure: Figure, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = drawn_texts(figure, monkeypatch)
    boxes = np.array([text.get_window_extent().extents for text in drawn])
    width, height = figure.canvas.get_width_height()
    outside = (boxes < -1).any(axis=1) | (boxes[:, 2] > width + 1) | (boxes[:, 3] > height + 1)
    assert [drawn[i].get_text() for i in np.flatnonzero(outside)] == [], name

    # The boxes of slanted texts overlap where the texts do not.
    straight = np.array([float(text.get_rotation()) % 90 == 0 for text in drawn])
    left, bottom, right, top = (boxes[straight] + [1, 1, -1, -1]).T
    touching = (
        (left[:, None] < right) & (left < right[:, None])
        & (bottom[:, None] < top) & (bottom < top[:, None])
    )  # fmt: skip
    kept = [text.get_text() for text in np.array(drawn, dtype=object)[straight]]
    pairs = [(kept[i], kept[j]) for i, j in zip(*np.nonzero(np.triu(touching, 1)), strict=True)]
    assert pairs == [], name
    assert min(float(text.get_fontsize()) for text in drawn) >= 5.5, name


@pytest.mark.parametrize("number", CLASSES)
def test_no_text_overlaps_or_leaves_the_page(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, figure in every_figure(CLASSES[number]):
        assert_legible(name, figure, monkeypatch)


def test_no_text_overlaps_in_the_figures_without_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, figure in figures_without_classes():
        assert_legible(name, figure, monkeypatch)


def test_class_balance_draws_counts_and_shares() -> None:
    figure = figures.class_balance({"train": TRAIN, "test": TEST})
    assert title_of(figure) == (
        "Rarest class: disgusted with 436 of 28,709 train images (1.5 %); "
        "happy has 16.5 times as many"
    )
    for axes, counts in zip(figure.axes, (TRAIN, TEST), strict=True):
        assert [bar.get_width() for bar in bars(axes)] == list(counts.values())
        longest = max(counts.values()) / sum(counts.values())
        assert axes.get_xlim()[1] / sum(counts.values()) >= longest
    assert "7,215 (25.1 %)" in texts(figure.axes[0])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(EMOTIONS)
    assert figure.axes[0].yaxis_inverted()


@pytest.mark.parametrize(
    ("counts", "title"),
    [
        ({"train": {"a": 5, "b": 5}}, "All classes are equal: 5 train images each"),
        ({"train": {"a": 5, "b": 0}}, "Rarest class: b with 0 of 5 train images"),
        ({"train": {"a": 5}, "test": {"b": 1}}, "Rarest class: b with 0 of 5 train images"),
    ],
)
def test_class_balance_of_unusual_counts(counts: dict[str, dict[str, int]], title: str) -> None:
    assert title_of(figures.class_balance(counts)) == title


def test_class_balance_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one split and one class"):
        figures.class_balance({})


def test_a_class_has_the_same_colour_in_every_figure() -> None:
    evaluation = evaluation_of(EMOTIONS)
    expected = [figures.class_colour(k).lower() for k in range(7)]
    assert len(set(expected)) == 7
    balance = figures.class_balance({"train": TRAIN}).axes[0]
    scores = figures.per_class_bars(evaluation).axes[0]
    curves = figures.roc_curves(evaluation).axes[0].lines[1:]
    samples = figures.sample_grid(noise(7), np.arange(7), EMOTIONS, 1).axes[0]
    assert [to_hex(bar.get_facecolor()) for bar in bars(balance)] == expected
    assert [to_hex(bar.get_facecolor()) for bar in bars(scores)] == expected
    assert [to_hex(str(curve.get_color())) for curve in curves] == expected
    assert [to_hex(patch.get_facecolor()) for patch in samples.patches] == expected


def test_sample_grid_puts_each_class_in_its_row() -> None:
    images, labels = noise(8), np.array([0, 0, 1, 0, 1, 0, 3, 3])
    figure = figures.sample_grid(images, labels, ("a", "b", "c", "d"), 3)
    (axes,) = figure.axes
    rows = [round(image.get_extent()[3]) for image in axes.images]
    assert rows == [0, 0, 0, 1, 1, 3, 3]
    np.testing.assert_array_equal(axes.images[3].get_array(), images[2, :, :, 0])
    assert texts(axes) == ["a", "b", "no images", "c", "d"]
    assert title_of(figure) == "Up to 3 samples of each of 4 classes (48×48, grey)"


def test_images_that_are_not_square_keep_their_proportions() -> None:
    wide = np.zeros((2, 24, 36, 3), np.uint8)
    for figure in (
        figures.sample_grid(wide, np.array([0, 1]), ("a", "b"), 1),
        figures.mistakes(wide, ["a", "b"], ["b", "a"], [0.9, 0.8]),
    ):
        for image in figure.axes[0].images:
            left, right, bottom, top = image.get_extent()
            assert (right - left, bottom - top) == pytest.approx((1, 24 / 36))


def test_sample_grid_draws_colour() -> None:
    figure = figures.sample_grid(noise(4, channels=3), np.array([0, 0, 1, 1]), ("a", "b"), 2)
    shown = figure.axes[0].images[0].get_array()
    assert shown is not None
    assert shown.shape == (48, 48, 3)
    assert title_of(figure) == "2 samples of each of 2 classes (48×48, colour)"


def test_duplicates_grid_counts_what_it_leaves_out() -> None:
    conflicts = [(image, ["angry", "sad"]) for image in noise(30)]
    figure = figures.duplicates_grid(conflicts, limit=10)
    assert len(figure.axes[0].images) == 10
    assert texts(figure.axes[0])[:2] == ["angry", "sad"]
    assert title_of(figure) == "30 images occur under more than one class; the first 10"
    assert title_of(figures.duplicates_grid(conflicts[:1])) == (
        "1 image occurs under more than one class"
    )
    assert title_of(figures.duplicates_grid([])) == "No image occurs under more than one class"


def test_learning_curves_mark_the_best_epoch() -> None:
    figure = figures.learning_curves(history(12, best=8))
    assert title_of(figure) == "Best epoch 8 of 12: validation loss 1.000, accuracy 60.0 %"
    for axes, value in zip(figure.axes, (1.0, 0.6), strict=True):
        (marker,) = orange_points(axes)
        assert (marker.get_xdata(), marker.get_ydata()) == ([8], [pytest.approx(value)])
        assert {"train", "validation"} <= set(texts(axes))
    assert "epoch 8: 60.0 %" in texts(figure.axes[1])


def vertical_lines(axes: Axes) -> list[float]:
    return [float(line.get_xdata()[0]) for line in axes.lines if len(set(line.get_xdata())) == 1]  # type: ignore[arg-type, index]


def test_learning_curves_mark_where_the_rate_falls_but_not_a_smooth_schedule() -> None:
    stepwise = history()
    loss = figures.learning_curves(stepwise).axes[0]
    assert 6 in vertical_lines(loss)
    assert "0.001 to 0.0005" in loss.get_xlabel()
    smooth = stepwise.assign(lr=np.linspace(1e-3, 1e-5, len(stepwise)))
    loss = figures.learning_curves(smooth).axes[0]
    assert set(vertical_lines(loss)) == {8}
    assert "schedule" in loss.get_xlabel()
    without = figures.learning_curves(stepwise.drop(columns="lr")).axes[0]
    assert without.get_xlabel() == "epoch"


def test_learning_curves_of_a_training_that_diverged(tmp_path: Path) -> None:
    diverged = history(4, best=2)
    diverged.loc[2:, ["loss", "val_loss"]] = np.nan
    figure = figures.learning_curves(diverged)
    assert title_of(figure).startswith("Best epoch 2 of 4")
    figures.save(figure, tmp_path / "some.png")
    diverged[["loss", "val_loss", "val_accuracy"]] = np.nan
    figure = figures.learning_curves(diverged)
    assert title_of(figure) == "4 epochs, none with a validation accuracy"
    figures.save(figure, tmp_path / "none.png")


def test_a_single_epoch_or_trial_has_its_tick_and_no_other() -> None:
    for figure in (figures.learning_curves(history(1)), figures.trials(trial_table().head(1))):
        axes = figure.axes[0]
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_learning_curves_need_their_columns() -> None:
    with pytest.raises(ValueError, match="history lacks val_loss"):
        figures.learning_curves(history().drop(columns="val_loss"))
    with pytest.raises(ValueError, match="history lacks epochs"):
        figures.learning_curves(history().head(0))


MATRIX = np.array([[1200, 300, 0], [50, 50, 100], [0, 0, 0]])


def test_confusion_matrix_shows_counts() -> None:
    figure = figures.confusion_matrix(MATRIX, ("a", "b", "c"), normalize=False)
    (axes,) = figure.axes
    assert texts(axes) == ["1,200", "300", "0", "50", "50", "100", "0", "0", "0"]
    positions = [text.get_position() for text in axes.texts]
    assert positions[1] == (1, 0)  # the second predicted class of the first actual one
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "actual (images)")
    assert title_of(figure) == (
        "1,250 of 1,700 images right (73.5 %); most frequent mistake: a taken for b (300)"
    )


def test_confusion_matrix_shows_shares_of_rows() -> None:
    figure = figures.confusion_matrix(MATRIX, ("a", "b", "c"), normalize=True)
    assert texts(figure.axes[0]) == ["80", "20", "0", "25", "25", "50", "–", "–", "–"]
    assert title_of(figure) == "Recall is highest for a (80 %) and lowest for b (25 %)"
    assert figure.axes[0].images[0].get_clim() == (0, 1)


@pytest.mark.parametrize("normalize", [True, False])
def test_confusion_matrix_of_no_images_or_no_mistakes(normalize: bool) -> None:
    for matrix in (np.zeros((2, 2), dtype=int), np.diag([3, 4])):
        figure = figures.confusion_matrix(matrix, ("a", "b"), normalize=normalize)
        assert len(figure.axes[0].texts) == 4


def test_text_on_cells_contrasts() -> None:
    matrix = np.diag(np.arange(1, 9) * 50)
    (axes,) = figures.confusion_matrix(matrix, [f"c{k}" for k in range(8)], normalize=False).axes
    diagonal = [text.get_color() for text in axes.texts][::9]
    assert diagonal[0] == figures.INK
    assert diagonal[-1] == "white"
    assert diagonal == sorted(diagonal)  # changes once, from dark to white


def test_per_class_bars_draw_scores_and_intervals() -> None:
    evaluation = evaluation_of(EMOTIONS)
    figure = figures.per_class_bars(evaluation)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["precision", "recall", "F1"]
    for axes, measure in zip(figure.axes, ("precision", "recall", "f1"), strict=True):
        estimates = [getattr(scores, measure) for scores in evaluation.per_class]
        assert [bar.get_width() for bar in bars(axes)] == [estimate.value for estimate in estimates]
        whiskers: Any = axes.collections[-1]
        ends = [(segment[0, 0], segment[1, 0]) for segment in whiskers.get_segments()]
        assert ends == [(estimate.low, estimate.high) for estimate in estimates]
        assert texts(axes) == [f"{estimate.value:.2f}" for estimate in estimates]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == f"angry ({evaluation.per_class[0].support:,})"


def absent_class() -> Evaluation:
    return evaluate([0, 1], np.array([[0.9, 0.1, 0], [0.2, 0.8, 0]]), ("a", "b", "c"), seed=0)


def test_a_class_without_images_is_said_to_have_none() -> None:
    bars_figure = figures.per_class_bars(absent_class())
    assert texts(bars_figure.axes[1]) == ["1.00", "1.00", "no images"]
    legend = figures.roc_curves(absent_class()).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text().split() for text in legend.get_texts()] == [
        ["1.000", "a"],
        ["1.000", "b"],
        ["–", "c"],
    ]


def test_roc_curves_are_those_of_the_evaluation() -> None:
    evaluation = evaluation_of(EMOTIONS)
    figure = figures.roc_curves(evaluation)
    (axes,) = figure.axes
    for line, scores in zip(axes.lines[1:], evaluation.per_class, strict=True):
        assert scores.roc is not None
        np.testing.assert_array_equal(line.get_xdata(), scores.roc.false_positive_rate)
        np.testing.assert_array_equal(line.get_ydata(), scores.roc.true_positive_rate)
        assert line.get_label() == f"{scores.roc.auc:.3f}  {scores.name}"
    assert title_of(figure).startswith(f"Macro AUC {evaluation.macro_auc:.3f}: lowest for")


def test_roc_curves_of_26_classes_differ_in_colour_or_dashes() -> None:
    (axes,) = figures.roc_curves(evaluation_of(CLASSES[26])).axes
    looks = {(line.get_color(), str(line._dash_pattern)) for line in axes.lines[1:]}  # type: ignore[attr-defined]
    assert len(looks) == 26


def test_reliability_draws_the_bins() -> None:
    evaluation = evaluation_of(EMOTIONS)
    figure = figures.reliability(evaluation)
    table = evaluation.reliability()
    above, below = figure.axes
    assert [bar.get_height() for bar in bars(above)] == table["accuracy"].tolist()
    assert [bar.get_height() for bar in bars(below)] == table["images"].tolist()
    assert texts(below) == [str(images) for images in table["images"]]
    assert title_of(figure) == (
        f"Calibration error {100 * evaluation.calibration_error:.1f} %: on average "
        f"{100 * evaluation.confidence.mean():.1f} % sure and "
        f"{100 * evaluation.accuracy.value:.1f} % right, not sure enough"
    )


def test_reliability_of_certainty() -> None:
    figure = figures.reliability(evaluate([0, 1], np.eye(2), ("a", "b"), seed=0))
    assert title_of(figure) == (
        "Calibration error 0.0 %: on average 100.0 % sure and 100.0 % right"
    )
    wrong = figures.reliability(evaluate([1, 0], np.eye(2), ("a", "b"), seed=0))
    assert title_of(wrong).endswith("and 0.0 % right, too sure")


def test_robustness_has_a_panel_a_corruption_from_the_images_as_they_are() -> None:
    table = robustness_table()
    figure = figures.robustness(table)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        kind.name for kind in corruptions.CORRUPTIONS
    ]
    brightness = figure.axes[0].lines[1]
    np.testing.assert_array_equal(brightness.get_xdata(), [-30, -15, 0, 15, 30])
    accuracy = np.asarray(brightness.get_ydata(), dtype=float)
    assert accuracy.tolist() == pytest.approx([0.46, 0.55, 0.64, 0.55, 0.46])
    assert title_of(figure).startswith(
        "64.0 % of 1,000 test images right as they are, 19.0 % at worst (contrast -75 %)"
    )


def test_mistakes_say_what_was_taken_for_what() -> None:
    figure = figures.mistakes(noise(2), ["sad", "happy"], ["angry", "sad"], [0.987, 0.9])
    (axes,) = figure.axes
    assert len(axes.images) == 2
    assert texts(axes) == ["sad", "→ angry", "98.7 %", "happy", "→ sad", "90.0 %"]
    assert title_of(figure) == "Most confident mistakes (2), actual → predicted: 99 % to 90 % sure"
    assert "No mistakes" in title_of(figures.mistakes([], [], [], []))


def test_trials_show_the_best_and_the_failed() -> None:
    figure = figures.trials(trial_table())
    assert title_of(figure) == (
        "Best of 5 trials: 03, 61.0 % with 557,799 parameters; 1 did not complete"
    )
    by_order, by_size = figure.axes
    best_so_far, scores, failed = by_order.lines[:3]
    np.testing.assert_array_equal(best_so_far.get_ydata(), [0.50, 0.50, 0.50, 0.61, 0.61])
    np.testing.assert_array_equal(scores.get_xdata(), [1, 3, 4, 5])
    assert failed.get_marker() == "x"
    np.testing.assert_array_equal(failed.get_xdata(), [2])
    assert by_size.get_xscale() == "log"
    np.testing.assert_array_equal(
        by_size.lines[0].get_xdata(), [40_000, 2_500_000, 557_799, 900_000]
    )
    for axes, x in ((by_order, 4), (by_size, 557_799)):
        (marker,) = orange_points(axes)
        assert (marker.get_xdata(), marker.get_ydata()) == ([x], [0.61])


@pytest.mark.parametrize(
    "parameters", [[557_799] * 5, [520_000] * 4 + [540_000], [3e4] * 4 + [9e6]]
)
def test_trials_of_any_size_have_a_tick_to_read_it_by(parameters: list[float]) -> None:
    axes = figures.trials(trial_table().assign(parameters=parameters)).axes[1]
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high]


def test_trials_without_a_size_are_still_drawn(tmp_path: Path) -> None:
    figure = figures.trials(trial_table().assign(parameters=np.nan))
    assert title_of(figure) == "Best of 5 trials: 03, 61.0 %; 1 did not complete"
    figures.save(figure, tmp_path / "trials.png")


def test_trials_that_all_failed() -> None:
    figure = figures.trials(trial_table().assign(status="FAILED"))
    assert title_of(figure) == "Trials: 5, and none completed"
    with pytest.raises(ValueError, match="trials lack status"):
        figures.trials(trial_table().drop(columns="status"))
    with pytest.raises(ValueError, match="trials lack rows"):
        figures.trials(trial_table().head(0))


def test_save_writes_a_png_of_the_figures_size(tmp_path: Path) -> None:
    figure = figures.learning_curves(history())
    path = tmp_path / "new" / "curves.png"
    figures.save(figure, path)
    expected = tuple(np.floor(figure.get_size_inches() * figures.DPI).astype(int))
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.size == expected
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert "Software" not in image.info
    assert [entry.name for entry in path.parent.iterdir()] == ["curves.png"]


def test_save_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        figures.save(
            figures.confusion_matrix(MATRIX, EMOTIONS[:3], normalize=True), tmp_path / name
        )
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_save_leaves_the_old_file_when_drawing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figure.png"
    path.write_text("old")
    figure = figures.class_balance({"train": TRAIN})

    def half_written(partial: Path, **_: object) -> None:
        partial.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", half_written)
    with pytest.raises(OSError, match="disk full"):
        figures.save(figure, path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.png"]


def test_figures_can_be_drawn_from_several_threads(tmp_path: Path) -> None:
    def draw(number: int) -> None:
        figures.save(
            figures.confusion_matrix(MATRIX, EMOTIONS[:3], normalize=True),
            tmp_path / f"{number}.png",
        )

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert len(list(tmp_path.iterdir())) == 3


def test_names_are_text_in_any_script_that_a_font_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counts = {"train": {"$1": 3, "$10": 2, "$100": 1}}
    figures.save(figures.class_balance(counts), tmp_path / "dollars.png")
    assert caplog.text == ""
    # In no font's private corner.
    counts = {"train": {"\uf0ff9": 3, "sad": 2}}
    for _ in range(2):
        figures.save(figures.class_balance(counts), tmp_path / "boxes.png")
    assert caplog.text.count("no installed font has \uf0ff, and figures have boxes there") == 1
    assert Path(figures.font_file("sad")).name == "DejaVuSans.ttf"
    # Computer Modern has no accents, and matplotlib brings it along, as it does DejaVu.
    figures._families.cache_clear()
    monkeypatch.setattr(figures, "FONT", "cmr10")
    assert Path(figures.font_file("sad")).name == "cmr10.ttf"
    assert "DejaVu" in Path(figures.font_file("très triste")).name
    figure = figures.class_balance({"train": {"très triste": 3, "sad": 2}})
    figures.save(figure, tmp_path / "accents.png")
    assert figure.axes[0].get_yticklabels()[0].get_fontfamily()[0] == "cmr10"
    assert "DejaVu" in figure.axes[0].get_yticklabels()[0].get_fontfamily()[1]
    figures._families.cache_clear()


def test_hundreds_of_classes_give_figures_that_fit_into_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = tuple(f"bird {k}" for k in range(200))
    matrix = figures.confusion_matrix(np.eye(200, dtype=np.int64), classes, normalize=True)
    assert texts(matrix.axes[0]) == []
    assert [tick.get_text() for tick in matrix.axes[0].get_yticklabels()][:2] == [
        "bird 0",
        "bird 1",
    ]
    figures.save(matrix, tmp_path / "matrix.png")
    monkeypatch.setattr(figures, "LONGEST_SIDE", 1000)
    bars = figures.class_balance({"train": dict.fromkeys(classes[:40], 5)})
    figures.save(bars, tmp_path / "bars.png")
    sizes = [Image.open(tmp_path / f"{name}.png").size for name in ("matrix", "bars")]
    assert max(sizes[0]) < 4000
    assert max(sizes[1]) == 1000
