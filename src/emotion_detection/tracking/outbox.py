"""A queue on disk of what is to be logged, so that an outage of the store loses nothing.

An outbox is a folder. Each line of its `entries.jsonl` is something to do in the store, and each
line of `results.jsonl` is the result of one, in the same order: the entries beyond its last line
are still to be delivered. Both survive a killed process, and the next process goes on from there.
"""

import contextlib
import errno
import json
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from emotion_detection.console import UserError, log
from emotion_detection.files import FULL, locked

T = TypeVar("T")
Entry = dict[str, Any]
Deliver = Callable[[Entry, Mapping[str, str], Path], str | None]
"""Does in the store what an entry says. It takes the entry, the results of earlier entries by
their `run`, and the outbox's folder, and returns a result if later entries need one."""

DAMAGED: Entry = {"do": "a damaged entry", "run": ""}
"""Stands for a line of an outbox that is no entry."""

ENTRIES, RESULTS, LOCK = "entries.jsonl", "results.jsonl", "lock"
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0  # seconds between two tries; doubled each time


class UnreachableError(Exception):
    """The store cannot be reached now; the same request may succeed later."""


class UnknownRunError(UnreachableError):
    """The store does not have the run that is logged to; it may be another store meanwhile."""


class BusyError(Exception):
    """Another process has the outbox open."""


def now() -> int:
    """Return the time in milliseconds since 1970, as MLflow has it."""
    return int(time.time() * 1000)


def retry(act: Callable[[], T], timeout: float) -> T:
    """Return the result of `act`, called again while it raises UnreachableError.

    Raises:
        UnreachableError: if the store is still unreachable after `timeout` seconds.

    """
    until = time.monotonic() + timeout
    pause = FIRST_PAUSE
    while True:
        try:
            return act()
        except UnreachableError as error:
            if time.monotonic() >= until:
                raise
            if pause == FIRST_PAUSE:
                log.warning("%s; trying again for %.0f s", error, timeout)
        time.sleep(min(pause, max(0.0, until - time.monotonic())))
        pause = min(2 * pause, LONGEST_PAUSE)


class Outbox:
    """A queue of entries on disk, which a thread delivers to the store in their order."""

    def __init__(self, folder: Path, deliver: Deliver) -> None:
        """Open the outbox in `folder`, or make one, and deliver what an earlier process left.

        Raises:
            BusyError: if another process has it open.
            OSError: if its files cannot be read.

        """
        self.folder = folder
        self._deliver = deliver
        self._lock = contextlib.ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        if not self._lock.enter_context(locked(folder / LOCK)):
            self._lock.close()
            raise BusyError(folder)
        try:
            entries, results = _entries(folder / ENTRIES), _results(folder / RESULTS)
        except OSError:
            self._lock.close()
            raise
        self._known = {
            entry["run"]: result
            for entry, result in zip(entries, results, strict=False)
            if result is not None
        }
        self._waiting = deque(entries[len(results) :])
        self._delivered = len(results)
        self._changed = threading.Condition()
        self._closing = self._closed = self._results_failed = self._unknown = False
        self._problem = ""
        self._refused: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why the first entry cannot be delivered now; empty if nothing is known to prevent it."""
        return self._problem

    @property
    def unknown(self) -> bool:
        """Whether the store, when it was asked last, did not have the run."""
        return self._unknown

    def append(self, entry: Entry) -> None:
        """Write `entry`, which is JSON, to disk; it is delivered after those before it.

        Raises:
            UserError: if it cannot be written.

        """
        path = self.folder / ENTRIES
        with self._changed:
            try:
                line = _append_line(path, entry)
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}; {_advice(error)}") from error
            self._waiting.append(json.loads(line))
            self._changed.notify_all()

    def known(self, run: str) -> str:
        """Return the result of the entry that made `run`, `run` itself where there is none."""
        return self._known.get(run, run)

    def flush(self, timeout: float) -> bool:
        """Wait until all is delivered; return False after `timeout` seconds without progress.

        It returns False at once where the store does not have the run.
        """
        with self._changed:
            self._unknown = False
            while self._waiting:
                delivered = self._delivered
                going_on = self._changed.wait_for(partial(self._is_beyond, delivered), timeout)
                if self._unknown or not going_on:
                    return False
            return True

    def _is_beyond(self, delivered: int) -> bool:
        return self._unknown or self._delivered > delivered

    def close(self, timeout: float) -> bool:
        """Flush with `timeout`, close, and return whether everything was delivered.

        The folder is removed if so; otherwise it stays for the next process that opens it.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        try:
            done = self.flush(timeout)
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
        if done:
            self._thread.join()
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()
        return done

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                entry = self._waiting[0]
            try:
                if entry is DAMAGED:
                    raise ValueError(f"damaged lines in {self.folder / ENTRIES}")
                result = self._deliver(entry, self._known, self.folder)
            except UnreachableError as error:
                if not self._problem:
                    log.warning(
                        "%s; what is logged is kept in %s until it is back", error, self.folder
                    )
                self._problem = str(error)
                self._wait_to_retry(pause, unknown=isinstance(error, UnknownRunError))
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            except Exception as error:
                result = None
                self._warn_of_refusal(entry, error)
            if self._problem:
                log.info("MLflow is back: what was kept on disk is sent")
            self._problem, pause = "", FIRST_PAUSE
            self._mark_delivered(entry, result)

    def _wait_to_retry(self, pause: float, *, unknown: bool) -> None:
        with self._changed:
            closing = self._closing
            self._unknown = unknown
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._closed or self._closing != closing,
                # A caller waits in close(), so try more often.
                min(pause, 1.0) if closing else pause,
            )

    def _warn_of_refusal(self, entry: Entry, error: Exception) -> None:
        reason = " ".join(str(error).split())
        if isinstance(error, (LookupError, TypeError, AttributeError)):
            reason = f"a damaged entry ({type(error).__name__}: {reason})"
        if reason not in self._refused:
            self._refused.add(reason)
            log.warning("not logged (%s): %s", entry.get("do"), reason)

    def _mark_delivered(self, entry: Entry, result: str | None) -> None:
        with self._changed:
            if self._closed:
                # Another process may have the lock by now; it delivers this entry again.
                return
            if result is not None:
                self._known[entry["run"]] = result
            try:
                if not self._results_failed:
                    _append_line(self.folder / RESULTS, result)
            except OSError:
                # The next process delivers again from here on. An entry delivered twice has the
                # same effect as one delivered once, but a missing line would shift all later ones.
                self._results_failed = True
            self._waiting.popleft()
            self._delivered += 1
            self._changed.notify_all()


