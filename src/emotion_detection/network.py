"""The CNN family of the notebook: blocks of two convolutions, then dense layers.

What trains here is what Keras computes, faster: batch normalisation runs through TensorFlow's
fused kernel instead of Keras's elementwise spelling, and in bfloat16 where the processor has it.
`export` gives the same network in plain Keras layers and float32, so that a saved model needs
nothing of this package.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from emotion_detection.console import UserError


@dataclass(frozen=True)
class Architecture:
    """What a network is made of; one entry of `filters` and `kernel_sizes` a block.

    `filters` (32, 128, 128, 32), `kernel_sizes` 3 and `dense_units` (64,) is the network the
    notebook ended with.
    """

    filters: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    dense_units: tuple[int, ...]
    conv_dropout: float
    dense_dropout: float
    norm_momentum: float

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raise `UserError` where the blocks halve an image (H, W, C) to nothing."""
        side = min(image_shape[:2])
        if side >> len(self.filters) == 0:
            raise UserError(
                f"a network of {len(self.filters)} blocks is too deep for images of "
                f"{image_shape[0]}x{image_shape[1]}: each block halves the image, so at most "
                f"{side.bit_length() - 1} blocks fit; use fewer blocks or a larger "
                "ingest.image_size"
            )

    def forward_gflops(self, image_shape: tuple[int, int, int], classes: int) -> float:
        """Give 1e9 floating-point operations of one image's forward pass.

        A multiply-add counts as two; only convolutions and dense layers count, which do nearly all
        of the arithmetic. A training step costs about three times as much.
        """
        height, width, channels = image_shape
        operations = 0
        for filters, kernel in zip(self.filters, self.kernel_sizes, strict=True):
            operations += 2 * height * width * kernel**2 * filters * (channels + filters)
            height, width, channels = height // 2, width // 2, filters
        units_before = height * width * channels
        for units in (*self.dense_units, classes):
            operations += 2 * units_before * units
            units_before = units
        return operations / 1e9


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalisation over the last axis, computed by TensorFlow's fused kernel.

    Weights, updates of the moving statistics and config are those of the parent class; only
    `call` differs. Keras 3 composes elementwise operations instead, which on a CPU take longer
    than the convolutions. Inputs are (N, C) or (N, H, W, C).
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        """Normalise `inputs` with the batch's statistics when training, else the moving ones."""
        shape = tf.shape(inputs)
        images = inputs if inputs.shape.rank == 4 else inputs[:, tf.newaxis, tf.newaxis, :]
        learns = bool(training) and self.trainable
        mean, variance = self.moving_mean.value, self.moving_variance.value
        outputs, batch_mean, batch_variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images,
            scale=tf.cast(self.gamma.value, tf.float32),
            offset=tf.cast(self.beta.value, tf.float32),
            mean=tf.constant([], tf.float32) if learns else tf.cast(mean, tf.float32),
            variance=tf.constant([], tf.float32) if learns else tf.cast(variance, tf.float32),
            epsilon=self.epsilon,
            is_training=learns,
        )
        if learns:
            # The kernel gives the unbiased variance; Keras's moving average keeps the biased one.
            count = tf.cast(tf.reduce_prod(tf.shape(images)[:3]), tf.float32)
            batch_variance *= (count - 1) / count
            self.moving_mean.assign(mean * self.momentum + batch_mean * (1 - self.momentum))
            self.moving_variance.assign(
                variance * self.momentum + batch_variance * (1 - self.momentum)
            )
        return tf.reshape(outputs, shape)


def build(
    architecture: Architecture,
    *,
    image_shape: tuple[int, int, int],
    classes: int,
    precision: str = "float32",
    fast: bool = True,
    seed: int | None = None,
) -> keras.Model:
    """Build the network, uncompiled: images (N, H, W, C) uint8 -> (N, classes).

    The outputs are float32 probabilities. `precision` is a Keras dtype policy; with `fast` false
    every layer is Keras's own. `seed` fixes the initial weights and the dropout masks.

    Raises:
        UserError: if the network is too deep for the images.

    """
    architecture.check(image_shape)
    seeds = iter(range(seed * 1000, (seed + 1) * 1000)) if seed is not None else None

    def next_seed() -> int | None:
        return next(seeds) if seeds is not None else None

    def normalized(name: str) -> keras.layers.Layer:
        kind = FusedBatchNormalization if fast else keras.layers.BatchNormalization
        return kind(momentum=architecture.norm_momentum, dtype=precision, name=name)

    def activated(kind: type[keras.layers.Layer], *args: Any, **kwargs: Any) -> keras.layers.Layer:
        return kind(
            *args,
            activation="relu",
            kernel_initializer=keras.initializers.HeNormal(next_seed()),
            dtype=precision,
            **kwargs,
        )

    inputs = x = keras.Input(image_shape, dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 255, dtype=precision, name="rescaling")(x)
    for block, (filters, kernel) in enumerate(
        zip(architecture.filters, architecture.kernel_sizes, strict=True), start=1
    ):
        for half in "ab":
            name = f"block{block}{half}"
            x = activated(
                keras.layers.Conv2D, filters, kernel, padding="same", name=f"{name}_conv"
            )(x)
            x = normalized(f"{name}_norm")(x)
        x = keras.layers.MaxPooling2D(dtype=precision, name=f"block{block}_pool")(x)
        x = keras.layers.Dropout(
            architecture.conv_dropout, seed=next_seed(), dtype=precision, name=f"block{block}_drop"
        )(x)
    x = keras.layers.Flatten(dtype=precision, name="flatten")(x)
    for layer, units in enumerate(architecture.dense_units, start=1):
        x = activated(keras.layers.Dense, units, name=f"dense{layer}")(x)
        x = normalized(f"dense{layer}_norm")(x)
        x = keras.layers.Dropout(
            architecture.dense_dropout, seed=next_seed(), dtype=precision, name=f"dense{layer}_drop"
        )(x)
    # Probabilities and the loss are kept in float32: bfloat16 has 8 bits of precision.
    outputs = keras.layers.Dense(
        classes,
        activation="softmax",
        kernel_initializer=keras.initializers.GlorotUniform(next_seed()),
        dtype="float32",
        name="probabilities",
    )(x)
    return keras.Model(inputs, outputs, name="emotion_network")


def export(model: keras.Model, architecture: Architecture) -> keras.Model:
    """Give the same network with the same weights in plain Keras layers and float32."""
    plain = build(
        architecture, image_shape=model.input_shape[1:], classes=model.output_shape[-1], fast=False
    )
    plain.set_weights(model.get_weights())
    return plain


def load(path: Path) -> keras.Model:
    """Load a saved network.

    Raises:
        UserError: if there is none at `path`, or it cannot be read.

    """
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: cannot be loaded ({reason}); run `dvc repro train`") from error
