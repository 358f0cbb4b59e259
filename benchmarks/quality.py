"""Whether the faster layers learn as well: the notebook's training, shortened, with and without."""

import numpy as np

from benchmarks import ours
from benchmarks.material import NOTEBOOK, Material
from benchmarks.report import Section
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split, part
from emotion_detection.training.callbacks import best_epoch
from emotion_detection.training.fit import fit

IMAGES = 4000
EPOCHS = 8
SEEDS = (1, 2, 3)


def run(material: Material, turns: int) -> Section:
    """Measure and describe; `turns` is not used, since a training is one."""
    dataset = material.dataset
    rows = part(dataset, material.rows, IMAGES, seed=0)
    ways = {
        "this project, `precision: auto`": ("auto", True),
        "plain Keras layers, float32": ("float32", False),
    }
    reached: dict[str, list[float]] = {name: [] for name in ways}
    for seed in SEEDS:
        for name, (precision, fast) in ways.items():
            reached[name].append(_train(material, dataset, rows, seed, precision, fast))
    section = Section("Quality")
    section.say(
        f"The notebook's network, lr and dropout for {EPOCHS} epochs on {len(rows.train):,} "
        f"images in batches of 64: the best val_accuracy on {len(rows.validation):,}, a seed a "
        "column."
    )
    section.table(
        ("", *(f"seed {seed}" for seed in SEEDS), "mean", "deviation"),
        [
            (
                name,
                *(f"{value:.4f}" for value in values),
                f"{np.mean(values):.4f}",
                f"{np.std(values, ddof=1):.4f}",
            )
            for name, values in reached.items()
        ],
    )
    return section


def _train(
    material: Material, dataset: Dataset, rows: Split, seed: int, precision: str, fast: bool
) -> float:
    model = ours.make(NOTEBOOK, dataset, precision, fast, seed)
    history = fit(model, dataset, rows, ours.settings(64, EPOCHS), seed=seed)
    return float(best_epoch(history)["val_accuracy"])
