"""Training a network: precision, loss, callbacks and what is shown meanwhile."""

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from emotion_detection.console import UserError, log
from emotion_detection.data.dataset import Dataset
from emotion_detection.files import atomic, write_json
from emotion_detection.models.network import single_networks
from emotion_detection.params import Augment, LowResolution
from emotion_detection.training.loader import (
    as_it_is,
    evaluation_batches,
    low_size,
    steps_per_epoch,
    training_batches,
)

WEIGHTS = "model.weights.h5"

LogEpoch = Callable[[Mapping[str, float], int], None]
"""Called after every epoch with its figures and its number, from 1."""

Teach = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""From images (N, H, W, C) uint8 and targets (N, classes) float32 to what is learnt of them."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, whatever the network; `None` switches a patience off.

    `one_cycle` raises lr from a 25th over the `warmup` share of all steps and lowers it to nothing
    along a cosine (arXiv 1708.07120), `plateau` lowers it as val_loss says, and `constant` keeps
    it. `weight_decay` is decoupled (arXiv 1711.05101) and leaves biases and normalisations alone.
    With `ema`, what is validated and kept is an exponential moving average of the
    weights over about that share of all steps. `class_weights` is the power of its class's inverse
    frequency that weighs an image's loss: at 1 every class has the same say. `progressive_resizing`
    begins on smaller images (progressive resizing, as in arXiv 2104.00298), for a network that was
    built for any size. The last `no_aug_epochs` have of `augment` only what leaves pixels as they
    are, so that a network ends on images like those it will see (arXiv 1909.09148).
    """

    lr: float
    batch_size: int
    epochs: int
    early_stopping_patience: int | None
    reduce_lr_patience: int | None = None
    reduce_lr_factor: float = 0.5
    optimizer: str = "adam"
    schedule: str = "constant"
    warmup: float = 0.3
    weight_decay: float = 0.0
    ema: float = 0.0
    label_smoothing: float = 0.0
    class_weights: float = 0.0
    progressive_resizing: LowResolution | None = None
    augment: Augment | None = None
    no_aug_epochs: int = 0

    def smallest(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return the smallest height and width of images of `size`, where they have several."""
        low = self.progressive_resizing
        return low_size(size, low.scale) if low is not None and low.epochs else None


