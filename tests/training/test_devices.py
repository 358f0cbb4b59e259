"""Training on several devices, for which the processor is made two of."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

# TensorFlow settles on its devices once a process.
SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
import tensorflow as tf

processor, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)

from emotion_detection.settings import params
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import split
from emotion_detection.models.hardware import strategy
from emotion_detection.models.network import build
from emotion_detection.training.checkpoints import Checkpoints
from emotion_detection.training.fit import fit

dataset = Dataset.open(Path(sys.argv[1]))
rows = split(dataset, params.Split(fraction=0.2, seed=0))
network = params.Network(
    arch="notebook", filters=(8,), kernel_sizes=(3,), convolutions=1,
    conv_dropout=0.2, dense_dropout=0.2,
    bn_momentum=0.8,
)
# Devices drop values of their own.
still = network.model_copy(update={"conv_dropout": 0.0, "dense_dropout": 0.0})
answers = {}

def train(kind, network=network, epochs=4, folder=None, stop=False, lr=1e-2):
    devices = strategy(kind)
    with devices.scope():
        model = build(network, image_shape=(16, 16, 3), classes=3, seed=0)
    seen = []
    def log_epoch(figures, epoch):
        seen.append(epoch)
        if stop and epoch == 3:
            raise KeyboardInterrupt
    settings = params.Train(
        lr=lr, batch_size=20, epochs=epochs, schedule="one_cycle", weight_decay=0.01, ema=0.1,
        class_weights=1.0,
    )
    history = fit(
        model, dataset, rows, settings, seed=0, log_epoch=log_epoch,
        checkpoints=folder and Checkpoints(Path(sys.argv[2], folder)),
    )
    return devices, model, history.drop(columns="seconds"), seen

def facts(kind):
    devices, model, history, _ = train(kind, still, folder=kind)
    return {
        "replicas": devices.num_replicas_in_sync,
        "steps": int(model.optimizer.iterations.numpy()),
        "history": history.to_dict("list"),
    }

answers["one"], answers["two"] = facts("GPU"), facts("CPU")

# What the first normalisation has seen of one epoch, and of which images.
devices, model, _, _ = train("CPU", epochs=1, lr=1e-12)
copies = model.get_layer("block1a_norm")
features = tf.keras.Model(model.input, model.get_layer("block1a_conv").output)(
    dataset.images[rows.train]
).numpy().astype(np.float64)
answers["moving"] = {
    "mean": [copy.numpy().tolist() for copy in copies.moving_mean.value.values],
    "variance": [copy.numpy().tolist() for copy in copies.moving_variance.value.values],
    "of the images": [features.mean((0, 1, 2)).tolist(), features.var((0, 1, 2)).tolist()],
}

_, uninterrupted, history, _ = train("CPU", folder="uninterrupted")
answers["uninterrupted"] = {"history": history.to_dict("list")}
try:
    train("CPU", folder="interrupted", stop=True)
except KeyboardInterrupt:
    pass
_, resumed, history, seen = train("CPU", folder="interrupted")
answers["resumed"] = {
    "epochs": seen,
    "history": history.to_dict("list"),
    "weights": max(
        float(np.abs(a - b).max())
        for a, b in zip(resumed.get_weights(), uninterrupted.get_weights(), strict=True)
    ),
}
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    states = str(tmp_path_factory.mktemp("states"))
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", SCRIPT, str(packed), states],
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_two_devices_take_as_many_steps_and_learn_the_same(answers: dict[str, Any]) -> None:
    one, two = answers["one"], answers["two"]
    assert (one["replicas"], two["replicas"]) == (1, 2)
    for each in (one, two):
        # The weights, and the optimizer with them, are those of the best epoch.
        best = int(np.argmax(each["history"]["val_accuracy"])) + 1
        assert each["steps"] == 4 * best
    assert one["history"]["lr"] == two["history"]["lr"]
    assert two["history"]["loss"] == pytest.approx(one["history"]["loss"], rel=0.25, abs=0.1)
    assert two["history"]["val_loss"] == pytest.approx(
        one["history"]["val_loss"], rel=0.25, abs=0.1
    )
    assert two["history"]["val_accuracy"][-1] == 1.0


def test_moving_statistics_are_of_the_whole_batch_on_every_device(answers: dict[str, Any]) -> None:
    moving = answers["moving"]
    mean, variance = (np.array(values) for values in moving["of the images"])
    # Four batches with a momentum of 0.8, from 0 and from 1.
    kept = 0.8**4
    for copies, expected in (
        (moving["mean"], (1 - kept) * mean),
        (moving["variance"], kept + (1 - kept) * variance),
    ):
        assert copies[0] == copies[1]
        np.testing.assert_allclose(copies[0], expected, rtol=0.05, atol=0.01)


def test_an_interrupted_training_on_two_devices_ends_as_an_uninterrupted_one(
    answers: dict[str, Any],
) -> None:
    resumed = answers["resumed"]
    assert resumed["epochs"] == [3, 4]
    for name, values in answers["uninterrupted"]["history"].items():
        assert resumed["history"][name] == pytest.approx(values, rel=1e-3), name
    assert resumed["weights"] < 1e-3
