"""The search for a network: KerasTuner's oracles over the space in params.yaml.

Finished trials are kept on disk, so an interrupted search goes on with the next one. It runs
in this process, or in the workers of which this process is the chief or one.
"""

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
import pandas as pd
from keras_tuner.src import config

from emotion_detection.console import Progress, UserError, duration, log
from emotion_detection.data.splits import Split
from emotion_detection.figures import training as figures
from emotion_detection.files import atomic
from emotion_detection.models.network import forward_gflops
from emotion_detection.params import Network, Tune
from emotion_detection.tracking.tags import BEST_TRIAL, WORKERS
from emotion_detection.tuning.space import columns_of, contains, declare, network_of, values_of
from emotion_detection.tuning.workers import at_work, hushed, is_chief, lead

# It would print the traceback of a trial that fails, of which `search` logs the reason.
config.DEBUG = False

OBJECTIVE = keras_tuner.Objective("val_accuracy", "max")

NOTE = (
    "Its trials are the child runs: select them to compare. Their networks are in their parameters."
)

MESSAGE = "message.txt"
"""The name, in a trial's folder, of what its worker says of its failure: KerasTuner's protocol has
no place for it."""


@dataclass(frozen=True)
class Outcome:
    """What a trial's training came to; the figures are those of its best epoch."""

    val_accuracy: float
    val_loss: float
    parameters: int
    epochs: int


@dataclass(frozen=True)
class Trial:
    """One network to look at, and how far to train it.

    Hyperband trains the promising ones further: `first_epoch` and `continues`, the checkpoint to
    go on from, say where an earlier trial left off, and `checkpoint` where to leave this one's.
    `standing` says how the search stands, for who watches it.
    """

    number: int
    total: int
    network: Network
    first_epoch: int
    epochs: int
    continues: Path | None
    checkpoint: Path
    standing: str = ""


RunTrial = Callable[[Trial], Outcome]


class _Oracle:
    """An oracle that looks at the baseline first, and draws no network above a cost.

    It says how the search stands when a trial ends, and logs what is news; it writes its state
    atomically, and lets trials be taken from workers that are gone.
    """

    # KerasTuner's, by the class that this one is mixed into.
    trials: dict[str, Any]
    ongoing_trials: dict[str, Any]
    start_order: list[str]
    end_order: list[str]
    tuner_ids: set[str]
    max_trials: int
    _retry_queue: list[str]

    def __init__(
        self,
        *,
        baseline: dict[str, Any] | None,
        affordable: Callable[[Mapping[str, Any]], bool],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._baseline, self._affordable = baseline, affordable
        # A ceiling can rule out most of a space, and a draw takes about two milliseconds.
        self._max_collisions = 2_000
        self.verbose = 0
        self.trouble: Exception | None = None
        self.callers: set[str] = set()
        # KerasTuner's own lock stays closed after an exception.
        self._turn = threading.RLock()
        self._began, self._ended_before = time.monotonic(), 0
        self.progress: Progress | None = None
        self.standing = ""

    def _random_values(self) -> dict[str, Any] | None:
        if not self.trials and self._baseline is not None:
            return dict(self._baseline)
        return super()._random_values()  # type: ignore[misc]

    def _duplicate(self, values: Mapping[str, Any]) -> bool:
        return not self._affordable(values) or super()._duplicate(values)  # type: ignore[misc]

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        with self._turn:
            try:
                yield
            except Exception as error:
                self.trouble = error
                raise

    def create_trial(self, tuner_id: str) -> Any:
        with self._in_turn():
            self.callers.add(tuner_id)
            return super().create_trial(tuner_id)  # type: ignore[misc]

    def update_trial(self, trial_id: str, metrics: Mapping[str, float], step: int = 0) -> Any:
        with self._in_turn():
            if trial_id in self.end_order:
                return self.trials[trial_id]
            return super().update_trial(trial_id, metrics, step)  # type: ignore[misc]

    def end_trial(self, trial: Any) -> None:
        with self._in_turn():
            trial_id = trial.trial_id
            if trial_id in self.end_order:
                # Its worker was taken for dead, and another has run it.
                return
            if trial_id in self._retry_queue:
                self._retry_queue.remove(trial_id)
            if trial.status != "COMPLETED" and trial.message is None:
                with contextlib.suppress(OSError):
                    message = Path(self._get_trial_dir(trial_id)) / MESSAGE  # type: ignore[attr-defined]
                    trial.message = message.read_text(encoding="utf-8")
            super().end_trial(trial)  # type: ignore[misc]
            self._tell(self.trials[trial_id])

    def _tell(self, ended: Any) -> None:
        done, total = len(self.end_order), self.max_trials
        mean = (time.monotonic() - self._began) / max(1, done - self._ended_before)
        left = f"about {duration(mean * (total - done))} left" if done < total else "the last one"
        best = self.get_best_trials(1)[0]  # type: ignore[attr-defined]
        number, failed = int(ended.trial_id) + 1, ended.status != "COMPLETED"
        self.standing = f"search: {left}"
        if best.status == "COMPLETED":
            self.standing += f", best {100 * best.score:.1f} %"
        if failed:
            log.info("tune: trial %d/%d failed: %s", number, total, _last_line(ended.message))
        elif best.trial_id == ended.trial_id:
            log.info(
                "tune: trial %d/%d: validation accuracy %.1f %%, the best so far; %s",
                *(number, total, 100 * ended.score, left),
            )
        if self.progress is not None:
            self.progress.advance(1, f"{done} of {total} trials; {self.standing}")

    @property
    def waiting(self) -> bool:
        return bool(self._retry_queue)

    def give_back(self, worker: str) -> None:
        with self._in_turn():
            self.tuner_ids.discard(worker)
            trial = self.ongoing_trials.pop(worker, None)
            if trial is not None:
                self._retry_queue.append(trial.trial_id)
                self.save()

    def fail(self, worker: str, message: str) -> None:
        with self._in_turn():
            trial = self.ongoing_trials[worker]
            trial.status, trial.message = "FAILED", message
            self.end_trial(trial)

    def save(self) -> None:
        path = self._get_oracle_fname()  # type: ignore[attr-defined]
        _write(Path(path), self.get_state())  # type: ignore[attr-defined]

    def _save_trial(self, trial: Any) -> None:
        folder = self._get_trial_dir(trial.trial_id)  # type: ignore[attr-defined]
        _write(Path(folder) / "trial.json", trial.get_state())

    def reload(self) -> None:
        super().reload()  # type: ignore[misc]
        # KerasTuner reads them in any order, and the first of equals is the best; one that was
        # drawn and not yet written down as begun is drawn again.
        self.trials = {number: self.trials[number] for number in sorted(self.start_order)}
        self._ended_before = len(self.end_order)


def _write(path: Path, state: Mapping[str, Any]) -> None:
    # Several times a trial, and all that was tried so far: indented it takes six times as long.
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(state), encoding="utf-8")


