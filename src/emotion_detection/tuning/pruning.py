"""Which trials end early, and what they would have come to."""

from collections.abc import Sequence
from statistics import median

from emotion_detection.training.callbacks import Row

PEERS = 4
"""Earlier trials that a trial is compared with, at least."""

FROM = 1 / 3
"""Share of the epochs before which no trial ends: until there, the schedule warms up."""


def best(rows: Sequence[Row]) -> float:
    """Return the highest validation accuracy of `rows`."""
    return max(row["val_accuracy"] for row in rows)


def is_behind(rows: Sequence[Row], peers: Sequence[Sequence[Row]], epochs: int) -> bool:
    """Return whether a trial ends after `rows`, given those of earlier trials.

    It does where its best validation accuracy is below the median of the others' best up to the
    same epoch, as by the median stopping rule of Golovin et al. 2017 (Google Vizier, KDD). All are
    on one schedule over `epochs`, so that equal epochs can be compared.
    """
    epoch = len(rows)
    reached = [best(peer[:epoch]) for peer in peers if len(peer) >= epoch]
    late_enough = FROM * epochs <= epoch < epochs
    return late_enough and len(reached) >= PEERS and best(rows) < median(reached)


def estimate(rows: Sequence[Row], complete: Sequence[Sequence[Row]]) -> float:
    """Return what a trial that ended after `rows` would have come to.

    The scores of different epochs of a schedule cannot be compared, and the oracle is to learn from
    both: the trial gets the median gain of the `complete` ones from the same epoch to the end.
    """
    gains = [best(other) - best(other[: len(rows)]) for other in complete]
    return best(rows) + (median(gains) if gains else 0.0)
