"""The profile of a dataset: balance, brightness, duplicates, leaks, conflicts and blanks."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from emotion_detection.console import log, progress
from emotion_detection.data.dataset import SPLITS, BadFile, Dataset
from emotion_detection.data.splits import random_order

SAMPLES_PER_CLASS = 10
# Below one of the 256 levels there is nothing to see in an image, for a person or a network.
BLANK_DEVIATION = 1.0
CHUNK_BYTES = 16 * 2**20

Table = tuple[tuple[str, ...], list[tuple[object, ...]]]
"""The header and the rows of a CSV file."""


class Duplicate(NamedTuple):
    """An image that the dataset holds more than once: a row of `duplicates.csv`."""

    group: int
    file: str
    class_name: str
    split: str


@dataclass(frozen=True)
class Profile:
    """The measures of a dataset. Two images are duplicates if their digests are equal."""

    counts: dict[str, dict[str, int]]
    """Number of images by split, then class."""

    imbalance_ratio: float
    """Images of the largest class over those of the smallest, in train."""

    pixel_mean: float
    """Mean over all pixels and channels of the train images, on [0, 1]."""

    pixel_std: float
    """Standard deviation over all pixels and channels of the train images, on [0, 1]."""

    train_duplicates: int
    """Train images to remove so that train holds every picture once."""

    test_duplicates: int
    """Test images to remove so that test holds every picture once."""

    leaked_test_images: int
    """Test images that are also in train, whatever the labels."""

    near_leaked_test_images: int
    """Test images of which train has a near-duplicate or the image itself."""

    near_duplicate_sets: int
    """Sets of images that are near-duplicates, within or across the splits."""

    leaked_validation_images: int
    """Validation images of the source's own that are also in train, whatever the labels."""

    dropped_leaks: int
    """Train images that ingest left out since they are also in test."""

    conflicting_groups: int
    """Sets of duplicates, within or across the splits, that have more than one label."""

    blank_files: tuple[str, ...]
    """Images of one colour: in each channel, pixels deviate by less than one of 256 levels."""

    bad_files: tuple[BadFile, ...]
    """Files that ingest left out since they cannot be read."""

    left_out: dict[str, int]
    """Number of other files that ingest left out, by the reason."""

    corrections: dict[str, int]
    """What corrections of labels did, see `corrections.Corrected`; empty where there are none."""

    duplicates: tuple[Duplicate, ...]
    """Every image that has a duplicate, by group."""

    def metrics(self) -> dict[str, object]:
        """Return the numbers as nested JSON, as `dvc metrics` shows them."""
        return {
            "images": {split: sum(of_class.values()) for split, of_class in self.counts.items()},
            "classes": len(self.counts["train"]),
            "imbalance_ratio": self.imbalance_ratio,
            "pixel": {"mean": self.pixel_mean, "std": self.pixel_std},
            "duplicates": {
                "train": self.train_duplicates,
                "test": self.test_duplicates,
                "leaked_test_images": self.leaked_test_images,
                "near_duplicate_sets": self.near_duplicate_sets,
                "near_leaked_test_images": self.near_leaked_test_images,
                "leaked_validation_images": self.leaked_validation_images,
                "dropped_leaks": self.dropped_leaks,
                "conflicting_labels": self.conflicting_groups,
            },
            "blank_images": len(self.blank_files),
            "bad_files": len(self.bad_files),
            **({"corrections": self.corrections} if self.corrections else {}),
        }

    def tables(self) -> dict[str, Table]:
        """Return the tables of the report by the names of their files, without `.csv`."""
        balance = [
            (split, name, images)
            for split, of_class in self.counts.items()
            for name, images in of_class.items()
        ]
        return {
            "class_balance": (("split", "class", "images"), [*balance]),
            "duplicates": (("group", "file", "class", "split"), [*self.duplicates]),
            "left_out": (("reason", "files"), self._reasons()),
            "bad_files": (("file", "reason"), [(bad.path, bad.reason) for bad in self.bad_files]),
        }

    def _reasons(self) -> list[tuple[object, ...]]:
        """Return what was left out of the dataset, with the number of files, by the reason."""
        reasons = Counter(self.left_out)
        if self.dropped_leaks:
            reasons["a train image that is also in test"] = self.dropped_leaks
        if self.corrections.get("dropped"):
            reasons["a correction drops it"] = self.corrections["dropped"]
        reasons.update(f"bad: {bad.reason}" for bad in self.bad_files)
        return [*reasons.most_common()]

    def summary(self) -> str:
        """Return on one line what is to be known of duplicates and leaks."""
        dropped = (
            f" (ingest left out {self.dropped_leaks:,} train images that are also in test)"
            if self.dropped_leaks
            else ""
        )
        validation = (
            f"; {self.leaked_validation_images:,} validation images are also in train"
            if self.leaked_validation_images
            else ""
        )
        done = self.corrections
        corrected = (
            f"; {done['relabelled']:,} labels are corrected and {done['dropped']:,} images dropped"
            if done
            else ""
        )
        return (
            f"{self.train_duplicates:,} exact duplicates in train, {self.test_duplicates:,} in "
            f"test; {self.leaked_test_images:,} test images are also in train{dropped}, and "
            f"{self.near_leaked_test_images:,} with near-duplicates{validation}"
            f"; {self.conflicting_groups:,} pictures have two labels{corrected}"
        )


