"""The network: the notebook's figures, the fused normalisation, the plain copy that is saved."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.ndimage import gaussian_filter

from emotion_detection.console import UserError
from emotion_detection.models import network
from emotion_detection.models.network import (
    Architecture,
    Family,
    FewBitsDropout,
    FewPixelsConv2D,
    FusedBatchNormalization,
    as_trained,
    build,
    export,
    leaves,
    single_networks,
)

Make = Callable[..., Architecture]
NOTEBOOK = Architecture(
    family="notebook",
    filters=(32, 128, 128, 32),
    kernel_sizes=(3, 3, 3, 3),
    convolutions=2,
    dense_units=(64,),
    squeeze_excitation=False,
    conv_dropout=0.2,
    dense_dropout=0.5,
    bn_momentum=0.9,
    average_flips=False,
    average_shifts=0,
    soften=0.0,
    members=1,
)


def small(architecture: Architecture, **changes: Any) -> keras.Model:
    settings = {"image_shape": (16, 16, 3), "classes": 3, "seed": 1, **changes}
    return build(architecture, **settings)


def noise(images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (images, 16, 16, 3), np.uint8)


def same_weights(first: keras.Model, second: keras.Model) -> bool:
    return all(map(np.array_equal, first.get_weights(), second.get_weights()))


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


def test_the_outputs_are_probabilities_in_float32(architecture: Make) -> None:
    for precision in ("float32", "mixed_bfloat16"):
        outputs = small(architecture(), precision=precision)(noise(5), training=False)
        assert outputs.dtype == tf.float32
        np.testing.assert_allclose(outputs.numpy().sum(axis=1), 1, rtol=1e-5)


Steps = list[dict[str, np.ndarray]]


def normalise(
    layer: keras.layers.Layer, batches: list[np.ndarray], slope: np.ndarray, *, training: bool
) -> Steps:
    """Return what `layer` makes of `batches`, and the gradients of a loss that weighs by `slope`."""
    steps = []
    for batch in batches:
        inputs = tf.constant(batch)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=training)
            loss = tf.reduce_sum(outputs * slope)
        sources = [inputs, layer.gamma.value, layer.beta.value]
        gradients = tape.gradient(loss, sources)
        names = ("outputs", "by input", "by gamma", "by beta", "mean", "variance")
        values = (outputs, *gradients, layer.moving_mean, layer.moving_variance)
        arrays = map(keras.ops.convert_to_numpy, values)
        steps.append(dict(zip(names, arrays, strict=True)))
    return steps


@pytest.mark.parametrize("shape", [(8, 6, 5, 3), (16, 7)], ids=["images", "vectors"])
@pytest.mark.parametrize(
    ("trainable", "training"), [(True, True), (True, False), (False, True)], ids=str
)
def test_fused_normalisation_computes_what_keras_does(
    shape: tuple[int, ...], trainable: bool, training: bool
) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(2, 3, shape).astype(np.float32) for _ in range(4)]
    slope = rng.normal(size=shape).astype(np.float32)
    weights = [rng.uniform(0.5, 2, shape[-1]) for _ in range(4)]
    steps = []
    for kind in (keras.layers.BatchNormalization, FusedBatchNormalization):
        layer = kind(momentum=0.9)
        layer.build((None, *shape[1:]))
        layer.set_weights(weights)
        layer.trainable = trainable
        steps.append(normalise(layer, batches, slope, training=training))
        # Whatever it learnt is what it then infers with.
        steps[-1] += normalise(layer, batches[:1], slope, training=False)

    for expected, found in zip(*steps, strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    learnt = not np.array_equal(steps[1][0]["mean"], weights[2].astype(np.float32))
    assert learnt == (trainable and training)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5])
def test_dropout_is_keras_own(dtype: str, rate: float) -> None:
    layer = FewBitsDropout(rate, seed=1, dtype=dtype)
    assert layer.get_config() == keras.layers.Dropout(rate, seed=1, dtype=dtype).get_config() | {
        "name": layer.name
    }
    inputs = tf.Variable(tf.ones((101, 7, 7, 21), dtype))
    np.testing.assert_array_equal(layer(inputs, training=False), inputs.numpy())
    with tf.GradientTape() as tape:
        outputs = layer(inputs, training=True)
    found = outputs.numpy().astype(np.float32)
    zeros = [] if rate == 0 else [0.0]
    np.testing.assert_allclose(np.unique(found), [*zeros, 1 / (1 - rate)], rtol=1e-2)
    # Within five deviations of a share of 103,929 values.
    tolerance = 5 * np.sqrt(rate * (1 - rate) / found.size)
    assert np.mean(found == 0) == pytest.approx(rate, abs=tolerance)
    np.testing.assert_array_equal(tape.gradient(outputs, inputs).numpy(), outputs.numpy())
    assert rate == 0 or not np.array_equal(found, layer(inputs, training=True).numpy())
    again = FewBitsDropout(rate, seed=1, dtype=dtype)
    np.testing.assert_array_equal(found, again(inputs, training=True).numpy())


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("kernel", [1, 2, 3, (5, 4)])
def test_the_convolution_of_few_pixels_is_keras_own(
    monkeypatch: pytest.MonkeyPatch, kernel: int | tuple[int, int], amx: bool
) -> None:
    monkeypatch.setattr(network, "has_amx", lambda: amx)
    settings = {"filters": 6, "kernel_size": kernel, "padding": "same", "activation": "relu"}
    own = FewPixelsConv2D(**settings, dtype="mixed_bfloat16")
    plain = keras.layers.Conv2D(**settings)
    assert own.get_config() == plain.get_config() | {
        "name": own.name,
        "dtype": own.get_config()["dtype"],
    }
    # Whole numbers, and few: exact in bfloat16 too.
    random = np.random.default_rng(0)
    images = tf.Variable(random.integers(-1, 2, (2, 4, 7, 3)).astype(np.float32))
    wanted = random.integers(-1, 2, (2, 4, 7, 6)).astype(np.float32)
    found = []
    for layer in (own, plain):
        layer.build(images.shape)
        values = np.random.default_rng(1).integers(-1, 2, layer.kernel.shape)
        layer.set_weights([values.astype(np.float32), np.ones(6, np.float32)])
        with tf.GradientTape() as tape:
            outputs = layer(images)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * wanted)
        gradients = tape.gradient(loss, [images, *layer.trainable_weights])
        found.append([tf.cast(outputs, tf.float32), *gradients])
    for ours, keras_own in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, keras_own)


def test_convolutions_of_fewer_pixels_than_filters_are_told(architecture: Make) -> None:
    chosen = architecture((8, 80, 24), (), family="plain")

    def few(**settings: Any) -> set[str]:
        layers = small(chosen, **settings).layers
        return {layer.name for layer in layers if isinstance(layer, FewPixelsConv2D)}

    wanted = {"block2a_conv", "block2b_conv", "block3a_conv", "block3b_conv"}
    assert few() == few(smallest=(8, 8)) == wanted
    assert few(fast=False) == set()


OPTIONS: dict[str, dict[str, Any]] = {
    "notebook": {"family": "notebook"},
    "plain": {"family": "plain", "dense_units": ()},
    "residual": {"family": "residual", "dense_units": ()},
    "deep": {
        **{"family": "residual", "squeeze_excitation": True},
        **{"kernel": 5, "convolutions": (1, 3)},
    },
    "depthwise": {"family": "depthwise", "squeeze_excitation": True},
    "members": {"family": "plain", "dense_units": (), "members": 2},
}
FAMILIES = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@FAMILIES
def test_the_fast_network_is_the_plain_one(architecture: Make, options: dict[str, Any]) -> None:
    chosen = architecture((4, 8), **{"dense_units": (8, 4), "dropout": 0.3, **options})
    fast, plain = small(chosen, fast=True), small(chosen, fast=False)
    assert same_weights(fast, plain)
    assert [layer.name for layer in leaves(fast)] == [layer.name for layer in leaves(plain)]
    np.testing.assert_allclose(fast(noise(6)), plain(noise(6)), rtol=1e-5, atol=1e-6)


def test_a_seed_fixes_the_initial_weights(architecture: Make) -> None:
    assert same_weights(small(architecture()), small(architecture()))
    assert not same_weights(small(architecture()), small(architecture(), seed=2))
    kernels = [weight for weight in small(architecture((8, 8))).get_weights() if weight.ndim == 4]
    assert not np.array_equal(kernels[1], kernels[2])


def test_a_seed_fixes_the_dropout_masks(architecture: Make) -> None:
    chosen = architecture(dropout=0.5)
    outputs = [small(chosen, seed=seed)(noise(6), training=True).numpy() for seed in (1, 1, 2)]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-6)
    assert not np.allclose(outputs[0], outputs[2])


LOADED_ELSEWHERE = """
import sys
import keras, numpy as np
images = np.load("images.npy")
for name in sys.argv[1:]:
    model = keras.models.load_model(name + ".keras")
    np.save(name + ".npy", model.predict(images, verbose=0))
