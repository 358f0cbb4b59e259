"""A trial: a network trained for a while, and logged to a child run of the search."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.entities import Run

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.models.network import build, forward_gflops
from emotion_detection.settings.params import Network, Train, Tune
from emotion_detection.tracking import runs
from emotion_detection.tuning import trial as tuning_trial
from emotion_detection.tuning.search import search
from emotion_detection.tuning.task import Outcome, Task, Trial
from emotion_detection.tuning.trial import run_trial, train_trial
from tests.support.stores import alone

SPACE: dict[str, Any] = {
    "network.filters": {"length": [1, 2], "each": [4, 8]},
    "network.kernel_sizes": {"length": "network.filters", "each": [3]},
    "network.dense_dropout": [0.0, 0.2],
}
BASELINE = Network(
    arch="notebook",
    filters=(8, 4),
    kernel_sizes=(3, 3),
    convolutions=1,
    dense_units=(8,),
    dense_dropout=0.2,
)
TUNE = Tune(space=SPACE, oracle="hyperband", trials=4, epochs=3)
TRAIN = Train(schedule="one_cycle", lr=1e-2, batch_size=12, epochs=3)
SHAPE = (16, 16, 3)


@pytest.fixture(scope="module", autouse=True)
def _store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with alone(tmp_path_factory.mktemp("store")):
        yield


def trial(folder: Path, **changes: Any) -> Trial:
    settings: dict[str, Any] = {
        **{"name": "trial 02", "number": 2, "total": 4, "seed": 0, "stop": lambda rows: ""},
        **{"network": BASELINE, "training": TRAIN, "until": 3},
        **{"drawn": {"network.filters": (8, 4), "train.lr": 1e-2}, "folder": folder / "trial"},
    }
    return Trial(**settings | changes)


def running(dataset: Dataset, rows: Split) -> Callable[[Trial], Outcome]:
    train = partial(train_trial, dataset=dataset, rows=rows, precision="float32")
    return partial(run_trial, dataset=dataset, rows=rows, train=train)


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
    fit: Callable[..., pd.DataFrame] = tuning_trial.fit

    def noted(*args: Any, **options: Any) -> pd.DataFrame:
        histories.append(fit(*args, **options))
        return histories[-1]

    monkeypatch.setattr(tuning_trial, "fit", noted)
    task = Task(TUNE, BASELINE, TRAIN, SHAPE, classes=3, seed=7)
    run = running(toy, rows)
    with runs.run("tune", note="", dataset=toy, params={}, tags={}) as run_id:
        folder = tmp_path / "search"
        found = search(task, folder=folder, records=tmp_path / "trials", run=run)
    best, table = found.drawn, found.trials
    assert table["status"].tolist() == ["COMPLETED"] * 4
    assert [history["epoch"].tolist() for history in histories] == [[1]] * 3 + [[1, 2, 3]]
    for row, history in zip(table.itertuples(), histories, strict=True):
        assert row.val_accuracy == pytest.approx(history["val_accuracy"].max())
        assert row.epochs == len(history)
        assert row.seconds > 0
    # The fourth goes on where the best of the first three stopped.
    chosen = int(table["val_accuracy"][:3].argmax())
    assert histories[3].iloc[:1].equals(histories[chosen])
    first = build(BASELINE, image_shape=SHAPE, classes=3)
    assert table["parameters"][0] == first.count_params()
    assert best.keys() <= SPACE.keys()

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
    with runs.run("tune", note="", dataset=toy, params={}, tags={}) as run_id:
        outcome = running(toy, dataclasses.replace(rows, selected_on_test=True))(trial(tmp_path))
    (child,) = children(run_id)
    model = build(BASELINE, image_shape=SHAPE, classes=3)
    assert outcome.parameters == model.count_params()
    assert [row["epoch"] for row in outcome.rows] == [1, 2, 3]
    assert child.data.tags["stage"] == "trial"
    assert child.data.tags["dataset"] == "toy.zip"
    assert child.data.tags["selected_on_test"] == "true"
    assert child.data.tags["trial.end"] == "complete"
    params = child.data.params
    names = ("network.filters", "network.filters.1", "network.filters.2", "train.lr")
    assert [params[name] for name in names] == ["8 4", "8", "4", "0.01"]
    assert float(params["gflops"]) == pytest.approx(forward_gflops(BASELINE, SHAPE, 3), abs=1e-4)
    assert params["parameters"] == str(model.count_params())
    best = max(outcome.rows, key=lambda row: row["val_accuracy"])
    assert child.data.metrics["val_loss"] == pytest.approx(best["val_loss"])


def test_a_trial_that_fails_is_a_failed_run_and_its_reason_is_given(
    tmp_path: Path, toy: Dataset, rows: Split
) -> None:
    deep = BASELINE.model_copy(update={"filters": (2,) * 9, "kernel_sizes": (3,) * 9})
    with runs.run("tune", note="", dataset=toy, params={}, tags={}) as run_id:
        run = running(toy, rows)
        with pytest.raises(UserError, match="9 blocks is too deep"):
            run(trial(tmp_path, network=deep))
    (child,) = children(run_id)
    assert child.info.status == "FAILED"


def test_an_interrupted_trial_goes_on_after_its_last_epoch(
    tmp_path: Path, toy: Dataset, rows: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = running(toy, rows)

    def interrupt(row: object, epoch: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with runs.run("tune", note="", dataset=toy, params={}, tags={}) as run_id:
        with monkeypatch.context() as patch:
            patch.setattr(tuning_trial.runs, "log_epoch", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run(trial(tmp_path))
        outcome = run(trial(tmp_path))
        whole = run(trial(tmp_path / "uninterrupted"))
        # It stops, goes on from there, and is not trained where it is known.
        stopped = run(
            trial(tmp_path / "parts", stop=lambda rows: "pruned" if len(rows) == 2 else "")
        )
        again = run(trial(tmp_path / "parts"))
        known = run(trial(tmp_path / "known", known=whole))
    assert len(stopped.rows) == 2
    ends = [each.data.tags.get("trial.end") for each in children(run_id)]
    assert sorted(ends, key=str) == [None, *["complete"] * 4, "pruned"]
    assert known == whole
    for rows_of in (outcome.rows, again.rows):
        for mine, its in zip(rows_of, whole.rows, strict=True):
            assert {**mine, "seconds": 0} == pytest.approx({**its, "seconds": 0}, rel=1e-3)
    logged = children(run_id)
    assert sorted(each.info.status for each in logged) == [*["FINISHED"] * 5, "KILLED"]
    for each in logged:
        if each.info.status == "FINISHED":
            points = mlflow.MlflowClient().get_metric_history(each.info.run_id, "epoch/loss")
            assert [point.step for point in points] in ([1, 2], [1, 2, 3])
