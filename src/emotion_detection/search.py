"""The search for a network: KerasTuner's oracles over the space in params.yaml.

Finished trials are kept on disk, so a search that was cut off goes on with the next one.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
import pandas as pd

from emotion_detection.console import UserError, log
from emotion_detection.network import Architecture
from emotion_detection.params import Network, Space, validate
from emotion_detection.training import duration

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
    """One network to look at, and how far to train it.

    Hyperband trains the promising ones further: `first_epoch` and `continues`, the checkpoint to
    go on from, say where an earlier trial left off, and `checkpoint` where to leave this one's.
    """

    number: int
    total: int
    architecture: Architecture
    first_epoch: int
    epochs: int
    continues: Path | None
    checkpoint: Path


RunTrial = Callable[[Trial], Outcome]


def declare(space: Space) -> keras_tuner.HyperParameters:
    """Give `space` as KerasTuner's: the filters of block 4 exist where there are 4 blocks."""
    hp = keras_tuner.HyperParameters()
    hp.Choice("blocks", list(space.blocks))
    hp.Choice("dense_layers", list(space.dense_layers))
    hp.Choice("dense_dropout", list(space.dense_dropout))
    for block in range(1, max(space.blocks) + 1):
        with hp.conditional_scope("blocks", [n for n in space.blocks if n >= block]):
            hp.Choice(f"filters_{block}", list(space.filters))
            hp.Choice(f"kernel_size_{block}", list(space.kernel_size))
    for layer in range(1, max(space.dense_layers) + 1):
        with hp.conditional_scope("dense_layers", [n for n in space.dense_layers if n >= layer]):
            hp.Choice(f"dense_units_{layer}", list(space.dense_units))
    return hp


def values_of(architecture: Architecture) -> dict[str, Any]:
    """Give KerasTuner's values for `architecture`."""
    return {
        "blocks": len(architecture.filters),
        "dense_layers": len(architecture.dense_units),
        "dense_dropout": architecture.dense_dropout,
        **{f"filters_{i}": n for i, n in enumerate(architecture.filters, 1)},
        **{f"kernel_size_{i}": n for i, n in enumerate(architecture.kernel_sizes, 1)},
        **{f"dense_units_{i}": n for i, n in enumerate(architecture.dense_units, 1)},
    }


def architecture_of(values: Mapping[str, Any], baseline: Architecture) -> Architecture:
    """Give the network for KerasTuner's `values`; what is not searched is the baseline's."""
    blocks = range(1, values["blocks"] + 1)
    layers = range(1, values["dense_layers"] + 1)
    return replace(
        baseline,
        filters=tuple(values[f"filters_{i}"] for i in blocks),
        kernel_sizes=tuple(values[f"kernel_size_{i}"] for i in blocks),
        dense_units=tuple(values[f"dense_units_{i}"] for i in layers),
        dense_dropout=values["dense_dropout"],
    )


def _contains(space: Space, architecture: Architecture) -> bool:
    return (
        len(architecture.filters) in space.blocks
        and set(architecture.filters) <= set(space.filters)
        and set(architecture.kernel_sizes) <= set(space.kernel_size)
        and len(architecture.dense_units) in space.dense_layers
        and set(architecture.dense_units) <= set(space.dense_units)
        and architecture.dense_dropout in space.dense_dropout
    )


class _FromBaseline:
    """An oracle that looks at the baseline first, and draws no network above a cost."""

    baseline: dict[str, Any] | None
    affordable: Callable[[Mapping[str, Any]], bool]

    def _random_values(self) -> dict[str, Any] | None:
        if not self.trials and self.baseline is not None:  # type: ignore[attr-defined]
            return dict(self.baseline)
        return super()._random_values()  # type: ignore[misc]

    def _duplicate(self, values: Mapping[str, Any]) -> bool:
        return not self.affordable(values) or super()._duplicate(values)  # type: ignore[misc]


class _RandomOracle(_FromBaseline, keras_tuner.oracles.RandomSearchOracle):
    pass


