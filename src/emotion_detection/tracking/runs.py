"""The MLflow runs of stages: begin, resume and end them, and log to them.

All that is logged goes to an outbox on disk first, and from there to the store: an outage of the
store neither stops a training nor loses what it logs.
"""

import contextlib
import json
import posixpath
import re
import shutil
import uuid
from collections.abc import Callable, Container, Iterator, Mapping
from contextvars import ContextVar
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH

from emotion_detection import paths
from emotion_detection.console import UserError, log
from emotion_detection.data.dataset import Dataset
from emotion_detection.files import atomic, write_json
from emotion_detection.tracking import models, pages
from emotion_detection.tracking.delivery import close_outbox, open_outbox, send_abandoned
from emotion_detection.tracking.diff import git_diff
from emotion_detection.tracking.exports import find_run, name_while_away, run_of_export
from emotion_detection.tracking.machine import SystemMetrics
from emotion_detection.tracking.outbox import Outbox, UnreachableError, now
from emotion_detection.tracking.provenance import (
    provenance,
    run_name,
    this_process,
)
from emotion_detection.tracking.store import (
    EXPERIMENT,
    connect,
    exists,
    raising_outages,
    request,
    timeout,
    without_password,
)
from emotion_detection.tracking.tags import (
    DATASET,
    DATASET_DIGEST,
    DATASET_SYNTHETIC,
    DATASET_TEST,
    PROCESS,
    STAGE,
    flag,
)

if TYPE_CHECKING:  # It imports TensorFlow, which takes seconds.
    import keras

# The run that is logged to, after its parent if it has one; trials side by side have one each.
_current: ContextVar[tuple[tuple[Outbox, str], ...]] = ContextVar("current", default=())


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
    """Log to a new run, or go on with `run_id`, while the block lasts, and yield its id.

    `note` is its description, with {data} where the name of the data goes.
    Its name has `stage`, the DVC experiment, the data, and "(selected on test)" where the tag says
    so. It carries what it comes from: `params`, the data's digest, commit, versions and machine. It
    ends FINISHED, KILLED after Ctrl-C or SIGTERM, or FAILED after another exception. Runs that a
    killed process left open are ended.

    Raises:
        UserError: if MLflow cannot be reached at the start.

    """
    connect()
    send_abandoned(keep=run_id)
    if not request(lambda: exists(run_id)):
        run_id = None
    name = run_name(stage, dataset.source, tags)
    note = note.replace("{data}", pages.plain(dataset.source))
    noted = {PROCESS: this_process()} | ({MLFLOW_RUN_NOTE: note} if note else {})
    begun = run_id or request(lambda: _create(name, noted))
    with _started(begun, name, noted):
        set_tags(
            {
                STAGE: stage,
                DATASET: dataset.source,
                DATASET_DIGEST: dataset.digest,
                DATASET_TEST: "cut from train" if dataset.test_is_cut else "its own",
                DATASET_SYNTHETIC: flag(dataset.synthetic),
                **tags,
                **provenance(),
            }
        )
        _log_diff()
        log_params(_flat(params))
        request(lambda: _log_dataset(begun, dataset))
        yield begun


def _create(name: str, tags: Mapping[str, str]) -> str:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    made = client.create_run(experiment, run_name=name, tags=resolve_tags(dict(tags)))
    return str(made.info.run_id)


@contextlib.contextmanager
def _started(run_id: str, name: str | None, tags: Mapping[str, str]) -> Iterator[None]:
    """Log to `run_id`, which runs while the block lasts, with the machine's metrics; then end it.

    Raises:
        UserError: if another process logs to it; the run stays as it is.

    """
    with contextlib.ExitStack() as begun, _recording(run_id):
        # MLflow's active run is that of a thread.
        request(lambda: mlflow.start_run(run_id, run_name=name, tags=dict(tags)), here=True)
        begun.enter_context(_ending(_forget_active_run))
        yield


@contextlib.contextmanager
def child(
    name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], note: str = ""
) -> Iterator[None]:
    """Log to a child of the current run while the block lasts."""
    outbox, parent = _current.get()[-1]
    run = uuid.uuid4().hex
    noted = {MLFLOW_RUN_NOTE: note} if note else {}
    outbox.append(
        {
            "do": "create",
            "run": run,
            "parent": parent,
            "name": name,
            "tags": resolve_tags({**tags, **noted, PROCESS: this_process()}),
            "at": now(),
        }
    )
    with _ending(lambda status: _end(outbox, run, status)), _into(outbox, run):
        log_params(params)
        yield