assert not any(name.startswith("emotion_detection") for name in sys.modules)
"""


def test_depthwise_splits_all_convolutions_but_the_first(architecture: Make) -> None:
    model = small(architecture((4, 6), (), family="depthwise"))
    kernels = [tuple(weight.shape) for weight in model.trainable_weights if weight.ndim == 4]
    assert kernels == [
        *((3, 3, 3, 4), (3, 3, 4, 1), (1, 1, 4, 4)),
        *((3, 3, 4, 1), (1, 1, 4, 6), (3, 3, 6, 1), (1, 1, 6, 6)),
    ]


def test_a_block_has_as_many_convolutions_as_it_is_told(architecture: Make) -> None:
    def convolutions(family: Family, each: int | tuple[int, ...]) -> list[str]:
        chosen = architecture((4, 6), (), family=family, convolutions=each)
        return [
            layer.name.removesuffix("_conv")
            for layer in small(chosen).layers
            if isinstance(layer, keras.layers.Conv2D)
        ]

    for family in ("notebook", "plain", "depthwise"):
        assert convolutions(family, 1) == ["block1a", "block2a"]
        assert convolutions(family, (1, 3)) == ["block1a", "block2a", "block2b", "block2c"]
    # What is added to three convolutions and has other channels is convolved itself.
    assert sorted(convolutions("residual", (2, 3))) == [
        *("block1a", "block1b", "block1b_skip"),
        *("block2a", "block2b", "block2b_skip", "block2c"),
    ]


def test_a_residual_block_adds_its_input_after_every_two_convolutions(architecture: Make) -> None:
    model = small(architecture((4,), (), family="residual", convolutions=5))
    for half in "bde":
        norm = model.get_layer(f"block1{half}_norm")
        norm.gamma.assign([0.0] * 4)
        norm.beta.assign([0.0] * 4)
    # Convolutions that give nothing leave what was added to them.
    ends = ["block1b_skip_norm", *(f"block1{half}_relu" for half in "bde")]
    seen = keras.Model(model.input, [model.get_layer(name).output for name in ends])(noise(2))
    for found in seen[1:]:
        np.testing.assert_array_equal(found, np.maximum(seen[0], 0))


def test_depthwise_keeps_the_spread_of_its_inputs(architecture: Make) -> None:
    model = small(architecture((4, 256), (), family="depthwise"))
    kernel = model.get_layer("block2b_depthwise").kernel
    assert np.std(kernel) == pytest.approx((2 / 9) ** 0.5, rel=0.1)


def test_a_trained_network_is_saved_as_plain_keras(architecture: Make, tmp_path: Path) -> None:
    images = noise(20, seed=1)
    fast = (FusedBatchNormalization, FewBitsDropout, FewPixelsConv2D)
    np.save(tmp_path / "images.npy", images)
    expected: dict[str, np.ndarray] = {}
    for name, options in OPTIONS.items():
        chosen = architecture(dropout=0.2, **options)
        model = small(chosen, precision="mixed_bfloat16")
        model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
        model.fit(noise(32), np.arange(32) % 3, batch_size=8, epochs=2, verbose=0)
        plain = export(model, chosen)

        layers = [each for each in leaves(plain) if not isinstance(each, keras.layers.InputLayer)]
        assert {layer.dtype_policy.name for layer in layers} == {"float32"}, name
        assert not any(isinstance(layer, fast) for layer in layers), name
        assert same_weights(plain, model), name
        outputs = expected[name] = plain.predict(images, verbose=0)
        np.testing.assert_allclose(outputs, model.predict(images, verbose=0), atol=0.05)

        plain.save(tmp_path / f"{name}.keras")
        reloaded = network.load(tmp_path / f"{name}.keras").predict(images, verbose=0)
        np.testing.assert_allclose(reloaded, outputs, rtol=1e-5, atol=1e-6)
    # TensorFlow takes seconds to start: one process for all.
    subprocess.run([sys.executable, "-c", LOADED_ELSEWHERE, *OPTIONS], check=True, cwd=tmp_path)
    for name, outputs in expected.items():
        found = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(found, outputs, rtol=1e-5, atol=1e-6, err_msg=name)


def test_members_begin_as_networks_of_the_next_seeds_and_give_their_mean(
    architecture: Make,
) -> None:
    together = small(architecture(members=3), seed=4)
    alone = [small(architecture(), seed=seed) for seed in (4, 5, 6)]
    images = noise(6)
    for member, one in zip(single_networks(together), alone, strict=True):
        np.testing.assert_allclose(member(images), one(images), rtol=1e-5, atol=1e-6)
    mean = np.mean([one(images) for one in alone], axis=0)
    np.testing.assert_allclose(together(images), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("average_flips", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_a_saved_network_is_as_it_was_trained(
    architecture: Make, count: int, average_flips: bool
) -> None:
    chosen = architecture(family="plain", members=count, average_flips=average_flips)
    model = small(chosen)
    found = as_trained(export(model, chosen), "mixed_bfloat16")
    assert same_weights(found, model)
    said = found(noise(6))
    assert said.dtype == "float32"
    np.testing.assert_allclose(said, model(noise(6)), atol=0.02)
    kinds = {type(layer) for layer in leaves(found)}
    assert FusedBatchNormalization in kinds
    assert keras.layers.BatchNormalization not in kinds
    probabilities = [layer for layer in leaves(found) if layer.name == "probabilities"]
    assert [layer.dtype_policy.name for layer in probabilities] == ["float32"] * count


@FAMILIES
def test_with_average_flips_an_image_and_its_mirror_image_are_one(
    architecture: Make, tmp_path: Path, options: dict[str, Any]
) -> None:
    chosen = architecture(average_flips=True, **options)
    model = small(chosen)
    served = export(model, chosen)
    images = noise(6)
    mean = (model(images).numpy() + model(images[:, :, ::-1]).numpy()) / 2
    served.save(tmp_path / "model.keras")
    for found in (served, network.load(tmp_path / "model.keras")):
        np.testing.assert_allclose(found(images), mean, rtol=1e-5, atol=1e-6)
    assert served.count_params() == model.count_params()
    assert served.input_shape == model.input_shape


def test_with_average_shifts_an_image_and_its_neighbours_are_one(
    architecture: Make, tmp_path: Path
) -> None:
    chosen = architecture(family="plain", average_flips=True, average_shifts=2)
    model = small(chosen)
    images = noise(6)
    wider = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="symmetric")
    views = [images, *(wider[:, y : y + 16, x : x + 16] for y in (0, 4) for x in (0, 4))]
    views += [view[:, :, ::-1] for view in views]
    mean = np.mean([model(view).numpy() for view in views], axis=0)
    export(model, chosen).save(tmp_path / "model.keras")
    np.testing.assert_allclose(
        network.load(tmp_path / "model.keras")(images), mean, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("average_flips", [False, True])
def test_the_saved_network_softens_an_image_as_a_gaussian_does(
    architecture: Make, tmp_path: Path, average_flips: bool
) -> None:
    chosen = architecture(family="plain", average_flips=average_flips, soften=0.7)
    model, images = small(chosen), noise(6)
    blurred = gaussian_filter(images.astype(np.float32), (0, 0.7, 0.7, 0), mode="reflect")
    views = [blurred, blurred[:, :, ::-1]] if average_flips else [blurred]
    exact = small(chosen, pixels="float32")
    exact.set_weights(model.get_weights())
    mean = np.mean([exact(view).numpy() for view in views], axis=0)
    export(model, chosen).save(tmp_path / "model.keras")
    loaded = network.load(tmp_path / "model.keras")
    assert loaded.input.dtype == "uint8"
    np.testing.assert_allclose(loaded(images), mean, rtol=1e-3, atol=1e-4)
    assert not np.allclose(model(images), mean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("image_shape", "most"),
    [((16, 16, 3), 4), ((48, 20, 1), 4), ((48, 48, 3), 5), ((31, 64, 3), 4)],
)
def test_a_network_as_deep_as_fits_is_built_and_no_deeper(
    architecture: Make, image_shape: tuple[int, int, int], most: int
) -> None:
    # Of the others, the last block does not halve.
    families: tuple[tuple[Family, int], ...] = (("notebook", most), ("plain", most + 1))
    for family, fitting in families:
        build(architecture((2,) * fitting, family=family), image_shape=image_shape, classes=3)
        with pytest.raises(
            UserError,
            match=rf"{fitting + 1} blocks is too deep for images of "
            rf"{image_shape[0]}x{image_shape[1]}.*at most {fitting} blocks fit.*image_size",
        ):
            architecture((2,) * (fitting + 1), family=family).check(image_shape)


def test_a_network_for_smaller_images_must_fit_them_and_flatten_nothing(
    architecture: Make,
) -> None:
    plain = architecture((2, 2, 2), (), family="plain")
    model = build(plain, image_shape=(16, 16, 3), classes=3, smallest=(10, 9))
    assert model(np.zeros((1, 10, 9, 3), np.uint8)).shape == (1, 3)
    with pytest.raises(UserError, match="3 blocks is too deep for images of 3x16"):
        build(plain, image_shape=(16, 16, 3), classes=3, smallest=(3, 16))
    with pytest.raises(UserError, match=r"progressive_resizing.*family notebook.*one size"):
        build(architecture(), image_shape=(16, 16, 3), classes=3, smallest=(10, 9))


def test_shifts_beyond_the_images_are_refused_before_training(architecture: Make) -> None:
    small(architecture(average_shifts=16))
    with pytest.raises(UserError, match=r"average_shifts = 17 .* 16x16 .*use at most 16"):
        small(architecture(average_shifts=17))


def operations_of(model: keras.Model) -> float:
    """Count two operations for each weight of a kernel, everywhere that it is applied."""
    operations = 0
    for layer in leaves(model):
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            _, height, width, _ = layer.output.shape
            operations += 2 * height * width * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Dense):
            operations += 2 * int(np.prod(layer.kernel.shape))
    return operations / 1e9


@pytest.mark.parametrize("image_shape", [(16, 16, 3), (21, 34, 1)])
def test_the_cost_of_a_network_is_that_of_its_layers(
    architecture: Make, image_shape: tuple[int, int, int]
) -> None:
    for chosen in (
        architecture((3,), (5,)),
        architecture((4, 9, 5), (8, 6), kernel=5),
        architecture((4, 9, 9), (), family="plain"),
        architecture((4, 9, 9), (6,), family="residual", squeeze_excitation=True),
        architecture((4, 9, 9), (), family="depthwise", kernel=5),
        architecture((4, 9), (), family="plain", convolutions=(1, 3), squeeze_excitation=True),
        architecture((4, 9), (), family="residual", convolutions=(1, 5), squeeze_excitation=True),
        architecture((4, 9), (), family="depthwise", convolutions=3),
        architecture((3,), (5,), members=3),
    ):
        model = build(chosen, image_shape=image_shape, classes=4)
        assert chosen.forward_gflops(image_shape, 4) == pytest.approx(operations_of(model))


def test_the_notebooks_network_costs_a_third_of_a_gflop() -> None:
    assert NOTEBOOK.forward_gflops((48, 48, 3), 7) == pytest.approx(0.347, abs=0.0005)


def test_a_model_that_is_not_there_or_not_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    with pytest.raises(UserError, match=r"model\.keras: cannot be loaded .*dvc repro train"):
        network.load(path)
    path.write_bytes(b"PK\x03\x04 no model")
    with pytest.raises(UserError, match=r"model\.keras: cannot be loaded .*dvc repro train"):
        network.load(path)
