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
    """An error that a user can fix; the message names the file or key and says what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM was received; it ends a script as Ctrl-C does."""


def progress(
    items: Iterable[T],
    *,
    description: str,
    unit: str,
    total: int | None = None,
    delay: float = 1.0,
) -> Iterator[T]:
    """Yield `items` with a progress bar on stderr, which appears after `delay` seconds."""
    yield from tqdm(
        items, desc=description, unit=f" {unit}", total=total, delay=delay, file=sys.stderr
    )


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Discard what the process and its C++ libraries write to stderr while the block lasts.

    With EMOTION_DETECTION_TRACEBACK=1 nothing is discarded.
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
    """Run a script's `main` with its log lines on stderr; an error becomes one line there.

    The exit status is 1 after a `UserError` or an error of the system (as a full disk), 130 after
    Ctrl-C and 143 after SIGTERM. With EMOTION_DETECTION_TRACEBACK=1 the traceback is shown.
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
        message, status = _message_and_status(error)
        print(message, file=sys.stderr)
        sys.exit(status)


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def _message_and_status(error: UserError | OSError | KeyboardInterrupt) -> tuple[str, int]:
    if isinstance(error, Terminated):
        return "terminated", 128 + signal.SIGTERM
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 128 + signal.SIGINT
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {error.filename}: {error.strerror}", 1
    return f"error: {error}", 1
