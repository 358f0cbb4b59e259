"""The figures of a dataset."""

import numpy as np
import pytest

from emotion_detection.figures.data import class_balance, duplicates_grid, sample_grid
from emotion_detection.figures.evaluation import mistakes
from tests.support.figures import EMOTIONS, TEST, TRAIN, bars, noise, texts, title_of


def test_class_balance_draws_counts_and_shares() -> None:
    figure = class_balance({"train": TRAIN, "test": TEST})
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
    assert title_of(class_balance(counts)) == title


def test_class_balance_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one split and one class"):
        class_balance({})


def test_sample_grid_puts_each_class_in_its_row() -> None:
    images, labels = noise(8), np.array([0, 0, 1, 0, 1, 0, 3, 3])
    figure = sample_grid(images, labels, ("a", "b", "c", "d"), 3)
    (axes,) = figure.axes
    rows = [round(image.get_extent()[3]) for image in axes.images]
    assert rows == [0, 0, 0, 1, 1, 3, 3]
    np.testing.assert_array_equal(axes.images[3].get_array(), images[2, :, :, 0])
    assert texts(axes) == ["a", "b", "no images", "c", "d"]
    assert title_of(figure) == "Up to 3 samples of each of 4 classes (48×48, grey)"


def test_images_that_are_not_square_keep_their_proportions() -> None:
    wide = np.zeros((2, 24, 36, 3), np.uint8)
    for figure in (
        sample_grid(wide, np.array([0, 1]), ("a", "b"), 1),
        mistakes(wide, ["a", "b"], ["b", "a"], [0.9, 0.8]),
    ):
        for image in figure.axes[0].images:
            left, right, bottom, top = image.get_extent()
            assert (right - left, bottom - top) == pytest.approx((1, 24 / 36))


def test_sample_grid_draws_colour() -> None:
    figure = sample_grid(noise(4, channels=3), np.array([0, 0, 1, 1]), ("a", "b"), 2)
    shown = figure.axes[0].images[0].get_array()
    assert shown is not None
    assert shown.shape == (48, 48, 3)
    assert title_of(figure) == "2 samples of each of 2 classes (48×48, colour)"


def test_duplicates_grid_counts_what_it_leaves_out() -> None:
    conflicts = [(image, ["angry", "sad"]) for image in noise(30)]
    figure = duplicates_grid(conflicts, limit=10)
    assert len(figure.axes[0].images) == 10
    assert texts(figure.axes[0])[:2] == ["angry", "sad"]
    assert title_of(figure) == "30 images occur under more than one class; the first 10"
    assert title_of(duplicates_grid(conflicts[:1])) == ("1 image occurs under more than one class")
    assert title_of(duplicates_grid([])) == "No image occurs under more than one class"
