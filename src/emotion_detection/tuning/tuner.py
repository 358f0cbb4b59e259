"""The loop over trials: what is known of each, when it ends, and what is kept of it."""

import contextlib
import contextvars
import copy
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from emotion_detection.training.callbacks import Row, best_epoch
from emotion_detection.training.checkpoints import Checkpoints
from emotion_detection.tuning.pruning import estimate, is_behind
from emotion_detection.tuning.records import Record, Records
from emotion_detection.tuning.task import (
    COMPLETE,
    ENDS,
    OUT_OF_TIME,
    PRUNED,
    Outcome,
    RunTrial,
    SearchError,
    Task,
    Trial,
)

FINALISTS = 3
"""Trials that are repeated with other seeds, that of params.yaml among them."""

PAUSE = 0.2
"""Seconds until a worker asks again for a trial, where the oracle had none yet."""


class Tuner:
    """Runs the trials of an oracle by `run`, as many at once as tune.workers says."""

    def __init__(self, oracle: Any, run: RunTrial, task: Task, records: Records) -> None:
        """Go on with the trials that `oracle` has begun."""
        self.oracle = oracle
        self._run, self._task, self._records = run, task, records
        self._began: dict[str, float] = {}
        self._turn, self._interrupted = threading.Lock(), threading.Event()

    def search(self) -> None:
        """Run trials until the oracle has none left.

        A trial that fails is one of the results, and a SearchError ends the search.
        """
        names = [f"worker {number + 1}" for number in range(self._task.settings.workers)]
        self.side_by_side([partial(self._work, name) for name in names])

    def side_by_side(self, jobs: Sequence[Callable[[], object]]) -> None:
        """Do all `jobs`, as many at once as tune.workers says."""
        workers = self._task.settings.workers
        if workers == 1:
            for job in jobs:
                job()
            return
        with ThreadPoolExecutor(workers) as pool:
            # What each logs goes to a child of this thread's run.
            waiting = [pool.submit(contextvars.copy_context().run, job) for job in jobs]
            try:
                for each in as_completed(waiting):
                    each.result()
            except BaseException:
                self._interrupted.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _work(self, name: str) -> None:
        while (trial := self.oracle.create_trial(name)).status != "STOPPED":
            if self._interrupted.is_set():
                raise KeyboardInterrupt
            if trial.status == "IDLE":
                # Hyperband waits for what others train.
                time.sleep(PAUSE)
                continue
            number, values = int(trial.trial_id) + 1, trial.hyperparameters.values
            until = values.get("tuner/epochs", self._task.settings.epochs)
            # The oracle has the trial too, and others see it.
            ended = copy.copy(trial)
            try:
                metrics = self.train(number, values, until=until)
            except SearchError:
                raise
            except Exception:
                ended.status, ended.message = "FAILED", traceback.format_exc()
            else:
                self.oracle.update_trial(trial.trial_id, metrics)
                ended.status = "COMPLETED"
            self.oracle.end_trial(ended)

    def train(
        self, number: int, values: Mapping[str, Any], *, until: int, repeat: int = 0
    ) -> dict[str, float]:
        """Return the metrics of a trial; what was trained of it before is not done again.

        A `repeat` has another seed, and ends with its last epoch only.
        """
        task, seed = self._task, self._task.seed + repeat
        key = task.key(values, seed)
        record, folder = self._records.load(key), self._records.folder(key)
        peers = self._earlier(number) if task.prunes and not repeat else None

        def is_pruned(rows: Sequence[Row]) -> bool:
            return is_behind(rows, peers or [], task.settings.epochs)

        known = None if record is None else _known(record, until, is_pruned)
        before = _seconds_before(record, folder)
        began = time.monotonic()
        reason = ""

        def stop(rows: Sequence[Row]) -> str:
            nonlocal reason
            if reason or len(rows) >= until or repeat:
                return reason
            if task.settings.workers > 1 and known is None and peers is not None:
                # Others have ended since this one began.
                peers[:] = self._earlier(number)
            if is_pruned(rows):
                reason = PRUNED
            elif known is None and self.seconds_left() <= 0:
                reason = OUT_OF_TIME
            return reason

        trial = Trial(
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
            standing=self.oracle.standing,
            interrupted=self._interrupted.is_set,
        )
        with self._running(key, before) if known is None else contextlib.nullcontext():
            outcome = self._run(trial)
        end = stop(outcome.rows) or COMPLETE
        took = before + (time.monotonic() - began if known is None else 0.0)
        if known is None:
            rows = outcome.rows
            is_whole = end == COMPLETE and (until == task.settings.epochs or len(rows) < until)
            self._keep(key, record, values, outcome, took, is_whole=is_whole)
            if is_whole or end == PRUNED:
                Checkpoints(folder).remove()
        return self._metrics(outcome, end, took)

    @contextlib.contextmanager
    def _running(self, key: str, before: float) -> Iterator[None]:
        """Count the time of the trial `key`, which took `before` already, while the block lasts."""
        self._began[key] = time.monotonic() - before
        try:
            yield
        finally:
            del self._began[key]

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
        with self._turn:
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
        for name in list(self.oracle.end_order):
            trial = self.oracle.trials[name]
            record = self._records.load(self._task.key(trial.hyperparameters.values))
            is_before = number is None or int(name) + 1 < number
            if record is not None and is_before and trial.status == "COMPLETED":
                rows = record.rows[: int(metric(trial, "epochs") or 0)]
                if not whole or end_of(trial) == COMPLETE:
                    found.append(rows)
        return found

    def seconds_left(self) -> float:
        """Return how long the search may still take, without the repeats at its end."""
        ended = list(self.oracle.trials.values())
        took = [metric(trial, "seconds") or 0.0 for trial in ended]
        took += [time.monotonic() - began for began in list(self._began.values())]
        whole = [
            metric(trial, "seconds") or 0.0
            for trial in ended
            if trial.status == "COMPLETED" and end_of(trial) == COMPLETE
        ]
        mean = sum(whole) / len(whole) if whole else 0.0
        repeats = FINALISTS * self._task.settings.repeats * mean
        return self._task.budget - (sum(took) + repeats) / self._task.settings.workers

    def is_over(self) -> bool:
        """Return whether no time is left for another trial."""
        return bool(self.oracle.trials) and self.seconds_left() <= 0

    def tidy(self) -> None:
        """Remove the checkpoints from which hyperband might have trained trials further."""
        for trial in self.oracle.trials.values():
            key = self._task.key(trial.hyperparameters.values)
            Checkpoints(self._records.folder(key)).remove()


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
