"""The packed dataset that ingest writes, and its split into train, validation and test.

A dataset is a folder of three files: `images.npy`, the pixels, read as a memory map; `index.csv`,
a line for each row of it; and `dataset.json`, what holds for the whole set.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from emotion_detection.console import UserError

IMAGES_FILE = "images.npy"
INDEX_FILE = "index.csv"
SUMMARY_FILE = "dataset.json"
INDEX_COLUMNS = ("row", "file", "class", "split", "digest", "group")
SPLITS = ("train", "test")
ColorMode = Literal["grayscale", "rgb"]
CHANNELS: dict[ColorMode, int] = {"grayscale": 1, "rgb": 3}
DIGEST_BYTES = 16
# As sets of faces name them; neutral and calm may be anything's, and never stand alone.
EMOTIONS = {
    *("anger", "contempt", "disgust", "fear", "happiness", "joy", "sadness", "surprise"),
    *("angry", "contemptuous", "disgusted", "fearful", "happy", "sad", "surprised"),
}

# File names are bytes on Linux, and need not be UTF-8: this carries any of them there and back.
_TEXT_ERRORS = "surrogateescape"


@dataclass(frozen=True)
class BadFile:
    """A file of the source that was left out of the dataset."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Packed images and their index. Rows run by split (train first), class and file name.

    `classes` is sorted. The test split is the source's own, or a part of its train split where
    `test_is_cut`.
    """

    images: np.ndarray  # (N, H, W, C) uint8, a read-only memory map
    files: list[str]  # path of each image inside the source, posix
    labels: np.ndarray  # (N,) int64, into `classes`
    classes: tuple[str, ...]
    is_test: np.ndarray  # (N,) bool
    digests: list[str]  # of each image's pixels, hex
    groups: np.ndarray  # (N,) int64: images with identical pixels share a group
    digest: str  # of the whole set: pixels, labels and splits, hex
    source: str  # name of the folder or zip it was read from
    test_is_cut: bool
    bad_files: tuple[BadFile, ...]
    dropped_leaks: int = 0  # train images left out since their pixels are also in test

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of every image."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return self.images.shape[3]

    @property
    def color_mode(self) -> ColorMode:
        """What the channels are."""
        return "grayscale" if self.channels == CHANNELS["grayscale"] else "rgb"

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of images by split, then class."""
        return {
            split: {
                name: int(np.count_nonzero((self.labels == label) & (self.is_test == is_test)))
                for label, name in enumerate(self.classes)
            }
            for split, is_test in zip(SPLITS, (False, True), strict=True)
        }

    @property
    def leaked(self) -> np.ndarray:
        """Which test images have the pixels of a train image, whatever the labels: (N,) bool."""
        return self.is_test & np.isin(self.groups, self.groups[~self.is_test])

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Open the dataset that ingest wrote to `folder`; the pixels stay on disk until used.

        Raises UserError if one of its files is missing, damaged or at odds with the others.
        """
        with _reading(folder / SUMMARY_FILE) as path:
            summary = json.loads(path.read_text("utf-8", errors=_TEXT_ERRORS))
            classes = tuple(summary["classes"])
            shape = (*summary["image_size"], CHANNELS[summary["color_mode"]])
            digest, source = str(summary["digest"]), str(summary["source"])
            test_is_cut = bool(summary["test_is_cut"])
            bad_files = tuple(BadFile(*entry) for entry in summary["bad_files"])
            dropped_leaks = int(summary["dropped_leaks"])
        with _reading(folder / INDEX_FILE) as path:
            with path.open(encoding="utf-8", errors=_TEXT_ERRORS, newline="") as file:
                rows = csv.reader(file)
                _expect(next(rows, None) == list(INDEX_COLUMNS), "its columns are not the index's")
                table = list(rows)
            number = {name: label for label, name in enumerate(classes)}
            is_test_of = {"train": False, "test": True}
            _expect(
                [row[0] for row in table] == [str(row) for row in range(len(table))],
                "its rows are not numbered 0, 1, 2, ...",
            )
            files = [row[1] for row in table]
            labels = np.array([number[row[2]] for row in table], np.int64)
            is_test = np.array([is_test_of[row[3]] for row in table], bool)
            digests = [row[4] for row in table]
            groups = np.array([int(row[5]) for row in table], np.int64)
            _expect(
                digest == set_digest(digests, labels, is_test, classes, shape),
                f"its digest is not the one in {SUMMARY_FILE}",
            )
        with _reading(folder / IMAGES_FILE) as path:
            images = np.lib.format.open_memmap(path, mode="r")
            _expect(images.dtype == np.uint8, f"it holds {images.dtype}, not uint8")
            _expect(
                images.shape == (len(files), *shape),
                f"its shape is {images.shape}, not {(len(files), *shape)}",
            )
        return cls(
            images=images,
            files=files,
            labels=labels,
            classes=classes,
            is_test=is_test,
            digests=digests,
            groups=groups,
            digest=digest,
            source=source,
            test_is_cut=test_is_cut,
            bad_files=bad_files,
            dropped_leaks=dropped_leaks,
        )

    def write_index(self, folder: Path) -> None:
        """Write everything but the pixels to `folder`, beside the images that lie there."""
        path = folder / INDEX_FILE
        with path.open("w", encoding="utf-8", errors=_TEXT_ERRORS, newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(INDEX_COLUMNS)
            for row, name in enumerate(self.files):
                class_name = self.classes[self.labels[row]]
                split = SPLITS[int(self.is_test[row])]
                writer.writerow((row, name, class_name, split, self.digests[row], self.groups[row]))
        summary = {
            "source": self.source,
            "digest": self.digest,
            "image_size": self.image_size,
            "color_mode": self.color_mode,
            "classes": self.classes,
            "counts": self.counts,
            "test_is_cut": self.test_is_cut,
            "bad_files": [[bad.path, bad.reason] for bad in self.bad_files],
            "dropped_leaks": self.dropped_leaks,
        }
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        (folder / SUMMARY_FILE).write_text(text, "utf-8", errors=_TEXT_ERRORS, newline="\n")


def are_emotions(classes: Sequence[str]) -> bool:
    """Tell whether any of the classes is named as an emotion, so that the images show faces."""
    return any(EMOTIONS & set(re.findall("[a-z]+", name.casefold())) for name in classes)


def set_digest(
    digests: Sequence[str],
    labels: np.ndarray,
    is_test: np.ndarray,
    classes: Sequence[str],
    shape: Sequence[int],
) -> str:
    """Return the hex digest of a whole set: which pixels lie in which split under which class.

    `shape` is an image's (H, W, C). File names and the order of rows make no difference, so the
    same pictures in a zip or a folder, on any machine, have the same digest.
    """
    lines = sorted(
        f"{SPLITS[int(test)]} {classes[label]} {digest}"
        for digest, label, test in zip(digests, labels, is_test, strict=True)
    )
    content = json.dumps([list(shape), lines])
    return hashlib.blake2b(content.encode(), digest_size=DIGEST_BYTES).hexdigest()


def group_by_digest(digests: Sequence[str]) -> np.ndarray:
    """Return (N,) int64 group numbers, equal where the digests are, in order of occurrence."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(digest, len(numbers)) for digest in digests], np.int64)


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of a dataset by use: (n,) int64 arrays, sorted.

    `selected_on_test` says that choices made on `validation` are made on the test images themselves.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    selected_on_test: bool


