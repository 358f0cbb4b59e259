"""What a person sees in the terminal: log lines, progress bars and errors."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, TypeVar

from tqdm import tqdm

T = TypeVar("T")

log = logging.getLogger("emotion_detection")

TRACEBACK_VARIABLE = "EMOTION_DETECTION_TRACEBACK"


class UserError(Exception):
    """What a user can mend: the message names the file or key, what is wrong and the fix."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came, which ends a script as Ctrl-C does."""


def progress(
    items: Iterable[T],
    *,
    description: str,
    unit: str,
    total: int | None = None,
    delay: float = 1.0,
) -> Iterator[T]:
    """Pass `items` through under a progress bar on stderr; silent under `delay` seconds."""
    yield from tqdm(
        items, desc=description, unit=f" {unit}", total=total, delay=delay, file=sys.stderr
    )


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop what the process writes to stderr while the block lasts, that of C++ libraries too.

    With EMOTION_DETECTION_TRACEBACK=1 nothing is dropped.
    """
    if os.environ.get(TRACEBACK_VARIABLE):
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`: log lines to stderr, and what went wrong as one line.

    The exit status is 1 after a `UserError` or an error of the system (a full disk), 130 after
    Ctrl-C and 143 after SIGTERM. Set EMOTION_DETECTION_TRACEBACK=1 to see where it came from.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except (UserError, OSError, KeyboardInterrupt) as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        message, status = _last_words(error)
        print(message, file=sys.stderr)
        sys.exit(status)


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def _last_words(error: UserError | OSError | KeyboardInterrupt) -> tuple[str, int]:
    if isinstance(error, Terminated):
        return "terminated", 128 + signal.SIGTERM
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 128 + signal.SIGINT
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {error.filename}: {error.strerror}", 1
    return f"error: {error}", 1
