"""The synthetic faces."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from emotion_detection.console import UserError
from emotion_detection.data import synthetic
from emotion_detection.data.synthetic import EMOTIONS, MARK, apportion, draw_sample

SIZE = 48
Counts = dict[str, dict[str, int]]


def files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file under a folder by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def draw(target: Path, *, train: int = 30, test: int = 14, seed: int = 0) -> dict[str, bytes]:
    draw_sample(target, train=train, test=test, image_size=SIZE, seed=seed)
    return files(target)


@pytest.fixture(scope="module")
def synthetic_faces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counts]:
    folder = tmp_path_factory.mktemp("synthetic_faces") / "sample"
    return folder, draw_sample(folder, train=500, test=200, image_size=SIZE, seed=7)


def test_the_counts_are_those_of_the_files(synthetic_faces: tuple[Path, Counts]) -> None:
    folder, counts = synthetic_faces
    found = {
        split.name: {emotion.name: len(list(emotion.iterdir())) for emotion in split.iterdir()}
        for split in folder.iterdir()
        if split.is_dir()
    }
    assert found == counts
    assert {split: sum(classes.values()) for split, classes in counts.items()} == {
        "train": 500,
        "test": 200,
    }
    names = {path.name for path in (folder / "train" / "angry").iterdir()}
    assert names == {f"im{index}.png" for index in range(counts["train"]["angry"])}


def test_the_imbalance_is_that_of_fer2013(synthetic_faces: tuple[Path, Counts]) -> None:
    for column, classes in enumerate(synthetic_faces[1].values()):
        assert min(classes, key=classes.__getitem__) == "disgusted"
        assert max(classes, key=classes.__getitem__) == "happy"
        real = {name: emotion.images[column] for name, emotion in EMOTIONS.items()}
        for name, count in classes.items():
            exact = sum(classes.values()) * real[name] / sum(real.values())
            assert abs(count - exact) < 1, name


@pytest.mark.parametrize("total", [14, 15, 29, 100, 28709])
def test_every_image_is_given_to_a_class_and_every_class_has_two(total: int) -> None:
    weights = {name: emotion.images[0] for name, emotion in EMOTIONS.items()}
    counts = apportion(total, weights)
    assert sum(counts.values()) == total
    assert min(counts.values()) == max(2, counts["disgusted"])
    if total == sum(weights.values()):
        assert counts == weights


def test_images_are_grey_of_the_asked_size_and_well_exposed(
    synthetic_faces: tuple[Path, Counts],
) -> None:
    for path in synthetic_faces[0].rglob("*.png"):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (SIZE, SIZE))
            tones = np.asarray(image)
        assert tones.std() > 8
        assert np.isin(tones, (0, 255)).mean() < 0.5


@pytest.mark.parametrize("size", [16, 33, 96])
def test_any_image_size_shows_the_same_faces(tmp_path: Path, size: int) -> None:
    def thumbnails(image_size: int) -> NDArray[np.float64]:
        folder = tmp_path / str(image_size)
        draw_sample(folder, train=14, test=14, image_size=image_size, seed=0)
        images = [Image.open(path) for path in sorted(folder.rglob("*.png"))]
        assert {image.size for image in images} == {(image_size, image_size)}
        small = [image.resize((12, 12), Image.Resampling.BOX) for image in images]
        return np.array([np.asarray(image, dtype=np.float64).ravel() for image in small])

    pairs = zip(thumbnails(SIZE), thumbnails(size), strict=True)
    assert np.mean([np.corrcoef(usual, other)[0, 1] for usual, other in pairs]) > 0.9


def test_no_two_images_are_the_same(synthetic_faces: tuple[Path, Counts]) -> None:
    images = files(synthetic_faces[0])
    assert len(set(images.values())) == len(images)


def test_drawing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    assert draw(tmp_path / "once") == draw(tmp_path / "again")


def test_another_seed_gives_other_faces(tmp_path: Path) -> None:
    once, again = draw(tmp_path / "once"), draw(tmp_path / "again", seed=1)
    assert once.keys() == again.keys()
    assert set(once.items()) & set(again.items()) == {("SYNTHETIC.txt", MARK.encode())}


def test_a_picture_does_not_depend_on_the_totals(tmp_path: Path) -> None:
    few, many = draw(tmp_path / "few"), draw(tmp_path / "many", train=60, test=40)
    assert few.keys() < many.keys()
    assert few == {path: many[path] for path in few}


def test_the_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "sample"
    draw(target, train=60)
    (target / "stray.txt").write_text("left over")
    assert draw(target) == draw(tmp_path / "fresh")
    assert [path.name for path in target.parent.iterdir()] == ["sample"]


def test_a_failure_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "sample"
    before = draw(target)
    draw_face, left = synthetic.draw_face, iter(range(5))

    def fail_at_sixth(rng: np.random.Generator, emotion: str, image_size: int) -> Image.Image:
        if next(left, None) is None:
            raise OSError("no space left on device")
        return draw_face(rng, emotion, image_size)

    monkeypatch.setattr(synthetic, "draw_face", fail_at_sixth)
    with pytest.raises(OSError, match="no space"):
        draw(target, seed=1)
    assert files(target) == before
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("name", "value"), [("train", 13), ("test", 0), ("image_size", 8), ("seed", -1)]
)
def test_a_number_too_small_is_named(tmp_path: Path, name: str, value: int) -> None:
    numbers = {"train": 14, "test": 14, "image_size": SIZE, "seed": 0, name: value}
    with pytest.raises(UserError, match=rf"sample: {name} = {value} must be at least"):
        draw_sample(tmp_path / "sample", **numbers)
    assert not list(tmp_path.iterdir())


def test_a_linear_model_tells_the_classes_apart_but_not_always(
    synthetic_faces: tuple[Path, Counts],
) -> None:
    folder, _ = synthetic_faces

    def load(split: str) -> tuple[NDArray[np.float64], list[str]]:
        paths = sorted((folder / split).rglob("*.png"))
        pixels = np.array([np.asarray(Image.open(path)) for path in paths], dtype=np.float64)
        coarse = pixels.reshape(len(paths), 24, 2, 24, 2).mean(axis=(2, 4)).reshape(len(paths), -1)
        coarse -= coarse.mean(axis=1, keepdims=True)
        coarse /= coarse.std(axis=1, keepdims=True)
        return coarse, [path.parent.name for path in paths]

    model = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.5).fit(*load("train"))
    images, labels = load("test")
    always_the_commonest = labels.count("happy") / len(labels)
    assert always_the_commonest + 0.15 < model.score(images, labels) < 0.9
