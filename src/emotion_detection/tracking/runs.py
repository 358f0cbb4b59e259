"""What a stage logs while it runs.

It goes to a outbox on disk first, and from there to the store: one that is away neither stops a
training nor loses what it logs.
"""

import contextlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Container, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from emotion_detection import paths
from emotion_detection.console import UserError, log
from emotion_detection.data.dataset import Dataset
from emotion_detection.files import atomic, write_json
from emotion_detection.tracking import models
from emotion_detection.tracking.outbox import (
    ENTRIES,
    AwayError,
    BusyError,
    Entry,
    Outbox,
    left_behind,
    persist,
)
from emotion_detection.tracking.provenance import git_diff, is_gone, provenance, this_process
from emotion_detection.tracking.store import (
    EXPERIMENT,
    STORE_FILE,
    at_once,
    connect,
    exists,
    patience,
    shelf,
    telling_away,
    without_password,
)

if TYPE_CHECKING:  # It takes TensorFlow along, and who sends what was missed needs neither.
    import keras

SYSTEM_METRICS_SECONDS = 5

REPEATED = ("seed", "precision", "deterministic")
"""Params of every run that are tags too, so that runs can be filtered by them."""

# The run that is logged to, and its parent before it.
_current: list[tuple[Outbox, str]] = []


@contextlib.contextmanager
def run(
    stage: str,
    *,
    note: str,
    dataset: Dataset,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    run_id: str | None = None,
) -> Iterator[str]:
    """Log to a new run, or go on with `run_id`, while the block lasts, and give its id.

    It is named after `stage`, the DVC experiment and the data, says there if it leaks, and carries
    what made it: `params`, the data's digest, commit, versions and machine. It ends FINISHED,
    KILLED after Ctrl-C or SIGTERM, or FAILED after another exception. Runs that a killed process
    left open are ended.

    Raises:
        UserError: if MLflow cannot be reached at the start.

    """
    connect()
    _tidy_up(keep=run_id)
    if not at_once(lambda: exists(run_id)):
        run_id = None
    selected_on_test = "(selected_on_test)" if tags.get("selected_on_test") == "true" else None
    words = (stage, os.environ.get("DVC_EXP_NAME"), selected_on_test, "on", dataset.source)
    name = " ".join(filter(None, words))
    active = at_once(
        lambda: mlflow.start_run(
            run_id, run_name=name, description=note, tags={"process": this_process()}
        )
    )
    with _ending(_forget_active_run), _recording(active.info.run_id):
        set_tags(
            {
                "stage": stage,
                "dataset": dataset.source,
                "dataset.digest": dataset.digest,
                "dataset.test": "cut from train" if dataset.test_is_cut else "its own",
                **{name: _shown(params[name]) for name in REPEATED if name in params},
                **tags,
                **provenance(),
            }
        )
        _log_diff()
        log_params(_flat(params))
        at_once(lambda: _log_dataset(active.info.run_id, dataset))
        yield active.info.run_id


@contextlib.contextmanager
def joined(run_id: str, worker: str) -> Iterator[str]:
    """Log children of `run_id`, which another process has, while the block lasts.

    What the same `worker` left unsent when it was killed is sent, and what it left open is ended.
    """
    try:
        connect()
        _tidy_up(keep=run_id)
    except UserError as error:
        # The run is there, and the outbox waits for the store.
        log.warning("%s", error)
    outbox = _open(run_id, f"{run_id}.{worker}")

    def end(status: str) -> None:
        _close(outbox, run_id, hurried=status == "KILLED")

    with _ending(end), _into(outbox, run_id):
        yield run_id


@contextlib.contextmanager
def child(
    name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], note: str = ""
) -> Iterator[None]:
    """Log to a child of the current run while the block lasts."""
    outbox, parent = _current[-1]
    run = uuid.uuid4().hex
    noted = {MLFLOW_RUN_NOTE: note} if note else {}
    outbox.append(
        {
            "do": "create",
            "run": run,
            "parent": parent,
            "name": name,
            "tags": resolve_tags({**tags, **noted, "process": this_process()}),
            "at": _now(),
        }
    )
    with _ending(lambda status: _end(outbox, run, status)), _into(outbox, run):
        log_params(params)
        yield


