"""The bootstrap: how far chance alone could move a score.

After Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

INTERVAL_PERCENTILES = (2.5, 97.5)
RESAMPLES = 1000
# Limits the memory for the tables of hundreds of classes to 128 MiB.
CELLS_AT_ONCE = 2**24


@dataclass(frozen=True)
class Estimate:
    """A score with the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def resampled(counts: Ints, resamples: int, seed: int) -> Iterator[Ints]:
    """Yield tables like `counts`, such as a confusion matrix, of images drawn with replacement.

    They are `resamples` in all, (n, *counts.shape) int64 at a time. A score depends only on how
    many images are in each cell of its table, and N draws from N images are spread over the cells
    by the multinomial distribution: these are exactly the tables of the bootstrap.
    """
    images = counts.sum()
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS_AT_ONCE // counts.size)
    for done in range(0, resamples, at_once):
        size = min(at_once, resamples - done)
        drawn = rng.multinomial(images, counts.ravel() / images, size=size)
        yield drawn.reshape(size, *counts.shape)


def estimate(value: Floats | np.float64, scores: Floats) -> Estimate:
    """Return the score `value` with the 95 % percentile interval of its resampled `scores` (n,)."""
    low, high = np.percentile(scores, INTERVAL_PERCENTILES)
    return Estimate(float(value), float(low), float(high))
