"""This project's code, taking turns."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from benchmarks.material import SEED
from benchmarks.turns import Turn
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.models import layers, saving
from emotion_detection.models.hardware import resolve_precision
from emotion_detection.models.network import build
from emotion_detection.settings.params import Augment, Network, Train
from emotion_detection.training.fit import fit
from emotion_detection.training.loader import training_batches, without_autotune


def settings(batch_size: int, epochs: int, augment: Augment | None = None) -> Train:
    """Return the notebook's settings, without early stopping."""
    return Train(lr=5e-4, batch_size=batch_size, epochs=epochs, augment=augment or Augment())


def make(
    network: Network,
    dataset: Dataset,
    precision: str = "auto",
    fast: bool = True,
    seed: int = SEED,
) -> keras.Model:
    """Build the network as train does, or of plain Keras layers where not `fast`."""
    return build(
        network,
        image_shape=dataset.images.shape[1:],
        classes=len(dataset.classes),
        precision=resolve_precision(precision)[0],
        fast=fast,
        seed=seed,
    )


def train(
    turn: Turn,
    network: Network,
    packed: Path,
    rows: np.ndarray,
    batch_size: int,
    precision: str = "auto",
) -> None:
    """Train for ever with `training.fit`, a turn an epoch over `rows`."""
    dataset = Dataset.open(packed)

    def next_turn(figures: Mapping[str, float], epoch: int) -> None:
        turn.end(len(rows))
        turn.begin()

    turn.begin()
    fit(
        make(network, dataset, precision),
        dataset,
        Split(train=rows, validation=rows[:batch_size], test=rows[:0], selected_on_test=False),
        settings(batch_size, 1000),
        seed=SEED,
        log_epoch=next_turn,
    )


def train_by_onednn(turn: Turn, **arguments: Any) -> None:
    """Train as `train` does, with oneDNN's gradients of every convolution, AMX or not."""
    with mock.patch.object(layers, "has_amx", return_value=False):
        train(turn, **arguments)


def step(
    turn: Turn,
    network: Network,
    packed: Path,
    rows: np.ndarray,
    batch_size: int,
    *,
    metrics: bool = True,
    optimizer: str = "adam",
    steps_per_execution: int = 1,
) -> None:
    """Train for ever on one batch that is there already, a turn as many steps as `rows` have."""
    dataset = Dataset.open(packed)
    model = make(network, dataset)
    model.compile(
        optimizer,
        keras.losses.CategoricalCrossentropy(),
        metrics=["accuracy"] if metrics else None,
        steps_per_execution=steps_per_execution,
        jit_compile=False,
    )
    batch = next(iter(training_batches(dataset, rows, settings(batch_size, 1), seed=SEED)))
    batches = without_autotune(tf.data.Dataset.from_tensors(batch).repeat())
    steps = len(rows) // batch_size
    while True:
        turn.begin()
        model.fit(batches, steps_per_epoch=steps, verbose=0)
        turn.end(steps * batch_size)


def feed(turn: Turn, packed: Path, rows: np.ndarray, batch_size: int, augment: Augment) -> None:
    """Make batches of augmented images for ever, and do nothing with them."""
    chosen = settings(batch_size, 1, augment)
    stream = iter(training_batches(Dataset.open(packed), rows, chosen, seed=SEED))
    steps = len(rows) // batch_size
    while True:
        turn.begin()
        for _ in range(steps):
            next(stream)
        turn.end(steps * batch_size)


def waiting(
    turn: Turn,
    network: Network,
    packed: Path,
    rows: np.ndarray,
    batch_size: int,
    augment: Augment | None,
) -> None:
    """Give, a turn, the share of its time that an epoch's steps spend waiting for their batch."""
    dataset = Dataset.open(packed)
    model = make(network, dataset)
    model.compile(
        keras.optimizers.Adam(5e-4),
        keras.losses.CategoricalCrossentropy(),
        metrics=["accuracy"],
        jit_compile=False,
    )
    stream = iter(training_batches(dataset, rows, settings(batch_size, 1, augment), seed=SEED))
    while True:
        turn.begin()
        began = time.perf_counter()
        waited = 0.0
        for _ in range(len(rows) // batch_size):
            asked = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - asked
            model.train_on_batch(*batch)
        turn.give(waited / (time.perf_counter() - began))


def score(turn: Turn, packed: Path, model: Path) -> None:
    """Predict the test images for ever with a saved model, as evaluate does."""
    dataset = Dataset.open(packed)
    loaded, _ = saving.load(model)
    rows = dataset.is_test.nonzero()[0]
    while True:
        turn.begin()
        saving.predict(loaded, dataset.images, rows)
        turn.end(len(rows))


def matrix_product(turn: Turn, dtype: str, side: int = 4096) -> None:
    """Return the floating-point operations a second of a large matrix product."""
    matrix = tf.cast(tf.random.normal((side, side)), dtype)
    multiply = tf.function(lambda: tf.reduce_sum(tf.cast(tf.matmul(matrix, matrix)[0], tf.float32)))
    while True:
        turn.begin()
        for _ in range(5):
            multiply().numpy()
        turn.end(5 * 2 * side**3)
