"""The figures of an evaluation."""

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from emotion_detection.evaluation.corruptions import CORRUPTIONS, NOT_MEASURED
from emotion_detection.evaluation.metrics import Evaluation, evaluate
from emotion_detection.figures import style
from emotion_detection.figures.evaluation import (
    answered,
    confusion_matrix,
    corruptions,
    evaluation_figures,
    mistakes,
    per_class_bars,
    reliability,
    roc_curves,
)
from tests.support.figures import (
    CLASSES,
    EMOTIONS,
    MATRIX,
    bars,
    corruptions_table,
    evaluation_of,
    noise,
    texts,
    title_of,
)


def absent_class() -> Evaluation:
    return evaluate([0, 1], np.array([[0.9, 0.1, 0], [0.2, 0.8, 0]]), ("a", "b", "c"), seed=0)


def test_confusion_matrix_shows_counts() -> None:
    figure = confusion_matrix(MATRIX, ("a", "b", "c"), normalize=False)
    (axes,) = figure.axes
    assert texts(axes) == ["1,200", "300", "0", "50", "50", "100", "0", "0", "0"]
    positions = [text.get_position() for text in axes.texts]
    assert positions[1] == (1, 0)  # the second predicted class of the first actual one
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "actual (images)")
    assert title_of(figure) == (
        "Accuracy 73.5 % (1,250 of 1,700 images); most frequent mistake: a predicted as b (300)"
    )


def test_confusion_matrix_shows_shares_of_rows() -> None:
    figure = confusion_matrix(MATRIX, ("a", "b", "c"), normalize=True)
    assert texts(figure.axes[0]) == ["80", "20", "0", "25", "25", "50", "–", "–", "–"]
    assert title_of(figure) == "Recall is highest for a (80 %) and lowest for b (25 %)"
    shades = np.asarray(figure.axes[0].images[0].get_array())
    assert shades[:, :, 3].tolist() == [[133, 33, 0], [41, 41, 83], [0, 0, 0]]


@pytest.mark.parametrize("normalize", [True, False])
def test_confusion_matrix_of_no_images_or_no_mistakes(normalize: bool) -> None:
    for matrix in (np.zeros((2, 2), dtype=int), np.diag([3, 4])):
        figure = confusion_matrix(matrix, ("a", "b"), normalize=normalize)
        assert len(figure.axes[0].texts) == 4


@pytest.mark.parametrize("page", ["white", style.DARK["#FFFFFF"]])
def test_text_on_every_cell_can_be_read_on_a_white_and_on_a_dark_page(page: str) -> None:
    matrix = np.diag(np.arange(1, 9) * 50)
    (axes,) = confusion_matrix(matrix, [f"c{k}" for k in range(8)], normalize=False).axes
    shades = np.asarray(axes.images[0].get_array()).reshape(-1, 4) / 255
    behind = shades[:, 3:] * shades[:, :3] + (1 - shades[:, 3:]) * np.array(to_rgb(page))
    for text, colour in zip(axes.texts, behind, strict=True):
        ink = str(text.get_color())
        assert contrast(ink if page == "white" else style.DARK[ink], colour) >= 4.5


