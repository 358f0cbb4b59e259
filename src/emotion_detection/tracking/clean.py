"""What takes space in a project and can be removed: states, models, runs, copies, DVC's cache."""

import contextlib
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
import psutil
from mlflow.entities import RunStatus, ViewType
from mlflow.exceptions import MlflowException

from emotion_detection import paths
from emotion_detection.console import UserError, log
from emotion_detection.files import git, locked, remove
from emotion_detection.tracking.runs import load_run_id
from emotion_detection.tracking.store import connect_to_read, sqlite_file

COPY_SECONDS = 600
"""The age from which a copy of the project without a process counts as left behind."""


@dataclass(frozen=True)
class Part:
    """Something that can be removed: `size` in bytes, and a line about it."""

    size: int
    about: str
    remove: Callable[[], object]


def clean(names: Sequence[str], *, dry_run: bool) -> None:
    """Print what the parts `names` take, and remove them; without names, print all of them.

    With `dry_run` nothing is removed.

    Raises:
        UserError: if something cannot be removed.

    """
    for name in names or PARTS:
        part = PARTS[name]()
        print(f"{name:<7} {readable(part.size):>9}  {part.about}", flush=True)
        if names and not dry_run:
            part.remove()
    if not names:
        log.info("nothing was removed; name what is to go, as `emotion-detection clean cache`")
    elif not dry_run:
        log.info("removed: %s", ", ".join(names))


def states() -> Part:
    """Return the states of searches and trainings, but those that a process works on."""
    free = []
    for state in sorted(paths.state().glob("[!.]*/[!.]*/")):
        with locked(paths.state_lock(state)) as alone:
            if alone:
                free.append(state)
    by_stage = Counter(state.parent.name for state in free)
    counts = ", ".join(f"{count} of {stage}" for stage, count in by_stage.items()) or "none"
    return Part(
        sum(map(_size, free)),
        f"what stages have done, in {paths.STATE} ({counts}): without it, interrupted work and "
        "params that were tried before begin anew",
        lambda: _remove_states(free),
    )


def _remove_states(states: Sequence[Path]) -> None:
    for state in states:
        with locked(paths.state_lock(state)) as alone:
            if alone and state.exists():
                remove(state)


def models() -> Part:
    """Return the models in MLflow that nobody has registered and that are not this folder's."""
    if (file := _store()) is None:
        return _NO_STORE
    client = mlflow.MlflowClient()
    versions = _pages(client.search_model_versions)
    used = {str(version.source).removeprefix("models:/") for version in versions}
    used |= _of_this_folder(client)
    unused = [model for model in _logged_models(client) if model.model_id not in used]

    def act() -> None:
        for model in unused:
            client.delete_logged_model(model.model_id)
        _collect(file)

    return Part(
        sum(_size(_local(model.artifact_location)) for model in unused),
        f"{len(unused)} logged models that are neither registered nor this folder's; what `runs` "
        "names goes with them",
        act,
    )


def runs() -> Part:
    """Return the runs that a person deleted in MLflow, which keeps them until they are removed."""
    if (file := _store()) is None:
        return _NO_STORE
    client = mlflow.MlflowClient()
    deleted = [
        run
        for experiment in client.search_experiments(view_type=ViewType.ALL)
        for run in _pages(
            partial(
                client.search_runs,
                [experiment.experiment_id],
                run_view_type=ViewType.DELETED_ONLY,
            )
        )
    ]
    return Part(
        sum(_size(_local(run.info.artifact_uri).parent) for run in deleted),
        f"{len(deleted)} runs that were deleted in MLflow, and its other deleted things",
        lambda: _collect(file),
    )


