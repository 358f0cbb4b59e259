"""What was trained of each trial, on disk: a search that changes does not train it again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emotion_detection.files import write_json
from emotion_detection.settings.sections import frozen
from emotion_detection.training.callbacks import Row

FILE = "record.json"


@dataclass(frozen=True)
class Record:
    """A trial: its settings by dotted name, its epochs, and whether it is trained to the end.

    `order` is its place among all trials, and `seconds` the time that it took.
    """

    settings: Mapping[str, Any]
    order: int
    rows: Sequence[Row]
    parameters: int
    seconds: float
    complete: bool


class Records:
    """The records of trials that share data, seed and the settings that are not searched."""

    def __init__(self, folder: Path) -> None:
        """Keep them in `folder`, which has a folder for each trial, with its checkpoints."""
        self._folder = folder

    def folder(self, name: str) -> Path:
        """Return the folder of the trial `name`."""
        return self._folder / name

    def load(self, name: str) -> Record | None:
        """Return the record of the trial `name`, None if there is none."""
        try:
            values = json.loads((self.folder(name) / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        settings = {key: frozen(value) for key, value in values["settings"].items()}
        return Record(**values | {"settings": settings})

    def save(self, name: str, record: Record) -> None:
        """Write `record` as that of the trial `name`."""
        write_json(self.folder(name) / FILE, asdict(record))

    def all(self) -> list[Record]:
        """Return all records, in their order."""
        names = sorted(path.parent.name for path in self._folder.glob(f"*/{FILE}"))
        found = [record for name in names if (record := self.load(name)) is not None]
        return sorted(found, key=lambda record: record.order)
