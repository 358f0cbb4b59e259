"""What happens around each epoch: the history, a progress bar, a log line, the learning rate."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from emotion_detection.console import log
from emotion_detection.params import Train
from emotion_detection.training.loader import RESIZED

Row = dict[str, float]
"""An epoch of the history: epoch (from 1), loss, accuracy, val_loss, val_accuracy, lr, seconds."""

LogEpoch = Callable[[Mapping[str, float], int], None]
"""Called after every epoch with its figures and its number, from 1."""

PLATEAU_FACTOR = 0.5
"""By which `plateau` lowers the learning rate."""


def best_epoch(history: pd.DataFrame) -> pd.Series:
    """Return the row of the epoch that is kept: the first with the highest val_accuracy."""
    return history.iloc[int(history["val_accuracy"].argmax())]


def best_epoch_of(rows: Sequence[Row]) -> int:
    """Return the number, from 1, of the epoch of `rows` that is kept."""
    return int(best_epoch(pd.DataFrame(rows))["epoch"])


def figures(row: Mapping[str, float]) -> dict[str, float]:
    """Return what is logged of an epoch: all of its row but its number."""
    return {name: value for name, value in row.items() if name != "epoch"}


def reacting_to_validation(settings: Train) -> list[keras.callbacks.Callback]:
    """Return the callbacks that act on how val_loss goes."""
    chosen: list[keras.callbacks.Callback] = []
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
    """A row, a progress bar and a log line per epoch; `rows` hold those of a resumed training."""

    def __init__(
        self,
        rows: list[Row],
        settings: Train,
        steps: int,
        log_epoch: LogEpoch,
        reacting: Sequence[keras.callbacks.Callback],
        verbose: bool,
    ) -> None:
        """Log epochs of `steps` batches; `reacting` are the callbacks that act on val_loss."""
        super().__init__()
        self._rows, self._settings, self._steps = rows, settings, steps
        self._log_epoch, self._reacting, self._verbose = log_epoch, reacting, verbose

    def on_train_begin(self, logs: object = None) -> None:
        """Tell Keras's callbacks of the epochs before: they count from zero at every start."""
        for row in self._rows:
            if self._settings.schedule == "plateau":
                self.model.optimizer.learning_rate = row["lr"]
            for callback in self._reacting:
                callback.on_epoch_end(int(row["epoch"]) - 1, dict(row))

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        """Start the bar."""
        self._began = time.monotonic()
        self._lr = _shortest(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self._bar = tqdm(
            total=self._steps,
            desc=f"epoch {epoch + 1}/{self._settings.epochs}",
            unit=" batches",
            leave=False,
            delay=2.0,
            disable=None,
        )

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Move the bar."""
        self._bar.update()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Add the row, and log it."""
        self._bar.close()
        values = {name: _shortest(value) for name, value in (logs or {}).items()}
        row = {
            "epoch": epoch + 1,
            **{name: values[name] for name in ("loss", "accuracy", "val_loss", "val_accuracy")},
            "lr": self._lr,
            "seconds": round(time.monotonic() - self._began, 3),
        }
        self._rows.append(row)
        self._log_epoch(figures(row), epoch + 1)
        if self._verbose:
            log.info("%s", _line(row, self._settings.epochs, seconds_left(row, self._settings)))


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


def _shortest(value: Any) -> float:
    """Return a float32 by its shortest digits: 0.86 and not 0.8600000143."""
    return float(str(np.float32(value)))


def _line(row: Mapping[str, float], epochs: int, left: float) -> str:
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['loss']:.3f}  "
        f"accuracy {row['accuracy']:.3f}  val_loss {row['val_loss']:.3f}  "
        f"val_accuracy {row['val_accuracy']:.3f}  lr {row['lr']:.1e}  "
        f"{row['seconds']:.0f} s, at most {duration(left)} left"
    )


def seconds_left(row: Mapping[str, float], settings: Train) -> float:
    """Return how long the epochs after that of `row` take, with images as large as theirs are."""
    small = max(0, settings.progressive_resizing - int(row["epoch"]))
    full = settings.epochs - int(row["epoch"]) - small
    is_small = row["epoch"] <= settings.progressive_resizing
    # The time of an epoch is in proportion to the pixels of its images.
    return row["seconds"] * (small + full / (RESIZED**2 if is_small else 1))


def duration(seconds: float) -> str:
    """Return `seconds` as a person says it: 42 s, 7 min, 3.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
