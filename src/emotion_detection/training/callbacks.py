"""What happens around each epoch: the history, the progress, the learning rate."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd

from emotion_detection.console import Progress
from emotion_detection.data.splits import Split
from emotion_detection.settings.params import Train
from emotion_detection.training.loader import RESIZED

Row = dict[str, float]
"""An epoch of the history: epoch (from 1), loss, accuracy, val_loss, val_accuracy, lr, seconds.

Without validation images it has no val_loss and no val_accuracy."""

LogEpoch = Callable[[Mapping[str, float], int], None]
"""Called after every epoch with its figures and its number, from 1."""

FIGURES = ("loss", "accuracy", "val_loss", "val_accuracy")

PLATEAU_FACTOR = 0.5
"""By which `plateau` lowers the learning rate."""


def best_epoch(history: pd.DataFrame) -> pd.Series:
    """Return the row of the epoch that is kept: the first with the highest val_accuracy.

    Without validation images it is the last.
    """
    if "val_accuracy" not in history.columns:
        return history.iloc[-1]
    return history.iloc[int(history["val_accuracy"].argmax())]


def best_epoch_of(rows: Sequence[Row]) -> int:
    """Return the number, from 1, of the epoch of `rows` that is kept."""
    return int(best_epoch(pd.DataFrame(rows))["epoch"])


def figures(row: Mapping[str, float]) -> dict[str, float]:
    """Return what is logged of an epoch: all of its row but its number."""
    return {name: value for name, value in row.items() if name != "epoch"}


def accuracy(row: Mapping[str, float]) -> str:
    """Return the accuracy of an epoch in words: on validation, or on train without."""
    if "val_accuracy" in row:
        return f"validation accuracy {100 * row['val_accuracy']:.1f} %"
    return f"train accuracy {100 * row['accuracy']:.1f} %"


def reacting_to_validation(rows: Split, settings: Train) -> list[keras.callbacks.Callback]:
    """Return the callbacks that act on how val_loss goes; none without validation rows."""
    chosen: list[keras.callbacks.Callback] = []
    if not len(rows.validation):
        return chosen
    if settings.schedule == "plateau" and settings.reduce_lr_patience is not None:
        chosen.append(
            keras.callbacks.ReduceLROnPlateau(
                monitor="val_loss", patience=settings.reduce_lr_patience, factor=PLATEAU_FACTOR
            )
        )
    if settings.early_stopping_patience is not None:
        chosen.append(
            keras.callbacks.EarlyStopping(
                monitor="val_loss", patience=settings.early_stopping_patience
            )
        )
    return chosen


class History(keras.callbacks.Callback):
    """A row per epoch, and the progress; `rows` hold those of a resumed training."""

    def __init__(
        self,
        rows: list[Row],
        settings: Train,
        steps: int,
        log_epoch: LogEpoch,
        reacting: Sequence[keras.callbacks.Callback],
        progress: Progress | None,
    ) -> None:
        """Log epochs of `steps` batches; `reacting` are the callbacks that act on val_loss."""
        super().__init__()
        self._rows, self._settings, self._steps = rows, settings, steps
        self._log_epoch, self._reacting, self._progress = log_epoch, reacting, progress
        self._began, self._note = 0.0, ""

    def on_train_begin(self, logs: object = None) -> None:
        """Tell Keras's callbacks of the epochs before: they count from zero at every start."""
        for row in self._rows:
            if self._settings.schedule == "plateau":
                self.model.optimizer.learning_rate = row["lr"]
            for callback in self._reacting:
                callback.on_epoch_end(int(row["epoch"]) - 1, dict(row))

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        """Begin the progress with the first epoch, from 0."""
        if self._progress is not None and not self._began:
            total, before = (
                work(self._settings, until) for until in (self._settings.epochs, epoch)
            )
            self._note = f"epoch {epoch + 1}/{self._settings.epochs}"
            self._progress.begin(total, before, self._note)
        self._began = time.monotonic()
        self._lr = _shortest(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self._step = (work(self._settings, epoch + 1) - work(self._settings, epoch)) / self._steps

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Advance by a step."""
        if self._progress is not None:
            self._progress.advance(self._step, self._note)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Add the row, and log it."""
        values = {name: _shortest(value) for name, value in (logs or {}).items()}
        row = {
            "epoch": epoch + 1,
            **{name: values[name] for name in FIGURES if name in values},
            "lr": self._lr,
            "seconds": round(time.monotonic() - self._began, 3),
        }
        self._rows.append(row)
        self._note = (
            f"epoch {min(epoch + 2, self._settings.epochs)}/{self._settings.epochs}, "
            f"{accuracy(row)}"
        )
        self._log_epoch(figures(row), epoch + 1)


class SaveEpoch(keras.callbacks.Callback):
    """Saves every finished epoch, after all other callbacks have acted on it."""

    def __init__(
        self, save: Callable[[keras.Model, list[Row], bool], None], rows: list[Row]
    ) -> None:
        """Call `save` with the model, `rows` and whether the training ended with this epoch."""
        super().__init__()
        self._save, self._rows = save, rows

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        """Save it."""
        self._save(self.model, self._rows, self.model.stop_training)


class StopAfter(keras.callbacks.Callback):
    """Ends the training after an epoch where `stop` says so, and not as its own end."""

    def __init__(self, stop: Callable[[list[Row]], bool], rows: list[Row]) -> None:
        """Ask `stop` with `rows`, those up to the epoch."""
        super().__init__()
        self._stop, self._rows = stop, rows

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        """Ask."""
        if self._stop(self._rows):
            self.model.stop_training = True


def _shortest(value: Any) -> float:
    """Return a float32 by its shortest digits: 0.86 and not 0.8600000143."""
    return float(str(np.float32(value)))


def work(settings: Train, epochs: int) -> float:
    """Return how much of a training the first `epochs` are, where 1 is an epoch of large images."""
    small = min(epochs, settings.progressive_resizing)
    # The time of an epoch is in proportion to the pixels of its images.
    return small * RESIZED**2 + epochs - small