@contextlib.contextmanager
def _ending(end: Callable[[str], None]) -> Iterator[None]:
    """Call `end` with the status that a run has when the block ended as it did."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        end(status)


@contextlib.contextmanager
def _recording(run_id: str) -> Iterator[None]:
    """Log to `run_id` while the block lasts, the machine's figures too, and end it."""
    outbox = _open(run_id)
    machine = _SystemMetrics(outbox, run_id)

    def end(status: str) -> None:
        machine.finish()
        try:
            _end(outbox, run_id, status)
        finally:
            _close(outbox, run_id, hurried=status == "KILLED")

    with _ending(end), _into(outbox, run_id):
        machine.start()
        yield


def _forget_active_run(status: str) -> None:
    # Its outbox ended it if the store is there; MLflow has to forget it all the same.
    with contextlib.suppress(Exception):
        mlflow.end_run(status)


@contextlib.contextmanager
def resumed(run_id: str | None) -> Iterator[bool]:
    """Log to an earlier run while the block lasts; gives False if it is gone.

    Its status and times stay those of the stage that made it.
    """
    away = False
    try:
        connect()
        _tidy_up(keep=None)
        gone = not at_once(lambda: exists(run_id))
    except UserError as error:
        if run_id is None:
            raise
        log.warning("%s", error)
        away, gone = True, False
    if gone or run_id is None:
        log.warning(
            "MLflow run %s is not in %s: nothing is logged there; `dvc repro --force train` makes "
            "a new one",
            run_id,
            without_password(),
        )
        yield False
        return
    outbox = _open(run_id)
    try:
        with _into(outbox, run_id):
            yield True
    finally:
        _close(outbox, run_id, hurried=away)


@contextlib.contextmanager
def _into(outbox: Outbox, run: str) -> Iterator[None]:
    _current.append((outbox, run))
    try:
        yield
    finally:
        _current.pop()


def log_params(params: Mapping[str, Any]) -> None:
    """Log `params` to the current run."""
    _log(params={key: _shown(value) for key, value in params.items()})


def log_metrics(metrics: Mapping[str, float], dataset: Dataset | None = None) -> None:
    """Log `metrics` to the current run.

    With a `dataset` they are what the model that the run logged comes to on it, and stand beside
    the model too. A character that MLflow has not in names, as classes may have it, becomes `_`.
    """
    named: dict[str, float] = {}
    for name, value in metrics.items():
        named[_free_name(name, named)] = float(value)
    _log(
        metrics=named,
        **({} if dataset is None else {"dataset": [dataset.source, _short_digest(dataset)]}),
    )


def _free_name(name: str, taken: Container[str]) -> str:
    """Return `name` in the characters that MLflow allows, numbered where that is `taken`."""
    # MLflow would refuse all metrics for one.
    allowed = plain = re.sub(r"[^\w./ -]", "_", name)
    for number in count(2):
        if allowed not in taken:
            break
        allowed = f"{plain}-{number}"
    return allowed


def log_epoch(metrics: Mapping[str, float], epoch: int) -> None:
    """Log the next points of the current run's curves, as epoch/loss and so on.

    MLflow makes a section of charts of each prefix, and this one comes first.
    """
    _log(metrics={f"epoch/{name}": float(value) for name, value in metrics.items()}, step=epoch)


def log_files(folder: Path, artifact_folder: str) -> None:
    """Log every file of `folder` to the current run."""
    _keep("files", folder.name, lambda kept: shutil.copytree(folder, kept), folder=artifact_folder)


def set_tags(tags: Mapping[str, str]) -> None:
    """Set `tags` on the current run."""
    _log(tags=dict(tags))