@contextlib.contextmanager
def _ending(end: Callable[[str], None]) -> Iterator[None]:
    """Call `end` with the status of a run whose work is the block."""
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
    """Log to `run_id` while the block lasts, with the machine's metrics, and end it."""
    outbox = open_outbox(run_id)
    machine = SystemMetrics(outbox, run_id)

    def end(status: str) -> None:
        machine.finish()
        try:
            _end(outbox, run_id, status)
        finally:
            close_outbox(outbox, run_id, hurried=status == "KILLED")

    with _ending(end), _into(outbox, run_id):
        machine.start()
        yield


def _forget_active_run(status: str) -> None:
    # Its outbox ends it in the store; MLflow's own state of this process has to forget it too.
    with contextlib.suppress(Exception):
        mlflow.end_run(status)


@contextlib.contextmanager
def resumed(run_id: str | None) -> Iterator[str | None]:
    """Log to an earlier run while the block lasts; yields its id, None if there is no such run.

    Its status and times stay as they are. While MLflow cannot be reached, what is logged is kept in
    the outbox.

    Raises:
        UserError: if MLflow cannot be reached and `run_id` is None.

    """
    unreachable = False
    try:
        connect()
        send_abandoned(keep=None)
        found = request(lambda: find_run(run_id))
    except UserError as error:
        if run_id is None:
            raise
        log.warning("%s", error)
        found, unreachable = run_id, True
    if found is None:
        _warn_of_missing(run_id)
        yield None
        return
    with _adding(found, hurried=unreachable):
        yield found


@contextlib.contextmanager
def _adding(run_id: str, *, hurried: bool = False) -> Iterator[None]:
    """Log to `run_id` while the block lasts, and leave its status and times."""
    outbox = open_outbox(run_id)
    try:
        with _into(outbox, run_id):
            yield
    finally:
        close_outbox(outbox, run_id, hurried=hurried)


def _warn_of_missing(run_id: str | None) -> None:
    log.warning(
        "MLflow run %s is not in %s: nothing is logged there; `dvc repro --force train` makes "
        "a new one",
        run_id,
        without_password(),
    )


@contextlib.contextmanager
def exported(
    train_run_id: str | None, key: str, params: Mapping[str, Any], note: str
) -> Iterator[str | None]:
    """Log an export of the training `train_run_id` while the block lasts, and yield its run's id.

    `key` says which export it is, by all that it depends on, and `params` are its settings, by
    dotted name or nested. The first export of a training is logged to the training's run. One with
    another key has a run of its own, "export ... on <data>", which inherits the training's tags,
    data and the params that `params` does not have; its tag `train.run` is the training's run, and
    `note` its description. The same key again goes on in the run that it had.

    While MLflow cannot be reached the id is a name that `resumed` finds the run by, and what is
    logged is kept in the outbox. It is None, with a warning, where the training's run is gone;
    nothing is logged then.

    Raises:
        UserError: if MLflow cannot be reached and `train_run_id` is None.

    """
    values = {name: _shown(value) for name, value in _flat(params).items()}
    run_id = away = None
    try:
        connect()
        send_abandoned(keep=None)
        if train_run_id is not None and request(lambda: exists(train_run_id)):
            run_id = request(lambda: run_of_export(train_run_id, key, values, note))
    except UserError as error:
        if train_run_id is None:
            raise
        log.warning("%s", error)
        away = name_while_away(train_run_id, key)
    if away is not None:
        with _adding(away, hurried=True):
            _append("export", training=train_run_id, key=key, params=values, note=note)
            yield away
    elif run_id is None:
        _warn_of_missing(train_run_id)
        yield None
    elif run_id == train_run_id:
        with _adding(run_id):
            yield run_id
    else:
        with _started(run_id, None, {PROCESS: this_process()}):
            set_tags(provenance())
            yield run_id


@contextlib.contextmanager
def _into(outbox: Outbox, run: str) -> Iterator[None]:
    before = _current.set((*_current.get(), (outbox, run)))
    try:
        yield
    finally:
        _current.reset(before)


def log_params(params: Mapping[str, Any]) -> None:
    """Log `params` to the current run."""
    _log(params={key: _shown(value) for key, value in params.items()})


def log_metrics(metrics: Mapping[str, float], dataset: Dataset | None = None) -> None:
    """Log `metrics` to the current run.

    With a `dataset` they are scores on it of the model that the run logged, and are shown with the
    model too. A character that MLflow does not allow in names, as classes may have, becomes `_`,
    and a name that is too long for it is cut.
    """
    named: dict[str, float] = {}
    for name, value in metrics.items():
        named[_free_name(name, named)] = float(value)
    _log(
        metrics=named,
        **({} if dataset is None else {"dataset": [dataset.source, _short_digest(dataset)]}),
    )


