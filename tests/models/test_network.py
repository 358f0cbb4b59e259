"""The networks: the notebook's figures, the three archs, what fits, and what it costs."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from emotion_detection.console import UserError
from emotion_detection.models.layers import FewPixelsConv2D
from emotion_detection.models.network import build, check, forward_gflops
from emotion_detection.settings import params
from tests.support.networks import KINDS, leaves, noise, same_weights, small

Make = Callable[..., params.Network]
NOTEBOOK = params.Network(
    arch="notebook",
    filters=(32, 128, 128, 32),
    kernel_sizes=(3, 3, 3, 3),
    convolutions=2,
    dense_units=(64,),
    conv_dropout=0.2,
    dense_dropout=0.5,
)


def test_the_notebooks_network_is_the_one_it_printed() -> None:
    model = build(NOTEBOOK, image_shape=(48, 48, 3), classes=7)

    def block(side: int, filters: int) -> list[tuple[str, tuple[int, ...]]]:
        convolution = [("conv", (side, side, filters)), ("norm", (side, side, filters))]
        half = (side // 2, side // 2, filters)
        return [*convolution, *convolution, ("pool", half), ("drop", half)]

    assert [
        (layer.name.split("_")[-1], tuple(layer.output.shape[1:])) for layer in model.layers
    ] == [
        ("images", (48, 48, 3)),
        ("rescaling", (48, 48, 3)),
        *block(48, 32),
        *block(24, 128),
        *block(12, 128),
        *block(6, 32),
        ("flatten", (288,)),
        ("dense1", (64,)),
        ("norm", (64,)),
        ("drop", (64,)),
        ("probabilities", (7,)),
    ]
    assert model.count_params() == 557_799
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == 556_391
    assert model.input.dtype == "uint8"


def test_the_outputs_are_probabilities_in_float32(network: Make) -> None:
    for precision in ("float32", "mixed_bfloat16"):
        outputs = small(network(), precision=precision)(noise(5), training=False)
        assert outputs.dtype == tf.float32
        np.testing.assert_allclose(outputs.numpy().sum(axis=1), 1, rtol=1e-5)


def test_convolutions_of_fewer_pixels_than_filters_have_the_quicker_gradient(
    network: Make,
) -> None:
    chosen = network((8, 80, 24), (), arch="plain")

    def few(**settings: bool) -> set[str]:
        layers = small(chosen, **settings).layers
        return {layer.name for layer in layers if isinstance(layer, FewPixelsConv2D)}

    wanted = {"block2a_conv", "block2b_conv", "block3a_conv", "block3b_conv"}
    assert few() == few(any_size=True) == wanted
    assert few(fast=False) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_network_is_the_plain_one(network: Make, kind: str) -> None:
    chosen = network((4, 8), **{"dense_units": (8, 4), "dropout": 0.3, **KINDS[kind]})
    fast, plain = small(chosen, fast=True), small(chosen, fast=False)
    assert same_weights(fast, plain)
    assert [layer.name for layer in fast.layers] == [layer.name for layer in plain.layers]
    np.testing.assert_allclose(fast(noise(6)), plain(noise(6)), rtol=1e-5, atol=1e-6)


def test_a_seed_fixes_the_initial_weights(network: Make) -> None:
    assert same_weights(small(network()), small(network()))
    assert not same_weights(small(network()), small(network(), seed=2))
    kernels = [weight for weight in small(network((8, 8))).get_weights() if weight.ndim == 4]
    assert not np.array_equal(kernels[1], kernels[2])


def test_a_seed_fixes_the_dropout_masks(network: Make) -> None:
    chosen = network(dropout=0.5)
    outputs = [small(chosen, seed=seed)(noise(6), training=True).numpy() for seed in (1, 1, 2)]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-6)
    assert not np.allclose(outputs[0], outputs[2])


def convolutions(network: params.Network) -> list[str]:
    return [
        layer.name.removesuffix("_conv")
        for layer in small(network).layers
        if isinstance(layer, keras.layers.Conv2D)
    ]


def test_each_block_has_the_number_of_convolutions_that_is_set(network: Make) -> None:
    for arch in ("notebook", "plain"):
        assert convolutions(network((4, 6), arch=arch, convolutions=1)) == ["block1a", "block2a"]
        assert convolutions(network((4, 6), arch=arch, convolutions=3)) == [
            *("block1a", "block1b", "block1c"),
            *("block2a", "block2b", "block2c"),
        ]
    # Where a block changes the number of channels, its first skip connection is a convolution.
    assert sorted(convolutions(network((4, 4), arch="residual", convolutions=3))) == [
        *("block1a", "block1b", "block1b_skip", "block1c"),
        *("block2a", "block2b", "block2c"),
    ]


def test_a_residual_block_adds_its_input_after_every_two_convolutions(network: Make) -> None:
    model = small(network((4,), (), arch="residual", convolutions=5))
    for half in "bde":
        norm = model.get_layer(f"block1{half}_norm")
        norm.gamma.assign([0.0] * 4)
        norm.beta.assign([0.0] * 4)
    # Convolutions that give nothing leave what was added to them.
    ends = ["block1b_skip_norm", *(f"block1{half}_relu" for half in "bde")]
    seen = keras.Model(model.input, [model.get_layer(name).output for name in ends])(noise(2))
    for found in seen[1:]:
        np.testing.assert_array_equal(found, np.maximum(seen[0], 0))


def test_squeeze_excitation_weighs_each_channel_by_the_whole_image(network: Make) -> None:
    model = small(network((8,), (), arch="plain", squeeze_excitation=True))
    names = ("block1b_relu", "block1_excite2", "block1_weigh")
    seen = keras.Model(model.input, [model.get_layer(name).output for name in names])(noise(2))
    channels, weights, weighed = (found.numpy() for found in seen)
    assert weights.shape == (2, 1, 1, 8)
    assert weights.min() > 0
    assert weights.max() < 1
    np.testing.assert_allclose(weighed, channels * weights, rtol=1e-5)


@pytest.mark.parametrize(
    ("image_shape", "most"),
    [((16, 16, 3), 4), ((48, 20, 1), 4), ((48, 48, 3), 5), ((31, 64, 3), 4)],
)
def test_a_network_as_deep_as_fits_is_built_and_no_deeper(
    network: Make, image_shape: tuple[int, int, int], most: int
) -> None:
    # The last block of the others does not halve the image.
    for arch, fitting in (("notebook", most), ("plain", most + 1), ("residual", most + 1)):
        build(network((2,) * fitting, arch=arch), image_shape=image_shape, classes=3)
        deeper = network((2,) * (fitting + 1), arch=arch)
        message = (
            rf"{fitting + 1} blocks is too deep for images of "
            rf"{image_shape[0]}x{image_shape[1]}.*at most {fitting} blocks fit.*image_size"
        )
        with pytest.raises(UserError, match=message):
            check(deeper, image_shape)
        with pytest.raises(UserError, match=message):
            build(deeper, image_shape=image_shape, classes=3)


def test_a_network_for_any_size_takes_smaller_images_if_its_arch_can(network: Make) -> None:
    model = small(network((2, 2, 2), (), arch="plain"), any_size=True)
    for height, width in ((16, 16), (10, 9)):
        assert model(np.zeros((1, height, width, 3), np.uint8)).shape == (1, 3)
    with pytest.raises(UserError, match=r"progressive_resizing.*arch notebook.*one size"):
        small(network(), any_size=True)


def operations_of(model: keras.Model) -> float:
    """Count two operations for each weight of a kernel, everywhere that it is applied."""
    operations = 0
    for layer in leaves(model):
        if isinstance(layer, keras.layers.Conv2D):
            _, height, width, _ = layer.output.shape
            operations += 2 * height * width * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Dense):
            operations += 2 * int(np.prod(layer.kernel.shape))
    return operations / 1e9


@pytest.mark.parametrize("image_shape", [(16, 16, 3), (21, 34, 1)])
def test_the_cost_of_a_network_is_that_of_its_layers(
    network: Make, image_shape: tuple[int, int, int]
) -> None:
    for chosen in (
        network((3,), (5,)),
        network((4, 9, 5), (8, 6), kernel=5),
        network((4, 9, 9), (), arch="plain"),
        network((4, 9, 9), (6,), arch="residual", squeeze_excitation=True),
        network((4, 9), (), arch="notebook", convolutions=1, squeeze_excitation=True),
        network((4, 9), (), arch="plain", convolutions=3, squeeze_excitation=True),
        network((4, 9), (), arch="residual", convolutions=1, squeeze_excitation=True),
        network((4, 9), (), arch="residual", convolutions=5, squeeze_excitation=True),
    ):
        model = build(chosen, image_shape=image_shape, classes=4)
        found = forward_gflops(chosen, image_shape, 4)
        assert found == pytest.approx(operations_of(model))


def test_the_notebooks_network_costs_a_third_of_a_gflop() -> None:
    assert forward_gflops(NOTEBOOK, (48, 48, 3), 7) == pytest.approx(0.347, abs=0.0005)
