"""How the accuracy of a classifier moves when its images get worse.

After Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations" (ICLR 2019), with the few of their corruptions that a camera or a face detector
brings along. Severities are relative to the image, so that they mean the same at any size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage

from emotion_detection.console import progress
from emotion_detection.data.dataset import Dataset
from emotion_detection.evaluation.metrics import DIGITS, compare

Images = npt.NDArray[np.uint8]
Predict = Callable[[Images], npt.NDArray[np.floating]]
"""Gives the probabilities (n, classes) of images (n, H, W, C) uint8."""


@dataclass(frozen=True)
class Corruption:
    """One way in which images get worse, at several severities; at severity 0 they would not.

    `apply` takes images (n, H, W, C) uint8, a severity and a generator for what is random, and
    gives images of the same kind.
    """

    name: str
    unit: str
    severities: tuple[float, ...]
    apply: Callable[[Images, float, np.random.Generator], Images]

    def condition(self, severity: float) -> str:
        """Say it in words: brightness +15 %."""
        if not self.unit:
            return self.name
        return f"{self.name} {severity:{'+g' if min(self.severities) < 0 else 'g'}} %"


def brighten(images: Images, severity: float, rng: np.random.Generator) -> Images:
    """Add `severity` % of the full range to every pixel."""
    return _to_bytes(images + np.float32(2.55 * severity))


def stretch_contrast(images: Images, severity: float, rng: np.random.Generator) -> Images:
    """Move every pixel `severity` % further from the mean of its image, or closer to it."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True, dtype=np.float32)
    return _to_bytes(mean + np.float32(1 + severity / 100) * (images - mean))


def add_noise(images: Images, severity: float, rng: np.random.Generator) -> Images:
    """Add gaussian noise of `severity` % of the full range (standard deviation) to every pixel.

    All channels of a pixel get the same, so that grey images stay grey.
    """
    noise = rng.standard_normal((*images.shape[:3], 1), dtype=np.float32)
    return _to_bytes(images + np.float32(2.55 * severity) * noise)


def blur(images: Images, severity: float, rng: np.random.Generator) -> Images:
    """Blur with a gaussian whose standard deviation is `severity` % of the shorter side."""
    sigma = severity / 100 * min(images.shape[1:3])
    blurred = ndimage.gaussian_filter(
        images.astype(np.float32), (0, sigma, sigma, 0), mode="nearest"
    )
    return _to_bytes(blurred)


def shift(images: Images, severity: float, rng: np.random.Generator) -> Images:
    """Move each image by `severity` % of its shorter side, at least a pixel, in any direction.

    The pixels at the edge fill what comes into view.
    """
    number, height, width, _ = images.shape
    distance = max(1.0, severity / 100 * min(height, width))
    angle = rng.uniform(0, 2 * np.pi, (number, 1))
    down = np.rint(distance * np.sin(angle)).astype(int)
    right = np.rint(distance * np.cos(angle)).astype(int)
    rows = (np.arange(height) - down).clip(0, height - 1)
    columns = (np.arange(width) - right).clip(0, width - 1)
    moved: Images = images[np.arange(number)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved


AS_THEY_ARE = Corruption("as they are", "", (0,), lambda images, severity, rng: images)
CORRUPTIONS = (
    Corruption("brightness", "% of full range", (-30, -15, 15, 30), brighten),
    Corruption("contrast", "% more or less", (-75, -50, -25, 50), stretch_contrast),
    Corruption("noise", "σ, % of full range", (2, 5, 10), add_noise),
    Corruption("blur", "σ, % of the side", (1, 2, 4), blur),
    Corruption("shift", "% of the side", (3, 6, 12), shift),
)


def measure(
    predict: Predict,
    dataset: Dataset,
    rows: npt.NDArray[np.int64],
    *,
    batch_size: int,
    bootstrap: int,
    seed: int,
) -> pd.DataFrame:
    """Return the accuracy of `predict` on the images `rows`, under each corruption and severity.

    Columns: condition (corruption and severity in words), corruption, severity, unit, images,
    accuracy, and its change against the same images as they are, with the ends of the change's
    95 % bootstrap interval. The first row is of the images as they are. `batch_size` images are in
    memory at a time, and their number makes no difference.
    """
    labels = dataset.labels[rows]
    conditions = [(kind, by) for kind in (AS_THEY_ARE, *CORRUPTIONS) for by in kind.severities]
    generators = [np.random.default_rng([seed, number]) for number in range(len(conditions))]
    right = np.empty((len(conditions), len(rows)), bool)
    steps = list(product(range(len(conditions)), range(0, len(rows), batch_size)))
    for number, start in progress(steps, description="robustness", unit="batches"):
        chosen = slice(start, start + batch_size)
        kind, by = conditions[number]
        images = kind.apply(dataset.images[rows[chosen]], by, generators[number])
        right[number, chosen] = predict(images).argmax(axis=1) == labels[chosen]
    changes = [compare(worse, right[0], bootstrap=bootstrap, seed=seed) for worse in right]
    return pd.DataFrame(
        [
            {
                "condition": kind.condition(by),
                "corruption": kind.name,
                "severity": by,
                "unit": kind.unit,
                "images": len(rows),
                "accuracy": round(float(worse.mean()), DIGITS),
                "change": round(change.difference.value, DIGITS),
                "change_low": round(change.difference.low, DIGITS),
                "change_high": round(change.difference.high, DIGITS),
            }
            for (kind, by), worse, change in zip(conditions, right, changes, strict=True)
        ]
    )


def mean_accuracy(table: pd.DataFrame) -> float:
    """Average the accuracies of `measure` under corruption, every corruption counting the same."""
    corrupted = table[table["severity"] != 0]
    return round(float(corrupted.groupby("corruption")["accuracy"].mean().mean()), DIGITS)


def _to_bytes(values: npt.NDArray[np.float32]) -> Images:
    rounded: Images = np.rint(values).clip(0, 255).astype(np.uint8)
    return rounded
