"""Packed images -> batches for Keras, read from the memory map as they are needed."""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from emotion_detection.data.dataset import Dataset
from emotion_detection.settings.params import Train
from emotion_detection.training.augment import augment, without_interpolation

RESIZED = 2 / 3
"""Height and width of an image in the epochs of train.progressive_resizing, of its full size."""

# What is mapped here branches by tf.cond; to look for other branches in it takes AutoGraph seconds.
as_it_is = tf.autograph.experimental.do_not_convert


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of batches in an epoch; `batch_size` images are in the largest."""
    return math.ceil(images / batch_size)


def evaluation_batches(
    dataset: Dataset, rows: np.ndarray, batch_size: int, *, replicas: int = 1
) -> tf.data.Dataset:
    """Return the images of `rows` once, in their order, with their labels.

    Batches are ((b, H, W, C) uint8, (b, classes) float32, one-hot), and come in `replicas` parts.
    """
    numbers = _batches(tf.constant(rows.astype(np.int64)), batch_size, replicas)
    return without_autotune(numbers.map(_reader(dataset)).prefetch(2))


def training_batches(
    dataset: Dataset,
    rows: np.ndarray,
    settings: Train,
    *,
    seed: int,
    first_epoch: int = 0,
    replicas: int = 1,
) -> tf.data.Dataset:
    """Return the images of `rows` without end, each epoch in an order of its own.

    Batches are ((b, H, W, C) uint8, (b, classes) float32, one-hot), augmented, and with a third
    member, weights (b,) float32, where `settings.class_weights` is on.

    An epoch's order and augmentation depend on `seed` and the epoch alone, so a training resumed
    at `first_epoch` sees what an uninterrupted one would have seen.
    """
    rows = rows.astype(np.int64)

    @as_it_is
    def shuffled(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(
            tf.constant(rows), seed=tf.stack([tf.constant(seed, tf.int64), epoch])
        )
        batches = _batches(order, settings.batch_size, replicas)
        return batches.enumerate().map(lambda batch, numbers: (epoch, batch, numbers))

    read = _reader(dataset)
    change = _augmenter(settings)
    small = resized_size(dataset.image_size)
    weights = _class_weights(dataset, rows, settings.class_weights)

    @as_it_is
    def load(epoch: tf.Tensor, batch: tf.Tensor, numbers: tf.Tensor) -> tuple[tf.Tensor, ...]:
        images, targets = read(numbers)
        images = change(images, epoch, tf.stack([seed + epoch * 2**32, batch]))
        if settings.progressive_resizing:
            images = tf.cond(
                epoch < settings.progressive_resizing,
                lambda: resized(images, small),
                lambda: images,
            )
        if weights is None:
            return images, targets
        return images, targets, tf.linalg.matvec(targets, weights)

    epochs = tf.data.Dataset.counter(first_epoch)
    return without_autotune(epochs.flat_map(shuffled).map(load, num_parallel_calls=2).prefetch(4))


def _augmenter(settings: Train) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """Return what changes the images of an epoch by seeds."""
    last = without_interpolation(settings.augment)

    def change(images: tf.Tensor, epoch: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        if not settings.no_aug_epochs:
            return augment(images, settings.augment, seeds)
        return tf.cond(
            epoch < settings.epochs - settings.no_aug_epochs,
            lambda: augment(images, settings.augment, seeds),
            lambda: augment(images, last, seeds),
        )

    return change


def _class_weights(dataset: Dataset, rows: np.ndarray, power: float) -> np.ndarray | None:
    """Return a weight per class (classes,) float32 whose mean over `rows` is 1; None for power 0.

    Keras's own `class_weight` does not reach a batch that is spread over several devices.
    """
    if power == 0:
        return None
    counts = np.bincount(dataset.labels[rows], minlength=len(dataset.classes))
    weights = 1 / counts**power
    return (weights * len(rows) / (weights * counts).sum()).astype(np.float32)


def _batches(numbers: tf.Tensor, batch_size: int, replicas: int) -> tf.data.Dataset:
    # Of one size, but for one image: a small last batch would move the weights and the statistics
    # as far as a full one, and leave a replica without an image.
    images = int(numbers.shape[0])
    parts = steps_per_epoch(images, batch_size) * replicas
    return tf.data.Dataset.range(parts).map(
        lambda part: numbers[part * images // parts : (part + 1) * images // parts]
    )


def resized_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width in pixels that progressive resizing gives images of `size`."""
    height, width = (max(1, round(side * RESIZED)) for side in size)
    return height, width


def resized(images: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Return `images` (N, H, W, C) uint8 at a smaller `size`, each pixel the mean of its area."""
    return tf.cast(tf.round(tf.image.resize(images, size, method="area")), tf.uint8)


def without_autotune(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Return `batches` without tf.data's tuner, whose thread sleeps in steps that double.

    A pass over the data would end only with the step it is in, at worst in twice its time.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)


def _reader(dataset: Dataset) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    shape, classes = dataset.images.shape[1:], len(dataset.classes)

    def gather(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return dataset.images[numbers], one_hot(dataset.labels[numbers], classes)

    @as_it_is
    def read(numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        types = (tf.uint8, tf.float32)
        images, wanted = tf.numpy_function(gather, [numbers], types, stateful=False)
        images.set_shape((None, *shape))
        wanted.set_shape((None, classes))
        return images, wanted

    return read


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return (N, classes) float32, 1 at each of `labels` (N,) int64 and 0 elsewhere."""
    return np.eye(classes, dtype=np.float32)[labels]
