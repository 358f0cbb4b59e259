"""Near-duplicates: which pictures are taken for the same, and that they stay on one side."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emotion_detection.data import near_duplicates
from emotion_detection.data.dataset import Dataset, read_near_pairs
from emotion_detection.data.splits import split
from emotion_detection.settings import params
from tests.support.sources import encoded, in_folder, ingested

SIDE = near_duplicates.SIDE


def scene(seed: int, side: int = SIDE) -> np.ndarray:
    """Return a smooth random picture, (side, side) uint8, unlike any of another seed."""
    cells = np.random.default_rng(seed).integers(30, 226, (8, 8)).astype(np.uint8)
    return np.asarray(Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC))


def saved_again(image: np.ndarray) -> np.ndarray:
    data = encoded(Image.fromarray(image).resize((64, 64)), "JPEG", quality=90)
    return np.asarray(Image.open(io.BytesIO(data)).resize((SIDE, SIDE)))


def shifted(image: np.ndarray) -> np.ndarray:
    return np.pad(image, 3, mode="edge")[6:, :SIDE]


def smaller(image: np.ndarray) -> np.ndarray:
    side = round(SIDE * 0.9)
    small = np.asarray(Image.fromarray(image).resize((side, side)))
    return np.pad(small, ((2, SIDE - side - 2),) * 2, mode="edge")


def cropped(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image[2:-2, 2:-2]).resize((SIDE, SIDE)))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "saved again as JPEG": saved_again,
    "mirrored": lambda image: image[:, ::-1],
    "shifted by 3 pixels": shifted,
    "scaled by 0.9": smaller,
    "cropped by 2 pixels": cropped,
    "brighter by a fifth": lambda image: np.clip(image * 1.2, 0, 255).astype(np.uint8),
    "darker by a fifth": lambda image: (image * 0.8).astype(np.uint8),
    "mirrored, shifted and darker": lambda image: (shifted(image[:, ::-1]) * 0.8).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_is_found_and_no_other(change: str) -> None:
    base = np.stack([scene(seed) for seed in range(120)])
    planted = np.stack([CHANGES[change](image) for image in base[:40]])
    pairs, scores, threshold = near_duplicates.find(np.concatenate([base, planted]))
    found = {tuple(pair) for pair in pairs.tolist()}
    expected = {(number, 120 + number) for number in range(40)}
    assert len(found & expected) >= 38
    assert not found - expected
    assert (np.diff(scores) <= 0).all()
    assert (scores >= threshold).all()


def test_a_picture_of_one_colour_is_like_no_other() -> None:
    blank = np.full((3, SIDE, SIDE), 200, np.uint8)
    blank[1] = 90
    pairs, _, _ = near_duplicates.find(np.concatenate([blank, [scene(1), scene(2)]]))
    assert len(pairs) == 0


def test_groups_are_joined_by_pairs() -> None:
    groups = np.array([0, 1, 1, 2, 3, 4])
    joined = near_duplicates.grouped(groups, np.array([[2, 4], [5, 3]]))
    assert joined.tolist() == [0, 1, 1, 2, 1, 2]
    assert near_duplicates.grouped(groups, np.empty((0, 2), np.int64)).tolist() == groups.tolist()


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Return a source of 40 scenes, four frames of each with a little noise, labels at random."""
    rng = np.random.default_rng(3)
    labels = rng.permutation(np.arange(40) % 2)
    files = {}
    for number, label in enumerate(labels):
        for frame in range(4):
            noise = rng.integers(-2, 3, (SIDE, SIDE))
            image = Image.fromarray(np.clip(scene(number) + noise, 0, 255).astype(np.uint8))
            files[f"train/{'ab'[label]}/S{number:03d}_{frame}.png"] = encoded(image)
    return in_folder(tmp_path / "frames", files)


def test_frames_of_one_scene_stay_on_one_side(frames: Path, tmp_path: Path) -> None:
    report = ingested(frames, tmp_path / "out", image_size=(16, 16))
    assert report.near_duplicate_groups == 40
    dataset = Dataset.open(tmp_path / "out")
    scenes = np.array([file.split("/")[-1][:4] for file in dataset.files])
    rows = split(dataset, params.Split(fraction=0.25, seed=5))
    sides = [set(scenes[each]) for each in (rows.train, rows.validation, rows.test)]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert not dataset.near_leaked.any()
    pairs, _ = read_near_pairs(tmp_path / "out")
    assert (scenes[pairs[:, 0]] == scenes[pairs[:, 1]]).all()


def test_near_duplicates_in_train_and_test_are_counted(tmp_path: Path) -> None:
    files = {}
    for number in range(12):
        image = Image.fromarray(scene(number))
        files[f"train/{'ab'[number % 2]}/{number}.png"] = encoded(image)
        jpeg = encoded(image.resize((64, 64)), "JPEG", quality=90)
        files[f"test/{'ab'[number % 2]}/{number}.jpg"] = jpeg
    source = in_folder(tmp_path / "s", files)
    ingested(source, tmp_path / "out", image_size=(16, 16))
    dataset = Dataset.open(tmp_path / "out")
    assert (int(dataset.leaked.sum()), int(dataset.near_leaked.sum())) == (0, 12)
    ingested(source, tmp_path / "out", image_size=(16, 16), near_duplicates=0)
    assert not Dataset.open(tmp_path / "out").near_leaked.any()
