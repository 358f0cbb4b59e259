"""What a dataset is like: balance, brightness, duplicates, leaks, conflicts and blanks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from emotion_detection.console import progress
from emotion_detection.data.dataset import SPLITS, Dataset

# Less than one of the 256 levels: no eye or network sees anything in such an image.
BLANK_DEVIATION = 1.0
CHUNK_BYTES = 16 * 2**20

DUPLICATE_COLUMNS = ("group", "file", "class", "split")


class Duplicate(NamedTuple):
    """An image of which the dataset holds another one with the same pixels, of the same group."""

    group: int
    file: str
    class_name: str
    split: str


@dataclass(frozen=True)
class Profile:
    """The measures of a dataset. An image is a duplicate of another if all pixels are equal."""

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
    """Test images whose pixels are also those of a train image, whatever the labels."""

    dropped_leaks: int
    """Train images that ingest left out since their pixels are also in test."""

    conflicting_groups: int
    """Sets of identical images, within or across the splits, that bear more than one label."""

    blank_files: tuple[str, ...]
    """Images of one colour: in each channel, pixels deviate by less than one of 256 levels."""

    bad_files: int
    """Files that ingest left out."""

    duplicates: tuple[Duplicate, ...]
    """Every image that is not the only one with its pixels, by group."""

    def metrics(self) -> dict[str, object]:
        """Return the numbers as nested JSON, as `dvc metrics` shows them."""
        return {
            "images": {split: sum(self.counts[split].values()) for split in SPLITS},
            "classes": len(self.counts["train"]),
            "imbalance_ratio": self.imbalance_ratio,
            "pixel": {"mean": self.pixel_mean, "std": self.pixel_std},
            "duplicates": {
                "train": self.train_duplicates,
                "test": self.test_duplicates,
                "leaked_test_images": self.leaked_test_images,
                "dropped_leaks": self.dropped_leaks,
                "conflicting_labels": self.conflicting_groups,
            },
            "blank_images": len(self.blank_files),
            "bad_files": self.bad_files,
        }


def profile(dataset: Dataset) -> Profile:
    """Measure a dataset, reading its pixels once, in pieces."""
    train = ~dataset.is_test
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
        test_duplicates=_surplus(dataset.groups[~train]),
        leaked_test_images=int(dataset.leaked.sum()),
        dropped_leaks=dataset.dropped_leaks,
        conflicting_groups=_conflicting_groups(dataset),
        blank_files=tuple(dataset.files[row] for row in blank),
        bad_files=len(dataset.bad_files),
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
            split=SPLITS[int(dataset.is_test[row])],
        )


def sample_rows(dataset: Dataset, per_class: int, seed: int) -> np.ndarray:
    """Choose up to `per_class` train rows of every class at random, (n,) int64."""
    rng = np.random.default_rng(seed)
    train = rng.permutation(np.flatnonzero(~dataset.is_test))
    return np.concatenate(
        [train[dataset.labels[train] == label][:per_class] for label in range(len(dataset.classes))]
    )


def conflicts(dataset: Dataset) -> list[tuple[np.ndarray, list[str]]]:
    """Return each picture that bears more than one label, (H, W, C) uint8, with its classes."""
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
