"""Whether one classifier is better than another one on the same images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from emotion_detection.evaluation.intervals import RESAMPLES, Estimate, estimate, resampled


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images: the new one against the old one."""

    difference: Estimate
    """Accuracy of the new one less that of the old one."""

    only_new: int
    """Images that only the new one classifies correctly."""

    only_old: int
    """Images that only the old one classifies correctly."""

    p_value: float
    """Of McNemar's exact test: how often two equal classifiers differ so much by chance alone."""

    @property
    def better(self) -> bool:
        """Whether the new one is better: the whole interval of the difference lies above 0."""
        return self.difference.low > 0


def compare(
    new: npt.ArrayLike, old: npt.ArrayLike, *, bootstrap: int = RESAMPLES, seed: int
) -> Comparison:
    """Compare two classifiers by which of the same N images they have right, (N,) bool each.

    The interval is a 95 % percentile interval over `bootstrap` resamples of the images, the same
    ones for both classifiers. The test is McNemar's ("Note on the sampling error of the difference
    between correlated proportions or percentages", Psychometrika 12, 1947), two-sided and exact:
    an image that only one has right is as likely to be one's as the other's.

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
    discordant = only_new + only_old
    return Comparison(
        difference=estimate(
            np.float64((only_new - only_old) / images), (tables[:, 0] - tables[:, 1]) / images
        ),
        only_new=only_new,
        only_old=only_old,
        p_value=float(binomtest(only_new, discordant).pvalue) if discordant else 1.0,
    )