@functools.cache
def strategy(kind: str = "GPU") -> tf.distribute.Strategy:
    """Return what a network is to be built under: all devices of `kind` where there are several.

    Each then has a copy of the network and a part of every batch (`tf.distribute`); a single one,
    or none, is left to TensorFlow.
    """
    devices = tf.config.list_logical_devices(kind)
    if len(devices) < 2:
        return tf.distribute.get_strategy()
    log.info("each batch is shared among %d devices", len(devices))
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def be_deterministic(seed: int) -> None:
    """Have TensorFlow compute the same bits each time from now on; there is no way back.

    Operations that add up in the order in which threads end take a fixed one, and are slower.
    What draws from no seed of its own draws from `seed`.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def digest(model: keras.Model) -> str:
    """Return the SHA-256, in hex, of the weights of `model` in their order: types, shapes, values."""
    found = hashlib.sha256()
    for weight in model.get_weights():
        found.update(f"{weight.dtype} {weight.shape} ".encode())
        found.update(np.ascontiguousarray(weight).tobytes())
    return found.hexdigest()


class Checkpoints:
    """The finished epochs of a training that a cut-off one goes on from: the last and the best.

    A folder an epoch holds the weights, the optimizer's state and the history up to there. It
    appears whole, and an older one goes only after it.
    """

    def __init__(self, folder: Path) -> None:
        """Keep them in `folder`; the caller names it after all that the training depends on."""
        self._folder = folder

    def begun(self) -> bool:
        """Say if there is an epoch to go on from."""
        return bool(self._epochs())

    def resume(self, model: keras.Model) -> tuple[list[dict[str, float]], bool]:
        """Put the compiled `model` where the last epoch left it; give the history and if it ended.

        Raises:
            UserError: if the checkpoint is damaged.

        """
        epochs = self._epochs()
        if not epochs:
            return [], False
        try:
            kept = json.loads((epochs[-1] / "history.json").read_text(encoding="utf-8"))
            model.load_weights(epochs[-1] / WEIGHTS)
            for variable, state in zip(_random_state(model), kept["random_state"], strict=True):
                variable.assign(state)
            return kept["rows"], kept["ended"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{epochs[-1]}: damaged checkpoint ({error}); remove {self._folder} to train anew"
            ) from error

    def save(self, model: keras.Model, rows: list[dict[str, float]], ended: bool) -> None:
        """Keep the epoch that `rows` end with, and drop what is neither the last nor the best."""
        with atomic(self._path(len(rows))) as folder:
            folder.mkdir()
            model.save_weights(folder / WEIGHTS)
            states = [variable.numpy().tolist() for variable in _random_state(model)]
            kept = {"rows": rows, "ended": ended, "random_state": states}
            write_json(folder / "history.json", kept)
        needed = {self._path(len(rows)), self._path(_best(rows))}
        for folder in self._epochs():
            if folder not in needed:
                shutil.rmtree(folder)

    def load_best(self, model: keras.Model, rows: list[dict[str, float]]) -> None:
        """Set `model` to the weights of the best epoch of `rows`."""
        model.load_weights(self._path(_best(rows)) / WEIGHTS)
        model.optimizer.finalize_variable_values(model.trainable_variables)

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch_{epoch:05d}"

    def _epochs(self) -> list[Path]:
        return sorted(self._folder.glob("epoch_*"))


def _random_state(model: keras.Model) -> list[keras.Variable]:
    """Return what dropout draws its next masks from; Keras does not count it among the weights."""
    return [variable for variable in model.variables if variable.name == "seed_generator_state"]


def fit(
    model: keras.Model,
    dataset: Dataset,
    *,
    train: np.ndarray,
    validation: np.ndarray,
    recipe: Recipe,
    seed: int,
    log_epoch: LogEpoch,
    teach: Teach | None = None,
    checkpoints: Checkpoints | None = None,
    log_kept: bool = False,
    first_epoch: int = 0,
    verbose: bool = True,
) -> pd.DataFrame:
    """Train `model` on rows `train` of `dataset` and return its history, a row an epoch.

    What it learns of a batch are its labels, or what `teach` makes of them; accuracy, and all of
    validation, are by the labels. A second member sees the batches of the next seed, so that each
    is the network that it would be alone, and loss and accuracy are the means of their own; what is
    validated is what they say together.

    Columns: epoch (from 1), loss, accuracy, val_loss, val_accuracy, lr, seconds. With
    `checkpoints`, a training that was cut off goes on after its last finished epoch, and the
    model ends with the weights of the best epoch; without, it starts at `first_epoch`, its schedule
    with it, and ends with those of the last. `log_kept` logs the epochs before the cut too. What
    was built under a `strategy` of several devices trains on them.

    Raises:
        UserError: if the batch is larger than the training rows or too small for the devices, a
            checkpoint is damaged, or the loss of the best epoch is no number.

    """
    if recipe.batch_size > len(train):
        raise UserError(
            f"batch_size = {recipe.batch_size} is larger than the {len(train):,} training images; "
            f"use at most {len(train):,}"
        )
    steps = steps_per_epoch(len(train), recipe.batch_size)
    devices = model.distribute_strategy
    members = single_networks(model)
    learner = teach is not None or len(members) > 1
    if learner:
        with devices.scope():
            model = _Learner(model, members, teach)
    replicas = devices.num_replicas_in_sync
    for images in (len(train), len(validation)):
        if images < steps_per_epoch(images, recipe.batch_size) * replicas:
            raise UserError(
                f"batch_size = {recipe.batch_size} leaves some of {replicas} devices without an "
                f"image; use at least {2 * replicas}"
            )
    with devices.scope():
        model.compile(
            _optimizer(recipe, steps * (recipe.epochs - first_epoch)),
            keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing),
            metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
            # XLA's convolutions on a CPU are slower than oneDNN's.
            jit_compile=False,
        )
        # A step that had its variables still to make would be traced twice.
        model.optimizer.build(model.trainable_variables)
    rows: list[dict[str, float]] = []
    ended = False
    if checkpoints is not None:
        with devices.scope():
            rows, ended = checkpoints.resume(model)
        first_epoch = len(rows)
        if rows:
            log.info("going on after epoch %d of a training that was cut off", first_epoch)
        for row in rows if log_kept else []:
            log_epoch(_figures(row), int(row["epoch"]))
    if not ended and first_epoch < recipe.epochs:
        followers = _followers(recipe)
        epochs = _Epochs(rows, recipe, steps, log_epoch, followers, verbose)
        callbacks = [*followers, keras.callbacks.TerminateOnNaN(), epochs]
        if recipe.ema:
            callbacks.append(keras.callbacks.SwapEMAWeights())
        if checkpoints is not None:
            callbacks.append(_Keep(checkpoints, rows))
        class_weights = _class_weights(dataset, train, recipe.class_weights)
        batches = [
            _weighed(
                training_batches(
                    dataset,
                    train,
                    recipe.batch_size,
                    seed=seed + member,
                    augmentation=recipe.augment,
                    light_from=recipe.epochs - recipe.no_aug_epochs,
                    progressive_resizing=recipe.progressive_resizing,
                    first_epoch=first_epoch,
                    replicas=replicas,
                ),
                class_weights,
            )
            for member in range(len(members))
        ]
        model.fit(
            _spread(_side_by_side(batches) if learner else batches[0], devices),
            steps_per_epoch=steps,
            epochs=recipe.epochs,
            initial_epoch=first_epoch,
            validation_data=_spread(
                evaluation_batches(dataset, validation, recipe.batch_size, replicas=replicas),
                devices,
            ),
            validation_steps=(
                steps_per_epoch(len(validation), recipe.batch_size) if replicas > 1 else None
            ),
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
        )
    if checkpoints is not None:
        with devices.scope():
            checkpoints.load_best(model, rows)
    history = pd.DataFrame(rows)
    last, kept = history.iloc[-1], best_epoch(history)
    if not np.isfinite([kept["loss"], kept["val_loss"]]).all():
        raise UserError(
            f"lr = {recipe.lr:g}: the loss of epoch {kept['epoch']:.0f} is {kept['loss']}, and "
            f"{kept['val_loss']} on validation; give a lower one"
        )
    if not np.isfinite(last["loss"]):
        log.warning(
            "lr = %g: the loss of epoch %d is %s, and the training ends there, its best epoch %d: "
            "a lower lr goes further",
            *(recipe.lr, last["epoch"], last["loss"], kept["epoch"]),
        )
    return history


class _Learner(keras.Model):
    """Trains the `members` of `model`, by what `teach` says of an image or else by its label.

    Each has batches of its own, which come side by side: (N, members, H, W, C). Of one that they
    all have, (N, H, W, C), it gives what they say together.
    """

    def __init__(
        self, model: keras.Model, members: Sequence[keras.Model], teach: Teach | None
    ) -> None:
        super().__init__(name=model.name)
        self.network = model
        self._teach = teach

        def each(images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
            own = zip(members, tf.unstack(images, axis=1), strict=True)
            return tf.stack([member(seen, training=training) for member, seen in own], axis=1)

        # Keras would keep the members in an attribute with the weights of this one, once more.
        self._each = each
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        """Return the probabilities (N, members, classes) of each, or (N, classes) of all together."""
        return (self._each if len(inputs.shape) == 5 else self.network)(inputs, training=training)

    def compute_loss(
        self,
        x: tf.Tensor,
        y: tf.Tensor,
        y_pred: tf.Tensor,
        sample_weight: tf.Tensor | None = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Return the mean loss of a batch: that of the members, each on its own, or of all."""
        loss = super().compute_loss
        if len(y_pred.shape) == 2:
            return loss(x, y, y_pred, sample_weight, training)
        if self._teach is not None:
            own = zip(tf.unstack(x, axis=1), tf.unstack(y, axis=1), strict=True)
            y = tf.stack([self._teach(images, targets) for images, targets in own], axis=1)
        mean = loss(x, y, y_pred, sample_weight, training)
        # A member gets the gradient that it would get alone.
        return mean + (y_pred.shape[1] - 1) * (mean - tf.stop_gradient(mean))


