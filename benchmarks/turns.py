"""Contenders in processes of their own that take turns, so that a slow minute slows all of them."""

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import psutil

N = TypeVar("N", bound=Hashable)


class Turn:
    """The contender's end of a connection: it waits for its turn, works, and reports its work."""

    def __init__(self, connection: Connection) -> None:
        """Take turns when told so over `connection`."""
        self._connection = connection

    def begin(self) -> None:
        """Wait until it is this contender's turn."""
        self._connection.recv()
        self._began = time.perf_counter()

    def end(self, amount: float) -> None:
        """Report how much was done since `begin`."""
        self._connection.send(amount / (time.perf_counter() - self._began))

    def give(self, value: Any) -> None:
        """Report something else that was measured in this turn."""
        self._connection.send(value)


Contender = Callable[[Turn], None]
"""A function of a module, or a `functools.partial` of one, that takes turns for ever."""


@dataclass(frozen=True)
class Rates:
    """How much a contender did a second, turn by turn."""

    each: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.each)

    def __str__(self) -> str:
        """Return the median and the range."""
        digits = 0 if self.median >= 20 else 2
        return (
            f"{self.median:,.{digits}f} ({min(self.each):,.{digits}f}-{max(self.each):,.{digits}f})"
        )


def _work(contender: Contender, connection: Connection) -> None:
    contender(Turn(connection))


def measure(contenders: Mapping[N, Contender], *, turns: int) -> dict[N, Rates]:
    """Let the contenders take `turns` turns each, one after the other, after one to warm up.

    Raises:
        RuntimeError: if one of them ends before its last turn.

    """
    context = multiprocessing.get_context("spawn")
    running = {}
    try:
        for name, contender in contenders.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(contender, theirs), daemon=True)
            process.start()
            theirs.close()
            running[name] = (process, ours)
        rates: dict[N, list[float]] = {name: [] for name in running}
        for turn in range(1 + turns):
            for name, (_, connection) in running.items():
                try:
                    connection.send("go")
                    rate = connection.recv()
                except (EOFError, OSError):
                    raise RuntimeError(f"{name} ended in turn {turn}; see above") from None
                if turn > 0:
                    rates[name].append(rate)
        return {name: Rates(tuple(each)) for name, each in rates.items()}
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


@dataclass(frozen=True)
class Alone:
    """The result of a function that ran in a process of its own, its time and its peak memory."""

    value: Any
    seconds: float
    peak_gib: float


def _call(
    function: Callable[..., Any], connection: Connection, settings: Mapping[str, Any]
) -> None:
    connection.send(function(**settings))


def unshared(process: psutil.Process, *, until: Callable[[], bool]) -> int:
    """Watch a process until it is done, and return its peak private memory in bytes.

    What is mapped from a file can be dropped at any time; what is private cannot, and counts.
    """
    peak = 0
    while not until():
        with contextlib.suppress(psutil.NoSuchProcess):
            memory = process.memory_info()
            peak = max(peak, memory.rss - getattr(memory, "shared", 0))
        time.sleep(0.05)
    return peak


def alone(function: Callable[..., Any], **settings: Any) -> Alone:
    """Run `function` in a fresh process; its time has Python's start and all imports in it.

    Raises:
        RuntimeError: if it fails.

    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    began = time.perf_counter()
    process = context.Process(target=_call, args=(function, theirs, settings))
    process.start()
    theirs.close()
    peak = unshared(psutil.Process(process.pid), until=ours.poll)
    try:
        value = ours.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} failed; see above") from None
    seconds = time.perf_counter() - began
    process.join()
    return Alone(value, seconds, peak / 2**30)