def send() -> None:
    """Send to MLflow what it has missed, and end the runs that a killed process left open.

    Raises:
        UserError: if it cannot be reached.

    """
    connect()
    left = _tidy_up(keep=None)
    elsewhere = {
        file.read_text(encoding="utf-8")
        for file in paths.outboxes().glob(f"*/{STORE_FILE}")
        if file.parent != shelf() and any(file.parent.glob(f"*/{ENTRIES}"))
    }
    for store in sorted(elsewhere):
        log.warning("kept for %s: set MLFLOW_TRACKING_URI to it, and run this again", store)
    if left:
        raise UserError(f"what {left} runs logged is still in {paths.outboxes()}; try again later")
    log.info("nothing is left to send to %s", without_password())


def _log(**what: Any) -> None:
    outbox, run = _current[-1]
    outbox.append({"do": "log", "run": run, "at": _now(), **what})


def _keep(do: str, name: str, copy: Callable[[Path], object], **what: Any) -> None:
    """Log files of which the outbox keeps a copy until they are sent."""
    outbox, run = _current[-1]
    kept = Path(uuid.uuid4().hex, name)
    with atomic(outbox.folder / kept) as temporary:
        copy(temporary)
    outbox.append({"do": do, "run": run, "kept": kept.as_posix(), **what})


def _end(outbox: Outbox, run: str, status: str) -> None:
    outbox.append({"do": "end", "run": run, "status": status, "at": _now()})


def log_model(model: "keras.Model", example: np.ndarray, classes: tuple[str, ...]) -> None:
    """Log `model` to the current run, or keep it in the outbox until the store is back.

    `example` is a few images (N, H, W, C) uint8; `classes` are in the order of the outputs.
    """
    outbox, _ = _current[-1]
    try:
        # What the outbox holds comes first, and says if the store is there.
        if outbox.drained(patience()):
            with telling_away():
                models.log_model(model, example, classes)
            return
    except AwayError as error:
        log.warning("%s; the model is kept until it is back", error)

    def write(folder: Path) -> None:
        folder.mkdir()
        model.save(folder / "model.keras")
        np.save(folder / "example.npy", example)

    _keep("model", models.MODEL_NAME, write, classes=list(classes))


def _now() -> int:
    return int(time.time() * 1000)


def _open(run_id: str, folder: str | None = None) -> Outbox:
    def attempt() -> Outbox:
        try:
            return Outbox(shelf() / (folder or run_id), _player())
        except BusyError:
            raise AwayError(f"run {run_id} is logged to by another process") from None

    try:
        return persist(attempt, patience())
    except AwayError as error:
        raise UserError(f"{error}; wait for it to end") from None


def _close(outbox: Outbox, run_id: str, *, hurried: bool = False) -> None:
    if not outbox.close(min(patience(), 5.0) if hurried else patience()):
        log.warning(
            "%s; what is logged to run %s is kept in %s: run `python -m emotion_detection.send` "
            "when MLflow is back",
            outbox.trouble or f"MLflow at {without_password()} is slow",
            run_id,
            outbox.folder,
        )


def _tidy_up(keep: str | None) -> int:
    """Send what earlier processes left, and end what they left open, but for the run `keep`.

    Gives the number of outboxes that are still there.
    """
    left = 0
    for outbox in left_behind(shelf(), _player()):
        left += not outbox.close(patience() if left == 0 else 0)
    with contextlib.suppress(UserError):
        at_once(lambda: _end_forgotten(keep))
    return left


def _end_forgotten(keep: str | None) -> None:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    for found in client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'"):
        if found.info.run_id != keep and is_gone(found.data.tags.get("process", "")):
            client.set_terminated(found.info.run_id, "KILLED")


def _player() -> Callable[[Entry, Mapping[str, str], Path], str | None]:
    """Return what plays entries to the store; each may be played twice, and does the same then."""
    uri = mlflow.get_tracking_uri()

    def play(entry: Entry, known: Mapping[str, str], folder: Path) -> str | None:
        with telling_away():
            client = mlflow.MlflowClient(uri)
            run_id = known.get(entry["run"], entry["run"])
            match entry["do"]:
                case "create":
                    return _created(client, entry)
                case "log":
                    _play_log(client, run_id, entry)
                case "files":
                    client.log_artifacts(run_id, str(folder / entry["kept"]), entry["folder"])
                case "model":
                    _play_model(run_id, folder / entry["kept"], entry)
                case "end":
                    client.set_terminated(run_id, entry["status"], end_time=entry["at"])
        return None

    return play