class _HyperbandOracle(_FromBaseline, keras_tuner.oracles.HyperbandOracle):
    def first_round(self) -> tuple[int, int]:
        """Give how many networks the first round looks at, and for how many epochs each."""
        bracket = self._get_num_brackets() - 1
        return self._get_size(bracket, 0), self._get_epochs(bracket, 0)


class _BayesianOracle(_FromBaseline, keras_tuner.oracles.BayesianOptimizationOracle):
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

    def __init__(self, run: RunTrial, baseline: Architecture, epochs: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._run, self._baseline, self._epochs = run, baseline, epochs
        self._began = time.monotonic()
        self._finished_before = len(self.oracle.end_order)

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
                architecture=architecture_of(values, self._baseline),
                first_epoch=values.get("tuner/initial_epoch", 0),
                epochs=values.get("tuner/epochs", self._epochs),
                continues=self._checkpoint(earlier) if earlier is not None else None,
                checkpoint=self._checkpoint(trial.trial_id),
            )
        )
        return {**asdict(outcome), "seconds": round(time.monotonic() - began, 3)}

    def _checkpoint(self, trial_id: str) -> Path:
        return Path(self.get_trial_dir(trial_id)) / "last.weights.h5"

    def on_trial_end(self, trial: Any) -> None:
        super().on_trial_end(trial)
        oracle = self.oracle
        done, total = len(oracle.end_order), oracle.max_trials
        mean = (time.monotonic() - self._began) / max(1, done - self._finished_before)
        ended = oracle.trials[trial.trial_id]
        if ended.status == "COMPLETED":
            what = f"val_accuracy {ended.score:.4f}"
        else:
            what = f"failed: {_last_line(ended.message)}"
        best = oracle.get_best_trials(1)[0]
        so_far = (
            f"best so far {best.score:.4f} (trial {int(best.trial_id) + 1})"
            if best.status == "COMPLETED"
            else "no result so far"
        )
        log.info(
            "trial %d/%d  %s; %s; about %s left",
            int(trial.trial_id) + 1,
            total,
            what,
            so_far,
            duration(mean * (total - done)),
        )


