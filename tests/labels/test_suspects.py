"""The pipeline that finds suspect labels, by a file as train leaves it."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from emotion_detection import paths
from emotion_detection.console import UserError
from emotion_detection.data.dataset import SPLITS, Dataset
from emotion_detection.labels import suspects
from stages import labels
from tests.support.project import ROOT
from tests.test_stage import needed


def write_out_of_fold(dataset: Dataset, path: Path, wrong: list[int]) -> None:
    """Write probabilities by which the labels of the rows `wrong` are those of another class."""
    rng, classes = np.random.default_rng(0), dataset.classes
    shown = dataset.labels.copy()
    shown[wrong] = (shown[wrong] + 1) % len(classes)
    logits = (
        rng.normal(scale=0.3, size=(len(dataset), len(classes))) + 4 * np.eye(len(classes))[shown]
    )
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    table = pd.DataFrame(
        {
            "row": range(len(dataset)),
            "file": dataset.files,
            "split": [SPLITS[split] for split in dataset.splits],
            "fold": ["" if test else 1 for test in dataset.is_test],
            "actual": [classes[label] for label in dataset.labels],
        }
        | {
            f"probability_{name}": probabilities[:, label].round(6)
            for label, name in enumerate(classes)
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)


@pytest.fixture
def dataset(toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Write the toy set to a folder in which the stage runs."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", ".")
    paths.DATASET.mkdir(parents=True)
    np.save(paths.DATASET / "images.npy", toy.images)
    toy.write_index(paths.DATASET)
    return toy


def test_suspects_are_listed_with_the_share_of_wrong_labels(dataset: Dataset) -> None:
    wrong = [*range(8), int(np.flatnonzero(dataset.is_test)[0])]
    write_out_of_fold(dataset, paths.OUT_OF_FOLD, wrong)
    labels.main()

    table = pd.read_csv(paths.LABELS / "suspects.csv", dtype={"digest": str})
    assert list(table) == ["digest", "file", "split", "given", "suggested", "score"]
    # Half of them are surer than the mean of their class, which the method asks for.
    assert len(table) >= 3
    assert set(table["digest"]) <= {dataset.digests[row] for row in wrong}
    assert (table["given"] != table["suggested"]).all()
    assert table["score"].is_monotonic_increasing
    summary = pd.read_csv(paths.LABELS / "summary.csv").set_index(["split", "class"])
    of_all = summary.loc[("train", "all classes")]
    assert of_all["images"] == dataset.is_train.sum()
    assert of_all["wrong_low"] <= 8 / dataset.is_train.sum() <= of_all["wrong_high"]
    joint = pd.read_csv(paths.LABELS / "joint.csv")
    assert joint.groupby("split")["share"].sum().to_numpy() == pytest.approx(1, abs=1e-4)
    assert (paths.LABELS / "worst.png").stat().st_size > 1000


def test_without_out_of_fold_probabilities_the_command_for_them_is_named(dataset: Dataset) -> None:
    with pytest.raises(UserError, match=r"is missing: run `dvc exp run -S split.folds=5`"):
        labels.main()
    write_out_of_fold(dataset, paths.OUT_OF_FOLD, [])
    text = paths.OUT_OF_FOLD.read_text()
    paths.OUT_OF_FOLD.write_text(text.replace("row,", "line,"))
    with pytest.raises(UserError, match="cannot be read"):
        suspects.find(dataset, paths.OUT_OF_FOLD, seed=0)
    paths.OUT_OF_FOLD.write_text("\n".join([*text.splitlines()[:2], "999999,x,train,1,a,1,0,0"]))
    with pytest.raises(UserError, match="run `dvc repro train`"):
        suspects.find(dataset, paths.OUT_OF_FOLD, seed=0)


def test_the_pipeline_is_one_of_its_own_and_lists_its_code() -> None:
    stage = YAML(typ="safe").load(ROOT / "labels/dvc.yaml")["stages"]["labels"]
    listed = {dep for dep in stage["deps"] if dep.startswith("src/")}
    assert listed == needed("labels")
    shown = subprocess.run(
        ["dvc", "stage", "list", "labels/dvc.yaml"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    assert "labels" in shown.stdout
