"""How fast a trained network scores images."""

from functools import partial

import keras
import numpy as np

from benchmarks import ours
from benchmarks.material import NOTEBOOK, Material
from benchmarks.report import Section
from benchmarks.turns import Turn, measure
from emotion_detection.network import export


def _plain(turn: Turn, model: str, images: np.ndarray) -> None:
    network = keras.models.load_model(model, compile=False)
    while True:
        turn.begin()
        network.predict(images, batch_size=32, verbose=0)
        turn.end(len(images))


def run(material: Material, turns: int) -> Section:
    """Measure and describe."""
    dataset = material.dataset
    path = material.scratch / "model.keras"
    export(ours.make(NOTEBOOK, dataset), NOTEBOOK).save(path)
    test = dataset.is_test.nonzero()[0]
    rates = measure(
        {
            "evaluate, batches of 256": partial(
                ours.score, packed=material.packed, model=path, batch_size=256
            ),
            "`model.predict` of an array, batches of 32": partial(
                _plain, model=str(path), images=np.asarray(dataset.images[test])
            ),
        },
        turns=turns,
    )
    section = Section("Scoring")
    section.say(f"The notebook's network on {len(test):,} test images, in float32:")
    section.table(("", "images/s"), [(name, str(rate)) for name, rate in rates.items()])
    return section
