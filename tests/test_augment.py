"""Augmentation: what each setting may and may not do to an image."""

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from emotion_detection.augment import augment, is_on
from emotion_detection.params import Augment

OFF = Augment(
    rotation=0,
    width_shift=0,
    height_shift=0,
    shear=0,
    zoom=0,
    horizontal_flip=False,
    fill_mode="constant",
)
SIDE = 33
MIDDLE = SIDE // 2


def changed(images: np.ndarray, *, seed: int = 0, **settings: Any) -> np.ndarray:
    found = augment(
        tf.constant(images), OFF.model_copy(update=settings), tf.constant([seed, 0], tf.int64)
    )
    assert found.dtype == tf.uint8
    return found.numpy()


def noise(images: int = 12, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (images, side, side + 4, 3), np.uint8)


def spots(images: int, x: int, y: int) -> np.ndarray:
    """Black images with one bright spot at `x`, `y` from the middle."""
    found = np.zeros((images, SIDE, SIDE, 1), np.uint8)
    found[:, MIDDLE + y - 1 : MIDDLE + y + 2, MIDDLE + x - 1 : MIDDLE + x + 2] = 200
    return found


def centres(images: np.ndarray) -> np.ndarray:
    """Where the light of each image is: (N, 2), x and y from the middle."""
    light = images[..., 0].astype(float)
    away = np.arange(SIDE) - MIDDLE
    total = light.sum(axis=(1, 2))
    return np.stack([light.sum(axis=1) @ away / total, light.sum(axis=2) @ away / total], axis=1)


ALL: dict[str, Any] = {
    "rotation": 30.0,
    "width_shift": 0.2,
    "height_shift": 0.2,
    "shear": 20.0,
    "zoom": 0.3,
    "horizontal_flip": True,
}


def test_nothing_asked_for_is_nothing_changed() -> None:
    assert not is_on(OFF)
    assert np.array_equal(changed(noise()), noise())


@pytest.mark.parametrize("setting", ALL)
def test_each_setting_alone_changes_images(setting: str) -> None:
    settings = {setting: ALL[setting]}
    assert is_on(OFF.model_copy(update=settings))
    found = changed(noise(), **settings)
    assert found.shape == noise().shape
    assert not np.array_equal(found, noise())


def test_a_flip_mirrors_an_image_or_leaves_it() -> None:
    before, after = noise(64), changed(noise(64), horizontal_flip=True)
    kept = (after == before).all(axis=(1, 2, 3))
    mirrored = (after == before[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (kept ^ mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_a_shift_goes_as_far_as_asked_either_way_and_along_its_own_axis() -> None:
    shift = 0.2 * SIDE
    for setting, axis in (("width_shift", 0), ("height_shift", 1)):
        settings: dict[str, Any] = {setting: 0.2}
        found = centres(changed(spots(200, 0, 0), **settings))
        along, across = found[:, axis], found[:, 1 - axis]
        assert np.abs(across).max() < 0.05
        assert -shift - 0.1 < along.min() < -0.8 * shift
        assert 0.8 * shift < along.max() < shift + 0.1


def test_a_rotation_turns_about_the_middle_by_at_most_its_angle() -> None:
    found = centres(changed(spots(200, 10, 0), rotation=40.0))
    angles = np.degrees(np.arctan2(found[:, 1], found[:, 0]))
    np.testing.assert_allclose(np.hypot(*found.T), 10, atol=0.2)
    assert -41 < angles.min() < -32
    assert 32 < angles.max() < 41
    np.testing.assert_allclose(centres(changed(spots(20, 0, 0), rotation=40.0)), 0, atol=0.1)


def test_a_zoom_scales_both_sides_alike() -> None:
    found = centres(changed(spots(200, 6, 9), zoom=0.25))
    scale = found[:, 0] / 6
    np.testing.assert_allclose(found[:, 1] / 9, scale, atol=0.05)
    assert 1 / 1.25 - 0.03 < scale.min() < 0.85
    assert 1.2 < scale.max() < 1 / 0.75 + 0.03


def test_a_shear_leaves_rows_level() -> None:
    found = centres(changed(spots(200, 0, 8), shear=30.0))
    slide = np.abs(found[:, 0])
    assert 8 * math.tan(math.radians(20)) < slide.max() < 8 * math.tan(math.radians(31))
    np.testing.assert_allclose(centres(changed(spots(50, 8, 0), shear=30.0))[:, 1], 0, atol=0.1)


@pytest.mark.parametrize("fill_mode", ["nearest", "reflect", "wrap"])
def test_what_comes_in_from_outside_is_of_the_image(fill_mode: str) -> None:
    white = np.full((20, SIDE, SIDE, 3), 255, np.uint8)
    settings: dict[str, Any] = {"rotation": 90.0, "width_shift": 0.4, "height_shift": 0.4}
    assert (changed(white, fill_mode=fill_mode, **settings) == 255).all()
    assert (changed(white, fill_mode="constant", **settings) == 0).any()


def test_the_fill_modes_differ() -> None:
    modes = ("nearest", "reflect", "wrap", "constant")
    found = [changed(noise(), fill_mode=mode, width_shift=0.4) for mode in modes]
    for first in range(4):
        for second in range(first):
            assert not np.array_equal(found[first], found[second])


def test_the_seed_fixes_every_image_and_images_differ() -> None:
    same = np.repeat(noise(1), 8, axis=0)
    found = changed(same, seed=3, **ALL)
    assert np.array_equal(found, changed(same, seed=3, **ALL))
    assert not np.array_equal(found, changed(same, seed=4, **ALL))
    assert len(np.unique(found, axis=0)) == 8
