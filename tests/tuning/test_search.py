"""The search: what is drawn, what survives a failure or an interruption, what the table has."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from emotion_detection.console import UserError
from emotion_detection.data.splits import Split
from emotion_detection.models.network import forward_gflops
from emotion_detection.params import Network, Space, Tune
from emotion_detection.tuning.search import (
    Outcome,
    Task,
    Trial,
    description,
    report,
    search,
)
from emotion_detection.tuning.space import columns_of

SPACE = Space(
    blocks=(1, 2, 3),
    filters=(4, 8, 16),
    kernel_size=(1, 3),
    dense_layers=(1, 2),
    dense_units=(4, 8),
    dense_dropout=(0.0, 0.2),
)
BASELINE = Network(
    arch="notebook",
    filters=(8, 4),
    kernel_sizes=(3, 3),
    dense_units=(8,),
    conv_dropout=0.1,
    dense_dropout=0.2,
    bn_momentum=0.8,
)
OUTSIDE = BASELINE.model_copy(update={"filters": (5, 5)})
SHAPE = (16, 16, 3)
TASK = Task(Tune(trials=6, epochs=3, space=SPACE), BASELINE, SHAPE, classes=3, seed=7)
Drawn = list[dict[str, Any]]


def score(network: Network) -> float:
    """Invent a val_accuracy that no two of a search's networks are likely to share."""
    return 0.5 + sum(network.filters) / 100 + sum(network.kernel_sizes) / 1000


def pretend(trial: Trial) -> Outcome:
    """Take a network's measure without training it, and leave the checkpoint that a trial would."""
    trial.checkpoint.write_text("weights")
    epochs = trial.epochs - trial.first_epoch
    return Outcome(score(trial.network), 1.5, sum(trial.network.filters), epochs)


@pytest.fixture(autouse=True)
def _coarse_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the Gaussian process choose among its 50 starting points, without climbing from each.

    The climbs take seconds a proposal, and are SciPy's.
    """

    def stay(function: Callable[[np.ndarray], np.ndarray], x0: np.ndarray, **_: Any) -> Any:
        return SimpleNamespace(x=x0, fun=function(x0))

    coarse = SimpleNamespace(optimize=SimpleNamespace(minimize=stay))
    monkeypatch.setattr("keras_tuner.src.tuners.bayesian.scipy", coarse)


class Recorder:
    """A `run` that keeps its trials, and may go wrong at some of them."""

    def __init__(self, failing: Mapping[int, BaseException] | None = None) -> None:
        self.seen: list[Trial] = []
        self._failing = failing or {}

    def __call__(self, trial: Trial) -> Outcome:
        self.seen.append(trial)
        if trial.number in self._failing:
            raise self._failing[trial.number]
        return pretend(trial)

    @property
    def numbers(self) -> list[int]:
        return [trial.number for trial in self.seen]


def look(
    folder: Path,
    run: Callable[[Trial], Outcome] = pretend,
    *,
    baseline: Network = BASELINE,
    seed: int = 7,
    **changes: Any,
) -> tuple[Network, pd.DataFrame]:
    """Search with TASK's settings but for what is given; `changes` are those of tune."""
    settings = TASK.settings.model_copy(update=changes)
    task = dataclasses.replace(TASK, settings=settings, baseline=baseline, seed=seed)
    return search(task, folder=folder, run=run)


def drawn(table: pd.DataFrame) -> Drawn:
    """Return what a search decided, without how long it took."""
    return json.loads(table.drop(columns="seconds").to_json(orient="records"))


def test_the_first_trial_is_the_baseline(tmp_path: Path) -> None:
    for oracle in ("random", "bayesian", "hyperband"):
        run = Recorder()
        look(tmp_path / oracle, run, oracle=oracle, trials=2)
        assert run.seen[0].network == BASELINE
        assert run.seen[1].network != BASELINE


def test_a_baseline_outside_the_space_is_not_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Recorder()
    with caplog.at_level(logging.INFO, "emotion_detection"):
        look(tmp_path / "search", run, baseline=OUTSIDE)
    assert len(run.seen) == 6
    assert "outside tune.space" in caplog.text
    for trial in run.seen:
        assert set(trial.network.filters) <= set(SPACE.filters)
        assert trial.network.conv_dropout == OUTSIDE.conv_dropout
        assert trial.network.bn_momentum == OUTSIDE.bn_momentum


