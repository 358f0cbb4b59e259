"""The faster layers compute what Keras's own do, and a plain copy has only Keras's."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from emotion_detection.models import layers, saving
from emotion_detection.models.layers import (
    FewBitsDropout,
    FewPixelsConv2D,
    FusedBatchNormalization,
    plain,
)
from emotion_detection.settings.params import Network
from tests.support import warm
from tests.support.networks import KINDS, noise, same_weights, small

Make = Callable[..., Network]


Steps = list[dict[str, np.ndarray]]


def normalise(
    layer: keras.layers.Layer, batches: list[np.ndarray], slope: np.ndarray, *, training: bool
) -> Steps:
    """Return what `layer` makes of `batches`, and gradients of a loss that weighs by `slope`."""
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
    monkeypatch.setattr(layers, "has_amx", lambda: amx)
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


LOADED_ELSEWHERE = """
import sys
import keras, numpy as np
images = np.load("images.npy")
for name in sys.argv[1:]:
    model = keras.models.load_model(name + ".keras")
    np.save(name + ".npy", model(images))
assert not any(name.startswith("emotion_detection") for name in sys.modules)
"""


def test_a_trained_network_is_saved_as_plain_keras(network: Make, tmp_path: Path) -> None:
    images = noise(20, seed=1)
    fast = (FusedBatchNormalization, FewBitsDropout, FewPixelsConv2D)
    np.save(tmp_path / "images.npy", images)
    expected: dict[str, np.ndarray] = {}
    for name, options in KINDS.items():
        model = small(network(dropout=0.2, **options), precision="mixed_bfloat16")
        # Two steps are not worth a graph.
        model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
        model.fit(noise(32), np.arange(32) % 3, batch_size=16, verbose=0)
        copy = plain(model)

        kinds = [type(layer) for layer in copy.layers]
        assert {kind.__module__.partition(".")[0] for kind in kinds} == {"keras"}, name
        assert not any(issubclass(kind, fast) for kind in kinds), name
        policies = {layer.dtype_policy.name for layer in copy.layers[1:]}
        assert policies == {"float32"}, name
        assert same_weights(copy, model), name
        outputs = expected[name] = copy(images).numpy()
        np.testing.assert_allclose(outputs, model(images), atol=0.05)

        saving.save(copy, tmp_path / f"{name}.keras", ("a", "b", "c"))
        reloaded, _ = saving.load(tmp_path / f"{name}.keras")
        np.testing.assert_allclose(reloaded(images), outputs, rtol=1e-5, atol=1e-6)
    # TensorFlow takes seconds to start: one process for all.
    subprocess.run([warm.python(), "-c", LOADED_ELSEWHERE, *KINDS], check=True, cwd=tmp_path)
    for name, outputs in expected.items():
        found = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(found, outputs, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_plain_copy_of_a_network_for_any_size_takes_images_of_one(network: Make) -> None:
    model = small(network(arch="plain"), any_size=True)
    copy = plain(model, (16, 16, 3))
    assert copy.input_shape == (None, 16, 16, 3)
    assert copy.input.dtype == "uint8"
    np.testing.assert_allclose(copy(noise(6)), model(noise(6)), rtol=1e-5, atol=1e-6)
