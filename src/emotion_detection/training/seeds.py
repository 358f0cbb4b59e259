"""What trainings of several seeds or folds come to, and whether two settings differ."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from emotion_detection import paths
from emotion_detection.console import UserError, first_line
from emotion_detection.files import parse_yaml

CONFIDENCE = 0.95

WORKSPACE = "workspace"
"""The name of what lies in this folder, as `dvc exp show` calls it."""

NO_VARIANCE = 1e-18
"""Scores with less are equal, but for how they are rounded."""


@dataclass(frozen=True)
class Spread:
    """The mean of scores of several networks, and the ends of its interval; all are shares.

    `variance` is that of the mean.
    """

    mean: float
    low: float
    high: float
    deviation: float
    variance: float
    networks: int

    def __str__(self) -> str:
        """Return it in words."""
        return (
            f"{100 * self.mean:.1f} ± {100 * self.deviation:.1f} % over {self.networks} networks "
            f"(95 % interval of the mean {100 * self.low:.1f} to {100 * self.high:.1f})"
        )


def spread(scores: Sequence[float], *, folds: bool) -> Spread:
    """Return the mean of two or more `scores`, its interval by Student's t, and their deviation.

    Those of `folds` come from train images that are the same for the most part, and so differ by
    less than by chance. The variance of their mean has the correction of Nadeau and Bengio,
    "Inference for the generalization error", Machine Learning 52, 2003.
    """
    values = np.asarray(scores, dtype=float)
    number, mean, deviation = len(values), float(values.mean()), float(values.std(ddof=1))
    variance = deviation**2 * (1 / number + (1 / (number - 1) if folds else 0.0))
    half = _quantile(number - 1) * math.sqrt(variance)
    return Spread(mean, max(0.0, mean - half), min(1.0, mean + half), deviation, variance, number)


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def compared(new: str, old: str) -> list[str]:
    """Return how the networks of two experiments compare by validation accuracy, in lines.

    Each is an experiment's name or another revision of Git; "workspace" is what lies here. Seeds
    are compared by Welch's interval (Biometrika 34, 1947), since two settings may scatter
    differently, and folds fold by fold.

    Raises:
        UserError: if one is not there or has one network alone, or they were not validated on the
            same images.

    """
    folds = _check_same_images(new, old)
    scores, others = _accuracies(new), _accuracies(old)
    first, second = spread(scores, folds=folds), spread(others, folds=folds)
    lines = [f"{name}: validation accuracy {each}" for name, each in ((new, first), (old, second))]
    difference = first.mean - second.mean
    by_fold = spread(np.subtract(scores, others).tolist(), folds=True) if folds else None
    variance = by_fold.variance if by_fold else first.variance + second.variance
    if variance < NO_VARIANCE:
        return [
            *lines,
            f"difference {100 * difference:+.1f} points; the networks of a setting do not differ, "
            "so that chance cannot be told from a gain",
        ]
    freedom = by_fold.networks - 1 if by_fold else _freedom(first, second)
    half = _quantile(freedom) * math.sqrt(variance)
    verdict = "neither is known to be better"
    if abs(difference) > half:
        verdict = f"{new if difference > 0 else old} is better"
    return [
        *lines,
        f"difference {100 * difference:+.1f} points (95 % interval "
        f"{100 * (difference - half):+.1f} to {100 * (difference + half):+.1f}): {verdict}",
    ]


def _freedom(first: Spread, second: Spread) -> float:
    """Return the degrees of freedom of Welch's interval."""
    parts = [each.variance**2 / (each.networks - 1) for each in (first, second)]
    return (first.variance + second.variance) ** 2 / sum(parts)


def _accuracies(name: str) -> list[float]:
    """Return the validation accuracy of each network that the experiment `name` trained."""
    folder = paths.REPORTS / "train"
    if name == WORKSPACE and not (folder / paths.METRICS).exists():
        raise UserError(f"{name}: its training has not ended; run `dvc repro train`")
    try:
        networks = pd.read_csv(io.StringIO(_read(name, folder / "networks.csv")))
    except FileNotFoundError:
        raise UserError(
            f"{name}: has no {(folder / 'networks.csv').as_posix()}; `dvc exp run -S train.seeds=5 "
            "train` trains several networks, and `dvc pull` brings what a colleague trained"
        ) from None
    # Each network is kept at the epoch of its highest accuracy.
    return networks.groupby("network")["val_accuracy"].max().tolist()


def _check_same_images(new: str, old: str) -> bool:
    """Return whether two experiments were validated on folds, which are the same.

    Raises:
        UserError: if they were not validated on the same images.

    """
    validated = [_validated_on(name) for name in (new, old)]
    for key in dict.fromkeys([*validated[0], *validated[1]]):
        values = [of.get(key) for of in validated]
        if values[0] != values[1]:
            raise UserError(
                f"{new} and {old} were validated on different images ({key} is {values[0]} and "
                f"{values[1]}), so that their accuracies cannot be compared"
            )
    return bool(validated[0].get("split.folds"))


def _validated_on(name: str) -> dict[str, Any]:
    """Return what the validation images of the experiment `name` depend on, from its dvc.lock."""
    try:
        train = parse_yaml(_read(name, paths.LOCK_FILE), paths.LOCK_FILE)["stages"]["train"]
        data = paths.DATASET.as_posix()
        (digest,) = (dep["md5"] for dep in train["deps"] if dep["path"] == data)
        split: dict[str, Any] = train["params"]["params.yaml"]["split"]
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{name}: {paths.LOCK_FILE} has no training; run `dvc repro train`, and commit it"
        ) from None
    return {data: digest} | {f"split.{name}": value for name, value in split.items()}


def _read(name: str, path: Path) -> str:
    """Return the text of a file of the experiment `name`, from Git or DVC's cache.

    Raises:
        FileNotFoundError: if it is not there.
        UserError: if there is no such experiment, or no project here.

    """
    if name == WORKSPACE:
        return path.read_text(encoding="utf-8")
    import dvc.api
    from dvc.exceptions import DvcException
    from dvc.scm import RevError, SCMError

    try:
        return str(dvc.api.read(path.as_posix(), rev=name, encoding="utf-8"))
    except RevError as error:
        raise UserError(f"{first_line(error)}; `dvc exp list --all-commits` lists them") from None
    except SCMError as error:
        raise UserError(f"{first_line(error)}; run this in the project's root folder") from None
    except (OSError, DvcException) as error:
        raise FileNotFoundError(path) from error
