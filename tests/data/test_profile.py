"""The profile of a dataset: its measures, tables and samples."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest

from emotion_detection.data import profile
from emotion_detection.data.dataset import SPLITS, BadFile, Dataset, group_by_digest, set_digest
from emotion_detection.data.profile import SAMPLES_PER_CLASS, Duplicate, measure, sample_rows

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
    splits = np.array([SPLITS.index(row.split) for row in rows])
    digests = [str(row.picture) for row in rows]
    return Dataset(
        images=images,
        files=[f"{row.split}/{row.class_name}/{number}.png" for number, row in enumerate(rows)],
        labels=labels,
        classes=CLASSES,
        splits=splits,
        digests=digests,
        groups=group_by_digest(digests),
        near_groups=group_by_digest(digests),
        digest=set_digest(digests, labels, splits, CLASSES, images.shape[1:]),
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
    found = measure(make(ROWS))
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
    metrics = measure(make(rows)).metrics()
    assert metrics["duplicates"] == {
        "train": 0,
        "test": 0,
        "leaked_test_images": 0,
        "near_duplicate_sets": 0,
        "near_leaked_test_images": 0,
        "leaked_validation_images": 0,
        "dropped_leaks": 0,
        "conflicting_labels": 0,
    }
    assert metrics["imbalance_ratio"] == 1


def test_the_metrics_are_the_counts() -> None:
    metrics = measure(make(ROWS)).metrics()
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
    train = dataset.images[dataset.is_train].astype(np.float64) / 255
    found = measure(dataset)
    assert found.pixel_mean == pytest.approx(train.mean(), rel=1e-12)
    assert found.pixel_std == pytest.approx(train.std(), rel=1e-9)


def test_blank_images_are_named() -> None:
    dataset = make(ROWS)
    dataset.images[2] = 255
    dataset.images[7] = 0
    dataset.images[7, 0, 0] = 1  # a speck
    dataset.images[8] = np.where(np.indices((6, 5)).sum(axis=0)[..., None] % 2, 100, 104)  # faint
    assert measure(dataset).blank_files == ("train/angry/2.png", "test/happy/7.png")
    coloured = make(ROWS, channels=3)
    coloured.images[0] = (200, 0, 30)
    coloured.images[1, ..., :2] = 0  # in one channel alone there is something
    assert measure(coloured).blank_files == ("train/angry/0.png",)


def test_the_tables_list_classes_duplicates_and_bad_files() -> None:
    tables = measure(make(ROWS)).tables()
    header, rows = tables["class_balance"]
    assert header == ("split", "class", "images")
    assert rows == [
        ("train", "angry", 4),
        ("train", "happy", 2),
        ("test", "angry", 2),
        ("test", "happy", 3),
    ]
    header, rows = tables["duplicates"]
    assert header == ("group", "file", "class", "split")
    assert len(rows) == 10
    assert rows[3] == (0, "test/angry/8.png", "angry", "test")
    assert tables["bad_files"] == (("file", "reason"), [("train/angry/x.png", "empty file")])


def test_the_summary_counts_duplicates_leaks_and_conflicts() -> None:
    found = measure(make(ROWS))
    assert found.summary() == (
        "3 exact duplicates in train, 1 in test; 2 test images are also in train, and 2 with "
        "near-duplicates; 2 pictures have two labels"
    )
    dropped = dataclasses.replace(found, dropped_leaks=1234).summary()
    assert "(ingest left out 1,234 train images that are also in test)" in dropped


def test_samples_are_train_images_of_every_class_drawn_by_the_seed() -> None:
    rows = [Row("train", name, seed) for seed, name in enumerate(CLASSES * 30)]
    rows += [Row("train", "happy", 99), Row("test", "angry", 100)]
    dataset = make(rows[1:])
    chosen = sample_rows(dataset, 0)
    assert not dataset.is_test[chosen].any()
    assert np.bincount(dataset.labels[chosen]).tolist() == [SAMPLES_PER_CLASS] * 2
    assert len(set(chosen.tolist())) == len(chosen)
    assert chosen.tolist() == sample_rows(dataset, 0).tolist()
    assert chosen.tolist() != sample_rows(dataset, 1).tolist()
