"""Trainings of a small network on the toy set, and ways to interrupt or disturb one."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from emotion_detection.console import Progress
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.models.saving import predict
from emotion_detection.settings.params import Augment, Network, Train
from emotion_detection.training.callbacks import LogEpoch
from emotion_detection.training.checkpoints import Checkpoints
from emotion_detection.training.fit import fit, network_to_train, not_logged

SETTINGS = Train(lr=1e-2, batch_size=12, epochs=3)
AUGMENT = Augment(rotation=10, shift=0.1, zoom=0.1, horizontal_flip=True)

Logged = list[tuple[int, dict[str, float]]]
"""The number of each epoch that was logged, and its figures."""


class ProcessEndedError(Exception):
    """Stands for whatever ends a process."""


def interrupting(epoch: int) -> LogEpoch:
    """Return a `log_epoch` that ends the training in `epoch`, before its checkpoint."""

    def log_epoch(figures: Mapping[str, float], number: int) -> None:
        if number == epoch:
            raise ProcessEndedError

    return log_epoch


def noting(seen: Logged) -> LogEpoch:
    """Return a `log_epoch` that adds to `seen`."""
    return lambda figures, epoch: seen.append((epoch, dict(figures)))


class Trainer:
    """Trains fresh copies of one network on the toy set; `model` is the last."""

    def __init__(self, toy: Dataset, rows: Split, network: Network, seed: int = 0) -> None:
        self.toy, self.rows, self.network, self.seed = toy, rows, network, seed
        self.model: keras.Model

    def fresh(self, settings: Train = SETTINGS) -> keras.Model:
        """Return the untrained network."""
        return network_to_train(
            self.network, self.toy, settings, precision="float32", seed=self.seed
        )

    def __call__(
        self,
        settings: Train = SETTINGS,
        *,
        train: np.ndarray | None = None,
        seed: int = 0,
        log_epoch: LogEpoch = not_logged,
        checkpoints: Path | None = None,
        log_resumed: bool = False,
        until: int | None = None,
        progress: Progress | None = None,
    ) -> pd.DataFrame:
        """Train, on the rows `train` alone where they are given, and return the history."""
        rows = self.rows if train is None else dataclasses.replace(self.rows, train=train)
        self.model = self.fresh(settings)
        return fit(
            self.model,
            self.toy,
            rows,
            settings,
            seed=seed,
            checkpoints=None if checkpoints is None else Checkpoints(checkpoints),
            log_epoch=log_epoch,
            log_resumed=log_resumed,
            until=until,
            progress=progress,
        )

    def validate(self) -> tuple[float, float]:
        """Return the loss and the accuracy of `model` on the validation images."""
        rows = self.rows.validation
        labels = self.toy.labels[rows]
        answers = predict(self.model, self.toy.images, rows)
        loss = -np.log(answers[np.arange(len(rows)), labels]).mean()
        return float(loss), float((answers.argmax(axis=1) == labels).mean())

    def unlearn_after(self, epoch: int) -> LogEpoch:
        """Return a `log_epoch` that turns the steps round after `epoch`."""

        def log_epoch(figures: Mapping[str, float], number: int) -> None:
            if number == epoch:
                self.model.optimizer.learning_rate.assign(-0.02)

        return log_epoch

    def stall_after_first(self, figures: Mapping[str, float], epoch: int) -> None:
        """Leave the network mistaken after its first epoch, and too slow to recover."""
        if epoch == 1:
            last = self.model.get_layer("probabilities")
            last.set_weights([np.roll(weight, 1, axis=-1) for weight in last.get_weights()])
            self.model.optimizer.learning_rate.assign(1e-9)
