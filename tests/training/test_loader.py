"""Batches for training and evaluation."""

import dataclasses
from itertools import islice
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from emotion_detection.data.dataset import Dataset, Split
from emotion_detection.params import Augment, LowResolution
from emotion_detection.training.loader import evaluation_batches, steps_per_epoch, training_batches

BATCH = 20  # which does not divide the 72 training rows
FLIPS = Augment(
    rotation=10,
    width_shift=0,
    height_shift=0,
    shear=0,
    zoom=0,
    horizontal_flip=True,
    fill_mode="nearest",
    random_erasing=0,
    mixup=0,
    cutmix=0,
)
Batch = tuple[np.ndarray, np.ndarray]
Epoch = list[Batch]


def rows_of(batches: list[Batch]) -> np.ndarray:
    """Read the row off each image's first pixel."""
    return np.concatenate([images[:, 0, 0, 0] for images, _ in batches]).astype(np.int64)


def epochs_of(stream: tf.data.Dataset, epochs: int, steps: int = 4) -> list[Epoch]:
    taken = iter(stream.as_numpy_iterator())
    return [list(islice(taken, steps)) for _ in range(epochs)]


def test_an_epoch_has_a_step_for_its_last_smaller_batch() -> None:
    assert [steps_per_epoch(72, size) for size in (1, 20, 36, 71, 72)] == [72, 4, 2, 2, 1]


def test_every_epoch_visits_every_row_once_in_an_order_of_its_own(
    toy: Dataset, rows: Split
) -> None:
    epochs = epochs_of(training_batches(toy, rows.train, BATCH, seed=1), 3)
    orders = [rows_of(epoch).tolist() for epoch in epochs]
    for epoch, order in zip(epochs, orders, strict=True):
        assert sorted(order) == rows.train.tolist()
        assert [len(labels) for _, labels in epoch] == [20, 20, 20, 12]
    assert len({tuple(order) for order in orders}) == 3
    assert sorted(orders[0]) != orders[0]


def test_images_and_labels_are_those_of_their_rows(toy: Dataset, rows: Split) -> None:
    for images, labels in epochs_of(training_batches(toy, rows.train, BATCH, seed=1), 1)[0]:
        numbers = images[:, 0, 0, 0]
        assert images.dtype == np.uint8
        assert labels.dtype == np.float32
        assert np.array_equal(images, toy.images[numbers])
        assert np.array_equal(labels, np.eye(3)[toy.labels[numbers]])


def test_the_seed_fixes_the_order(toy: Dataset, rows: Split) -> None:
    orders = [
        rows_of(epochs_of(training_batches(toy, rows.train, BATCH, seed=seed), 1)[0]).tolist()
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


@pytest.mark.parametrize("augmentation", [None, FLIPS], ids=["plain", "augmented"])
def test_a_training_taken_up_later_sees_what_an_unbroken_one_sees(
    toy: Dataset, rows: Split, augmentation: Augment | None
) -> None:
    def stream(first_epoch: int) -> tf.data.Dataset:
        return training_batches(
            toy,
            rows.train,
            BATCH,
            seed=2**31 - 1,
            augmentation=augmentation,
            first_epoch=first_epoch,
        )

    unbroken = epochs_of(stream(0), 4)
    for expected, found in zip(unbroken[2:], epochs_of(stream(2), 2), strict=True):
        for (images, labels), (other_images, other_labels) in zip(expected, found, strict=True):
            assert np.array_equal(images, other_images)
            assert np.array_equal(labels, other_labels)


def test_augmentation_differs_from_epoch_to_epoch_and_keeps_labels(toy: Dataset) -> None:
    one = np.array([7])
    epochs = epochs_of(training_batches(toy, one, 1, seed=0, augmentation=FLIPS), 5, steps=1)
    assert len({epoch[0][0].tobytes() for epoch in epochs}) == 5
    assert {int(epoch[0][1][0].argmax()) for epoch in epochs} == {int(toy.labels[7])}


def test_augmentation_that_is_off_changes_nothing(toy: Dataset, rows: Split) -> None:
    off = FLIPS.model_copy(update={"rotation": 0.0, "horizontal_flip": False})
    stream = training_batches(toy, rows.train, BATCH, seed=1, augmentation=off)
    for images, _ in epochs_of(stream, 1)[0]:
        assert np.array_equal(images, toy.images[images[:, 0, 0, 0]])


def test_evaluation_gives_each_row_once_in_the_order_asked_for(toy: Dataset) -> None:
    wanted = np.array([50, 3, 99, 4, 4, 12, 0])
    batches = list(evaluation_batches(toy, wanted, 3).as_numpy_iterator())
    assert rows_of(batches).tolist() == wanted.tolist()
    assert np.concatenate([labels for _, labels in batches]).argmax(axis=1).tolist() == (
        toy.labels[wanted].tolist()
    )
    assert [len(labels) for _, labels in batches] == [3, 3, 1]


class Watched(np.ndarray):
    """Remembers how many images were read at a time."""

    reads: list[int]

    def __getitem__(self, key: Any) -> Any:
        found = np.asarray(super().__getitem__(key))
        self.reads.append(len(found))
        return found


def test_images_are_read_a_batch_at_a_time(toy: Dataset, rows: Split) -> None:
    images = toy.images.view(Watched)
    images.reads = []
    watched = dataclasses.replace(toy, images=images)
    stream = training_batches(watched, rows.train, BATCH, seed=1)
    assert not images.reads
    epochs_of(stream, 1)
    list(evaluation_batches(watched, rows.test, BATCH).as_numpy_iterator())
    assert max(images.reads) == BATCH
    # A few batches ahead of the training, not the whole stream.
    assert len(images.reads) < 20


def test_the_first_epochs_may_be_of_smaller_images(toy: Dataset, rows: Split) -> None:
    low = LowResolution(epochs=1, scale=0.5)
    stream = training_batches(toy, rows.train, BATCH, seed=1, progressive_resizing=low)
    first, second = epochs_of(stream, 2)
    in_full, _ = epochs_of(training_batches(toy, rows.train, BATCH, seed=1), 2)
    for (small, targets), (images, same) in zip(first, in_full, strict=True):
        assert small.dtype == np.uint8
        areas = images.reshape(len(images), 8, 2, 8, 2, 3).mean(axis=(2, 4))
        np.testing.assert_allclose(small, areas, atol=0.5)
        np.testing.assert_array_equal(targets, same)
    assert {images.shape[1:] for images, _ in second} == {(16, 16, 3)}


def test_the_last_epochs_may_be_augmented_lightly(toy: Dataset, rows: Split) -> None:
    def epochs(light_from: int | None, **changes: Any) -> list[Epoch]:
        augmentation = FLIPS.model_copy(update={"mixup": 0.5} | changes)
        stream = training_batches(
            toy, rows.train, BATCH, seed=1, augmentation=augmentation, light_from=light_from
        )
        return epochs_of(stream, 3)

    found, heavy = epochs(2), epochs(None)
    lightly = epochs(None, rotation=0.0, mixup=0.0)
    for epoch, same in zip(found, [*heavy[:2], lightly[2]], strict=True):
        for batch, expected in zip(epoch, same, strict=True):
            np.testing.assert_array_equal(batch[0], expected[0])
            np.testing.assert_array_equal(batch[1], expected[1])
    assert not np.array_equal(heavy[2][0][0], lightly[2][0][0])
