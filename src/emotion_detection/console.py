"""What a person sees in the terminal: log lines, progress and errors."""

import contextlib
import faulthandler
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import IO, ClassVar, NoReturn, Self, TypeVar

from tqdm import tqdm

from emotion_detection import paths

T = TypeVar("T")

log = logging.getLogger("emotion_detection")

TRACEBACK_VARIABLE = "EMOTION_DETECTION_TRACEBACK"

TICK = 1.0
"""Seconds after which a bar in a terminal is drawn again, though nothing has advanced."""

USUAL_WIDTH = 80
"""Columns of a terminal."""

FIRST_LINE, LINES_APART, LONGEST_WITHOUT_LINE = 10.0, 30.0, 600.0
"""Seconds to a log file's first line about progress; between two of them, at least; and at most,
unless a tenth of the work is done sooner."""

SHARE_OF_A_LINE = 0.1

UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Characters that move the cursor, break a line, turn the direction of text or are none."""

NO_ROOM = "failed to map segment"
"""What the import of a library says where memory is short."""

GO_ON = ": run the same command again to go on"


class UserError(Exception):
    """An error that a user can fix; the message names the file or key and says what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM was received; it ends a script as Ctrl-C does."""


def printable(text: str) -> str:
    """Return `text`, which may hold any file's name, as one line that is safe in a terminal."""
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def first_line(error: Exception) -> str:
    """Return the first line of what a library's error says, or its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# Progress


class _Console:
    """Where log lines and bars go: stderr, by a descriptor of its own while a script runs."""

    stream: IO[str] | None = None
    open_bars: ClassVar[list["Progress"]] = []

    @classmethod
    def write_to(cls) -> IO[str]:
        return cls.stream or sys.stderr


class Progress:
    """How far a piece of work is: a bar in a terminal, and in a log file a line now and then.

    The bar has a clock that goes on while nothing advances. It disappears at the end, and while
    there is one of a part of the work.
    """

    def __init__(
        self,
        what: str,
        *,
        total: float | None = None,
        unit: str = "",
        note: str = "",
        delay: float = 0.0,
        bar: bool = True,
        lines: bool = True,
    ) -> None:
        """Begin `what`, `total` units of work; a bar appears after `delay` seconds.

        Without a total there is only the clock, in a terminal. `note` is shown in place of what
        `advance` says. `bar` and `lines` say which of the two may be shown.
        """
        self._what, self._unit, self._delay = printable(what), unit, delay
        self._fixed = printable(note)
        self._in_terminal = _Console.write_to().isatty()
        self._shows_bar, self._shows_lines = bar and self._in_terminal, lines
        self._note = note
        self._bar: tqdm[NoReturn] | None = None
        self._ended = threading.Event()
        self.begin(total)

    def __enter__(self) -> Self:
        """Return the progress, which ends with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    def begin(self, total: float | None, done: float = 0.0, note: str = "") -> None:
        """Begin anew: `total` units of work, of which `done` were done before."""
        self.close()
        self._total, self._done, self._note = total, done, self._fixed or note
        self._began = self._line_at = time.monotonic()
        self._line_done: float | None = None
        # Where the time left is measured from: functions are compiled in the first step.
        self._from = self._began, done
        self._steps = 0
        if self._shows_bar:
            if _Console.open_bars:
                _Console.open_bars[-1]._hide()
            _Console.open_bars.append(self)
            self._show()

    def _show(self) -> None:
        layout = "{desc} {percentage:3.0f}%|{bar:10}| {elapsed}, {remaining} left{postfix}"
        stream = _Console.write_to()
        # A terminal in a script may have no size, and tqdm would show nothing.
        has_width = os.get_terminal_size(stream.fileno()).columns > 0
        self._bar = tqdm(
            desc=self._what,
            total=self._total,
            initial=self._done,  # shares of an epoch are counted too
            delay=self._delay,
            file=stream,
            leave=False,
            ncols=None if has_width else USUAL_WIDTH,
            dynamic_ncols=has_width,
            bar_format="{desc} {elapsed}{postfix}" if self._total is None else layout,
        )
        self._bar.start_t -= time.monotonic() - self._began
        self._bar.set_postfix_str(self._standing(), refresh=False)
        self._ended = threading.Event()
        threading.Thread(target=self._tick, args=(self._bar, self._ended), daemon=True).start()

    def _tick(self, bar: "tqdm[NoReturn]", ended: threading.Event) -> None:
        while not ended.wait(TICK):
            with bar.get_lock():
                # Asked again: the bar may have been closed since.
                if not ended.is_set() and time.time() - bar.start_t >= self._delay:
                    # Or tqdm would take it for one that was never shown, and leave it there.
                    bar.delay = 0
                    bar.refresh(nolock=True)

    def _hide(self) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def advance(self, by: float = 1.0, note: str = "") -> None:
        """Say that `by` more units are done; `note` is shown beside the bar, or in the line."""
        self._done += by
        self._steps += 1
        self._note = self._fixed or note
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(self._standing(), refresh=False)
            self._bar.update(by)
        elif self._shows_lines and not self._in_terminal and self._is_due(now):
            self.tell(f"{self._standing()}, {self.left()}")
        if self._steps == 1:
            self._from = now, self._done

    def tell(self, news: str) -> None:
        """Log a line of news about the work."""
        self._line_at, self._line_done = time.monotonic(), self._done
        log.info("%s: %s", self._what, news)

    def left(self) -> str:
        """Return how long the rest takes, as "about 7 min left", as measured so far."""
        since, before = self._from
        measured = self._done - before
        if self._total is None or measured <= 0:
            return "time left not known yet"
        rate = (time.monotonic() - since) / measured
        return f"about {duration(rate * max(0.0, self._total - self._done))} left"

    def _standing(self) -> str:
        if self._note or not self._unit:
            return self._note
        of = "" if self._total is None else f" of {self._total:,.0f}"
        return f"{self._done:,.0f}{of} {self._unit}"

    def _is_due(self, now: float) -> bool:
        if self._total is None or self._done >= self._total or self._steps < 2:
            return False
        since = now - self._line_at
        if self._line_done is None:
            return since >= FIRST_LINE
        share = (self._done - self._line_done) / self._total
        return since >= LONGEST_WITHOUT_LINE or (since >= LINES_APART and share >= SHARE_OF_A_LINE)

    def close(self) -> None:
        """Remove the bar."""
        self._hide()
        if self in _Console.open_bars:
            _Console.open_bars.remove(self)
            if _Console.open_bars:
                _Console.open_bars[-1]._show()