def _free_name(name: str, taken: Container[str]) -> str:
    """Return `name` as MLflow allows it, numbered where that is `taken`."""
    # MLflow would refuse all metrics of a request for one wrong name.
    plain = posixpath.normpath(re.sub(r"[^\w./ -]", "_", name))
    allowed = plain[:MAX_ENTITY_KEY_LENGTH]
    for number in count(2):
        if allowed not in taken:
            break
        end = f"-{number}"
        allowed = plain[: MAX_ENTITY_KEY_LENGTH - len(end)] + end
    return allowed


def log_epoch(metrics: Mapping[str, float], epoch: int, prefix: str = "epoch") -> None:
    """Log the next point of each curve of the current run, named <prefix>/loss and so on.

    MLflow shows a section of charts for each prefix. An epoch that the curves have already is left
    out.
    """
    points = {f"{prefix}/{name}": float(value) for name, value in metrics.items()}
    _log(metrics=points, step=epoch, once=True)


def log_headline(text: str) -> None:
    """Make `text`, a result, the first line of the current run's description.

    Recipe, data and commit, as the run's tags have them, follow it there.
    """
    _log(headline=text)


def log_files(folder: Path, artifact_folder: str) -> None:
    """Log every file of `folder` to the current run."""
    _keep("files", folder.name, lambda kept: shutil.copytree(folder, kept), folder=artifact_folder)


def set_tags(tags: Mapping[str, str]) -> None:
    """Set `tags` on the current run."""
    _log(tags=dict(tags))


def _log(**what: Any) -> None:
    _append("log", **what)


def _append(do: str, **what: Any) -> None:
    outbox, run = _current.get()[-1]
    outbox.append({"do": do, "run": run, "at": now(), **what})


def _keep(do: str, name: str, copy: Callable[[Path], object], **what: Any) -> None:
    """Log files, of which the outbox keeps a copy until they are sent."""
    outbox, run = _current.get()[-1]
    kept = Path(uuid.uuid4().hex, name)
    with atomic(outbox.folder / kept) as temporary:
        copy(temporary)
    outbox.append({"do": do, "run": run, "kept": kept.as_posix(), **what})


def _end(outbox: Outbox, run: str, status: str) -> None:
    outbox.append({"do": "end", "run": run, "status": status, "at": now()})


def log_model(
    model: "keras.Model", classes: tuple[str, ...], notes: Mapping[str, str] | None = None
) -> None:
    """Log `model` to the current run, or keep it in the outbox until the store is back.

    `classes` and `notes` are what `saving.save` takes.
    """
    outbox, run = _current.get()[-1]
    try:
        # What was logged before comes first; this also shows whether the store can be reached.
        if outbox.flush(timeout()):
            with raising_outages():
                models.log_model(model, classes, outbox.known(run), notes)
            return
    except UnreachableError as error:
        log.warning("%s; the model is kept on disk until it is back", error)
    except MlflowException:
        pass  # The outbox finds out why.

    def write(folder: Path) -> None:
        from emotion_detection.models import saving

        folder.mkdir()
        saving.save(model, folder / paths.MODEL.name, classes, notes)

    _keep("model", models.MODEL_NAME, write)


def save_run_id(path: Path, run_id: str) -> None:
    """Write to `path` which run made the files beside it."""
    write_json(path, {"run_id": run_id, "tracking_uri": without_password()})


def load_run_id(path: Path) -> str | None:
    """Return the run id that `save_run_id` wrote to `path`, None if there is none."""
    try:
        run_id = json.loads(path.read_text(encoding="utf-8"))["run_id"]
        return None if run_id is None else str(run_id)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _log_dataset(run_id: str, dataset: Dataset) -> None:
    images = {split: sum(of_class.values()) for split, of_class in dataset.counts.items()}
    entity = MlflowDataset(
        name=dataset.source,
        digest=_short_digest(dataset),
        source_type="local",
        source=json.dumps({"uri": dataset.source}),
        profile=json.dumps(images | dict(dataset.corrections)),
    )
    tag = InputTag(key="mlflow.data.context", value="train, test")
    mlflow.MlflowClient().log_inputs(run_id, [DatasetInput(entity, [tag])])


def _short_digest(dataset: Dataset) -> str:
    # MLflow's own digests have eight characters, as has the champion's alias.
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
    """Return `value` as params.yaml writes it, but a list without brackets."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
