"""Packed images -> batches for Keras, read from the memory map as they are needed."""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from emotion_detection.data.dataset import Dataset
from emotion_detection.params import Augment, LowResolution
from emotion_detection.training.augment import augment, light

# What is mapped here branches by tf.cond; to look for other branches in it takes AutoGraph seconds.
as_it_is = tf.autograph.experimental.do_not_convert


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the batches in an epoch; the last may be smaller."""
    return math.ceil(images / batch_size)


def evaluation_batches(
    dataset: Dataset, rows: np.ndarray, batch_size: int, *, replicas: int = 1
) -> tf.data.Dataset:
    """Return the images of `rows` once, in their order, and what is to be said of them.

    Batches are ((b, H, W, C) uint8, (b, classes) float32, one-hot), and come in `replicas` parts.
    """
    numbers = _batches(tf.constant(rows.astype(np.int64)), batch_size, replicas)
    return untuned(numbers.map(_reader(dataset)).prefetch(2))


def training_batches(
    dataset: Dataset,
    rows: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    augmentation: Augment | None = None,
    light_from: int | None = None,
    progressive_resizing: LowResolution | None = None,
    first_epoch: int = 0,
    replicas: int = 1,
) -> tf.data.Dataset:
    """Return the images of `rows` for ever, each epoch in an order of its own.

    Batches are those of `evaluation_batches`, augmented.

    An epoch's order and augmentation depend on `seed` and the epoch alone, so that a training
    taken up at `first_epoch` sees what an unbroken one would have seen. Images are smaller in the
    first epochs where `progressive_resizing` says so, and from epoch `light_from` on, counted from 0,
    augmented lightly.
    """
    rows = rows.astype(np.int64)

    @as_it_is
    def shuffled(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(
            tf.constant(rows), seed=tf.stack([tf.constant(seed, tf.int64), epoch])
        )
        batches = _batches(order, batch_size, replicas)
        return batches.enumerate().map(lambda batch, numbers: (epoch, batch, numbers))

    read = _reader(dataset)
    change = None if augmentation is None else _augmenter(augmentation, light_from)

    @as_it_is
    def load(epoch: tf.Tensor, batch: tf.Tensor, numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, targets = read(numbers)
        if change is not None:
            seeds = tf.stack([seed + epoch * 2**32, batch])
            images, targets = change(images, targets, epoch, seeds)
        if progressive_resizing is not None and progressive_resizing.epochs:
            size = low_size(dataset.images.shape[1:3], progressive_resizing.scale)
            images = tf.cond(
                epoch < progressive_resizing.epochs, lambda: shrunk(images, size), lambda: images
            )
        return images, targets

    epochs = tf.data.Dataset.counter(first_epoch)
    return untuned(epochs.flat_map(shuffled).map(load, num_parallel_calls=2).prefetch(4))


def _augmenter(
    augmentation: Augment, light_from: int | None
) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Return what changes images and targets, as the epoch has it, by seeds."""
    lightly = light(augmentation)

    def change(
        images: tf.Tensor, targets: tf.Tensor, epoch: tf.Tensor, seeds: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if light_from is None:
            return augment(images, targets, augmentation, seeds)
        return tf.cond(
            epoch < light_from,
            lambda: augment(images, targets, augmentation, seeds),
            lambda: augment(images, targets, lightly, seeds),
        )

    return change


def _batches(numbers: tf.Tensor, batch_size: int, replicas: int) -> tf.data.Dataset:
    if replicas == 1:
        return tf.data.Dataset.from_tensor_slices(numbers).batch(batch_size)
    # As many batches, of one size: no replica may be left without an image by a small last one.
    images = int(numbers.shape[0])
    parts = steps_per_epoch(images, batch_size) * replicas
    return tf.data.Dataset.range(parts).map(
        lambda part: numbers[part * images // parts : (part + 1) * images // parts]
    )


def low_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the height and width of images of `size` at `scale`, in pixels."""
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def shrunk(images: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Return `images` (N, H, W, C) uint8 at a smaller `size`, each pixel the mean of its area."""
    return tf.cast(tf.round(tf.image.resize(images, size, method="area")), tf.uint8)


def untuned(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Leave nothing of `batches` to tf.data's tuner, whose thread sleeps in steps that double.

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