def progress(
    items: Iterable[T],
    *,
    description: str,
    unit: str,
    total: int | None = None,
    delay: float = 1.0,
) -> Iterator[T]:
    """Yield `items`, and show how many there were; a bar appears after `delay` seconds.

    `total` is their number where `items` has no length.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(description, total=total, unit=unit, delay=delay) as shown:
        for item in items:
            yield item
            shown.advance()


def duration(seconds: float) -> str:
    """Return `seconds` as a person says it: 42 s, 7 min, 3.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep back what the block writes to stderr, and show it only if the block fails.

    It is for the import of TensorFlow, whose C++ code writes to file descriptor 2 before any
    variable or logger can say otherwise; so the descriptor itself leads to a file meanwhile. With
    EMOTION_DETECTION_TRACEBACK=1 nothing is kept back.
    """
    if os.environ.get(TRACEBACK_VARIABLE):
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept_back, os.fdopen(os.dup(2), "wb") as stderr:
        os.dup2(kept_back.fileno(), 2)
        # A processor that TensorFlow cannot run on ends this process before anything is shown.
        reports = not faulthandler.is_enabled()
        if reports:
            faulthandler.enable(stderr)
        try:
            yield
        except Exception as error:
            if not isinstance(error, UserError):
                kept_back.seek(0)
                shutil.copyfileobj(kept_back, stderr)
            raise
        finally:
            if reports:
                faulthandler.disable()
            sys.stderr.flush()
            os.dup2(stderr.fileno(), 2)


# Scripts


class _Handler(logging.StreamHandler):
    """Writes log lines above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(self.stream):
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage())