def test_networks_are_drawn_from_the_space_no_two_alike(tmp_path: Path) -> None:
    run = Recorder()
    _, table = look(tmp_path / "search", run, trials=30)
    networks = [trial.network for trial in run.seen]
    assert len(set(networks)) == 30
    assert {len(found.filters) for found in networks} == set(SPACE.blocks)
    assert {len(found.dense_units) for found in networks} == set(SPACE.dense_layers)
    for found in networks:
        assert len(found.kernel_sizes) == len(found.filters)
        assert set(found.filters) <= set(SPACE.filters)
        assert set(found.kernel_sizes) <= set(SPACE.kernel_size)
        assert set(found.dense_units) <= set(SPACE.dense_units)
        assert found.dense_dropout in SPACE.dense_dropout
    assert table["trial"].tolist() == [trial.number for trial in run.seen] == list(range(1, 31))


def test_what_is_not_searched_is_that_of_the_network_in_params_yaml(tmp_path: Path) -> None:
    run = Recorder()
    baseline = BASELINE.model_copy(update={"convolutions": 3, "arch": "residual"})
    look(tmp_path / "search", run, baseline=baseline)
    assert {(trial.network.convolutions, trial.network.arch) for trial in run.seen} == {
        (3, "residual")
    }


def test_only_the_blocks_that_a_network_has_are_varied(tmp_path: Path) -> None:
    """Else two draws that differ in a block which neither has would pass for two networks."""
    space = SPACE.model_copy(
        update={
            "blocks": (1, 3),
            "filters": (4,),
            "kernel_size": (1, 3),
            "dense_layers": (1,),
            "dense_units": (4,),
            "dense_dropout": (0.0,),
        }
    )
    run = Recorder()
    look(tmp_path / "search", run, space=space, trials=30, baseline=OUTSIDE)
    assert len({trial.network for trial in run.seen}) == len(run.seen) == 2 + 8


@pytest.mark.parametrize("oracle", ["random", "bayesian", "hyperband"])
def test_no_network_above_the_ceiling_is_drawn(tmp_path: Path, oracle: str) -> None:
    ceiling = 1.9e-5  # under which are 16 networks, and few draws
    run = Recorder()
    look(tmp_path / "search", run, oracle=oracle, trials=12, max_gflops=ceiling, epochs=9)
    networks = [trial.network for trial in run.seen if trial.continues is None]
    costs = [forward_gflops(each, SHAPE, 3) for each in networks]
    assert len(run.seen) == 12
    # What a person wrote into params.yaml is looked at whatever it costs.
    assert costs[0] > ceiling
    assert max(costs[1:]) <= ceiling
    assert len(set(networks)) == len(networks) >= 9


def test_a_ceiling_below_every_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tune\.max_gflops = 1e-09: no network of tune\.space"):
        look(tmp_path / "search", baseline=OUTSIDE, max_gflops=1e-9)


def test_a_search_of_a_space_that_is_used_up_ends_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, table = look(tmp_path / "search", max_gflops=1e-9)
    assert len(table) == 1
    assert "ended after 1 of 6 trials" in caplog.text
    assert "tune.max_gflops = 1e-09" in caplog.text


def test_a_damaged_search_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    with pytest.raises(KeyboardInterrupt):
        look(folder, Recorder({2: KeyboardInterrupt()}))
    state = folder / "oracle.json"
    state.write_text(state.read_text()[:100])
    with pytest.raises(UserError, match=r"search: damaged state .*remove it to search anew"):
        look(folder)


