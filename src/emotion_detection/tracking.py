"""The only module that knows MLflow: where its store is and what a run says.

What is logged goes to a journal on disk first, and from there to the store: one that is away
neither stops a training nor loses what it logs.
"""

import base64
import contextlib
import functools
import hashlib
import inspect
import io
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import keras
import mlflow
import numpy as np
import pandas as pd
import psutil
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType, Map
from PIL import Image
from sqlalchemy.exc import SQLAlchemyError

from emotion_detection import layout, modelfile, serving
from emotion_detection.console import UserError, log
from emotion_detection.dataset import Dataset
from emotion_detection.files import locked, whole, write_json
from emotion_detection.journal import AwayError, BusyError, Entry, Journal, left_behind, persist

T = TypeVar("T")

EXPERIMENT = "emotion-detection"
MODEL_NAME = "model"
CHAMPION = f"models:/{EXPERIMENT}@champion"
PACKAGES = ("tensorflow", "keras", "keras-tuner", "numpy", "scikit-learn", "mlflow", "dvc")
MODEL_PACKAGES = ("tensorflow", "keras", "numpy", "pandas", "pillow")

# A bar for copying a dozen small files, several times over.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
DIFF_BYTES = 2**20
SYSTEM_METRICS_SECONDS = 5
STORE_FILE = "store"
REPEATED = ("seed", "precision", "deterministic")
"""Params of every run that are tags too, so that runs can be filtered by them."""

PATIENCE_VARIABLE = "EMOTION_DETECTION_PATIENCE"

# What MLflow answers where it is there and will not do it, now or later.
REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "NOT_FOUND",
    "NOT_IMPLEMENTED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}

# The run that is logged to, and its parent before it.
_current: list[tuple[Journal, str]] = []


def _connect() -> None:
    """Point MLflow at the store and make the experiment there if it is the first run.

    MLFLOW_TRACKING_URI wins. Otherwise the store is what plain `mlflow ui` opens at the project's
    root: sqlite:///mlflow.db with artifacts in ./mlruns.

    Raises:
        UserError: if the store cannot be reached, after waiting for it.

    """
    # Its own log lines are about its own workings, and what fails is told here.
    for name, level in (
        ("mlflow", logging.WARNING),
        ("mlflow.store.db.utils", logging.CRITICAL),
        ("alembic", logging.WARNING),
        ("urllib3", logging.ERROR),
    ):
        logging.getLogger(name).setLevel(level)
    # The journal tries again, and knows better for how long.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    location = None
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        root = layout.main_root()
        mlflow.set_tracking_uri(f"sqlite:///{(root / 'mlflow.db').as_posix()}")
        # MLflow would settle on the working directory of whoever is first to use the experiment,
        # and a queued experiment's is deleted.
        location = (root / "mlruns").as_uri()
    with contextlib.ExitStack() as alone:
        if mlflow.get_tracking_uri().startswith("sqlite"):
            # Two that make the tables at once leave half of them.
            alone.enter_context(locked(_shelf() / "lock", wait=True))
        _at_once(lambda: _enter_experiment(location))


