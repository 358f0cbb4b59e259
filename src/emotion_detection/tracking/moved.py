"""The project's own MLflow store after the project was moved, renamed or copied.

MLflow keeps the absolute path of every artifact: the files would not be found, and new ones would
be written to the old place, which for a copy is the original project.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from emotion_detection.console import UserError, log

LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
"""The columns of the store that hold paths of artifacts."""


def follow(file: Path, artifacts: Path, experiment: str) -> None:
    """Change the paths in the SQLite store `file` to `artifacts`, where they are of another place.

    They stay where the artifacts of `experiment` were put elsewhere on purpose: into a folder that
    is there, is no other project's and has files that `artifacts` lacks.

    Raises:
        UserError: if they cannot be changed.

    """
    old = None
    # A damaged store is MLflow's to report.
    with contextlib.suppress(sqlite3.Error), _opened(file) as store:
        old = _left(store, artifacts, experiment)
    if old is None:
        return
    try:
        with _opened(file) as store:
            # No other process writes from here to the end.
            store.execute("BEGIN IMMEDIATE")
            if _left(store, artifacts, experiment) != old:
                return
            changed = sum(
                _replaced(store, table, column, before, after)
                for table, column in LOCATIONS
                for before, after in (
                    (old.as_uri(), artifacts.as_uri()),
                    (old.as_posix(), artifacts.as_posix()),
                )
            )
            store.commit()
    except sqlite3.Error as error:
        raise UserError(
            f"{file}: its paths lead to {old}, and cannot be changed to {artifacts} ({error})"
        ) from error
    log.info(
        "the project was in %s before: changed %s paths in %s to its place",
        *(old.parent, f"{changed:,}", file.name),
    )


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    store = sqlite3.connect(file, timeout=60, isolation_level=None)
    try:
        yield store
    finally:
        store.close()


def _left(store: sqlite3.Connection, artifacts: Path, experiment: str) -> Path | None:
    """Return the folder of artifacts that the project has left, None if it has left none."""
    found = store.execute(
        "SELECT artifact_location FROM experiments WHERE name = ?", (experiment,)
    ).fetchone()
    address = urlsplit(found[0] or "") if found else None
    if address is None or address.scheme != "file":
        return None
    old = Path(url2pathname(address.path))
    if old == artifacts or old.name != artifacts.name:
        return None
    if not old.exists() or (old.parent / "mlflow.db").exists():
        return old
    uris = store.execute("SELECT artifact_uri FROM runs WHERE artifact_uri LIKE 'file:%'")
    runs = (Path(url2pathname(urlsplit(uri).path)) for (uri,) in uris)
    here = (artifacts / run.relative_to(old) for run in runs if run.is_relative_to(old))
    return old if any(run.exists() for run in here) else None


def _replaced(store: sqlite3.Connection, table: str, column: str, before: str, after: str) -> int:
    """Write `after` in place of the path `before` at the start of `column`; return how often."""
    return store.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
        f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
        (after, len(before) + 1, before, len(before) + 1, f"{before}/"),
    ).rowcount
