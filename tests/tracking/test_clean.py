"""What takes space, how much, and that nothing that is used is removed."""

import os
import subprocess
from pathlib import Path

import mlflow
import pytest

from emotion_detection import paths
from emotion_detection.data.dataset import Dataset
from emotion_detection.files import locked
from emotion_detection.tracking import runs
from emotion_detection.tracking.clean import clean, readable
from emotion_detection.tracking.models import CHAMPION
from tests.support.stores import alone
from tests.tracking.test_moved import experiment_id, log_run, register


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Return the size of each part that was printed."""
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: " ".join(line.split()[1:3]) for line in lines}


def test_states_are_removed_unless_a_process_works_on_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with alone(tmp_path):
        for stage in ("tune", "train"):
            state = paths.state() / stage / "0123456789abcdef"
            state.mkdir(parents=True)
            (state / "weights").write_bytes(bytes(1500))
        clean(["states"], dry_run=True)
        assert said(capsys) == {"states": "3.0 kB"}
        assert state.exists()
        with locked(paths.state_lock(state)):
            clean(["states"], dry_run=False)
        assert [path.parent.name for path in paths.state().glob("[!.]*/*")] == ["train"]
        clean([], dry_run=False)
        assert said(capsys)["states"] == "1.5 kB"
        assert state.exists()


def test_models_and_runs_go_that_nobody_uses(
    toy: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_run(toy, tmp_path)
    champion = register(tmp_path)
    with alone(tmp_path):
        runs.connect()
        client = mlflow.MlflowClient()
        experiment = experiment_id(client)
        made = [client.create_run(experiment, tags={"mlflow.runName": name}) for name in "ab"]
        for run in made:
            client.set_terminated(run.info.run_id)
            client.log_text(run.info.run_id, "x" * 2000, "text.txt")
        unused = client.create_logged_model(experiment, source_run_id=made[0].info.run_id)
        client.log_model_artifacts(unused.model_id, str(tmp_path / "model"))
        client.delete_run(made[1].info.run_id)
        clean(["models", "runs"], dry_run=True)
        assert said(capsys) == {"models": "11 B", "runs": "2.0 kB"}
        clean(["models"], dry_run=False)
        models = client.search_logged_models([experiment])
        assert [model.model_id for model in models] == [champion.model_id]
        assert mlflow.artifacts.download_artifacts(CHAMPION, dst_path="champion")
        assert client.get_run(made[0].info.run_id).info.lifecycle_stage == "active"
        assert len(list(tmp_path.glob("mlruns/**/text.txt"))) == 1
        assert not list(tmp_path.glob(f"mlruns/**/{unused.model_id}/**/MLmodel"))


def test_copies_of_killed_experiments_are_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = [tmp_path / ".dvc/tmp/exps" / name for name in ("standalone/tmp1", "tmp2", "tmp3")]
    with alone(tmp_path):
        for copy in copies:
            (copy / "data").mkdir(parents=True)
            (copy / "data/image.png").write_bytes(bytes(1000))
        for copy in copies[:2]:
            os.utime(copy, (0, 0))
        with subprocess.Popen(["cat"], cwd=copies[1] / "data", stdin=subprocess.PIPE):
            clean(["copies"], dry_run=True)
            assert said(capsys) == {"copies": "1.0 kB"}
            clean(["copies"], dry_run=False)
            assert [copy.exists() for copy in copies] == [False, True, True]


def test_a_project_without_a_store_has_nothing_to_remove(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with alone(tmp_path):
        (tmp_path / "mlflow.db").unlink(missing_ok=True)
        clean(["models", "runs", "states"], dry_run=False)
    assert said(capsys) == {"models": "0 B", "runs": "0 B", "states": "0 B"}
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3.2e6, "3.2 MB"), (5e12, "5000.0 GB")],
)
def test_sizes_are_readable(size: float, text: str) -> None:
    assert readable(size) == text
