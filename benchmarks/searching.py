"""The same networks tried by this project, and by plain KerasTuner with the notebook's code."""

from pathlib import Path

import keras
import numpy as np
import psutil

from benchmarks import notebook, ours
from benchmarks.material import NOTEBOOK, SEED, Material
from benchmarks.report import Section
from benchmarks.turns import alone
from emotion_detection import files
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split, part
from emotion_detection.settings import params
from emotion_detection.training.fit import fit
from emotion_detection.tuning.search import search
from emotion_detection.tuning.task import Outcome, Task, Trial

SPACE = Path("recipes/notebook-search.yaml")
TRIALS = 10
IMAGES = 1024
EPOCHS = 2
BATCH_SIZE = 64


def _search(packed: Path, rows: Split, folder: Path) -> tuple[list[params.Network], list[float]]:
    """Search as tune does; return the networks and the memory, in GiB, after each trial."""
    dataset = Dataset.open(packed)
    settings = params.load().tune.model_copy(
        update={
            "oracle": "random",
            "trials": TRIALS,
            "epochs": EPOCHS,
            "workers": 1,
            "space": files.read_yaml(SPACE)["tune"]["space"],
        }
    )
    networks, memory = [], []

    def run(trial: Trial) -> Outcome:
        model = ours.make(trial.network, dataset)
        chosen = ours.settings(BATCH_SIZE, EPOCHS)
        history = fit(model, dataset, rows, chosen, seed=SEED)
        networks.append(trial.network)
        memory.append(psutil.Process().memory_info().rss / 2**30)
        return Outcome(history.to_dict("records"), model.count_params())

    of = dataset.images.shape[1:], len(dataset.classes)
    task = Task(settings, NOTEBOOK, params.load().train, *of, SEED)
    search(task, folder=folder, records=folder / "trials", run=run)
    return networks, memory


def run(material: Material, turns: int) -> Section:
    """Measure and describe; `turns` is not used, since a search is one."""
    dataset = material.dataset
    rows = part(dataset, material.rows, IMAGES, seed=0)
    mine = alone(
        _search,
        packed=material.packed,
        rows=rows,
        folder=material.scratch / "search",
    )
    networks, memory = mine.value

    def arrays(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = keras.utils.to_categorical(dataset.labels[numbers], len(dataset.classes))
        return np.asarray(dataset.images[numbers]), labels

    x, y = arrays(rows.train)
    plain = alone(
        notebook.search,
        networks=networks,
        x=x,
        y=y,
        validation=arrays(rows.validation),
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        folder=str(material.scratch / "keras_tuner"),
    )
    section = Section("Search")
    section.say(
        f"The same {len(networks)} networks of the notebook's space, {EPOCHS} epochs each on "
        f"{len(rows.train):,} images in batches of {BATCH_SIZE}, with the start of the process:"
    )
    section.table(
        (
            "",
            "seconds",
            "times as fast",
            "GiB after the first trial",
            f"GiB after trial {len(networks)}",
        ),
        [
            (
                name,
                f"{seconds:,.0f}",
                f"{plain.seconds / seconds:.1f}",
                f"{resident[0]:.2f}",
                f"{resident[-1]:.2f}",
            )
            for name, seconds, resident in (
                ("plain KerasTuner, the notebook's code", plain.seconds, plain.value),
                ("this project", mine.seconds, memory),
            )
        ],
    )
    return section
