"""A search in several processes: the same result, and what becomes of it when processes end."""

import dataclasses
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.settings.params import Network, Train, Tune
from emotion_detection.tracking import runs
from emotion_detection.training.callbacks import Row
from emotion_detection.tuning.search import Found, search
from emotion_detection.tuning.task import Outcome, Task, Told, TrainTrial, Trial
from emotion_detection.tuning.trial import run_trial, train_trial
from emotion_detection.tuning.workers import ADDRESS, LOOPBACK, placed
from tests.support.processes import training
from tests.support.servers import free_port
from tests.support.stores import alone

# Imported, Ray would not take what keeps it to loopback.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")

SPACE: dict[str, Any] = {
    "network.filters": [[4, 4], [4, 8], [8, 8]],
    "train.lr": {"min": 1e-5, "max": 1e-2, "log": True},
}
TUNE = Tune(space=SPACE, oracle="random", trials=4, epochs=4, workers=2)
NETWORK = Network(arch="notebook", filters=(4, 8), kernel_sizes=(3, 3), dense_units=())
TRAIN = Train(schedule="one_cycle", lr=1e-2, batch_size=12, epochs=4)
TASK = Task(TUNE, NETWORK, TRAIN, (16, 16, 3), classes=3, seed=7)


@pytest.fixture(scope="module", autouse=True)
def _store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with alone(tmp_path_factory.mktemp("store")):
        yield


@pytest.fixture(scope="module")
def train(toy: Dataset, rows: Split) -> Iterator[TrainTrial]:
    with placed(2, toy, rows, precision="float32", seed=7) as train:
        yield train


def alone_task(**changes: Any) -> Task:
    """Return TASK for one worker, with `changes` of tune."""
    settings = TUNE.model_copy(update={"workers": 1, **changes})
    return dataclasses.replace(TASK, settings=settings)


def look(
    folder: Path, toy: Dataset, rows: Split, train: TrainTrial, task: Task = TASK
) -> tuple[Found, dict[str, list[int]]]:
    """Search, and return what was found and the epochs of each trial in MLflow."""
    with runs.run("tune", note="", dataset=toy, params={}, tags={}) as run_id:
        run = partial(run_trial, dataset=toy, rows=rows, train=train)
        found = search(task, folder=folder / "search", records=folder / "trials", run=run)
    client = mlflow.MlflowClient()
    children = client.search_runs(
        [client.get_run(run_id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"
    )
    return found, {
        f"{run.info.run_name} {run.info.status}": [
            point.step for point in client.get_metric_history(run.info.run_id, "epoch/loss")
        ]
        for run in children
    }


# Before the tests that share a Ray of this process, which can have one at a time.
@pytest.mark.slow
def test_a_cluster_that_loses_a_node_finishes_the_search(
    tmp_path: Path,
    toy: Dataset,
    rows: Split,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(LOOPBACK, "0")
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {
        "num_cpus": 1,
        "node_ip_address": "127.0.0.1",
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        second = cluster.add_node(**node)
        monkeypatch.setenv(ADDRESS, cluster.address)

        both = threading.Barrier(2, partial(cluster.remove_node, second, allow_graceful=False), 120)
        waiting = {1, 2}

        def lost(trial: Trial, told: Told) -> Outcome:
            def lose(so_far: Sequence[Row]) -> bool:
                if trial.number in waiting:
                    waiting.remove(trial.number)
                    both.wait()
                return told(so_far)

            return train(trial, lose)

        with placed(2, toy, rows, precision="float32", seed=7) as train:
            found, logged = look(tmp_path, toy, rows, lost)
    finally:
        cluster.shutdown()
    assert found.trials["status"].tolist() == ["COMPLETED"] * 4
    assert logged == {f"trial {number:02d} FINISHED": [1, 2, 3, 4] for number in range(1, 5)}
    assert "its process ended, and it starts again" in caplog.text


def test_several_processes_find_what_one_does_and_listen_on_loopback_alone(
    tmp_path: Path, toy: Dataset, rows: Split, train: TrainTrial
) -> None:
    found, logged = look(tmp_path / "two", toy, rows, train)
    assert logged == {f"trial {number:02d} FINISHED": [1, 2, 3, 4] for number in range(1, 5)}
    here = partial(train_trial, dataset=toy, rows=rows, precision="float32")
    alone, _ = look(tmp_path / "one", toy, rows, here, alone_task())
    assert alone.drawn == found.drawn
    assert alone.trials[[*SPACE]].equals(found.trials[[*SPACE]])
    losses = [table["val_loss"].tolist() for table in (found.trials, alone.trials)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    addresses = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_goes_on_from_its_last_epoch(
    tmp_path: Path,
    toy: Dataset,
    rows: Split,
    train: TrainTrial,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "emotion_detection")
    left = {1: 1, 2: 3}

    def killed(trial: Trial, told: Told) -> Outcome:
        def kill(so_far: Sequence[Row]) -> bool:
            if left.get(trial.number):
                left[trial.number] -= 1
                (process,) = training(os.getpid())
                process.kill()
            return told(so_far)

        return train(trial, kill)

    found, logged = look(tmp_path, toy, rows, killed, alone_task(trials=3))
    assert found.trials["status"].tolist() == ["COMPLETED", "FAILED", "COMPLETED"]
    assert found.trials["message"][1] == "RuntimeError: it ended its process 3 times"
    assert "trial 01: its process ended, and it starts again" in caplog.text
    assert "tune: trial 1/3: goes on after epoch 1" in caplog.text
    for name in ("trial 01 FINISHED", "trial 03 FINISHED"):
        assert logged[name] == [1, 2, 3, 4]


def test_what_is_missing_is_named(
    toy: Dataset, rows: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv(ADDRESS, f"127.0.0.1:{port}")
    place = partial(placed, 2, toy, rows, precision="float32")
    with pytest.raises(UserError, match=rf"RAY_ADDRESS = 127.0.0.1:{port}: no answer"), place():
        pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"tune.workers = 2 needs Ray: `make .venv/.extras` ins"):
        place().__enter__()
    # One worker needs none.
    with placed(1, toy, rows, precision="float32"):
        pass