def contrast(one: Any, other: Any) -> float:
    """The contrast of two colours by WCAG 2."""
    channels = np.array([to_rgb(one), to_rgb(other)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    darker, lighter = sorted(linear @ (0.2126, 0.7152, 0.0722))
    return float((lighter + 0.05) / (darker + 0.05))


def test_per_class_bars_draw_scores_and_intervals() -> None:
    evaluation = evaluation_of(EMOTIONS)
    figure = per_class_bars(evaluation)
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


def test_a_class_without_images_is_said_to_have_none() -> None:
    bars_figure = per_class_bars(absent_class())
    assert texts(bars_figure.axes[1]) == ["1.00", "1.00", "no images"]
    legend = roc_curves(absent_class()).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text().split() for text in legend.get_texts()] == [
        ["1.000", "a"],
        ["1.000", "b"],
        ["–", "c"],
    ]


def test_roc_curves_are_those_of_the_evaluation() -> None:
    evaluation = evaluation_of(EMOTIONS)
    figure = roc_curves(evaluation)
    (axes,) = figure.axes
    for line, scores in zip(axes.lines[1:], evaluation.per_class, strict=True):
        assert scores.roc is not None
        np.testing.assert_array_equal(line.get_xdata(), scores.roc.false_positive_rate)
        np.testing.assert_array_equal(line.get_ydata(), scores.roc.true_positive_rate)
        assert line.get_label() == f"{scores.roc.auc:.3f}  {scores.name}"
    assert title_of(figure).startswith(f"Macro AUC {evaluation.macro_auc:.3f}: lowest for")


def test_roc_curves_of_26_classes_differ_in_colour_or_dashes() -> None:
    (axes,) = roc_curves(evaluation_of(CLASSES[26])).axes
    looks = {(line.get_color(), str(vars(line)["_dash_pattern"])) for line in axes.lines[1:]}
    assert len(looks) == 26


def test_reliability_draws_the_bins() -> None:
    evaluation = evaluation_of(EMOTIONS)
    figure = reliability(evaluation)
    table = evaluation.reliability()
    above, below = figure.axes
    assert [bar.get_height() for bar in bars(above)] == table["accuracy"].tolist()
    assert [bar.get_height() for bar in bars(below)] == table["images"].tolist()
    assert texts(below) == [str(images) for images in table["images"]]
    assert title_of(figure) == (
        f"Calibration error {100 * evaluation.calibration_error:.1f} %: mean "
        f"confidence {100 * evaluation.confidence.mean():.1f} %, accuracy "
        f"{100 * evaluation.accuracy.value:.1f} % (underconfident)"
    )


def test_reliability_of_certainty() -> None:
    figure = reliability(evaluate([0, 1], np.eye(2), ("a", "b"), seed=0))
    assert title_of(figure) == (
        "Calibration error 0.0 %: mean confidence 100.0 %, accuracy 100.0 %"
    )
    wrong = reliability(evaluate([1, 0], np.eye(2), ("a", "b"), seed=0))
    assert title_of(wrong).endswith("accuracy 0.0 % (overconfident)")


def test_the_accuracy_is_drawn_against_the_share_that_is_answered() -> None:
    evaluation = evaluation_of(EMOTIONS)
    figure = answered(evaluation)
    table = evaluation.answered()
    (axes,) = figure.axes
    curve = axes.lines[0]
    np.testing.assert_array_equal(curve.get_xdata(), table["share"])
    np.testing.assert_array_equal(curve.get_ydata(), table["accuracy"])
    half = table.iloc[9]
    assert title_of(figure) == (
        f"Accuracy {100 * evaluation.accuracy.value:.1f} %; on the surest "
        f"{100 * half['share']:.0f} % of the images {100 * half['accuracy']:.1f} %"
    )
    assert texts(axes) == [f"confidence {100 * half['confidence']:.1f} % or more"]


def test_corruptions_have_a_panel_each_from_the_clean_images() -> None:
    table = corruptions_table()
    figure = corruptions(table)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        kind.name for kind in CORRUPTIONS
    ]
    brightness = figure.axes[0].lines[1]
    np.testing.assert_array_equal(brightness.get_xdata(), [-30, -15, 0, 15, 30])
    accuracy = np.asarray(brightness.get_ydata(), dtype=float)
    assert accuracy.tolist() == pytest.approx([0.46, 0.55, 0.64, 0.55, 0.46])
    assert title_of(figure).startswith(
        "Accuracy 64.0 % on 1,000 clean test images, lowest 19.0 % (contrast -75 %); lines are 95 %"
    )


def test_mistakes_show_label_and_prediction() -> None:
    figure = mistakes(noise(2), ["sad", "happy"], ["angry", "sad"], [0.987, 0.9])
    (axes,) = figure.axes
    assert len(axes.images) == 2
    assert texts(axes) == ["sad", "→ angry", "98.7 %", "happy", "→ sad", "90.0 %"]
    assert title_of(figure) == (
        "Most confident mistakes (2), actual → predicted: confidence 99 % to 90 %"
    )
    assert "No mistakes" in title_of(mistakes([], [], [], []))


def test_all_figures_of_an_evaluation_are_there_by_name() -> None:
    evaluation = evaluation_of(EMOTIONS)
    images = noise(len(evaluation.labels) + 9)
    rows = np.arange(len(evaluation.labels)) + 9
    figures = evaluation_figures(evaluation, corruptions_table(), images, rows)
    assert list(figures) == [
        "confusion_counts",
        "confusion_normalized",
        "per_class",
        "reliability",
        "answered",
        "roc",
        "mistakes",
        "corruptions",
    ]
    (axes,) = figures["mistakes"].axes
    wrong = evaluation.most_confident_mistakes(24)
    assert len(axes.images) == 24
    np.testing.assert_array_equal(axes.images[5].get_array(), images[rows[wrong[5]], :, :, 0])
    assert texts(axes)[15:18] == [
        EMOTIONS[evaluation.labels[wrong[5]]],
        f"→ {EMOTIONS[evaluation.predicted[wrong[5]]]}",
        f"{100 * evaluation.confidence[wrong[5]]:.1f} %",
    ]
    assert "corruptions" not in evaluation_figures(evaluation, NOT_MEASURED, images, rows)
