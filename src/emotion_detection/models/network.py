"""The CNN families: blocks of convolutions, with the image halved in between, and dense layers."""

import math
from collections.abc import Iterator
from itertools import count
from string import ascii_lowercase
from typing import Any

import keras

from emotion_detection.console import UserError
from emotion_detection.models.layers import FewBitsDropout, FewPixelsConv2D, FusedBatchNormalization
from emotion_detection.settings.params import Network

NAME = "emotion_network"


def check(network: Network, image_shape: tuple[int, int, int]) -> None:
    """Raise `UserError` where images of `image_shape` (H, W, C) are too small for the blocks."""
    last_halves = network.arch == "notebook"
    most = min(image_shape[:2]).bit_length() - last_halves
    if len(network.filters) > most:
        which = "each block" if last_halves else "each block but the last"
        raise UserError(
            f"a network of {len(network.filters)} blocks is too deep for images of "
            f"{image_shape[0]}x{image_shape[1]}: {which} halves the image, so at most {most} "
            "blocks fit; use fewer blocks or a larger ingest.image_size"
        )


def forward_gflops(network: Network, image_shape: tuple[int, int, int], classes: int) -> float:
    """Return 1e9 floating-point operations of one image's forward pass.

    A multiply-add counts as two; only convolutions and dense layers count, which do nearly all
    of the arithmetic. A training step costs about three times as much.
    """
    height, width, channels = image_shape
    operations = 0
    for block, (filters, kernel) in enumerate(_blocks(network), start=1):
        for number in range(network.convolutions):
            inputs = filters if number else channels
            operations += 2 * height * width * kernel**2 * inputs * filters
        if network.arch == "residual" and channels != filters:
            operations += 2 * height * width * channels * filters
        if network.squeeze_excitation:
            times = math.ceil(network.convolutions / 2) if network.arch == "residual" else 1
            operations += times * 4 * filters * _squeezed(filters)
        if network.arch == "notebook" or block < len(network.filters):
            height, width = height // 2, width // 2
        channels = filters
    units_before = height * width * channels if network.arch == "notebook" else channels
    for units in (*network.dense_units, classes):
        operations += 2 * units_before * units
        units_before = units
    return operations / 1e9


def _blocks(network: Network) -> Iterator[tuple[int, int]]:
    """Return the filters and the kernel's size of each block."""
    return zip(network.filters, network.kernel_sizes, strict=True)


