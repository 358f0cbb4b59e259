"""The search for a network: KerasTuner's oracles over the space in params.yaml.

Finished trials are kept on disk, so a search that was cut off goes on with the next one. It runs
in this process, or in the workers of which this process is the chief or one.
"""

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
import pandas as pd

from emotion_detection.console import UserError, log
from emotion_detection.files import atomic, write_json
from emotion_detection.models.network import Architecture
from emotion_detection.params import Network, SingleNetwork, Space, validate
from emotion_detection.training.fit import duration
from emotion_detection.tuning.workers import at_work, is_chief, lead, worker_id

OBJECTIVE = keras_tuner.Objective("val_accuracy", "max")

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
    """Return `space` as KerasTuner's: the filters of block 4 exist where there are 4 blocks."""
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
    """Return KerasTuner's values for `architecture`."""
    return {
        "blocks": len(architecture.filters),
        "dense_layers": len(architecture.dense_units),
        "dense_dropout": architecture.dense_dropout,
        **{f"filters_{i}": n for i, n in enumerate(architecture.filters, 1)},
        **{f"kernel_size_{i}": n for i, n in enumerate(architecture.kernel_sizes, 1)},
        **{f"dense_units_{i}": n for i, n in enumerate(architecture.dense_units, 1)},
    }


def architecture_of(values: Mapping[str, Any], baseline: Architecture) -> Architecture:
    """Return the network for KerasTuner's `values`; what is not searched is the baseline's.

    A block beyond the baseline's has as many convolutions as the baseline's last.
    """
    blocks = range(1, values["blocks"] + 1)
    layers = range(1, values["dense_layers"] + 1)
    each = baseline.convolutions
    return replace(
        baseline,
        filters=tuple(values[f"filters_{i}"] for i in blocks),
        kernel_sizes=tuple(values[f"kernel_size_{i}"] for i in blocks),
        convolutions=(
            each if isinstance(each, int) else tuple(each[min(i, len(each)) - 1] for i in blocks)
        ),
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


class _Oracle:
    """An oracle that looks at the baseline first, and draws no network above a cost.

    It tells how the search stands whenever a trial ends, keeps its state whole on disk, and lets
    trials be taken from workers that are gone.
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
        if ended.status == "COMPLETED":
            what = f"val_accuracy {ended.score:.4f}"
        else:
            what = f"failed: {_last_line(ended.message)}"
        best = self.get_best_trials(1)[0]  # type: ignore[attr-defined]
        so_far = (
            f"best so far {best.score:.4f} (trial {int(best.trial_id) + 1})"
            if best.status == "COMPLETED"
            else "no result so far"
        )
        log.info(
            "trial %d/%d  %s; %s; about %s left",
            int(ended.trial_id) + 1,
            total,
            what,
            so_far,
            duration(mean * (total - done)),
        )

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

    def __init__(self, run: RunTrial, baseline: Architecture, epochs: int, **kwargs: Any) -> None:
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
    workers: int = 1,
    command: Sequence[str] = (),
) -> tuple[Architecture, pd.DataFrame] | None:
    """Look at `trials` networks, `baseline` first if it is in `space`, and give the best.

    More than one of `workers` are processes of `command`, which call this with the same arguments,
    and run the trials while this one is their chief. A worker gives None when nothing is left.

    What is already in `folder` is not done again: the caller names it after all that a trial's
    outcome depends on. The table has a row a trial: trial, status (COMPLETED or FAILED),
    val_accuracy, val_loss, parameters, gflops, epochs, seconds, the hyperparameters, message.

    Raises:
        UserError: if every trial failed, no network of `space` is under `max_gflops`, what is in
            `folder` is damaged, or a worker cannot be started.

    """

    def gflops(values: Mapping[str, Any]) -> float:
        return architecture_of(values, baseline).forward_gflops(image_shape, classes)

    def affordable(values: Mapping[str, Any]) -> bool:
        return max_gflops is None or gflops(values) <= max_gflops

    worker = worker_id()
    common = {
        "objective": OBJECTIVE,
        "hyperparameters": declare(space),
        "allow_new_entries": False,
        "tune_new_entries": False,
        # KerasTuner takes a seed of 0 for none.
        "seed": seed + 1,
        "max_consecutive_failed_trials": trials + 1,
        "baseline": values_of(baseline) if _contains(space, baseline) else None,
        "affordable": affordable,
    }
    chosen: Any
    if oracle == "hyperband":
        # 0 is without end: its rounds begin anew until there were enough trials.
        chosen = _HyperbandOracle(max_epochs=epochs, hyperband_iterations=0, **common)
        chosen.max_trials = trials
        networks, first_epochs = chosen.first_round()
        if trials <= networks and first_epochs < epochs and worker is None:
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
    if common["baseline"] is None and worker is None:
        log.info("the network in params.yaml is outside tune.space, so no trial looks at it")

    place = {"directory": str(folder.parent), "project_name": folder.name}
    try:
        tuner = _Tuner(run, baseline, epochs, oracle=chosen, **place)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        # KerasTuner writes its state in place, and a killed search can leave half of it.
        raise UserError(
            f"{folder}: damaged state of a search ({error}); remove it to search anew"
        ) from error
    if worker is not None:
        with at_work(worker, folder):
            tuner.search()
        return None
    if chosen.end_order:
        log.info("going on with a search of %d finished trials", len(chosen.end_order))
    if is_chief(workers):
        tuner.save()
        lead(chosen, workers=workers, command=command, folder=folder)
    else:
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
    """Return `architecture` as the flat columns of tables and MLflow's params."""
    return {
        "blocks": len(architecture.filters),
        "filters": " ".join(map(str, architecture.filters)),
        "kernel_sizes": " ".join(map(str, architecture.kernel_sizes)),
        "dense_layers": len(architecture.dense_units),
        "dense_units": " ".join(map(str, architecture.dense_units)) or "none",
        "dense_dropout": architecture.dense_dropout,
    }


def _last_line(message: str | None) -> str:
    lines = (message or "").strip().splitlines()
    return lines[-1] if lines else ""


def save_hyperparameters(architecture: Architecture, path: Path) -> None:
    """Write what is trained of `architecture`: its members and views are no matter of a search."""
    write_json(path, {name: getattr(architecture, name) for name in SingleNetwork.model_fields})


def load_hyperparameters(path: Path, network: Network) -> Architecture:
    """Read what tune chose, with the members and views that `network` has.

    Raises:
        UserError: if the file is missing or does not hold a network.

    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `dvc repro tune`") from None
    try:
        chosen = validate(SingleNetwork, values, path)
    except UserError as error:
        raise UserError(f"{error}; run `dvc repro tune`") from None
    return Architecture(**dict(network) | dict(chosen))
