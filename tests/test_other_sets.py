"""Sets of other classes, sizes and colours than FER-2013's, by params alone."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import mlflow
import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from PIL import Image

from tests.support.project import Project
from tests.support.stores import put_empty_store

pytestmark = pytest.mark.slow

COMMON: dict[str, dict[str, object]] = {
    "sample": {"train": 50, "test": 25},
    "evaluate": {"corruption_images": 0},
}
DIGITS: dict[str, dict[str, object]] = {
    "ingest": {"source": "digits", "image_size": [8, 8]},
    "network": {"filters": [32, 64], "kernel_sizes": [3, 3]},
    "tta": {"flips": False},
    "tune": {"trials": 0},
    "train": {"epochs": 4, "batch_size": 64, "augment": {"horizontal_flip": False}},
}
PHOTOS: dict[str, dict[str, object]] = {
    "ingest": {"source": "photos", "image_size": [24, 36], "color_mode": "rgb"},
    "network": {"filters": [16, 32], "kernel_sizes": [3, 3]},
    "ensemble": {"members": 2},
    "tune": {
        "trials": 1,
        "epochs": 1,
        "space": {"network.filters": {"length": [2], "each": [16, 32]}},
    },
    "train": {"epochs": 8, "batch_size": 32},
}


def write_digits(folder: Path) -> None:
    """Write scikit-learn's digits, 8x8 and grey, ten classes; there is no test split."""
    digits = sklearn.datasets.load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / "train" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(path)


def write_photos(folder: Path) -> None:
    """Write tiles of photos, 32x48 and in colour, a class a photo; every fourth is for test."""
    photos: Mapping[str, np.ndarray] = {
        "astronaut": skimage.data.astronaut(),
        "cat": skimage.data.chelsea(),
        "coffee": skimage.data.coffee(),
        "flower": sklearn.datasets.load_sample_image("flower.jpg"),
        "temple": sklearn.datasets.load_sample_image("china.jpg"),
    }
    for name, pixels in photos.items():
        height, width = pixels.shape[:2]
        corners = [
            (top, left) for top in range(0, height - 31, 32) for left in range(0, width - 47, 48)
        ]
        for number, (top, left) in enumerate(corners):
            path = folder / ("test" if number % 4 == 3 else "train") / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[top : top + 32, left : left + 48]).save(path, quality=95)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project that ran on the digits."""
    project = Project.begin(tmp_path_factory.mktemp("digits"), COMMON | DIGITS)
    put_empty_store(project.root)
    write_digits(project.root / "digits")
    project.run("dvc", "repro")
    return project


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project that ran on tiles of photos, in one process to import TensorFlow once."""
    project = Project.begin(tmp_path_factory.mktemp("photos"), COMMON | PHOTOS)
    put_empty_store(project.root)
    write_photos(project.root / "photos")
    stages = "ingest, profile, tune, train, export, evaluate"
    project.run("python", "-c", f"from stages import {stages}\nfor s in {stages}: s.main()")
    return project


def read(project: Project, name: str) -> str:
    return (project.root / "reports" / "evaluate" / name).read_text()


def test_ten_classes_of_tiny_grey_images_without_a_test_split(digits: Project) -> None:
    assert digits.json("data/dataset/dataset.json")["classes"] == list("0123456789")
    assert digits.json("reports/profile/metrics.json")["images"] == {"train": 1438, "test": 359}
    accuracy = digits.json("reports/evaluate/metrics.json")["test/accuracy"]
    assert isinstance(accuracy, float)
    assert accuracy > 0.6  # chance: 0.1
    client = mlflow.MlflowClient(digits.tracking_uri)
    version = client.get_model_version_by_alias("emotion-detection", "champion")
    assert version.tags["dataset"] == "digits"


def test_without_corruption_images_no_corrupted_accuracy_is_reported(digits: Project) -> None:
    assert "corrupted_accuracy" not in digits.json("reports/evaluate/scores.json")
    assert not (digits.root / "reports/evaluate/corruptions.png").exists()
    assert read(digits, "corruptions.csv") == "condition,accuracy\n"


def test_colour_images_that_are_not_square(photos: Project) -> None:
    dataset = photos.json("data/dataset/dataset.json")
    assert dataset["image_size"] == [24, 36]
    accuracy = photos.json("reports/evaluate/metrics.json")["test/accuracy"]
    assert isinstance(accuracy, float)
    assert accuracy > 0.4  # chance: 0.2
    assert "36×24 pixels (rgb), one object each" in read(photos, "model_card.md")


def test_two_members_are_trained_of_what_a_search_found(photos: Project) -> None:
    (train,), (trial,) = photos.runs("train"), photos.runs("trial")
    assert train.data.params["ensemble.members"] == "2"
    parameters = int(train.data.params["parameters"])
    assert parameters == 2 * int(trial.data.params["parameters"])
    card = read(photos, "model_card.md")
    assert f"{parameters:,} parameters" in card
    assert "ensemble params: members: 2" in card


@pytest.mark.parametrize("name", ["report.html", "model_card.md"])
def test_nothing_is_said_of_faces_where_there_are_none(
    name: str, digits: Project, photos: Project
) -> None:
    for project in (digits, photos):
        shown = re.sub('"data:[^"]*"', "", read(project, name))
        words = set(re.findall("[a-z]+", shown.casefold()))
        assert {"pictures", "classes"} <= words
        assert words.isdisjoint({"face", "faces", "emotion", "emotions", "feelings", "fer"})


def test_pictures_are_taken_whole_where_no_class_is_an_emotion(photos: Project) -> None:
    said = photos.run(
        *("emotion-detection", "predict", "photos/test/temple", "photos/test/cat/3.jpg"),
        *("--model", "models/model.keras", "--format", "json"),
    )
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert len(found) == 43
    assert {(box["width"], box["height"]) for box in (line["box"] for line in found)} == {(48, 32)}
    labels = [line["label"] for line in found if "temple" in line["file"]]
    assert labels.count("temple") > len(labels) / 2


def test_dvc_draws_all_plots_of_a_run_without_a_search(digits: Project) -> None:
    printed = digits.run("dvc", "plots", "show", "--out", "plots")
    assert "failed" not in printed
    assert "confusion matrix" in (digits.root / "plots" / "index.html").read_text()
