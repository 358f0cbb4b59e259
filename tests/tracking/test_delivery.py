"""What an outbox has for MLflow gets there, or stays, or is reported; and nothing else does."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.tracking import delivery, runs
from emotion_detection.tracking.store import connect
from tests.support.stores import alone, put_empty_store


@pytest.fixture(autouse=True)
def _in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    # A test in which something waits for MLflow ends sooner.
    monkeypatch.setenv("EMOTION_DETECTION_TIMEOUT", "2")
    with alone(tmp_path):
        yield


def start(toy: Dataset, **changes: Any) -> Any:
    settings: dict[str, Any] = {"note": "", "dataset": toy, "params": {}, "tags": {}}
    return runs.run("train", **{**settings, **changes})


def found(root: Path, run_id: str) -> Run:
    return mlflow.MlflowClient(f"sqlite:///{(root / 'mlflow.db').as_posix()}").get_run(run_id)


def unsent(root: Path) -> list[str]:
    return [path.parent.name for path in root.glob("mlruns/.unsent/*/*/entries.jsonl")]


def empty(file: Path) -> None:
    """Overwrite a store with one that has no runs."""
    put_empty_store(file.parent / "other")
    shutil.copyfile(file.parent / "other/mlflow.db", file)


def garbage(file: Path) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


def put_back(copy: Path, file: Path) -> None:
    with closing(sqlite3.connect(copy)) as store:
        # The connections of this process would take a file with the same counter for the same.
        for number in range(100):
            store.execute(f"PRAGMA user_version = {number}")
    shutil.copyfile(copy, file)


@pytest.mark.parametrize("overwrite", [empty, garbage])
def test_what_is_logged_while_the_store_is_overwritten_is_kept(
    toy: Dataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    overwrite: Callable[[Path], None],
) -> None:
    (tmp_path / "other").mkdir()
    store = tmp_path / "mlflow.db"
    with start(toy) as run_id:
        assert runs._current.get()[-1][0].flush(60)
        shutil.copyfile(store, tmp_path / "copy.db")
        overwrite(store)
        runs.log_metrics({"val_accuracy": 0.5})
    assert unsent(tmp_path) == [run_id]
    assert f"what is logged to run {run_id} is kept in {tmp_path}/mlruns/.unsent/" in caplog.text
    with pytest.raises(UserError, match=r"what 1 runs logged is still in|cannot be MLflow's store"):
        delivery.send()
    if overwrite is empty:
        # Other runs neither wait for it nor stay behind it.
        with start(toy) as other:
            pass
        assert found(tmp_path, other).info.status == "FINISHED"
    put_back(tmp_path / "copy.db", store)
    delivery.send()
    run = found(tmp_path, run_id)
    assert (run.info.status, run.data.metrics["val_accuracy"]) == ("FINISHED", 0.5)
    assert unsent(tmp_path) == []


def test_what_an_export_logs_after_the_store_was_overwritten_is_kept(tmp_path: Path) -> None:
    connect()
    (tmp_path / "other").mkdir()
    empty(tmp_path / "mlflow.db")
    outbox = delivery.open_outbox("export-0123")
    outbox.append({"do": "log", "run": "export-0123", "at": 1, "tags": {"a": "b"}})
    assert not outbox.close(60)
    assert outbox.unknown


def test_only_sound_entries_are_sent_and_the_others_are_told(
    toy: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start(toy) as run_id:
        folder = runs._current.get()[-1][0].folder
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret/key.txt").write_text("hunter2")
        (folder / "linked").symlink_to(tmp_path / "secret")
        (folder / "links").mkdir()
        (folder / "links/key.txt").symlink_to(tmp_path / "secret/key.txt")
        files = {"do": "files", "run": run_id, "folder": "stolen"}
        log = {"do": "log", "run": run_id, "at": 1}
        damaged: list[dict[str, Any]] = [
            *({**files, "kept": kept} for kept in ("../" * 4 + "secret", str(tmp_path / "secret"))),
            *({**files, "kept": kept} for kept in ("linked", "links", ".", "gone")),
            {"do": "sing", "run": run_id},
            {"do": [], "run": run_id},
            {"do": "end", "run": run_id, "status": 3, "at": 1},
            {**log, "at": 10**30, "metrics": {"late": 1.0}},
            {**log, "metrics": {"word": "one"}},
            {**log, "metrics": ["one"]},
            {**log, "run": "never made", "tags": {"a": "b"}},
        ]
        for entry in damaged:
            runs._current.get()[-1][0].append(entry)
        runs.log_metrics({"val_accuracy": 0.5})
    run = found(tmp_path, run_id)
    assert (run.info.status, run.data.metrics["val_accuracy"]) == ("FINISHED", 0.5)
    assert {"late", "word"}.isdisjoint(run.data.metrics)
    assert list(tmp_path.glob("mlruns/**/key.txt")) == []
    assert unsent(tmp_path) == []
    told = [message for message in caplog.messages if message.startswith("not logged (")]
    for reason in ("leads out of the outbox", "gone is gone", "another version", "a damaged entry"):
        assert any(reason in message for message in told), (reason, told)


def test_an_epoch_that_is_trained_again_is_logged_once(toy: Dataset, tmp_path: Path) -> None:
    with start(toy) as run_id:
        for epoch in (1, 2, 3):
            runs.log_epoch({"loss": 1 / epoch}, epoch)
    # The disk had no room for the checkpoint of the third.
    with start(toy, run_id=run_id):
        for epoch in (3, 4):
            runs.log_epoch({"loss": 1 / epoch}, epoch)
    client = mlflow.MlflowClient(f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}")
    curve = client.get_metric_history(run_id, "epoch/loss")
    assert [(point.step, point.value) for point in curve] == [(n, 1 / n) for n in (1, 2, 3, 4)]


def test_names_that_are_too_long_for_mlflow_are_cut(toy: Dataset, tmp_path: Path) -> None:
    names = ["a" * 255, "a" * 254 + "b", "happy"]
    with start(toy) as run_id:
        runs.log_metrics({f"test/f1/{name}": row / 4 for row, name in enumerate(names)})
    metrics = found(tmp_path, run_id).data.metrics
    cut = f"test/f1/{'a' * 242}"
    assert {name: metrics[name] for name in metrics if name.startswith("test/")} == {
        cut: 0.0,
        f"{cut[:-2]}-2": 0.25,
        "test/f1/happy": 0.5,
    }


def test_names_are_no_markup_in_descriptions(tmp_path: Path, toy: Dataset) -> None:
    name = "<img src=//evil>[a](b)*.zip"
    shown = "&lt;img src=//evil&gt;&#91;a&#93;(b)&#42;.zip"
    named = Dataset(**{**vars(toy), "source": name})
    with start(named, note="Trained on **{data}**.") as run_id:
        runs.log_headline("accuracy 1")
    run = found(tmp_path, run_id)
    note = run.data.tags["mlflow.note.content"]
    assert note == f"**Accuracy 1**; data {shown}.\n\nTrained on **{shown}**."
    assert run.data.tags["dataset"] == name


def test_a_damaged_outbox_of_a_stage_that_ended_stops_no_other(
    toy: Dataset, tmp_path: Path
) -> None:
    with start(toy):
        pass
    left = next(tmp_path.glob("mlruns/.unsent/*/")) / ("0" * 32)
    left.mkdir()
    (left / "entries.jsonl").write_text(f"{json.dumps([])}\nno json\n")
    with start(toy) as run_id:
        pass
    assert found(tmp_path, run_id).info.status == "FINISHED"
    assert not left.exists()
