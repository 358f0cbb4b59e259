"""How sure a model is: its temperature, its scores and what its sets of classes rest on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import keras
import numpy as np
from scipy.optimize import minimize_scalar

from emotion_detection.console import Progress
from emotion_detection.data.dataset import Dataset
from emotion_detection.models import coverage
from emotion_detection.models.coverage import Coverage
from emotion_detection.models.saving import SMALLEST_PROBABILITY, cross_entropy, predict

VAL_ACCURACY, TEMPERATURE = "export/val_accuracy", "export/temperature"
BOUNDS = 0.1, 10.0
"""Of a temperature; those of networks lie well between them."""


@dataclass(frozen=True)
class Calibration:
    """The temperature for a model, and with it its scores and what its sets rest on.

    All are of validation images; without any the temperature is 1, and there is nothing else.
    """

    temperature: float = 1.0
    scores: Mapping[str, float] = field(default_factory=dict)
    coverage: Coverage | None = None

    @property
    def notes(self) -> dict[str, str]:
        """What a file says of it, by `saving.NOTES`."""
        return {} if self.coverage is None else {"coverage": self.coverage.to_json()}


def fit(model: keras.Model, dataset: Dataset, rows: np.ndarray) -> Calibration:
    """Return the calibration of `model` on the validation `rows`; its scores are export's."""
    if not len(rows):
        return Calibration()
    with Progress("export: predicting", total=len(rows), unit="images") as progress:
        probabilities = predict(model, dataset.images, rows, progress.advance)
    labels = dataset.labels[rows]
    temperature = fit_temperature(labels, probabilities)
    scaled = with_temperature(probabilities, temperature)
    scores = {
        VAL_ACCURACY: round(float((scaled.argmax(axis=1) == labels).mean()), 6),
        "export/val_loss": round(cross_entropy(labels, scaled), 6),
        TEMPERATURE: temperature,
    }
    return Calibration(temperature, scores, coverage.measured(labels, scaled))


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the temperature with which `probabilities` (N, classes) have the lowest loss.

    `labels` is (N,) int64. Their logarithms are the logits but for a constant. It has 4 digits (Guo
    et al., "On calibration of modern neural networks", arXiv 1706.04599).
    """

    def loss(logarithm: float) -> float:
        return cross_entropy(labels, with_temperature(probabilities, np.exp(logarithm)))

    found = minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded")
    return round(float(np.exp(found.x)), 4)


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return `probabilities` (N, classes) with their logits divided by `temperature`, float64."""
    logits = np.log(probabilities.astype(np.float64).clip(min=SMALLEST_PROBABILITY)) / temperature
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))


def headlines(scores: Mapping[str, float]) -> dict[str, float]:
    """Return those of the scores of `fit` that people compare experiments by."""
    return {name: value for name, value in scores.items() if name == VAL_ACCURACY}


def summary(scores: Mapping[str, float]) -> str:
    """Return the scores of `fit` in words."""
    if not scores:
        return "no image left for validation"
    return (
        f"validation accuracy {100 * scores[VAL_ACCURACY]:.1f} %, "
        f"temperature {scores[TEMPERATURE]:.2f}"
    )
