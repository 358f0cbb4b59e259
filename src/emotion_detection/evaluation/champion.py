"""Which of the registered models is the champion of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emotion_detection import tracking
from emotion_detection.console import UserError, log
from emotion_detection.data.dataset import Dataset
from emotion_detection.evaluation.metrics import DIGITS, Comparison, Evaluation, compare
from emotion_detection.training.fit import fit


@dataclass(frozen=True)
class Decision:
    """What became of a model that was evaluated.

    `version` is its number in the registry, None where it is not registered; `against` and
    `comparison` are there where a champion was beaten, or not.
    """

    version: str | None
    champion: bool
    why: str
    against: str | None = None
    comparison: Comparison | None = None

    def metrics(self) -> dict[str, float]:
        """The comparison as numbers by name; none without one."""
        if self.comparison is None:
            return {}
        difference = self.comparison.difference
        return {
            "accuracy_difference": round(difference.value, DIGITS),
            "accuracy_difference_low": round(difference.low, DIGITS),
            "accuracy_difference_high": round(difference.high, DIGITS),
            "p_value": float(f"{self.comparison.p_value:.3g}"),
        }

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        found: dict[str, Any] = {
            "version": self.version,
            "champion": self.champion,
            "why": self.why,
            "against": self.against,
            **self.metrics(),
        }
        if self.comparison is not None:
            found["only_new_right"] = self.comparison.only_new
            found["only_old_right"] = self.comparison.only_old
        return found


def unregistered(why: str) -> Decision:
    """Return the decision on a model that stays out of the registry."""
    return Decision(version=None, champion=False, why=why)


def challenge(
    run_id: str,
    result: Evaluation,
    dataset: Dataset,
    rows: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    bootstrap: int,
    seed: int,
) -> Decision:
    """Register the model of an MLflow run, and make it champion if it is the best one.

    `result` is its evaluation on the images `rows` of `dataset`. Each data set has a champion of
    its own, for no two models can be compared on different images. The first model is champion;
    another takes over if it is better on the same images, by the rule of `Comparison.better`, or if
    the champion's files are gone. A model whose run leaks is registered and never champion. The
    alias `champion` goes to the champion of the data set evaluated last. Where the registry fails
    the decision says why.
    """
    try:
        version = tracking.register(
            run_id,
            dataset,
            {"accuracy": result.accuracy.value, "macro_f1": result.macro_f1.value},
        )
        if version.selected_on_test:
            return Decision(version.number, False, "its run leaks, and no such model is champion")
        while True:
            incumbent = tracking.champion(dataset.digest)
            decision = _against(
                version, incumbent, result, dataset, rows, batch_size, bootstrap, seed
            )
            # An experiment beside this one may have taken the title while this one was compared.
            if tracking.champion(dataset.digest) == incumbent:
                break
        if decision.champion:
            tracking.promote(version, dataset.digest)
        _lead(version if decision.champion or incumbent is None else incumbent, dataset)
        return decision
    except tracking.RegistryError as error:
        return unregistered(f"MLflow's model registry failed: {error}")


def _against(
    version: tracking.Version,
    incumbent: tracking.Version | None,
    result: Evaluation,
    dataset: Dataset,
    rows: Sequence[int] | np.ndarray,
    batch_size: int,
    bootstrap: int,
    seed: int,
) -> Decision:
    if incumbent is None:
        return Decision(version.number, True, f"it is the first on {dataset.source}")
    if incumbent.number == version.number:
        return Decision(version.number, True, "it became so in an earlier evaluation")
    try:
        model = tracking.load_version(incumbent)
    except tracking.GoneError as error:
        why = f"version {incumbent.number}, the champion so far, is gone ({error})"
        return Decision(version.number, True, why, incumbent.number)
    except UserError as error:
        why = (
            f"version {incumbent.number}, the champion so far, cannot be compared with now ({error}); "
            "`dvc repro --single-item --force evaluate` tries again, and without its alias "
            f"champion-{dataset.digest[:8]} in MLflow the title is free"
        )
        return Decision(version.number, False, why, incumbent.number)
    old = fit.predict(model, dataset, rows, batch_size).argmax(axis=1) == result.labels
    comparison = compare(result.right, old, bootstrap=bootstrap, seed=seed)
    difference = comparison.difference
    why = (
        f"its accuracy differs by {difference.value:+.4f} (95 % interval {difference.low:+.4f} to "
        f"{difference.high:+.4f}) from that of version {incumbent.number}, the champion so far; "
        f"p = {comparison.p_value:.3g}"
    )
    return Decision(version.number, comparison.better, why, incumbent.number, comparison)


def _lead(leader: tracking.Version, dataset: Dataset) -> None:
    """Move the alias `champion` to the champion of `dataset`."""
    before = tracking.champion()
    if before == leader:
        return
    tracking.promote(leader)
    if before is not None and before.dataset_digest != dataset.digest:
        log.info(
            "the alias champion goes from version %s to version %s: the one is the champion of %s, "
            "the other of %s, which was evaluated last, and models cannot be compared on different "
            "test images",
            before.number,
            leader.number,
            _named(before.dataset, before.dataset_digest),
            _named(dataset.source, dataset.digest),
        )


def _named(dataset: str, digest: str) -> str:
    return f"{dataset} ({digest[:8]})"
