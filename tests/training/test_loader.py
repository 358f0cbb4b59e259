"""Batches for training and evaluation."""

import dataclasses
from itertools import islice
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.settings.params import Augment, Train
from emotion_detection.training.loader import (
    evaluation_batches,
    resized_size,
    steps_per_epoch,
    training_batches,
)

BATCH = 20  # which does not divide the 72 training rows
PLAIN = Train(batch_size=BATCH)
CHANGED = Augment(rotation=10, horizontal_flip=True)
AUGMENTED = Train(batch_size=BATCH, augment=CHANGED)
Batch = tuple[np.ndarray, ...]
Epoch = list[Batch]


def rows_of(batches: list[Batch]) -> np.ndarray:
    """Read the row off each image's first pixel."""
    return np.concatenate([batch[0][:, 0, 0, 0] for batch in batches]).astype(np.int64)


def epochs_of(stream: tf.data.Dataset, epochs: int, steps: int = 4) -> list[Epoch]:
    taken = iter(stream.as_numpy_iterator())
    return [list(islice(taken, steps)) for _ in range(epochs)]


def same(first: list[Epoch], second: list[Epoch]) -> bool:
    """Return whether two streams have the same batches to the last bit."""
    pairs = [
        (mine, its)
        for epochs in zip(first, second, strict=True)
        for batches in zip(*epochs, strict=True)
        for mine, its in zip(*batches, strict=True)
    ]
    return all(np.array_equal(mine, its) for mine, its in pairs)


def test_an_epoch_has_as_many_steps_as_its_images_need() -> None:
    assert [steps_per_epoch(72, size) for size in (1, 20, 36, 71, 72)] == [72, 4, 2, 2, 1]


def test_every_epoch_visits_every_row_once_in_an_order_of_its_own(
    toy: Dataset, rows: Split
) -> None:
    epochs = epochs_of(training_batches(toy, rows.train, PLAIN, seed=1), 3)
    orders = [rows_of(epoch).tolist() for epoch in epochs]
    for epoch, order in zip(epochs, orders, strict=True):
        assert sorted(order) == rows.train.tolist()
        # None is small: it would move the weights as far as a full one.
        assert [len(labels) for _, labels in epoch] == [18, 18, 18, 18]
    assert len({tuple(order) for order in orders}) == 3
    assert sorted(orders[0]) != orders[0]


def test_images_and_labels_are_those_of_their_rows(toy: Dataset, rows: Split) -> None:
    for images, labels in epochs_of(training_batches(toy, rows.train, PLAIN, seed=1), 1)[0]:
        numbers = images[:, 0, 0, 0]
        assert images.dtype == np.uint8
        assert labels.dtype == np.float32
        assert np.array_equal(images, toy.images[numbers])
        assert np.array_equal(labels, np.eye(3)[toy.labels[numbers]])


