"""What the processes of a test session share: a folder, and what is made in it once."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

FOLDER, PROCESS = "TESTS_SESSION_FOLDER", "TESTS_SESSION_PROCESS"
"""The variables that name the folder, and the process that the session ends with."""


def begin() -> None:
    """Make the folder, for this process and those that it starts."""
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="session.")
    os.environ[PROCESS] = str(os.getpid())


def end() -> None:
    """Remove the folder."""
    shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)


def made_once(name: str, make: Callable[[Path], None]) -> Path | None:
    """Return the session's file or folder `name`, which `make` makes where it is missing.

    Outside of a session it is None.
    """
    if FOLDER not in os.environ:
        return None
    path = Path(os.environ[FOLDER], name)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            make(path)
    return path
