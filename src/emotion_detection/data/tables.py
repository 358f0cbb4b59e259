"""Tables in a source: a CSV that labels image files, or that holds the pixels itself.

The first is a column of file names beside one of labels; the second is FER-2013 as Kaggle's
challenge had it, `fer2013.csv` or `icml_face_data.csv`: emotion, pixels and Usage.
"""

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt
from pathlib import Path, PurePosixPath

from PIL import Image

from emotion_detection.console import UserError, progress
from emotion_detection.data.image import FORMATS
from emotion_detection.data.layout import (
    OUTSIDE,
    Arrangement,
    Item,
    Names,
    SplitName,
    finished,
)
from emotion_detection.data.source import ZIP_DAMAGE, Listing, Source, some

FER2013 = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""The classes of `fer2013.csv` in the order of its numbers."""

FILE_COLUMNS = (
    "file",
    "filename",
    "file_name",
    "image",
    "image_name",
    "path",
    "filepath",
    "id",
    "name",
)
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "emotion", "category", "target")
SPLIT_COLUMNS = ("split", "usage", "set", "subset", "partition")

TABLES = (".csv", ".tsv")


def pixel_table(listing: Listing, source: Source) -> str | None:
    """Return the path of the table that holds pixels, if there is one."""
    for name in _tables(listing):
        if "pixels" in _header(source, name):
            return name
    return None


def unpack_pixels(source: Source, name: str, folder: Path, names: Names) -> None:
    """Write the images of a table of pixels to `folder` as `<split>/<class>/<Usage>-<row>.png`.

    A row whose pixels cannot be read becomes a file that is no image, and so a bad file.

    Raises:
        UserError: if a column is missing, or a number of the column emotion or a value of Usage is
            not known.

    """
    with _rows(source, name) as (header, rows):
        for column in ("emotion", "pixels"):
            if column not in header:
                raise UserError(f"ingest.source: {name} has pixels, but no column {column!r}")
        emotion, pixels = header.index("emotion"), header.index("pixels")
        usage = header.index("usage") if "usage" in header else None
        bar = progress(rows, description=f"read {name}", unit="images")
        for number, row in enumerate(bar, start=2):
            use = "Training" if usage is None else row[usage].strip()
            split = _split_of(use, name, number, names)
            if split is None:
                continue
            try:
                class_name = FER2013[int(row[emotion])]
            except (ValueError, IndexError) as error:
                raise UserError(
                    f"ingest.source: {name}, line {number}: emotion is no number from 0 to 6"
                ) from error
            # A value may hold a path, and the file would land there.
            origin = re.sub("[^A-Za-z0-9]", "", use)
            path = folder / split / class_name / f"{origin}-{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_png(row[pixels]))


def _png(text: str) -> bytes:
    """Return a square image as PNG, or the text itself where it is none."""
    try:
        pixels = bytes(map(int, text.split()))
        side = isqrt(len(pixels))
        if side == 0 or side * side != len(pixels):
            return text.encode()
        buffer = io.BytesIO()
        Image.frombytes("L", (side, side), pixels).save(buffer, "PNG")
        return buffer.getvalue()
    except ValueError:
        return text.encode()


def arrange_labels(
    listing: Listing, source: Source, path: Path, names: Names
) -> Arrangement | None:
    """Return the images that a CSV labels, all as train where it has no column of splits.

    Files are named by their path, their name or their name without its suffix. None if no table
    has a column of files and one of labels.

    Raises:
        UserError: if there is more than one such table, or a row names no file or more than one.

    """
    found = []
    for name in _tables(listing):
        header = _header(source, name)
        file = next((c for c in FILE_COLUMNS if c in header), None)
        label = next((c for c in LABEL_COLUMNS if c in header), None)
        if file is not None and label is not None:
            found.append((name, file, label))
    if not found:
        return None
    if len(found) > 1:
        raise UserError(
            f"ingest.source: {path} has more than one table of labels: "
            f"{some([name for name, *_ in found])}; leave one of them in it"
        )
    ((table, file_column, label_column),) = found
    images = _Files(listing)
    items: list[Item] = []
    with _rows(source, table) as (header, rows):
        split_column = next((c for c in SPLIT_COLUMNS if c in header), None)
        for number, row in enumerate(rows, start=2):
            split: SplitName | None = "train"
            if split_column is not None:
                split = _split_of(row[header.index(split_column)].strip(), table, number, names)
            image = images.find(row[header.index(file_column)].strip(), table, number)
            if split is not None:
                items.append(Item(split, row[header.index(label_column)].strip(), image))
    if double := [name for name, count in Counter(i.path for i in items).items() if count > 1]:
        raise UserError(f"ingest.source: {table} labels a file more than once: {some(double)}")
    rest = len(images) - len(items)
    return finished(items, Counter({OUTSIDE: rest} if rest > 0 else {}), names)


class _Files:
    """The image files of a listing by the names that a table may use."""

    def __init__(self, listing: Listing) -> None:
        suffixes = {f".{name.lower()}" for name in FORMATS} | {".jpg", ".tif", ".pgm"}
        paths = [
            p for p in map("/".join, listing.files) if PurePosixPath(p).suffix.lower() in suffixes
        ]
        self._by_name: dict[str, list[str]] = {}
        for path in paths:
            pure = PurePosixPath(path)
            for name in {path, pure.name, pure.stem, path.removesuffix(pure.suffix)}:
                self._by_name.setdefault(name, []).append(path)
        self._count = len(paths)

    def __len__(self) -> int:
        return self._count

    def find(self, name: str, table: str, line: int) -> str:
        """Return the path of the file that a row names."""
        name = name.replace("\\", "/").removeprefix("./")
        paths = self._by_name.get(name) or self._by_name.get(name.rpartition("/")[2], [])
        if len(paths) != 1:
            what = "is no image file of the source" if not paths else f"may be {some(paths)}"
            raise UserError(f"ingest.source: {table}, line {line}: {name!r} {what}")
        return paths[0]


def _split_of(value: str, table: str, line: int, names: Names) -> SplitName | None:
    split = names.split(value)
    if split is None and value.casefold() not in {name.casefold() for name in names.splits}:
        raise UserError(
            f"ingest.source: {table}, line {line}: {value!r} is no split that is known; say which "
            f"it is by ingest.splits ({{{value}: validation}}, train, test, or null)"
        )
    return split


def _tables(listing: Listing) -> list[str]:
    names = sorted(listing.files, key=lambda parts: (len(parts), parts))
    return ["/".join(parts) for parts in names if parts[-1].lower().endswith(TABLES)][:50]


def _header(source: Source, name: str) -> list[str]:
    with _rows(source, name) as (header, _):
        return header


@contextmanager
def _rows(source: Source, name: str) -> Iterator[tuple[list[str], Iterator[list[str]]]]:
    """Yield a table's header, in lower case, and the iterator of its rows, which are as long.

    Raises:
        UserError: if it is damaged.

    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        binary = source.open(name)
    except ZIP_DAMAGE as error:
        raise UserError(f"ingest.source: {name} cannot be read: {error}") from error
    with binary:
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
        delimiter = "\t" if name.lower().endswith(".tsv") else ","
        reader = csv.reader(text, delimiter=delimiter)

        def lines() -> Iterator[list[str]]:
            try:
                yield from reader
            except (csv.Error, *ZIP_DAMAGE) as error:
                raise UserError(
                    f"ingest.source: {name}, line {reader.line_num}: {error}"
                ) from error

        inside = lines()
        header = [column.strip().casefold() for column in next(inside, [])]
        yield header, (row + [""] * (len(header) - len(row)) for row in inside if row)
