"""Where MLflow keeps its runs, and what to do while it cannot be reached."""

import contextlib
import hashlib
import logging
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import mlflow
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from emotion_detection import paths
from emotion_detection.console import UserError
from emotion_detection.files import atomic, locked
from emotion_detection.tracking import moved, pages
from emotion_detection.tracking.outbox import UnreachableError, retry

T = TypeVar("T")

EXPERIMENT = "emotion-detection"

EXPERIMENT_NOTE = """\
Emotions from faces: [the runs with their results]({runs}). A run is named after its DVC stage, \
its DVC experiment and its data.

- `tune`: a search for a network; its trials are the child runs. To compare them, unfold it, tick
  them, press Compare, and take `val_accuracy` as the metric.
- `train`: the training of a network; under `test/` are evaluate's scores. `(selected on test)` says
  that its epoch or network was chosen on the test images: its scores are too high to be compared.
- `export`: the networks of a training exported with other settings, and their `test/` scores.
"""

TIMEOUT_VARIABLE = "EMOTION_DETECTION_TIMEOUT"

NOT_THERE = {"NOT_FOUND", "RESOURCE_DOES_NOT_EXIST"}
SLOWEST_ANSWER = 10.0
"""Seconds that a server is given to answer at least, whatever `timeout` is."""

