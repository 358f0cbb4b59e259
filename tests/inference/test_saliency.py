"""Which parts of an image a prediction rests on, by covering them."""

import keras
import numpy as np
import pytest

from emotion_detection.data.dataset import Dataset
from emotion_detection.inference.saliency import BATCH, occlusion
from emotion_detection.models import saving
from tests.support.untrained import untrained


def looking_at_the_lower_left(images: np.ndarray) -> np.ndarray:
    """Return two classes, the second the more probable the brighter that quarter is."""
    _, height, width, _ = images.shape
    quarter = images[:, height // 2 :, : width // 2].mean(axis=(1, 2, 3)) / 255
    return np.stack([1 - quarter, quarter], axis=1).astype(np.float32)


@pytest.mark.parametrize("shape", [(48, 48, 1), (16, 16, 3), (33, 60, 3)])
def test_the_mass_is_where_the_network_looks(shape: tuple[int, int, int]) -> None:
    height, width, _ = shape
    image = np.full(shape, 40, np.uint8)
    image[height // 2 :, : width // 2] = 250
    lost = occlusion(looking_at_the_lower_left, image, 1)
    assert (lost.shape, lost.dtype) == ((height, width), np.float32)
    inside = lost[height // 2 :, : width // 2]
    assert inside.min() > 0
    # A square that is over its edge covers some of the quarter too.
    assert inside.sum() > 0.75 * lost.sum()
    np.testing.assert_allclose(lost[: height // 4], 0, atol=1e-6)
    # What one class loses the other gains.
    np.testing.assert_allclose(occlusion(looking_at_the_lower_left, image, 0), -lost, atol=1e-6)


def test_it_shows_no_more_than_was_measured() -> None:
    measured: list[np.ndarray] = []

    def probabilities(images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        assert len(images) <= BATCH
        measured.append(looking_at_the_lower_left(images)[:, 1])
        return looking_at_the_lower_left(images)

    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    lost = occlusion(probabilities, image, 1)
    (whole,) = measured[0]
    covered = np.concatenate(measured[1:])
    assert lost.max() == pytest.approx(whole - covered.min(), abs=1e-6)
    assert lost.min() == pytest.approx(whole - covered.max(), abs=1e-6)


def test_a_network_looks_at_what_says_the_class(toy: Dataset) -> None:
    network = untrained(toy.images.shape[1:])
    network.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    network.fit(np.asarray(toy.images), toy.labels, epochs=15, batch_size=15, verbose=0)
    probabilities = saving.compiled(network)
    half = toy.images.shape[1] // 2
    inside = everywhere = 0.0
    for row in toy.is_test.nonzero()[0]:
        label = int(toy.labels[row])
        lost = occlusion(probabilities, np.asarray(toy.images[row]), label).clip(0)
        top, left = half * (label // 2), half * (label % 2)
        inside += lost[top : top + half, left : left + half].sum()
        everywhere += lost.sum()
    # A quarter of the pixels.
    assert inside > 0.5 * everywhere > 0
