"""The measures of a dataset."""

from dataclasses import dataclass

import numpy as np
import pytest

from emotion_detection.data import profile
from emotion_detection.data.dataset import BadFile, Dataset, group_by_digest, set_digest
from emotion_detection.data.profile import Duplicate, profile

CLASSES = ("angry", "happy")


@dataclass
class Row:
    split: str
    class_name: str
    picture: int  # seeds the pixels: equal numbers are equal images


def make(rows: list[Row], channels: int = 1) -> Dataset:
    images = np.stack(
        [
            np.random.default_rng(row.picture).integers(0, 256, (6, 5, channels), np.uint8)
            for row in rows
        ]
    )
    labels = np.array([CLASSES.index(row.class_name) for row in rows])
    is_test = np.array([row.split == "test" for row in rows])
    digests = [str(row.picture) for row in rows]
    return Dataset(
        images=images,
        files=[f"{row.split}/{row.class_name}/{number}.png" for number, row in enumerate(rows)],
        labels=labels,
        classes=CLASSES,
        is_test=is_test,
        digests=digests,
        groups=group_by_digest(digests),
        digest=set_digest(digests, labels, is_test, CLASSES, images.shape[1:]),
        source="faces",
        test_is_cut=False,
        bad_files=(BadFile("train/angry/x.png", "empty file"),),
    )


ROWS = [
    Row("train", "angry", 1),
    Row("train", "angry", 1),
    Row("train", "angry", 1),
    Row("train", "angry", 2),
    Row("train", "happy", 2),
    Row("train", "happy", 3),
    Row("test", "angry", 4),
    Row("test", "happy", 4),
    Row("test", "angry", 1),
    Row("test", "happy", 3),
    Row("test", "happy", 5),
]


def test_duplicates_leaks_and_conflicts_are_counted_as_defined() -> None:
    found = profile(make(ROWS))
    assert found.train_duplicates == 3  # two copies of 1, one of 2
    assert found.test_duplicates == 1  # one copy of 4
    assert found.leaked_test_images == 2  # 1 and 3
    assert np.flatnonzero(make(ROWS).leaked).tolist() == [8, 9]
    assert found.conflicting_groups == 2  # 2 and 4
    assert [(row.group, row.file) for row in found.duplicates] == [
        (0, "train/angry/0.png"),
        (0, "train/angry/1.png"),
        (0, "train/angry/2.png"),
        (0, "test/angry/8.png"),
        (1, "train/angry/3.png"),
        (1, "train/happy/4.png"),
        (2, "train/happy/5.png"),
        (2, "test/happy/9.png"),
        (3, "test/angry/6.png"),
        (3, "test/happy/7.png"),
    ]
    assert found.duplicates[3] == Duplicate(0, "test/angry/8.png", "angry", "test")


def test_a_clean_set_has_none() -> None:
    rows = [Row("train", name, seed) for seed, name in enumerate(CLASSES * 3)]
    rows += [Row("test", name, seed + 10) for seed, name in enumerate(CLASSES)]
    metrics = profile(make(rows)).metrics()
    assert metrics["duplicates"] == {
        "train": 0,
        "test": 0,
        "leaked_test_images": 0,
        "dropped_leaks": 0,
        "conflicting_labels": 0,
    }
    assert metrics["imbalance_ratio"] == 1


def test_the_metrics_are_the_counts() -> None:
    metrics = profile(make(ROWS)).metrics()
    assert metrics["images"] == {"train": 6, "test": 5}
    assert metrics["classes"] == 2
    assert metrics["imbalance_ratio"] == 2
    assert metrics["bad_files"] == 1
    assert metrics["blank_images"] == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_measured_over_train_alone_in_pieces(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "CHUNK_BYTES", 200)
    dataset = make(ROWS, channels)
    train = dataset.images[~dataset.is_test].astype(np.float64) / 255
    found = profile(dataset)
    assert found.pixel_mean == pytest.approx(train.mean(), rel=1e-12)
    assert found.pixel_std == pytest.approx(train.std(), rel=1e-9)


def test_blank_images_are_named() -> None:
    dataset = make(ROWS)
    dataset.images[2] = 255
    dataset.images[7] = 0
    dataset.images[7, 0, 0] = 1  # a speck
    dataset.images[8] = np.where(np.indices((6, 5)).sum(axis=0)[..., None] % 2, 100, 104)  # faint
    assert profile(dataset).blank_files == ("train/angry/2.png", "test/happy/7.png")
    coloured = make(ROWS, channels=3)
    coloured.images[0] = (200, 0, 30)
    coloured.images[1, ..., :2] = 0  # in one channel alone there is something
    assert profile(coloured).blank_files == ("train/angry/0.png",)
