"""The search: what is drawn, what survives a failure or an interrupt, what the table says."""

import gc
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset, Split
from emotion_detection.models import network
from emotion_detection.models.network import Architecture
from emotion_detection.params import Network, SingleNetwork, Space
from emotion_detection.training.fit import fit
from emotion_detection.tuning.search import (
    Outcome,
    Trial,
    described,
    load_hyperparameters,
    save_hyperparameters,
    search,
)

SPACE = Space(
    blocks=(1, 2, 3),
    filters=(4, 8, 16),
    kernel_size=(1, 3),
    dense_layers=(1, 2),
    dense_units=(4, 8),
    dense_dropout=(0.0, 0.2),
)
BASELINE = Architecture(
    family="notebook",
    filters=(8, 4),
    kernel_sizes=(3, 3),
    convolutions=2,
    dense_units=(8,),
    squeeze_excitation=False,
    conv_dropout=0.1,
    dense_dropout=0.2,
    bn_momentum=0.8,
    average_flips=False,
    average_shifts=0,
    soften=0.0,
    members=1,
)
OUTSIDE = replace(BASELINE, filters=(5, 5))
SHAPE = (16, 16, 3)
Drawn = list[dict[str, Any]]


def score(architecture: Architecture) -> float:
    """Invent a val_accuracy that no two of a search's networks are likely to share."""
    return 0.5 + sum(architecture.filters) / 100 + sum(architecture.kernel_sizes) / 1000


def pretend(trial: Trial) -> Outcome:
    """Take a network's measure without training it, and leave the checkpoint that a trial would."""
    trial.checkpoint.write_text("weights")
    epochs = trial.epochs - trial.first_epoch
    return Outcome(score(trial.architecture), 1.5, sum(trial.architecture.filters), epochs)


@pytest.fixture(scope="module", autouse=True)
def _cheap_collections() -> Iterator[None]:
    """Spare each trial's garbage collection the walk through all that TensorFlow imported."""
    gc.freeze()
    yield
    gc.unfreeze()


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
    folder: Path, run: Callable[[Trial], Outcome] = pretend, **changes: Any
) -> tuple[Architecture, pd.DataFrame]:
    settings: dict[str, Any] = {
        "space": SPACE,
        "baseline": BASELINE,
        "oracle": "random",
        "trials": 6,
        "epochs": 3,
        "max_gflops": None,
        "image_shape": SHAPE,
        "classes": 3,
        "seed": 7,
    }
    found = search(folder=folder, run=run, **{**settings, **changes})
    assert found is not None
    return found


def drawn(table: pd.DataFrame) -> Drawn:
    """Return what a search decided, without how long it took."""
    return json.loads(table.drop(columns="seconds").to_json(orient="records"))


def test_the_first_trial_is_the_baseline(tmp_path: Path) -> None:
    for oracle in ("random", "bayesian", "hyperband"):
        run = Recorder()
        look(tmp_path / oracle, run, oracle=oracle, trials=2)
        assert run.seen[0].architecture == BASELINE
        assert run.seen[1].architecture != BASELINE


def test_a_baseline_outside_the_space_is_not_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Recorder()
    with caplog.at_level(logging.INFO, "emotion_detection"):
        look(tmp_path / "search", run, baseline=OUTSIDE)
    assert len(run.seen) == 6
    assert "outside tune.space" in caplog.text
    for trial in run.seen:
        assert set(trial.architecture.filters) <= set(SPACE.filters)
        assert trial.architecture.conv_dropout == OUTSIDE.conv_dropout
        assert trial.architecture.bn_momentum == OUTSIDE.bn_momentum


def test_networks_are_drawn_from_the_space_no_two_alike(tmp_path: Path) -> None:
    run = Recorder()
    _, table = look(tmp_path / "search", run, trials=30)
    networks = [trial.architecture for trial in run.seen]
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


def test_drawn_networks_have_the_convolutions_of_the_one_in_params_yaml(tmp_path: Path) -> None:
    run = Recorder()
    look(tmp_path / "search", run, trials=20, baseline=replace(BASELINE, convolutions=(1, 3)))
    assert {trial.architecture.convolutions for trial in run.seen} == {(1,), (1, 3), (1, 3, 3)}


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
    assert len({trial.architecture for trial in run.seen}) == len(run.seen) == 2 + 8