def _created(client: mlflow.MlflowClient, entry: Entry) -> str:
    experiment = client.get_run(entry["parent"]).info.experiment_id
    found = client.search_runs([experiment], f"tags.`outbox.run` = '{entry['run']}'")
    if not found:
        tags = {"mlflow.parentRunId": entry["parent"], "outbox.run": entry["run"]}
        made = client.create_run(
            experiment, start_time=entry["at"], tags=entry["tags"] | tags, run_name=entry["name"]
        )
        found = [made]
    return str(found[0].info.run_id)


def _play_log(client: mlflow.MlflowClient, run_id: str, entry: Entry) -> None:
    of: dict[str, str] = {}
    if "dataset" in entry:
        model_id = models.logged_model(client, client.get_run(run_id))
        if model_id is not None:
            name, digest = entry["dataset"]
            of = {"model_id": model_id, "dataset_name": name, "dataset_digest": digest}
    client.log_batch(
        run_id,
        metrics=[
            Metric(name, value, entry["at"], entry.get("step", 0), **of)
            for name, value in entry.get("metrics", {}).items()
        ],
        params=[Param(name, value) for name, value in entry.get("params", {}).items()],
        tags=[RunTag(name, value) for name, value in entry.get("tags", {}).items()],
        synchronous=True,
    )


def _play_model(run_id: str, kept: Path, entry: Entry) -> None:
    import keras

    model = keras.models.load_model(kept / "model.keras", compile=False)
    with mlflow.start_run(run_id):
        models.log_model(model, np.load(kept / "example.npy"), tuple(entry["classes"]))


class _SystemMetrics(SystemMetricsMonitor):
    """MLflow's figures of the machine, by way of the outbox."""

    def __init__(self, outbox: Outbox, run_id: str) -> None:
        super().__init__(run_id, SYSTEM_METRICS_SECONDS, resume_logging=True)
        self._journal, self._run = outbox, run_id

    def monitor(self) -> None:
        ended = False
        while not ended:
            # Once more at the end: a run may be over before the first interval is.
            ended = self._shutdown_event.wait(self.sampling_interval)
            self.collect_metrics()
            metrics = {f"system/{name}": value for name, value in self.aggregate_metrics().items()}
            for monitor in self.monitors:
                monitor.clear_metrics()
            with contextlib.suppress(UserError):  # a full disk, which ends the stage elsewhere
                self._journal.append(
                    {
                        "do": "log",
                        "run": self._run,
                        "at": _now(),
                        "metrics": metrics,
                        "step": self._logging_step,
                    }
                )
            self._logging_step += 1


def save_run_id(path: Path, run_id: str) -> None:
    """Write down which run made the files beside `path`."""
    write_json(path, {"run_id": run_id, "tracking_uri": without_password()})


def load_run_id(path: Path) -> str | None:
    """Return the id that `save_run_id` wrote to `path`, or None where it did not."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _log_dataset(run_id: str, dataset: Dataset) -> None:
    test = int(dataset.is_test.sum())
    entity = MlflowDataset(
        name=dataset.source,
        digest=_short_digest(dataset),
        source_type="local",
        source=json.dumps({"uri": dataset.source}),
        profile=json.dumps({"train": len(dataset) - test, "test": test}),
    )
    tag = InputTag(key="mlflow.data.context", value="train, test")
    mlflow.MlflowClient().log_inputs(run_id, [DatasetInput(entity, [tag])])


def _short_digest(dataset: Dataset) -> str:
    # MLflow's own digests have eight characters, and so has the champion's alias.
    return dataset.digest[:8]


def _log_diff() -> None:
    data = git_diff()
    if not data:
        return

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "git.diff").write_bytes(data)

    _keep("files", "diff", write, folder=None)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(value: Any) -> str:
    """Write `value` as params.yaml does, but a list without brackets."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
