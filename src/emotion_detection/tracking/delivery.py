"""From an outbox to MLflow: what each entry does there, and what earlier processes left behind."""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from emotion_detection import paths
from emotion_detection.console import UserError, log
from emotion_detection.tracking import models, tags
from emotion_detection.tracking.exports import AWAY, find_run, run_of_export
from emotion_detection.tracking.outbox import (
    ENTRIES,
    BusyError,
    Deliver,
    Entry,
    Outbox,
    UnknownRunError,
    UnreachableError,
    abandoned,
    retry,
)
from emotion_detection.tracking.pages import plain
from emotion_detection.tracking.provenance import is_gone
from emotion_detection.tracking.store import (
    EXPERIMENT,
    NOT_THERE,
    STORE_FILE,
    connect,
    outbox_folder,
    raising_outages,
    request,
    timeout,
    without_password,
)


def open_outbox(run_id: str) -> Outbox:
    """Open the outbox of a run.

    Raises:
        UserError: if another process has it open for longer than `timeout()`.

    """

    def attempt() -> Outbox:
        try:
            return Outbox(outbox_folder() / run_id, _deliverer())
        except BusyError:
            raise UnreachableError(f"run {run_id} is logged to by another process") from None

    try:
        return retry(attempt, timeout())
    except UnreachableError as error:
        raise UserError(f"{error}; wait for it to end") from None


def close_outbox(outbox: Outbox, run_id: str, *, hurried: bool = False) -> None:
    """Close an outbox, and say so if something of it could not be sent."""
    if not outbox.close(min(timeout(), 5.0) if hurried else timeout()):
        log.warning(
            "%s; what is logged to run %s is kept in %s: run `emotion-detection send` when %s is "
            "back",
            outbox.problem or f"MLflow at {without_password()} is slow",
            run_id,
            outbox.folder,
            "it" if outbox.unknown else "MLflow",
        )


def send() -> None:
    """Send MLflow what it has missed, and end the runs that a killed process left open.

    Raises:
        UserError: if MLflow cannot be reached.

    """
    connect()
    left = send_abandoned(keep=None)
    elsewhere = {
        file.read_text(encoding="utf-8")
        for file in paths.outboxes().glob(f"*/{STORE_FILE}")
        if file.parent != outbox_folder() and any(file.parent.glob(f"*/{ENTRIES}"))
    }
    for store in sorted(elsewhere):
        log.warning("kept for %s: set MLFLOW_TRACKING_URI to it, and run this again", store)
    if left:
        raise UserError(f"what {left} runs logged is still in {paths.outboxes()}; try again later")
    log.info("nothing is left to send to %s", without_password())


def send_abandoned(keep: str | None) -> int:
    """Send what ended processes left, and end the runs that they left open, but for the run `keep`.

    Returns the number of outboxes that could not be sent.
    """
    left, reachable = 0, True
    for outbox in abandoned(outbox_folder(), _deliverer()):
        sent = outbox.close(timeout() if reachable else 0)
        left += not sent
        reachable = sent or outbox.unknown
    with contextlib.suppress(UserError):
        request(lambda: _end_abandoned(keep))
    return left


def _end_abandoned(keep: str | None) -> None:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    for found in client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'"):
        if found.info.run_id != keep and is_gone(found.data.tags.get(tags.PROCESS, "")):
            client.set_terminated(found.info.run_id, "KILLED")


def _deliverer() -> Deliver:
    """Return what delivers entries to the store; delivering one twice changes nothing more."""
    uri = mlflow.get_tracking_uri()

    def deliver(entry: Entry, known: Mapping[str, str], folder: Path) -> str | None:
        with raising_outages():
            _check(entry)
            client = mlflow.MlflowClient(uri)
            try:
                return _do(client, entry, known, folder)
            except MlflowException as error:
                if error.error_code in NOT_THERE:
                    # The run of the outbox itself; one of its entries may be of a run that never
                    # was, or was deleted.
                    name = folder.name
                    _ask_for(client, entry.get("training") or known.get(name) or _run_of(name))
                raise

    return deliver


FIELDS: dict[str, dict[str, type]] = {
    "create": {"parent": str, "name": str, "tags": dict, "at": int},
    "export": {"training": str, "key": str, "params": dict, "note": str},
    "log": {"at": int},
    "files": {"kept": str},
    "model": {"kept": str},
    "end": {"status": str, "at": int},
}
"""The kinds of entries, with what each of them has to have."""


def _check(entry: Entry) -> None:
    """Raise a ValueError if `entry` is of no known kind or damaged."""
    if entry["do"] not in FIELDS:
        raise ValueError("it is an entry of another version of this program")
    wanted = {"step": int, **FIELDS[entry["do"]]}
    sound = all(isinstance(entry.get(name, 0), kind) for name, kind in wanted.items()) and all(
        isinstance(value, kind)
        for name, kind in (("metrics", (int, float)), ("params", str), ("tags", str))
        for value in entry.get(name, {}).values()
    )
    if not sound:
        raise ValueError("a damaged entry")


