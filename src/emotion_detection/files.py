"""Files written whole or not at all, locks, and what Git leaves alone."""

import contextlib
import csv
import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ruamel.yaml import YAML

from emotion_detection.console import UserError, log

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a disk that has no room."""

MAX_YAML_BYTES, MAX_YAML_VALUES = 2**18, 50_000
"""Of a YAML file that is read; params.yaml has 8 kB and 200 values, dvc.lock not much more."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")

_FULL = tuple(map(os.strerror, FULL))


@contextlib.contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that takes its place when the block ends well.

    The block makes a file or a folder there; after an exception `target` is as it was. What a
    killed process left there is removed by the next one.

    Raises:
        UserError: if the disk is full.

    """
    # A folder, so that what is made in it has the name and suffix of the target.
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
        reason = is_full(error)
        if reason is None:
            raise
        raise UserError(f"{target}: {reason}; free some space and run this again") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_full(error: Exception) -> str | None:
    """Return the system's words for a full disk if `error` says that it is."""
    # HDF5 reports it without an errno, and at times as a RuntimeError.
    return next((full for full in _FULL if full in str(error)), None)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock file `path` while the block lasts; yields False if somebody else holds it.

    With `wait` the block begins once the lock is free. The system frees it when its process ends,
    however that ends. The file stays.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def remove(folder: Path) -> None:
    """Remove a folder: at no moment is a part of it taken for the whole."""
    gone = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def cell(value: Any) -> Any:
    """Return `value` as it is written to a CSV file that people open.

    A spreadsheet would run text that begins as a formula, so such text gets an apostrophe before it
    (OWASP, "CSV injection"). Numbers stay as they are.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write `rows` under `header` as CSV; names of files that are not UTF-8 keep their bytes.

    Each value is written as `cell` says.
    """
    with (
        atomic(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(cell, header))
        writer.writerows(map(cell, row) for row in rows)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the sections of the YAML file `path` as DVC reads them (YAML 1.2, ruamel.yaml).

    Raises:
        UserError: if it cannot be read or holds no sections.

    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_YAML_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    """Return the sections of the YAML `text`, which is that of `path`, as `read_yaml` does.

    Raises:
        UserError: if it is not YAML, holds no sections, or is larger than any settings are.

    """
    if len(text) > MAX_YAML_BYTES:
        raise UserError(f"{path}: larger than {MAX_YAML_BYTES // 2**10} KiB")
    try:
        values = YAML(typ="safe").load(text)
    except Exception as error:  # ruamel lets nearly any exception out of a malformed value.
        where = " ".join(str(error).split())
        raise UserError(f"{path}: not YAML ({where})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no sections")
    # Aliases may repeat a value without end, in few bytes of text.
    inside, count = [values], 0
    while inside:
        value = inside.pop()
        count += 1
        if isinstance(value, dict):
            inside += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            inside += value
        if count > MAX_YAML_VALUES:
            raise UserError(
                f"{path}: holds more than {MAX_YAML_VALUES:,} values, those of an alias (*name) "
                "counted each time"
            )
    return values


def keep_out_of_git(path: Path) -> None:
    """Have Git ignore `path` if it lies below this folder and Git neither tracks nor ignores it.

    An experiment of DVC's commits all that a stage depends on, unless Git ignores it: of a data set
    in the project that would be every image. The line goes into .git/info/exclude, which is this
    clone's own.
    """
    here = Path.cwd()
    inside = Path(os.path.relpath(path))
    if inside.is_absolute() or inside.parts[:1] in ((), ("..",)):
        return
    # Git knows nothing below a symbolic link.
    inside = next((above for above in reversed(inside.parents) if above.is_symlink()), inside)
    untracked = ("ls-files", "--others", "--exclude-standard", "--directory")
    if not git(*untracked, "--no-empty-directory", "--", f":(literal){inside.as_posix()}"):
        return
    exclude = here / os.fsdecode(git("rev-parse", "--git-path", "info/exclude"))
    prefix = git("rev-parse", "--show-prefix")
    pattern = re.sub(rb"([\\*?\[ ])", rb"\\\1", prefix + os.fsencode(inside.as_posix()))
    exclude.parent.mkdir(exist_ok=True)
    with exclude.open("ab") as file:
        file.write(
            b"\n# The source of a data set, which no commit should hold\n/" + pattern + b"\n"
        )
    log.info("%s: Git ignores it from here on (by a line in %s)", path, os.path.relpath(exclude))


def git(*arguments: str) -> bytes:
    """Return what Git prints, nothing where there is no Git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return b""
    return done.stdout.removesuffix(b"\n")
