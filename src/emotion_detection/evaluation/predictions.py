"""The probabilities that a model gives for the images of a data set, kept from one run to the next.

Evaluate asks the champion for the images that it was scored on before, and asks the same model
again where only a setting of the evaluation has changed.
"""

import hashlib
import re

import keras
import numpy as np

from emotion_detection import paths
from emotion_detection.console import Progress
from emotion_detection.data.dataset import Dataset
from emotion_detection.files import atomic, locked
from emotion_detection.models import saving

FOLDER = paths.STATE / "predictions"

KEPT = 8
"""Predictions that are kept, those used last."""


def predict(model: keras.Model, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Return the probabilities (len(rows), classes) float32 of `dataset.images[rows]`.

    They are read from FOLDER if the same model predicted the same images before: one with the same
    layers, weights and version of Keras.
    """
    path = FOLDER / f"{_key(model, dataset, rows)}.npy"
    if path.exists():
        path.touch()
        return np.load(path)
    with Progress("evaluate: predicting", total=len(rows), unit="images") as progress:
        probabilities = saving.predict(model, dataset.images, rows, progress.advance)
    FOLDER.mkdir(parents=True, exist_ok=True)
    # Another experiment may write the predictions of the same champion.
    with locked(FOLDER / "lock", wait=True):
        with atomic(path) as temporary:
            np.save(temporary, probabilities)
        for old in sorted(FOLDER.glob("*.npy"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
            old.unlink()
    return probabilities


def _key(model: keras.Model, dataset: Dataset, rows: np.ndarray) -> str:
    # Keras numbers the parts of a model anew in every process.
    layers = re.sub(r'"shared_object_id": \d+', "", model.to_json())
    found = hashlib.sha256(f"{keras.__version__} {layers} {saving.digest(model)}".encode())
    for some in np.array_split(rows, max(1, len(rows) // saving.ROWS_AT_ONCE)):
        found.update(dataset.images[some].tobytes())
    return found.hexdigest()[:32]
