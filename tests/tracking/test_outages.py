"""A tracking server and a store that are away: nothing that is logged is lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import psutil
import pytest

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.tracking import delivery, models, runs
from tests.support import warm
from tests.support.servers import Server, mlflow_server
from tests.support.stage import STAGE
from tests.support.stores import alone
from tests.support.tiny import tiny

EPOCHS = 6


@pytest.fixture(autouse=True)
def _in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with alone(tmp_path):
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    server = mlflow_server(f"sqlite:///{folder / 'server.db'}", str(folder / "artifacts"))
    server.start()
    yield server
    server.stop()


def start(toy: Dataset, stage: str = "train", **changes: Any) -> Any:
    settings: dict[str, Any] = {"note": "", "dataset": toy, "params": {"seed": 3}, "tags": {}}
    return runs.run(stage, **{**settings, **changes})


SEND = "from emotion_detection import console; from emotion_detection.tracking import delivery\n"
SEND += "console.run(delivery.send)"


class Training:
    """A small real training, of which each epoch is logged; `after` is called with its number."""

    def __init__(self, toy: Dataset) -> None:
        self.toy = toy
        self.model = tiny(toy)

    def __call__(self, after: Callable[[int], None]) -> list[tuple[int, float]]:
        rows = np.flatnonzero(~self.toy.is_test)
        images, labels = np.asarray(self.toy.images[rows]), self.toy.labels[rows]

        def log_epoch(epoch: int, logs: dict[str, float]) -> None:
            runs.log_epoch(logs, epoch + 1)
            after(epoch + 1)

        self.model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        history = self.model.fit(
            images,
            labels,
            validation_split=0.2,
            epochs=EPOCHS,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=log_epoch)],
            verbose=0,
        )
        return list(enumerate(history.history["val_loss"], 1))


@pytest.fixture
def training(toy: Dataset) -> Training:
    return Training(toy)


def curve(uri: str, run_id: str) -> list[tuple[int, float]]:
    points = mlflow.MlflowClient(uri).get_metric_history(run_id, "epoch/val_loss")
    return sorted((point.step, point.value) for point in points)


def unsent(root: Path) -> list[Path]:
    return list(root.glob("mlruns/.unsent/*/*/entries.jsonl"))


@pytest.mark.slow
def test_a_server_that_goes_away_for_a_while_costs_nothing(
    server: Server, training: Training, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)

    def after(epoch: int) -> None:
        if epoch == 2:
            server.stop()
        elif epoch == 5:
            server.start()

    with start(training.toy, "tune") as run_id:
        logged = training(after)
        with runs.child("trial 01", params={"filters": 8}, tags={"stage": "trial"}):
            runs.log_metrics({"val_accuracy": 0.5})
        runs.log_metrics({"best": 1.0})
    run = mlflow.MlflowClient(server.uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["best"] == 1.0
    assert curve(server.uri, run_id) == logged
    (child,) = mlflow.MlflowClient(server.uri).search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"
    )
    assert (child.info.status, child.data.metrics) == ("FINISHED", {"val_accuracy": 0.5})
    assert unsent(tmp_path) == []


@pytest.mark.slow
def test_a_server_that_goes_away_for_good_costs_only_the_tracking(
    server: Server,
    training: Training,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("EMOTION_DETECTION_TIMEOUT", "1")
    report = tmp_path / "report"
    report.mkdir()
    (report / "scores.csv").write_text("1,2\n")
    with start(training.toy) as run_id:
        logged = training(lambda epoch: server.stop() if epoch == 2 else None)
        runs.log_metrics({"val_accuracy": 0.75})
        runs.log_files(report, "training")
        runs.log_model(training.model, training.toy.classes)
        runs.save_run_id(tmp_path / "run.json", run_id)
    (report / "scores.csv").write_text("of the next training\n")
    assert mlflow.active_run() is None
    told = caplog.messages[-1]
    assert f"what is logged to run {run_id} is kept in {tmp_path}/mlruns/.unsent/" in told
    assert "run `emotion-detection send` when MLflow is back" in told
    assert len(unsent(tmp_path)) == 1

    # The stages that follow, and a training that cannot begin.
    with runs.resumed(run_id) as found:
        assert found
        runs.log_metrics({"test/accuracy": 0.5}, training.toy)
    exports: dict[bool, str] = {}
    for flips in (True, False):
        with runs.exported(run_id, f"flips {flips}", {"tta": {"flips": flips}}, "") as exported:
            assert exported is not None
            runs.log_metrics({"export/val_accuracy": 0.5 + flips})
        exports[flips] = exported
        with runs.resumed(exported):
            runs.log_metrics({"test/macro_f1": 0.25 + flips})
    with (
        pytest.raises(UserError, match=rf"MLflow at {server.uri} cannot be reached \(.*refused\)"),
        start(training.toy),
    ):
        pytest.fail("began")
    with pytest.raises(UserError, match="cannot be reached"):
        delivery.send()

    server.start()
    monkeypatch.delenv("EMOTION_DETECTION_TIMEOUT")
    sent = subprocess.run([warm.python(), "-c", SEND], text=True, capture_output=True)
    assert sent.returncode == 0, sent.stderr
    assert sent.stderr.endswith(f"nothing is left to send to {server.uri}\n")
    run = mlflow.MlflowClient(server.uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val_accuracy"] == 0.75
    assert run.data.metrics["test/accuracy"] == 0.5
    of: dict[bool, str | None] = {}
    for flips, name in exports.items():
        with runs.resumed(name) as of[flips]:
            pass
    # The names are sent in any order, and the first takes the training's run.
    assert run_id in of.values()
    assert of[True] != of[False]
    for flips, exported in of.items():
        of_export = mlflow.MlflowClient(server.uri).get_run(exported)
        assert of_export.info.status == "FINISHED"
        assert of_export.data.params["tta.flips"] == str(flips).lower()
        assert of_export.data.metrics["export/val_accuracy"] == 0.5 + flips
        assert of_export.data.metrics["test/macro_f1"] == 0.25 + flips
    logged_model = mlflow.MlflowClient(server.uri).get_logged_model(
        run.outputs.model_outputs[0].model_id
    )
    (score,) = (score for score in logged_model.metrics or () if score.key == "test/accuracy")
    assert (score.value, score.dataset_name) == (0.5, "toy.zip")
    assert curve(server.uri, run_id) == logged
    artifact = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path="training/scores.csv", dst_path=str(tmp_path / "got")
    )
    assert Path(artifact).read_text() == "1,2\n"
    assert mlflow.models.get_model_info(f"runs:/{run_id}/{models.MODEL_NAME}").run_id == run_id
    assert unsent(tmp_path) == []


# --- The store in a file.


def local(root: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{(root / 'mlflow.db').as_posix()}")


HOLD = """
import sqlite3, sys
store = sqlite3.connect(sys.argv[1], isolation_level=None)
store.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(database: Path) -> Iterator[None]:
    """Let another process lock the store while the block lasts."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, database], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.stdin.close()


@pytest.mark.slow
def test_a_locked_store_costs_nothing(
    toy: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start(toy) as run_id:
        with held(tmp_path / "mlflow.db"):
            for epoch in range(1, 4):
                runs.log_epoch({"val_loss": 1 / epoch}, epoch)
            # SQLite itself waits for five seconds.
            while "database is locked" not in caplog.text:
                time.sleep(0.05)
        runs.log_epoch({"val_loss": 0.25}, 4)
    uri = f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}"
    assert curve(uri, run_id) == [(epoch, 1 / epoch) for epoch in range(1, 5)]
    assert local(tmp_path).get_run(run_id).info.status == "FINISHED"


# --- Runs that were not ended.


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_that_is_ended_leaves_no_run_open(
    toy: Dataset, packed: Path, tmp_path: Path, how: signal.Signals
) -> None:
    with subprocess.Popen(
        [warm.python(), "-c", STAGE, packed],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        process.send_signal(how)
        _, errors = process.communicate(timeout=240)
    client = local(tmp_path)
    experiment = client.get_run(run_id).info.experiment_id
    if how == signal.SIGTERM:
        assert (process.returncode, errors.splitlines()[-1]) == (143, "terminated")
        assert "Traceback" not in errors
        assert client.get_run(run_id).info.status == "KILLED"
    else:
        assert client.get_run(run_id).info.status == "RUNNING"
        with start(toy):
            pass
    runs = client.search_runs([experiment], "tags.stage != 'train'")
    assert {run.info.run_name: run.info.status for run in runs} == {
        "tune on toy.zip": "KILLED",
        "trial 01": "KILLED",
    }
    (child,) = (run for run in runs if run.info.run_name == "trial 01")
    assert child.data.metrics == {"epoch/loss": 1.5}
    assert child.data.params == {"filters": "8"}


def test_only_runs_of_processes_that_are_gone_are_ended(toy: Dataset, tmp_path: Path) -> None:
    with start(toy) as mine:
        pass
    client = local(tmp_path)
    experiment = client.get_run(mine).info.experiment_id
    host, number, started = client.get_run(mine).data.tags["process"].rsplit(" ", 2)
    assert (int(number), float(started)) == (
        os.getpid(),
        pytest.approx(psutil.Process().create_time(), abs=0.01),
    )
    runs = {
        process: client.create_run(experiment, tags={"process": process}).info.run_id
        for process in (
            f"{host} {number} {started}",
            f"{host} {number} {float(started) - 3600}",  # the number was used again
            f"{host} {2**22 + 1} {started}",
            f"another.{host} {2**22 + 1} {started}",
            "somebody's own",
        )
    }
    untagged = client.create_run(experiment).info.run_id
    taken_up = client.create_run(experiment, tags={"process": f"{host} 4194305 1.0"}).info.run_id
    with start(toy, run_id=taken_up):
        assert client.get_run(taken_up).info.status == "RUNNING"
    status = [client.get_run(run_id).info.status for run_id in runs.values()]
    assert status == ["RUNNING", "KILLED", "KILLED", "RUNNING", "RUNNING"]
    assert client.get_run(untagged).info.status == "RUNNING"
    assert client.get_run(taken_up).info.status == "FINISHED"
