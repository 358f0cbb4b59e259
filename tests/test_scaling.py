"""What docs/guide/scaling.md promises of several machines, on one: real servers, real processes."""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import mlflow
import pandas as pd
import psutil
import pytest
import yaml
from mlflow.entities import Run

from emotion_detection import paths
from tests.support.environment import without_settings
from tests.support.processes import training
from tests.support.servers import ObjectStore, Server

ROOT = Path(__file__).parents[1]

EPOCHS = 12


class Project:
    """A folder with the toy set and small params, in which stages run."""

    def __init__(self, root: Path, packed: Path, tracking_uri: str) -> None:
        self.root = root
        self.env = without_settings() | {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}",
            "MLFLOW_TRACKING_URI": tracking_uri,
        }
        (root / paths.DATASET).parent.mkdir()
        (root / paths.DATASET).symlink_to(packed, target_is_directory=True)

    def set_params(self, **changes: dict[str, Any]) -> None:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        for section, values in changes.items():
            params[section] |= values
        (self.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def start(self, stage: str, stderr: TextIO) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=self.root,
            env=self.env,
            stderr=stderr,
            text=True,
        )


def runs_of(client: mlflow.MlflowClient, condition: str) -> list[Run]:
    experiment = client.get_experiment_by_name("emotion-detection")
    return list(client.search_runs([experiment.experiment_id], condition)) if experiment else []


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")
def test_a_search_in_two_processes_that_is_killed_is_whole_on_postgresql_and_s3(
    tmp_path: Path, packed: Path, tracking_server: Server, object_store: ObjectStore
) -> None:
    project = Project(tmp_path, packed, tracking_server.uri)
    project.set_params(
        network={"filters": [4, 4], "kernel_sizes": [3, 3], "dense_units": []},
        tune={
            "trials": 5,
            "workers": 2,
            "epochs": EPOCHS,
            "space": {
                # Six blocks halve 16 pixels to nothing.
                "network.filters": {"length": [2, 6], "each": [4, 8]},
                "network.kernel_sizes": {"length": "network.filters", "each": [3]},
            },
        },
        train={"batch_size": 24},
    )
    client = mlflow.MlflowClient(tracking_server.uri)
    log, state = tmp_path / "tune.log", tmp_path / paths.STATE / "tune"
    # A process that trains is killed, then the stage, and then it runs to its end.
    for kill in ("process", "stage", ""):
        with log.open("a") as stderr:
            driver = project.start("tune", stderr)
        while kill and not (training(driver.pid) and any(state.rglob("epoch_*"))):
            assert driver.poll() is None, log.read_text()
            time.sleep(0.02)
        if kill == "process":
            for process in training(driver.pid):
                process.kill()
            while "its process ended, and it starts again" not in log.read_text():
                assert driver.poll() is None, log.read_text()
                time.sleep(0.1)
        if kill:
            left = training(driver.pid)
            driver.kill()
            driver.wait()
            # What trains ends with the stage.
            assert not psutil.wait_procs(left, timeout=30)[1]
        else:
            assert driver.wait() == 0, log.read_text()

    table = pd.read_csv(tmp_path / paths.TUNE / "trials.csv")
    assert table["trial"].tolist() == [1, 2, 3, 4, 5]
    failed = table[table["status"] != "COMPLETED"]
    blocks = table["network.filters"].str.split().map(len)
    assert (blocks[failed.index] == 6).all(), log.read_text()
    assert failed["message"].str.contains("6 blocks is too deep for images of 16x16").all()
    assert len(failed) == (blocks == 6).sum() > 0

    (search,) = runs_of(client, "tags.stage = 'tune'")
    assert search.info.status == "FINISHED"
    assert search.data.tags["workers"] == "2"
    trials = runs_of(client, "tags.stage = 'trial'")
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {search.info.run_id}
    ended = {(run.info.run_name, run.info.status) for run in trials}
    finished = {(name, status) for name, status in ended if status != "KILLED"}
    assert finished == {
        (f"trial {row.trial:02d}", "FINISHED" if row.status == "COMPLETED" else "FAILED")
        for row in table.itertuples()
    }
    assert len(finished) == sum(run.info.status != "KILLED" for run in trials)
    for run in trials:
        if run.info.status == "FINISHED":
            row = table.iloc[int(run.info.run_name.removeprefix("trial ")) - 1]
            assert run.data.metrics["val_accuracy"] == pytest.approx(row["val_accuracy"])
            assert run.data.params["network.filters"] == row["network.filters"]
            points = client.get_metric_history(run.info.run_id, "epoch/val_loss")
            assert sorted(point.step for point in points) == list(range(1, EPOCHS + 1))

    best = table.iloc[table["val_accuracy"].argmax()]
    assert search.data.metrics["tune/best_val_accuracy"] == best["val_accuracy"]
    chosen = json.loads((tmp_path / paths.HYPERPARAMETERS).read_text())
    filters = (chosen["params"] | chosen["drawn"])["network.filters"]
    assert " ".join(map(str, filters)) == best["network.filters"]
    assert search.data.tags["best.trial"] == f"{best['trial']:02d}"
    stored = {key.rpartition(f"{search.info.run_id}/artifacts/")[2] for key in object_store.names()}
    assert {"tune/trials.csv", "tune/trials.png", "tune/metrics.json"} <= stored
    assert not list(tmp_path.glob("mlruns/.unsent/*/*/"))
    (state,) = (tmp_path / paths.STATE / "tune").iterdir()
    assert [path for path in state.rglob(paths.HYPERPARAMETERS.name) if path.is_file()]
    assert not list(state.rglob("*.weights.h5"))
