"""Two classifiers on the same images."""

import numpy as np
import pytest

from emotion_detection.evaluation.comparison import ALPHA, compare, level, mcnemar


def rights(both: int, only_new: int, only_old: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, only_new, only_old, neither)
    return np.repeat([1, 1, 0, 0], counts) == 1, np.repeat([1, 0, 1, 0], counts) == 1


@pytest.mark.parametrize(
    ("only_new", "only_old", "p_value"),
    [
        (10, 2, 79 / 4096),  # the sum of C(12, 0), C(12, 1) and C(12, 2), of 2^12
        (2, 10, 1 - 13 / 4096),
        (5, 0, 1 / 32),
        (3, 3, 1 - 22 / 64),
        (0, 0, 1.0),
    ],
)
def test_mcnemars_test_is_exact_and_one_sided(only_new: int, only_old: int, p_value: float) -> None:
    found = compare(*rights(50, only_new, only_old, 20), seed=0)
    assert found.p_value == pytest.approx(p_value)
    assert (found.only_new, found.only_old) == (only_new, only_old)
    images = 50 + only_new + only_old + 20
    assert found.difference.value == pytest.approx((only_new - only_old) / images)


def test_mcnemars_test_of_many_images_agrees_with_the_chi_squared_one() -> None:
    # Edwards's corrected statistic (|b - c| - 1)^2 / (b + c) = 11.97, of one degree of freedom.
    assert mcnemar(400, 307) == pytest.approx(0.000540 / 2, rel=0.03)


def test_a_better_model_is_found_after_many_challenges() -> None:
    # 1.5 points on FER-2013's test images, where two networks differ in a tenth of them.
    assert mcnemar(413, 305) <= level(20)


def test_of_twenty_equal_challengers_one_in_twenty_histories_promotes_one_at_most() -> None:
    rng, challengers = np.random.default_rng(0), 20
    # Some images are hard for all models, which otherwise err independently.
    easy = rng.beta(2, 1, (2000, 1, 400))
    right = rng.random((2000, challengers + 1, 400), np.float32) < easy
    champion, changed = right[:, 0], np.zeros(2000, bool)
    for challenge in range(1, challengers + 1):
        new = right[:, challenge]
        p_values = mcnemar((new & ~champion).sum(axis=1), (champion & ~new).sum(axis=1))
        better = p_values <= level(challenge)
        champion = np.where(better[:, np.newaxis], new, champion)
        changed |= better
    assert 0.01 < changed.mean() <= ALPHA


def test_the_interval_of_a_difference_is_that_of_pairs() -> None:
    new, old = rights(3000, 400, 307, 2000)
    found = compare(new, old, bootstrap=4000, seed=0)
    # The variance of a paired difference: (b + c) / n^2 - (b - c)^2 / n^3.
    images = len(new)
    half = 1.96 * np.sqrt(707 / images**2 - 93**2 / images**3)
    assert found.difference.low == pytest.approx(93 / images - half, abs=0.05 * half)
    assert found.difference.high == pytest.approx(93 / images + half, abs=0.05 * half)


def test_different_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same images"):
        compare([True], [True, False], seed=0)
    with pytest.raises(ValueError, match="same images"):
        compare([], [], seed=0)
