"""The packed dataset that ingest writes.

A dataset is a folder of four files: `images.npy`, the pixels, read as a memory map; `index.csv`,
a line for each row of it; `near_duplicates.csv`, the pairs of rows that look alike; and
`dataset.json`, what holds for the whole set.

An image is known by its digest: that of its decoded pixels and its size, before it is resized or
its colour mode changed. It stays the same under another file name, in another archive or folder,
and whatever `image_size` and `color_mode` the image is packed in. Duplicates and leaks are images
with the same digest. Near-duplicates look alike but for a mirror, a shift, light or a format; a
split is drawn by digests and keeps them on one side.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from emotion_detection.console import UserError
from emotion_detection.paths import DATASET

IMAGES_FILE = "images.npy"
INDEX_FILE = "index.csv"
NEAR_FILE = "near_duplicates.csv"
SUMMARY_FILE = "dataset.json"
INDEX_COLUMNS = ("row", "file", "class", "given", "split", "digest", "group", "near_group")
SPLITS = ("train", "validation", "test")
ColorMode = Literal["grayscale", "rgb"]
CHANNELS: dict[ColorMode, int] = {"grayscale": 1, "rgb": 3}
DIGEST_BYTES = 16
IMAGE_DIGESTS = (
    f"the first {DIGEST_BYTES} bytes of the SHA-256 of an image's size and decoded pixels, before "
    "it is resized or its colour mode changed; images with the same digest form a group"
)
"""What `dataset.json` says of the digests in `index.csv`; a dataset with others is refused."""
# As sets of faces name their classes. Without neutral and calm, which other sets may have too.
EMOTIONS = {
    *("anger", "contempt", "disgust", "fear", "happiness", "joy", "sadness", "surprise"),
    *("angry", "contemptuous", "disgusted", "fearful", "happy", "sad", "surprised"),
}

SYNTHETIC_NOTICE = (
    "this model has learnt from synthetic faces only: what it says of a photo means nothing; train "
    "on photos first"
)

# File names are bytes on Linux, and need not be UTF-8: this carries any of them there and back.
_TEXT_ERRORS = "surrogateescape"


@dataclass(frozen=True)
class BadFile:
    """A file of the source that was left out of the dataset."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Packed images and their index. Rows run by split, class as the set gives it, and file name.

    `classes` is sorted. The test split is the source's own, or a part of its train split where
    `test_is_cut`. Validation images are there where the source has its own; otherwise they are
    drawn from train when a stage needs them.
    """

    images: np.ndarray  # (N, H, W, C) uint8, a read-only memory map
    files: list[str]  # path of each image inside the source, posix
    labels: np.ndarray  # (N,) int64, into `classes`
    classes: tuple[str, ...]
    splits: np.ndarray  # (N,) int64, into `SPLITS`
    digests: list[str]  # hex, of each image as decoded, before resizing; see above
    groups: np.ndarray  # (N,) int64: images with the same digest share a group
    near_groups: np.ndarray  # (N,) int64: and near-duplicates too; equal to `groups` if not sought
    digest: str  # hex, of the whole set: see `set_digest`
    source: str  # name of the folder or zip it was read from
    test_is_cut: bool
    bad_files: tuple[BadFile, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)  # files that are in no row, by reason
    dropped_leaks: int = 0  # train images that were left out since they are also in test
    synthetic: bool = False  # drawn by a program, no photographs
    relabelled: Mapping[int, int] = field(default_factory=dict)  # corrected rows: label they had
    corrections: Mapping[str, int] = field(default_factory=dict)  # see `corrections.Corrected`
    pixels: str = ""  # hex SHA-256 of the file of packed images, as ingest wrote it

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def given(self) -> np.ndarray:
        """Return the labels that the set gives, before any correction: (N,) int64."""
        labels = self.labels.copy()
        labels[list(self.relabelled)] = list(self.relabelled.values())
        return labels

    @property
    def image_size(self) -> tuple[int, int]:
        """Return height and width of every image."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def channels(self) -> int:
        """Return 1 for grey images, 3 for colour."""
        return self.images.shape[3]

    @property
    def color_mode(self) -> ColorMode:
        """Return what the channels are."""
        return "grayscale" if self.channels == CHANNELS["grayscale"] else "rgb"

    @property
    def is_train(self) -> np.ndarray:
        """Return which rows are train images, (N,) bool."""
        return self.splits == SPLITS.index("train")

    @property
    def is_validation(self) -> np.ndarray:
        """Return which rows are validation images of the source's own, (N,) bool."""
        return self.splits == SPLITS.index("validation")

    @property
    def is_test(self) -> np.ndarray:
        """Return which rows are test images, (N,) bool."""
        return self.splits == SPLITS.index("test")

    @property
    def notes(self) -> dict[str, str]:
        """What the file of a model of these images has to say of them, by `saving.NOTES`."""
        return {"notice": SYNTHETIC_NOTICE} if self.synthetic else {}

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images by split, then class; validation only where it has some."""
        table = np.bincount(
            self.splits * len(self.classes) + self.labels,
            minlength=len(SPLITS) * len(self.classes),
        ).reshape(len(SPLITS), -1)
        return {
            split: dict(zip(self.classes, row.tolist(), strict=True))
            for split, row in zip(SPLITS, table, strict=True)
            if split != "validation" or row.any()
        }

    @property
    def leaked(self) -> np.ndarray:
        """Return which rows are test images that are in train too, under any label: (N,) bool."""
        return self.is_test & np.isin(self.groups, self.groups[self.is_train])

    @property
    def near_leaked(self) -> np.ndarray:
        """Return which rows are test images of which train has a near-duplicate: (N,) bool."""
        return self.is_test & np.isin(self.near_groups, self.near_groups[self.is_train])

    @property
    def near_sets(self) -> int:
        """Return the number of near groups with more than one digest."""
        pairs = np.unique(np.stack([self.near_groups, self.groups], axis=1), axis=0)
        return int(np.count_nonzero(np.bincount(pairs[:, 0]) > 1))

    @property
    def drawn_by(self) -> list[str]:
        """Return what a split is drawn by, see `drawn_by`."""
        return drawn_by(self.digests, self.near_groups)

    @property
    def leaked_validation(self) -> np.ndarray:
        """Return which rows are validation images that are in train too: (N,) bool."""
        return self.is_validation & np.isin(self.groups, self.groups[self.is_train])

    @classmethod
    def open(cls, folder: str | Path = DATASET) -> "Dataset":
        """Return the dataset that ingest wrote to `folder`; the pixels stay on disk until used.

        Raises:
            UserError: if one of its files is missing, damaged or at odds with the others.

        """
        folder = Path(folder)
        with _reading(folder / SUMMARY_FILE) as path:
            summary = json.loads(path.read_text("utf-8", errors=_TEXT_ERRORS))
            _expect(
                summary["image_digests"] == IMAGE_DIGESTS, "its images are known by other digests"
            )
            classes = tuple(summary["classes"])
            shape = (*summary["image_size"], CHANNELS[summary["color_mode"]])
            rest: dict[str, Any] = {
                "classes": classes,
                "digest": str(summary["digest"]),
                "source": str(summary["source"]),
                "test_is_cut": bool(summary["test_is_cut"]),
                "bad_files": tuple(BadFile(*entry) for entry in summary["bad_files"]),
                "left_out": {str(k): int(v) for k, v in summary["left_out"].items()},
                "dropped_leaks": int(summary["dropped_leaks"]),
                "synthetic": bool(summary["synthetic"]),
                "corrections": {str(k): int(v) for k, v in summary["corrections"].items()},
                "pixels": str(summary["pixels"]),
            }
        with _reading(folder / INDEX_FILE) as path:
            index = _read_index(path, classes)
            labels, splits, digests = index["labels"], index["splits"], index["digests"]
            given = index.pop("given")
            changed = np.flatnonzero(given != labels).tolist()
            rest["relabelled"] = {row: int(given[row]) for row in changed}
            _expect(
                set_digest(digests, labels, splits, classes, shape, given) == rest["digest"],
                f"its digest is not the one in {SUMMARY_FILE}",
            )
        with _reading(folder / IMAGES_FILE) as path:
            images = np.lib.format.open_memmap(path, mode="r")
            _expect(images.dtype == np.uint8, f"it holds {images.dtype}, not uint8")
            _expect(
                images.shape == (len(labels), *shape),
                f"its shape is {images.shape}, not {(len(labels), *shape)}",
            )
        return cls(images=images, **index, **rest)

    def write_index(self, folder: Path) -> None:
        """Write everything but the pixels to `folder`, beside the images that lie there."""
        path = folder / INDEX_FILE
        with path.open("w", encoding="utf-8", errors=_TEXT_ERRORS, newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(INDEX_COLUMNS)
            given = self.given
            for row, name in enumerate(self.files):
                class_name = self.classes[self.labels[row]]
                split = SPLITS[self.splits[row]]
                groups = (self.groups[row], self.near_groups[row])
                names = (name, class_name, self.classes[given[row]], split)
                writer.writerow((row, *names, self.digests[row], *groups))
        summary = {
            "source": self.source,
            "digest": self.digest,
            "image_digests": IMAGE_DIGESTS,
            "image_size": self.image_size,
            "color_mode": self.color_mode,
            "classes": self.classes,
            "counts": self.counts,
            "test_is_cut": self.test_is_cut,
            "bad_files": [[bad.path, bad.reason] for bad in self.bad_files],
            "left_out": dict(self.left_out),
            "dropped_leaks": self.dropped_leaks,
            "corrections": dict(self.corrections),
            "synthetic": self.synthetic,
            "pixels": _file_digest(folder / IMAGES_FILE),
        }
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        (folder / SUMMARY_FILE).write_text(text, "utf-8", errors=_TEXT_ERRORS, newline="\n")


def drawn_by(digests: Sequence[str], near_groups: np.ndarray) -> list[str]:
    """Return what a split is drawn by: of each image, the least digest of its near group."""
    least: dict[int, str] = {}
    for group, digest in zip(near_groups.tolist(), digests, strict=True):
        least[group] = min(digest, least.get(group, digest))
    return [least[group] for group in near_groups.tolist()]


def write_near_pairs(folder: Path, rows: np.ndarray, scores: np.ndarray) -> None:
    """Write the pairs of near-duplicates, (P, 2) int64 rows with their correlations, (P,)."""
    with (folder / NEAR_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("row", "other_row", "correlation"))
        for (row, other), score in zip(rows.tolist(), scores.tolist(), strict=True):
            writer.writerow((row, other, f"{score:.4f}"))


def read_near_pairs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of near-duplicates, (P, 2) int64 rows, and their correlations, (P,).

    Raises:
        UserError: if the file is missing or damaged.

    """
    with _reading(folder / NEAR_FILE) as path:
        table = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
        table = table.reshape(-1, 3)
        return table[:, :2].astype(np.int64), table[:, 2]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def are_emotions(classes: Sequence[str]) -> bool:
    """Return whether a class is named as an emotion, so that the images show faces."""
    return any(EMOTIONS & set(re.findall("[a-z]+", name.casefold())) for name in classes)


