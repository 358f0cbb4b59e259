"""The scores of the model last trained here, beside other classifiers on the same test images.

`python -m benchmarks.rivals --minutes 6 --python rivals/bin/python` reads the dataset, the network
and the MLflow run that train left, and gives the images to Ultralytics and `fer` where the Python
named has them. The section in docs/benchmarks.md says how to install them.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from PIL import Image

from benchmarks.report import Section, assemble, keep
from emotion_detection import paths
from emotion_detection.console import UserError, log, progress, run
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split, split
from emotion_detection.evaluation import metrics
from emotion_detection.models import saving
from emotion_detection.settings import params

HERE = Path(__file__).parent
INSTALL = """\
```sh
python3 -m venv rivals
rivals/bin/pip install ultralytics "opencv-python<5" tensorflow "setuptools<81"
rivals/bin/pip install --no-deps fer
python -m benchmarks.rivals --minutes 6 --python rivals/bin/python
```"""
FER_CLASSES = {"disgust": "disgusted", "fear": "fearful", "surprise": "surprised"}
"""The names of `fer` that differ from those of FER-2013's folders."""


@dataclass(frozen=True)
class Contender:
    """A classifier and its probabilities (N, classes) float for the test images."""

    name: str
    parameters: int
    trained: str
    probabilities: np.ndarray


@dataclass(frozen=True)
class Trained:
    """The model that the pipeline made, and the rows it was trained on."""

    contender: Contender
    dataset: Dataset
    rows: Split
    seed: int
    run_name: str
    commit: str


def ours(project: Path) -> Trained:
    """Read what the pipeline left in `project`, and classify its test images.

    Raises:
        UserError: if something is missing there, or the network was selected on test.

    """
    dataset = Dataset.open(project / paths.DATASET)
    run_file = project / paths.NETWORKS / paths.RUN_FILE
    try:
        model, _ = saving.load(project / paths.MODEL)
        left = json.loads(run_file.read_text(encoding="utf-8"))
        client = mlflow.MlflowClient(left["tracking_uri"])
        tracked = client.get_run(left["run_id"])
        seconds = _epoch_seconds(client, tracked)
    except (OSError, ValueError, KeyError, mlflow.MlflowException) as error:
        raise UserError(
            f"{run_file}: the model or its run cannot be read ({error}); run `dvc repro export`"
        ) from error
    logged, tags = tracked.data.params, tracked.data.tags
    if logged["split.validation"] != "holdout" or tags["dataset.digest"] != dataset.digest:
        raise UserError(
            f"{project / paths.MODEL}: trained on other images, or selected on test; train it "
            "again with split.validation holdout"
        )
    seed = int(logged["split.seed"])
    fraction = float(logged["split.fraction"])
    rows = split(dataset, params.Split(validation="holdout", fraction=fraction, seed=seed))
    contender = Contender(
        f"this project, {logged['network.arch']} {logged['network.filters'].replace(' ', '-')}",
        model.count_params(),
        f"{sum(seconds) / 60:.1f} min, {len(seconds)} epochs",
        saving.predict(model, dataset.images, rows.test),
    )
    commit = tags.get("git.commit", "unknown")[:7]
    return Trained(contender, dataset, rows, seed, tracked.info.run_name, commit)


def _epoch_seconds(client: mlflow.MlflowClient, run: mlflow.entities.Run) -> list[float]:
    """Return how long each epoch took, of all networks."""
    return [
        point.value
        for name in run.data.metrics
        if re.fullmatch(r"(epoch|network_\d+)/seconds", name)
        for point in client.get_metric_history(run.info.run_id, name)
    ]


def write(dataset: Dataset, rows: Split, folder: Path) -> None:
    """Write a PNG a row: to learn/train/CLASS/, learn/val/CLASS/, and test/ without its class."""
    chosen = ((rows.train, "learn/train"), (rows.validation, "learn/val"), (rows.test, "test"))
    for part, name in chosen:
        for row in progress(part, description=f"writing {name}", unit="images"):
            parent = folder / name
            if part is not rows.test:
                parent /= dataset.classes[dataset.labels[row]]
            parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(dataset.images[row].squeeze()).save(parent / f"{row:08}.png")


