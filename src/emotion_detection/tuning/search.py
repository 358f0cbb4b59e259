"""The search: KerasTuner's oracles over tune.space, trial by trial, and a choice among the best.

What was trained is kept on disk, every epoch of it, so an interrupted search goes on with the next
epoch, and one whose space, oracle or number of trials changed takes over the trials that fit.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import keras_tuner
import pandas as pd

from emotion_detection.console import Progress, UserError, log
from emotion_detection.tuning.importance import importance
from emotion_detection.tuning.oracle import (
    INITIAL,
    BayesianOracle,
    HyperbandOracle,
    RandomOracle,
    last_line,
)
from emotion_detection.tuning.records import Records
from emotion_detection.tuning.task import COMPLETE, RunTrial, Task
from emotion_detection.tuning.tuner import FINALISTS, Tuner, end_of, metric

OBJECTIVE = keras_tuner.Objective("val_accuracy", "max")

UNLIMITED = 10_000
"""Trials of a search that only tune.budget ends."""


@dataclass(frozen=True)
class Found:
    """What a search came to.

    `drawn` is what the chosen trial drew, by dotted name, and empty where it has the settings of
    params.yaml; `trial` is its number. `trials` has a row per trial: trial, status (COMPLETED or
    FAILED), end, val_accuracy, val_loss, parameters, gflops, epochs, seconds, what is searched,
    message. `repeats` has a row per training of a finalist with another seed: trial, seed,
    val_accuracy, seconds. `importance` is the table of that module.
    """

    drawn: Mapping[str, Any]
    trial: int
    trials: pd.DataFrame
    repeats: pd.DataFrame
    importance: pd.DataFrame


def search(task: Task, *, folder: Path, records: Path, run: RunTrial) -> Found:
    """Look at tune.trials settings, those of params.yaml first, and choose among the best.

    As many trials as tune.workers says are run at once, each by a call of `run` in a thread of its
    own; one alone is run in this thread.

    What is already in `folder` is not done again: the caller names it after all of tune, and
    `records` after all that a trial's outcome depends on.

    Raises:
        UserError: if every trial failed, or what is in `folder` is damaged.

    """
    tuner = _tuner(task, folder, records, run)
    oracle, settings = tuner.oracle, task.settings
    if oracle.end_order:
        log.info("tune: goes on with a search of %d finished trials", len(oracle.end_order))
    with Progress("tune", bar=settings.workers > 1) as oracle.progress:
        oracle.progress.begin(settings.trials, len(oracle.end_order))
        tuner.search()
    return _found(tuner, task, folder)


def _tuner(task: Task, folder: Path, records: Path, run: RunTrial) -> Tuner:
    """Return the tuner, whose oracle goes on with what is in `folder`."""
    kept = Records(records)
    oracle = _oracle(task, kept)
    oracle._set_project_dir(str(folder.parent), folder.name)
    try:
        if (folder / "oracle.json").exists():
            oracle.reload()
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{folder}: damaged state of a search ({error}); remove it to search anew"
        ) from error
    tuner = Tuner(oracle, run, task, kept)
    oracle.is_over, oracle.seconds_left = tuner.is_over, tuner.seconds_left
    oracle.total = task.settings.trials
    return tuner


def _oracle(task: Task, records: Records) -> Any:
    """Return KerasTuner's oracle for `task`."""
    settings = task.settings
    incumbent = task.space.values_of(task.own)
    if incumbent is None:
        log.info("tune: the settings of params.yaml, which trial 1 has, are outside tune.space")
    fitting = [task.space.values_of(record.settings) for record in records.all()]
    most = UNLIMITED if settings.trials is None else settings.trials
    common = {
        "objective": OBJECTIVE,
        "hyperparameters": task.space.declare(),
        "allow_new_entries": False,
        "tune_new_entries": False,
        # KerasTuner takes a seed of 0 for none.
        "seed": task.seed + 1,
        "max_consecutive_failed_trials": most + 1,
        "incumbent": incumbent,
        "kept": [values for values in fitting if values is not None],
        "allowed": task.allowed,
        "key": task.key,
    }
    if settings.oracle == "bayesian":
        return BayesianOracle(max_trials=most, num_initial_points=INITIAL, **common)
    if settings.oracle == "random":
        return RandomOracle(max_trials=most, **common)
    # 0 is without end: its rounds begin anew until there were enough trials.
    oracle = HyperbandOracle(max_epochs=settings.epochs, hyperband_iterations=0, **common)
    oracle.max_trials = most
    drawn, first_epochs = oracle.first_round()
    if most <= drawn and first_epochs < settings.epochs:
        log.warning(
            "hyperband first looks at %d settings for %d of tune.epochs = %d epochs each, and "
            "tune.trials = %d leaves none to train the best of them further; raise tune.trials",
            *(drawn, first_epochs, settings.epochs, most),
        )
    return oracle


