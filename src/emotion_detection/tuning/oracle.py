"""KerasTuner's oracles, which propose the trials of a search."""

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np

from emotion_detection.console import Progress, duration, log
from emotion_detection.files import atomic

OUTSIDE = "outside"
"""Among a trial's values: it has the settings of params.yaml, which tune.space does not have."""

INITIAL = 5
"""Trials that a Bayesian search draws at random before its Gaussian process proposes."""

CANDIDATES = 200
"""Of the Gaussian process, at random, and as many near the best trials."""


def last_line(message: str | None) -> str:
    """Return the last line of a traceback, which says what was wrong."""
    lines = (message or "").strip().splitlines()
    # TensorFlow names the operation of its graph after that.
    said = [line for line in lines if not line.lstrip().startswith("[[")]
    return said[-1] if said else ""


class Oracle:
    """An oracle that looks at params.yaml first, and draws no network above a cost.

    It says how the search stands when a trial ends, and logs what is news; it writes its state
    atomically. Several threads may ask it.
    """

    # KerasTuner's, by the class that this one is mixed into.
    trials: dict[str, Any]
    start_order: list[str]
    end_order: list[str]
    max_trials: int

    def __init__(
        self,
        *,
        incumbent: Mapping[str, Any] | None,
        kept: Sequence[Mapping[str, Any]],
        allowed: Callable[[Mapping[str, Any]], bool],
        key: Callable[[Mapping[str, Any]], str],
        **kwargs: Any,
    ) -> None:
        """Propose KerasTuner's values `incumbent`, then those `kept`, and then what is `allowed`.

        Equal settings have the same `key`.
        """
        super().__init__(**kwargs)
        self._incumbent, self._kept = incumbent, kept
        self._allowed, self._key = allowed, key
        self._keys: dict[str, str] = {}
        self.total: int | None = self.max_trials
        self.is_over: Callable[[], bool] = bool
        self.seconds_left: Callable[[], float] = lambda: math.inf
        # A ceiling can rule out most of a space, and a draw takes about two milliseconds.
        self._max_collisions = 2_000
        self.verbose = 0
        self.trouble: Exception | None = None
        self._turn = threading.RLock()
        self._began, self._ended_before = time.monotonic(), 0
        self.progress: Progress | None = None
        self.standing = ""

    def _random_values(self) -> dict[str, Any] | None:
        if not self.trials and self._incumbent is not None:
            return dict(self._incumbent)
        if self.trials and (kept := self._next_kept()) is not None:
            return dict(kept)
        values = super()._random_values()  # type: ignore[misc]
        if not self.trials:
            # KerasTuner wants values for all that a trial could have.
            return {**(values or {}), OUTSIDE: 1}
        return values

    def _next_kept(self) -> Mapping[str, Any] | None:
        """Return the first of those kept from an earlier search that is no trial of this one."""
        return next((values for values in self._kept if not self._duplicate(values)), None)

    def _duplicate(self, values: Mapping[str, Any]) -> bool:
        # KerasTuner compares numbers with all their digits.
        for name, trial in self.trials.items():
            if name not in self._keys:
                self._keys[name] = self._key(trial.hyperparameters.values)
        return not self._allowed(values) or self._key(values) in self._keys.values()

    def score_trial(self, trial: Any) -> None:
        """Give a trial that ended early the score that it would have come to."""
        super().score_trial(trial)  # type: ignore[misc]
        if trial.metrics.exists("score"):
            trial.score = trial.metrics.get_last_value("score")

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        with self._turn:
            if self.trouble is not None:
                # KerasTuner's own lock stays closed after an exception.
                raise self.trouble
            try:
                yield
            except Exception as error:
                self.trouble = error
                raise

    def create_trial(self, tuner_id: str) -> Any:
        """Return the next trial for `tuner_id`, one of those who ask."""
        with self._in_turn():
            if self.is_over():
                self.max_trials = len(self.trials)
            return super().create_trial(tuner_id)  # type: ignore[misc]

    def update_trial(self, trial_id: str, metrics: Mapping[str, float], step: int = 0) -> Any:
        """Note the `metrics` of a trial."""
        with self._in_turn():
            return super().update_trial(trial_id, metrics, step)  # type: ignore[misc]

    def end_trial(self, trial: Any) -> None:
        """End `trial`, and say what is news."""
        with self._in_turn():
            super().end_trial(trial)  # type: ignore[misc]
            self._tell(self.trials[trial.trial_id])

    def _tell(self, ended: Any) -> None:
        done, left = len(self.end_order), self._time_left()
        whole = [
            trial
            for trial in self.trials.values()
            if trial.status == "COMPLETED" and not self._ended_early(trial)
        ]
        best = max(whole, key=lambda trial: trial.score, default=None)
        number, of = int(ended.trial_id) + 1, "" if self.total is None else f"/{self.total}"
        until_end = f"about {duration(left)} left" if left > 0 else "the last one"
        best_so_far = "" if best is None else f"best {100 * best.score:.1f} %"
        self.standing = ", ".join(filter(None, (best_so_far, until_end)))
        if ended.status != "COMPLETED":
            log.info("tune: trial %d%s failed: %s", number, of, last_line(ended.message))
        elif best is not None and best.trial_id == ended.trial_id:
            log.info(
                "tune: trial %d%s: validation accuracy %.1f %%, the best so far; %s",
                *(number, of, 100 * ended.score, until_end),
            )
        if self.progress is not None:
            self.progress.advance(1, f"{done}{of} trials, {best_so_far or 'none completed'}")

    @staticmethod
    def _ended_early(trial: Any) -> bool:
        return trial.metrics.exists("end") and bool(trial.metrics.get_last_value("end"))

    def _time_left(self) -> float:
        """Return the seconds until the last trial, or the budget, by the mean of the trials."""
        done = len(self.end_order)
        left = self.seconds_left()
        if self.total is not None:
            mean = (time.monotonic() - self._began) / max(1, done - self._ended_before)
            left = min(left, mean * (self.total - done))
        return left

    def save(self) -> None:
        """Write the state as a whole."""
        path = self._get_oracle_fname()  # type: ignore[attr-defined]
        _write(Path(path), self.get_state())  # type: ignore[attr-defined]

    def _save_trial(self, trial: Any) -> None:
        folder = self._get_trial_dir(trial.trial_id)  # type: ignore[attr-defined]
        _write(Path(folder) / "trial.json", trial.get_state())

    def reload(self) -> None:
        """Read the state."""
        super().reload()  # type: ignore[misc]
        # KerasTuner reads them in any order, and the first of equals is the best; one that was
        # drawn and not yet written down as begun is drawn again.
        self.trials = {number: self.trials[number] for number in sorted(self.start_order)}
        self._ended_before = len(self.end_order)


