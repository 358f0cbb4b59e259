"""Training a network: precision, loss, callbacks and what is shown meanwhile."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from emotion_detection.console import UserError, log
from emotion_detection.dataset import Dataset
from emotion_detection.inputs import evaluation_batches, steps_per_epoch, training_batches
from emotion_detection.params import Augment

LogEpoch = Callable[[Mapping[str, float], int], None]
"""Called after every epoch with its figures and its number, from 1."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, whatever the network; `None` switches a patience off."""

    lr: float
    batch_size: int
    epochs: int
    early_stopping_patience: int | None
    reduce_lr_patience: int | None = None
    reduce_lr_factor: float = 0.5
    class_weights: str = "none"
    augment: Augment | None = None


def resolve_precision(wanted: str) -> tuple[str, str]:
    """Give the Keras dtype policy for `wanted` (auto or a policy) and why it was chosen."""
    if wanted != "auto":
        return wanted, "set by the param precision"
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        name = details.get("device_name", "the GPU")
        if details.get("compute_capability", (0, 0)) >= (8, 0):
            return "mixed_bfloat16", f"{name} has bfloat16 matrix units"
        return "float32", f"{name} has no bfloat16 matrix units"
    for flag in ("amx_bf16", "avx512_bf16"):
        if flag in _processor_flags():
            return "mixed_bfloat16", f"the processor has {flag}"
    return "float32", "the processor has no bfloat16 arithmetic that is known to be faster"


def _processor_flags() -> set[str]:
    if platform.system() != "Linux":
        return set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split())
    return set()


def fit(
    model: keras.Model,
    dataset: Dataset,
    *,
    train: np.ndarray,
    validation: np.ndarray,
    recipe: Recipe,
    seed: int,
    log_epoch: LogEpoch,
    best_weights: Path | None = None,
    first_epoch: int = 0,
    verbose: bool = True,
) -> pd.DataFrame:
    """Train `model` on rows `train` of `dataset` and return its history, a row an epoch.

    Columns: epoch (from 1), loss, accuracy, val_loss, val_accuracy, lr, seconds. With
    `best_weights`, the weights of the epoch with the highest val_accuracy are kept there and are
    the model's at the end.

    Raises:
        UserError: if the batch is larger than the training rows.

    """
    if recipe.batch_size > len(train):
        raise UserError(
            f"batch_size = {recipe.batch_size} is larger than the {len(train):,} training images; "
            f"use at most {len(train):,}"
        )
    model.compile(
        keras.optimizers.Adam(recipe.lr),
        keras.losses.SparseCategoricalCrossentropy(),
        metrics=["accuracy"],
        # XLA's convolutions on a CPU are slower than oneDNN's.
        jit_compile=False,
    )
    steps = steps_per_epoch(len(train), recipe.batch_size)
    epochs = _Epochs(recipe.epochs, steps, log_epoch, verbose)
    callbacks: list[keras.callbacks.Callback] = [epochs, keras.callbacks.TerminateOnNaN()]
    if best_weights is not None:
        best_weights.parent.mkdir(parents=True, exist_ok=True)
        callbacks.append(
            keras.callbacks.ModelCheckpoint(
                str(best_weights),
                monitor="val_accuracy",
                mode="max",
                save_best_only=True,
                save_weights_only=True,
            )
        )
    if recipe.reduce_lr_patience is not None:
        callbacks.append(
            keras.callbacks.ReduceLROnPlateau(
                monitor="val_loss",
                patience=recipe.reduce_lr_patience,
                factor=recipe.reduce_lr_factor,
            )
        )
    if recipe.early_stopping_patience is not None:
        callbacks.append(
            keras.callbacks.EarlyStopping(
                monitor="val_loss", patience=recipe.early_stopping_patience
            )
        )
    model.fit(
        training_batches(
            dataset,
            train,
            recipe.batch_size,
            seed=seed,
            augmentation=recipe.augment,
            first_epoch=first_epoch,
        ),
        steps_per_epoch=steps,
        epochs=recipe.epochs,
        initial_epoch=first_epoch,
        validation_data=evaluation_batches(dataset, validation, recipe.batch_size),
        class_weight=_class_weights(dataset, train, recipe.class_weights),
        callbacks=callbacks,
        shuffle=False,
        verbose=0,
    )
    if best_weights is not None:
        model.load_weights(best_weights)
    return pd.DataFrame(epochs.rows)


def best_epoch(history: pd.DataFrame) -> pd.Series:
    """Give the row of the epoch that is kept: the first with the highest val_accuracy."""
    return history.iloc[int(history["val_accuracy"].argmax())]


def _class_weights(dataset: Dataset, rows: np.ndarray, kind: str) -> dict[int, float] | None:
    if kind == "none":
        return None
    counts = np.bincount(dataset.labels[rows], minlength=len(dataset.classes))
    return {label: len(rows) / (len(counts) * count) for label, count in enumerate(counts)}


class _Epochs(keras.callbacks.Callback):
    """A progress bar a training, a log line and a history row an epoch."""

    def __init__(self, epochs: int, steps: int, log_epoch: LogEpoch, verbose: bool) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []
        self._epochs, self._steps = epochs, steps
        self._log_epoch, self._verbose = log_epoch, verbose

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self._began = time.monotonic()
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
        figures = {name: float(value) for name, value in (logs or {}).items()}
        row = {
            "epoch": epoch + 1,
            **{name: figures[name] for name in ("loss", "accuracy", "val_loss", "val_accuracy")},
            "lr": float(self.model.optimizer.learning_rate.numpy()),
            "seconds": round(time.monotonic() - self._began, 3),
        }
        self.rows.append(row)
        self._log_epoch({name: value for name, value in row.items() if name != "epoch"}, epoch + 1)
        if self._verbose:
            log.info("%s", _line(row, self._epochs))


def _line(row: Mapping[str, float], epochs: int) -> str:
    left = (epochs - row["epoch"]) * row["seconds"]
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['loss']:.3f}  "
        f"accuracy {row['accuracy']:.3f}  val_loss {row['val_loss']:.3f}  "
        f"val_accuracy {row['val_accuracy']:.3f}  lr {row['lr']:.1e}  "
        f"{row['seconds']:.0f} s, at most {duration(left)} left"
    )


def duration(seconds: float) -> str:
    """Give `seconds` as a person says it: 42 s, 7 min, 3.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def predict(
    model: keras.Model, dataset: Dataset, rows: Sequence[int] | np.ndarray, batch_size: int
) -> np.ndarray:
    """Give the probabilities (len(rows), classes) float32 of the images in `rows`."""
    batches = evaluation_batches(dataset, np.asarray(rows), batch_size)
    return np.asarray(model.predict(batches, verbose=0), dtype=np.float32)