def split(
    dataset: Dataset, *, validation: Literal["holdout", "test"], fraction: float, seed: int
) -> Split:
    """Split a dataset into train, validation and test rows.

    `holdout` sets a stratified `fraction` of the train rows aside for validation; images with the
    same pixels never straddle the two. `test` validates on the test rows, as published notebooks
    on these sets do: its scores are comparable with theirs, and too good.

    Raises UserError if `split.fraction` is not within 0 and 1, or if a class is too small to be in
    both train and validation.
    """
    train = np.flatnonzero(~dataset.is_test)
    test = np.flatnonzero(dataset.is_test)
    if validation == "test":
        return Split(train, test, test, selected_on_test=True)
    if validation != "holdout":
        raise UserError(f"split.validation must be holdout or test, not {validation!r}")
    held = cut(
        dataset.labels[train],
        dataset.groups[train],
        dataset.classes,
        fraction=fraction,
        seed=seed,
        key="split.fraction",
        sides="train and validation",
    )
    return Split(train[~held], train[held], test, selected_on_test=False)


def cut(
    labels: np.ndarray,
    groups: np.ndarray,
    classes: Sequence[str],
    *,
    fraction: float,
    seed: int,
    key: str,
    sides: str,
) -> np.ndarray:
    """Return `stratified_group_mask`, sure that every class is on both sides of it.

    `key`, the parameter that `fraction` comes from, and `sides` ("train and test") are for the
    UserError raised when the fraction is not within 0 and 1 or a class is too small.
    """
    if not 0 < fraction < 1:
        raise UserError(f"{key} must lie between 0 and 1, not {fraction}")
    mask = stratified_group_mask(labels, groups, fraction, seed)
    for label, name in enumerate(classes):
        own = labels == label
        if mask[own].all() or not mask[own].any():
            distinct = len(np.unique(groups[own]))
            raise UserError(
                f"class {name!r} is too small to be in both {sides} ({key}): it has "
                f"{np.count_nonzero(own)} images there, {distinct} of them different; "
                "add images to it, or remove the class"
            )
    return mask


