"""The split of a dataset, and parts of it."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.profile import sample_rows
from emotion_detection.data.splits import folds, holdout, part, sampled, split, stratified_mask
from emotion_detection.settings import params
from tests.support.datasets import digests_of, make
from tests.support.sources import (
    Files,
    colour_picture,
    encoded,
    in_folder,
    in_zip,
    ingested,
    picture,
)


def random_rows(seed: int, rows: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and groups of one to several rows, of which few carry two labels."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, rows, p=[0.6, 0.25, 0.1, 0.05])
    groups = np.arange(rows)
    for label in range(4):
        own = np.flatnonzero(labels == label)
        groups[own[: len(own) // 3]] = rng.choice(own[: len(own) // 8], len(own) // 3)
    mixed = rng.choice(rows, 20)
    groups[mixed] = groups[np.roll(mixed, 1)]
    return labels, groups


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.02, 0.2, 0.5, 0.9])
def test_a_mask_takes_whole_groups_and_the_share_of_every_class(seed: int, fraction: float) -> None:
    labels, groups = random_rows(seed)
    mask = stratified_mask(labels, digests_of(groups), fraction, seed)

    assert not np.intersect1d(groups[mask], groups[~mask]).size
    for label in range(4):
        own = mask[labels == label]
        assert abs(own.sum() - fraction * len(own)) <= 1


def test_a_mask_depends_on_its_arguments_alone() -> None:
    labels, groups = random_rows(0)
    mask = stratified_mask(labels, digests_of(groups), 0.2, 7)
    assert np.array_equal(mask, stratified_mask(labels, digests_of(groups), 0.2, 7))
    assert not np.array_equal(mask, stratified_mask(labels, digests_of(groups), 0.2, 8))
    # These rows must never change: results of another split cannot be compared with earlier ones.
    small = stratified_mask(np.repeat([0, 1], 6), digests_of(range(12)), 0.34, 0)
    assert np.flatnonzero(small).tolist() == [2, 3, 6, 8]


def test_large_groups_land_on_either_side() -> None:
    labels = np.zeros(1000, np.int64)
    groups = np.arange(1000)
    groups[:300] = np.repeat(np.arange(60), 5)
    mask = stratified_mask(labels, digests_of(groups), 0.2, 3)
    assert mask.sum() == 200
    assert 30 <= mask[:300].sum() <= 90


@pytest.mark.parametrize("seed", range(20))
def test_a_share_is_as_close_as_coarse_groups_allow(seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(3, 8, 30)
    groups = np.repeat(np.arange(30), sizes)
    mask = stratified_mask(np.zeros(len(groups), np.int64), digests_of(groups), 0.3, seed)
    left_out = np.setdiff1d(groups, groups[mask])
    assert abs(mask.sum() - round(0.3 * len(groups))) <= sizes[left_out].min() / 2


@pytest.mark.parametrize("seed", range(20))
def test_two_groups_land_on_two_sides_whatever_their_size(seed: int) -> None:
    labels = np.array([0] * 10 + [1] * 2)
    groups = np.array([0] * 9 + [1] + [2, 3])
    for fraction in (0.01, 0.99):
        mask = stratified_mask(labels, digests_of(groups), fraction, seed)
        assert mask[:9].all() != mask[9]
        assert mask[10] != mask[11]


def test_a_mixed_group_leaves_both_its_classes_on_both_sides() -> None:
    labels = np.array([0, 1, 0, 1])
    groups = np.array([5, 5, 6, 7])
    for seed in range(20):
        mask = stratified_mask(labels, digests_of(groups), 0.25, seed)
        assert mask[0] == mask[1]
        for label in (0, 1):
            assert 0 < mask[labels == label].sum() < 2


def test_holdout_is_a_part_of_train() -> None:
    rng = np.random.default_rng(0)
    is_test = [False] * 80 + [True] * 20
    dataset = make(rng.integers(0, 3, 100).tolist(), is_test, rng.integers(0, 60, 100).tolist())
    parts = split(dataset, params.Split(fraction=0.25, seed=1))

    assert not parts.selected_on_test
    assert parts.test.tolist() == list(range(80, 100))
    assert sorted([*parts.train, *parts.validation]) == list(range(80))
    for rows in (parts.train, parts.validation, parts.test):
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
    assert not np.intersect1d(dataset.groups[parts.train], dataset.groups[parts.validation]).size


def test_folds_are_stratified_parts_of_all_that_is_not_for_testing() -> None:
    labels, groups = random_rows(0, 1000)
    labels = np.minimum(labels, 2)
    is_test = [row >= 900 for row in range(1000)]
    dataset = make(labels.tolist(), is_test, groups.tolist())
    settings = params.Split(fraction=0.2, seed=1, folds=4)
    parts = folds(dataset, settings)

    whole = split(dataset, settings)
    assert (len(whole.validation), whole.selected_on_test) == (0, False)
    assert sorted(np.concatenate([each.validation for each in parts])) == whole.train.tolist()
    assert whole.train.tolist() == list(range(900))
    for each in parts:
        assert np.array_equal(np.union1d(each.train, each.validation), whole.train)
        assert each.test.tolist() == whole.test.tolist() == list(range(900, 1000))
        near = np.array(dataset.drawn_by)
        assert not np.intersect1d(near[each.train], near[each.validation]).size
        share = np.bincount(labels[each.validation], minlength=3) / np.bincount(labels[:900])
        assert np.allclose(share, 0.25, atol=0.02)
    # A correction moves no image from one to another.
    corrected = dataset.labels.copy()
    corrected[:50] = (corrected[:50] + 1) % 3
    given = dict(enumerate(dataset.labels[:50].tolist()))
    moved = folds(replace(dataset, labels=corrected, relabelled=given), settings)
    for before, after in zip(parts, moved, strict=True):
        assert before.validation.tolist() == after.validation.tolist()
    # A search validates on the hold-out all the same.
    assert len(holdout(dataset, settings).validation) == 180
    assert folds(dataset, params.Split()) == []


def test_a_class_of_fewer_pictures_than_folds_is_refused() -> None:
    dataset = make([0] * 9 + [1] * 3, [False] * 12, list(range(12)))
    with pytest.raises(
        UserError, match=r"'happy' is too small for split\.folds = 4: it has 3 images"
    ):
        folds(dataset, params.Split(folds=4))


def test_the_notebooks_protocol_validates_on_test_and_says_so() -> None:
    dataset = make([0, 1, 0, 1], [False, False, True, True], [0, 1, 2, 3])
    parts = split(dataset, params.Split(validation="test"))
    assert parts.selected_on_test
    assert parts.train.tolist() == [0, 1]
    assert parts.validation.tolist() == parts.test.tolist() == [2, 3]


def test_a_sample_of_rows_is_stratified() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 3])
    dataset = make(labels.tolist(), [False] * 903, list(range(903)))
    rows = np.arange(3, 903)
    chosen = sampled(dataset, rows, 90, seed=0)
    assert np.isin(chosen, rows).all()
    assert (np.diff(chosen) > 0).all()
    assert np.bincount(labels[chosen]).tolist() == [60, 30, 1]
    assert chosen.tolist() != sampled(dataset, rows, 90, seed=1).tolist()
    assert len(sampled(dataset, rows, 0, seed=0)) == 0
    for images in (900, 5000, None):
        assert sampled(dataset, rows, images, seed=0).tolist() == rows.tolist()


def test_a_class_of_one_picture_cannot_be_split() -> None:
    dataset = make([0, 0, 1, 1, 2, 2, 2], [False] * 7, [0, 1, 2, 3, 4, 4, 4])
    with pytest.raises(UserError, match=r"'très triste'.*split\.fraction.*3 images.*1 of them"):
        split(dataset, params.Split(fraction=0.2))


def test_a_part_shrinks_train_and_validation_alike_and_leaves_test() -> None:
    labels = np.repeat([0, 1, 2, 0, 1, 2], [600, 250, 50, 60, 30, 10])
    dataset = make(labels.tolist(), [False] * 900 + [True] * 100, list(range(1000)))
    rows = split(dataset, params.Split(fraction=0.2))
    smaller = part(dataset, rows, 180, seed=0)
    assert np.isin(smaller.train, rows.train).all()
    assert np.isin(smaller.validation, rows.validation).all()
    assert np.bincount(dataset.labels[smaller.train]).tolist() == [120, 50, 10]
    assert np.bincount(dataset.labels[smaller.validation]).tolist() == [30, 12, 2]
    assert smaller.test is rows.test
    assert part(dataset, rows, None, seed=0) is rows
    assert part(dataset, rows, 720, seed=0) is rows


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fraction", 0.0),
        ("fraction", 1.0),
        ("fraction", math.nan),
        ("validation", "none"),
        ("folds", 101),
    ],
)
def test_bad_settings_are_named(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^params.yaml: {name} = "):
        params.validate(params.Split, {name: value}, params.PARAMS)


# --- The same images on the same side.


def pictures(splits: tuple[str, ...]) -> Files:
    """Return grey and coloured images of one size, some twice, one under both classes."""
    files = {
        f"{split}/{name}/im{number}.png": encoded(
            (picture if number % 2 else colour_picture)(seed * 100 + number, 20, 30)
        )
        for seed, (split, name) in enumerate(itertools.product(splits, ("angry", "happy")))
        for number in range(40)
    }
    for number in range(0, 12, 2):
        files[f"train/angry/im{number + 1}.png"] = files[f"train/angry/im{number}.png"]
    files["train/happy/im0.png"] = files["train/angry/im0.png"]
    return files


def renamed(files: Files) -> Files:
    """Return the files under names of another order, in their folders."""
    return {
        f"{name.rsplit('/', 1)[0]}/{999 - row} (copy).png": data
        for row, (name, data) in enumerate(files.items())
    }


def sides(source: Path, files: Files, folder: Path, **changes: Any) -> dict[str, Counter[bytes]]:
    """Return what the images of a source are used for: the files of each side."""
    ingested(source, folder, seed=3, **changes)
    dataset = Dataset.open(folder)
    rows = split(dataset, params.Split(fraction=0.3, seed=3))
    smaller = part(dataset, rows, 20, seed=5)
    by_use = {
        "train": rows.train,
        "validation": rows.validation,
        "test": rows.test,
        "part of train": smaller.train,
        "part of validation": smaller.validation,
        "sample of test": sampled(dataset, rows.test, 9, seed=5),
        "samples": sample_rows(dataset, 5),
    }
    return {use: Counter(files[dataset.files[row]] for row in rows) for use, rows in by_use.items()}


@pytest.mark.parametrize("splits", [("train", "test"), ("train",)])
def test_an_image_stays_on_its_side_under_any_name_in_any_packaging_size_and_colour(
    tmp_path: Path, splits: tuple[str, ...]
) -> None:
    files = pictures(splits)
    source = in_folder(tmp_path / "faces", files)
    before = sides(source, files, tmp_path / "a")
    assert not before["train"].keys() & before["validation"].keys()
    assert not before["train"].keys() & before["test"].keys()
    assert sides(in_zip(tmp_path / "z.zip", files), files, tmp_path / "b") == before
    others = renamed(files)
    assert sides(in_zip(tmp_path / "renamed.zip", others), others, tmp_path / "c") == before
    for changes in ({"image_size": (48, 48)}, {"image_size": (8, 12)}, {"color_mode": "rgb"}):
        assert sides(source, files, tmp_path / "d", **changes) == before