class _RandomOracle(_Oracle, keras_tuner.oracles.RandomSearchOracle):
    pass


class _HyperbandOracle(_Oracle, keras_tuner.oracles.HyperbandOracle):
    def first_round(self) -> tuple[int, int]:
        """Return how many networks the first round looks at, and for how many epochs each."""
        bracket = self._get_num_brackets() - 1
        return self._get_size(bracket, 0), self._get_epochs(bracket, 0)


class _BayesianOracle(_Oracle, keras_tuner.oracles.BayesianOptimizationOracle):
    def populate_space(self, trial_id: str) -> dict[str, Any]:
        # It is not among what KerasTuner saves, and a search taken up again would differ.
        self._random_state = np.random.RandomState(self.seed + len(self.trials))
        response = super().populate_space(trial_id)
        # The Gaussian process knows no ceiling, and proposes the same network again when sure.
        if self.trials and response["values"] and self._duplicate(response["values"]):
            return self._random_populate_space()
        return response


class _Tuner(keras_tuner.Tuner):
    """KerasTuner's loop around `run`, a trial at a time."""

    def __init__(self, run: RunTrial, baseline: Network, epochs: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._run, self._baseline, self._epochs = run, baseline, epochs

    def pre_create_trial(self) -> None:
        if self._is_worker():
            # Hyperband has workers wait for each other, and KerasTuner asks again at once.
            time.sleep(0.2)

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        values = trial.hyperparameters.values
        # Keras keeps every graph ever built until it is told not to.
        keras.backend.clear_session()
        earlier = values.get("tuner/trial_id")
        began = time.monotonic()
        outcome = self._run(
            Trial(
                number=int(trial.trial_id) + 1,
                total=self.oracle.max_trials,
                network=network_of(values, self._baseline),
                first_epoch=values.get("tuner/initial_epoch", 0),
                epochs=values.get("tuner/epochs", self._epochs),
                continues=self._checkpoint(earlier) if earlier is not None else None,
                checkpoint=self._checkpoint(trial.trial_id),
                # A worker's oracle is its chief, which says so itself.
                standing=getattr(self.oracle, "standing", ""),
            )
        )
        return {**asdict(outcome), "seconds": round(time.monotonic() - began, 3)}

    def _checkpoint(self, trial_id: str) -> Path:
        return Path(self.get_trial_dir(trial_id)) / "last.weights.h5"

    def on_trial_end(self, trial: Any) -> None:
        if trial.message is not None:
            message = Path(self.get_trial_dir(trial.trial_id)) / MESSAGE
            message.write_text(trial.message, encoding="utf-8")
        super().on_trial_end(trial)

    def save(self) -> None:
        if not self._is_worker():
            super().save()

    def _get_tuner_fname(self) -> str:
        # One name, so that a search goes on with however many workers.
        name = f"{self.tuner_id}.json" if self._is_worker() else "tuner.json"
        return str(Path(self.project_dir) / name)


@dataclass(frozen=True)
class Task:
    """What a search is about: `settings`, the network it starts from, and the images it is for."""

    settings: Tune
    baseline: Network
    image_shape: tuple[int, int, int]
    classes: int
    seed: int

    def gflops(self, values: Mapping[str, Any]) -> float:
        """Return 1e9 operations of a forward pass of the network for KerasTuner's `values`."""
        return forward_gflops(network_of(values, self.baseline), self.image_shape, self.classes)

    def affordable(self, values: Mapping[str, Any]) -> bool:
        """Return whether tune.max_gflops allows the network for `values`."""
        most = self.settings.max_gflops
        return most is None or self.gflops(values) <= most


def search(
    task: Task, *, folder: Path, run: RunTrial, command: Sequence[str] = ()
) -> tuple[Network, pd.DataFrame]:
    """Look at tune.trials networks, the baseline first if tune.space has it, and return the best.

    Where tune.workers is more than one, processes of `command`, which call `work` with the same
    arguments, run the trials while this one is their chief.

    What is already in `folder` is not done again: the caller names it after all that a trial's
    outcome depends on. The table has a row per trial: trial, status (COMPLETED or FAILED),
    val_accuracy, val_loss, parameters, gflops, epochs, seconds, the hyperparameters, message.

    Raises:
        UserError: if every trial failed, no network of tune.space is under tune.max_gflops, what
            is in `folder` is damaged, or a worker cannot be started.

    """
    tuner = _tuner(task, folder, run, quiet=False)
    oracle, settings, workers = tuner.oracle, task.settings, task.settings.workers
    if oracle.end_order:
        log.info("tune: goes on with a search of %d finished trials", len(oracle.end_order))
    with Progress("tune", bar=is_chief(workers)) as oracle.progress:
        oracle.progress.begin(settings.trials, len(oracle.end_order))
        if is_chief(workers):
            tuner.save()
            lead(oracle, workers=workers, command=command, folder=folder)
        else:
            tuner.search()
    return _found(oracle, task, folder)


def work(task: Task, worker: str, *, folder: Path, run: RunTrial) -> None:
    """Run trials of the search in `folder` as `worker`, until its chief has none left.

    Raises:
        UserError: if what is in `folder` is damaged.

    """
    tuner = _tuner(task, folder, run, quiet=True)
    with at_work(worker, folder):
        tuner.search()


def _tuner(task: Task, folder: Path, run: RunTrial, *, quiet: bool) -> _Tuner:
    """Return KerasTuner's tuner, which goes on with what is in `folder`."""
    oracle = _oracle(task, quiet=quiet)
    place = {"directory": str(folder.parent), "project_name": folder.name}
    try:
        with hushed():
            return _Tuner(run, task.baseline, task.settings.epochs, oracle=oracle, **place)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        # KerasTuner writes its state in place, and a killed search can leave half of it.
        raise UserError(
            f"{folder}: damaged state of a search ({error}); remove it to search anew"
        ) from error


def _oracle(task: Task, *, quiet: bool) -> Any:
    """Return KerasTuner's oracle for `task`; `quiet` where another process says what there is."""
    settings = task.settings
    in_space = contains(settings.space, task.baseline)
    if not in_space and not quiet:
        log.info("tune: no trial has the network of params.yaml, which is outside tune.space")
    common = {
        "objective": OBJECTIVE,
        "hyperparameters": declare(settings.space),
        "allow_new_entries": False,
        "tune_new_entries": False,
        # KerasTuner takes a seed of 0 for none.
        "seed": task.seed + 1,
        "max_consecutive_failed_trials": settings.trials + 1,
        "baseline": values_of(task.baseline) if in_space else None,
        "affordable": task.affordable,
    }
    if settings.oracle == "bayesian":
        # KerasTuner's default is three draws per hyperparameter, more than most searches' trials.
        first = max(3, settings.trials // 3)
        return _BayesianOracle(max_trials=settings.trials, num_initial_points=first, **common)
    if settings.oracle == "random":
        return _RandomOracle(max_trials=settings.trials, **common)
    # 0 is without end: its rounds begin anew until there were enough trials.
    oracle = _HyperbandOracle(max_epochs=settings.epochs, hyperband_iterations=0, **common)
    oracle.max_trials = settings.trials
    networks, first_epochs = oracle.first_round()
    if settings.trials <= networks and first_epochs < settings.epochs and not quiet:
        log.warning(
            "hyperband first looks at %d networks for %d of tune.epochs = %d epochs each, and "
            "tune.trials = %d leaves none to train the best of them further; raise tune.trials",
            *(networks, first_epochs, settings.epochs, settings.trials),
        )
    return oracle


def _found(oracle: Any, task: Task, folder: Path) -> tuple[Network, pd.DataFrame]:
    settings = task.settings
    if not oracle.trials:
        raise UserError(
            f"tune.max_gflops = {settings.max_gflops}: no network of tune.space is that cheap; "
            "raise it, or add smaller filters to tune.space"
        )
    if len(oracle.trials) < settings.trials:
        limit = settings.max_gflops
        log.warning(
            "the search ended after %d of %d trials: tune.space has no other network%s",
            len(oracle.trials),
            settings.trials,
            "" if limit is None else f" under tune.max_gflops = {limit}",
        )
    table = pd.DataFrame([_row(trial, task) for trial in oracle.trials.values()])
    table = table.sort_values("trial", ignore_index=True)
    # A failed trial has neither, which would make floats of them.
    table = table.astype({"parameters": "Int64", "epochs": "Int64"})
    if not (table["status"] == "COMPLETED").any():
        # Or the next search would go on with it, and fail before its first trial.
        shutil.rmtree(folder)
        raise UserError(f"every trial of the search failed; the first: {table['message'][0]}")
    for weights in folder.rglob("*.weights.h5"):
        # Of trials that hyperband may have trained further.
        weights.unlink()
    best = oracle.get_best_trials(1)[0]
    return network_of(best.hyperparameters.values, task.baseline), table


def _row(trial: Any, task: Task) -> dict[str, Any]:
    values = trial.hyperparameters.values

    def metric(name: str) -> float | None:
        return trial.metrics.get_last_value(name) if trial.metrics.exists(name) else None

    return {
        "trial": int(trial.trial_id) + 1,
        "status": trial.status,
        **{
            name: metric(name)
            for name in ("val_accuracy", "val_loss", "parameters", "epochs", "seconds")
        },
        "gflops": round(task.gflops(values), 4),
        **columns_of(network_of(values, task.baseline)),
        "message": _last_line(trial.message),
    }


def _last_line(message: str | None) -> str:
    lines = (message or "").strip().splitlines()
    return lines[-1] if lines else ""


def description(settings: Tune, rows: Split) -> str:
    """Return a search in words, for the log and MLflow."""
    return (
        f"A {settings.oracle} search of {settings.trials} trials of at most {settings.epochs} "
        f"epochs on {len(rows.train):,} train and {len(rows.validation):,} validation images"
    )


def summary(table: pd.DataFrame) -> str:
    """Return what a search came to, in words."""
    best = table.loc[table["val_accuracy"].idxmax()]
    return (
        f"best validation accuracy {100 * best['val_accuracy']:.1f} %, of trial {best['trial']} "
        f"of {len(table)} (filters {best['filters']}; kernel sizes {best['kernel_sizes']}; dense "
        f"units {best['dense_units']})"
    )


def report(table: pd.DataFrame, chosen: Network, settings: Tune) -> dict[str, Any]:
    """Return what `Stage.write` writes of a search with the trials `table`."""
    found = table["val_accuracy"].idxmax()
    best, accuracy = int(table["trial"][found]), float(table["val_accuracy"][found])
    network = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in columns_of(chosen).items()
    )
    return {
        "metrics": {
            "tune/trials": len(table),
            "tune/failed": int((table["status"] != "COMPLETED").sum()),
            "tune/best_val_accuracy": float(table["val_accuracy"].max()),
        },
        "tables": {"trials": table},
        "figures": {"trials": figures.trials(table)},
        # Not in DVC's tables, where it would seem a change between any two experiments.
        "more_metrics": {"tune/seconds": float(table["seconds"].sum())},
        "tags": {BEST_TRIAL: f"{best:02d}", WORKERS: str(settings.workers)},
        "headline": (
            f"best of {len(table)} trials: trial {best:02d}, validation accuracy "
            f"{100 * accuracy:.1f} %, with {network}"
        ),
    }