def test_the_table_has_the_result_of_each_trial(tmp_path: Path) -> None:
    best, table = look(tmp_path / "search")
    assert table.columns.tolist() == [
        "trial",
        "status",
        "val_accuracy",
        "val_loss",
        "parameters",
        "epochs",
        "seconds",
        "gflops",
        "blocks",
        "filters",
        "kernel_sizes",
        "dense_layers",
        "dense_units",
        "dense_dropout",
        "message",
    ]
    first = table.iloc[0]
    assert first["status"] == "COMPLETED"
    assert first["val_accuracy"] == pytest.approx(score(BASELINE))
    assert (first["val_loss"], first["parameters"], first["epochs"]) == (1.5, 12, 3)
    assert first["seconds"] >= 0
    assert first["gflops"] == pytest.approx(forward_gflops(BASELINE, SHAPE, 3), abs=1e-4)
    assert {name: first[name] for name in columns_of(BASELINE)} == {
        "blocks": 2,
        "filters": "8 4",
        "kernel_sizes": "3 3",
        "dense_layers": 1,
        "dense_units": "8",
        "dense_dropout": 0.2,
    }
    assert (table["message"] == "").all()
    winner = table.iloc[table["val_accuracy"].argmax()]
    assert {name: winner[name] for name in columns_of(best)} == columns_of(best)
    assert score(best) == pytest.approx(table["val_accuracy"].max())


def test_the_network_with_the_highest_val_accuracy_wins_and_the_first_of_equals(
    tmp_path: Path,
) -> None:
    def flat(trial: Trial) -> Outcome:
        return Outcome(0.5 if trial.number < 3 else 0.6, 1.0 / trial.number, 1, 1)

    best, table = look(tmp_path / "search", flat)
    third = table.iloc[2]
    assert {name: third[name] for name in columns_of(best)} == columns_of(best)
    again, _ = look(tmp_path / "search", Recorder({n: AssertionError() for n in range(1, 7)}))
    assert again == best


@pytest.mark.parametrize("oracle", ["random", "bayesian", "hyperband"])
def test_a_failed_trial_is_in_the_table_and_the_search_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, oracle: str
) -> None:
    trouble = MemoryError("no room for\nsuch a network")
    run = Recorder(dict.fromkeys((1, 2, 3, 4, 5, 8), trouble))
    with caplog.at_level(logging.INFO, "emotion_detection"):
        best, table = look(tmp_path / "search", run, oracle=oracle, trials=9)
    assert run.numbers == list(range(1, 10))
    failed = table[table["status"] == "FAILED"]
    assert failed["trial"].tolist() == [1, 2, 3, 4, 5, 8]
    assert set(failed["message"]) == {"such a network"}
    assert failed["val_accuracy"].isna().all()
    assert table["status"].isin(["FAILED", "COMPLETED"]).all()
    assert score(best) == pytest.approx(table["val_accuracy"].max())
    assert "tune: trial 5/9 failed: such a network" in caplog.text


def test_a_trial_whose_score_is_not_a_number_fails(tmp_path: Path) -> None:
    def sometimes(trial: Trial) -> Outcome:
        nothing = trial.number == 2
        return Outcome(float("nan") if nothing else score(trial.network), 1.0, 1, 1)

    best, table = look(tmp_path / "search", sometimes)
    assert table["status"].tolist() == ["COMPLETED", "FAILED"] + ["COMPLETED"] * 4
    assert score(best) == pytest.approx(table["val_accuracy"].max())


