"""Writing files whole or not at all, and telling whether something is still the same."""

import contextlib
import csv
import errno
import hashlib
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from emotion_detection.console import UserError

_FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))


@contextlib.contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Return a temporary path beside `target` that takes its place when the block ends well.

    The block makes a file or a folder there; after an exception `target` is as it was. What a
    killed process left behind goes with the next one's.

    Raises:
        UserError: if the disk is full.

    """
    # A folder, so that what is made in it bears the right name and suffix.
    scratch = target.with_name(f".{target.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        temporary = scratch / target.name
        yield temporary
        if target.is_dir():
            target.rename(scratch / "replaced")
        temporary.replace(target)
    except (OSError, RuntimeError) as error:
        # HDF5 has no number for it, and at times no OSError either.
        reason = next((full for full in _FULL if full in str(error)), None)
        if reason is None:
            raise
        raise UserError(f"{target}: {reason}; free some space and run this again") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock file `path` while the block lasts; gives False where somebody else does.

    With `wait` it is waited for. The system lets go of it when its process ends, however that ends.
    """
    with path.open("a+b") as file:
        yield _lock(file.fileno(), wait) and _is_open_still(path, file.fileno())


def _lock(number: int, wait: bool) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(number, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _is_open_still(path: Path, number: int) -> bool:
    """Tell whether who had the lock before did not remove the file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(number))
    except OSError:
        return False


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write `rows` under `header` as CSV; bytes of file names that are no text stay as they are."""
    with (
        atomic(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def fingerprint(
    values: Mapping[str, Any], code: Sequence[ModuleType | type | Callable[..., Any]]
) -> str:
    """Return 16 hex digits that differ where `values` (JSON) or the files that `code` is in do."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for item in code:
        digest.update(Path(inspect.getfile(item)).read_bytes())
    return digest.hexdigest()[:16]
