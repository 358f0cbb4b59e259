"""Writing files whole or not at all."""

import contextlib
import csv
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target` that takes its place when the block ends well.

    The block may make a file or a folder there; after an exception `target` is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Inside a folder of its own, so that the name keeps the suffix that says the format.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        temporary = Path(scratch) / target.name
        yield temporary
        if target.is_dir():
            shutil.rmtree(target)
        temporary.replace(target)


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
