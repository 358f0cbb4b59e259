"""The search: KerasTuner's oracles over tune.space, trial by trial.

Finished trials are kept on disk, and so is every epoch of one that is not, so an interrupted search
goes on with the next epoch. It runs in this process, or in the workers of which this process is the
chief or one.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import pandas as pd
from keras_tuner.src import config
from pydantic import ValidationError

from emotion_detection.console import Progress, UserError, log
from emotion_detection.models.network import forward_gflops
from emotion_detection.params import Network, Train, Tune
from emotion_detection.sections import flat, updated
from emotion_detection.space import Space
from emotion_detection.tuning.oracle import (
    INITIAL,
    MESSAGE,
    OUTSIDE,
    BayesianOracle,
    HyperbandOracle,
    RandomOracle,
    last_line,
)
from emotion_detection.tuning.workers import at_work, hushed, is_chief, lead

# It would print the traceback of a trial that fails, of which `search` logs the reason.
config.DEBUG = False

OBJECTIVE = keras_tuner.Objective("val_accuracy", "max")


@dataclass(frozen=True)
class Outcome:
    """What a trial's training came to; the figures are those of its best epoch."""

    val_accuracy: float
    val_loss: float
    parameters: int
    epochs: int


@dataclass(frozen=True)
class Trial:
    """One network to look at, and how to train it.

    `drawn` is what is searched, by dotted name. It trains until the epoch `until`: hyperband trains
    the promising ones further later, from the checkpoints in `folder`. `standing` says how the
    search stands, for who watches it.
    """

    number: int
    total: int
    network: Network
    training: Train
    drawn: Mapping[str, Any]
    until: int
    folder: Path
    standing: str = ""


RunTrial = Callable[[Trial], Outcome]


