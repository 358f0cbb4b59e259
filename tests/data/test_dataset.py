"""The packed dataset on disk, and its splits."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from emotion_detection.console import UserError
from emotion_detection.data.dataset import (
    BadFile,
    Dataset,
    are_emotions,
    group_by_digest,
    sampled,
    set_digest,
    split,
    stratified_group_mask,
)

CLASSES = ("angry", "happy", "très triste")


def make(labels: list[int], is_test: list[bool], groups: list[int]) -> Dataset:
    digests = [f"{group:032x}" for group in groups]
    images = np.stack([np.full((4, 5, 1), group, np.uint8) for group in groups])
    label_array, test_array = np.array(labels, np.int64), np.array(is_test)
    return Dataset(
        images=images,
        files=[f"train/im,{row}\n.png" for row in range(len(labels))],
        labels=label_array,
        classes=CLASSES,
        is_test=test_array,
        digests=digests,
        groups=group_by_digest(digests),
        digest=set_digest(digests, label_array, test_array, CLASSES, images.shape[1:]),
        source="faces.zip",
        test_is_cut=True,
        bad_files=(BadFile("train/\udcff.png", "empty file"),),
    )


def written(folder: Path) -> Dataset:
    dataset = make([0, 0, 1, 1, 2, 2, 0, 1, 2], [False] * 6 + [True] * 3, list(range(9)))
    np.save(folder / "images.npy", dataset.images)
    dataset.write_index(folder)
    return dataset


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    before = written(tmp_path)
    after = Dataset.open(tmp_path)

    assert np.array_equal(after.images, before.images)
    assert isinstance(after.images, np.memmap)
    assert not after.images.flags.writeable
    for name in ("labels", "is_test", "groups"):
        assert np.array_equal(getattr(after, name), getattr(before, name))
        assert getattr(after, name).dtype == getattr(before, name).dtype
    for name in ("files", "classes", "digests", "digest", "source", "test_is_cut", "bad_files"):
        assert getattr(after, name) == getattr(before, name)
    assert (len(after), after.image_size, after.channels) == (9, (4, 5), 1)
    assert after.color_mode == "grayscale"
    assert after.counts["test"] == {"angry": 1, "happy": 1, "très triste": 1}


@pytest.mark.parametrize("name", ["images.npy", "index.csv", "dataset.json"])
def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing: .*dvc repro ingest"):
        Dataset.open(tmp_path)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def drop_a_row(path: Path) -> None:
    path.write_text("\n".join(path.read_text().split("\n")[:-3]) + "\n")


def relabel(path: Path) -> None:
    path.write_text(path.read_text().replace("angry", "happy", 1))


def unknown_class(path: Path) -> None:
    path.write_text(path.read_text().replace("angry", "bored", 1))


def drop_a_key(path: Path) -> None:
    summary = json.loads(path.read_text(errors="replace"))
    del summary["digest"]
    path.write_text(json.dumps(summary))


def floats(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float32))


def one_image_less(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("images.npy", cut_short),
        ("images.npy", floats),
        ("images.npy", one_image_less),
        ("images.npy", lambda path: path.write_bytes(b"")),
        ("images.npy", lambda path: path.write_bytes(b"PK\x03\x04 no array")),
        ("index.csv", drop_a_row),
        ("index.csv", relabel),
        ("index.csv", unknown_class),
        ("index.csv", lambda path: path.write_text("")),
        ("dataset.json", cut_short),
        ("dataset.json", drop_a_key),
    ],
)
def test_damage_is_found_and_named(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    written(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} is damaged .*dvc repro ingest"):
        Dataset.open(tmp_path)


def test_the_digest_knows_pixels_labels_splits_and_shape_but_not_the_order() -> None:
    digests, labels, is_test = ["a", "b"], np.array([0, 1]), np.array([False, True])
    base = set_digest(digests, labels, is_test, CLASSES, (4, 5, 1))

    assert base == set_digest(digests[::-1], labels[::-1], is_test[::-1], CLASSES, (4, 5, 1))
    others = {
        set_digest(["a", "c"], labels, is_test, CLASSES, (4, 5, 1)),
        set_digest(digests, np.array([0, 2]), is_test, CLASSES, (4, 5, 1)),
        set_digest(digests, labels, ~is_test, CLASSES, (4, 5, 1)),
        set_digest(digests, labels, is_test, CLASSES, (5, 4, 1)),
    }
    assert len(others | {base}) == 5


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
    mask = stratified_group_mask(labels, groups, fraction, seed)

    assert not np.intersect1d(groups[mask], groups[~mask]).size
    for label in range(4):
        own = mask[labels == label]
        assert abs(own.sum() - fraction * len(own)) <= 1


def test_a_mask_depends_on_its_arguments_alone() -> None:
    labels, groups = random_rows(0)
    mask = stratified_group_mask(labels, groups, 0.2, 7)
    assert np.array_equal(mask, stratified_group_mask(labels, groups, 0.2, 7))
    assert not np.array_equal(mask, stratified_group_mask(labels, groups, 0.2, 8))
    # Fixed for ever: a split that differs between two machines or versions is another experiment.
    small = stratified_group_mask(np.repeat([0, 1], 6), np.arange(12), 0.34, 0)
    assert np.flatnonzero(small).tolist() == [2, 4, 7, 9]


def test_large_groups_land_on_either_side() -> None:
    labels = np.zeros(1000, np.int64)
    groups = np.arange(1000)
    groups[:300] = np.repeat(np.arange(60), 5)
    mask = stratified_group_mask(labels, groups, 0.2, 3)
    assert mask.sum() == 200
    assert 30 <= mask[:300].sum() <= 90


@pytest.mark.parametrize("seed", range(20))
def test_a_share_is_as_close_as_coarse_groups_allow(seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(3, 8, 30)
    groups = np.repeat(np.arange(30), sizes)
    mask = stratified_group_mask(np.zeros(len(groups), np.int64), groups, 0.3, seed)
    left_out = np.setdiff1d(groups, groups[mask])
    assert abs(mask.sum() - round(0.3 * len(groups))) <= sizes[left_out].min() / 2


@pytest.mark.parametrize("seed", range(20))
def test_two_groups_land_on_two_sides_whatever_their_size(seed: int) -> None:
    labels = np.array([0] * 10 + [1] * 2)
    groups = np.array([0] * 9 + [1] + [2, 3])
    for fraction in (0.01, 0.99):
        mask = stratified_group_mask(labels, groups, fraction, seed)
        assert mask[:9].all() != mask[9]
        assert mask[10] != mask[11]


def test_a_mixed_group_leaves_both_its_classes_on_both_sides() -> None:
    labels = np.array([0, 1, 0, 1])
    groups = np.array([5, 5, 6, 7])
    for seed in range(20):
        mask = stratified_group_mask(labels, groups, 0.25, seed)
        assert mask[0] == mask[1]
        for label in (0, 1):
            assert 0 < mask[labels == label].sum() < 2


def test_holdout_is_a_part_of_train() -> None:
    rng = np.random.default_rng(0)
    is_test = [False] * 80 + [True] * 20
    dataset = make(rng.integers(0, 3, 100).tolist(), is_test, rng.integers(0, 60, 100).tolist())
    parts = split(dataset, validation="holdout", fraction=0.25, seed=1)

    assert not parts.selected_on_test
    assert parts.test.tolist() == list(range(80, 100))
    assert sorted([*parts.train, *parts.validation]) == list(range(80))
    for rows in (parts.train, parts.validation, parts.test):
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
    assert not np.intersect1d(dataset.groups[parts.train], dataset.groups[parts.validation]).size


def test_the_notebooks_protocol_validates_on_test_and_says_so() -> None:
    dataset = make([0, 1, 0, 1], [False, False, True, True], [0, 1, 2, 3])
    parts = split(dataset, validation="test", fraction=0.2, seed=0)
    assert parts.selected_on_test
    assert parts.train.tolist() == [0, 1]
    assert parts.validation.tolist() == parts.test.tolist() == [2, 3]


def test_a_sample_of_rows_is_stratified() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 3])
    dataset = make(labels.tolist(), [False] * 903, [0] * 903)
    rows = np.arange(3, 903)
    chosen = sampled(dataset, rows, 90, seed=0)
    assert np.isin(chosen, rows).all()
    assert (np.diff(chosen) > 0).all()
    assert np.bincount(labels[chosen]).tolist() == [60, 30, 1]
    assert chosen.tolist() != sampled(dataset, rows, 90, seed=1).tolist()
    for images in (900, 5000, None):
        assert sampled(dataset, rows, images, seed=0).tolist() == rows.tolist()


def test_a_class_of_one_picture_cannot_be_split() -> None:
    dataset = make([0, 0, 1, 1, 2, 2, 2], [False] * 7, [0, 1, 2, 3, 4, 4, 4])
    with pytest.raises(UserError, match=r"'très triste'.*split\.fraction.*3 images.*1 of them"):
        split(dataset, validation="holdout", fraction=0.2, seed=0)


def test_bad_settings_are_named() -> None:
    dataset = make([0, 1, 2], [False] * 3, [0, 1, 2])
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(UserError, match=r"split\.fraction"):
            split(dataset, validation="holdout", fraction=fraction, seed=0)
    with pytest.raises(UserError, match=r"split\.validation"):
        split(dataset, validation="none", fraction=0.2, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("classes", "emotions"),
    [
        (("angry", "neutral"), True),
        (("0_Sad", "1_calm"), True),
        (("neutral", "calm"), False),
        (("saddle", "unhappy"), False),
        (("0", "1"), False),
    ],
)
def test_emotions_are_told_by_the_names_of_classes(
    classes: tuple[str, ...], emotions: bool
) -> None:
    assert are_emotions(classes) is emotions
