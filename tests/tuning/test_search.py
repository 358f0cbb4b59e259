"""The search: what is drawn, what survives a failure or an interruption, what the table has."""

import dataclasses
import json
import logging
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from emotion_detection.console import UserError
from emotion_detection.data.splits import Split
from emotion_detection.models.network import forward_gflops
from emotion_detection.settings.params import Network, Train, Tune
from emotion_detection.settings.sections import flat, updated
from emotion_detection.training.callbacks import Row
from emotion_detection.tuning.report import description, optimism, page, report, summary
from emotion_detection.tuning.search import Found, search, shown
from emotion_detection.tuning.task import Outcome, Task, Trial, shortened

SPACE: dict[str, Any] = {
    "network.filters": {"length": [1, 2, 3], "each": [4, 8, 16]},
    "network.kernel_sizes": {"length": "network.filters", "each": [1, 3]},
    "network.dense_units": {"length": [1, 2], "each": [4, 8]},
    "network.dense_dropout": [0.0, 0.2],
}
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
SGD = {"train.optimizer": "sgd"}
TRAIN = Train(lr=3e-3, epochs=6)
TASK = Task(Tune(trials=6, epochs=3, space=SPACE), BASELINE, TRAIN, SHAPE, classes=3, seed=7)
Drawn = dict[str, Any]


def score(network: Network) -> float:
    """Invent a val_accuracy that no two of a search's networks are likely to share."""
    return 0.5 + sum(network.filters) / 100 + sum(network.kernel_sizes) / 1000


def epochs(trial: Trial, accuracy: float) -> Outcome:
    """Return what a trial comes to whose last epoch has `accuracy`, as it is stopped or not."""
    rows: list[Row] = []
    for epoch in range(1, trial.until + 1):
        behind = (trial.training.epochs - epoch) / 50
        rows.append(
            {
                **{"epoch": epoch, "loss": 1.0, "accuracy": 0.5, "lr": 0.1, "seconds": 0.0},
                **{"val_loss": 1.5, "val_accuracy": accuracy - behind},
            }
        )
        if trial.stop(rows):
            break
    return Outcome(rows, sum(trial.network.filters))


def pretend(trial: Trial) -> Outcome:
    """Take a network's measure without training it, and leave the checkpoint that a trial would."""
    if trial.known is not None:
        return trial.known
    (trial.folder / "epoch_1").mkdir(parents=True, exist_ok=True)
    return epochs(trial, score(trial.network))


class Recorder:
    """A `run` that keeps its trials, and may go wrong at some of them."""

    def __init__(self, failing: Mapping[int, BaseException] | None = None) -> None:
        self.seen: list[Trial] = []
        self._failing = failing or {}

    def __call__(self, trial: Trial) -> Outcome:
        if trial.known is not None:
            return trial.known
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
) -> tuple[Drawn, pd.DataFrame]:
    """Search with TASK's settings but for what is given; `changes` are those of tune."""
    found = find(folder, run, baseline=baseline, seed=seed, **changes)
    return dict(found.drawn), found.trials


def find(
    folder: Path,
    run: Callable[[Trial], Outcome] = pretend,
    *,
    baseline: Network = BASELINE,
    seed: int = 7,
    records: Path | None = None,
    **changes: Any,
) -> Found:
    settings = TASK.settings.model_copy(update=changes)
    task = dataclasses.replace(TASK, settings=settings, network=baseline, seed=seed)
    return search(task, folder=folder, records=records or folder / "trials", run=run)


def columns(drawn: Drawn, baseline: Network = BASELINE) -> Drawn:
    """Return what the best trial drew, or else params.yaml has, as the table has it."""
    own = flat(baseline, "network.")
    return {name: shown(drawn.get(name, own[name])) for name in SPACE}


def best_score(drawn: Drawn) -> float:
    return score(updated(BASELINE, "network", drawn))


def decided(table: pd.DataFrame) -> list[Drawn]:
    """Return what a search decided, without how long it took."""
    return json.loads(table.drop(columns="seconds").to_json(orient="records"))


def test_the_first_trial_is_the_baseline(tmp_path: Path) -> None:
    for oracle in ("random", "bayesian", "hyperband"):
        run = Recorder()
        look(tmp_path / oracle, run, oracle=oracle, trials=2)
        assert run.seen[0].network == BASELINE
        assert run.seen[1].network != BASELINE


