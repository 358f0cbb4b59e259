"""A trial: a network trained for a while, and logged to a child run of the search."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.models.network import build, forward_gflops
from emotion_detection.models.saving import predict
from emotion_detection.params import Network, Space, Tune
from emotion_detection.tracking import runs
from emotion_detection.tuning import trial as tuning_trial
from emotion_detection.tuning.search import Task, Trial, search
from emotion_detection.tuning.trial import run_trial
from tests.support.stores import alone

SPACE = Space(
    blocks=(1, 2),
    filters=(4, 8),
    kernel_size=(3,),
    dense_layers=(1,),
    dense_units=(8,),
    dense_dropout=(0.0, 0.2),
)
BASELINE = Network(
    arch="notebook",
    filters=(8, 4),
    kernel_sizes=(3, 3),
    convolutions=1,
    dense_units=(8,),
    dense_dropout=0.2,
)
TUNE = Tune(space=SPACE, oracle="hyperband", trials=4, epochs=3, lr=1e-2, batch_size=12)
SHAPE = (16, 16, 3)


@pytest.fixture(scope="module", autouse=True)
def _store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with alone(tmp_path_factory.mktemp("store")):
        yield


def trial(folder: Path, **changes: Any) -> Trial:
    settings: dict[str, Any] = {
        **{"number": 2, "total": 4, "network": BASELINE, "first_epoch": 0, "epochs": 1},
        **{"continues": None, "checkpoint": folder / "last.weights.h5"},
    }
    return Trial(**settings | changes)


def children(run_id: str) -> list[Run]:
    client = mlflow.MlflowClient()
    return list(
        client.search_runs(
            [client.get_run(run_id).info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{run_id}'",
            order_by=["attributes.run_name"],
        )
    )


def test_networks_are_trained_and_the_best_go_on_from_where_they_stopped(
    tmp_path: Path, toy: Dataset, rows: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories: list[pd.DataFrame] = []
    started_at: list[float] = []
    fit: Callable[..., pd.DataFrame] = tuning_trial.fit

    def noted(model: keras.Model, *args: Any, **options: Any) -> pd.DataFrame:
        answers = predict(model, toy.images, rows.validation)
        of_label = answers[np.arange(18), toy.labels[rows.validation]]
        started_at.append(float(-np.log(of_label).mean()))
        histories.append(fit(model, *args, **options))
        return histories[-1]

    monkeypatch.setattr(tuning_trial, "fit", noted)
    task = Task(TUNE, BASELINE, SHAPE, classes=3, seed=7)
    run = partial(run_trial, dataset=toy, rows=rows, settings=TUNE, precision="float32", seed=0)
    with runs.run("tune", note="", dataset=toy, params={}, tags={}) as run_id:
        best, table = search(task, folder=tmp_path / "search", run=run)
    assert table["status"].tolist() == ["COMPLETED"] * 4
    assert [history["epoch"].tolist() for history in histories] == [[1]] * 3 + [[2, 3]]
    for row, history in zip(table.itertuples(), histories, strict=True):
        assert row.val_accuracy == pytest.approx(history["val_accuracy"].max())
        assert row.epochs == len(history)
        assert row.seconds > 0
    # The fourth goes on with the weights that the best of the first three left.
    chosen = int(table["val_accuracy"][:3].argmax())
    assert started_at[3] == pytest.approx(histories[chosen]["val_loss"].iloc[-1], rel=1e-4)
    first = build(BASELINE, image_shape=SHAPE, classes=3)
    assert table["parameters"][0] == first.count_params()
    assert isinstance(build(best, image_shape=SHAPE, classes=3), keras.Model)

    # Nothing goes on from the weights of a search that is over.
    assert not list(tmp_path.rglob("*.weights.h5"))
    logged = children(run_id)
    assert [each.info.run_name for each in logged] == [f"trial {n:02d}" for n in (1, 2, 3, 4)]
    assert {each.info.status for each in logged} == {"FINISHED"}
    for each, history in zip(logged, histories, strict=True):
        assert each.data.metrics["val_accuracy"] == pytest.approx(history["val_accuracy"].max())
        points = mlflow.MlflowClient().get_metric_history(each.info.run_id, "epoch/val_loss")
        assert [point.step for point in points] == history["epoch"].tolist()


def test_a_trial_is_a_child_run_with_its_network_and_its_cost(
    tmp_path: Path, toy: Dataset, rows: Split
) -> None:
    settings = TUNE.model_copy(update={"oracle": "random"})
    with runs.run("tune", note="", dataset=toy, params={}, tags={}) as run_id:
        outcome = run_trial(
            trial(tmp_path),
            toy,
            dataclasses.replace(rows, selected_on_test=True),
            settings,
            precision="float32",
            seed=0,
        )
    (child,) = children(run_id)
    model = build(BASELINE, image_shape=SHAPE, classes=3)
    assert outcome.parameters == model.count_params()
    assert outcome.epochs == 1
    assert child.data.tags["stage"] == "trial"
    assert child.data.tags["dataset"] == "toy.zip"
    assert child.data.tags["selected_on_test"] == "true"
    params = child.data.params
    assert (params["filters"], params["filters_1"], params["filters_2"]) == ("8 4", "8", "4")
    assert float(params["gflops"]) == pytest.approx(forward_gflops(BASELINE, SHAPE, 3), abs=1e-4)
    assert params["parameters"] == str(model.count_params())
    assert child.data.metrics["val_loss"] == pytest.approx(outcome.val_loss)
    # Trials that nothing goes on from leave no weights.
    assert not (tmp_path / "last.weights.h5").exists()


def test_a_trial_that_fails_is_a_failed_run_and_its_reason_is_given(
    tmp_path: Path, toy: Dataset, rows: Split
) -> None:
    deep = BASELINE.model_copy(update={"filters": (2,) * 9, "kernel_sizes": (3,) * 9})
    with runs.run("tune", note="", dataset=toy, params={}, tags={}) as run_id:
        run = partial(run_trial, dataset=toy, rows=rows, settings=TUNE, precision="float32", seed=0)
        with pytest.raises(UserError, match="9 blocks is too deep"):
            run(trial(tmp_path, network=deep))
    (child,) = children(run_id)
    assert child.info.status == "FAILED"


def test_nothing_goes_on_from_a_trial_whose_last_loss_is_not_a_number(
    tmp_path: Path, toy: Dataset, rows: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = tuning_trial.fit

    def breaking_down(*args: Any, **options: Any) -> pd.DataFrame:
        history = fit(*args, **options)
        return history.assign(loss=float("nan"))

    monkeypatch.setattr(tuning_trial, "fit", breaking_down)
    with (
        runs.run("tune", note="", dataset=toy, params={}, tags={}),
        pytest.raises(UserError, match="its last loss is not a number"),
    ):
        run_trial(trial(tmp_path), toy, rows, TUNE, precision="float32", seed=0)
    assert not (tmp_path / "last.weights.h5").exists()
