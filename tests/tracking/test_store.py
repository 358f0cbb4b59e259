"""The store: made once, asked with a right to, and no password of it written down."""

import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.tracking import models, runs, store
from tests.support import warm
from tests.support.stage import STAGE
from tests.support.stores import alone


@pytest.fixture(autouse=True)
def _in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with alone(tmp_path):
        yield


def start(toy: Dataset, **changes: Any) -> Any:
    settings: dict[str, Any] = {"note": "", "dataset": toy, "params": {"seed": 3}, "tags": {}}
    return runs.run("train", **{**settings, **changes})


def local(root: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{(root / 'mlflow.db').as_posix()}")


def test_two_processes_may_make_the_store_at_once(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").unlink()
    stage = STAGE.replace("time.sleep(600)", "")
    both = [
        subprocess.Popen(
            [warm.python(), "-c", stage, packed],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ended = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    for run_id, _ in ended:
        assert local(tmp_path).get_run(run_id.strip()).info.status == "FINISHED"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_store_that_was_half_made_is_made_anew(toy: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").unlink()
    made = tmp_path / ".mlflow.db.partial" / "mlflow.db"
    connect = "from emotion_detection.tracking import store; store.connect()"
    with subprocess.Popen([sys.executable, "-c", connect]) as process:
        while not (made.exists() and made.stat().st_size):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert not (tmp_path / "mlflow.db").exists()
    with start(toy) as run_id:
        pass
    assert local(tmp_path).get_run(run_id).info.status == "FINISHED"
    assert not made.parent.exists()


def test_the_address_of_the_runs_is_told(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "emotion_detection.tracking.address", "http://127.0.0.1:5000")
    told = subprocess.run(command, text=True, capture_output=True, check=True).stderr
    (experiment,) = local(tmp_path).search_experiments(filter_string="name = 'emotion-detection'")
    path = f"#/experiments/{experiment.experiment_id}/runs?"
    assert f"open http://127.0.0.1:5000/{path}" in told
    # MLflow's pages read the columns from the tag that the address names.
    key = told.strip().partition("viewStateShareKey=")[2]
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
    assert view["selectedColumns"][0] == "metrics.`test/accuracy`"
    assert path in experiment.tags["mlflow.note.content"]


@pytest.mark.parametrize("status", [401, 403])
def test_who_may_not_ask_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, toy: Dataset, status: int
) -> None:
    asked: list[str] = []

    class Guarded(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"You are not authenticated.")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Guarded) as guarded:
        threading.Thread(target=guarded.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{guarded.server_port}")
        with pytest.raises(UserError, match=r"refuses: .*You are not authenticated"), start(toy):
            pass
        with pytest.raises(UserError, match=r"refuses: .*You are not authenticated"):
            models.load_network("models:/emotion-detection/1")
        guarded.shutdown()
    assert len(asked) == 2


class Slow(http.server.BaseHTTPRequestHandler):
    """Answers as its server's `how` says, until the test is over."""

    def do_GET(self) -> None:
        over: threading.Event = self.server.over  # type: ignore[attr-defined]
        if self.server.how == "later":  # type: ignore[attr-defined]
            self.send_response(503)
            self.send_header("Retry-After", "3600")
            self.end_headers()
        elif self.server.how == "byte by byte":  # type: ignore[attr-defined]
            with contextlib.suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
                while not over.wait(0.05):
                    self.wfile.write(b"x")
        else:
            over.wait()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("how", ["later", "byte by byte", "never"])
def test_no_server_is_waited_for_longer_than_the_limit(
    monkeypatch: pytest.MonkeyPatch, toy: Dataset, how: str
) -> None:
    monkeypatch.setattr(store, "SLOWEST_ANSWER", 0.2)
    monkeypatch.setenv("EMOTION_DETECTION_TIMEOUT", "0.2")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as slow:
        slow.how, slow.over = how, threading.Event()  # type: ignore[attr-defined]
        threading.Thread(target=slow.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{slow.server_port}")
        try:
            with pytest.raises(UserError, match="cannot be reached"), start(toy):
                pass
        finally:
            slow.over.set()  # type: ignore[attr-defined]
            slow.shutdown()


def test_a_file_that_is_no_store_is_told_at_once(tmp_path: Path, toy: Dataset) -> None:
    (tmp_path / "mlflow.db").unlink()
    (tmp_path / "mlflow.db").mkdir()
    for begin in (lambda: start(toy).__enter__(), store.connect_to_read):
        with pytest.raises(UserError, match=r"mlflow\.db: cannot be .* \(it is a folder\); put"):
            begin()
    (tmp_path / "mlflow.db").rmdir()
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 99)
    with pytest.raises(UserError, match=r"cannot be .* \(file is not a database\); put"):
        store.connect()


def test_no_password_is_in_what_is_told_or_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Dataset, packed: Path
) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(
        ["git", "remote", "add", "origin", "https://anna:s3cret@example.org/x.git"], check=True
    )
    (tmp_path / "notes.txt").write_text("none\n")
    subprocess.run(["git", "add", "notes.txt"], check=True)
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    subprocess.run(["git", *identity, "commit", "--quiet", "--message=Begin"], check=True)
    (tmp_path / "notes.txt").write_text("https://anna:s3cret@example.org/x.git\n")
    # What MLflow reads the remote of is the folder of the script that runs.
    (tmp_path / "script.py").write_text(STAGE.replace("time.sleep(600)", ""))
    run_id = subprocess.check_output([sys.executable, "script.py", packed], text=True).strip()
    tags = local(tmp_path).get_run(run_id).data.tags
    assert tags["git.dirty"] == "true"
    assert "example.org" in tags["mlflow.source.git.repoURL"]
    diff = tmp_path / "mlruns" / run_id / "artifacts" / "git.diff"
    assert "+https://example.org/x.git\n" in diff.read_text()
    for path in (tmp_path / "mlflow.db", *(tmp_path / "mlruns").rglob("*")):
        assert not path.is_file() or b"s3cret" not in path.read_bytes(), path

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:s3cret@127.0.0.1:9")
    monkeypatch.setenv("EMOTION_DETECTION_TIMEOUT", "0")
    with pytest.raises(UserError) as raised, start(toy):
        pass
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "kept"),
    [
        ("https://anna:s3cret@mlflow.lab.org:5000/x", "https://mlflow.lab.org:5000/x"),
        ("postgresql://anna:s3cret@db/mlflow", "postgresql://db/mlflow"),
        ("postgresql://anna:s3/cr:et@db/mlflow", "postgresql://db/mlflow"),
        ("postgresql://db:5432/x?password=s3cret&a=1", "postgresql://db:5432/x?password=***&a=1"),
        ("http://localhost:5000", "http://localhost:5000"),
        ("http://localhost:5000/a@b", "http://localhost:5000/a@b"),
        ("sqlite:////home/anna@lab/mlflow.db", "sqlite:////home/anna@lab/mlflow.db"),
    ],
)
def test_a_password_is_not_written_down(tmp_path: Path, uri: str, kept: str) -> None:
    mlflow.set_tracking_uri(uri)
    runs.save_run_id(tmp_path / "run.json", "abc")
    assert json.loads((tmp_path / "run.json").read_text()) == {
        "run_id": "abc",
        "tracking_uri": kept,
    }
