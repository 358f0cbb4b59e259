"""What is in MLflow after a run, and where."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run

from emotion_detection.console import Terminated, UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.tracking import runs
from tests.support.stores import alone

PARAMS = {
    "seed": 3,
    "train": {"lr": 5e-4, "patience": None, "augment": {"flip": True}},
    "filters": (32, 64),
}
COMMIT = ("-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "--quiet", "--message=Begin")


class Project:
    """A project's root, and a copy of it as DVC makes for a queued experiment."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.copy = root / ".dvc" / "tmp" / "exps" / "tmp123"
        self.copy.mkdir(parents=True)
        for folder in (root, self.copy):
            subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
            (folder / "params.yaml").write_text(f"in: {folder.name}\n")
            subprocess.run(["git", "add", "params.yaml"], cwd=folder, check=True)
            subprocess.run(["git", *COMMIT], cwd=folder, check=True)

    @property
    def client(self) -> mlflow.MlflowClient:
        """Reads what `mlflow ui`, started in the root, would show."""
        return mlflow.MlflowClient(f"sqlite:///{(self.root / 'mlflow.db').as_posix()}")

    def children(self, run_id: str) -> list[Run]:
        experiment = self.client.get_run(run_id).info.experiment_id
        return list(
            self.client.search_runs(
                [experiment],
                f"tags.`mlflow.parentRunId` = '{run_id}'",
                order_by=["attributes.start_time"],
            )
        )

    def commit_of(self, folder: Path) -> str:
        return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=folder, text=True).strip()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture(autouse=True)
def _in_the_project(project: Project) -> Iterator[None]:
    with alone(project.root):
        yield


@pytest.fixture
def queued(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as DVC runs a queued experiment's stage."""
    monkeypatch.setenv("DVC_ROOT", str(project.root))
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-heart")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "f00d")
    monkeypatch.chdir(project.copy)


def start(toy: Dataset, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "note": "What **this** is.",
        "dataset": toy,
        "params": PARAMS,
        "tags": {"selected_on_test": "false"},
    }
    return runs.run("train", **{**settings, **changes})


def finished(project: Project, toy: Dataset) -> Run:
    with start(toy) as run_id:
        pass
    return project.client.get_run(run_id)


def test_a_run_says_what_made_it(project: Project, toy: Dataset) -> None:
    with start(toy) as run_id:
        runs.log_epoch({"loss": 1.5}, 1)
        runs.log_epoch({"loss": 0.5}, 2)
        runs.log_epoch({"loss": 0.25}, 1, prefix="member_2")
        runs.set_tags({"late": "yes"})
    run = project.client.get_run(run_id)

    assert run.info.run_name == "train on toy.zip"
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "seed": "3",
        "train.lr": "0.0005",
        "train.patience": "null",
        "train.augment.flip": "true",
        "filters": "32 64",
    }
    tags = run.data.tags
    assert tags["stage"] == "train"
    assert tags["selected_on_test"] == "false"
    assert tags["late"] == "yes"
    assert tags["mlflow.note.content"] == "What **this** is."
    assert (tags["dataset"], tags["dataset.digest"]) == ("toy.zip", toy.digest)
    assert tags["git.commit"] == project.commit_of(project.root)
    assert tags["git.dirty"] == "false"
    assert "dvc.experiment" not in tags
    assert {f"version.{name}" for name in ("tensorflow", "keras", "mlflow", "dvc")} <= tags.keys()
    losses = [
        (point.step, point.value)
        for point in project.client.get_metric_history(run_id, "epoch/loss")
    ]
    assert losses == [(1, 1.5), (2, 0.5)]
    assert run.data.metrics["member_2/loss"] == 0.25


def test_a_run_that_is_selected_on_test_is_named_so(project: Project, toy: Dataset) -> None:
    with start(toy, tags={"selected_on_test": "true"}) as run_id:
        pass
    assert project.client.get_run(run_id).info.run_name == "train (selected on test) on toy.zip"


