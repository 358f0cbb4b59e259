"""Whether one classifier is better than another one on the same images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from emotion_detection.evaluation.intervals import RESAMPLES, Estimate, estimate, resampled

ALPHA = 0.05
"""The chance, over all challenges of a champion, that one which is no better takes its place."""


def level(challenge: int) -> float:
    """Return the p value that `challenge`, from 1, of a champion needs: ALPHA / (k (k + 1)).

    Over any number of challenges these levels sum to less than ALPHA, so by Boole's inequality the
    chance that any of them promotes a model that is no better is at most ALPHA, however much the
    models resemble each other (alpha-spending: Tian and Ramdas, "Online control of the familywise
    error rate", arXiv 1910.04900). The first challenge gets half of ALPHA.
    """
    return ALPHA / (challenge * (challenge + 1))


def mcnemar(only_new: npt.ArrayLike, only_old: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the p value of McNemar's exact test that the new one of two classifiers is better.

    `only_new` and `only_old` are the numbers of images that only one of both has right. If the new
    one is no better, such an image is at most as likely to be its as the other's; the p value is
    how likely it then has so many of them. After McNemar, "Note on the sampling error of the
    difference between correlated proportions or percentages", Psychometrika 12, 1947.
    """
    wins = np.asarray(only_new)
    p_value: npt.NDArray[np.float64] = binom.sf(wins - 1, wins + np.asarray(only_old), 0.5)
    return p_value


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images: the new one against the old one."""

    difference: Estimate
    """Accuracy of the new one less that of the old one."""

    only_new: int
    """Images that only the new one classifies correctly."""

    only_old: int
    """Images that only the old one classifies correctly."""

    @property
    def p_value(self) -> float:
        """That of `mcnemar`, one-sided: small where the new one is better."""
        return float(mcnemar(self.only_new, self.only_old))


def compare(
    new: npt.ArrayLike, old: npt.ArrayLike, *, bootstrap: int = RESAMPLES, seed: int
) -> Comparison:
    """Compare two classifiers by which of the same N images they have right, (N,) bool each.

    The interval is a 95 % percentile interval over `bootstrap` resamples of the images, the same
    ones for both classifiers.

    Raises:
        ValueError: for no images, or for shapes that disagree.

    """
    new_right, old_right = np.asarray(new, bool), np.asarray(old, bool)
    if new_right.shape != old_right.shape or new_right.ndim != 1 or new_right.size == 0:
        raise ValueError(
            f"expected the same images twice, got {new_right.shape} and {old_right.shape}"
        )
    only_new = int((new_right & ~old_right).sum())
    only_old = int((old_right & ~new_right).sum())
    images = len(new_right)
    counts = np.array([only_new, only_old, images - only_new - only_old])
    tables = np.concatenate(list(resampled(counts, bootstrap, seed)))
    return Comparison(
        difference=estimate(
            np.float64((only_new - only_old) / images), (tables[:, 0] - tables[:, 1]) / images
        ),
        only_new=only_new,
        only_old=only_old,
    )