def _squeezed(filters: int) -> int:
    return max(4, filters // 8)


def build(
    network: Network,
    *,
    image_shape: tuple[int, int, int],
    classes: int,
    precision: str = "float32",
    fast: bool = True,
    any_size: bool = False,
    seed: int | None = None,
) -> keras.Model:
    """Return the network, uncompiled: images (N, H, W, C) uint8 -> probabilities (N, classes).

    `arch` notebook is convolution, ReLU, batch normalization, and flattens what the last block
    leaves; with `filters` (32, 128, 128, 32), `kernel_sizes` 3 and `dense_units` (64,) it is the
    network that the notebook ended with. `plain` is convolution, batch normalization, ReLU, and
    averages over the image (VGG, arXiv 1409.1556, as it is trained today). `residual` is plain with
    a skip connection over every two convolutions of a block (arXiv 1512.03385), and over the last
    one alone where their number is odd. `squeeze_excitation` weighs the channels by the whole image
    (arXiv 1709.01507), at a block's end or before each skip connection joins.

    Outputs are float32. `precision` is a Keras dtype policy; with `fast` false every layer is
    Keras's own. With `any_size` the network takes images of any height and width. `seed` fixes the
    initial weights and the dropout masks.

    Raises:
        UserError: if the images are too small for the network, or its arch takes one size alone.

    """
    check(network, image_shape)
    if any_size and network.arch == "notebook":
        raise UserError(
            "train.progressive_resizing: a network of the arch notebook takes images of one size "
            "alone; set it to 0, or take another arch"
        )
    layers = _Layers(precision, fast, seed, network)
    shape = (None, None, image_shape[2]) if any_size else image_shape
    images = keras.Input(shape, dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 255, dtype=precision, name="rescaling")(images)
    for block, (filters, kernel) in enumerate(_blocks(network), start=1):
        layers.pixels = (image_shape[0] >> (block - 1)) * (image_shape[1] >> (block - 1))
        x = _block(x, block, filters, kernel, layers)
        if network.arch == "notebook" or block < len(network.filters):
            x = keras.layers.MaxPooling2D(dtype=precision, name=f"block{block}_pool")(x)
        x = layers.dropout(network.conv_dropout, f"block{block}_drop")(x)
    return keras.Model(images, _head(x, classes, layers), name=NAME)


class _Layers:
    """Makes the layers of one network: of one precision, and seeded one after the other."""

    pixels: int
    """Those of an image where the next layers go."""

    def __init__(self, precision: str, fast: bool, seed: int | None, network: Network) -> None:
        self.network, self._precision, self._fast = network, precision, fast
        self._seeds = None if seed is None else count(seed * 1000)

    def seed(self) -> int | None:
        return None if self._seeds is None else next(self._seeds)

    def convolution(self, filters: int, kernel: int, name: str, **options: Any) -> Any:
        # On larger images oneDNN's gradient is the faster one.
        kind = FewPixelsConv2D if self._fast and self.pixels < filters else keras.layers.Conv2D
        return kind(filters, kernel, padding="same", **self._common(name), **options)

    def dense(self, units: int, name: str, **options: Any) -> Any:
        return keras.layers.Dense(units, **self._common(name), **options)

    def _common(self, name: str) -> dict[str, Any]:
        initializer = keras.initializers.HeNormal(self.seed())
        return {"kernel_initializer": initializer, "dtype": self._precision, "name": name}

    def norm(self, name: str) -> Any:
        kind = FusedBatchNormalization if self._fast else keras.layers.BatchNormalization
        return kind(momentum=self.network.bn_momentum, dtype=self._precision, name=name)

    def relu(self, name: str) -> Any:
        return keras.layers.Activation("relu", dtype=self._precision, name=name)

    def dropout(self, rate: float, name: str) -> Any:
        kind = FewBitsDropout if self._fast else keras.layers.Dropout
        return kind(rate, seed=self.seed(), dtype=self._precision, name=name)

    def average(self, name: str, **options: Any) -> Any:
        return keras.layers.GlobalAveragePooling2D(dtype=self._precision, name=name, **options)


def _block(x: Any, block: int, filters: int, kernel: int, layers: _Layers) -> Any:
    """Add the convolutions of a block to `x`, and what its arch has around them."""
    names = [f"block{block}{letter}" for letter in ascii_lowercase[: layers.network.convolutions]]
    if layers.network.arch == "residual":
        for start in range(0, len(names), 2):
            x = _residual(x, filters, kernel, layers, names[start : start + 2])
        return x
    x = _convolutions(x, filters, kernel, layers, names)
    return _squeeze_excitation(x, filters, layers, f"block{block}")


def _convolutions(x: Any, filters: int, kernel: int, layers: _Layers, names: list[str]) -> Any:
    """Add a convolution, its batch normalization and ReLU to `x` for each of `names`."""
    for name in names:
        if layers.network.arch == "notebook":
            x = layers.convolution(filters, kernel, f"{name}_conv", activation="relu")(x)
            x = layers.norm(f"{name}_norm")(x)
        else:
            x = layers.relu(f"{name}_relu")(_normalized(x, filters, kernel, layers, name))
    return x


def _normalized(x: Any, filters: int, kernel: int, layers: _Layers, name: str) -> Any:
    """Add a convolution and its normalization, which subtracts what a bias would add."""
    x = layers.convolution(filters, kernel, f"{name}_conv", use_bias=False)(x)
    return layers.norm(f"{name}_norm")(x)


def _residual(x: Any, filters: int, kernel: int, layers: _Layers, names: list[str]) -> Any:
    """Add convolutions of `names` to `x`, and a skip connection before the last ReLU."""
    last = names[-1]
    skip = x
    x = _convolutions(x, filters, kernel, layers, names[:-1])
    x = _normalized(x, filters, kernel, layers, last)
    x = _squeeze_excitation(x, filters, layers, last)
    if skip.shape[-1] != filters:
        skip = layers.convolution(filters, 1, f"{last}_skip_conv", use_bias=False)(skip)
        skip = layers.norm(f"{last}_skip_norm")(skip)
    x = keras.layers.Add(dtype=x.dtype, name=f"{last}_add")([x, skip])
    return layers.relu(f"{last}_relu")(x)


def _squeeze_excitation(x: Any, filters: int, layers: _Layers, name: str) -> Any:
    if not layers.network.squeeze_excitation:
        return x
    weights = layers.average(f"{name}_squeeze", keepdims=True)(x)
    weights = layers.dense(_squeezed(filters), f"{name}_excite1", activation="relu")(weights)
    weights = layers.dense(filters, f"{name}_excite2", activation="sigmoid")(weights)
    return keras.layers.Multiply(dtype=x.dtype, name=f"{name}_weigh")([x, weights])


def _head(x: Any, classes: int, layers: _Layers) -> Any:
    """Add the dense layers and the probabilities to what the last block gives."""
    network = layers.network
    if network.arch == "notebook":
        x = keras.layers.Flatten(dtype=x.dtype, name="flatten")(x)
    else:
        x = layers.average("average")(x)
    for layer, units in enumerate(network.dense_units, start=1):
        x = layers.dense(units, f"dense{layer}", activation="relu")(x)
        x = layers.norm(f"dense{layer}_norm")(x)
        x = layers.dropout(network.dense_dropout, f"dense{layer}_drop")(x)
    if not network.dense_units:
        x = layers.dropout(network.dense_dropout, "average_drop")(x)
    # Probabilities and the loss stay in float32: bfloat16 has 8 bits of precision.
    return keras.layers.Dense(
        classes,
        activation="softmax",
        kernel_initializer=keras.initializers.GlorotUniform(layers.seed()),
        dtype="float32",
        name="probabilities",
    )(x)
