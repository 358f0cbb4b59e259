"""The project's own store after the project was moved or copied."""

import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import LoggedModel

from emotion_detection.data.dataset import Dataset
from emotion_detection.tracking import runs
from emotion_detection.tracking.models import CHAMPION, CHAMPION_ALIAS, REGISTERED_MODEL
from emotion_detection.tracking.store import EXPERIMENT, connect, connect_to_read, runs_address
from tests.support.stores import alone


def log_run(toy: Dataset, root: Path) -> None:
    """Log a run with a file to the store of the project at `root`."""
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports/report.html").write_text("a report")
    with alone(root), runs.run("train", note="", dataset=toy, params={}, tags={}):
        runs.log_files(Path("reports"), "evaluate")


def register(root: Path) -> LoggedModel:
    """Register a model of the last run as the champion."""
    with alone(root):
        connect()
        client = mlflow.MlflowClient()
        (run, *_) = client.search_runs([experiment_id(client)])
        model = client.create_logged_model(experiment_id(client), source_run_id=run.info.run_id)
        (root / "model").mkdir()
        (root / "model/MLmodel").write_text("flavors: {}")
        client.log_model_artifacts(model.model_id, str(root / "model"))
        client.finalize_logged_model(model.model_id, "READY")
        client.create_registered_model(REGISTERED_MODEL)
        version = client.create_model_version(
            REGISTERED_MODEL, f"models:/{model.model_id}", model_id=model.model_id
        )
        client.set_registered_model_alias(REGISTERED_MODEL, CHAMPION_ALIAS, version.version)
        return model


def experiment_id(client: mlflow.MlflowClient) -> str:
    return str(client.get_experiment_by_name(EXPERIMENT).experiment_id)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def project(toy: Dataset, tmp_path: Path) -> Path:
    """Return a project with a run and a champion in its store."""
    root = tmp_path / "my project"
    root.mkdir()
    log_run(toy, root)
    register(root)
    return root


@pytest.mark.parametrize("first", [connect_to_read, lambda: runs_address("http://127.0.0.1:5000")])
def test_a_moved_project_keeps_its_runs_and_its_champion(
    toy: Dataset, project: Path, caplog: pytest.LogCaptureFixture, first: Callable[[], object]
) -> None:
    moved = project.rename(project.with_name("renamed"))
    caplog.set_level("INFO", logger="emotion_detection")
    with alone(moved):
        first()
        assert mlflow.artifacts.download_artifacts(CHAMPION, dst_path="champion")
        client = mlflow.MlflowClient()
        (run,) = client.search_runs([experiment_id(client)])
        report = f"runs:/{run.info.run_id}/evaluate/report.html"
        assert Path(mlflow.artifacts.download_artifacts(report)).read_text() == "a report"
        connect_to_read()
    told = [record.getMessage() for record in caplog.records if "paths" in record.getMessage()]
    assert [line.partition(": changed")[0] for line in told] == [
        f"the project was in {project} before"
    ]
    log_run(toy, moved)
    assert not project.exists()
    reports = list(moved.glob("mlruns/**/report.html"))
    assert len(reports) == 2


def test_a_copied_project_never_writes_into_the_original(toy: Dataset, project: Path) -> None:
    copy = project.with_name("copy")
    shutil.copytree(project, copy)
    before = files(project)
    log_run(toy, copy)
    with alone(copy):
        connect_to_read()
        assert mlflow.artifacts.download_artifacts(CHAMPION, dst_path="champion")
    assert files(project) == before
    assert len(list(copy.glob("mlruns/**/report.html"))) == 2
    # The original stays as it is for those who work there.
    with alone(project):
        connect_to_read()
        assert mlflow.artifacts.download_artifacts(CHAMPION, dst_path="champion")


def test_artifacts_that_were_put_elsewhere_stay_there(toy: Dataset, tmp_path: Path) -> None:
    root, disk = tmp_path / "project", tmp_path / "disk/mlruns"
    root.mkdir()
    disk.mkdir(parents=True)
    with alone(root):
        connect_uri = f"sqlite:///{(root / 'mlflow.db').as_posix()}"
        mlflow.MlflowClient(connect_uri).create_experiment(EXPERIMENT, disk.as_uri())
    log_run(toy, root)
    assert len(list(disk.glob("**/report.html"))) == 1