def test_when_all_trials_fail_the_reason_is_given_and_the_next_search_starts_anew(
    tmp_path: Path,
) -> None:
    every = {number: OSError("disk full") for number in range(1, 7)}
    with pytest.raises(UserError, match=r"every trial of the search failed; .*disk full"):
        look(tmp_path / "search", Recorder(every))
    run = Recorder()
    look(tmp_path / "search", run)
    assert run.numbers == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("oracle", "interrupted"),
    [("random", 1), ("random", 3), ("bayesian", 7), ("hyperband", 3), ("hyperband", 7)],
)
def test_an_interrupted_search_ends_as_an_uninterrupted_one(
    tmp_path: Path, oracle: str, interrupted: int
) -> None:
    # Bayesian proposes from the fourth trial on, and hyperband's fourth goes on with an earlier.
    settings: dict[str, Any] = {"oracle": oracle, "trials": 8, "epochs": 3}
    best, uninterrupted = look(tmp_path / "uninterrupted", **settings)

    before = Recorder({interrupted: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        look(tmp_path / "search", before, **settings)
    after = Recorder()
    found, table = look(tmp_path / "search", after, **settings)

    assert before.numbers == list(range(1, interrupted + 1))
    assert after.numbers == list(range(interrupted, 9))
    assert drawn(table) == drawn(uninterrupted)
    assert found == best


def test_a_finished_search_is_not_done_again(tmp_path: Path) -> None:
    best, table = look(tmp_path / "search")
    run = Recorder()
    again, same = look(tmp_path / "search", run)
    assert not run.seen
    assert again == best
    assert drawn(same) == drawn(table)


@pytest.mark.parametrize("oracle", ["random", "bayesian", "hyperband"])
def test_the_seed_fixes_the_search(tmp_path: Path, oracle: str) -> None:
    tables = [
        drawn(look(tmp_path / str(number), oracle=oracle, trials=8, seed=seed)[1])
        for number, seed in enumerate((0, 0, 1))
    ]
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


def test_bayesian_search_learns_from_its_trials(tmp_path: Path) -> None:
    def prefers_wide(trial: Trial) -> Outcome:
        return Outcome(sum(trial.network.filters) / 50, 1.0, 1, 1)

    _, table = look(tmp_path / "bayesian", prefers_wide, oracle="bayesian", trials=15)
    assert len(table) == 15
    assert not table.duplicated(list(columns_of(BASELINE))).any()
    guessed, proposed = table["val_accuracy"][:5], table["val_accuracy"][5:]
    assert proposed.mean() > guessed.mean() + 0.1


def test_a_bayesian_search_runs_with_keras_tuners_own_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    narrow = {"blocks": (2,), "kernel_size": (3,), "dense_layers": (1,)}
    space = SPACE.model_copy(update=narrow)
    _, table = look(tmp_path / "search", space=space, oracle="bayesian", trials=4)
    assert len(table) == 4


def test_hyperband_trains_the_best_further_from_where_they_stopped(tmp_path: Path) -> None:
    run = Recorder()
    _, table = look(tmp_path / "search", run, oracle="hyperband", trials=16, epochs=9)
    first, rest = run.seen[:9], run.seen[9:]
    assert {(trial.first_epoch, trial.epochs, trial.continues) for trial in first} == {(0, 1, None)}

    second, third = rest[:3], rest[3]
    assert {(trial.first_epoch, trial.epochs) for trial in second} == {(1, 3)}
    assert (third.first_epoch, third.epochs) == (3, 9)
    ranked = sorted(first, key=lambda trial: -score(trial.network))
    assert [trial.network for trial in second] == [trial.network for trial in ranked[:3]]
    assert third.network == ranked[0].network

    left_by = {trial.checkpoint: trial for trial in run.seen}
    assert len(left_by) == 16
    for trial in (*second, third):
        assert trial.continues is not None
        earlier = left_by[trial.continues]
        assert earlier.network == trial.network
        assert earlier.epochs == trial.first_epoch
        assert earlier.number < trial.number
    assert table["epochs"].tolist()[:13] == [1] * 9 + [2] * 3 + [6]


def test_hyperband_looks_at_as_many_networks_as_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, table = look(tmp_path / "many", oracle="hyperband", trials=40, epochs=3)
    assert len(table) == 40
    assert "trials" not in caplog.text
    look(tmp_path / "few", oracle="hyperband", trials=9, epochs=9)
    assert "first looks at 9 networks for 1 of tune.epochs = 9 epochs each" in caplog.text
    assert "tune.trials = 9 leaves none" in caplog.text


def test_a_search_is_reported_in_words_metrics_figures_and_tags(
    tmp_path: Path, rows: Split
) -> None:
    run = Recorder({1: OSError("disk full")})
    best, table = look(tmp_path / "search", run)
    assert description(TASK.settings, rows) == (
        "A random search of 6 trials of at most 3 epochs on 72 train and 18 validation images"
    )
    written = report(table, best, TASK.settings)
    assert written["metrics"] == {
        "tune/trials": 6,
        "tune/failed": 1,
        "tune/best_val_accuracy": pytest.approx(score(best)),
    }
    assert written["more_metrics"] == {"tune/seconds": pytest.approx(table["seconds"].sum())}
    assert written["tables"]["trials"] is table
    assert list(written["figures"]) == ["trials"]
    (number,) = (trial.number for trial in run.seen if trial.network == best)
    assert written["tags"] == {"best.trial": f"{number:02d}", "workers": "1"}
    assert written["headline"].startswith(f"best of 6 trials: trial {number:02d}, validation acc")
    assert f"filters {columns_of(best)['filters']}, kernel sizes" in written["headline"]