# MLflow's answers to a request that would fail again later: no outage.
REFUSALS = NOT_THERE | {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "NOT_IMPLEMENTED",
    "RESOURCE_ALREADY_EXISTS",
}
# Its answers to somebody without the right to ask. A stage that begins does not wait for that; one
# that is running does, since the right may come back.
FORBIDDEN = {"CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "UNAUTHENTICATED"}


def connect() -> None:
    """Point MLflow at the store, and make the store and the experiment where they are missing.

    MLFLOW_TRACKING_URI wins. Otherwise the store is what plain `mlflow ui` opens at the project's
    root: sqlite:///mlflow.db with artifacts in ./mlruns.

    Raises:
        UserError: if the store cannot be reached within `timeout()`, or refuses.

    """
    location = _point()
    with contextlib.ExitStack() as alone:
        file = sqlite_file(mlflow.get_tracking_uri())
        if file is not None:
            # Two processes that make the tables at once leave half of them.
            alone.enter_context(locked(outbox_folder() / "lock", wait=True))
            request(lambda: _make_tables(file))
            _check(file)
            _follow(file)
        request(lambda: _enter_experiment(location))


def connect_to_read() -> None:
    """Point MLflow at the store as `connect` does, and make nothing there.

    Raises:
        UserError: if there is no store, it cannot be reached within `timeout()`, or it refuses.

    """
    file = sqlite_file(os.environ.get("MLFLOW_TRACKING_URI") or _own())
    if file is not None and not file.exists():
        # MLflow would make an empty store wherever it is asked.
        raise UserError(f"there is no {file.name} in {file.absolute().parent}")
    if file is not None:
        _check(file)
        _follow(file)
    _point()
    request(lambda: mlflow.MlflowClient().search_experiments(max_results=1))


def _point() -> str | None:
    """Tell MLflow where the store is; return where artifacts go, None if its server decides."""
    # MLflow's log lines are about its own workings; what fails is reported here.
    for name, level in (
        ("mlflow", logging.WARNING),
        ("mlflow.store.db.utils", logging.CRITICAL),
        ("alembic", logging.WARNING),
        ("urllib3", logging.ERROR),
    ):
        logging.getLogger(name).setLevel(level)
    # Retries are the outbox's and those of `request`.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    # A server may ask to be left alone for an hour, or for ever.
    os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")
    # Two lines for each run that ends, among the stage's own.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # MLflow itself leaves the address in this variable.
    if os.environ.get("MLFLOW_TRACKING_URI") not in (None, "", _own()):
        return None
    mlflow.set_tracking_uri(_own())
    # MLflow would take the working directory of the process that makes the experiment, and that of
    # a queued DVC experiment is deleted.
    return _artifacts().as_uri()


def _artifacts() -> Path:
    """Return the folder of the artifacts of the project's own store."""
    return paths.main_root() / "mlruns"


def _follow(file: Path) -> None:
    """Change the paths in the project's own store `file` if the project was moved."""
    if file == Path(make_url(_own()).database or ""):
        moved.follow(file, _artifacts(), EXPERIMENT)


def _own() -> str:
    """Return the address of the project's own store, used without MLFLOW_TRACKING_URI."""
    return f"sqlite:///{(paths.main_root() / 'mlflow.db').as_posix()}"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite store, None for another kind of store."""
    database = make_url(uri).database if uri.startswith("sqlite") else None
    return Path(database) if database and database != ":memory:" else None


def _check(file: Path) -> None:
    """Raise a UserError if `file` is no SQLite database.

    MLflow itself tries for 100 seconds.
    """
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=0)) as store:
            store.execute("SELECT name FROM sqlite_master LIMIT 1")
    except sqlite3.Error as error:
        if "locked" in str(error):  # MLflow waits for the other process.
            return
        reason = "it is a folder" if file.is_dir() else error
        raise UserError(
            f"{file}: cannot be MLflow's store ({reason}); put a copy of the store in its place, "
            "or move it away to begin a new one"
        ) from error


def _make_tables(file: Path) -> None:
    """Make the SQLite store `file` with all its tables, unless it is there.

    MLflow itself makes them one by one in place, and cannot use what a killed process left.
    """
    if file.exists():
        return
    # It takes half a second to import, and clients of a server do not need it.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with atomic(file) as temporary:
        store = SqlAlchemyStore(f"sqlite:///{temporary.as_posix()}", "./mlruns")
        store.engine.dispose()


def _enter_experiment(location: str | None) -> None:
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        try:
            client.create_experiment(EXPERIMENT, artifact_location=location)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
    experiment_id = mlflow.set_experiment(EXPERIMENT).experiment_id
    wanted = {
        # Opens the page of training runs; the default is the one for language models.
        "mlflow.experimentKind": "custom_model_development",
        pages.VIEW_TAG: pages.view(),
    }
    has = {} if found is None else found.tags
    if MLFLOW_RUN_NOTE not in has:
        wanted[MLFLOW_RUN_NOTE] = EXPERIMENT_NOTE.format(runs=pages.fragment(experiment_id))
    changed = {name: value for name, value in wanted.items() if has.get(name) != value}
    if changed:
        mlflow.set_experiment_tags(changed)


def runs_address(server: str) -> str:
    """Return the address of the page of the runs; `server` serves the store if it is a file.

    Raises:
        UserError: as `connect` does.

    """
    connect()
    experiment = request(lambda: mlflow.MlflowClient().get_experiment_by_name(EXPERIMENT))
    uri = without_password()
    base = uri if uri.startswith("http") else server
    return f"{base.rstrip('/')}/{pages.fragment(experiment.experiment_id)}"


def exists(run_id: str | None) -> bool:
    """Return whether there is a run of this id that can be logged to."""
    if run_id is None:
        return False
    try:
        # A run deleted in MLflow's pages is still found, but refuses what is logged.
        return bool(mlflow.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
    except MlflowException as error:
        if _is_outage(error):
            raise
        return False


def _is_outage(error: Exception) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, MlflowException):
        # What was sent is no text or number that a store can have.
        unfit = isinstance(error.__cause__, (UnicodeError, OverflowError, TypeError))
        # A file that was overwritten is MLflow's "bad request".
        overwritten = "(sqlite3.DatabaseError)" in str(error)
        return overwritten or not (unfit or error.error_code in REFUSALS)
    return isinstance(error, (SQLAlchemyError, OSError))


@contextlib.contextmanager
def raising_outages() -> Iterator[None]:
    """Raise every error that means an outage of the store as an UnreachableError."""
    try:
        yield
    except Exception as error:
        if not _is_outage(error):
            raise
        cause: BaseException = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__ or cause
        reason = hidden(" ".join(str(cause).split()))
        raise UnreachableError(
            f"MLflow at {without_password()} cannot be reached ({reason})"
        ) from error


def request(act: Callable[[], T], *, here: bool = False) -> T:
    """Return what `act` asks the store for, tried again while the store cannot be reached.

    A server is asked in a thread, which is left alone if it gets no answer, unless `here`.

    Raises:
        UserError: if it cannot be reached within `timeout()`, or refuses.

    """

    def ask() -> T:
        with raising_outages():
            try:
                return act()
            except MlflowException as error:
                if error.error_code in FORBIDDEN:
                    raise _refused(error) from error
                raise

    here = here or sqlite_file(mlflow.get_tracking_uri()) is not None
    until = time.monotonic() + max(timeout(), SLOWEST_ANSWER)

    def attempt() -> T:
        return ask() if here else _answer(ask, until)

    try:
        return retry(attempt, timeout())
    except UnreachableError as error:
        raise UserError(f"{error}; start it, or set MLFLOW_TRACKING_URI to another") from error
    except MlflowException as error:
        raise _refused(error) from error


def _answer(ask: Callable[[], T], until: float) -> T:
    """Return what `ask` returns; a server that has not answered at `until` is unreachable.

    A server that sends a byte now and then would hold a request for as long as it likes, whatever
    timeout a request has.
    """
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, name="request", daemon=True).start()
    try:
        return answer.result(max(until - time.monotonic(), 1.0))
    except TimeoutError:
        where = without_password()
        raise UnreachableError(f"MLflow at {where} cannot be reached (no answer)") from None


def _refused(error: MlflowException) -> UserError:
    reason = hidden(" ".join(str(error).split()))
    return UserError(f"MLflow at {without_password()} refuses: {reason}")


def timeout() -> float:
    """Return for how many seconds a request to MLflow is retried: EMOTION_DETECTION_TIMEOUT, or 60.

    Raises:
        UserError: if the variable is no number.

    """
    text = os.environ.get(TIMEOUT_VARIABLE, "60")
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{TIMEOUT_VARIABLE} = {text}: must be a number of seconds") from None


def without_password() -> str:
    """Return the store's address without user and password."""
    return hidden(mlflow.get_tracking_uri())


def hidden(text: str) -> str:
    """Return `text` without the users and passwords of the addresses in it."""
    text = re.sub(r"(https?://)[^/\s@]*@", r"\1", text)
    # SQLAlchemy takes any password up to the @, slashes too, and another among the options.
    text = re.sub(r"(\w(?<!http)(?<!https)://)[^/\s:@]*(:[^\s@]*)?@", r"\1", text)
    return re.sub(r"(?i)([?&]password=)[^&\s]*", r"\1***", text)


def outbox_folder() -> Path:
    """Return the folder of the outboxes for this store; it is there afterwards."""
    store = without_password()
    if store == _own():
        store = "mlflow.db"  # the same after the project is moved
    folder = paths.outboxes() / hashlib.sha256(store.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STORE_FILE).write_text(store, encoding="utf-8")
    return folder


STORE_FILE = "store"