def search(
    *,
    space: Space,
    baseline: Architecture,
    oracle: str,
    trials: int,
    epochs: int,
    max_gflops: float | None,
    image_shape: tuple[int, int, int],
    classes: int,
    seed: int,
    folder: Path,
    run: RunTrial,
) -> tuple[Architecture, pd.DataFrame]:
    """Look at `trials` networks, `baseline` first if it is in `space`, and give the best.

    What is already in `folder` is not done again: the caller names it after all that a trial's
    outcome depends on. The table has a row a trial: trial, status (COMPLETED or FAILED),
    val_accuracy, val_loss, parameters, gflops, epochs, seconds, the hyperparameters, message.

    Raises:
        UserError: if every trial failed, no network of `space` is under `max_gflops`, or what is
            in `folder` is damaged.

    """

    def gflops(values: Mapping[str, Any]) -> float:
        return architecture_of(values, baseline).forward_gflops(image_shape, classes)

    def affordable(values: Mapping[str, Any]) -> bool:
        return max_gflops is None or gflops(values) <= max_gflops

    common = {
        "objective": OBJECTIVE,
        "hyperparameters": declare(space),
        "allow_new_entries": False,
        "tune_new_entries": False,
        # KerasTuner takes a seed of 0 for none.
        "seed": seed + 1,
        "max_consecutive_failed_trials": trials + 1,
    }
    chosen: Any
    if oracle == "hyperband":
        # 0 is without end: its rounds begin anew until there were enough trials.
        chosen = _HyperbandOracle(max_epochs=epochs, hyperband_iterations=0, **common)
        chosen.max_trials = trials
        networks, first_epochs = chosen.first_round()
        if trials <= networks and first_epochs < epochs:
            log.warning(
                "hyperband first looks at %d networks for %d of tune.epochs = %d epochs each, and "
                "tune.trials = %d leaves none to train the best of them further; raise tune.trials",
                networks,
                first_epochs,
                epochs,
                trials,
            )
    elif oracle == "bayesian":
        # KerasTuner's default is three draws a hyperparameter, more than most searches have trials.
        chosen = _BayesianOracle(
            max_trials=trials, num_initial_points=max(3, trials // 3), **common
        )
    else:
        chosen = _RandomOracle(max_trials=trials, **common)
    chosen.verbose = 0
    # A ceiling can rule out most of a space, and a draw takes about two milliseconds.
    chosen._max_collisions = 2_000
    chosen.affordable = affordable
    chosen.baseline = values_of(baseline) if _contains(space, baseline) else None
    if chosen.baseline is None:
        log.info("the network in params.yaml is outside tune.space, so no trial looks at it")

    place = {"directory": str(folder.parent), "project_name": folder.name}
    try:
        tuner = _Tuner(run, baseline, epochs, oracle=chosen, **place)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        # KerasTuner writes its state in place, and a killed search can leave half of it.
        raise UserError(
            f"{folder}: damaged state of a search ({error}); remove it to search anew"
        ) from error
    # KerasTuner reads them back in any order, and the first of equals is the best.
    chosen.trials = dict(sorted(chosen.trials.items()))
    if chosen.end_order:
        log.info("going on with a search of %d finished trials", len(chosen.end_order))
    tuner.search()

    if not chosen.trials:
        raise UserError(
            f"tune.max_gflops = {max_gflops}: no network of tune.space is that cheap; raise it, or "
            "add smaller filters to tune.space"
        )
    if len(chosen.trials) < trials:
        log.warning(
            "the search ended after %d of %d trials: tune.space has no other network%s",
            len(chosen.trials),
            trials,
            "" if max_gflops is None else f" under tune.max_gflops = {max_gflops}",
        )
    table = pd.DataFrame([_row(trial, baseline, gflops) for trial in chosen.trials.values()])
    table = table.sort_values("trial", ignore_index=True)
    # A failed trial has neither, which would make floats of them.
    table = table.astype({"parameters": "Int64", "epochs": "Int64"})
    if not (table["status"] == "COMPLETED").any():
        # Or the next search would go on with it, and fail before its first trial.
        shutil.rmtree(folder)
        raise UserError(f"every trial of the search failed; the first: {table['message'][0]}")
    best = chosen.get_best_trials(1)[0]
    return architecture_of(best.hyperparameters.values, baseline), table


def _row(
    trial: Any, baseline: Architecture, gflops: Callable[[Mapping[str, Any]], float]
) -> dict[str, Any]:
    values = trial.hyperparameters.values
    architecture = architecture_of(values, baseline)

    def metric(name: str) -> float | None:
        return trial.metrics.get_last_value(name) if trial.metrics.exists(name) else None

    return {
        "trial": int(trial.trial_id) + 1,
        "status": trial.status,
        **{
            name: metric(name)
            for name in ("val_accuracy", "val_loss", "parameters", "epochs", "seconds")
        },
        "gflops": round(gflops(values), 4),
        **described(architecture),
        "message": _last_line(trial.message),
    }


def described(architecture: Architecture) -> dict[str, Any]:
    """Give `architecture` as the flat columns of tables and MLflow's params."""
    return {
        "blocks": len(architecture.filters),
        "filters": " ".join(map(str, architecture.filters)),
        "kernel_sizes": " ".join(map(str, architecture.kernel_sizes)),
        "dense_layers": len(architecture.dense_units),
        "dense_units": " ".join(map(str, architecture.dense_units)),
        "dense_dropout": architecture.dense_dropout,
    }


def _last_line(message: str | None) -> str:
    lines = (message or "").strip().splitlines()
    return lines[-1] if lines else ""


def load_hyperparameters(path: Path) -> Architecture:
    """Read what tune chose.

    Raises:
        UserError: if the file is missing or does not hold an architecture.

    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `dvc repro tune`") from None
    try:
        return Architecture(**dict(validate(Network, values, path)))
    except UserError as error:
        raise UserError(f"{error}; run `dvc repro tune`") from None