def _optimizer(recipe: Recipe, steps: int) -> keras.optimizers.Optimizer:
    lr: Any = recipe.lr
    if recipe.schedule == "one_cycle":
        warmup = max(1, round(recipe.warmup * steps))
        lr = keras.optimizers.schedules.CosineDecay(
            recipe.lr / 25, max(1, steps - warmup), warmup_target=recipe.lr, warmup_steps=warmup
        )
    averaging: dict[str, Any] = {}
    if recipe.ema:
        decay = 1 - 1 / max(1.0, recipe.ema * steps)
        averaging = {"use_ema": True, "ema_momentum": decay}
    if recipe.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(
            lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay or None, **averaging
        )
    else:
        optimizer = keras.optimizers.Adam(lr, weight_decay=recipe.weight_decay or None, **averaging)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _followers(recipe: Recipe) -> list[keras.callbacks.Callback]:
    """Return the callbacks that act on how val_loss goes."""
    followers: list[keras.callbacks.Callback] = []
    if recipe.schedule == "plateau" and recipe.reduce_lr_patience is not None:
        followers.append(
            keras.callbacks.ReduceLROnPlateau(
                monitor="val_loss",
                patience=recipe.reduce_lr_patience,
                factor=recipe.reduce_lr_factor,
            )
        )
    if recipe.early_stopping_patience is not None:
        followers.append(
            keras.callbacks.EarlyStopping(
                monitor="val_loss", patience=recipe.early_stopping_patience
            )
        )
    return followers


