"""Writing files whole or not at all, and telling whether something is still the same."""

import contextlib
import csv
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target` that takes its place when the block ends well.

    The block makes a file or a folder there; after an exception `target` is as it was. What a
    killed process left behind goes with the next one's.
    """
    # A folder, so that what is made in it bears the right name and suffix.
    scratch = target.with_name(f".{target.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        temporary = scratch / target.name
        yield temporary
        if target.is_dir():
            target.rename(scratch / "replaced")
        temporary.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write `rows` under `header` as CSV."""
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def fingerprint(values: Mapping[str, Any], code: Sequence[ModuleType]) -> str:
    """Give 16 hex digits that differ where `values` (JSON) or the source of `code` do."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for module in code:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]
