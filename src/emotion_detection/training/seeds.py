"""What trainings that differ by their seed alone come to, and whether two settings differ."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from emotion_detection import paths
from emotion_detection.console import UserError
from emotion_detection.training.callbacks import best_epoch

CONFIDENCE = 0.95

WORKSPACE = "workspace"
"""The name of what lies in this folder, as `dvc exp show` calls it."""


@dataclass(frozen=True)
class Spread:
    """The mean of scores of several seeds, and the ends of its interval; all are shares."""

    mean: float
    low: float
    high: float
    deviation: float
    seeds: int

    def __str__(self) -> str:
        """Return it in words."""
        return (
            f"{100 * self.mean:.1f} ± {100 * self.deviation:.1f} % over {self.seeds} seeds (95 % "
            f"interval of the mean {100 * self.low:.1f} to {100 * self.high:.1f})"
        )


def spread(scores: Sequence[float]) -> Spread:
    """Return the mean of two or more `scores`, its interval by Student's t, and their deviation."""
    values = np.asarray(scores, dtype=float)
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    half = quantile * deviation / len(values) ** 0.5
    return Spread(mean, mean - half, mean + half, deviation, len(values))


def best_accuracies(networks: pd.DataFrame) -> list[float]:
    """Return the validation accuracy that each network is kept at, from a table with `network`."""
    return [float(best_epoch(each)["val_accuracy"]) for _, each in networks.groupby("network")]


def compared(new: str, old: str) -> list[str]:
    """Return how the networks of two experiments compare by validation accuracy, in lines.

    Each is an experiment's name or another revision of Git; "workspace" is what lies here. The
    interval of the difference is Welch's, since two settings may scatter differently.

    Raises:
        UserError: if one is not there, or has one network alone.

    """
    scores = {name: best_accuracies(_networks(name)) for name in (new, old)}
    first, second = (spread(scores[name]) for name in (new, old))
    difference = first.mean - second.mean
    low = high = difference
    if first.deviation or second.deviation:
        test = stats.ttest_ind(scores[new], scores[old], equal_var=False)
        low, high = test.confidence_interval(CONFIDENCE)
    verdict = "neither is known to be better"
    if low > 0 or high < 0:
        verdict = f"{new if low > 0 else old} is better"
    return [
        *(f"{name}: validation accuracy {each}" for name, each in ((new, first), (old, second))),
        f"difference {100 * difference:+.1f} points (95 % interval {100 * low:+.1f} to "
        f"{100 * high:+.1f}): {verdict}",
    ]


def _networks(name: str) -> pd.DataFrame:
    """Return the table of the networks that the experiment `name` trained."""
    import dvc.api
    from dvc.exceptions import DvcException
    from dvc.scm import RevError

    table = (paths.REPORTS / "train" / "networks.csv").as_posix()
    revision = None if name == WORKSPACE else name
    try:
        return pd.read_csv(io.StringIO(dvc.api.read(table, rev=revision, encoding="utf-8")))
    except RevError:
        raise UserError(f"{name}: no experiment, branch or commit has this name") from None
    except (OSError, DvcException) as error:
        raise UserError(
            f"{name}: {table} is not there; it is where several networks were trained, as by "
            "`dvc exp run -S train.seeds=5`, and in this project's cache"
        ) from error