def _found(tuner: Tuner, task: Task, folder: Path) -> Found:
    settings, oracle = task.settings, tuner.oracle
    if settings.budget is None and len(oracle.trials) < oracle.max_trials:
        limit = settings.max_gflops
        log.warning(
            "the search ended after %d of %d trials: tune.space has nothing else%s",
            *(len(oracle.trials), oracle.max_trials),
            "" if limit is None else f" under tune.max_gflops = {limit}",
        )
    trials = sorted(oracle.trials.values(), key=lambda trial: int(trial.trial_id))
    table = pd.DataFrame([_row(trial, task) for trial in trials])
    # A failed trial has neither, which would make floats of them.
    table = table.astype({"parameters": "Int64", "epochs": "Int64"})
    if not (table["status"] == "COMPLETED").any():
        # Or the next search would go on with it, and fail before its first trial.
        shutil.rmtree(folder)
        raise UserError(f"every trial of the search failed; the first: {table['message'][0]}")
    if settings.oracle == "hyperband":
        tuner.tidy()
    values = {int(trial.trial_id) + 1: trial.hyperparameters.values for trial in trials}
    order = _best_first(table)
    # That of params.yaml is the first.
    finalists = [number for number in order if number != 1][: FINALISTS - 1]
    repeats = _repeated(tuner, task, {n: values[n] for n in sorted({1, *finalists} & {*order})})
    chosen = order[0]
    if not repeats.empty:
        means = repeats.groupby("trial")["val_accuracy"].mean()
        # Of equals, the earliest.
        chosen = int(means.idxmax())
    drawn = task.drawn(values[chosen])
    is_own = all(task.own[name] == value for name, value in drawn.items())
    whole = table[table["end"] == COMPLETE]
    searched = [
        {name: task.settings_of(values[int(number)])[name] for name in task.space.entries}
        for number in whole["trial"]
    ]
    weights = importance(searched, list(whole["val_accuracy"]))
    return Found({} if is_own else drawn, chosen, table, repeats, weights)


def _best_first(table: pd.DataFrame) -> list[int]:
    """Return the numbers of the completed trials, those that ended early last."""
    done = table[table["status"] == "COMPLETED"].assign(early=lambda rows: rows["end"] != COMPLETE)
    ranked = done.sort_values(["early", "val_accuracy"], ascending=[True, False], kind="stable")
    return [int(number) for number in ranked["trial"]]


def _repeated(tuner: Tuner, task: Task, finalists: Mapping[int, Mapping[str, Any]]) -> pd.DataFrame:
    """Train the trials `finalists`, values by number, with tune.repeats other seeds each.

    The highest of many scores is too high: what a trial is worth is told by scores that did not
    choose it.
    """
    columns = ["trial", "seed", "val_accuracy", "seconds"]
    rows: dict[tuple[int, int], Mapping[str, Any]] = {}

    def train(repeat: int, number: int) -> None:
        found = tuner.train(
            number, finalists[number], until=task.settings.epochs, repeat=repeat
        ) | {"trial": number, "seed": task.seed + repeat}
        rows[repeat, number] = {name: found[name] for name in columns}

    # A choice among one needs none.
    repeats = range(1, task.settings.repeats + 1) if len(finalists) > 1 else ()
    tuner.side_by_side([partial(train, *each) for each in product(repeats, finalists)])
    return pd.DataFrame([rows[each] for each in sorted(rows)], columns=columns)


def _row(trial: Any, task: Task) -> dict[str, Any]:
    values = trial.hyperparameters.values
    settings = task.settings_of(values)
    names = ("val_accuracy", "val_loss", "parameters", "epochs", "seconds")
    return {
        "trial": int(trial.trial_id) + 1,
        "status": trial.status,
        "end": end_of(trial) if trial.status == "COMPLETED" else "",
        **{name: metric(trial, name) for name in names},
        "gflops": round(task.gflops(values), 4),
        **{name: shown(settings[name]) for name in task.space.entries},
        "message": last_line(trial.message),
    }


def shown(value: Any) -> Any:
    """Return what a search drew as tables and MLflow have it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return value
