"""How the accuracy of a classifier changes when its images are corrupted.

After Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations" (ICLR 2019), with those of their corruptions that a camera or a face detector
causes. Severities are relative to the image, so that they mean the same at any size.
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
from emotion_detection.evaluation.comparison import compare
from emotion_detection.evaluation.intervals import RESAMPLES
from emotion_detection.evaluation.metrics import DIGITS

Images = npt.NDArray[np.uint8]
Predict = Callable[[Images], npt.NDArray[np.floating]]
"""Returns the probabilities (n, classes) of images (n, H, W, C) uint8."""

# Pixel values that are corrupted at a time, which limits the memory for them in float32 to 64 MiB.
VALUES_AT_ONCE = 2**24


@dataclass(frozen=True)
class Corruption:
    """A way to corrupt images, at several severities; severity 0 changes nothing.

    `apply` takes images (n, H, W, C) uint8, a severity and a random generator, and returns images
    of the same shape and type.
    """

    name: str
    unit: str
    severities: tuple[float, ...]
    apply: Callable[[Images, float, np.random.Generator], Images]

    def condition(self, severity: float) -> str:
        """Return corruption and severity in words: brightness +15 %."""
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
    """Add Gaussian noise to every pixel, its standard deviation `severity` % of the full range.

    All channels of a pixel get the same noise, so that grey images stay grey.
    """
    noise = rng.standard_normal((*images.shape[:3], 1), dtype=np.float32)
    return _to_bytes(images + np.float32(2.55 * severity) * noise)


def blur(images: Images, severity: float, rng: np.random.Generator) -> Images:
    """Blur with a Gaussian whose standard deviation is `severity` % of the shorter side."""
    sigma = severity / 100 * min(images.shape[1:3])
    blurred = ndimage.gaussian_filter(
        images.astype(np.float32), (0, sigma, sigma, 0), mode="nearest"
    )
    return _to_bytes(blurred)


def shift(images: Images, severity: float, rng: np.random.Generator) -> Images:
    """Move each image by `severity` % of its shorter side, at least a pixel, in a random direction.

    The pixels at the edge are repeated to fill the gap.
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


CLEAN = Corruption("clean", "", (0,), lambda images, severity, rng: images)
CORRUPTIONS = (
    Corruption("brightness", "% of full range", (-30, -15, 15, 30), brighten),
    Corruption("contrast", "% more or less", (-75, -50, -25, 50), stretch_contrast),
    Corruption("noise", "σ, % of full range", (2, 5, 10), add_noise),
    Corruption("blur", "σ, % of the side", (1, 2, 4), blur),
    Corruption("shift", "% of the side", (3, 6, 12), shift),
)

NOT_MEASURED = pd.DataFrame(columns=["condition", "accuracy"])
"""The table where nothing is measured: `dvc plots` warns where there is none."""


def measure(
    predict: Predict,
    dataset: Dataset,
    rows: npt.NDArray[np.int64],
    *,
    bootstrap: int = RESAMPLES,
    seed: int,
) -> pd.DataFrame:
    """Return the accuracy of `predict` on the images `rows` (n,) int64 under each corruption.

    The table has a row a corruption and severity, the first one of the clean images, and the
    columns condition (both in words), corruption, severity, unit, images, accuracy, change (of
    accuracy, against the clean images), change_low and change_high (its 95 % bootstrap interval).
    The images are corrupted and predicted in batches, whose size makes no difference. Without
    images the table is empty.
    """
    if not len(rows):
        return NOT_MEASURED
    labels = dataset.labels[rows]
    conditions = [(kind, by) for kind in (CLEAN, *CORRUPTIONS) for by in kind.severities]
    generators = [np.random.default_rng([seed, number]) for number in range(len(conditions))]
    correct = np.empty((len(conditions), len(rows)), bool)
    batch = max(1, VALUES_AT_ONCE // int(np.prod(dataset.images.shape[1:])))
    steps = list(product(range(len(conditions)), range(0, len(rows), batch)))
    for number, start in progress(steps, description="evaluate: corrupted images", unit="batches"):
        chosen = slice(start, start + batch)
        kind, by = conditions[number]
        images = kind.apply(dataset.images[rows[chosen]], by, generators[number])
        correct[number, chosen] = predict(images).argmax(axis=1) == labels[chosen]
    changes = [
        compare(corrupted, correct[0], bootstrap=bootstrap, seed=seed) for corrupted in correct
    ]
    return pd.DataFrame(
        [
            {
                "condition": kind.condition(by),
                "corruption": kind.name,
                "severity": by,
                "unit": kind.unit,
                "images": len(rows),
                "accuracy": round(float(corrupted.mean()), DIGITS),
                "change": round(change.difference.value, DIGITS),
                "change_low": round(change.difference.low, DIGITS),
                "change_high": round(change.difference.high, DIGITS),
            }
            for (kind, by), corrupted, change in zip(conditions, correct, changes, strict=True)
        ]
    )


def metrics(table: pd.DataFrame) -> dict[str, float]:
    """Return what the table of `measure` comes to as a metric; none where nothing was measured."""
    return {} if table.empty else {"corrupted_accuracy": mean_accuracy(table)}


def mean_accuracy(table: pd.DataFrame) -> float:
    """Return the mean accuracy of the table of `measure`, with equal weight for each corruption."""
    corrupted = table[table["severity"] != 0]
    return round(float(corrupted.groupby("corruption")["accuracy"].mean().mean()), DIGITS)


def _to_bytes(values: npt.NDArray[np.float32]) -> Images:
    rounded: Images = np.rint(values).clip(0, 255).astype(np.uint8)
    return rounded
