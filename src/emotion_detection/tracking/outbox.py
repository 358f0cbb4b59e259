"""What is on its way to a store that may be away: written down first, and played to it after.

A outbox is a folder. Its `entries.jsonl` says what is to be done, a line an entry, and
`results.jsonl` what came of it, a line likewise: as many lines as it has are done. A process that
is killed loses neither, and who comes next goes on from there.
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
from emotion_detection.files import locked

T = TypeVar("T")
Entry = dict[str, Any]
Play = Callable[[Entry, Mapping[str, str], Path], str | None]
"""Does what an entry says. It is given what earlier entries came to, by their `run`, and the
outbox's folder; it gives what this one came to, if later ones need it."""

ENTRIES, RESULTS, LOCK = "entries.jsonl", "results.jsonl", "lock"
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0  # seconds between two tries, which double


class AwayError(Exception):
    """The store cannot be reached now, or not now: the same may go well later."""


class BusyError(Exception):
    """Another process has the outbox."""


def persist(act: Callable[[], T], patience: float) -> T:
    """Return what `act` gives, tried again for `patience` seconds as long as the store is away.

    Raises:
        AwayError: if it stays away.

    """
    until = time.monotonic() + patience
    pause = FIRST_PAUSE
    while True:
        try:
            return act()
        except AwayError as error:
            if time.monotonic() >= until:
                raise
            if pause == FIRST_PAUSE:
                log.warning("%s; trying again for %.0f s", error, patience)
        time.sleep(min(pause, max(0.0, until - time.monotonic())))
        pause = min(2 * pause, LONGEST_PAUSE)


class Outbox:
    """Entries that a thread of their own plays to a store, in their order, as often as it takes."""

    def __init__(self, folder: Path, play: Play) -> None:
        """Open the outbox in `folder`, or begin one; what an earlier process left is played.

        Raises:
            BusyError: if another process has it.
            UserError: if it is damaged.

        """
        self.folder = folder
        self._play = play
        self._held = contextlib.ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        if not self._held.enter_context(locked(folder / LOCK)):
            self._held.close()
            raise BusyError(folder)
        try:
            entries, results = (_whole_lines(folder / name) for name in (ENTRIES, RESULTS))
        except ValueError as error:
            self._held.close()
            raise UserError(
                f"{folder}: damaged ({error}); remove it, and what it holds is not sent"
            ) from error
        self._known = {
            entry["run"]: result
            for entry, result in zip(entries, results, strict=False)
            if result is not None
        }
        self._waiting = deque(entries[len(results) :])
        self._played = len(results)
        self._changed = threading.Condition()
        self._closing = self._left_alone = self._unticked = False
        self._trouble = ""
        self._refused: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> str:
        """What keeps the first entry from being played; empty where nothing does."""
        return self._trouble

    def append(self, entry: Entry) -> None:
        """Write `entry`, which is JSON, down; it is played when its turn comes.

        Raises:
            UserError: if it cannot be written.

        """
        path = self.folder / ENTRIES
        with self._changed:
            try:
                _append_line(path, entry)
            except OSError as error:
                raise UserError(
                    f"{path}: {error.strerror}; free some space and run this again"
                ) from error
            self._waiting.append(entry)
            self._changed.notify_all()

    def drained(self, patience: float) -> bool:
        """Wait until everything is played; give False after `patience` seconds without progress."""
        with self._changed:
            while self._waiting:
                played = self._played
                if not self._changed.wait_for(partial(self._is_beyond, played), patience):
                    return False
            return True

    def _is_beyond(self, played: int) -> bool:
        return self._played > played

    def close(self, patience: float) -> bool:
        """Play what is left, with the patience of `drained`, and tell if that was everything.

        The folder is removed if so, and otherwise stays for who comes next.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        try:
            done = self.drained(patience)
        finally:
            with self._changed:
                self._left_alone = True
                self._changed.notify_all()
        if done:
            self._thread.join()
            shutil.rmtree(self.folder, ignore_errors=True)
        self._held.close()
        return done

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._left_alone)
                if self._left_alone:
                    return
                entry = self._waiting[0]
            try:
                result = self._play(entry, self._known, self.folder)
            except AwayError as error:
                if not self._trouble:
                    log.warning("%s; what is logged is kept until it is back", error)
                self._trouble = str(error)
                self._rest(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            except Exception as error:
                result = None
                self._refuse(entry, error)
            if self._trouble:
                log.info("the store is back: what was kept is sent")
            self._trouble, pause = "", FIRST_PAUSE
            self._tick(entry, result)

    def _rest(self, pause: float) -> None:
        with self._changed:
            closing = self._closing
            self._changed.wait_for(
                lambda: self._left_alone or self._closing != closing,
                # Somebody waits for the end.
                min(pause, 1.0) if closing else pause,
            )

    def _refuse(self, entry: Entry, error: Exception) -> None:
        reason = " ".join(str(error).split())
        if reason not in self._refused:
            self._refused.add(reason)
            log.warning("not logged (%s): %s", entry.get("do"), reason)

    def _tick(self, entry: Entry, result: str | None) -> None:
        with self._changed:
            if self._left_alone:
                # The lock may be somebody else's by now, who plays this entry again.
                return
            if result is not None:
                self._known[entry["run"]] = result
            try:
                if not self._unticked:
                    _append_line(self.folder / RESULTS, result)
            except OSError:
                # Who comes next plays from here, and twice is as good as once.
                self._unticked = True
            self._waiting.popleft()
            self._played += 1
            self._changed.notify_all()


def left_behind(folder: Path, play: Play) -> Iterator[Outbox]:
    """Open, one after the other, the outboxes in `folder` that no process has."""
    for entries in sorted(folder.glob(f"*/{ENTRIES}")):
        with contextlib.suppress(BusyError, OSError):
            yield Outbox(entries.parent, play)


def _append_line(path: Path, value: Any) -> None:
    """Write a line of JSON whole or not at all."""
    data = (json.dumps(value) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def _whole_lines(path: Path) -> list[Any]:
    """Return what the lines of `path` say, and cut off one that a killed process began."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
    return [json.loads(line) for line in data[:end].splitlines()]
