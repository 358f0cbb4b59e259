"""The comparison with other classifiers: what they are given, and what is made of their answers."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.rivals import contenders, write
from emotion_detection import paths, tracking
from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset, Split
from emotion_detection.evaluation.metrics import metrics
from emotion_detection.models import saving
from emotion_detection.models.network import Architecture, build, export
from emotion_detection.training.fit import predict

ROOT = Path(__file__).parents[1]


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
    toy: Dataset, rows: Split, tmp_path: Path
) -> None:
    write(toy, rows, tmp_path)
    for name, chosen in (("learn/train", rows.train), ("learn/val", rows.validation)):
        found = sorted((tmp_path / name).rglob("*.png"), key=lambda path: path.name)
        assert [int(path.stem) for path in found] == chosen.tolist()
        labels = [toy.classes.index(path.parent.name) for path in found]
        assert labels == toy.labels[chosen].tolist()
    found = sorted((tmp_path / "test").iterdir())
    for path, row in zip(found, rows.test, strict=True):
        np.testing.assert_array_equal(Image.open(path), toy.images[row])


def test_without_rivals_the_network_is_scored_alone(
    packed: Path,
    toy: Dataset,
    rows: Split,
    architecture: Callable[..., Architecture],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}")
    shutil.copytree(packed, paths.DATASET)
    chosen = architecture(average_flips=True)
    model = export(build(chosen, image_shape=toy.images.shape[1:], classes=3, seed=0), chosen)
    paths.MODEL.parent.mkdir()
    saving.save(model, paths.MODEL, toy.classes)
    params = {
        "seed": 0,
        "split": {"validation": "holdout", "fraction": 0.2},
        "network": {"family": "notebook", "filters": [8, 8]},
    }
    with tracking.run("train", note="", dataset=toy, params=params, tags={}) as run_id:
        tracking.log_epoch({"seconds": 90.0}, 1)
        tracking.log_epoch({"seconds": 30.0}, 2)
        tracking.save_run_id(paths.TRAIN_RUN, run_id)
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
    document = Path("docs/benchmarks.md").read_text(encoding="utf-8")
    table = [line for line in document.splitlines() if line.startswith("| this project")]
    scores = metrics.evaluate(
        toy.labels[rows.test], predict(model, toy, rows.test, 8), toy.classes, seed=0
    )
    line = f"| this project, notebook 8-8 | {model.count_params():,} | 2.0 min, 2 epochs | "
    assert [row[: len(line)] for row in table] == [line]
    assert f"| {scores.accuracy.value:.1%} (" in table[0]
    assert f"| {scores.macro_f1.value:.3f} |" in table[0]
