"""Random changes of training images: batched, in the graph, reproducible."""

import math

import tensorflow as tf

from emotion_detection.settings.params import Augment


def augment(images: tf.Tensor, settings: Augment, seed: tf.Tensor) -> tf.Tensor:
    """Return `images` (N, H, W, C) uint8 changed at random, each in its own way.

    The same `seed` (2,) int64 gives the same changes.
    """
    if settings.horizontal_flip or any(
        (settings.rotation, settings.shift, settings.shear, settings.zoom)
    ):
        images = move(images, settings, seed)
    if settings.random_erasing:
        part = tf.random.experimental.stateless_fold_in(seed, 1)
        images = erase(images, settings.random_erasing, part)
    return images


def without_interpolation(settings: Augment) -> Augment:
    """Return of `settings` what leaves pixel values as they are: flips, shifts by whole pixels."""
    off = dict.fromkeys(("rotation", "shear", "zoom", "random_erasing"), 0.0)
    return settings.model_copy(update=off)


def move(images: tf.Tensor, settings: Augment, seed: tf.Tensor) -> tf.Tensor:
    """Return `images` (N, H, W, C) uint8 each through an affine map of its own, in one kernel.

    The ranges mean what they do for Keras's ImageDataGenerator, but zoom, which keeps the aspect.
    Shifts alone are by whole pixels, which blurs nothing. The same `seed` (2,) int gives the same
    maps.
    """
    count = tf.shape(images)[0]
    height, width = images.shape[1], images.shape[2]
    draws = tf.random.stateless_uniform((6, count), seed, -1.0, 1.0)
    angle = draws[0] * math.radians(settings.rotation)
    furthest_x, furthest_y = settings.shift * width, settings.shift * height
    if settings.rotation or settings.shear or settings.zoom:
        shift_x, shift_y = draws[1] * furthest_x, draws[2] * furthest_y
    else:
        # Each whole number up to the furthest is as likely.
        shift_x = tf.round(draws[1] * (math.floor(furthest_x) + 0.499))
        shift_y = tf.round(draws[2] * (math.floor(furthest_y) + 0.499))
    shear = draws[3] * math.radians(settings.shear)
    scale = 1.0 + draws[4] * settings.zoom
    mirror = (
        tf.where(draws[5] < 0, -1.0, 1.0) if settings.horizontal_flip else tf.ones_like(draws[5])
    )
    # Each row maps an output pixel to the input pixel it shows, about the image's centre.
    a, b = mirror * scale * tf.cos(angle), -mirror * scale * tf.sin(angle + shear)
    c, d = scale * tf.sin(angle), scale * tf.cos(angle + shear)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    zero = tf.zeros_like(a)
    transforms = tf.stack(
        [
            a,
            b,
            middle_x + shift_x - a * middle_x - b * middle_y,
            c,
            d,
            middle_y + shift_y - c * middle_x - d * middle_y,
            zero,
            zero,
        ],
        axis=1,
    )
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=transforms,
        output_shape=tf.constant([height, width]),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode=settings.fill_mode.upper(),
    )
    return tf.cast(tf.round(moved), tf.uint8)


def erase(images: tf.Tensor, largest: float, seed: tf.Tensor) -> tf.Tensor:
    """Paint a square of each image, of up to `largest` of its side, in the image's mean grey.

    Random erasing (arXiv 1708.04896), with cutout's square (arXiv 1708.04552) of random size.
    """
    draws = tf.random.stateless_uniform((3, tf.shape(images)[0]), seed)
    boxes = _boxes(images, draws[0], draws[1], largest * draws[2])
    mean = tf.reduce_mean(tf.cast(images, tf.float32), axis=(1, 2, 3), keepdims=True)
    return tf.where(boxes, tf.cast(mean, images.dtype), images)


def _boxes(images: tf.Tensor, x: tf.Tensor, y: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
    """Return (N, H, W, 1) bool, true within a box an image, about (x, y), all as fractions."""

    def within(middle: tf.Tensor, pixels: int) -> tf.Tensor:
        places = (tf.range(pixels, dtype=tf.float32) + 0.5) / pixels
        return tf.abs(places - middle[:, tf.newaxis]) < side[:, tf.newaxis] / 2

    rows, columns = within(y, images.shape[1]), within(x, images.shape[2])
    return (rows[:, :, tf.newaxis] & columns[:, tf.newaxis, :])[..., tf.newaxis]