def _write(path: Path, state: Mapping[str, Any]) -> None:
    # Several times a trial, and all that was tried so far: indented it takes six times as long.
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(state), encoding="utf-8")


class RandomOracle(Oracle, keras_tuner.oracles.RandomSearchOracle):
    """KerasTuner's random search."""


class HyperbandOracle(Oracle, keras_tuner.oracles.HyperbandOracle):
    """KerasTuner's rounds, each of which trains the best of the one before further."""

    def first_round(self) -> tuple[int, int]:
        """Return how many networks the first round looks at, and for how many epochs each."""
        bracket = self._get_num_brackets() - 1
        return self._get_size(bracket, 0), self._get_epochs(bracket, 0)


class BayesianOracle(Oracle, keras_tuner.oracles.BayesianOptimizationOracle):
    """KerasTuner's Gaussian process, which chooses among what may be drawn."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Return the best of some candidates by its upper confidence bound.

        KerasTuner climbs to a maximum anywhere, which may be too expensive, or a trial that was.
        The candidates are drawn at random and, half of them, near the best trials so far, as in
        SMAC (Hutter, Hoos and Leyton-Brown 2011, LION 5).
        """
        completed = [trial for trial in self._in_space() if trial.status == "COMPLETED"]
        if len(completed) < self.num_initial_points or self._next_kept() is not None:
            return self._random_populate_space()
        x, y = self._vectorize_trials()
        # It is not among what KerasTuner saves, and a search taken up again would differ.
        generator = np.random.default_rng([self.seed, len(self.trials)])
        self.gpr.fit(x, y)
        vectors = generator.uniform(size=(CANDIDATES, x.shape[1]))
        near = x[np.argsort(y)[: max(1, len(y) // 4)]]
        local = near[generator.integers(len(near), size=CANDIDATES)]
        moved = generator.uniform(size=local.shape) < 2 / x.shape[1]
        vectors = np.concatenate([vectors, np.where(moved, vectors, local)])
        proposals = [self._vector_to_values(vector) for vector in vectors]
        proposals = [values for values in proposals if not self._duplicate(values)]
        if not proposals:
            return self._random_populate_space()
        means, deviations = self.gpr.predict(
            np.array([self._vector(values) for values in proposals]), return_std=True
        )
        best = int(np.argmin(means - self.beta * deviations))
        return {"status": "RUNNING", "values": proposals[best]}

    def _vector(self, values: Mapping[str, Any]) -> list[float]:
        return [hp.value_to_prob(values.get(hp.name, hp.default)) for hp in self._nonfixed_space()]

    def _in_space(self) -> list[Any]:
        trials = self.trials.values()
        return [trial for trial in trials if OUTSIDE not in trial.hyperparameters.values]

    def _vectorize_trials(self) -> tuple[Any, Any]:
        everything = self.trials
        self.trials = {trial.trial_id: trial for trial in self._in_space()}
        try:
            return super()._vectorize_trials()
        finally:
            self.trials = everything