def test_a_run_names_its_data(project: Project, toy: Dataset) -> None:
    (found,) = finished(project, toy).inputs.dataset_inputs
    assert found.dataset.name == "toy.zip"
    assert found.dataset.digest == toy.digest[:8]
    assert json.loads(found.dataset.source) == {"uri": "toy.zip"}
    assert json.loads(found.dataset.profile) == {"train": 90, "test": 15}


def test_changed_files_are_told(project: Project, toy: Dataset) -> None:
    file = project.root / "params.yaml"
    before = file.read_text()
    file.write_text("edited: true\n")
    try:
        assert finished(project, toy).data.tags["git.dirty"] == "true"
    finally:
        file.write_text(before)


def test_outside_git_there_is_no_commit_to_tell(
    project: Project, toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(project.root))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert "git.commit" not in finished(project, toy).data.tags


def test_the_store_is_what_mlflow_opens_at_the_root(project: Project, toy: Dataset) -> None:
    run = finished(project, toy)
    assert (project.root / "mlflow.db").is_file()
    assert run.info.artifact_uri.startswith((project.root / "mlruns").as_uri())


@pytest.mark.usefixtures("queued")
def test_a_queued_experiments_run_outlives_its_copy(
    project: Project, toy: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "scores.csv").write_text("1,2\n")
    with start(toy) as run_id:
        runs.log_files(tmp_path, "training")
    run = project.client.get_run(run_id)

    assert run.info.run_name == "train puffy-heart on toy.zip"
    assert run.data.tags["dvc.experiment"] == "puffy-heart"
    assert run.data.tags["dvc.baseline"] == "f00d"
    assert run.data.tags["git.commit"] == project.commit_of(project.copy)
    artifacts = project.root / "mlruns" / run_id / "artifacts"
    assert (artifacts / "training" / "scores.csv").read_text() == "1,2\n"
    assert {path.name for path in project.copy.iterdir()} == {".git", "params.yaml"}


