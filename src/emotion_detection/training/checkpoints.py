"""The finished epochs of a training, on disk, so that an interrupted one goes on from there."""

import contextlib
import json
import shutil
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import keras

from emotion_detection.console import UserError
from emotion_detection.files import atomic, write_json
from emotion_detection.training.callbacks import Row, best_epoch_of

WEIGHTS, HISTORY = "model.weights.h5", "history.json"


class Checkpoints:
    """The last and the best finished epoch of one training.

    A folder per epoch holds the weights, the optimizer's state and the history up to there. It
    appears as a whole, and an older one is removed only after it.
    """

    def __init__(self, folder: Path) -> None:
        """Keep them in `folder`, which the caller names after all that the training depends on."""
        self._folder = folder

    def exist(self) -> bool:
        """Return whether there is an epoch to go on from."""
        return bool(self._epochs())

    def rows(self) -> list[Row]:
        """Return the history up to the last epoch.

        Raises:
            UserError: if the checkpoint is damaged.

        """
        epochs = self._epochs()
        if not epochs:
            return []
        with self._reading(epochs[-1]):
            kept = json.loads((epochs[-1] / HISTORY).read_text(encoding="utf-8"))
            return [{**row, "epoch": int(row["epoch"])} for row in kept["rows"]]

    def resume(self, model: keras.Model) -> tuple[list[Row], bool]:
        """Set the compiled `model` to the last epoch; return the history and whether it ended.

        Raises:
            UserError: if the checkpoint is damaged.

        """
        epochs = self._epochs()
        if not epochs:
            return [], False
        with self._reading(epochs[-1]):
            kept = json.loads((epochs[-1] / HISTORY).read_text(encoding="utf-8"))
            model.load_weights(epochs[-1] / WEIGHTS)
            for variable, state in zip(_random_state(model), kept["random_state"], strict=True):
                variable.assign(state)
            return kept["rows"], kept["ended"]

    def save(self, model: keras.Model, rows: list[Row], ended: bool) -> None:
        """Keep the epoch that `rows` end with, and drop what is neither the last nor the best."""
        with atomic(self._path(len(rows))) as folder:
            folder.mkdir()
            model.save_weights(folder / WEIGHTS)
            states = [variable.numpy().tolist() for variable in _random_state(model)]
            kept = {"rows": rows, "ended": ended, "random_state": states}
            write_json(folder / HISTORY, kept)
        needed = {self._path(len(rows)), self._path(best_epoch_of(rows))}
        for folder in self._epochs():
            if folder not in needed:
                shutil.rmtree(folder)

    def load_best(self, model: keras.Model, rows: list[Row]) -> None:
        """Set `model` to the weights, or their EMA, of the best epoch of `rows`."""
        model.load_weights(self._path(best_epoch_of(rows)) / WEIGHTS)
        model.optimizer.finalize_variable_values(model.trainable_variables)

    def pack(self, without: Container[str] = ()) -> dict[str, dict[str, bytes]]:
        """Return the epochs by name, each as the content of its files; none of those `without`."""
        return {
            epoch.name: {}
            if epoch.name in without
            else {file.name: file.read_bytes() for file in epoch.iterdir()}
            for epoch in self._epochs()
        }

    def unpack(self, packed: Mapping[str, Mapping[str, bytes]]) -> None:
        """Keep exactly the epochs that `packed` names; it has the files of those that are new."""
        for name, files in packed.items():
            if files:
                with atomic(self._folder / name) as folder:
                    folder.mkdir()
                    for file, content in files.items():
                        (folder / file).write_bytes(content)
        for epoch in self._epochs():
            if epoch.name not in packed:
                shutil.rmtree(epoch)

    def remove(self) -> None:
        """Remove them, where the training is over and its network kept."""
        for folder in self._epochs():
            shutil.rmtree(folder)

    @contextlib.contextmanager
    def _reading(self, epoch: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{epoch}: damaged checkpoint ({error}); remove {self._folder} to train anew"
            ) from error

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch_{epoch:05d}"

    def _epochs(self) -> list[Path]:
        return sorted(self._folder.glob("epoch_*"))


def _random_state(model: keras.Model) -> list[keras.Variable]:
    """Return what dropout draws its next masks from; Keras does not count it among the weights."""
    return [variable for variable in model.variables if variable.name == "seed_generator_state"]
