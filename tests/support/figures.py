"""What figures are made of in tests, and what can be read in them."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from emotion_detection.evaluation.corruptions import CLEAN, CORRUPTIONS
from emotion_detection.evaluation.metrics import Evaluation, evaluate
from emotion_detection.figures import style

EMOTIONS = ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")


CLASSES = {
    2: ("no", "yes"),
    7: EMOTIONS,
    10: tuple(f"a rather long name of class {k}" for k in range(10)),
    26: tuple("abcdefghijklmnopqrstuvwxyz"[k] + "-class" * (1 + k % 5) for k in range(26)),
}


TRAIN = dict(zip(EMOTIONS, (3995, 436, 4097, 7215, 4965, 4830, 3171), strict=True))


TEST = dict(zip(EMOTIONS, (958, 111, 1024, 1774, 1233, 1247, 831), strict=True))


MATRIX = np.array([[1200, 300, 0], [50, 50, 100], [0, 0, 0]])


def evaluation_of(classes: tuple[str, ...], images: int = 900) -> Evaluation:
    rng = np.random.default_rng(len(classes))
    labels = rng.integers(0, len(classes), size=images)
    logits = rng.normal(size=(images, len(classes)))
    logits[np.arange(images), labels] += 1.5
    exponentials = np.exp(logits)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return evaluate(labels, probabilities, classes, bootstrap=200, seed=0)


def noise(images: int, channels: int = 1) -> np.ndarray:
    shape = (images, 48, 48, channels)
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


def history(epochs: int = 12, *, best: int = 8) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "loss": 2.0 / epoch,
            "accuracy": 1 - 0.8 / epoch,
            "val_loss": 1 + 0.05 * np.abs(epoch - best),
            "val_accuracy": 0.6 - 0.01 * np.abs(epoch - best),
            "lr": np.where(epoch < 6, 1e-3, 5e-4),
        }
    )


def trial_table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "trial": ["00", "01", "02", "03", "04"],
            "status": ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED", "COMPLETED"],
            "val_accuracy": [0.50, np.nan, 0.48, 0.61, 0.55],
            "end": ["complete", "", "pruned", "complete", "complete"],
            "gflops": [0.04, 0.09, 2.5, 0.56, 0.9],
            "seconds": [10.0, 1.0, 80.0, 40.0, 50.0],
        }
    )


def corruptions_table() -> pd.DataFrame:
    rows = []
    for kind in (CLEAN, *CORRUPTIONS):
        for by in kind.severities:
            lost = 0.006 * abs(by)
            rows.append(
                {
                    "condition": kind.condition(by),
                    "corruption": kind.name,
                    "severity": by,
                    "unit": kind.unit,
                    "images": 1000,
                    "accuracy": 0.64 - lost,
                    "change": -lost,
                    "change_low": -1.1 * lost,
                    "change_high": -0.9 * lost,
                }
            )
    return pd.DataFrame(rows)


def title_of(figure: Figure) -> str:
    """The title as a person reads it, on one line and with plain spaces."""
    return figure.get_suptitle().replace("\n", " ").replace("\u00a0", " ")


def texts(axes: Axes) -> list[str]:
    return [text.get_text().replace("\u00a0", " ") for text in axes.texts]


def bars(axes: Axes) -> list[Any]:
    return [bar for group in axes.containers if isinstance(group, BarContainer) for bar in group]


def ensemble_history(networks: int = 3, epochs: int = 12) -> pd.DataFrame:
    """Networks whose best epochs are 8, 9, ..., and whose accuracies are 1 % apart."""
    histories = []
    for network in range(1, networks + 1):
        each = history(epochs, best=7 + network).assign(network=network)
        each["val_accuracy"] += 0.01 * (network - 1)
        histories.append(each)
    return pd.concat(histories, ignore_index=True)


def orange_points(axes: Axes) -> list[Line2D]:
    return [
        line for line in axes.lines if line.get_marker() == "o" and line.get_color() == style.ACCENT
    ]
