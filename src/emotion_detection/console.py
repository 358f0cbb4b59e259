"""What a person sees in the terminal: log lines, progress bars and errors."""

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
    items: Iterable[T], *, description: str, unit: str, total: int | None = None
) -> Iterator[T]:
    """Pass `items` through under a progress bar on stderr; silent when it takes under a second."""
    yield from tqdm(
        items, desc=description, unit=f" {unit}", total=total, delay=1.0, file=sys.stderr
    )


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