@pytest.mark.parametrize("oracle", ["random", "bayesian", "hyperband"])
def test_no_network_above_the_ceiling_is_drawn(tmp_path: Path, oracle: str) -> None:
    ceiling = 1.9e-5  # under which are 16 networks, and few draws
    run = Recorder()
    look(tmp_path / "search", run, oracle=oracle, trials=12, max_gflops=ceiling, epochs=9)
    networks = [trial.architecture for trial in run.seen if trial.continues is None]
    costs = [each.forward_gflops(SHAPE, 3) for each in networks]
    assert len(run.seen) == 12
    # What a person wrote into params.yaml is looked at whatever it costs.
    assert costs[0] > ceiling
    assert max(costs[1:]) <= ceiling
    assert len(set(networks)) == len(networks) >= 9


def test_a_ceiling_that_nothing_is_under_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tune\.max_gflops = 1e-09: no network of tune\.space"):
        look(tmp_path / "search", baseline=OUTSIDE, max_gflops=1e-9)


def test_a_space_that_is_used_up_ends_the_search_with_a_word(
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


def test_the_table_says_what_each_trial_came_to(tmp_path: Path) -> None:
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
    assert first["gflops"] == pytest.approx(BASELINE.forward_gflops(SHAPE, 3), abs=1e-4)
    assert {name: first[name] for name in described(BASELINE)} == {
        "blocks": 2,
        "filters": "8 4",
        "kernel_sizes": "3 3",
        "dense_layers": 1,
        "dense_units": "8",
        "dense_dropout": 0.2,
    }
    assert (table["message"] == "").all()
    winner = table.iloc[table["val_accuracy"].argmax()]
    assert {name: winner[name] for name in described(best)} == described(best)
    assert score(best) == pytest.approx(table["val_accuracy"].max())


def test_the_network_with_the_highest_val_accuracy_wins_and_the_first_of_equals(
    tmp_path: Path,
) -> None:
    def flat(trial: Trial) -> Outcome:
        return Outcome(0.5 if trial.number < 3 else 0.6, 1.0 / trial.number, 1, 1)

    best, table = look(tmp_path / "search", flat)
    third = table.iloc[2]
    assert {name: third[name] for name in described(best)} == described(best)
    again, _ = look(tmp_path / "search", Recorder({n: AssertionError() for n in range(1, 7)}))
    assert again == best


@pytest.mark.parametrize("oracle", ["random", "bayesian", "hyperband"])
def test_a_trial_that_fails_is_written_down_and_the_search_goes_on(
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
    assert "trial 5/9  failed: such a network; no result so far" in caplog.text


def test_a_trial_whose_score_is_no_number_is_failed(tmp_path: Path) -> None:
    def sometimes(trial: Trial) -> Outcome:
        nothing = trial.number == 2
        return Outcome(float("nan") if nothing else score(trial.architecture), 1.0, 1, 1)

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
def test_a_search_that_was_cut_off_goes_on_as_if_it_had_not_been(
    tmp_path: Path, oracle: str, interrupted: int
) -> None:
    # Bayesian proposes from the fourth trial on, and hyperband's fourth goes on with an earlier.
    settings: dict[str, Any] = {"oracle": oracle, "trials": 8, "epochs": 3}
    best, unbroken = look(tmp_path / "unbroken", **settings)

    before = Recorder({interrupted: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        look(tmp_path / "search", before, **settings)
    after = Recorder()
    found, table = look(tmp_path / "search", after, **settings)

    assert before.numbers == list(range(1, interrupted + 1))
    assert after.numbers == list(range(interrupted, 9))
    assert drawn(table) == drawn(unbroken)
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
        return Outcome(sum(trial.architecture.filters) / 50, 1.0, 1, 1)

    _, table = look(tmp_path / "bayesian", prefers_wide, oracle="bayesian", trials=15)
    assert len(table) == 15
    assert not table.duplicated(list(described(BASELINE))).any()
    guessed, proposed = table["val_accuracy"][:5], table["val_accuracy"][5:]
    assert proposed.mean() > guessed.mean() + 0.1


def test_a_bayesian_search_runs_as_keras_tuner_ships_it(
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
    ranked = sorted(first, key=lambda trial: -score(trial.architecture))
    assert [trial.architecture for trial in second] == [trial.architecture for trial in ranked[:3]]
    assert third.architecture == ranked[0].architecture

    left_by = {trial.checkpoint: trial for trial in run.seen}
    assert len(left_by) == 16
    for trial in (*second, third):
        assert trial.continues is not None
        earlier = left_by[trial.continues]
        assert earlier.architecture == trial.architecture
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


def test_networks_are_trained_for_real(tmp_path: Path, toy: Dataset, rows: Split) -> None:
    histories: dict[int, pd.DataFrame] = {}
    started_at: dict[int, float] = {}

    def run(trial: Trial) -> Outcome:
        model = network.build(trial.architecture, image_shape=SHAPE, classes=3, seed=0)
        if trial.continues:
            model.load_weights(trial.continues)
        probabilities = fit.predict(model, toy, rows.validation, 18)
        labels = toy.labels[rows.validation]
        started_at[trial.number] = -np.log(probabilities[np.arange(18), labels]).mean()
        history = fit.fit(
            model,
            toy,
            train=rows.train,
            validation=rows.validation,
            recipe=fit.Recipe(1e-2, 12, trial.epochs, None),
            seed=0,
            log_epoch=lambda figures, epoch: None,
            first_epoch=trial.first_epoch,
            verbose=False,
        )
        histories[trial.number] = history
        model.save_weights(trial.checkpoint)
        best = fit.best_epoch(history)
        return Outcome(
            float(best["val_accuracy"]), float(best["val_loss"]), model.count_params(), len(history)
        )

    best, table = look(tmp_path / "search", run, oracle="hyperband", trials=4, epochs=3)
    assert table["status"].tolist() == ["COMPLETED"] * 4
    assert [history["epoch"].tolist() for history in histories.values()] == [[1]] * 3 + [[2, 3]]
    for row in table.itertuples():
        history = histories[int(row.trial)]
        assert row.val_accuracy == pytest.approx(history["val_accuracy"].max())
        assert row.epochs == len(history)
        assert row.seconds > 0
    # The fourth goes on with the weights that the best of the first three left.
    chosen = table["val_accuracy"][:3].argmax() + 1
    assert started_at[4] == pytest.approx(histories[chosen]["val_loss"].iloc[-1], rel=1e-4)
    first = network.build(BASELINE, image_shape=SHAPE, classes=3)
    assert table["parameters"][0] == first.count_params()
    assert isinstance(network.build(best, image_shape=SHAPE, classes=3), keras.Model)


def test_what_tune_chose_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "hyperparameters.json"
    pair = replace(BASELINE, members=2, average_shifts=1)
    save_hyperparameters(replace(BASELINE, filters=(4, 16)), path)
    found = load_hyperparameters(path, Network(**asdict(pair)))
    assert found == replace(pair, filters=(4, 16))
    assert hash(found) == hash(replace(pair, filters=(4, 16)))


WRITTEN = {name: asdict(BASELINE)[name] for name in SingleNetwork.model_fields}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("3", "= 3: must be a section of family, filters, kernel_sizes, convolutions"),
        ("{}", "family: missing"),
        (json.dumps({**WRITTEN, "filters": "8 4"}), 'filters = "8 4": must be a list'),
        (json.dumps({**WRITTEN, "filters": [8, 4.5]}), "filters.1 = 4.5: must be a whole number"),
        (json.dumps({**WRITTEN, "filters": [8]}), "filters has 1 entries and kernel_sizes 2"),
        (json.dumps({**WRITTEN, "dense_dropout": float("nan")}), "dense_dropout = NaN: must be a"),
        (json.dumps({**WRITTEN, "dropout": 0.5}), "dropout: unknown key"),
    ],
)
def test_a_file_without_hyperparameters_is_named_with_the_remedy(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "hyperparameters.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as raised:
        load_hyperparameters(path, Network(**asdict(BASELINE)))
    assert str(raised.value).startswith(f"{path}: {message}")
    assert str(raised.value).endswith("; run `dvc repro tune`")
