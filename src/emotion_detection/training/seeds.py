"""What trainings that differ by their seed alone come to, and whether two settings differ."""

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

NO_DEVIATION = 1e-9
"""Scores that deviate by less are equal, but for how they are rounded."""


@dataclass(frozen=True)
class Spread:
    """The mean of scores of several networks, and the ends of its interval; all are shares."""

    mean: float
    low: float
    high: float
    deviation: float
    networks: int

    @property
    def variance(self) -> float:
        """That of the mean."""
        return self.deviation**2 / self.networks

    def __str__(self) -> str:
        """Return it in words."""
        return (
            f"{100 * self.mean:.1f} ± {100 * self.deviation:.1f} % over {self.networks} networks "
            f"(95 % interval of the mean {100 * self.low:.1f} to {100 * self.high:.1f})"
        )


def spread(scores: Sequence[float]) -> Spread:
    """Return the mean of two or more `scores`, its interval by Student's t, and their deviation."""
    values = np.asarray(scores, dtype=float)
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    half = _quantile(len(values) - 1) * deviation / len(values) ** 0.5
    return Spread(mean, max(0.0, mean - half), min(1.0, mean + half), deviation, len(values))


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def compared(new: str, old: str) -> list[str]:
    """Return how the networks of two experiments compare by validation accuracy, in lines.

    Each is an experiment's name or another revision of Git; "workspace" is what lies here. The
    interval of the difference is Welch's (Biometrika 34, 1947), since two settings may scatter
    differently.

    Raises:
        UserError: if one is not there or has one network alone, or they were not validated on the
            same images.

    """
    _check_same_images(new, old)
    first, second = (spread(_accuracies(name)) for name in (new, old))
    lines = [f"{name}: validation accuracy {each}" for name, each in ((new, first), (old, second))]
    difference = first.mean - second.mean
    if max(first.deviation, second.deviation) < NO_DEVIATION:
        return [
            *lines,
            f"difference {100 * difference:+.1f} points; the networks of a setting do not differ, "
            "so that chance cannot be told from a gain",
        ]
    variance = first.variance + second.variance
    freedom = variance**2 / sum(each.variance**2 / (each.networks - 1) for each in (first, second))
    half = _quantile(freedom) * math.sqrt(variance)
    verdict = "neither is known to be better"
    if abs(difference) > half:
        verdict = f"{new if difference > 0 else old} is better"
    return [
        *lines,
        f"difference {100 * difference:+.1f} points (95 % interval "
        f"{100 * (difference - half):+.1f} to {100 * (difference + half):+.1f}): {verdict}",
    ]


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


def _check_same_images(new: str, old: str) -> None:
    """Raise `UserError` where two experiments were not validated on the same images."""
    validated = [_validated_on(name) for name in (new, old)]
    for key in dict.fromkeys([*validated[0], *validated[1]]):
        values = [of.get(key) for of in validated]
        if values[0] != values[1]:
            raise UserError(
                f"{new} and {old} were validated on different images ({key} is {values[0]} and "
                f"{values[1]}), so that their accuracies cannot be compared"
            )


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
