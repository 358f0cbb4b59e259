"""Keras's layers, computed faster: same weights, config and results; only `call` differs.

`plain` replaces them by the Keras layers that they derive from, so that a saved model needs nothing
of this package.
"""

from typing import Any

import keras
import tensorflow as tf

from emotion_detection.models.hardware import has_amx


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalization over the last axis, computed by TensorFlow's fused kernel.

    Weights, updates of the moving statistics and config are those of the parent class; only
    `call` differs. Keras 3 composes elementwise operations instead, which on a CPU take longer
    than the convolutions. Inputs are (N, C) or (N, H, W, C).
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        """Normalize `inputs` with the batch's statistics when training, else the moving ones."""
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
            batch_mean, batch_variance = _of_all_replicas(batch_mean, batch_variance, count)
            self.moving_mean.assign(mean * self.momentum + batch_mean * (1 - self.momentum))
            self.moving_variance.assign(
                variance * self.momentum + batch_variance * (1 - self.momentum)
            )
        return tf.reshape(outputs, shape)


class FewBitsDropout(keras.layers.Dropout):
    """Keras's dropout, with 16 random bits a value where Keras draws a number of 32.

    State, config and what it computes are those of the parent class, with `rate` rounded to a
    multiple of 2**-16; only `call` differs.
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Set a share of `rate` of `inputs` to 0 when training, and scale the others up for it."""
        if not training or self.rate == 0:
            return inputs
        values = tf.size(inputs)
        seed = tf.cast(self.seed_generator.next(), tf.int64)
        drawn = tf.random.stateless_uniform([(values + 1) // 2], seed, None, None, tf.uint32)
        bits = tf.reshape(tf.bitcast(drawn, tf.uint16), [-1])[:values]
        dropped = min(round(self.rate * 2**16), 2**16 - 1)
        kept = tf.cast(bits >= tf.constant(dropped, tf.uint16), inputs.dtype)
        scale = tf.constant(2**16 / (2**16 - dropped), inputs.dtype)
        return inputs * tf.reshape(kept * scale, tf.shape(inputs))


class FewPixelsConv2D(keras.layers.Conv2D):
    """Keras's convolution for images of few pixels and many channels, with a quicker gradient.

    State, config and what it computes are those of the parent class. Only how the gradient of the
    kernel comes about differs where the processor has AMX, padding is same, and there are no
    strides, groups or dilation: as a product of matrices for each of its places, up to four times
    as fast as oneDNN 3.7 does it. The class is the same on every machine, since Keras names what is
    in a checkpoint after it.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: Any) -> tf.Tensor:
        """Convolve `inputs` (N, H, W, C) with `kernel` (h, w, C, filters)."""
        as_here = (self.strides, self.dilation_rate, self.groups, self.padding)
        if inputs.dtype != tf.bfloat16 or not has_amx() or as_here != ((1, 1), (1, 1), 1, "same"):
            return super().convolution_op(inputs, kernel)
        high, wide = self.kernel_size

        @tf.custom_gradient
        def convolve(images: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, Any]:
            def gradients(outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                of_images = tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=tf.shape(images),
                    filter=weights,
                    out_backprop=outputs,
                    strides=[1, 1, 1, 1],
                    padding="SAME",
                )
                height, width = tf.shape(images)[1], tf.shape(images)[2]
                around = [((side - 1) // 2, side // 2) for side in (high, wide)]
                padded = tf.pad(images, [(0, 0), *around, (0, 0)])
                pixels = tf.reshape(outputs, (-1, self.filters))
                of_weights = [
                    tf.matmul(
                        tf.reshape(padded[:, y : y + height, x : x + width], (-1, images.shape[3])),
                        pixels,
                        transpose_a=True,
                    )
                    for y in range(high)
                    for x in range(wide)
                ]
                return of_images, tf.reshape(tf.stack(of_weights), weights.shape)

            return tf.nn.conv2d(images, weights, 1, "SAME"), gradients

        return convolve(inputs, tf.cast(kernel, inputs.dtype))


def _of_all_replicas(
    mean: tf.Tensor, variance: tf.Tensor, count: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the mean and variance (C,) of the whole batch, of which this replica saw a part.

    Left to itself a replica of `tf.distribute` keeps moving statistics of its own, and those of
    the first are saved.
    """
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return mean, variance
    sums = [count * mean, count * (variance + mean**2), count]
    total, squares, images = replica.all_reduce(tf.distribute.ReduceOp.SUM, sums)
    mean = total / images
    return mean, tf.maximum(squares / images - mean**2, 0.0)


def plain(model: keras.Model, image_shape: tuple[int, int, int] | None = None) -> keras.Model:
    """Return the same network with the same weights in Keras's own layers, in float32.

    It takes images of `image_shape` (H, W, C) uint8, which a `model` for any size does not know.
    """

    def convert(layer: keras.layers.Layer) -> keras.layers.Layer:
        kind: Any = next(
            kind for kind in type(layer).__mro__ if kind.__module__.startswith("keras.")
        )
        return kind.from_config(layer.get_config() | {"dtype": "float32"})

    images = keras.Input(image_shape or model.input_shape[1:], dtype="uint8", name="images")
    network = keras.models.clone_model(model, input_tensors=images, clone_function=convert)
    network.set_weights(model.get_weights())
    return network