def set_digest(
    digests: Sequence[str],
    labels: np.ndarray,
    splits: np.ndarray,
    classes: Sequence[str],
    shape: Sequence[int],
    given: np.ndarray | None = None,
) -> str:
    """Return the hex digest of a whole set: which images, in which split, class and shape.

    `digests` are those of the images, `splits` (N,) int64 into `SPLITS`, and `shape` is what they
    are packed in, (H, W, C). `given` (N,) int64 are the labels before corrections, by default the
    same. File names and the order of rows make no difference, so the same
    pictures in a zip or a folder, on any machine, have the same digest; packed in another size or
    colour mode they have another.
    """
    lines = sorted(
        f"{SPLITS[split]} {classes[label]} {digest}"
        + (f" {classes[before]}" if before != label else "")
        for digest, label, split, before in zip(
            digests, labels, splits, labels if given is None else given, strict=True
        )
    )
    content = json.dumps([list(shape), lines])
    return hashlib.blake2b(content.encode(), digest_size=DIGEST_BYTES).hexdigest()


def group_by_digest(digests: Sequence[str]) -> np.ndarray:
    """Return (N,) int64 group numbers, equal where the digests are, in order of occurrence."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(digest, len(numbers)) for digest in digests], np.int64)


def _read_index(path: Path, classes: Sequence[str]) -> dict[str, Any]:
    """Return the columns of an index by the names of a `Dataset`'s fields."""
    with path.open(encoding="utf-8", errors=_TEXT_ERRORS, newline="") as file:
        rows = csv.reader(file)
        _expect(next(rows, None) == list(INDEX_COLUMNS), "its columns are not the index's")
        table = list(rows)
    _expect(
        [row[0] for row in table] == [str(row) for row in range(len(table))],
        "its rows are not numbered 0, 1, 2, ...",
    )
    label_of = {name: label for label, name in enumerate(classes)}
    digests = [row[5] for row in table]
    groups = group_by_digest(digests)
    _expect(
        [row[6] for row in table] == [str(group) for group in groups],
        "its groups are not those of its digests",
    )
    near_groups = np.array([int(row[7]) for row in table], np.int64)
    pairs = np.unique(np.stack([groups, near_groups], axis=1), axis=0)
    _expect(
        len(pairs) == len(np.unique(groups))
        and np.array_equal(near_groups, group_by_digest(list(map(str, near_groups)))),
        "its near groups do not fit its groups",
    )
    return {
        "files": [row[1] for row in table],
        "labels": np.array([label_of[row[2]] for row in table], np.int64),
        "given": np.array([label_of[row[3]] for row in table], np.int64),
        "splits": np.array([SPLITS.index(row[4]) for row in table], np.int64),
        "digests": digests,
        "groups": groups,
        "near_groups": near_groups,
    }


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    """Raise what goes wrong in reading a file of the dataset as a UserError that names it."""
    remedy = "write the dataset anew with `dvc repro ingest`"
    try:
        yield path
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {remedy}") from error
    except Exception as error:  # NumPy lets nearly any exception out of a malformed header.
        raise UserError(f"{path} is damaged ({error!r}): {remedy}") from error


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
