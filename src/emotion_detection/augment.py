"""Random changes of training images: batched, in the graph, reproducible."""

import math

import tensorflow as tf

from emotion_detection.params import Augment


def is_on(settings: Augment) -> bool:
    """Tell whether `settings` change any image."""
    return settings.horizontal_flip or any(
        (
            settings.rotation,
            settings.width_shift,
            settings.height_shift,
            settings.shear,
            settings.zoom,
        )
    )


def augment(images: tf.Tensor, settings: Augment, seed: tf.Tensor) -> tf.Tensor:
    """Give `images` (N, H, W, C) uint8 each through an affine map of its own, in one kernel.

    The ranges mean what they do for Keras's ImageDataGenerator, but zoom, which keeps the aspect.
    The same `seed` (2,) int gives the same maps.
    """
    count = tf.shape(images)[0]
    height, width = images.shape[1], images.shape[2]
    draws = tf.random.stateless_uniform((6, count), seed, -1.0, 1.0)
    angle = draws[0] * math.radians(settings.rotation)
    shift_x = draws[1] * settings.width_shift * width
    shift_y = draws[2] * settings.height_shift * height
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