def call(command: Sequence[str]) -> int:
    """Run another program, which Ctrl-C and SIGTERM end too, and return its exit status."""
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except Terminated:
                process.terminate()
            except KeyboardInterrupt:
                # The terminal has sent it to the other too, which ends by itself.
                continue


def run(main: Callable[[], None], *, stage: str = "") -> None:
    """Run a script's `main` with its log lines on stderr; an error becomes one line there.

    The exit status is 1 after a `UserError` or an error of the system (as a full disk), 130 after
    Ctrl-C and 143 after SIGTERM. With EMOTION_DETECTION_TRACEBACK=1 the traceback is shown.

    The script of `stage` shows its name and a clock in a terminal whenever there is no bar. It says
    how to go on after Ctrl-C or SIGTERM, and after an error how its outputs come back. It waits for
    another process that runs the stage in this folder, since both would write the same files.
    """
    _set_up_log()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with Progress(stage, delay=2.0, bar=bool(stage)), _alone(stage):
            main()
    except (UserError, OSError, MemoryError, ImportError, KeyboardInterrupt) as error:
        broken = isinstance(error, ImportError) and NO_ROOM not in str(error)
        if broken or os.environ.get(TRACEBACK_VARIABLE):
            raise
        message, status = _message_and_status(error)
        if stage:
            stopped = isinstance(error, KeyboardInterrupt)
            message += GO_ON if stopped else _how_outputs_come_back()
        print(message, file=sys.stderr)
        sys.exit(status)


@contextlib.contextmanager
def _alone(stage: str) -> Iterator[None]:
    """Keep other processes from running `stage` in this folder while the block lasts."""
    if not stage:
        yield
        return
    # Imported here, since help needs none.
    from filelock import FileLock, Timeout

    path = paths.STATE / ".locks" / stage
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(path).acquire(blocking=False)
    except Timeout:
        log.info("%s: another process runs this stage here; waiting for it to end", stage)
        held = FileLock(path).acquire()
    with held:
        yield


def _set_up_log() -> None:
    """Have log lines go to stderr, and keep away what no one has to act on."""
    # So that `quiet` keeps back neither lines nor bars.
    _Console.stream = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
    handler = _Handler(_Console.stream)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    if not sys.warnoptions:
        # They are for who writes the libraries; python -W and PYTHONWARNINGS bring them back.
        warnings.simplefilter("ignore")
    # It tells of its font cache at the first start.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def _message_and_status(
    error: UserError | OSError | MemoryError | ImportError | KeyboardInterrupt,
) -> tuple[str, int]:
    if isinstance(error, Terminated):
        return "terminated", 128 + signal.SIGTERM
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 128 + signal.SIGINT
    if isinstance(error, MemoryError | ImportError):
        return "error: not enough memory", 1
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {printable(str(error.filename))}: {error.strerror}", 1
    return f"error: {printable(str(error))}", 1


def _how_outputs_come_back() -> str:
    """Return what brings back the outputs of the stage's last run; empty if there was none.

    DVC removes a stage's outputs before it runs it, and those that dvc.lock names are in its cache.
    """
    stage, root = os.environ.get("DVC_STAGE"), Path(os.environ.get("DVC_ROOT", ""))
    # A queued experiment runs in a copy of the project, which goes away.
    if not stage or root.resolve() != Path.cwd():
        return ""
    with contextlib.suppress(OSError):
        # Not read as YAML, which takes longer than all else here.
        if f"\n  {stage}:\n" in Path("dvc.lock").read_text(encoding="utf-8"):
            return f"\n`dvc checkout {stage}` brings back its outputs, which DVC removed"
    return ""