def rival(package: str, python: Path, folder: Path, options: Sequence[str]) -> dict[str, Any]:
    """Let a rival learn from folder/learn and classify folder/test: its versions and contenders.

    Raises:
        UserError: if it is not installed, or fails.

    """
    look = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
    if subprocess.run([python, "-c", look], check=False).returncode:
        raise UserError(f"{python} has no package of that name")
    output = folder / f"{package}.json"
    # Else the other modules beside the script would hide packages of the same name.
    script = HERE / f"rival_{package}.py"
    command = [str(python), "-P", str(script), str(folder), str(output), *options]
    # Ultralytics writes settings, and reports each training to its makers.
    env = os.environ | {"YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true"}
    if subprocess.run(command, check=False, stdout=sys.stderr, env=env).returncode:
        raise UserError(f"it failed under {python}; see above")
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def contenders(found: dict[str, Any], classes: Sequence[str]) -> list[Contender]:
    """Return a rival's contenders with their columns in the order of `classes`.

    Raises:
        UserError: if it knows other classes.

    """
    result = []
    for entry in found["contenders"]:
        names = [name if name in classes else FER_CLASSES.get(name) for name in entry["classes"]]
        if set(names) != set(classes):
            raise UserError(
                f"{entry['name']} knows {', '.join(entry['classes'])}, and the dataset has "
                f"{', '.join(classes)}"
            )
        columns = [names.index(name) for name in classes]
        probabilities = np.array(entry["probabilities"])[:, columns]
        result.append(
            Contender(entry["name"], entry["parameters"], entry["trained"], probabilities)
        )
    return result


def describe(trained: Trained, all_of_them: Sequence[Contender], minutes: float) -> Section:
    """Score all and say how they came about."""
    dataset, rows = trained.dataset, trained.rows
    leaked = dataset.leaked[rows.test]
    section = Section("Other classifiers")
    section.say(
        f"{len(rows.test):,} test images of `{dataset.source}`, {leaked.sum():,} of them also in "
        "train, scored by the same code; intervals are 95 %, by bootstrap over these images. This "
        f"project's network is that of the MLflow run *{trained.run_name}*, commit "
        f"{trained.commit}, trained on {len(rows.train):,} images and its epoch chosen on "
        f"{len(rows.validation):,} others."
    )
    table = []
    for contender in all_of_them:
        scores = metrics.evaluate(
            dataset.labels[rows.test],
            contender.probabilities,
            dataset.classes,
            leaked=leaked,
            seed=trained.seed,
        )
        without = scores.without_leaks
        table.append(
            (
                contender.name,
                f"{contender.parameters:,}",
                contender.trained,
                _percent(scores.accuracy),
                f"{scores.macro_f1.value:.3f}",
                _percent(without.accuracy) if without else "",
            )
        )
    section.table(
        ("", "parameters", "trained", "test accuracy", "macro F1", "without leaks"), table
    )
    section.say(
        f"Ultralytics' network is trained from scratch for {minutes:g} minutes on the same images "
        "and has its epoch chosen on the same others, by the mean of top-1 and top-5 accuracy. All "
        "is as Ultralytics has it, but for batches of 128, images decoded once, and the size, a "
        "multiple of 32. `fer` ships its networks: its own code scales a whole image in place of "
        "the faces that it would detect, and its probabilities are taken before it rounds them. It "
        "does not say how it trained them; the code that it names as its origin, "
        "oarriaga/face_classification, trains on FER-2013's first 28,709 images and keeps the "
        "epoch with the lowest loss on the other 7,178, which are the archive's test images."
    )
    return section


def _percent(estimate: metrics.Estimate) -> str:
    return f"{estimate.value:.1%} ({100 * estimate.low:.1f}-{100 * estimate.high:.1f})"


def main() -> None:
    """Train and score, and write the section."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rivals", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument(
        "--project", type=Path, default=Path(), help="where train has left its network (default .)"
    )
    parser.add_argument(
        "--python", type=Path, default=Path(sys.executable), help="which has ultralytics and fer"
    )
    parser.add_argument(
        "--minutes", type=float, default=6, help="of training for Ultralytics (default 6)"
    )
    arguments = parser.parse_args()
    trained = ours(arguments.project)
    dataset = trained.dataset
    found = [trained.contender]
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(dataset, trained.rows, folder)
        ultralytics = [
            *("--side", str(max(dataset.image_size))),
            *("--minutes", str(arguments.minutes)),
            *("--seed", str(trained.seed)),
        ]
        for package, options in (("ultralytics", ultralytics), ("fer", ())):
            try:
                answer = rival(package, arguments.python, folder, options)
                found += contenders(answer, dataset.classes)
                versions |= answer["versions"]
            except UserError as error:
                log.info("%s is left out: %s", package, error)
    section = describe(trained, found, arguments.minutes)
    if versions:
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        section.say(f"The others ran under {named}.")
    section.say("They are no packages of this project's; to have them in an environment apart:")
    section.say(INSTALL)
    keep("rivals", section)
    assemble()


if __name__ == "__main__":
    run(main)
