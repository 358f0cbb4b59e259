"""Which of the registered models is the champion of a data set."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from emotion_detection import paths
from emotion_detection.console import UserError, log
from emotion_detection.data.dataset import Dataset
from emotion_detection.evaluation import predictions
from emotion_detection.evaluation.comparison import Comparison, compare, level
from emotion_detection.evaluation.intervals import RESAMPLES
from emotion_detection.evaluation.metrics import DIGITS, Evaluation
from emotion_detection.files import locked
from emotion_detection.tracking import registry
from emotion_detection.tracking.lineage import NOTHING_SEEN, Seen
from emotion_detection.tracking.models import GoneError
from emotion_detection.tracking.tags import CHAMPION_DECISION, REGISTERED_VERSION

Register = Literal["always", "better", "never"]


@dataclass(frozen=True, eq=False)
class Challenger:
    """An evaluated model: the MLflow run that logged it, and its evaluation.

    `run_id` is None where there is no such run (any more), and `rows` (N,) int64 are the images of
    `dataset` that `result` is about. `seen` is what its ancestors learnt from of them.
    """

    run_id: str | None
    result: Evaluation
    dataset: Dataset
    rows: npt.NDArray[np.int64]
    seen: Seen = NOTHING_SEEN


@dataclass(frozen=True)
class Decision:
    """What was decided about a model that was evaluated, and why.

    `version` is its number in the registry, None where it is not registered. `against` is the
    version that was champion until then, and `comparison` the one with it; each is None where
    there is none. `scored` is how many models were scored on these test images, this one included,
    by the runs in MLflow; None where MLflow cannot tell.
    """

    version: str | None
    champion: bool
    why: str
    against: str | None = None
    comparison: Comparison | None = None
    scored: int | None = None

    @property
    def challenge(self) -> int:
        """Which challenge on these test images this is, from 1."""
        return max(1, (self.scored or 1) - 1)

    @property
    def looked_at(self) -> str:
        """How often the test images were looked at, for people."""
        if self.scored is None:
            return "scored by this model; MLflow cannot tell by how many others"
        others = self.scored - 1
        if not others:
            return "scored by this model alone"
        return (
            f"scored by this model and {others:,} other{'s' * (others > 1)} before: the more models"
            " are tried on the same images, the more the best score of all owes to chance"
        )

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
        """Return the tags of the MLflow run."""
        number = {} if self.version is None else {REGISTERED_VERSION: self.version}
        return {CHAMPION_DECISION: self.why, **number}

    def as_json(self) -> dict[str, Any]:
        """Return everything for a JSON file."""
        found: dict[str, Any] = {
            "version": self.version,
            "champion": self.champion,
            "why": self.why,
            "against": self.against,
            "models_scored": self.scored,
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
            "p_value_needed": float(f"{level(self.challenge):.3g}"),
        }


def challenge(
    challenger: Challenger,
    *,
    register: Register = "better",
    bootstrap: int = RESAMPLES,
    seed: int,
) -> Decision:
    """Promote the model of `challenger` to champion if it is the best one, and register it.

    Each data set has its own champion, since models cannot be compared on different images. The
    first model becomes champion. Another one is promoted if it is better on the same images, by
    McNemar's test at the `level` of its challenge, or if the incumbent's files are gone. Each model
    that was scored on these images counts as a challenge, registered or not. A model selected on
    test, or with an ancestor that learnt from test images, is never promoted. The alias `champion`
    goes to the champion of the data set evaluated last, but not from a model of photographs to one
    of synthetic images.

    A model that is not promoted is registered only if `register` is "always". Nothing is registered
    without an MLflow run, or where the registry fails: the decision gives the reason. The
    evaluations of one project decide one after the other.
    """
    run_id, scored = challenger.run_id, None
    refused = None
    if register == "never":
        refused = "evaluate.register is never"
    elif run_id is None:
        refused = "the MLflow run that logged it is gone"
    # Two that decide at once would both be tested as the same challenge.
    with locked(paths.state_lock(paths.state() / "evaluate" / "champion"), wait=True):
        try:
            scored = len(registry.evaluated(challenger.dataset.digest) | {run_id})
            if refused is None and run_id is not None:
                registry.note_challenge(run_id, scored - 1)
                return _challenged(challenger, run_id, register, scored, bootstrap, seed)
        except registry.RegistryError as error:
            refused = refused or f"MLflow's model registry failed: {error}"
    return Decision(version=None, champion=False, why=str(refused), scored=scored)


def _challenged(
    challenger: Challenger,
    run_id: str,
    register: Register,
    scored: int,
    bootstrap: int,
    seed: int,
) -> Decision:
    dataset = challenger.dataset
    candidate = replace(registry.candidate(run_id), leak=challenger.seen.leak)
    while True:
        incumbent = registry.champion(dataset.digest)
        decision = _decide(candidate, incumbent, challenger, scored, bootstrap, seed)
        if register == "always" or decision.champion or candidate.number is not None:
            again = incumbent is not None and incumbent.number == candidate.number
            number = _registered(challenger, candidate, None if again else decision.why)
            candidate = replace(candidate, number=number)
        # Another project on the same store may have promoted its model during the comparison.
        if registry.champion(dataset.digest) != incumbent:
            continue
        if candidate.number is None or not decision.champion:
            break
        registry.promote(candidate.number, dataset.digest)
        # Or at this very moment: the last one stands, and the other one is compared with it.
        leader = registry.champion(dataset.digest)
        if leader is not None and leader.number == candidate.number:
            break
    leader = registry.champion(dataset.digest)
    if leader is not None:
        _lead(leader, dataset)
    return replace(decision, version=candidate.number)


def _registered(challenger: Challenger, candidate: registry.Candidate, why: str | None) -> str:
    result = challenger.result
    scores = {"accuracy": result.accuracy.value, "macro_f1": result.macro_f1.value}
    return registry.register(candidate, challenger.dataset, scores, why)


def _decide(
    candidate: registry.Candidate,
    incumbent: registry.Version | None,
    challenger: Challenger,
    scored: int,
    bootstrap: int,
    seed: int,
) -> Decision:
    dataset, decided = challenger.dataset, partial(Decision, None, scored=scored)
    if candidate.selected_on_test:
        return decided(
            False, "it was selected on the test images, and no such model becomes champion"
        )
    if candidate.leak:
        return decided(
            False, "an ancestor learnt from test images, and no such model becomes champion"
        )
    if incumbent is None:
        return decided(
            True, f"it is only the first model on {dataset.source}, compared with no other"
        )
    if incumbent.number == candidate.number:
        return decided(True, "it became champion in an earlier evaluation")
    champion = f"version {incumbent.number}, the champion so far,"
    try:
        model = registry.load_version(incumbent)
    except GoneError as error:
        return decided(True, f"{champion} is gone ({error})", incumbent.number)
    except UserError as error:
        why = (
            f"{champion} cannot be loaded now to be compared with ({error}). Try again with "
            "`dvc repro --single-item --force evaluate`, or delete its alias "
            f"champion-{dataset.digest[:8]} in MLflow to have the next model become champion"
        )
        return decided(False, why, incumbent.number)
    labels = challenger.result.labels
    old = predictions.predict(model, dataset, challenger.rows).argmax(axis=1) == labels
    comparison = compare(challenger.result.correct, old, bootstrap=bootstrap, seed=seed)
    decision: Decision = decided(False, "", incumbent.number, comparison)
    difference, needed = comparison.difference, level(decision.challenge)
    why = (
        f"its accuracy differs by {difference.value:+.4f} (95 % interval {difference.low:+.4f} to "
        f"{difference.high:+.4f}) from that of version {incumbent.number}, the champion so far; "
        f"McNemar's one-sided test gives p = {comparison.p_value:.3g}, and challenge "
        f"{decision.challenge} on these test images needs {needed:.2g} or less"
    )
    return replace(decision, champion=comparison.p_value <= needed, why=why)


def _lead(leader: registry.Version, dataset: Dataset) -> None:
    """Move the alias `champion` to `leader`, the champion of `dataset`, if it may have it."""
    before = registry.champion()
    if before == leader:
        return
    if before is not None and dataset.synthetic and not before.synthetic:
        log.info(
            "the alias champion stays with version %s, the champion of %s: %s is synthetic",
            before.number,
            _named(before.dataset, before.dataset_digest),
            dataset.source,
        )
        return
    registry.promote(leader.number)
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
