"""What a person sees in the terminal: log lines, progress bars and errors."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

log = logging.getLogger("emotion_detection")

TRACEBACK_VARIABLE = "EMOTION_DETECTION_TRACEBACK"


class UserError(Exception):
    """What a user can mend: the message names the file or key, what is wrong and the fix."""


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
    """Run a script's `main`: log lines to stderr, a `UserError` as one line and exit status 1.

    Set EMOTION_DETECTION_TRACEBACK=1 to see where an error was raised.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        main()
    except UserError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        print("interrupted", file=sys.stderr)
        sys.exit(130)
