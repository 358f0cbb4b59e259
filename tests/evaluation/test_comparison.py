"""Two classifiers on the same images."""

import numpy as np
import pytest

from emotion_detection.evaluation.comparison import compare


def rights(both: int, only_new: int, only_old: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, only_new, only_old, neither)
    return np.repeat([1, 1, 0, 0], counts) == 1, np.repeat([1, 0, 1, 0], counts) == 1


@pytest.mark.parametrize(
    ("only_new", "only_old", "p_value"),
    [
        (10, 2, 158 / 4096),  # twice the sum of C(12, 0), C(12, 1) and C(12, 2), of 2^12
        (2, 10, 158 / 4096),
        (5, 0, 2 / 32),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemars_test_is_exact(only_new: int, only_old: int, p_value: float) -> None:
    found = compare(*rights(50, only_new, only_old, 20), seed=0)
    assert found.p_value == pytest.approx(p_value)
    assert (found.only_new, found.only_old) == (only_new, only_old)
    images = 50 + only_new + only_old + 20
    assert found.difference.value == pytest.approx((only_new - only_old) / images)


def test_mcnemars_test_of_many_images_agrees_with_the_chi_squared_one() -> None:
    # Edwards's corrected statistic (|b - c| - 1)^2 / (b + c) = 11.97, of one degree of freedom.
    found = compare(*rights(3000, 400, 307, 2000), seed=0)
    assert found.p_value == pytest.approx(0.000540, rel=0.03)


def test_the_interval_of_a_difference_is_that_of_pairs() -> None:
    new, old = rights(3000, 400, 307, 2000)
    found = compare(new, old, bootstrap=4000, seed=0)
    # The variance of a paired difference: (b + c) / n^2 - (b - c)^2 / n^3.
    images = len(new)
    half = 1.96 * np.sqrt(707 / images**2 - 93**2 / images**3)
    assert found.difference.low == pytest.approx(93 / images - half, abs=0.05 * half)
    assert found.difference.high == pytest.approx(93 / images + half, abs=0.05 * half)


@pytest.mark.parametrize(
    ("only_new", "only_old", "better"),
    [(60, 20, True), (21, 20, False), (20, 60, False), (0, 0, False)],
)
def test_only_a_difference_beyond_chance_is_better(
    only_new: int, only_old: int, better: bool
) -> None:
    assert compare(*rights(200, only_new, only_old, 100), seed=0).better is better


def test_different_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same images"):
        compare([True], [True, False], seed=0)
    with pytest.raises(ValueError, match="same images"):
        compare([], [], seed=0)
