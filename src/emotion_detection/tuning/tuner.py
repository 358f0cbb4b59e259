"""KerasTuner's loop over trials: what is known of each, when it ends, and what is kept of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import pandas as pd

from emotion_detection.training.callbacks import Row, best_epoch
from emotion_detection.training.checkpoints import Checkpoints
from emotion_detection.tuning.oracle import MESSAGE
from emotion_detection.tuning.pruning import estimate, is_behind
from emotion_detection.tuning.records import Record, Records
from emotion_detection.tuning.task import (
    COMPLETE,
    ENDS,
    OUT_OF_TIME,
    PRUNED,
    Outcome,
    RunTrial,
    Task,
    Trial,
)

FINALISTS = 3
"""Trials that are repeated with other seeds, that of params.yaml among them."""


class Tuner(keras_tuner.Tuner):
    """KerasTuner's loop around `run`, a trial at a time."""

    def __init__(self, run: RunTrial, task: Task, records: Records, **kwargs: Any) -> None:
        """Go on with what is in the folder that `kwargs` name."""
        super().__init__(**kwargs)
        self._run, self._task, self._records = run, task, records

    def pre_create_trial(self) -> None:
        """Wait a moment."""
        if self._is_worker():
            # Hyperband has workers wait for each other, and KerasTuner asks again at once.
            time.sleep(0.2)

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the metrics of a trial of the oracle."""
        number, values = int(trial.trial_id) + 1, trial.hyperparameters.values
        until = values.get("tuner/epochs", self._task.settings.epochs)
        return self.train(number, values, until=until)

    def train(
        self, number: int, values: Mapping[str, Any], *, until: int, repeat: int = 0
    ) -> dict[str, float]:
        """Return KerasTuner's metrics of a trial; what was trained of it before is not done again.

        A `repeat` has another seed, and ends with its last epoch only.
        """
        task, seed = self._task, self._task.seed + repeat
        key = task.key(values, seed)
        record, folder = self._records.load(key), self._records.folder(key)
        peers = [] if repeat or not task.prunes else self._earlier(number)

        def is_pruned(rows: Sequence[Row]) -> bool:
            return is_behind(rows, peers, task.settings.epochs)

        known = None if record is None else _known(record, until, is_pruned)
        before = _seconds_before(record, folder)
        began = time.monotonic()

        def stop(rows: Sequence[Row]) -> str:
            if len(rows) >= until or repeat:
                return ""
            if is_pruned(rows):
                return PRUNED
            left = self.seconds_left() - before - (time.monotonic() - began)
            return OUT_OF_TIME if known is None and left <= 0 else ""

        # Keras keeps every graph ever built until it is told not to.
        keras.backend.clear_session()
        outcome = self._run(
            Trial(
                name=f"trial {number:02d}" + (f", seed {seed}" if repeat else ""),
                number=number,
                total=task.settings.trials,
                network=task.network_of(values),
                training=task.training_of(values),
                drawn=task.drawn(values),
                until=until,
                seed=seed,
                folder=folder,
                stop=stop,
                known=known,
                # A worker's oracle is its chief, which says so itself.
                standing=getattr(self.oracle, "standing", ""),
            )
        )
        rows = outcome.rows
        end = stop(rows) or COMPLETE
        took = before + (time.monotonic() - began if known is None else 0.0)
        if known is None:
            is_whole = end == COMPLETE and (until == task.settings.epochs or len(rows) < until)
            self._keep(key, record, values, outcome, took, is_whole=is_whole)
            if is_whole or end == PRUNED:
                Checkpoints(folder).remove()
        return self._metrics(outcome, end, took)

    def _keep(
        self,
        key: str,
        earlier: Record | None,
        values: Mapping[str, Any],
        outcome: Outcome,
        took: float,
        *,
        is_whole: bool,
    ) -> None:
        settings = self._task.settings_of(values)
        order = len(self._records.all()) if earlier is None else earlier.order
        record = Record(settings, order, outcome.rows, outcome.parameters, took, is_whole)
        self._records.save(key, record)

    def _metrics(self, outcome: Outcome, end: str, took: float) -> dict[str, float]:
        best = best_epoch(pd.DataFrame(outcome.rows))
        accuracy = float(best["val_accuracy"])
        return {
            "val_accuracy": accuracy,
            "val_loss": float(best["val_loss"]),
            "parameters": outcome.parameters,
            "epochs": len(outcome.rows),
            "seconds": round(took, 3),
            "end": ENDS.index(end),
            # What the oracle learns from.
            "score": (
                accuracy if end == COMPLETE else estimate(outcome.rows, self._earlier(whole=True))
            ),
        }

    def _earlier(self, number: int | None = None, *, whole: bool = False) -> list[Sequence[Row]]:
        """Return the epochs of the trials that ended, those before `number`, or the whole ones."""
        found = []
        for name in () if self._is_worker() else self.oracle.end_order:
            trial = self.oracle.trials[name]
            record = self._records.load(self._task.key(trial.hyperparameters.values))
            is_before = number is None or int(name) + 1 < number
            if record is not None and is_before and trial.status == "COMPLETED":
                rows = record.rows[: int(metric(trial, "epochs") or 0)]
                if not whole or end_of(trial) == COMPLETE:
                    found.append(rows)
        return found

    def seconds_left(self) -> float:
        """Return how long trials may still take, without the running one."""
        if self._is_worker():
            return self._task.budget
        trials = self.oracle.trials.values()
        took = [metric(trial, "seconds") or 0.0 for trial in trials]
        whole = [
            metric(trial, "seconds") or 0.0
            for trial in trials
            if trial.status == "COMPLETED" and end_of(trial) == COMPLETE
        ]
        mean = sum(whole) / len(whole) if whole else 0.0
        return self._task.budget - sum(took) - FINALISTS * self._task.settings.repeats * mean

    def is_over(self) -> bool:
        """Return whether no time is left for another trial."""
        return bool(self.oracle.trials) and self.seconds_left() <= 0

    def tidy(self) -> None:
        """Remove the checkpoints from which hyperband might have trained trials further."""
        for trial in self.oracle.trials.values():
            key = self._task.key(trial.hyperparameters.values)
            Checkpoints(self._records.folder(key)).remove()

    def on_trial_end(self, trial: Any) -> None:
        """Tell the oracle, and leave word of what failed."""
        if trial.message is not None:
            message = Path(self.get_trial_dir(trial.trial_id)) / MESSAGE
            message.write_text(trial.message, encoding="utf-8")
        super().on_trial_end(trial)

    def save(self) -> None:
        """Write the state, if it is this process's."""
        if not self._is_worker():
            super().save()

    def _get_tuner_fname(self) -> str:
        # One name, so that a search goes on with however many workers.
        name = f"{self.tuner_id}.json" if self._is_worker() else "tuner.json"
        return str(Path(self.project_dir) / name)


def _known(
    record: Record, until: int, is_pruned: Callable[[Sequence[Row]], bool]
) -> Outcome | None:
    """Return what a trial comes to by its record, None if that does not say."""
    rows = record.rows[:until]
    lengths = range(1, len(rows) + 1)
    ended = next((length for length in lengths if is_pruned(rows[:length])), None)
    if ended is not None:
        return Outcome(rows[:ended], record.parameters)
    is_enough = record.complete or len(rows) == until
    return Outcome(rows, record.parameters) if is_enough else None


def _seconds_before(record: Record | None, folder: Path) -> float:
    if record is not None:
        return record.seconds
    return sum(row["seconds"] for row in Checkpoints(folder).rows())


def metric(trial: Any, name: str) -> float | None:
    """Return a metric of KerasTuner's `trial`, None if it has none."""
    return trial.metrics.get_last_value(name) if trial.metrics.exists(name) else None


def end_of(trial: Any) -> str:
    """Return how KerasTuner's `trial`, which completed, ended."""
    return ENDS[int(metric(trial, "end") or 0)]