def stratified_group_mask(
    labels: np.ndarray, groups: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Choose about `fraction` of the rows of every class, at random, taking only whole groups.

    `labels` and `groups` are (N,) integers; returns (N,) bool. The same arguments choose the same
    rows on every platform. A group may carry several labels; it then counts towards each. A class
    without such groups has, if it has two groups or more, at least one on either side; its share
    otherwise misses `fraction` by at most half its smallest group left out.
    """
    _, group_of = np.unique(groups, return_inverse=True)
    n_groups, n_classes = int(group_of.max()) + 1, int(labels.max()) + 1
    members = np.bincount(group_of * n_classes + labels, minlength=n_groups * n_classes)
    members = members.reshape(n_groups, n_classes)
    totals = members.sum(axis=0)
    target = np.maximum(np.clip(np.rint(fraction * totals), 1, totals - 1), 0).astype(np.int64)

    # Random order, not largest first: else every large group would land on the chosen side.
    order = np.random.default_rng(seed).permutation(n_groups)
    chosen = np.zeros(n_groups, bool)
    missing = target.copy()
    for group in order:
        if (members[group] <= missing).all():
            chosen[group] = True
            missing -= members[group]

    # What is still missing is smaller than any group left; one more may yet come closer.
    for label in np.flatnonzero(missing):
        rest = totals - target + missing
        candidates = order[~chosen[order] & (members[order, label] > 0)]
        fits = ((members[candidates] < rest) | (members[candidates] == 0)).all(axis=1)
        candidates = candidates[fits]
        if not len(candidates):
            continue
        distance = np.abs(missing - members[candidates]).sum(axis=1)
        best = int(distance.argmin())
        is_empty = missing[label] == target[label]
        if is_empty or distance[best] < np.abs(missing).sum():
            chosen[candidates[best]] = True
            missing -= members[candidates[best]]
    return chosen[group_of]


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    """Turn what goes wrong in reading a file of the dataset into a UserError that names it."""
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


def part(dataset: Dataset, rows: Split, images: int | None, seed: int) -> Split:
    """Return a stratified part of `rows` with about `images` train rows; `None` gives all.

    Validation shrinks in proportion, so that scoring an epoch stays cheap beside training it.
    """
    if images is None or images >= len(rows.train):
        return rows
    rng = np.random.default_rng(seed)
    share = images / len(rows.train)
    train = _share(dataset, rows.train, share, rng)
    validation = _share(dataset, rows.validation, share, rng)
    return Split(train, validation, rows.test, selected_on_test=rows.selected_on_test)


def sampled(dataset: Dataset, rows: np.ndarray, images: int | None, seed: int) -> np.ndarray:
    """Return a stratified part of `rows` (n,) int64, sorted, of about `images`; `None` gives all."""
    if images is None or images >= len(rows):
        return rows
    return _share(dataset, rows, images / len(rows), np.random.default_rng(seed))


def _share(
    dataset: Dataset, rows: np.ndarray, share: float, rng: np.random.Generator
) -> np.ndarray:
    taken = []
    for label in range(len(dataset.classes)):
        members = rng.permutation(rows[dataset.labels[rows] == label])
        taken.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(taken))