@pytest.mark.parametrize("oracle", ["random", "bayesian", "hyperband"])
def test_the_first_trial_is_the_baseline_outside_the_space_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, oracle: str
) -> None:
    run = Recorder()
    with caplog.at_level(logging.INFO, "emotion_detection"):
        _, table = look(tmp_path / "search", run, baseline=OUTSIDE, oracle=oracle, trials=8)
    assert len(run.seen) == 8
    assert "trial 1 has, are outside tune.space" in caplog.text
    first, *others = run.seen
    assert first.network == OUTSIDE
    assert table["network.filters"][0] == "5 5"
    for trial in others:
        assert set(trial.network.filters) <= {4, 8, 16}
        assert trial.network.conv_dropout == OUTSIDE.conv_dropout
        assert trial.network.bn_momentum == OUTSIDE.bn_momentum


def test_networks_are_drawn_from_the_space_no_two_alike(tmp_path: Path) -> None:
    run = Recorder()
    _, table = look(tmp_path / "search", run, trials=30)
    networks = [trial.network for trial in run.seen]
    assert len(set(networks)) == 30
    assert {len(found.filters) for found in networks} == {1, 2, 3}
    assert {len(found.dense_units) for found in networks} == {1, 2}
    for found in networks:
        assert len(found.kernel_sizes) == len(found.filters)
        assert set(found.filters) <= {4, 8, 16}
        assert set(found.kernel_sizes) <= {1, 3}
        assert set(found.dense_units) <= {4, 8}
        assert found.dense_dropout in (0.0, 0.2)
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
    space = SPACE | {
        "network.filters": {"length": [1, 3], "each": [4]},
        "network.dense_units": [[4]],
        "network.dense_dropout": [0.0],
    }
    run = Recorder()
    look(tmp_path / "search", run, space=space, trials=30, baseline=OUTSIDE)
    assert len({trial.network for trial in run.seen}) == len(run.seen) == 1 + 2 + 8


@pytest.mark.parametrize("oracle", ["random", "bayesian", "hyperband"])
def test_no_network_above_the_ceiling_is_drawn(tmp_path: Path, oracle: str) -> None:
    ceiling = 1.9e-5  # under which are 16 networks, and few draws
    run = Recorder()
    look(tmp_path / "search", run, oracle=oracle, trials=12, max_gflops=ceiling, epochs=9)
    networks = list(dict.fromkeys(trial.network for trial in run.seen))
    costs = [forward_gflops(each, SHAPE, 3) for each in networks]
    assert len(run.seen) == 12
    # What a person wrote into params.yaml is looked at whatever it costs.
    assert costs[0] > ceiling
    assert max(costs[1:]) <= ceiling
    assert len(networks) >= (12 if oracle != "hyperband" else 9)


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
        "end",
        "val_accuracy",
        "val_loss",
        "parameters",
        "epochs",
        "seconds",
        "gflops",
        *SPACE,
        "message",
    ]
    first = table.iloc[0]
    assert first["status"] == "COMPLETED"
    assert first["val_accuracy"] == pytest.approx(score(BASELINE))
    assert (first["val_loss"], first["parameters"], first["epochs"]) == (1.5, 12, 3)
    assert first["seconds"] >= 0
    assert first["gflops"] == pytest.approx(forward_gflops(BASELINE, SHAPE, 3), abs=1e-4)
    assert {name: first[name] for name in SPACE} == {
        "network.filters": "8 4",
        "network.kernel_sizes": "3 3",
        "network.dense_units": "8",
        "network.dense_dropout": 0.2,
    }
    assert (table["message"] == "").all()
    winner = table.iloc[table["val_accuracy"].argmax()]
    assert {name: winner[name] for name in SPACE} == columns(best)
    assert best_score(best) == pytest.approx(table["val_accuracy"].max())


def test_the_network_with_the_highest_val_accuracy_wins_and_the_first_of_equals(
    tmp_path: Path,
) -> None:
    def equal(trial: Trial) -> Outcome:
        return trial.known or epochs(trial, 0.5 if trial.number < 3 else 0.6)

    best, table = look(tmp_path / "search", equal)
    third = table.iloc[2]
    assert {name: third[name] for name in SPACE} == columns(best)
    again, _ = look(tmp_path / "search", Recorder({n: AssertionError() for n in range(1, 7)}))
    assert again == best


