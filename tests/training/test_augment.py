"""Augmentation: what each setting may and may not do to an image."""

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from emotion_detection.settings.params import Augment
from emotion_detection.training.augment import augment, without_interpolation

OFF = Augment(fill_mode="constant")
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
    """Return black images with one bright spot at `x`, `y` from the middle."""
    found = np.zeros((images, SIDE, SIDE, 1), np.uint8)
    found[:, MIDDLE + y - 1 : MIDDLE + y + 2, MIDDLE + x - 1 : MIDDLE + x + 2] = 200
    return found


def centres(images: np.ndarray) -> np.ndarray:
    """Return where the light of each image is: (N, 2), x and y from the middle."""
    light = images[..., 0].astype(float)
    away = np.arange(SIDE) - MIDDLE
    total = light.sum(axis=(1, 2))
    return np.stack([light.sum(axis=1) @ away / total, light.sum(axis=2) @ away / total], axis=1)


ALL: dict[str, Any] = {
    "rotation": 30.0,
    "shift": 0.2,
    "shear": 20.0,
    "zoom": 0.3,
    "horizontal_flip": True,
    "random_erasing": 0.5,
}


def test_without_settings_nothing_changes() -> None:
    assert np.array_equal(changed(noise()), noise())


@pytest.mark.parametrize("setting", ALL)
def test_each_setting_alone_changes_images(setting: str) -> None:
    settings = {setting: ALL[setting]}
    found = changed(noise(), **settings)
    assert found.shape == noise().shape
    assert not np.array_equal(found, noise())


def test_a_flip_mirrors_an_image_or_leaves_it() -> None:
    before, after = noise(64), changed(noise(64), horizontal_flip=True)
    kept = (after == before).all(axis=(1, 2, 3))
    mirrored = (after == before[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (kept ^ mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_a_shift_goes_as_far_as_asked_either_way_along_both_axes() -> None:
    shift = 0.2 * SIDE
    found = centres(changed(spots(200, 0, 0), shift=0.2))
    for along in found.T:
        assert -shift - 0.1 < along.min() < -0.8 * shift
        assert 0.8 * shift < along.max() < shift + 0.1
    # Each axis has a shift of its own.
    assert abs(np.corrcoef(found.T)[0, 1]) < 0.3


def test_the_shift_of_a_wider_image_is_a_fraction_of_each_side() -> None:
    wide = np.zeros((200, 20, 60, 1), np.uint8)
    wide[:, 10, 30] = 200
    found = changed(wide, shift=0.1)[..., 0]
    rows, columns = np.nonzero(found)[1:]
    assert (rows.min(), rows.max()) == (8, 12)
    assert (columns.min(), columns.max()) == (24, 36)


def test_flips_and_shifts_alone_move_whole_pixels() -> None:
    before = noise(40)
    settings = without_interpolation(OFF.model_copy(update=ALL | {"shift": 0.1}))
    assert settings == OFF.model_copy(update={"shift": 0.1, "horizontal_flip": True})
    after = changed(before, **settings.model_dump())
    for old, new in zip(before, after, strict=True):
        assert any(
            np.array_equal(new[5:-5, 5:-5], mirrored[5 + y : SIDE - 5 + y, 5 + x : SIDE - 1 + x])
            for mirrored in (old, old[:, ::-1])
            for y in range(-4, 5)
            for x in range(-4, 5)
        )
    assert not np.array_equal(before, after)


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
def test_what_comes_in_at_an_edge_is_taken_from_the_image(fill_mode: str) -> None:
    white = np.full((20, SIDE, SIDE, 3), 255, np.uint8)
    settings: dict[str, Any] = {"rotation": 90.0, "shift": 0.4}
    assert (changed(white, fill_mode=fill_mode, **settings) == 255).all()
    assert (changed(white, fill_mode="constant", **settings) == 0).any()


def test_the_fill_modes_differ() -> None:
    modes = ("nearest", "reflect", "wrap", "constant")
    found = [changed(noise(), fill_mode=mode, shift=0.4) for mode in modes]
    for first in range(4):
        for second in range(first):
            assert not np.array_equal(found[first], found[second])


def test_the_seed_fixes_every_image_and_images_differ() -> None:
    same = np.repeat(noise(1), 8, axis=0)
    found = changed(same, seed=3, **ALL)
    assert np.array_equal(found, changed(same, seed=3, **ALL))
    assert not np.array_equal(found, changed(same, seed=4, **ALL))
    assert len(np.unique(found, axis=0)) == 8


def test_a_square_is_erased_in_the_images_grey() -> None:
    images = noise(200)
    found = changed(images, random_erasing=0.5)
    grey = images.astype(float).mean(axis=(1, 2, 3)).astype(np.uint8)
    painted = (found != images).any(axis=3)
    for image, mask, mean in zip(found, painted, grey, strict=True):
        assert (image[mask] == mean).all()
        # Half a side each way, and what only happens to be of that grey.
        assert mask.any(axis=1).sum() <= 0.5 * image.shape[0] + 1
        assert mask.any(axis=0).sum() <= 0.5 * image.shape[1] + 1
    assert 0.03 < painted.mean() < 0.12
