"""Augmentation: what each setting may and may not do to an image."""

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from emotion_detection.params import Augment
from emotion_detection.training.augment import augment, light

OFF = Augment(
    rotation=0,
    width_shift=0,
    height_shift=0,
    shear=0,
    zoom=0,
    horizontal_flip=False,
    fill_mode="constant",
    random_erasing=0,
    mixup=0,
    cutmix=0,
)
SIDE = 33
MIDDLE = SIDE // 2


def changed(images: np.ndarray, *, seed: int = 0, **settings: Any) -> np.ndarray:
    return mixed(images, seed=seed, **settings)[0]


def mixed(images: np.ndarray, *, seed: int = 0, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Change images of which each is of a class of its own."""
    found, targets = augment(
        tf.constant(images),
        tf.eye(len(images)),
        OFF.model_copy(update=settings),
        tf.constant([seed, 0], tf.int64),
    )
    assert found.dtype == tf.uint8
    assert targets.dtype == tf.float32
    return found.numpy(), targets.numpy()


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
    "random_erasing": 0.5,
    "mixup": 0.5,
    "cutmix": 0.5,
}


def test_nothing_asked_for_is_nothing_changed() -> None:
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


def test_a_shift_goes_as_far_as_asked_either_way_and_along_its_own_axis() -> None:
    shift = 0.2 * SIDE
    for setting, axis in (("width_shift", 0), ("height_shift", 1)):
        settings: dict[str, Any] = {setting: 0.2}
        found = centres(changed(spots(200, 0, 0), **settings))
        along, across = found[:, axis], found[:, 1 - axis]
        assert np.abs(across).max() < 0.05
        assert -shift - 0.1 < along.min() < -0.8 * shift
        assert 0.8 * shift < along.max() < shift + 0.1


def test_shifts_alone_and_what_is_light_move_whole_pixels() -> None:
    before = noise(40)
    shifts: dict[str, Any] = {"width_shift": 0.1, "height_shift": 0.1, "horizontal_flip": True}
    settings = light(OFF.model_copy(update=ALL | shifts))
    assert settings == OFF.model_copy(update=shifts)
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


def test_mixup_blends_pixels_and_targets_alike() -> None:
    images = noise(64)
    found, targets = mixed(images, mixup=0.4)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-5)
    shares = np.diagonal(targets)
    assert shares.min() < 0.2
    assert shares.max() > 0.8
    for number, share in enumerate(shares):
        other = len(images) - 1 - number
        assert targets[number, other] == pytest.approx(1 - share, abs=1e-5)
        blend = share * images[number].astype(float) + (1 - share) * images[other]
        np.testing.assert_allclose(found[number], blend, atol=0.51)


def test_cutmix_pastes_as_much_as_the_targets_say() -> None:
    images = noise(64)
    found, targets = mixed(images, cutmix=1.0)
    for number, share in enumerate(np.diagonal(targets)):
        other = len(images) - 1 - number
        own = (found[number] == images[number]).all(axis=2)
        assert ((found[number] == images[other]).all(axis=2) | own).all()
        assert own.mean() == pytest.approx(share, abs=1e-3)


def test_with_both_a_batch_is_mixed_one_way_or_the_other() -> None:
    images = noise(8)
    pasted = 0
    for seed in range(24):
        found, _ = mixed(images, seed=seed, mixup=1.0, cutmix=1.0)
        known = (found == images).all(axis=3) | (found == images[::-1]).all(axis=3)
        pasted += bool(known.all())
    assert 4 < pasted < 20
