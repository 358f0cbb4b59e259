"""Which of the registered models is the champion of a data set."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from emotion_detection.console import UserError, log
from emotion_detection.data.dataset import Dataset
from emotion_detection.evaluation import predictions
from emotion_detection.evaluation.bootstrap import RESAMPLES
from emotion_detection.evaluation.comparison import Comparison, compare
from emotion_detection.evaluation.metrics import DIGITS, Evaluation
from emotion_detection.tracking import models as registry


@dataclass(frozen=True, eq=False)
class Challenger:
    """An evaluated model: the MLflow run that logged it, and its evaluation.

    `run_id` is None where there is no such run (any more), and `rows` (N,) int64 are the images of
    `dataset` that `result` is about.
    """

    run_id: str | None
    result: Evaluation
    dataset: Dataset
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Decision:
    """What was decided about a model that was evaluated, and why.

    `version` is its number in the registry, None where it is not registered. `against` is the
    version that was champion until then, and `comparison` the one with it; each is None where
    there is none.
    """

    version: str | None
    champion: bool
    why: str
    against: str | None = None
    comparison: Comparison | None = None

    @property
    def sentence(self) -> str:
        """The decision and its reason, for people."""
        if self.version is None:
            return f"The model is not in the model registry: {self.why}."
        verb = "is" if self.champion else "is not"
        return (
            f"Version {self.version} in the model registry {verb} champion of its data set: "
            f"{self.why}."
        )

    def metrics(self) -> dict[str, float]:
        """Return the comparison as metrics, named as versus_champion/p_value; none without one."""
        return {f"versus_champion/{name}": value for name, value in self._compared().items()}

    def tags(self) -> dict[str, str]:
        """Return the tags of the MLflow run; none where the model is not registered."""
        if self.version is None:
            return {}
        return {"registered.version": self.version, "champion.decision": self.why}

    def as_json(self) -> dict[str, Any]:
        """Return everything for a JSON file."""
        found: dict[str, Any] = {
            "version": self.version,
            "champion": self.champion,
            "why": self.why,
            "against": self.against,
            **self._compared(),
        }
        if self.comparison is not None:
            found["only_new_right"] = self.comparison.only_new
            found["only_old_right"] = self.comparison.only_old
        return found

    def _compared(self) -> dict[str, float]:
        if self.comparison is None:
            return {}
        difference = self.comparison.difference
        return {
            "accuracy_difference": round(difference.value, DIGITS),
            "accuracy_difference_low": round(difference.low, DIGITS),
            "accuracy_difference_high": round(difference.high, DIGITS),
            "p_value": float(f"{self.comparison.p_value:.3g}"),
        }


def challenge(
    challenger: Challenger,
    *,
    register_model: bool = True,
    bootstrap: int = RESAMPLES,
    seed: int,
) -> Decision:
    """Register the model of `challenger`, and promote it to champion if it is the best one.

    Each data set has its own champion, since models cannot be compared on different images. The
    first model becomes champion. Another one is promoted if it is better on the same images, by
    the rule of `Comparison.better`, or if the incumbent's files are gone. A model selected on test
    is registered and never promoted. The alias `champion` goes to the champion of the data set
    evaluated last. Nothing is registered without `register_model` or an MLflow run, or where the
    registry fails: the decision gives the reason.
    """
    if not register_model:
        return _unregistered("evaluate.register_model is false")
    if challenger.run_id is None:
        return _unregistered("the MLflow run that logged it is gone")
    try:
        return _registered(challenger, challenger.run_id, bootstrap, seed)
    except registry.RegistryError as error:
        return _unregistered(f"MLflow's model registry failed: {error}")


def _unregistered(why: str) -> Decision:
    return Decision(version=None, champion=False, why=why)


def _registered(challenger: Challenger, run_id: str, bootstrap: int, seed: int) -> Decision:
    result, dataset = challenger.result, challenger.dataset
    scores = {"accuracy": result.accuracy.value, "macro_f1": result.macro_f1.value}
    version = registry.register(run_id, dataset, scores)
    if version.selected_on_test:
        why = "it was selected on the test images, and no such model becomes champion"
        return Decision(version.number, False, why)
    while True:
        incumbent = registry.champion(dataset.digest)
        decision = _decide(version, incumbent, challenger, bootstrap, seed)
        # Another experiment may have promoted its model during the comparison.
        if registry.champion(dataset.digest) == incumbent:
            break
    if decision.champion:
        registry.promote(version, dataset.digest)
    _lead(version if decision.champion or incumbent is None else incumbent, dataset)
    return decision


def _decide(
    version: registry.Version,
    incumbent: registry.Version | None,
    challenger: Challenger,
    bootstrap: int,
    seed: int,
) -> Decision:
    dataset = challenger.dataset
    if incumbent is None:
        return Decision(version.number, True, f"it is the first model on {dataset.source}")
    if incumbent.number == version.number:
        return Decision(version.number, True, "it became champion in an earlier evaluation")
    champion = f"version {incumbent.number}, the champion so far,"
    try:
        model = registry.load_version(incumbent)
    except registry.GoneError as error:
        return Decision(version.number, True, f"{champion} is gone ({error})", incumbent.number)
    except UserError as error:
        why = (
            f"{champion} cannot be loaded now to be compared with ({error}). Try again with "
            "`dvc repro --single-item --force evaluate`, or delete its alias "
            f"champion-{dataset.digest[:8]} in MLflow to have the next model become champion"
        )
        return Decision(version.number, False, why, incumbent.number)
    labels = challenger.result.labels
    old = predictions.predict(model, dataset, challenger.rows).argmax(axis=1) == labels
    comparison = compare(challenger.result.correct, old, bootstrap=bootstrap, seed=seed)
    difference = comparison.difference
    why = (
        f"its accuracy differs by {difference.value:+.4f} (95 % interval {difference.low:+.4f} to "
        f"{difference.high:+.4f}) from that of version {incumbent.number}, the champion so far; "
        f"p = {comparison.p_value:.3g}"
    )
    return Decision(version.number, comparison.better, why, incumbent.number, comparison)


def _lead(leader: registry.Version, dataset: Dataset) -> None:
    """Move the alias `champion` to `leader`, the champion of `dataset`."""
    before = registry.champion()
    if before == leader:
        return
    registry.promote(leader)
    if before is not None and before.dataset_digest != dataset.digest:
        log.info(
            "the alias champion moves from version %s, the champion of %s, to version %s, the "
            "champion of %s, which was evaluated last: models cannot be compared on different test "
            "images",
            before.number,
            _named(before.dataset, before.dataset_digest),
            leader.number,
            _named(dataset.source, dataset.digest),
        )


def _named(dataset: str, digest: str) -> str:
    return f"{dataset} ({digest[:8]})"