@dataclass(frozen=True)
class Task:
    """What a search is about: its settings, those of params.yaml, and the images it is for."""

    settings: Tune
    network: Network
    train: Train
    image_shape: tuple[int, int, int]
    classes: int
    seed: int
    space: Space = field(init=False)

    def __post_init__(self) -> None:
        """Read tune.space."""
        sections = {"network": self.network, "train": self.train}
        object.__setattr__(self, "space", Space(self.settings.space, sections))

    @property
    def own(self) -> dict[str, Any]:
        """The settings of params.yaml, by dotted name."""
        return flat(self.network, "network.") | flat(self.train, "train.")

    def drawn(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is searched, by dotted name, for KerasTuner's `values`."""
        if OUTSIDE in values:
            return {name: self.own[name] for name in self.space.entries}
        return self.space.drawn(values)

    def network_of(self, values: Mapping[str, Any]) -> Network:
        """Return the network for KerasTuner's `values`."""
        return updated(self.network, "network", self.drawn(values))

    def training_of(self, values: Mapping[str, Any]) -> Train:
        """Return the training of a trial for KerasTuner's `values`; raises ValidationError."""
        return shortened(updated(self.train, "train", self.drawn(values)), self.settings.epochs)

    def gflops(self, values: Mapping[str, Any]) -> float:
        """Return 1e9 operations of a forward pass of the network for KerasTuner's `values`."""
        return forward_gflops(self.network_of(values), self.image_shape, self.classes)

    def allowed(self, values: Mapping[str, Any]) -> bool:
        """Return whether `values` go together, and tune.max_gflops allows their network."""
        most = self.settings.max_gflops
        try:
            self.training_of(values)
            return most is None or self.gflops(values) <= most
        except ValidationError:
            return False

    def folder_of(self, values: Mapping[str, Any]) -> str:
        """Return a name for the trial of `values` that no other trial has."""
        settings = self.own | self.drawn(values)
        text = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def shortened(training: Train, epochs: int) -> Train:
    """Return `training` for `epochs` epochs in place of its own, with its other counts of epochs in
    proportion.
    """
    part = epochs / training.epochs
    patiences = ("early_stopping_patience", "reduce_lr_patience")
    counts: dict[str, int | None] = {
        name: min(epochs, round(part * getattr(training, name)))
        for name in ("progressive_resizing", "no_aug_epochs")
    }
    for name in patiences:
        patience = getattr(training, name)
        counts[name] = None if patience is None else max(1, round(part * patience))
    return training.model_copy(update={**counts, "epochs": epochs})


class _Tuner(keras_tuner.Tuner):
    """KerasTuner's loop around `run`, a trial at a time."""

    def __init__(self, run: RunTrial, task: Task, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._run, self._task = run, task

    def pre_create_trial(self) -> None:
        if self._is_worker():
            # Hyperband has workers wait for each other, and KerasTuner asks again at once.
            time.sleep(0.2)

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        values, task = trial.hyperparameters.values, self._task
        # Keras keeps every graph ever built until it is told not to.
        keras.backend.clear_session()
        began = time.monotonic()
        outcome = self._run(
            Trial(
                number=int(trial.trial_id) + 1,
                total=self.oracle.max_trials,
                network=task.network_of(values),
                training=task.training_of(values),
                drawn=task.drawn(values),
                until=values.get("tuner/epochs", task.settings.epochs),
                folder=Path(self.project_dir) / TRIALS / task.folder_of(values),
                # A worker's oracle is its chief, which says so itself.
                standing=getattr(self.oracle, "standing", ""),
            )
        )
        return {**asdict(outcome), "seconds": round(time.monotonic() - began, 3)}

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


TRIALS = "trials"
"""The folder, in that of a search, with one per trial that is not over."""


def search(
    task: Task, *, folder: Path, run: RunTrial, command: Sequence[str] = ()
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Look at tune.trials settings, those of params.yaml first, and return what the best one drew.

    That is by dotted name, and empty where the best is params.yaml's own. Where tune.workers is
    more than one, processes of `command`, which call `work` with the same arguments, run the trials
    while this one is their chief.

    What is already in `folder` is not done again: the caller names it after all that a trial's
    outcome depends on. The table has a row per trial: trial, status (COMPLETED or FAILED),
    val_accuracy, val_loss, parameters, gflops, epochs, seconds, what is searched, message.

    Raises:
        UserError: if every trial failed, what is in `folder` is damaged, or a worker cannot be
            started.

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
            return _Tuner(run, task, oracle=oracle, **place)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        # KerasTuner writes its state in place, and a killed search can leave half of it.
        raise UserError(
            f"{folder}: damaged state of a search ({error}); remove it to search anew"
        ) from error


def _oracle(task: Task, *, quiet: bool) -> Any:
    """Return KerasTuner's oracle for `task`; `quiet` where another process says what there is."""
    settings = task.settings
    incumbent = task.space.values_of(task.own)
    if incumbent is None and not quiet:
        log.info("tune: the settings of params.yaml, which trial 1 has, are outside tune.space")
    common = {
        "objective": OBJECTIVE,
        "hyperparameters": task.space.declare(),
        "allow_new_entries": False,
        "tune_new_entries": False,
        # KerasTuner takes a seed of 0 for none.
        "seed": task.seed + 1,
        "max_consecutive_failed_trials": settings.trials + 1,
        "incumbent": incumbent,
        "allowed": task.allowed,
    }
    if settings.oracle == "bayesian":
        return BayesianOracle(max_trials=settings.trials, num_initial_points=INITIAL, **common)
    if settings.oracle == "random":
        return RandomOracle(max_trials=settings.trials, **common)
    # 0 is without end: its rounds begin anew until there were enough trials.
    oracle = HyperbandOracle(max_epochs=settings.epochs, hyperband_iterations=0, **common)
    oracle.max_trials = settings.trials
    drawn, first_epochs = oracle.first_round()
    if settings.trials <= drawn and first_epochs < settings.epochs and not quiet:
        log.warning(
            "hyperband first looks at %d settings for %d of tune.epochs = %d epochs each, and "
            "tune.trials = %d leaves none to train the best of them further; raise tune.trials",
            *(drawn, first_epochs, settings.epochs, settings.trials),
        )
    return oracle


def _found(oracle: Any, task: Task, folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    settings = task.settings
    if len(oracle.trials) < settings.trials:
        limit = settings.max_gflops
        log.warning(
            "the search ended after %d of %d trials: tune.space has nothing else%s",
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
    # Hyperband may have trained any of them further.
    shutil.rmtree(folder / TRIALS, ignore_errors=True)
    drawn = task.drawn(oracle.get_best_trials(1)[0].hyperparameters.values)
    is_own = all(task.own[name] == value for name, value in drawn.items())
    return {} if is_own else drawn, table


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
        **{name: shown((task.own | task.drawn(values))[name]) for name in task.space.entries},
        "message": last_line(trial.message),
    }


def shown(value: Any) -> Any:
    """Return what a search drew as tables and MLflow have it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return value
