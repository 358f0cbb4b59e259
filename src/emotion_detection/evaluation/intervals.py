"""95 % intervals: how far the choice of the test images alone could move a score."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

INTERVAL_PERCENTILES = (2.5, 97.5)
# Of the normal distribution: 95 % lies within so many standard deviations.
DEVIATIONS = 1.959964
RESAMPLES = 1000
# Limits the memory for the tables of hundreds of classes to 128 MiB.
CELLS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Estimate:
    """A score with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(hits: float, images: int) -> Estimate:
    """Return the share `hits` of `images`, with Wilson's score interval.

    A share of no images is 0, from 0 to 1. After Wilson, "Probable inference, the law of
    succession, and statistical inference", Journal of the American Statistical Association 22,
    1927; Brown, Cai and DasGupta, "Interval estimation for a binomial proportion", Statistical
    Science 16, 2001, compare it with others.
    """
    if images == 0:
        return Estimate(0.0, 0.0, 1.0)
    share, z2 = hits / images, DEVIATIONS**2
    middle = share + z2 / (2 * images)
    half = DEVIATIONS * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    low, high = ((middle + end) / (1 + z2 / images) for end in (-half, half))
    # No rounding may put a share of 0 or 1 outside its own interval.
    return Estimate(share, min(max(low, 0.0), share), max(min(high, 1.0), share))


def f1(hits: int, actual: int, predicted: int) -> Estimate:
    """Return F1 of a class: `hits` of its `actual` images, and of those `predicted` as it.

    F1 is 2 J / (1 + J) of the share J of hits in the images that are of the class, predicted as
    it, or both, and the interval is Wilson's of J. After Lam, Gopal and Qian, "Confidence
    intervals for the F1 score: a comparison of four methods", arXiv 2309.14621, 2023 (there:
    Wilson indirect).
    """
    of_union = wilson(hits, actual + predicted - hits)
    ends = (of_union.value, of_union.low, of_union.high)
    return Estimate(*(2 * share / (1 + share) for share in ends))


def macro_f1(confusion: Ints, resamples: int, seed: int) -> Estimate:
    """Return the mean F1 of the classes with images in `confusion` (K, K), actual ones in rows.

    The interval is that of the stratified, studentised bootstrap: `resamples` tables with as many
    images a class, drawn by the shares of `confusion` with half a hit and half a mistake more in
    each class (Jeffreys's prior, so that a class with no mistake among six images may have some
    among others); and of each the distance to the score drawn from, in standard errors. After
    Hall, "Theoretical comparison of bootstrap confidence intervals", Annals of Statistics 16,
    1988; the standard error is by the delta method, as in Takahashi, Yamamoto, Kuchiba and Koyama,
    "Confidence interval for micro-averaged F1 and macro-averaged F1 scores", Applied Intelligence
    52, 2022.
    """
    present = np.flatnonzero(confusion.sum(axis=1))
    counts, images = confusion[present], confusion[present].sum(axis=1)
    value = _macro_f1(counts, present)
    smooth = _smoothed(counts, present)
    drawn_from, error = _macro_f1(smooth, present), _standard_error(smooth, present)
    rng = np.random.default_rng(seed)
    distances = []
    for size in _parts(resamples, counts.size):
        tables = np.stack(
            [
                rng.multinomial(n, row / row.sum(), size=size)
                for n, row in zip(images, smooth, strict=True)
            ],
            axis=1,
        )
        errors = _standard_error(_smoothed(tables, present), present)
        distances.append((_macro_f1(tables, present) - drawn_from) / errors)
    lowest, highest = np.percentile(np.concatenate(distances), INTERVAL_PERCENTILES)
    low, high = value - highest * error, value - lowest * error
    return Estimate(float(value), float(max(min(low, value), 0)), float(min(max(high, value), 1)))


def _parts(resamples: int, cells: int) -> Iterator[int]:
    at_once = max(1, CELLS_AT_ONCE // cells)
    for done in range(0, resamples, at_once):
        yield min(at_once, resamples - done)


def _smoothed(counts: Ints, present: Ints) -> Floats:
    """Return tables (..., R, K) like `counts`, as many images a row, by Jeffreys's prior."""
    rows, classes = np.arange(len(present)), counts.shape[-1]
    more = np.full(counts.shape[-2:], 0.5 / (classes - 1))
    more[rows, present] = 0.5
    images = counts.sum(axis=-1, keepdims=True)
    smoothed: Floats = (counts + more) * (images / (images + 1))
    return smoothed


def _macro_f1(tables: Ints | Floats, present: Ints) -> Floats:
    hits, sizes = _hits_and_sizes(tables, present)
    mean: Floats = (2 * hits / sizes).mean(axis=-1)
    return mean


def _hits_and_sizes(tables: Ints | Floats, present: Ints) -> tuple[Any, Any]:
    """Return the hits of each class in `present`, and its actual and predicted images together."""
    hits = tables[..., np.arange(len(present)), present]
    return hits, tables.sum(axis=-1) + tables.sum(axis=-2)[..., present]


def _standard_error(tables: Floats, present: Ints) -> Floats:
    """Return the standard error of macro F1 in tables (..., R, K) whose rows are drawn apart."""
    hits, sizes = _hits_and_sizes(tables, present)
    images = tables.sum(axis=-1)
    rows = np.arange(len(present))
    # What one image more in a cell adds to the sum of F1: to a class as its prediction, as its hit.
    gains = np.zeros(tables.shape)
    gains[..., present] = (-2 * hits / sizes**2)[..., None, :]
    gains[..., rows, present] += 2 / sizes
    shares = tables / images[..., None]
    variances = (shares * gains**2).sum(axis=-1) - (shares * gains).sum(axis=-1) ** 2
    error: Floats = np.sqrt((images * variances).clip(min=0).sum(axis=-1)) / len(present)
    return error


def resampled(counts: Ints, resamples: int, seed: int) -> Iterator[Ints]:
    """Yield tables like `counts`, of images drawn with replacement: `resamples` in all.

    They are (n, *counts.shape) int64 at a time. A score depends only on how many images are in
    each cell of its table, and N draws from N images are spread over the cells by the multinomial
    distribution: these are exactly the tables of the bootstrap (Efron, "Bootstrap methods: another
    look at the jackknife", Annals of Statistics 7, 1979).
    """
    images = counts.sum()
    rng = np.random.default_rng(seed)
    for size in _parts(resamples, counts.size):
        drawn = rng.multinomial(images, counts.ravel() / images, size=size)
        yield drawn.reshape(size, *counts.shape)


def estimate(value: Floats | np.float64, scores: Floats) -> Estimate:
    """Return the score `value` with the 95 % percentile interval of its resampled `scores` (n,)."""
    low, high = np.percentile(scores, INTERVAL_PERCENTILES)
    return Estimate(float(value), float(low), float(high))