def measure(dataset: Dataset) -> Profile:
    """Return the profile of a dataset; its pixels are read once, in pieces."""
    log.info("profile: %s images, %d classes", f"{len(dataset.labels):,}", len(dataset.classes))
    train = dataset.is_train
    sizes = dataset.counts["train"].values()
    sums, squares = pixel_sums(dataset)
    height, width, channels = dataset.images.shape[1:]

    values = int(np.count_nonzero(train)) * height * width * channels
    mean = int(sums[train].sum()) / values
    variance = int(squares[train].sum()) / values - mean**2
    pixels = height * width
    deviations = np.sqrt(np.maximum(squares / pixels - (sums / pixels) ** 2, 0))
    blank = np.flatnonzero((deviations < BLANK_DEVIATION).all(axis=1))
    return Profile(
        counts=dataset.counts,
        imbalance_ratio=max(sizes) / min(sizes),
        pixel_mean=mean / 255,
        pixel_std=max(variance, 0.0) ** 0.5 / 255,
        train_duplicates=_surplus(dataset.groups[train]),
        test_duplicates=_surplus(dataset.groups[dataset.is_test]),
        leaked_test_images=int(dataset.leaked.sum()),
        near_leaked_test_images=int(dataset.near_leaked.sum()),
        near_duplicate_sets=dataset.near_sets,
        leaked_validation_images=int(dataset.leaked_validation.sum()),
        dropped_leaks=dataset.dropped_leaks,
        conflicting_groups=_conflicting_groups(dataset),
        blank_files=tuple(dataset.files[row] for row in blank),
        bad_files=dataset.bad_files,
        left_out=dict(dataset.left_out),
        corrections=dict(dataset.corrections),
        duplicates=tuple(_duplicates(dataset)),
    )


def pixel_sums(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and the sum of squares of each image's channels: (N, C) int64, exact."""
    flat = dataset.images.reshape(len(dataset), -1)
    channels = dataset.images.shape[-1]
    step = max(1, CHUNK_BYTES // flat.shape[1])
    sums = np.empty((len(flat), channels), np.int64)
    squares = np.empty_like(sums)
    starts = range(0, len(flat), step)
    for start in progress(starts, description="profile", unit="chunks", total=len(starts)):
        rows = slice(start, start + step)
        for channel in range(channels):
            chunk = flat[rows, channel::channels]
            sums[rows, channel] = chunk.sum(axis=1, dtype=np.int64)
            squares[rows, channel] = np.square(chunk, dtype=np.uint16).sum(axis=1, dtype=np.int64)
    return sums, squares


def _surplus(groups: np.ndarray) -> int:
    return len(groups) - len(np.unique(groups))


def _conflicting_groups(dataset: Dataset) -> int:
    pairs = np.unique(np.stack([dataset.groups, dataset.labels], axis=1), axis=0)
    return int(np.count_nonzero(np.bincount(pairs[:, 0]) > 1))


def _duplicates(dataset: Dataset) -> Iterator[Duplicate]:
    copies = np.bincount(dataset.groups)[dataset.groups]
    rows = np.flatnonzero(copies > 1)
    for row in rows[np.argsort(dataset.groups[rows], kind="stable")]:
        yield Duplicate(
            group=int(dataset.groups[row]),
            file=dataset.files[row],
            class_name=dataset.classes[dataset.labels[row]],
            split=SPLITS[dataset.splits[row]],
        )


def sample_rows(dataset: Dataset, seed: int) -> np.ndarray:
    """Return up to `SAMPLES_PER_CLASS` train rows of every class at random, (n,) int64.

    They run by class, and are drawn by the digests of the images, as the split is.
    """
    train = np.flatnonzero(dataset.is_train)
    train = train[random_order([dataset.digests[row] for row in train], seed)]
    return np.concatenate(
        [
            train[dataset.labels[train] == label][:SAMPLES_PER_CLASS]
            for label in range(len(dataset.classes))
        ]
    )


def nearest_misses(
    dataset: Dataset, pairs: np.ndarray, scores: np.ndarray
) -> list[tuple[np.ndarray, list[str]]]:
    """Return the near-duplicates that are least alike, beside each other, with their classes.

    `pairs` (P, 2) int64 are rows and `scores` (P,) their correlations, the highest first. A picture
    is (H, 2 W, C) uint8.
    """
    named = [dataset.classes[label] for label in dataset.labels]
    return [
        (
            np.concatenate([dataset.images[row], dataset.images[other]], axis=1),
            [f"{named[row]} | {named[other]}", f"{score:.3f}"],
        )
        for (row, other), score in zip(pairs[::-1].tolist(), scores[::-1].tolist(), strict=True)
    ]


def conflicts(dataset: Dataset) -> list[tuple[np.ndarray, list[str]]]:
    """Return each picture that has more than one label, (H, W, C) uint8, with its classes."""
    pairs = np.unique(np.stack([dataset.groups, dataset.labels], axis=1), axis=0)
    groups, labels_of = np.unique(pairs[:, 0], return_counts=True)
    first_row = dict(zip(dataset.groups[::-1].tolist(), range(len(dataset))[::-1], strict=True))
    return [
        (
            dataset.images[first_row[group]],
            [dataset.classes[label] for label in pairs[pairs[:, 0] == group, 1]],
        )
        for group in groups[labels_of > 1].tolist()
    ]