@pytest.mark.parametrize("oracle", ["random", "bayesian", "hyperband"])
def test_a_failed_trial_is_in_the_table_and_the_search_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, oracle: str
) -> None:
    # TensorFlow ends with the name of an operation of its graph.
    trouble = MemoryError("no room for\nsuch a network\n\t [[{{node block1a_conv}}]]")
    run = Recorder(dict.fromkeys((1, 2, 3, 4, 5, 8), trouble))
    with caplog.at_level(logging.INFO, "emotion_detection"):
        best, table = look(tmp_path / "search", run, oracle=oracle, trials=9)
    assert run.numbers == list(range(1, 10))
    failed = table[table["status"] == "FAILED"]
    assert failed["trial"].tolist() == [1, 2, 3, 4, 5, 8]
    assert set(failed["message"]) == {"such a network"}
    assert failed["val_accuracy"].isna().all()
    assert table["status"].isin(["FAILED", "COMPLETED"]).all()
    winner = table.iloc[int(table["val_accuracy"].argmax())]
    assert {name: winner[name] for name in SPACE} == columns(best)
    assert "tune: trial 5/9 failed: such a network" in caplog.text


def test_a_trial_whose_score_is_not_a_number_fails(tmp_path: Path) -> None:
    def sometimes(trial: Trial) -> Outcome:
        return epochs(trial, math.nan if trial.number == 2 else score(trial.network))

    best, table = look(tmp_path / "search", sometimes)
    assert table["status"].tolist() == ["COMPLETED", "FAILED"] + ["COMPLETED"] * 4
    assert best_score(best) == pytest.approx(table["val_accuracy"].max())


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
    # Bayesian proposes from the sixth trial on, and hyperband's fourth goes on with an earlier.
    settings: dict[str, Any] = {"oracle": oracle, "trials": 8, "epochs": 3}
    best, uninterrupted = look(tmp_path / "uninterrupted", **settings)

    before = Recorder({interrupted: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        look(tmp_path / "search", before, **settings)
    after = Recorder()
    found, table = look(tmp_path / "search", after, **settings)

    assert before.numbers == list(range(1, interrupted + 1))
    assert after.numbers == list(range(interrupted, 9))
    assert decided(table) == decided(uninterrupted)
    assert found == best


def test_a_finished_search_is_not_done_again(tmp_path: Path) -> None:
    best, table = look(tmp_path / "search")
    run = Recorder()
    again, same = look(tmp_path / "search", run)
    assert not run.seen
    assert again == best
    assert decided(same) == decided(table)


@pytest.mark.parametrize("oracle", ["random", "bayesian", "hyperband"])
def test_the_seed_fixes_the_search(tmp_path: Path, oracle: str) -> None:
    tables = [
        decided(look(tmp_path / str(number), oracle=oracle, trials=8, seed=seed)[1])
        for number, seed in enumerate((0, 0, 1))
    ]
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


def test_bayesian_search_learns_from_its_trials(tmp_path: Path) -> None:
    def prefers_wide(trial: Trial) -> Outcome:
        return trial.known or epochs(trial, sum(trial.network.filters) / 50)

    _, table = look(tmp_path / "bayesian", prefers_wide, oracle="bayesian", trials=15)
    assert len(table) == 15
    assert not table.duplicated(list(SPACE)).any()
    guessed, proposed = table["val_accuracy"][:5], table["val_accuracy"][5:]
    assert proposed.mean() > guessed.mean() + 0.1


def test_counts_of_epochs_are_shortened_with_the_training() -> None:
    training = Train(
        epochs=40,
        progressive_resizing=20,
        no_aug_epochs=5,
        early_stopping_patience=8,
        reduce_lr_patience=1,
    )
    short = shortened(training, 8)
    assert (short.epochs, short.progressive_resizing, short.no_aug_epochs) == (8, 4, 1)
    assert (short.early_stopping_patience, short.reduce_lr_patience) == (2, 1)
    assert shortened(short, 80).no_aug_epochs == 10
    assert shortened(TRAIN, 3) == TRAIN.model_copy(update={"epochs": 3})


def test_settings_of_the_training_are_searched_and_trained_with(tmp_path: Path) -> None:
    space = {
        "train.optimizer": ["adam", "sgd"],
        "train.lr": {"min": 1e-3, "max": 1e-1, "log": True},
        "train.augment.rotation": {"min": 0, "max": 30, "step": 10, "when": SGD},
    }
    run = Recorder()
    best, table = look(tmp_path / "search", run, space=space, trials=12)
    assert run.seen[0].training == TRAIN.model_copy(update={"epochs": 3})
    for trial in run.seen:
        assert trial.network == BASELINE
        assert trial.training.optimizer in ("adam", "sgd")
        assert 1e-3 <= trial.training.lr <= 1e-1
        rotation = trial.training.augment.rotation
        assert rotation in ((0, 10, 20, 30) if trial.training.optimizer == "sgd" else (0,))
    assert len({trial.training.augment.rotation for trial in run.seen}) > 2
    assert len({trial.folder for trial in run.seen}) == 12
    assert table["train.lr"].tolist() == [trial.training.lr for trial in run.seen]
    # All networks score alike, and the first of equals is params.yaml's own.
    assert best == {}


def test_hyperband_trains_the_best_further_from_where_they_stopped(tmp_path: Path) -> None:
    run = Recorder()
    _, table = look(tmp_path / "search", run, oracle="hyperband", trials=16, epochs=9)
    first, rest = run.seen[:9], run.seen[9:]
    assert {trial.until for trial in first} == {1}

    second, third = rest[:3], rest[3]
    assert {trial.until for trial in second} == {3}
    assert third.until == 9
    ranked = sorted(first, key=lambda trial: -score(trial.network))
    assert [trial.network for trial in second] == [trial.network for trial in ranked[:3]]
    assert third.network == ranked[0].network

    # On one schedule, from the checkpoints of the trial before.
    assert {trial.training.epochs for trial in run.seen} == {9}
    assert len({trial.folder for trial in first}) == 9
    assert [trial.folder for trial in second] == [trial.folder for trial in ranked[:3]]
    assert third.folder == ranked[0].folder
    assert table["epochs"].tolist()[:13] == [1] * 9 + [3] * 3 + [9]


def test_hyperband_looks_at_as_many_networks_as_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, table = look(tmp_path / "many", oracle="hyperband", trials=40, epochs=3)
    assert len(table) == 40
    assert "trials" not in caplog.text
    look(tmp_path / "few", oracle="hyperband", trials=9, epochs=9)
    assert "first looks at 9 settings for 1 of tune.epochs = 9 epochs each" in caplog.text
    assert "tune.trials = 9 leaves none" in caplog.text


def test_a_search_is_reported_in_words_metrics_figures_and_tags(
    tmp_path: Path, rows: Split
) -> None:
    run = Recorder({1: OSError("disk full")})
    found = find(tmp_path / "search", run)
    best, table = dict(found.drawn), found.trials
    assert description(TASK.settings, rows) == (
        "A random search of 6 trials, each of at most 3 epochs on 72 train and 18 validation images"
    )
    written = report(found, TASK.settings)
    assert written["metrics"] == {
        "tune/trials": 6,
        "tune/failed": 1,
        "tune/pruned": 0,
        "tune/best_val_accuracy": pytest.approx(best_score(best)),
    }
    assert written["more_metrics"] == {"tune/seconds": pytest.approx(table["seconds"].sum())}
    assert written["tables"]["trials"] is table
    assert list(written["figures"]) == ["trials"]
    (number,) = (trial.number for trial in run.seen if trial.drawn == best)
    assert written["tags"] == {"best.trial": f"{number:02d}", "workers": "1"}
    assert written["headline"].startswith(f"best of 6 trials: trial {number:02d}, validation acc")
    assert f"network.filters {shown(best['network.filters'])}, network.k" in written["headline"]
    written["more_files"](tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Search\n\nBest of 6 trials: trial ")
    rows_of = [line for line in text.splitlines() if line.startswith("| ") and " % | " in line]
    assert len(rows_of) == 5
    filters = ",".join(map(str, best["network.filters"]))
    assert f"dvc exp run -S tune.trials=0 -S network.filters='[{filters}]' -S network.k" in text
    assert "What mattered" not in text
    own = dataclasses.replace(found, drawn={}, trial=2)
    assert summary(own).startswith("nothing found is better than params.yaml (best of 6: ")


def curve(trial: Trial) -> Outcome:
    """Return what a trial comes to by its learning rate, of which 0.01 is the best."""
    return trial.known or epochs(trial, 0.9 - abs(math.log10(trial.training.lr / 0.01)) / 5)


LR: dict[str, Any] = {"train.lr": {"min": 1e-4, "max": 1e-1, "log": True}}


@pytest.mark.parametrize("oracle", ["random", "bayesian"])
def test_a_trial_behind_the_median_of_the_others_ends_early(tmp_path: Path, oracle: str) -> None:
    settings: dict[str, Any] = {"oracle": oracle, "space": LR, "trials": 16, "epochs": 6}
    found = find(tmp_path / "search", curve, pruning=True, **settings)
    table = found.trials
    early = table[table["end"] == "pruned"]
    assert len(early) >= 3
    assert early["trial"].min() > 4
    assert set(early["epochs"]) <= {2, 3, 4, 5}
    assert (table.loc[table["end"] == "complete", "epochs"] == 6).all()
    # The score that it had is not that of a trial to the end, and it is never the best.
    assert found.trial not in set(early["trial"])
    assert report(found, TASK.settings)["metrics"]["tune/pruned"] == len(early)
    without = find(tmp_path / "without", curve, **settings)
    assert (without.trials["end"] == "complete").all()
    if oracle == "random":
        assert found.drawn == without.drawn


@pytest.mark.parametrize("oracle", ["random", "bayesian"])
def test_a_search_that_prunes_and_repeats_ends_as_an_uninterrupted_one(
    tmp_path: Path, oracle: str
) -> None:
    settings: dict[str, Any] = {
        **{"oracle": oracle, "space": LR, "trials": 10, "epochs": 6},
        **{"pruning": True, "repeats": 2},
    }
    whole = find(tmp_path / "whole", curve, **settings)
    calls, kills = 0, [1, 4, 7, 9, 12, 14]

    def killed(trial: Trial) -> Outcome:
        nonlocal calls
        calls += 1
        if calls in kills:
            raise KeyboardInterrupt
        return curve(trial)

    for _ in kills:
        with pytest.raises(KeyboardInterrupt):
            find(tmp_path / "search", killed, **settings)
    found = find(tmp_path / "search", killed, **settings)
    assert decided(found.trials) == decided(whole.trials)
    assert found.drawn == whole.drawn
    assert found.repeats.drop(columns="seconds").equals(whole.repeats.drop(columns="seconds"))


@pytest.mark.parametrize("oracle", ["random", "bayesian", "hyperband"])
def test_more_trials_train_only_the_new_ones(tmp_path: Path, oracle: str) -> None:
    settings: dict[str, Any] = {"oracle": oracle, "records": tmp_path / "trials"}
    find(tmp_path / "six", **settings)
    run = Recorder()
    found = find(tmp_path / "twelve", run, **settings, trials=12)
    assert len(run.seen) == 6
    at_once = find(tmp_path / "at once", oracle=oracle, trials=12)
    assert decided(found.trials) == decided(at_once.trials)
    assert found.drawn == at_once.drawn


def test_another_space_or_oracle_keeps_the_trials_that_it_has(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"records": tmp_path / "trials", "trials": 8}
    first = find(tmp_path / "first", **settings)
    wide = SPACE | {"network.filters": {"length": [1, 2, 3], "each": [4, 8, 16, 32]}}
    for name, changes in (("wide", {"space": wide}), ("bayesian", {"oracle": "bayesian"})):
        run = Recorder()
        found = find(tmp_path / name, run, **settings | changes | {"trials": 11})
        assert len(run.seen) == 3
        kept = found.trials.iloc[:8].drop(columns="seconds")
        assert kept.equals(first.trials.drop(columns="seconds"))
        # Each begins with what the first left alone.
        for trial in run.seen:
            shutil.rmtree(trial.folder)
    narrow = SPACE | {"network.dense_dropout": [0.0]}
    run = Recorder()
    found = find(tmp_path / "narrow", run, **settings, space=narrow)
    inside = (first.trials["network.dense_dropout"] == 0.0).iloc[1:].sum()
    assert len(run.seen) == 8 - 1 - inside
    assert (found.trials["network.dense_dropout"].iloc[1:] == 0.0).all()


def test_a_budget_ends_the_search_and_more_of_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("emotion_detection.tuning.tuner.time.monotonic", lambda: clock[0])

    def takes_a_minute(trial: Trial) -> Outcome:
        if trial.known is not None:
            return trial.known
        rows: list[Row] = []
        for epoch in range(1, trial.until + 1):
            clock[0] += 20
            rows.append(dict(epochs(trial, 0.5).rows[0]) | {"epoch": epoch, "seconds": 20.0})
            if trial.stop(rows):
                break
        return Outcome(rows, 1)

    settings: dict[str, Any] = {"trials": None, "records": tmp_path / "trials"}
    found = find(tmp_path / "short", takes_a_minute, **settings, budget="200s")
    assert clock == [200.0]
    assert found.trials["end"].tolist() == ["complete"] * 3 + ["out of time"]
    assert found.trials["epochs"].tolist() == [3, 3, 3, 1]
    found = find(tmp_path / "long", takes_a_minute, **settings, budget="400s")
    assert found.trials["seconds"].sum() == 400
    assert found.trials["epochs"].tolist()[:4] == [3] * 4
    # What repeats need is kept for them: two trials and params.yaml, a minute each.
    clock[0] = 0.0
    found = find(tmp_path / "again", takes_a_minute, trials=None, budget="400s", repeats=1)
    assert len(found.repeats) == 3
    assert 380 <= clock[0] <= 420


def test_the_best_are_compared_by_other_seeds(tmp_path: Path) -> None:
    def lucky(trial: Trial) -> Outcome:
        luck = 0.2 if trial.number == 3 and trial.seed == 7 else 0.0
        return trial.known or epochs(trial, 0.5 + luck + 0.01 * (trial.number == 5))

    found = find(tmp_path / "search", lucky, repeats=2)
    assert found.repeats["trial"].tolist() == [1, 3, 5, 1, 3, 5]
    assert found.repeats["seed"].tolist() == [8] * 3 + [9] * 3
    assert found.trial == 5
    assert optimism(found) == pytest.approx(0.1)
    assert "with other seeds 51.0 +- 0.0 %" in summary(found)
    # None is better than params.yaml where all are alike.
    alike = find(tmp_path / "alike", lambda trial: trial.known or epochs(trial, 0.5), repeats=1)
    assert (alike.drawn, alike.trial) == ({}, 1)


def test_what_mattered_is_told_of_enough_trials(tmp_path: Path) -> None:
    space = LR | {"train.optimizer": ["adam", "sgd"], "network.dense_units": [[], [4], [4, 4]]}
    found = find(tmp_path / "search", curve, space=space, trials=20)
    table = found.importance
    assert table["setting"][0] == "train.lr"
    assert set(table["setting"]) == space.keys()
    assert table["importance"][0] > 0.8
    assert table["importance"].sum() == pytest.approx(1, abs=1e-3)
    assert "## What mattered\n\nOf 20 trials: " in page(found)
    assert find(tmp_path / "few", curve, space=space, trials=7).importance.empty


@pytest.mark.parametrize("oracle", ["random", "hyperband"])
def test_trials_side_by_side_are_those_of_one_worker_and_go_on_with_any(
    tmp_path: Path, oracle: str
) -> None:
    settings: dict[str, Any] = {"oracle": oracle, "trials": 8, "epochs": 3}
    best, in_turn = look(tmp_path / "in turn", **settings)
    both = threading.Barrier(2, timeout=60)

    def beside(trial: Trial) -> Outcome:
        # Only two at once come past it.
        if trial.number < 3 and trial.known is None:
            both.wait()
        return pretend(trial)

    found, table = look(tmp_path / "two", beside, **settings, workers=2)
    if oracle == "random":
        assert decided(table) == decided(in_turn)
        assert found == best
    assert table["trial"].tolist() == list(range(1, 9))
    begun: list[int] = []

    def held(trial: Trial) -> Outcome:
        begun.append(trial.number)
        if trial.number < 3:
            return pretend(trial)
        if trial.number == 4:
            os.kill(os.getpid(), signal.SIGINT)
        while not trial.interrupted():
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(tmp_path / "search", held, **settings, workers=3)
    assert {1, 2, 3, 4} <= set(begun)
    run = Recorder()
    _, table = look(tmp_path / "search", run, **settings)
    assert table["status"].tolist() == ["COMPLETED"] * 8
    assert sorted(run.numbers) == list(range(3, 9))
    if oracle == "random":
        assert decided(table) == decided(in_turn)


def test_repeats_side_by_side_are_those_of_one_worker(tmp_path: Path) -> None:
    one = find(tmp_path / "one", repeats=2)
    two = find(tmp_path / "two", repeats=2, workers=2)
    assert two.drawn == one.drawn
    assert two.repeats.drop(columns="seconds").equals(one.repeats.drop(columns="seconds"))