def copies() -> Part:
    """Return DVC's copies of the project in which no experiment runs."""
    folder = Path(".dvc/tmp/exps").resolve()
    found = [copy for pattern in ("tmp*/", "*/tmp*/") for copy in folder.glob(pattern)]
    at_work = _working_folders() if found else []
    unused = [
        copy
        for copy in found
        # DVC prepares a copy before a process works in it.
        if time.time() - copy.stat().st_mtime > COPY_SECONDS
        and not any(place.is_relative_to(copy) for place in at_work)
    ]

    def act() -> None:
        for copy in unused:
            remove(copy)

    return Part(
        sum(map(_size, unused)),
        f"{len(unused)} copies of the project that DVC made for queued and --temp experiments, "
        "which were killed",
        act,
    )


def _working_folders() -> list[Path]:
    """Return the working folders of this user's processes."""
    folders = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            folders.append(Path(process.cwd()))
    return folders


def cache() -> Part:
    """Return what DVC's cache keeps for no branch, tag or experiment, and not for this folder."""
    if not Path(".dvc").is_dir():
        return Part(0, "there is no DVC project in this folder", lambda: None)
    unused = re.findall(r"^Removing (.+)$", _dvc_gc("--dry"), re.MULTILINE)
    whole = readable(_size(Path(".dvc/cache")))
    return Part(
        sum(Path(path).stat().st_size for path in unused if Path(path).is_file()),
        f"{len(unused):,} files of DVC's cache ({whole}) that neither this folder nor a branch, "
        "a tag or an experiment uses; not while an experiment runs",
        lambda: _dvc_gc("--force"),
    )


PARTS = {"states": states, "models": models, "runs": runs, "copies": copies, "cache": cache}

_NO_STORE = Part(0, "MLflow's runs are on a server or not there yet", lambda: None)


def _store() -> Path | None:
    """Return the file of the MLflow store, None if it is a server's or not there."""
    try:
        connect_to_read()
    except UserError as error:
        log.info("%s", error)
        return None
    return sqlite_file(mlflow.get_tracking_uri())


def _pages(page: Callable[..., Any]) -> Iterator[Any]:
    """Yield the items of all pages that `page` gives by their token."""
    found = page(page_token=None)
    yield from found
    while found.token:
        found = page(page_token=found.token)
        yield from found


def _logged_models(client: mlflow.MlflowClient) -> Iterator[Any]:
    """Yield the logged models whose run has ended."""
    running = RunStatus.to_string(RunStatus.RUNNING)
    for experiment in client.search_experiments():
        number = experiment.experiment_id
        at_work = {
            run.info.run_id
            for run in _pages(
                partial(client.search_runs, [number], f"attributes.status = '{running}'")
            )
        }
        for model in _pages(partial(client.search_logged_models, [number])):
            if model.source_run_id not in at_work:
                yield model


def _of_this_folder(client: mlflow.MlflowClient) -> set[str]:
    """Return the ids of the models of the run that models/model.keras is logged to."""
    run_id = load_run_id(paths.EXPORT_RUN)
    try:
        outputs = client.get_run(run_id).outputs if run_id is not None else None
    except MlflowException:  # The run is gone, and its models are nobody's.
        return set()
    return {str(model.model_id) for model in outputs.model_outputs} if outputs else set()


def _collect(file: Path) -> None:
    """Remove for good what was deleted in the store `file`."""
    uri = f"sqlite:///{file.as_posix()}"
    _run("mlflow", "gc", "--backend-store-uri", uri, "--tracking-uri", uri)


def _dvc_gc(*options: str) -> str:
    # To look at all commits too takes DVC a minute where there are hundreds.
    kept = ("--all-branches", "--all-tags", "--all-experiments")
    history = kept if git("rev-parse", "HEAD") else ()
    return _run("dvc", "gc", "--workspace", *history, *options)


def _run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        raise UserError(f"{' '.join(command[:2])} failed:\n{done.stdout.strip()}")
    return done.stdout


def _local(uri: str) -> Path:
    """Return the folder of artifacts `uri`; one that is not there for a store of objects."""
    address = urlsplit(uri)
    return Path(url2pathname(address.path)) if address.scheme in ("", "file") else Path(uri)


def _size(path: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())


def readable(size: float) -> str:
    """Return bytes as a person reads them: 640 B, 3.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
