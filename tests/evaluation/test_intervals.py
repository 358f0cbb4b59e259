"""The intervals of scores."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn import metrics as sk

from emotion_detection.evaluation import intervals
from emotion_detection.evaluation.intervals import f1, macro_f1, wilson


def table(images: int, classes: int, recall: float, seed: int = 0) -> np.ndarray:
    """The confusion matrix of `images` images a class, their mistakes spread evenly."""
    rng = np.random.default_rng(seed)
    shares = np.full((classes, classes), (1 - recall) / (classes - 1))
    np.fill_diagonal(shares, recall)
    return np.stack([rng.multinomial(images, row) for row in shares])


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine
    # 17, 1998, table I, method 3.
    for hits, images, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = wilson(hits, images)
        assert found.value == hits / images
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_a_share_of_few_images_is_uncertain_and_a_perfect_one_too() -> None:
    assert wilson(6, 6).high == 1
    assert wilson(6, 6).low == pytest.approx(0.610, abs=0.001)
    assert wilson(1774, 1774).low == pytest.approx(0.9978, abs=0.0001)
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1)
    perfect = macro_f1(np.diag([6] * 7), 1000, seed=0)
    assert perfect.value == perfect.high == 1
    assert 0.8 < perfect.low < 0.97
    assert f1(6, 6, 6).low == pytest.approx(2 * 0.610 / 1.610, abs=0.001)


def test_a_shares_interval_covers_the_true_share_at_any_size() -> None:
    shares = np.arange(1, 100) / 100
    for images in (6, 50, 1000):
        hits = np.arange(images + 1)
        found = [wilson(int(k), images) for k in hits]
        lows, highs = np.array([[each.low, each.high] for each in found]).T
        chances = binom.pmf(hits, images, shares[:, None])
        inside = (lows <= shares[:, None]) & (shares[:, None] <= highs)
        coverage = (chances * inside).sum(axis=1)
        assert 0.94 <= coverage.mean() <= 0.96, images
        assert coverage.min() > 0.82, images


def test_macro_f1_is_scikit_learns_and_its_interval_that_of_resampled_images() -> None:
    confusion = table(300, 3, 0.7)
    actual, predicted = np.repeat(np.indices((3, 3)).reshape(2, -1), confusion.ravel(), axis=1)
    found = macro_f1(confusion, 4000, seed=0)
    assert found.value == pytest.approx(sk.f1_score(actual, predicted, average="macro"))
    rng = np.random.default_rng(9)
    scores = [
        sk.f1_score(actual[rows], predicted[rows], average="macro")
        for rows in rng.integers(0, 900, size=(300, 900))
    ]
    low, high = np.percentile(scores, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.15 * (high - low))
    assert found.high == pytest.approx(high, abs=0.15 * (high - low))


def test_a_class_of_six_images_makes_the_interval_of_macro_f1_wide() -> None:
    many = table(500, 7, 0.9)
    many[1:, 0] = 0
    few = many.copy()
    few[0] = [4, 1, 1, 0, 0, 0, 0]
    of_many, of_few = (macro_f1(confusion, 1000, seed=0) for confusion in (many, few))
    assert of_few.high - of_few.low > 3 * (of_many.high - of_many.low)


def test_a_class_without_images_is_left_out() -> None:
    confusion = np.array([[40, 10, 0], [5, 45, 0], [0, 0, 0]])
    found = macro_f1(confusion, 500, seed=0)
    assert found.value == pytest.approx((80 / 95 + 90 / 105) / 2)
    assert found.low > 0.7
    # Nor is what is taken for it a class of its own: it is a mistake of another.
    confusion[0, 2] = 10
    assert macro_f1(confusion, 500, seed=0).value == pytest.approx((80 / 105 + 90 / 105) / 2)


def test_hundreds_of_classes_are_resampled_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    confusion = table(30, 7, 0.6)
    whole = macro_f1(confusion, 1000, seed=3)
    monkeypatch.setattr(intervals, "CELLS_AT_ONCE", 300 * 7 * 7)
    pieces = macro_f1(confusion, 1000, seed=3)
    assert pieces.value == whole.value
    assert (pieces.low, pieces.high) == pytest.approx((whole.low, whole.high), abs=0.01)
    assert 0.3 < macro_f1(table(5, 90, 0.5), 50, seed=0).low < 0.5


def test_the_interval_of_macro_f1_covers_the_true_one_about_as_often_as_it_says() -> None:
    classes, images = 7, 50
    covered = 0
    for seed in range(150):
        found = macro_f1(table(images, classes, 0.7, seed), 200, seed)
        covered += found.low <= 0.7 <= found.high
    assert 0.9 <= covered / 150 <= 0.99