def _enter_experiment(location: str | None) -> None:
    client = mlflow.MlflowClient()
    if client.get_experiment_by_name(EXPERIMENT) is None:
        try:
            client.create_experiment(EXPERIMENT, artifact_location=location)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
    mlflow.set_experiment(EXPERIMENT)
    # Opens the page of training runs; the default is the one for language models.
    mlflow.set_experiment_tag("mlflow.experimentKind", "custom_model_development")


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

    It is named after `stage` and the DVC experiment, and carries what made it: `params`, the
    data's name and digest, commit, versions and machine. It ends FINISHED, KILLED after Ctrl-C or
    SIGTERM, or FAILED after another exception. Runs that a killed process left open are ended.

    Raises:
        UserError: if MLflow cannot be reached at the start.

    """
    _connect()
    _tidy_up(keep=run_id)
    if not _at_once(lambda: _exists(run_id)):
        run_id = None
    name = " ".join(filter(None, (stage, os.environ.get("DVC_EXP_NAME"))))
    active = _at_once(
        lambda: mlflow.start_run(
            run_id, run_name=name, description=note, tags={"process": _this_process()}
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
                **_provenance(),
            }
        )
        _log_diff()
        log_params(_flat(params))
        _at_once(lambda: _log_dataset(active.info.run_id, dataset))
        yield active.info.run_id


@contextlib.contextmanager
def child(name: str, *, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[None]:
    """Log to a child of the current run while the block lasts."""
    journal, parent = _current[-1]
    run = uuid.uuid4().hex
    journal.append(
        {
            "do": "create",
            "run": run,
            "parent": parent,
            "name": name,
            "tags": resolve_tags({**tags, "process": _this_process()}),
            "at": _now(),
        }
    )
    with _ending(lambda status: _end(journal, run, status)), _into(journal, run):
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
    journal = _open(run_id)
    machine = _SystemMetrics(journal, run_id)

    def end(status: str) -> None:
        machine.finish()
        try:
            _end(journal, run_id, status)
        finally:
            _close(journal, run_id, hurried=status == "KILLED")

    with _ending(end), _into(journal, run_id):
        machine.start()
        yield


def _forget_active_run(status: str) -> None:
    # Its journal ended it if the store is there; MLflow has to forget it all the same.
    with contextlib.suppress(Exception):
        mlflow.end_run(status)


@contextlib.contextmanager
def resumed(run_id: str | None) -> Iterator[bool]:
    """Log to an earlier run while the block lasts; gives False if it is gone.

    Its status and times stay those of the stage that made it.
    """
    away = False
    try:
        _connect()
        _tidy_up(keep=None)
        gone = not _at_once(lambda: _exists(run_id))
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
            _without_password(),
        )
        yield False
        return
    journal = _open(run_id)
    try:
        with _into(journal, run_id):
            yield True
    finally:
        _close(journal, run_id, hurried=away)


@contextlib.contextmanager
def _into(journal: Journal, run: str) -> Iterator[None]:
    _current.append((journal, run))
    try:
        yield
    finally:
        _current.pop()


def log_params(params: Mapping[str, Any]) -> None:
    """Log `params` to the current run."""
    _log(params={key: _shown(value) for key, value in params.items()})


def log_metrics(metrics: Mapping[str, float]) -> None:
    """Log `metrics` to the current run."""
    _log(metrics={name: float(value) for name, value in metrics.items()})


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
    _connect()
    left = _tidy_up(keep=None)
    elsewhere = {
        file.read_text(encoding="utf-8")
        for file in layout.journals().glob(f"*/{STORE_FILE}")
        if file.parent != _shelf() and any(file.parent.glob("*/"))
    }
    for store in sorted(elsewhere):
        log.warning("kept for %s: set MLFLOW_TRACKING_URI to it, and run this again", store)
    if left:
        raise UserError(f"what {left} runs logged is still in {layout.journals()}; try again later")
    log.info("nothing is left to send to %s", _without_password())


def _log(**what: Any) -> None:
    journal, run = _current[-1]
    journal.append({"do": "log", "run": run, "at": _now(), **what})


def _keep(do: str, name: str, copy: Callable[[Path], object], **what: Any) -> None:
    """Log files of which the journal keeps a copy until they are sent."""
    journal, run = _current[-1]
    kept = Path(uuid.uuid4().hex, name)
    with whole(journal.folder / kept) as temporary:
        copy(temporary)
    journal.append({"do": do, "run": run, "kept": kept.as_posix(), **what})


def _end(journal: Journal, run: str, status: str) -> None:
    journal.append({"do": "end", "run": run, "status": status, "at": _now()})


LogModel = Callable[[keras.Model, np.ndarray, tuple[str, ...]], None]


def _or_later(log_now: LogModel) -> LogModel:
    """Keep a model that cannot be sent now in the journal."""

    @functools.wraps(log_now)
    def log_or_keep(model: keras.Model, example: np.ndarray, classes: tuple[str, ...]) -> None:
        journal, _ = _current[-1]
        try:
            # What the journal holds comes first, and says if the store is there.
            if journal.drained(_patience()):
                with _telling_away():
                    log_now(model, example, classes)
                return
        except AwayError as error:
            log.warning("%s; the model is kept until it is back", error)

        def write(folder: Path) -> None:
            folder.mkdir()
            model.save(folder / "model.keras")
            np.save(folder / "example.npy", example)

        _keep("model", MODEL_NAME, write, classes=list(classes))

    return log_or_keep


@_or_later
def log_model(model: keras.Model, example: np.ndarray, classes: tuple[str, ...]) -> None:
    """Log `model` to the current run as `serving.py` answers for it, with all that it needs.

    `example`, a few images (N, H, W, C) uint8, goes with it as PNG files in base64; `classes` are
    in the order of the model's outputs.
    """
    code = Path(__file__).parent
    signature = ModelSignature(
        # Images come as text, bytes or arrays, which only Any allows; and since MLflow would
        # answer a missing column with the whole request, it is for serving.py to miss it.
        Schema([ColSpec(AnyType(), serving.COLUMN, required=False)]),
        Schema([ColSpec("string", "label"), ColSpec(Map(DataType.double), "probabilities")]),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / layout.MODEL.name
        modelfile.save(model, path, classes)
        mlflow.pyfunc.log_model(
            name=MODEL_NAME,
            python_model=code / "serving.py",
            code_paths=[str(code / "imagefile.py"), str(code / "modelfile.py")],
            artifacts={"network": str(path)},
            signature=signature,
            input_example=pd.DataFrame({serving.COLUMN: [_base64_png(image) for image in example]}),
            # Left to itself MLflow loads the model in a second process to guess these.
            pip_requirements=[f"{name}=={version(name)}" for name in MODEL_PACKAGES],
            metadata={"classes": list(classes)},
        )


def load_network(model_uri: str = CHAMPION) -> tuple[keras.Model, tuple[str, ...]]:
    """Load the network of a logged model, and the names of its classes.

    `model_uri` is MLflow's, such as models:/name@alias or runs:/id/model. The network takes images
    (N, H, W, C) uint8 and gives probabilities (N, classes) float32.

    Raises:
        UserError: if there is no such model in the store, or no network in it.

    """
    if (
        not os.environ.get("MLFLOW_TRACKING_URI")
        and not (layout.main_root() / "mlflow.db").exists()
    ):
        # MLflow would make an empty store wherever it is asked.
        raise UserError(f"{model_uri}: there is no mlflow.db in {layout.main_root()}")
    _connect()
    try:
        with tempfile.TemporaryDirectory() as folder:
            logged = mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=folder)
            (path,) = Path(logged).rglob(layout.MODEL.name)
            model, classes = modelfile.load(path)
            # Models that older code logged have the names in MLflow's metadata alone.
            return model, classes or tuple(Model.load(logged).metadata["classes"])
    except (MlflowException, OSError, ValueError, TypeError, LookupError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{model_uri}: cannot be loaded from {_without_password()} ({reason})"
        ) from error


def _base64_png(image: np.ndarray) -> str:
    """Encode an image (H, W, C) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _exists(run_id: str | None) -> bool:
    if run_id is None:
        return False
    try:
        # A run deleted in MLflow's pages is still there, and cannot be logged to.
        return bool(mlflow.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
    except MlflowException as error:
        if _is_away(error):
            raise
        return False


# --- The store, which may be away.


def _is_away(error: Exception) -> bool:
    """Tell an error that may be gone later from one of what was asked for."""
    if isinstance(error, MlflowException):
        return error.error_code not in REFUSALS
    return isinstance(error, (SQLAlchemyError, OSError))


@contextlib.contextmanager
def _telling_away() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not _is_away(error):
            raise
        cause: BaseException = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__ or cause
        reason = _hidden(" ".join(str(cause).split()))
        raise AwayError(f"MLflow at {_without_password()} cannot be reached ({reason})") from error


def _at_once(act: Callable[[], T]) -> T:
    """Give what `act` gets from the store, which is waited for.

    Raises:
        UserError: if it stays away, or refuses.

    """

    def attempt() -> T:
        with _telling_away():
            return act()

    try:
        return persist(attempt, _patience())
    except AwayError as error:
        raise UserError(f"{error}; start it, or set MLFLOW_TRACKING_URI to another") from error
    except MlflowException as error:
        reason = _hidden(" ".join(str(error).split()))
        raise UserError(f"MLflow at {_without_password()} refuses: {reason}") from error


def _patience() -> float:
    """Give for how many seconds MLflow is waited for where nothing else can be done."""
    text = os.environ.get(PATIENCE_VARIABLE, "60")
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{PATIENCE_VARIABLE} = {text}: must be a number of seconds") from None


def _now() -> int:
    return int(time.time() * 1000)


def _without_password() -> str:
    return _hidden(mlflow.get_tracking_uri())


def _hidden(text: str) -> str:
    return re.sub(r"(\w://)[^/\s@]*@", r"\1", text)


# --- What is on its way there.


def _shelf() -> Path:
    """Give the folder of the journals for this store."""
    store = _without_password()
    if store == f"sqlite:///{(layout.main_root() / 'mlflow.db').as_posix()}":
        store = "mlflow.db"  # wherever the project is moved to
    folder = layout.journals() / hashlib.sha256(store.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STORE_FILE).write_text(store, encoding="utf-8")
    return folder


def _open(run_id: str) -> Journal:
    def attempt() -> Journal:
        try:
            return Journal(_shelf() / run_id, _player())
        except BusyError:
            raise AwayError(f"run {run_id} is logged to by another process") from None

    try:
        return persist(attempt, _patience())
    except AwayError as error:
        raise UserError(f"{error}; wait for it to end") from None


def _close(journal: Journal, run_id: str, *, hurried: bool = False) -> None:
    if not journal.close(min(_patience(), 5.0) if hurried else _patience()):
        log.warning(
            "%s; what is logged to run %s is kept in %s: run `python -m emotion_detection.send` "
            "when MLflow is back",
            journal.trouble or f"MLflow at {_without_password()} is slow",
            run_id,
            journal.folder,
        )


def _tidy_up(keep: str | None) -> int:
    """Send what earlier processes left, and end what they left open, but for the run `keep`.

    Gives the number of journals that are still there.
    """
    left = 0
    for journal in left_behind(_shelf(), _player()):
        left += not journal.close(_patience() if left == 0 else 0)
    with contextlib.suppress(UserError):
        _at_once(lambda: _end_forgotten(keep))
    return left


def _end_forgotten(keep: str | None) -> None:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    for found in client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'"):
        if found.info.run_id != keep and _is_gone(found.data.tags.get("process", "")):
            client.set_terminated(found.info.run_id, "KILLED")


def _this_process() -> str:
    # A number is used again, a number and a start are not.
    return f"{platform.node()} {os.getpid()} {psutil.Process().create_time():.2f}"


def _is_gone(process: str) -> bool:
    """Tell whether `process`, from a run's tag, is of this machine and no more."""
    try:
        node, number, started = process.rsplit(" ", 2)
        if node != platform.node():
            return False
        # The clock that it is told by may have been put right since.
        return abs(psutil.Process(int(number)).create_time() - float(started)) > 5
    except psutil.NoSuchProcess:
        return True
    except (ValueError, psutil.Error):
        return False


def _player() -> Callable[[Entry, Mapping[str, str], Path], str | None]:
    """Give what plays entries to the store; each may be played twice, and does the same then."""
    uri = mlflow.get_tracking_uri()

    def play(entry: Entry, known: Mapping[str, str], folder: Path) -> str | None:
        with _telling_away():
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
    found = client.search_runs([experiment], f"tags.`journal.run` = '{entry['run']}'")
    if not found:
        tags = {"mlflow.parentRunId": entry["parent"], "journal.run": entry["run"]}
        made = client.create_run(
            experiment, start_time=entry["at"], tags=entry["tags"] | tags, run_name=entry["name"]
        )
        found = [made]
    return str(found[0].info.run_id)


def _play_log(client: mlflow.MlflowClient, run_id: str, entry: Entry) -> None:
    client.log_batch(
        run_id,
        metrics=[
            Metric(name, value, entry["at"], entry.get("step", 0))
            for name, value in entry.get("metrics", {}).items()
        ],
        params=[Param(name, value) for name, value in entry.get("params", {}).items()],
        tags=[RunTag(name, value) for name, value in entry.get("tags", {}).items()],
        synchronous=True,
    )


def _play_model(run_id: str, kept: Path, entry: Entry) -> None:
    model = keras.models.load_model(kept / "model.keras", compile=False)
    with mlflow.start_run(run_id):
        inspect.unwrap(log_model)(model, np.load(kept / "example.npy"), tuple(entry["classes"]))


class _SystemMetrics(SystemMetricsMonitor):
    """MLflow's figures of the machine, by way of the journal."""

    def __init__(self, journal: Journal, run_id: str) -> None:
        super().__init__(run_id, SYSTEM_METRICS_SECONDS, resume_logging=True)
        self._journal, self._run = journal, run_id

    def monitor(self) -> None:
        while not self._shutdown_event.wait(self.sampling_interval):
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


# --- What made a run.


def save_run_id(path: Path, run_id: str) -> None:
    """Write down which run made the files beside `path`."""
    write_json(path, {"run_id": run_id, "tracking_uri": _without_password()})


def load_run_id(path: Path) -> str | None:
    """Give the id that `save_run_id` wrote to `path`, or None where it did not."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _log_dataset(run_id: str, dataset: Dataset) -> None:
    test = int(dataset.is_test.sum())
    entity = MlflowDataset(
        name=dataset.source,
        # MLflow's own digests have eight characters, and its column holds 36.
        digest=dataset.digest[:32],
        source_type="local",
        source=json.dumps({"uri": dataset.source}),
        profile=json.dumps({"train": len(dataset) - test, "test": test}),
    )
    tag = InputTag(key="mlflow.data.context", value="train, test")
    mlflow.MlflowClient().log_inputs(run_id, [DatasetInput(entity, [tag])])


def _provenance() -> dict[str, str]:
    tags = {
        "machine": f"{_processor()}, {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{f"version.{name}": version(name) for name in PACKAGES},
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["git.commit"] = commit
        tags["git.dirty"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    for tag, variable in (
        ("dvc.experiment", "DVC_EXP_NAME"),
        ("dvc.baseline", "DVC_EXP_BASELINE_REV"),
    ):
        if os.environ.get(variable):
            tags[tag] = os.environ[variable]
    return tags


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _log_diff() -> None:
    """Log what the files that Git tracks have more than the commit, as `git.diff`."""
    diff = _hidden(_git("diff", "--no-color", "--no-ext-diff", "HEAD"))
    if not diff:
        return
    data = f"{diff}\n".encode()
    if len(data) > DIFF_BYTES:
        data = data[:DIFF_BYTES] + f"\n... and {len(data) - DIFF_BYTES:,} bytes more\n".encode()

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "git.diff").write_bytes(data)

    _keep("files", "diff", write, folder=None)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.decode(errors="replace").strip()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "none" if value is None else str(value)


# --- The model registry.

REGISTERED_MODEL = "emotion-detection"
CHAMPION_ALIAS = "champion"


class RegistryError(Exception):
    """MLflow's model registry cannot do what it was asked to; the message says why."""


@dataclass(frozen=True)
class Version:
    """A registered model: its number, and the data set it was evaluated on."""

    number: str
    dataset: str
    dataset_digest: str
    leaking: bool


def register(run_id: str, dataset: Dataset, scores: Mapping[str, float]) -> Version:
    """Make the model that `run_id` logged a version of REGISTERED_MODEL, once, and tag it.

    The tags are the data set's name and digest, `scores` as test.<name>, and whether the run
    leaks. Raises RegistryError, as where the run has no model.
    """
    with _registry() as client:
        run = client.get_run(run_id)
        tags = {
            "dataset": dataset.source,
            "dataset.digest": dataset.digest,
            "leaking": run.data.tags.get("leaking", "false"),
            **{f"test.{name}": f"{score:.6g}" for name, score in scores.items()},
        }
        _make_registered_model(client)
        found = client.search_model_versions(f"name = '{REGISTERED_MODEL}' and run_id = '{run_id}'")
        if found:
            number = max(int(version.version) for version in found)
            for key, value in tags.items():
                client.set_model_version_tag(REGISTERED_MODEL, str(number), key, value)
        else:
            model_id = _logged_model(client, run)
            number = client.create_model_version(
                REGISTERED_MODEL, f"models:/{model_id}", run_id, tags, model_id=model_id
            ).version
        return _version(client, str(number))


def champion(digest: str | None = None) -> Version | None:
    """Give the champion of the data set with this digest, or by default of the one seen last.

    None where there is none. Raises RegistryError.
    """
    with _registry() as client:
        number = client.get_registered_model(REGISTERED_MODEL).aliases.get(_alias(digest))
        return None if number is None else _version(client, str(number))


def crown(version: Version, digest: str | None = None) -> None:
    """Make `version` the champion of the data set with this digest, or of the one seen last.

    Raises RegistryError.
    """
    with _registry() as client:
        client.set_registered_model_alias(REGISTERED_MODEL, _alias(digest), version.number)


def load_version(version: Version) -> keras.Model:
    """Load the network of a registered model. Raises RegistryError."""
    with _registry() as client, tempfile.TemporaryDirectory() as folder:
        uri = client.get_model_version_download_uri(REGISTERED_MODEL, version.number)
        mlflow.artifacts.download_artifacts(uri, dst_path=folder)
        paths = list(Path(folder).rglob("*.keras"))
        if len(paths) != 1:
            raise ValueError(f"{uri} holds {len(paths)} .keras files")
        return keras.models.load_model(paths[0], compile=False)


@contextlib.contextmanager
def _registry() -> Iterator[mlflow.MlflowClient]:
    try:
        yield mlflow.MlflowClient()
    except (MlflowException, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RegistryError(reason) from error


def _alias(digest: str | None) -> str:
    return CHAMPION_ALIAS if digest is None else f"{CHAMPION_ALIAS}-{digest[:8]}"


def _make_registered_model(client: mlflow.MlflowClient) -> None:
    if client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
        return
    try:
        client.create_registered_model(
            REGISTERED_MODEL,
            description=(
                "Every network that evaluate scored. `champion-<digest>` is the best one on the "
                "test images of the data set whose digest begins so, `champion` that of the data "
                "set evaluated last."
            ),
        )
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def _logged_model(client: mlflow.MlflowClient, run: mlflow.entities.Run) -> str:
    logged = run.outputs.model_outputs if run.outputs else []
    models = [client.get_logged_model(output.model_id) for output in logged]
    if not models:
        raise ValueError(f"run {run.info.run_id} logged no model")
    # A training that was killed while it logged its model logs it again.
    newest = max(models, key=lambda model: model.creation_timestamp)
    return str(newest.model_id)


def _version(client: mlflow.MlflowClient, number: str) -> Version:
    tags = client.get_model_version(REGISTERED_MODEL, number).tags
    return Version(
        number=number,
        dataset=tags.get("dataset", "another data set"),
        dataset_digest=tags.get("dataset.digest", ""),
        leaking=tags.get("leaking") == "true",
    )
