"""Where MLflow keeps its runs, and what to do while it is away."""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
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
from emotion_detection.tracking.outbox import AwayError, persist

T = TypeVar("T")

EXPERIMENT = "emotion-detection"

EXPERIMENT_NOTE = """\
Emotions from faces. A run is named after its DVC stage, its DVC experiment and its data.

- `tune`: a search for a network; its trials are the child runs. To compare them, unfold it, tick
  them, press Compare, and take `val_accuracy` as the metric.
- `train`: a network's training, and under `test/` what evaluate scored it. `(selected_on_test)` is one whose
  epoch or network was chosen on the test images: too good to be compared with the others.
"""

PATIENCE_VARIABLE = "EMOTION_DETECTION_PATIENCE"

NOT_THERE = {"NOT_FOUND", "RESOURCE_DOES_NOT_EXIST"}
# What MLflow answers where it is there and will not do it, now or later.
REFUSALS = NOT_THERE | {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "NOT_IMPLEMENTED",
    "RESOURCE_ALREADY_EXISTS",
}
# What it answers who may not ask. Nobody waits for that at the start; later a right may come back.
FORBIDDEN = {"CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "UNAUTHENTICATED"}


def connect() -> None:
    """Point MLflow at the store and make the experiment there if it is the first run.

    MLFLOW_TRACKING_URI wins. Otherwise the store is what plain `mlflow ui` opens at the project's
    root: sqlite:///mlflow.db with artifacts in ./mlruns.

    Raises:
        UserError: if the store cannot be reached, after waiting for it, or refuses.

    """
    location = _point()
    with contextlib.ExitStack() as alone:
        file = _file(mlflow.get_tracking_uri())
        if file is not None:
            # Two that make the tables at once leave half of them.
            alone.enter_context(locked(shelf() / "lock", wait=True))
            at_once(lambda: _make_tables(file))
        at_once(lambda: _enter_experiment(location))


def connect_to_read() -> None:
    """Point MLflow at the store, as `connect` does, and write nothing there.

    Raises:
        UserError: if there is no store, or it cannot be reached, after waiting for it, or refuses.

    """
    file = _file(os.environ.get("MLFLOW_TRACKING_URI") or _own())
    if file is not None and not file.exists():
        # MLflow would make an empty store wherever it is asked.
        raise UserError(f"there is no {file.name} in {file.absolute().parent}")
    _point()
    at_once(lambda: mlflow.MlflowClient().search_experiments(max_results=1))


def _point() -> str | None:
    """Tell MLflow where the store is; give where artifacts go, None where its server says that."""
    # Its own log lines are about its own workings, and what fails is told here.
    for name, level in (
        ("mlflow", logging.WARNING),
        ("mlflow.store.db.utils", logging.CRITICAL),
        ("alembic", logging.WARNING),
        ("urllib3", logging.ERROR),
    ):
        logging.getLogger(name).setLevel(level)
    # The outbox tries again, and knows better for how long.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    # Two lines for each trial that ends, among the stage's own.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # MLflow leaves the address there.
    if os.environ.get("MLFLOW_TRACKING_URI") not in (None, "", _own()):
        return None
    mlflow.set_tracking_uri(_own())
    # MLflow would settle on the working directory of whoever is first to use the experiment, and a
    # queued experiment's is deleted.
    return (paths.main_root() / "mlruns").as_uri()


def _own() -> str:
    """Return the address of the store that the project has without MLFLOW_TRACKING_URI."""
    return f"sqlite:///{(paths.main_root() / 'mlflow.db').as_posix()}"


def _file(uri: str) -> Path | None:
    """Return the file that a store is in, None where it is in none."""
    database = make_url(uri).database if uri.startswith("sqlite") else None
    return Path(database) if database and database != ":memory:" else None


def _make_tables(file: Path) -> None:
    """Make the tables of a store in a file that is not there, all of them or none.

    MLflow makes one after the other in place, and cannot go on with what a killed one left.
    """
    if file.exists():
        return
    # Imported here, since a server's clients do without it, and it takes half a second.
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
    mlflow.set_experiment(EXPERIMENT)
    # Opens the page of training runs; the default is the one for language models.
    mlflow.set_experiment_tag("mlflow.experimentKind", "custom_model_development")
    if found is None or MLFLOW_RUN_NOTE not in found.tags:
        mlflow.set_experiment_tag(MLFLOW_RUN_NOTE, EXPERIMENT_NOTE)


def exists(run_id: str | None) -> bool:
    """Tell whether there is such a run, and it can be logged to."""
    if run_id is None:
        return False
    try:
        # A run deleted in MLflow's pages is still there, and cannot be logged to.
        return bool(mlflow.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
    except MlflowException as error:
        if is_away(error):
            raise
        return False


def is_away(error: Exception) -> bool:
    """Tell an error that may be gone later from one of what was asked for."""
    if isinstance(error, MlflowException):
        return error.error_code not in REFUSALS
    return isinstance(error, (SQLAlchemyError, OSError))


@contextlib.contextmanager
def telling_away() -> Iterator[None]:
    """Turn whatever says that the store is away into an AwayError."""
    try:
        yield
    except Exception as error:
        if not is_away(error):
            raise
        cause: BaseException = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__ or cause
        reason = hidden(" ".join(str(cause).split()))
        raise AwayError(f"MLflow at {without_password()} cannot be reached ({reason})") from error


def at_once(act: Callable[[], T]) -> T:
    """Return what `act` gets from the store, which is waited for.

    Raises:
        UserError: if it stays away, or refuses.

    """

    def attempt() -> T:
        with telling_away():
            try:
                return act()
            except MlflowException as error:
                if error.error_code in FORBIDDEN:
                    raise _refused(error) from error
                raise

    try:
        return persist(attempt, patience())
    except AwayError as error:
        raise UserError(f"{error}; start it, or set MLFLOW_TRACKING_URI to another") from error
    except MlflowException as error:
        raise _refused(error) from error


def _refused(error: MlflowException) -> UserError:
    reason = hidden(" ".join(str(error).split()))
    return UserError(f"MLflow at {without_password()} refuses: {reason}")


def patience() -> float:
    """Return for how many seconds MLflow is waited for where nothing else can be done."""
    text = os.environ.get(PATIENCE_VARIABLE, "60")
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{PATIENCE_VARIABLE} = {text}: must be a number of seconds") from None


def without_password() -> str:
    """Return the store's address, as it may be shown."""
    return hidden(mlflow.get_tracking_uri())


def hidden(text: str) -> str:
    """Take users and passwords out of the addresses in `text`."""
    text = re.sub(r"(https?://)[^/\s@]*@", r"\1", text)
    # SQLAlchemy takes any password up to the @, slashes too, and another among the options.
    text = re.sub(r"(\w(?<!http)(?<!https)://)[^/\s:@]*(:[^\s@]*)?@", r"\1", text)
    return re.sub(r"(?i)([?&]password=)[^&\s]*", r"\1***", text)


def shelf() -> Path:
    """Return the folder of the outboxes for this store."""
    store = without_password()
    if store == _own():
        store = "mlflow.db"  # wherever the project is moved to
    folder = paths.outboxes() / hashlib.sha256(store.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STORE_FILE).write_text(store, encoding="utf-8")
    return folder


STORE_FILE = "store"
