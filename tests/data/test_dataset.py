"""The packed dataset on disk."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset, are_emotions, set_digest
from tests.support.datasets import CLASSES, make


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


def regroup(path: Path) -> None:
    path.write_text(path.read_text().replace(",8,8\n", ",7,8\n"))


def other_digests(path: Path) -> None:
    summary = json.loads(path.read_text(errors="replace"))
    path.write_text(json.dumps(summary | {"image_digests": "of the file's bytes"}))


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
        ("index.csv", regroup),
        ("index.csv", lambda path: path.write_text("")),
        ("dataset.json", cut_short),
        ("dataset.json", drop_a_key),
        ("dataset.json", other_digests),
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
    digests, labels, splits = ["a", "b"], np.array([0, 1]), np.array([0, 2])
    base = set_digest(digests, labels, splits, CLASSES, (4, 5, 1))

    assert base == set_digest(digests[::-1], labels[::-1], splits[::-1], CLASSES, (4, 5, 1))
    others = {
        set_digest(["a", "c"], labels, splits, CLASSES, (4, 5, 1)),
        set_digest(digests, np.array([0, 2]), splits, CLASSES, (4, 5, 1)),
        set_digest(digests, labels, splits - 1 + (splits == 0), CLASSES, (4, 5, 1)),
        set_digest(digests, labels, splits, CLASSES, (5, 4, 1)),
    }
    assert len(others | {base}) == 5


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
