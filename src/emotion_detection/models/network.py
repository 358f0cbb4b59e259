"""The CNN families: blocks of convolutions, with the image halved in between, and dense layers.

What trains here is what Keras computes, faster: batch normalisation runs through TensorFlow's
fused kernel instead of Keras's elementwise spelling, dropout draws fewer random bits, and all is in
bfloat16 where the processor has it. `export` gives the same network in plain Keras layers and
float32, so that a saved model needs nothing of this package.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal

import keras
import tensorflow as tf

from emotion_detection.console import UserError
from emotion_detection.models.hardware import has_amx

Family = Literal["notebook", "plain", "residual", "depthwise"]


@dataclass(frozen=True)
class Architecture:
    """What a network is made of; one entry of `filters` and `kernel_sizes` a block.

    `convolutions` is their number in every block, or an entry a block. `notebook` is convolution,
    ReLU, normalisation, and flattens what the last block leaves; with `filters` (32, 128, 128, 32),
    `kernel_sizes` 3, two `convolutions` and `dense_units` (64,) it is the network the notebook
    ended with. `plain` is convolution, normalisation, ReLU, and averages over the image (VGG, arXiv
    1409.1556, as it is trained today); `depthwise` splits plain's convolutions, all but the first,
    into one a channel and one across channels, about a ninth of the arithmetic where the kernel is
    3 (arXiv 1704.04861); `residual` is plain and adds to what every two convolutions of a block
    give what went into them (arXiv 1512.03385), where their number is odd to the last one's too.
    `squeeze_excitation` weighs the channels by the whole image, at a block's end or before each
    such addition (arXiv 1709.01507). With `average_flips` the saved network gives the mean of what
    it sees in an image and in its mirror image, with `average_shifts` also in the image moved by so
    many pixels to each of its four corners. Before all that it blurs the image by a Gaussian of
    `soften` pixels, its standard deviation: what it learnt from was blurred where it was turned and
    zoomed (that images look different in training and in use costs accuracy: arXiv 1906.06423).
    `members` are so many networks of this kind in one, which begin with other weights, learn each
    by itself from batches of its own, and whose mean is the answer (arXiv 1612.01474).
    """

    family: Family
    filters: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    convolutions: int | tuple[int, ...]
    dense_units: tuple[int, ...]
    squeeze_excitation: bool
    conv_dropout: float
    dense_dropout: float
    bn_momentum: float
    average_flips: bool
    average_shifts: int
    soften: float
    members: int

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raise `UserError` where an image (H, W, C) is too small to be halved or shifted so."""
        side = min(image_shape[:2])
        last_halves = self.family == "notebook"
        most = side.bit_length() - last_halves
        if len(self.filters) > most:
            which = "each block" if last_halves else "each block but the last"
            raise UserError(
                f"a network of {len(self.filters)} blocks is too deep for images of "
                f"{image_shape[0]}x{image_shape[1]}: {which} halves the image, so at most {most} "
                "blocks fit; use fewer blocks or a larger ingest.image_size"
            )
        if self.average_shifts > side:
            raise UserError(
                f"network.average_shifts = {self.average_shifts} is more than images of "
                f"{image_shape[0]}x{image_shape[1]} have pixels a side; use at most {side}"
            )

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """Return the filters, the kernel's size and the number of convolutions of each block."""
        each = self.convolutions
        convolutions = (each,) * len(self.filters) if isinstance(each, int) else each
        return zip(self.filters, self.kernel_sizes, convolutions, strict=True)

    def forward_gflops(self, image_shape: tuple[int, int, int], classes: int) -> float:
        """Return 1e9 floating-point operations of one image's forward pass.

        A multiply-add counts as two; only convolutions and dense layers count, which do nearly all
        of the arithmetic. A training step costs about three times as much.
        """
        height, width, channels = image_shape
        operations = 0
        for block, (filters, kernel, convolutions) in enumerate(self.blocks(), start=1):
            for number in range(convolutions):
                inputs = filters if number else channels
                weights = kernel**2 * inputs * filters
                if self.family == "depthwise" and (block, number) != (1, 0):
                    weights = kernel**2 * inputs + inputs * filters
                operations += 2 * height * width * weights
            if self.family == "residual" and channels != filters:
                operations += 2 * height * width * channels * filters
            if self.squeeze_excitation:
                times = math.ceil(convolutions / 2) if self.family == "residual" else 1
                operations += times * 4 * filters * _squeezed(filters)
            if self.family == "notebook" or block < len(self.filters):
                height, width = height // 2, width // 2
            channels = filters
        if self.family != "notebook":
            height, width = 1, 1
        units_before = height * width * channels
        for units in (*self.dense_units, classes):
            operations += 2 * units_before * units
            units_before = units
        return self.members * operations / 1e9