def _best(rows: Sequence[Mapping[str, float]]) -> int:
    return int(best_epoch(pd.DataFrame(rows))["epoch"])


def best_epoch(history: pd.DataFrame) -> pd.Series:
    """Return the row of the epoch that is kept: the first with the highest val_accuracy."""
    return history.iloc[int(history["val_accuracy"].argmax())]


def _class_weights(dataset: Dataset, rows: np.ndarray, power: float) -> np.ndarray | None:
    """Return a weight a class whose mean over `rows`, by their labels, is 1."""
    if power == 0:
        return None
    counts = np.bincount(dataset.labels[rows], minlength=len(dataset.classes))
    weights = 1 / counts**power
    return (weights * len(rows) / (weights * counts).sum()).astype(np.float32)


def _weighed(batches: tf.data.Dataset, weights: np.ndarray | None) -> tf.data.Dataset:
    """Return `batches` with the weights of their images' classes, or of the shares of them in each.

    Keras's `class_weight` knows no shares, and no batch that several devices have parts of.
    """
    if weights is None:
        return batches

    @as_it_is
    def weigh(images: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return images, targets, tf.linalg.matvec(targets, weights)

    return batches.map(weigh)


def _side_by_side(batches: Sequence[tf.data.Dataset]) -> tf.data.Dataset:
    """Return a batch of each at once, all that belongs to an image along axis 1."""

    @as_it_is
    def stack(*each: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        return tuple(tf.stack(parts, axis=1) for parts in zip(*each, strict=True))

    return tf.data.Dataset.zip(tuple(batches)).map(stack)


def _spread(batches: tf.data.Dataset, devices: tf.distribute.Strategy) -> Any:
    """Hand each part of a batch to a device of its own, pass after pass."""
    if devices.num_replicas_in_sync == 1:
        return batches
    # Keras would take the number of parts for that of batches; it is told where a pass ends.
    return devices.distribute_datasets_from_function(lambda _: batches.repeat())


class _Epochs(keras.callbacks.Callback):
    """A progress bar, a log line and a history row an epoch; rows of earlier ones are there."""

    def __init__(
        self,
        rows: list[dict[str, float]],
        recipe: Recipe,
        steps: int,
        log_epoch: LogEpoch,
        followers: Sequence[keras.callbacks.Callback],
        verbose: bool,
    ) -> None:
        super().__init__()
        self._rows, self._epochs, self._steps = rows, recipe.epochs, steps
        self._low = recipe.progressive_resizing
        self._scheduled = recipe.schedule == "one_cycle"
        self._log_epoch, self._followers, self._verbose = log_epoch, followers, verbose

    def on_train_begin(self, logs: object = None) -> None:
        # Keras's callbacks count from zero at every start: they are told what they missed.
        for row in self._rows:
            if not self._scheduled:
                self.model.optimizer.learning_rate = row["lr"]
            for callback in self._followers:
                callback.on_epoch_end(int(row["epoch"]) - 1, dict(row))

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self._began = time.monotonic()
        self._lr = _plain(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self._bar = tqdm(
            total=self._steps,
            desc=f"epoch {epoch + 1}/{self._epochs}",
            unit=" batches",
            leave=False,
            delay=2.0,
            disable=None,
        )

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self._bar.update()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._bar.close()
        figures = {name: _plain(value) for name, value in (logs or {}).items()}
        row = {
            "epoch": epoch + 1,
            **{name: figures[name] for name in ("loss", "accuracy", "val_loss", "val_accuracy")},
            "lr": self._lr,
            "seconds": round(time.monotonic() - self._began, 3),
        }
        self._rows.append(row)
        self._log_epoch(_figures(row), epoch + 1)
        if self._verbose:
            log.info("%s", _line(row, self._epochs, self._seconds_left(row)))

    def _seconds_left(self, row: Mapping[str, float]) -> float:
        low, done = self._low, int(row["epoch"])
        if low is None or done > low.epochs:
            return (self._epochs - done) * row["seconds"]
        in_full = row["seconds"] / low.scale**2
        return (low.epochs - done) * row["seconds"] + (self._epochs - low.epochs) * in_full


def _figures(row: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "epoch"}


class _Keep(keras.callbacks.Callback):
    """Keeps every finished epoch, after all others had their say about it."""

    def __init__(self, checkpoints: Checkpoints, rows: list[dict[str, float]]) -> None:
        super().__init__()
        self._checkpoints, self._rows = checkpoints, rows

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self._checkpoints.save(self.model, self._rows, ended=self.model.stop_training)


def _plain(value: Any) -> float:
    """Return a float32 by its shortest digits: 0.86 and not 0.8600000143."""
    return float(str(np.float32(value)))


def _line(row: Mapping[str, float], epochs: int, left: float) -> str:
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['loss']:.3f}  "
        f"accuracy {row['accuracy']:.3f}  val_loss {row['val_loss']:.3f}  "
        f"val_accuracy {row['val_accuracy']:.3f}  lr {row['lr']:.1e}  "
        f"{row['seconds']:.0f} s, at most {duration(left)} left"
    )


def duration(seconds: float) -> str:
    """Return `seconds` as a person says it: 42 s, 7 min, 3.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def predict(
    model: keras.Model, dataset: Dataset, rows: Sequence[int] | np.ndarray, batch_size: int
) -> np.ndarray:
    """Return the probabilities (len(rows), classes) float32 of the images in `rows`."""
    batches = evaluation_batches(dataset, np.asarray(rows), batch_size)
    return np.asarray(model.predict(batches, verbose=0), dtype=np.float32)
