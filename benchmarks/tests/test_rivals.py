"""The comparison with other classifiers: what they are given, and how their answers are scored."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.rivals import contenders, write
from emotion_detection import paths
from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.evaluation import metrics
from emotion_detection.models import saving
from emotion_detection.settings.params import Network
from emotion_detection.tracking import runs
from tests.support.project import ROOT
from tests.support.stores import alone
from tests.support.tiny import tiny


def answer(classes: list[str]) -> dict[str, object]:
    probabilities = [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]
    entry = {"name": "fer", "parameters": 9, "trained": "", "classes": classes}
    return {"contenders": [{**entry, "probabilities": probabilities}]}


def test_a_rivals_classes_are_put_in_the_order_of_the_datasets() -> None:
    found = contenders(answer(["surprise", "angry", "fear"]), ("angry", "fearful", "surprised"))
    assert found[0].probabilities.tolist() == [[0.3, 0.2, 0.5], [0.2, 0.7, 0.1]]
    with pytest.raises(UserError, match="fer knows happy, sad, fear, and the dataset has happy"):
        contenders(answer(["happy", "sad", "fear"]), ("happy", "sad", "neutral"))


def test_a_rival_sees_the_split_and_no_class_of_a_test_image(
    dataset: Dataset, rows: Split, tmp_path: Path
) -> None:
    write(dataset, rows, tmp_path)
    for name, chosen in (("learn/train", rows.train), ("learn/val", rows.validation)):
        found = sorted((tmp_path / name).rglob("*.png"), key=lambda path: path.name)
        assert [int(path.stem) for path in found] == chosen.tolist()
        labels = [dataset.classes.index(path.parent.name) for path in found]
        assert labels == dataset.labels[chosen].tolist()
    found = sorted((tmp_path / "test").iterdir())
    for path, row in zip(found, rows.test, strict=True):
        np.testing.assert_array_equal(Image.open(path), dataset.images[row])


def test_without_rivals_the_network_is_scored_alone(
    packed: Path, dataset: Dataset, rows: Split, network: Network, tmp_path: Path
) -> None:
    model = tiny(dataset)
    params = {
        "split": {"validation": "holdout", "fraction": 0.2, "seed": 0},
        "network": network.model_dump(),
    }
    with alone(tmp_path):
        shutil.copytree(packed, paths.DATASET)
        paths.NETWORKS.mkdir(parents=True)
        saving.save(model, paths.MODEL, dataset.classes)
        with runs.run("train", note="", dataset=dataset, params=params, tags={}) as run_id:
            runs.log_epoch({"seconds": 90.0}, 1, "network_1")
            runs.log_epoch({"seconds": 30.0}, 1, "network_2")
            runs.save_run_id(paths.NETWORKS / paths.RUN_FILE, run_id)
        for command in (["init"], ["add", "models"], ["commit", "--quiet", "--message", "Train"]):
            identity = ("-c", "user.name=a", "-c", "user.email=a@b.example")
            subprocess.run(["git", *identity, *command], check=True, capture_output=True)
        path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.rivals"],
            env=os.environ | {"PYTHONPATH": path},
            check=True,
            capture_output=True,
            text=True,
        )
    for package in ("ultralytics", "fer"):
        assert f"{package} is left out: {sys.executable} has no package of that name" in done.stderr
    document = (tmp_path / "docs/benchmarks.md").read_text(encoding="utf-8")
    table = [line for line in document.splitlines() if line.startswith("| this project")]
    scores = metrics.evaluate(
        dataset.labels[rows.test],
        saving.predict(model, dataset.images, rows.test),
        dataset.classes,
        seed=0,
    )
    line = f"| this project, notebook 8-8 | {model.count_params():,} | 2.0 min, 2 epochs | "
    assert [row[: len(line)] for row in table] == [line]
    assert f"| {scores.accuracy.value:.1%} (" in table[0]
    assert f"| {scores.macro_f1.value:.3f} |" in table[0]