def test_a_tracking_server_that_is_set_wins(
    project: Project, toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{(tmp_path / 'elsewhere.db').as_posix()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    with start(toy) as run_id:
        pass
    assert mlflow.MlflowClient(uri).get_run(run_id).info.status == "FINISHED"
    with pytest.raises(mlflow.MlflowException):
        project.client.get_run(run_id)


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        (ValueError("broken"), "FAILED"),
        (SystemExit(1), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (Terminated(), "KILLED"),
    ],
)
def test_a_run_that_breaks_off_does_not_seem_to_go_on(
    project: Project, toy: Dataset, trouble: BaseException, status: str
) -> None:
    ids: list[str] = []

    def search() -> None:
        with start(toy) as run_id, runs.child("trial 01", params={}, tags={}):
            ids.append(run_id)
            raise trouble

    with pytest.raises(type(trouble)):
        search()
    ids += [child.info.run_id for child in project.children(ids[0])]
    assert [project.client.get_run(run_id).info.status for run_id in ids] == [status] * 2
    assert mlflow.active_run() is None


def test_a_trial_that_fails_leaves_the_search_going(project: Project, toy: Dataset) -> None:
    with start(toy) as parent:
        with (
            pytest.raises(MemoryError),
            runs.child("trial 01", params={"filters": (8, 16)}, tags={"stage": "trial"}),
        ):
            raise MemoryError
        with runs.child("trial 02", params={"filters": (8,)}, tags={"stage": "trial"}):
            runs.log_metrics({"val_accuracy": 0.5})
        runs.log_metrics({"trials": 2})

    metrics = project.client.get_run(parent).data.metrics
    assert {name for name in metrics if not name.startswith("system/")} == {"trials"}
    assert metrics["trials"] == 2
    # However short the run was.
    assert metrics["system/cpu_utilization_percentage"] >= 0
    assert metrics["system/system_memory_usage_megabytes"] > 0
    assert not [name for name in metrics if "disk" in name or "network" in name]
    children = project.children(parent)
    assert [(child.info.run_name, child.info.status) for child in children] == [
        ("trial 01", "FAILED"),
        ("trial 02", "FINISHED"),
    ]
    assert [child.data.params for child in children] == [{"filters": "8 16"}, {"filters": "8"}]
    assert children[1].data.metrics == {"val_accuracy": 0.5}


def test_a_later_stage_adds_to_the_run_of_an_earlier_one(project: Project, toy: Dataset) -> None:
    run_id = finished(project, toy).info.run_id
    with runs.resumed(run_id) as found:
        assert found
        runs.log_metrics({"test.accuracy": 0.75})
    run = project.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test.accuracy"] == 0.75
    assert run.data.params["seed"] == "3"


def test_the_result_is_the_first_line_of_the_description(project: Project, toy: Dataset) -> None:
    with start(toy, tags={"recipe": "quick"}) as run_id:
        pass
    commit = project.commit_of(project.root)[:7]
    for accuracy in ("61.5", "65.3"):
        with runs.resumed(run_id):
            runs.log_headline(f"test accuracy {accuracy} %, macro F1 0.579")
        assert project.client.get_run(run_id).data.tags["mlflow.note.content"] == (
            f"**Test accuracy {accuracy} %, macro F1 0.579**; recipe quick, data toy.zip, commit "
            f"{commit}.\n\nWhat **this** is."
        )


def test_a_run_that_is_at_work_is_left_alone(
    project: Project, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(toy) as run_id:
        monkeypatch.setenv("EMOTION_DETECTION_TIMEOUT", "0")
        with (
            pytest.raises(UserError, match="is logged to by another process"),
            start(toy, run_id=run_id),
        ):
            pass
        assert project.client.get_run(run_id).info.status == "RUNNING"
        monkeypatch.delenv("EMOTION_DETECTION_TIMEOUT")
    assert project.client.get_run(run_id).info.status == "FINISHED"


def test_class_names_that_mlflow_would_refuse_are_logged(project: Project, toy: Dataset) -> None:
    with start(toy) as run_id:
        runs.log_metrics({"test/f1/a+b": 0.1, "test/f1/a&b": 0.2, "test/f1/men's": 0.3})
    metrics = project.client.get_run(run_id).data.metrics
    found = {name: value for name, value in metrics.items() if name.startswith("test/")}
    assert found == {"test/f1/a_b": 0.1, "test/f1/a_b-2": 0.2, "test/f1/men_s": 0.3}


def test_a_run_that_is_gone_is_told_and_nothing_is_logged(
    project: Project, toy: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    deleted = finished(project, toy).info.run_id
    project.client.delete_run(deleted)
    for run_id in ("0" * 32, deleted, None):
        caplog.clear()
        with runs.resumed(run_id) as found:
            assert not found
            assert mlflow.active_run() is None
        assert f"run {run_id} is not in sqlite:///{project.root}/mlflow.db" in caplog.text
        assert "dvc repro --force train" in caplog.text


def test_a_search_that_was_cut_off_goes_on_in_its_run(project: Project, toy: Dataset) -> None:
    with pytest.raises(KeyboardInterrupt), start(toy) as first:
        raise KeyboardInterrupt
    with start(toy, run_id=first) as second:
        pass
    assert second == first
    assert project.client.get_run(first).info.status == "FINISHED"
    project.client.delete_run(first)
    with start(toy, run_id=first) as third:
        pass
    assert third != first


def test_the_id_of_a_run_is_kept_beside_what_it_made(
    project: Project, toy: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    with start(toy) as run_id:
        runs.save_run_id(path, run_id)
    assert runs.load_run_id(path) == run_id
    assert json.loads(path.read_text())["tracking_uri"].endswith(f"{project.root}/mlflow.db")


@pytest.mark.parametrize("text", [None, "", "[]", "{}", "3"])
def test_no_id_is_none(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    assert runs.load_run_id(path) is None