def _ask_for(client: mlflow.MlflowClient, run_id: str) -> None:
    """Raise UnknownRunError if the store does not have the run `run_id`."""
    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        raise UnknownRunError(
            f"MLflow at {without_password()} has no run {run_id}: the store was replaced, or the "
            "run was deleted for good"
        ) from error


def _do(
    client: mlflow.MlflowClient, entry: Entry, known: Mapping[str, str], folder: Path
) -> str | None:
    """Do in the store what `entry` says, and return its result."""
    run_id = known.get(entry["run"]) or _run_of(entry["run"])
    match entry["do"]:
        case "create":
            return _create(client, entry)
        case "export":
            return _export(client, entry)
        case "log":
            _log(client, run_id, entry)
        case "files":
            client.log_artifacts(run_id, str(_kept(folder, entry)), entry["folder"])
        case "model":
            _log_model(run_id, _kept(folder, entry))
        case "end":
            client.set_terminated(run_id, entry["status"], end_time=entry["at"])
    return None


def _kept(folder: Path, entry: Entry) -> Path:
    """Return the folder of the files that the outbox `folder` keeps for `entry`.

    Raises:
        ValueError: if it is gone, or it or something in it lies elsewhere.

    """
    path = folder / entry["kept"]
    inside = path.resolve().is_relative_to(folder.resolve()) and path.resolve() != folder.resolve()
    if not inside or any(file.is_symlink() for file in path.rglob("*")):
        raise ValueError(f"{entry['kept']} leads out of the outbox")
    if not path.is_dir():
        raise ValueError(f"{path} is gone")
    return path


def _create(client: mlflow.MlflowClient, entry: Entry) -> str:
    experiment = client.get_run(entry["parent"]).info.experiment_id
    found = client.search_runs([experiment], f"tags.`{tags.OUTBOX_RUN}` = '{entry['run']}'")
    if not found:
        own = {MLFLOW_PARENT_RUN_ID: entry["parent"], tags.OUTBOX_RUN: entry["run"]}
        made = client.create_run(
            experiment, start_time=entry["at"], tags=entry["tags"] | own, run_name=entry["name"]
        )
        found = [made]
    return str(found[0].info.run_id)


def _run_of(name: str) -> str:
    # What an export's run was called may be known from an outbox that is gone.
    return (find_run(name) or name) if name.startswith(AWAY) else name


def _export(client: mlflow.MlflowClient, entry: Entry) -> str:
    run_id = run_of_export(entry["training"], entry["key"], entry["params"], entry["note"])
    client.set_tag(run_id, tags.OUTBOX_RUN, entry["run"])
    if run_id != entry["training"]:
        client.set_terminated(run_id)
    return run_id


def _log(client: mlflow.MlflowClient, run_id: str, entry: Entry) -> None:
    if entry.get("once") and _has_step(client, run_id, entry):
        return
    of: dict[str, str] = {}
    tagged: dict[str, str] = dict(entry.get("tags", {}))
    if "headline" in entry:
        tagged[MLFLOW_RUN_NOTE] = _headed(client.get_run(run_id).data.tags, entry["headline"])
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
        tags=[RunTag(name, value) for name, value in tagged.items()],
        synchronous=True,
    )


def _has_step(client: mlflow.MlflowClient, run_id: str, entry: Entry) -> bool:
    """Return whether the curves of `entry` have its step.

    A training that was stopped before it could save an epoch trains and logs it again.
    """
    history = client.get_metric_history(run_id, next(iter(entry["metrics"])))
    return any(point.step == entry["step"] for point in history)


def _headed(tagged: Mapping[str, str], headline: str) -> str:
    """Return a run's description with `headline` as its first line, in place of an earlier one."""
    synthetic = tagged.get(tags.DATASET_SYNTHETIC) == tags.flag(True)
    facts = [
        f"recipe {plain(tagged[tags.RECIPE])}" if tags.RECIPE in tagged else "",
        f"data {plain(str(tagged.get(tags.DATASET)))}{' (synthetic)' if synthetic else ''}",
        f"commit {tagged[tags.GIT_COMMIT][:7]}" if tags.GIT_COMMIT in tagged else "",
    ]
    line = f"**{headline[:1].upper()}{headline[1:]}**; {', '.join(filter(None, facts))}."
    rest = re.sub(r"\A\*\*.*\n*", "", tagged.get(MLFLOW_RUN_NOTE, ""))
    return f"{line}\n\n{rest}".rstrip()


def _log_model(run_id: str, kept: Path) -> None:
    from emotion_detection.models import saving

    path = kept / paths.MODEL.name
    model, classes = saving.load(path)
    assert classes is not None
    models.log_model(model, classes, run_id, saving.notes(path))