def _squeezed(filters: int) -> int:
    return max(4, filters // 8)


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
        dropped = round(self.rate * 2**16)
        kept = tf.cast(bits >= tf.constant(dropped, tf.uint16), inputs.dtype)
        scale = tf.constant(2**16 / (2**16 - dropped), inputs.dtype)
        return inputs * tf.reshape(kept * scale, tf.shape(inputs))


class FewPixelsConv2D(keras.layers.Conv2D):
    """Keras's convolution for images of few pixels and many channels, with a quicker gradient.

    State, config and what it computes are those of the parent class, with padding same and strides
    of 1. Only how the gradient of the kernel comes about differs: where the processor has AMX, as a
    product of matrices for each of its places, up to four times as fast as oneDNN 3.7 does it. The
    class is the same on every machine, since Keras names what is in a checkpoint after it.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: Any) -> tf.Tensor:
        """Convolve `inputs` (N, H, W, C) with `kernel` (h, w, C, filters)."""
        if inputs.dtype != tf.bfloat16 or not has_amx():
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


def build(
    architecture: Architecture,
    *,
    image_shape: tuple[int, int, int],
    classes: int,
    precision: str = "float32",
    fast: bool = True,
    pixels: str = "uint8",
    smallest: tuple[int, int] | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Build the network, uncompiled: images (N, H, W, C) of type `pixels` -> (N, classes).

    Images are 0 to 255, the outputs float32 probabilities. `precision` is a Keras dtype policy;
    with `fast` false every layer is Keras's own. With `smallest` (H, W) the network takes images of
    any size from that on. `seed` fixes the initial weights and the dropout masks; a second member
    has those of the next seed.

    Raises:
        UserError: if the images are too small for the network, or its family takes one size alone.

    """
    architecture.check(image_shape if smallest is None else (*smallest, image_shape[2]))
    if smallest is not None and architecture.family == "notebook":
        raise UserError(
            "train.progressive_resizing.epochs: a network of the family notebook takes images of one "
            "size alone; set it to 0, or take another family"
        )
    shape = image_shape if smallest is None else (None, None, image_shape[2])

    def member(number: int, name: str) -> keras.Model:
        layers = _Layers(precision, fast, None if seed is None else seed + number)
        inputs = keras.Input(shape, dtype=pixels, name="images")
        outputs = _probabilities(inputs, architecture, layers, image_shape, classes, precision)
        return keras.Model(inputs, outputs, name=name)

    name = "emotion_network"
    if architecture.members == 1:
        return member(0, name)
    inputs = keras.Input(shape, dtype=pixels, name="images")
    said = [member(each, f"member{each + 1}")(inputs) for each in range(architecture.members)]
    outputs = keras.layers.Average(dtype="float32", name="average_of_members")(said)
    return keras.Model(inputs, outputs, name=name)


def _probabilities(
    images: Any,
    architecture: Architecture,
    layers: "_Layers",
    image_shape: tuple[int, int, int],
    classes: int,
    precision: str,
) -> Any:
    """Add the layers of one member to `images`."""
    x = keras.layers.Rescaling(1 / 255, dtype=precision, name="rescaling")(images)
    for block, (filters, kernel, convolutions) in enumerate(architecture.blocks(), start=1):
        names = [f"block{block}{letter}" for letter in ascii_lowercase[:convolutions]]
        layers.pixels = (image_shape[0] >> (block - 1)) * (image_shape[1] >> (block - 1))
        if architecture.family == "residual":
            for start in range(0, convolutions, 2):
                pair = names[start : start + 2]
                x = _residual(x, filters, kernel, architecture, layers, pair)
        else:
            x = _convolutions(x, filters, kernel, architecture, layers, names)
            x = _weighed(x, filters, architecture, layers, f"block{block}")
        if architecture.family == "notebook" or block < len(architecture.filters):
            x = keras.layers.MaxPooling2D(dtype=precision, name=f"block{block}_pool")(x)
        x = layers.dropout(architecture.conv_dropout, f"block{block}_drop")(x)
    if architecture.family == "notebook":
        x = keras.layers.Flatten(dtype=precision, name="flatten")(x)
    else:
        x = keras.layers.GlobalAveragePooling2D(dtype=precision, name="average")(x)
    for layer, units in enumerate(architecture.dense_units, start=1):
        x = layers.dense(units, f"dense{layer}", activation="relu")(x)
        x = layers.normalized(architecture.bn_momentum, f"dense{layer}_norm")(x)
        x = layers.dropout(architecture.dense_dropout, f"dense{layer}_drop")(x)
    if not architecture.dense_units:
        x = layers.dropout(architecture.dense_dropout, "average_drop")(x)
    # Probabilities and the loss are kept in float32: bfloat16 has 8 bits of precision.
    return keras.layers.Dense(
        classes,
        activation="softmax",
        kernel_initializer=keras.initializers.GlorotUniform(layers.seed()),
        dtype="float32",
        name="probabilities",
    )(x)


class _Layers:
    """Makes the layers of one network: of one precision, and seeded one after the other."""

    pixels: int
    """Those of an image where the next layers go."""

    def __init__(self, precision: str, fast: bool, seed: int | None) -> None:
        self._precision, self._fast = precision, fast
        self._seeds = None if seed is None else count(seed * 1000)

    def seed(self) -> int | None:
        return None if self._seeds is None else next(self._seeds)

    def convolution(self, filters: int, kernel: int, name: str, **options: Any) -> Any:
        # Of the larger images oneDNN's gradient is the quicker one.
        kind = FewPixelsConv2D if self._fast and self.pixels < filters else keras.layers.Conv2D
        return kind(filters, kernel, padding="same", **self._common(name), **options)

    def depthwise(self, channels: int, kernel: int, name: str) -> Any:
        # He's, whose inputs are one channel's alone; Keras counts those of all channels.
        initializer = keras.initializers.VarianceScaling(2 * channels, seed=self.seed())
        return keras.layers.DepthwiseConv2D(
            kernel,
            padding="same",
            use_bias=False,
            depthwise_initializer=initializer,
            dtype=self._precision,
            name=name,
        )

    def dense(self, units: int, name: str, **options: Any) -> Any:
        return keras.layers.Dense(units, **self._common(name), **options)

    def _common(self, name: str) -> dict[str, Any]:
        initializer = keras.initializers.HeNormal(self.seed())
        return {"kernel_initializer": initializer, "dtype": self._precision, "name": name}

    def normalized(self, momentum: float, name: str) -> Any:
        kind = FusedBatchNormalization if self._fast else keras.layers.BatchNormalization
        return kind(momentum=momentum, dtype=self._precision, name=name)

    def relu(self, name: str) -> Any:
        return keras.layers.Activation("relu", dtype=self._precision, name=name)

    def dropout(self, rate: float, name: str) -> Any:
        kind = FewBitsDropout if self._fast else keras.layers.Dropout
        return kind(rate, seed=self.seed(), dtype=self._precision, name=name)


def _convolutions(
    x: Any, filters: int, kernel: int, architecture: Architecture, layers: _Layers, names: list[str]
) -> Any:
    """Add a convolution, its normalisation and ReLU to `x` for each of `names`."""
    for name in names:
        if architecture.family == "notebook":
            x = layers.convolution(filters, kernel, f"{name}_conv", activation="relu")(x)
            x = layers.normalized(architecture.bn_momentum, f"{name}_norm")(x)
        else:
            x = _convolved(x, filters, kernel, architecture, layers, name)
            x = layers.relu(f"{name}_relu")(x)
    return x


def _residual(
    x: Any, filters: int, kernel: int, architecture: Architecture, layers: _Layers, names: list[str]
) -> Any:
    """Add convolutions of `names` to `x`, and `x` to what they give, before the last ReLU."""
    last = names[-1]
    skip = x
    x = _convolutions(x, filters, kernel, architecture, layers, names[:-1])
    x = _convolved(x, filters, kernel, architecture, layers, last)
    x = _weighed(x, filters, architecture, layers, last)
    if skip.shape[-1] != filters:
        skip = layers.convolution(filters, 1, f"{last}_skip_conv", use_bias=False)(skip)
        skip = layers.normalized(architecture.bn_momentum, f"{last}_skip_norm")(skip)
    x = keras.layers.Add(dtype=x.dtype, name=f"{last}_add")([x, skip])
    return layers.relu(f"{last}_relu")(x)


def _convolved(
    x: Any, filters: int, kernel: int, architecture: Architecture, layers: _Layers, name: str
) -> Any:
    """Add a convolution and its normalisation, which subtracts what a bias would add."""
    momentum = architecture.bn_momentum
    # An image has too few channels to look at one by one.
    if architecture.family == "depthwise" and name != "block1a":
        x = layers.depthwise(x.shape[-1], kernel, f"{name}_depthwise")(x)
        x = layers.normalized(momentum, f"{name}_depthwise_norm")(x)
        x = layers.relu(f"{name}_depthwise_relu")(x)
        kernel = 1
    x = layers.convolution(filters, kernel, f"{name}_conv", use_bias=False)(x)
    return layers.normalized(momentum, f"{name}_norm")(x)


def _weighed(x: Any, filters: int, architecture: Architecture, layers: _Layers, name: str) -> Any:
    if not architecture.squeeze_excitation:
        return x
    weights = keras.layers.GlobalAveragePooling2D(
        keepdims=True, dtype=x.dtype, name=f"{name}_squeeze"
    )(x)
    weights = layers.dense(_squeezed(filters), f"{name}_excite1", activation="relu")(weights)
    weights = layers.dense(filters, f"{name}_excite2", activation="sigmoid")(weights)
    return keras.layers.Multiply(dtype=x.dtype, name=f"{name}_weigh")([x, weights])


def export(
    model: keras.Model,
    architecture: Architecture,
    image_shape: tuple[int, int, int] | None = None,
    others: Sequence[keras.Model] = (),
) -> keras.Model:
    """Return the same network with the same weights in plain Keras layers and float32.

    It takes images of `image_shape` (H, W, C) uint8, which a `model` for any size does not know.
    With `average_flips` or `average_shifts` it holds the network once and asks it several times.
    The first of its members are `others`, the rest those of `model`.
    """
    image_shape = image_shape or model.input_shape[1:]
    plain = build(
        architecture,
        image_shape=image_shape,
        classes=model.output_shape[-1],
        fast=False,
        # A softened image is not rounded: at a half, runtimes would round it differently.
        pixels="float32" if architecture.soften else "uint8",
    )
    plain.set_weights([weight for each in (*others, model) for weight in each.get_weights()])
    inputs = keras.Input(image_shape, dtype="uint8", name="images")
    views = [_softened(inputs, architecture.soften) if architecture.soften else inputs]
    if shift := architecture.average_shifts:
        height, width = image_shape[:2]
        # What comes in at an edge is the edge's mirror image.
        around = [(0, 0), (shift, shift), (shift, shift), (0, 0)]
        wider = keras.ops.pad(views[0], around, mode="symmetric")
        views += [
            wider[:, y : y + height, x : x + width] for y in (0, 2 * shift) for x in (0, 2 * shift)
        ]
    if architecture.average_flips:
        views += [keras.ops.flip(view, axis=2) for view in views]
    if len(views) == 1 and not architecture.soften:
        return plain
    seen = [plain(view) for view in views]
    outputs = keras.layers.Average(name="average_of_views")(seen) if len(seen) > 1 else seen[0]
    return keras.Model(inputs, outputs, name="emotion_network_of_views")


def without_views(saved: keras.Model) -> keras.Model:
    """Return the part of what `export` made that is applied to each view of an image."""
    inner = _inner(saved)
    # Several are members, and no views.
    return inner[0] if len(inner) == 1 else saved


def single_networks(saved: keras.Model) -> list[keras.Model]:
    """Return the members of what `build` or `export` made, without views; where it has one, that."""
    plain = without_views(saved)
    return _inner(plain) or [plain]


def leaves(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Return the layers of `model` and of the models in it, one after the other."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer)
        else:
            yield layer


def _inner(model: keras.Model) -> list[keras.Model]:
    return [layer for layer in model.layers if isinstance(layer, keras.Model)]


def as_trained(saved: keras.Model, precision: str = "float32") -> keras.Model:
    """Return the network that `export` made `saved` of, without its views, as quick as it trained.

    It takes images of one size, (N, H, W, C) uint8, and gives (N, classes) float32.
    """
    plain = without_views(saved)
    last = [model.layers[-1] for model in (plain, *_inner(plain))]

    def quick(layer: keras.layers.Layer) -> keras.layers.Layer:
        if any(layer is each for each in last):
            return type(layer).from_config(layer.get_config())
        normalizes = isinstance(layer, keras.layers.BatchNormalization)
        kind = FusedBatchNormalization if normalizes else type(layer)
        return kind.from_config(layer.get_config() | {"dtype": precision})

    network = keras.models.clone_model(plain, clone_function=quick, recursive=True)
    network.set_weights(plain.get_weights())
    return network


def _softened(images: Any, sigma: float) -> Any:
    """Return `images` (N, H, W, C) uint8 blurred by a Gaussian of `sigma` pixels, in float32."""
    reach = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(-reach, reach + 1)]
    total = sum(weights)
    x = keras.ops.cast(images, "float32")
    for axis in (1, 2):
        length = x.shape[axis]
        around = [(reach, reach) if each == axis else (0, 0) for each in range(4)]
        wider = keras.ops.pad(x, around, mode="symmetric")
        before = (slice(None),) * axis
        x = sum(
            weight / total * wider[(*before, slice(start, start + length))]
            for start, weight in enumerate(weights)
        )
    return x


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