def abandoned(folder: Path, deliver: Deliver) -> Iterator[Outbox]:
    """Open, one after the other, the outboxes in `folder` that no process has open."""
    for entries in sorted(folder.glob(f"*/{ENTRIES}")):
        try:
            outbox = Outbox(entries.parent, deliver)
        except BusyError:
            continue
        except OSError as error:
            log.warning("%s: cannot be read (%s); it is left there", entries.parent, error.strerror)
            continue
        yield outbox


def _advice(error: OSError) -> str:
    """Return what a person does about an outbox that cannot be written."""
    if error.errno in FULL:
        return "free some space and run this again"
    if error.errno == errno.ENOENT:
        return "its folder was removed meanwhile; run this again"
    return "mend that and run this again"


def _append_line(path: Path, value: Any) -> bytes:
    """Append a line of JSON, or nothing of it where the disk is full, and return it."""
    # A store refuses what is no text, such as the bytes of a file name that is not UTF-8.
    data = f"{json.dumps(value, ensure_ascii=False)}\n".encode(errors="replace")
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise
    return data


def _entries(path: Path) -> list[Entry]:
    """Return the entries in `path`, with DAMAGED in place of what is none."""
    entries = [_value(line) for line in _whole_lines(path)]
    return [
        entry if isinstance(entry, dict) and isinstance(entry.get("run"), str) else DAMAGED
        for entry in entries
    ]


def _results(path: Path) -> list[str | None]:
    """Return the results in `path`, and cut off what follows a damaged line.

    The entries of what is cut off are delivered again.
    """
    results: list[str | None] = []
    length = 0
    lines = _whole_lines(path)
    for line in lines:
        value = _value(line)
        if not isinstance(value, str | None):
            with path.open("r+b") as file:
                file.truncate(length)
            break
        results.append(value)
        length += len(line)
    return results


def _value(line: bytes) -> Any:
    """Return the JSON in `line`; it is a number, which no line is, where there is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return 0


def _whole_lines(path: Path) -> list[bytes]:
    """Return the lines of `path`, and cut off a line that a killed process began."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
    return [line + b"\n" for line in data[:end].split(b"\n")[:-1]]