def test_the_seed_fixes_the_order(toy: Dataset, rows: Split) -> None:
    orders = [
        rows_of(epochs_of(training_batches(toy, rows.train, PLAIN, seed=seed), 1)[0]).tolist()
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


@pytest.mark.parametrize("settings", [PLAIN, AUGMENTED], ids=["plain", "augmented"])
def test_a_resumed_training_sees_what_an_uninterrupted_one_sees(
    toy: Dataset, rows: Split, settings: Train
) -> None:
    def stream(first_epoch: int) -> tf.data.Dataset:
        return training_batches(toy, rows.train, settings, seed=2**31 - 1, first_epoch=first_epoch)

    assert same(epochs_of(stream(0), 4)[2:], epochs_of(stream(2), 2))


def test_augmentation_differs_from_epoch_to_epoch_and_keeps_labels(toy: Dataset) -> None:
    settings = Train(batch_size=1, augment=CHANGED)
    epochs = epochs_of(training_batches(toy, np.array([7]), settings, seed=0), 5, steps=1)
    assert len({epoch[0][0].tobytes() for epoch in epochs}) == 5
    assert {int(epoch[0][1][0].argmax()) for epoch in epochs} == {int(toy.labels[7])}


def test_evaluation_gives_each_row_once_in_the_order_asked_for(toy: Dataset) -> None:
    wanted = np.array([50, 3, 99, 4, 4, 12, 0])
    batches = list(evaluation_batches(toy, wanted, 3).as_numpy_iterator())
    assert rows_of(batches).tolist() == wanted.tolist()
    assert np.concatenate([labels for _, labels in batches]).argmax(axis=1).tolist() == (
        toy.labels[wanted].tolist()
    )
    assert [len(labels) for _, labels in batches] == [2, 2, 3]


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
    stream = training_batches(watched, rows.train, PLAIN, seed=1)
    assert not images.reads
    epochs_of(stream, 1)
    list(evaluation_batches(watched, rows.test, BATCH).as_numpy_iterator())
    assert max(images.reads) <= BATCH
    # A few batches ahead of the training, not the whole stream.
    assert len(images.reads) < 20


def test_the_first_epochs_may_be_of_smaller_images(toy: Dataset, rows: Split) -> None:
    settings = Train(batch_size=BATCH, epochs=2, progressive_resizing=1)
    first, second = epochs_of(training_batches(toy, rows.train, settings, seed=1), 2)
    in_full = epochs_of(training_batches(toy, rows.train, PLAIN, seed=1), 2)
    assert resized_size(toy.image_size) == (11, 11)
    # Each small pixel is the mean of its area, which 16/11 pixels wide has parts of others.
    parts = np.zeros((11, 16))
    for small in range(11):
        begins, ends = small * 16 / 11, (small + 1) * 16 / 11
        for pixel in range(16):
            parts[small, pixel] = max(0, min(ends, pixel + 1) - max(begins, pixel)) * 11 / 16
    for (found, targets), (images, labels) in zip(first, in_full[0], strict=True):
        assert found.dtype == np.uint8
        areas = np.einsum("yh,xw,nhwc->nyxc", parts, parts, images)
        np.testing.assert_allclose(found, areas, atol=0.51)
        np.testing.assert_array_equal(targets, labels)
    assert same([second], in_full[1:])


def test_the_last_epochs_may_have_flips_and_whole_shifts_as_their_only_augmentation(
    toy: Dataset, rows: Split
) -> None:
    def epochs(**changes: Any) -> list[Epoch]:
        settings = Train(batch_size=BATCH, epochs=3, **changes)
        return epochs_of(training_batches(toy, rows.train, settings, seed=1), 3)

    full = CHANGED.model_copy(update={"random_erasing": 0.5, "shift": 0.2})
    flips_and_shifts = Augment(horizontal_flip=True, shift=0.2)
    found = epochs(augment=full, no_aug_epochs=1)
    heavy, light = epochs(augment=full), epochs(augment=flips_and_shifts)
    assert same(found, [*heavy[:2], light[2]])
    assert not same([heavy[2]], [light[2]])


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_class_weights_follow_the_inverse_frequency_and_have_a_mean_of_1(
    toy: Dataset, power: float
) -> None:
    labels = toy.labels[~toy.is_test]
    few = np.concatenate(
        [np.flatnonzero(labels == label)[:n] for label, n in enumerate((20, 5, 5))]
    )
    settings = Train(batch_size=30, class_weights=power)
    ((_, targets, weights),) = epochs_of(training_batches(toy, few, settings, seed=0), 1, 1)[0]
    assert weights.dtype == np.float32
    assert weights.mean() == pytest.approx(1)
    rare, common = (weights[targets[:, label] == 1] for label in (1, 0))
    np.testing.assert_allclose(rare[0] / common[0], 4**power, rtol=1e-5)
    assert len(set(rare)) == len(set(common)) == 1


def test_on_several_devices_each_has_images_of_every_batch(toy: Dataset, rows: Split) -> None:
    stream = training_batches(toy, rows.train, PLAIN, seed=1, replicas=2)
    parts = epochs_of(stream, 1, steps=8)[0]
    assert [len(images) for images, _ in parts] == [9] * 8
    whole = epochs_of(training_batches(toy, rows.train, PLAIN, seed=1), 1)[0]
    assert rows_of(parts).tolist() == rows_of(whole).tolist()
