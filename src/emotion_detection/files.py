"""Files written whole or not at all, and locks."""

import contextlib
import csv
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from emotion_detection.console import UserError

_FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))


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
        # HDF5 reports a full disk without an errno, and at times as a RuntimeError.
        reason = next((full for full in _FULL if full in str(error)), None)
        if reason is None:
            raise
        raise UserError(f"{target}: {reason}; free some space and run this again") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write `rows` under `header` as CSV; names of files that are not UTF-8 keep their bytes."""
    with (
        atomic(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the sections of the YAML file `path` as DVC reads them (YAML 1.2, ruamel.yaml).

    Raises:
        UserError: if it cannot be read or holds no sections.

    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    """Return the sections of the YAML `text`, which is that of `path`, as `read_yaml` does.

    Raises:
        UserError: if it is not YAML or holds no sections.

    """
    try:
        values = YAML(typ="safe").load(text)
    except (YAMLError, RecursionError, ValueError) as error:
        where = " ".join(str(error).split())
        raise UserError(f"{path}: not YAML ({where})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no sections")
    return values
