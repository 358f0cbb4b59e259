"""What each corruption does to images, and the table of accuracies under it."""

import numpy as np
import pytest

from emotion_detection.data.dataset import Dataset
from emotion_detection.evaluation import corruptions
from emotion_detection.evaluation.corruptions import (
    CORRUPTIONS,
    NOT_MEASURED,
    add_noise,
    blur,
    brighten,
    mean_accuracy,
    measure,
    shift,
    stretch_contrast,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def images() -> np.ndarray:
    """Grey pictures of 40x50 pixels in three equal channels, some of their pixels at either end."""
    grey = rng().integers(0, 256, (4, 40, 50, 1), np.uint8)
    return np.repeat(grey, 3, axis=3)


@pytest.mark.parametrize("kind", CORRUPTIONS, ids=lambda kind: kind.name)
def test_images_stay_images_and_change_more_with_severity(kind: object, images: np.ndarray) -> None:
    kept = images.copy()
    distance = {}
    for by in kind.severities:  # type: ignore[attr-defined]
        changed = kind.apply(images, by, rng())  # type: ignore[attr-defined]
        assert changed.shape == images.shape
        assert changed.dtype == np.uint8
        assert (changed == changed[..., :1]).all()  # grey stays grey
        distance[by] = np.abs(changed.astype(int) - images).mean()
    np.testing.assert_array_equal(images, kept)
    for side in (-1, 1):
        growing = [distance[by] for by in sorted(distance, key=abs) if by * side > 0]
        # All shifts of noise are alike.
        assert kind.name == "shift" or growing == sorted(growing)  # type: ignore[attr-defined]
        assert all(growing)


def test_brightness_adds_and_clips() -> None:
    images = np.array([0, 100, 250], np.uint8).reshape(1, 1, 3, 1)
    assert brighten(images, 20, rng()).ravel().tolist() == [51, 151, 255]
    assert brighten(images, -20, rng()).ravel().tolist() == [0, 49, 199]


def test_contrast_keeps_the_mean_of_each_image() -> None:
    images = np.array([[90, 110], [150, 250]], np.uint8).reshape(2, 1, 2, 1)
    assert stretch_contrast(images, -50, rng()).reshape(2, 2).tolist() == [[95, 105], [175, 225]]
    assert stretch_contrast(images, 50, rng()).reshape(2, 2).tolist() == [[85, 115], [125, 255]]


def test_noise_has_the_deviation_it_says() -> None:
    images = np.full((4, 100, 100, 3), 128, np.uint8)
    changed = add_noise(images, 5, rng()).astype(float)
    assert changed.std() == pytest.approx(0.05 * 255, rel=0.02)
    assert changed.mean() == pytest.approx(128, abs=0.3)


def test_blur_spreads_a_point_as_wide_as_it_says() -> None:
    images = np.zeros((2, 50, 50, 1), np.uint8)
    images[0, 25, 25] = 255
    images[1] = 7
    changed = blur(images, 4, rng())  # a standard deviation of 2 pixels
    across = changed[0, 25, :, 0].astype(float)
    deviation = np.sqrt((across * (np.arange(50) - 25) ** 2).sum() / across.sum())
    assert deviation == pytest.approx(2, abs=0.25)
    assert (changed[1] == 7).all()


def test_a_shift_moves_the_whole_image_by_the_distance_it_says() -> None:
    images = np.zeros((300, 50, 60, 1), np.uint8)
    images[:, 25, 30] = 255
    changed = shift(images, 6, rng())  # 3 of 50 pixels
    number, row, column = np.nonzero(changed[..., 0])
    assert number.tolist() == list(range(300))
    moved = np.stack([row - 25, column - 30], axis=1)
    assert np.hypot(*moved.T) == pytest.approx(3, abs=0.71)
    assert len(np.unique(moved, axis=0)) > 12  # in any direction
    np.testing.assert_array_equal(shift(images[:1] + 9, 6, rng())[0, 0], images[0, 0] + 9)


class Thresholds:
    """Takes dark images for class 0, bright ones for class 2, and counts what it saw."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(len(images))
        brightness = images.mean(axis=(1, 2, 3))
        return np.eye(3)[np.digitize(brightness, (70, 80))]


def test_the_table_shows_how_accuracy_changes(
    toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.flatnonzero(toy.is_test)
    predict = Thresholds()
    monkeypatch.setattr(corruptions, "VALUES_AT_ONCE", 4 * 16 * 16 * 3)
    table = measure(predict, toy, rows, bootstrap=100, seed=0)
    assert max(predict.batches) == 4
    assert sum(predict.batches) == len(rows) * len(table)

    clean = table.iloc[0]
    expected = Thresholds()(toy.images[rows]).argmax(axis=1) == toy.labels[rows]
    assert clean["condition"] == "clean"
    assert clean["accuracy"] == pytest.approx(expected.mean(), abs=1e-6)
    assert (clean["change"], clean["change_low"], clean["change_high"]) == (0, 0, 0)
    assert table["condition"].tolist()[1:5] == [
        "brightness -30 %",
        "brightness -15 %",
        "brightness +15 %",
        "brightness +30 %",
    ]
    assert table["condition"].tolist()[-1] == "shift 12 %"
    # In the dark everything is of class 0, and in full light of class 2: a third each.
    assert table["accuracy"].iloc[[1, 4]].tolist() == pytest.approx([1 / 3] * 2, abs=1e-6)
    np.testing.assert_allclose(table["change"], table["accuracy"] - clean["accuracy"], atol=2e-6)
    assert (table["change_low"] <= table["change"]).all()
    assert (table["change"] <= table["change_high"]).all()
    assert (table["images"] == 15).all()

    of_kind = [table.loc[table["corruption"] == kind.name, "accuracy"] for kind in CORRUPTIONS]
    assert set(NOT_MEASURED.columns) <= set(table.columns)
    assert mean_accuracy(table) == pytest.approx(np.mean([of.mean() for of in of_kind]), abs=1e-6)


def test_batches_make_no_difference_and_the_seed_does(
    toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[tuple[int, int], np.ndarray] = {}

    def tables(batch_size: int, seed: int) -> None:
        images: list[np.ndarray] = []

        def predict(batch: np.ndarray) -> np.ndarray:
            images.append(batch.copy())
            return np.ones((len(batch), 3)) / 3

        monkeypatch.setattr(corruptions, "VALUES_AT_ONCE", batch_size * 16 * 16 * 3)
        measure(predict, toy, np.arange(12), bootstrap=100, seed=seed)
        assert max(map(len, images)) == batch_size
        seen[batch_size, seed] = np.concatenate(images)

    for batch_size, seed in ((5, 0), (12, 0), (12, 1)):
        tables(batch_size, seed)
    np.testing.assert_array_equal(seen[5, 0], seen[12, 0])
    assert (seen[12, 0] != seen[12, 1]).any()
