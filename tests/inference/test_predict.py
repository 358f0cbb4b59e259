"""From pictures, whatever is on them, to labelled faces."""

import errno
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
from PIL import Image

from emotion_detection.console import UserError
from emotion_detection.data.dataset import SYNTHETIC_NOTICE, BadFile, Dataset
from emotion_detection.data.ingest import ingest
from emotion_detection.data.synthetic import draw_face
from emotion_detection.inference import pictures, predict
from emotion_detection.inference.faces import Box, FaceFinder, HaarFinder
from emotion_detection.inference.pictures import Picture
from emotion_detection.inference.predict import Network, Prediction
from emotion_detection.models import saving
from emotion_detection.settings import params
from tests.support.astronaut import around_the_face, astronaut
from tests.support.untrained import untrained

CLASSES = ("angry", "happy", "sad")
SIDE = 16
HAAR = HaarFinder(20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model.keras"
    saving.save(untrained((SIDE, SIDE, 3)), path, CLASSES)
    return path


@pytest.fixture(scope="module")
def network(model: Path) -> Network:
    return predict.load(str(model), None)


def noise(seed: int, size: int = SIDE) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    return Image.fromarray(pixels)


def ran(
    paths: list[Path], network: Network, finder: FaceFinder | None = HAAR, *, keep: bool = False
) -> list[Prediction | BadFile]:
    return list(predict.predict(pictures.listed(paths), network, finder, keep=keep))


# --- Faces.


def test_the_face_of_a_photo_is_found(network: Network, tmp_path: Path) -> None:
    astronaut().save(tmp_path / "photo.jpg")
    (found,) = ran([tmp_path / "photo.jpg"], network)
    assert isinstance(found, Prediction)
    (face,) = found.faces
    assert around_the_face(face.box)
    assert face.box.width == face.box.height
    assert face.probabilities.shape == (3,)
    assert face.confidence == face.probabilities[face.label] == face.probabilities.max()


def test_a_photo_is_turned_upright_first(network: Network, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    astronaut().rotate(90).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    (found,) = ran([tmp_path / "photo.jpg"], network)
    assert isinstance(found, Prediction)
    assert around_the_face(found.faces[0].box)


def test_a_picture_without_a_face_is_told(network: Network, tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "white").save(tmp_path / "blank.png")
    (found,) = ran([tmp_path / "blank.png"], network)
    assert isinstance(found, BadFile)
    assert found.path == str(tmp_path / "blank.png")
    assert "no face found; --detector none" in found.reason
    (whole,) = ran([tmp_path / "blank.png"], network, None)
    assert isinstance(whole, Prediction)
    assert [face.box for face in whole.faces] == [Box(0, 0, 300, 200)]


@pytest.mark.parametrize("size", [SIDE, 2 * SIDE])
def test_a_face_that_was_cut_out_is_prepared_as_in_training(
    network: Network, tmp_path: Path, size: int
) -> None:
    source = tmp_path / "faces"
    for number, place in enumerate(("train/a", "train/b", "test/a", "test/b")):
        (source / place).mkdir(parents=True)
        noise(number, size).save(source / place / "face.png")
    settings = params.Ingest(
        image_size=(SIDE, SIDE), color_mode="rgb", max_bad_fraction=0.0, test_fraction=0.5
    )
    ingest(source, tmp_path / "dataset", settings, seed=0)
    dataset = Dataset.open(tmp_path / "dataset")
    expected = network.probabilities(np.asarray(dataset.images))
    for row, found in enumerate(ran([source / name for name in dataset.files], network)):
        assert isinstance(found, Prediction)
        assert [face.box for face in found.faces] == [Box(0, 0, size, size)]
        np.testing.assert_allclose(found.faces[0].probabilities, expected[row], rtol=1e-5)


def test_a_small_square_picture_is_cropped_only_by_a_detector_that_knows_crops(
    network: Network, yunet: FaceFinder, tmp_path: Path
) -> None:
    astronaut().resize((256, 256)).save(tmp_path / "avatar.png")
    (found,) = ran([tmp_path / "avatar.png"], network)
    assert isinstance(found, Prediction)
    assert [face.box for face in found.faces] == [Box(0, 0, 256, 256)]
    assert found.guessed_crop
    (found,) = ran([tmp_path / "avatar.png"], network, yunet)
    assert isinstance(found, Prediction)
    assert [face.box.width < 200 for face in found.faces] == [True]
    assert not found.guessed_crop


@pytest.mark.parametrize(
    ("size", "whole"), [((100, 100), 12), ((512, 512), 12), ((178, 218), 12), ((640, 480), 0)]
)
def test_a_set_of_cropped_faces_is_labelled_as_it_was_trained_on(
    network: Network, tmp_path: Path, size: tuple[int, int], whole: int
) -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        draw_face(rng, "happy", 128).resize(size).save(tmp_path / f"{number}.png")
    found = [result for result in ran([tmp_path], network) if isinstance(result, Prediction)]
    boxes = [face.box for result in found for face in result.faces]
    assert boxes.count(Box(0, 0, *size)) == whole


# --- Many pictures.


def test_folders_are_listed_in_natural_order(tmp_path: Path) -> None:
    for name in ("im10.png", "im9.PNG", "b/c/1.jpg", ".hidden.png", ".git/1.png", "notes.txt"):
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / name).write_bytes(b"")
    alone = tmp_path / "im9.PNG"
    found = pictures.listed([tmp_path / "faces", alone])
    assert [Path(picture.name) for picture in found] == [
        *(tmp_path / "faces" / name for name in ("b/c/1.jpg", "im9.PNG", "im10.png")),
        alone,
    ]
    assert [str(picture.file) for picture in found] == [
        str(Path("b/c/1.jpg")),
        "im9.PNG",
        "im10.png",
        "im9-2.PNG",
    ]
    # Both would be annotated as a.bmp.png.
    found = pictures.listed([Path("a.bmp"), Path("a.bmp.png")])
    assert len({pictures.annotated_name(picture.file) for picture in found}) == 2


def test_a_folder_that_cannot_be_listed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "faces" / "locked").mkdir(parents=True)
    (tmp_path / "faces" / "im0.png").write_bytes(b"")
    listed = os.scandir

    def scandir(path: str) -> Any:
        # Root, whom nothing is locked to, may run this.
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [picture.file.name for picture in pictures.listed([tmp_path / "faces"])] == ["im0.png"]
    assert "locked left out: cannot be listed (Permission denied)" in caplog.text


def test_bad_files_are_named_and_the_rest_goes_on(network: Network, tmp_path: Path) -> None:
    expected: dict[str, np.ndarray] = {}
    for number in range(150):
        image = noise(number)
        image.save(tmp_path / f"{number}.png")
        (expected[str(tmp_path / f"{number}.png")],) = network.probabilities(
            np.asarray(image)[np.newaxis]
        )
    (tmp_path / "70.png").write_bytes(b"no picture")
    (tmp_path / "71.png").write_bytes((tmp_path / "72.png").read_bytes()[:60])
    results = ran([tmp_path, tmp_path / "gone.png"], network)

    names = [
        result.path if isinstance(result, BadFile) else result.picture.name for result in results
    ]
    assert names == [*expected, str(tmp_path / "gone.png")]
    bad = [result for result in results if isinstance(result, BadFile)]
    assert [Path(file.path).name for file in bad] == ["70.png", "71.png", "gone.png"]
    assert bad[0].reason == "not an image"
    assert bad[2].reason.startswith("cannot be read: ")
    for result in results:
        if isinstance(result, Prediction):
            np.testing.assert_allclose(
                result.faces[0].probabilities, expected[result.picture.name], rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("keep", [False, True])
def test_pictures_are_opened_as_results_are_taken(network: Network, keep: bool) -> None:
    opened: list[int] = []

    def numbered() -> Iterator[Picture]:
        for number in range(2000):

            def opening(number: int = number) -> Image.Image:
                opened.append(number)
                return noise(number)

            yield Picture(str(number), Path(f"{number}.png"), opening)

    results = predict.predict(list(numbered()), network, HAAR, keep=keep)
    first = next(results)
    assert isinstance(first, Prediction)
    assert (first.image is not None) == keep
    assert len(opened) < 500
    results.close()
    assert len(opened) < 500


def test_a_camera_gives_its_last_frame(tmp_path: Path) -> None:
    video = str(tmp_path / "video.avi")
    writer = cv2.VideoWriter(video, cv2.VideoWriter.fourcc(*"MJPG"), 10, (512, 512))
    for level in (0, 40):
        writer.write(np.full((512, 512, 3), level, np.uint8))
    writer.write(cv2.cvtColor(np.asarray(astronaut()), cv2.COLOR_RGB2BGR))
    writer.release()
    picture = pictures.camera(video)
    difference = np.asarray(picture.open()).astype(int) - np.asarray(astronaut())
    assert np.abs(difference).mean() < 10
    with pytest.raises(UserError, match="no picture comes from camera 99"):
        pictures.camera(99)
    with pytest.raises(UserError, match="--camera -5: must be 0, the first, or more"):
        pictures.camera(-5)


# --- Networks.


def test_a_grey_network_sees_grey_pictures(tmp_path: Path) -> None:
    saving.save(untrained((SIDE, SIDE, 1)), tmp_path / "grey.keras", CLASSES)
    network = predict.load(str(tmp_path / "grey.keras"), None)
    noise(0).save(tmp_path / "face.png")
    (found,) = ran([tmp_path / "face.png"], network)
    assert isinstance(found, Prediction)
    expected = network.probabilities(np.asarray(noise(0).convert("L"))[np.newaxis, ..., np.newaxis])
    np.testing.assert_allclose(found.faces[0].probabilities, expected[0], rtol=1e-5)


def test_a_network_of_synthetic_faces_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "drawn.keras"
    saving.save(untrained((SIDE, SIDE, 1)), path, CLASSES, {"notice": SYNTHETIC_NOTICE})
    assert predict.load(str(path), None).notice == SYNTHETIC_NOTICE
    assert caplog.messages == [f"{path}: {SYNTHETIC_NOTICE}"]


def test_classes_are_those_given_or_those_of_the_file(model: Path, tmp_path: Path) -> None:
    keras.models.load_model(model).save(tmp_path / "plain.keras")
    assert predict.load(str(tmp_path / "plain.keras"), ["x", "y", "z"]).classes == ("x", "y", "z")
    assert predict.load(str(model), CLASSES).classes == CLASSES
    with pytest.raises(UserError, match=r"plain\.keras: names no classes.*--classes"):
        predict.load(str(tmp_path / "plain.keras"), None)
    with pytest.raises(UserError, match=r"has 3 outputs, but 2 classes are named: x, y"):
        predict.load(str(tmp_path / "plain.keras"), ["x", "y"])
    with pytest.raises(UserError, match="each class needs a name of its own, not x, y, x"):
        predict.load(str(tmp_path / "plain.keras"), ["x", "y", "x"])
    with pytest.raises(UserError, match="its classes are angry, happy, sad, in this order"):
        predict.load(str(model), ["happy", "angry", "sad"])
    with pytest.raises(UserError, match="--classes and --scale: only for a file"):
        predict.load("models:/emotion-detection@champion", ["x"])


def foreign(path: Path, *, activation: str | None = "softmax") -> keras.Model:
    """Save a network as another program would: float pixels, no names of classes."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIDE, SIDE, 3))
    outputs = keras.layers.Dense(3, activation=activation)(keras.layers.Flatten()(inputs))
    network = keras.Model(inputs, outputs)
    network.save(path)
    return network


def test_a_file_from_elsewhere_needs_the_scale_of_its_pixels(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "foreign.keras"
    network = foreign(path)
    with pytest.raises(UserError, match=r"foreign\.keras: was not saved .*; give --scale 1/255 if"):
        predict.load(str(path), CLASSES)
    images = np.stack([np.asarray(noise(seed)) for seed in range(3)])
    for scale in (1 / 255, 1.0):
        np.testing.assert_allclose(
            predict.load(str(path), CLASSES, scale).probabilities(images),
            network(images * np.float32(scale)).numpy(),
            atol=1e-5,
        )
    with pytest.raises(UserError, match=r"takes pixels from 0 to 255; leave --scale out"):
        predict.load(str(model), None, 1 / 255)


def test_outputs_that_are_no_probabilities_are_refused(tmp_path: Path) -> None:
    foreign(tmp_path / "logits.keras", activation=None)
    image = np.asarray(noise(0))[np.newaxis]
    network = predict.load(str(tmp_path / "logits.keras"), CLASSES, 1.0)
    with pytest.raises(UserError, match=r"no probabilities: .* add up to .* without a softmax"):
        network.probabilities(image)
    broken = foreign(tmp_path / "nan.keras")
    broken.layers[-1].set_weights([np.full_like(w, np.nan) for w in broken.get_weights()])
    broken.save(tmp_path / "nan.keras")
    with pytest.raises(UserError, match="add up to nan"):
        predict.load(str(tmp_path / "nan.keras"), CLASSES, 1.0).probabilities(image)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("abc", r"cannot be loaded \(its classes\.json is no list\)"),
        ([1, 2, 3], "each class needs a name of its own, not 1, 2, 3"),
        ([["a"], ["b"], ["c"]], "each class needs a name of its own"),
        (["a", "a", "b"], "each class needs a name of its own, not a, a, b"),
        (["a", " ", "b"], "each class needs a name of its own"),
        (["x" * 2**26], "is larger than 64 MiB"),
    ],
)
def test_the_classes_of_a_file_are_names(
    model: Path, tmp_path: Path, names: list[Any], said: str
) -> None:
    keras.models.load_model(model).save(tmp_path / "other.keras")
    with zipfile.ZipFile(tmp_path / "other.keras", "a") as file:
        file.writestr("classes.json", json.dumps(names))
    with pytest.raises(UserError, match=rf"other\.keras: {said}|other\.keras: .*{said}") as raised:
        predict.load(str(tmp_path / "other.keras"), None)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("suffix", ["keras", "onnx"])
def test_a_pipe_or_folder_is_no_model(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    for path in (tmp_path / f"pipe.{suffix}", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match=r"is not a file; give a \.keras or \.onnx file"):
            predict.load(str(path), None)


@pytest.mark.parametrize("size", [(1, 900), (900, 1), (2, 700)])
def test_a_picture_a_pixel_wide_has_no_face_in_it(network: Network, size: tuple[int, int]) -> None:
    picture = Picture("narrow", Path("narrow"), lambda: Image.new("RGB", size))
    (found,) = predict.predict([picture], network, HAAR, keep=False)
    assert isinstance(found, BadFile)
    (found,) = predict.predict([picture], network, None, keep=True)
    assert isinstance(found, Prediction)


def test_a_picture_too_large_for_the_memory_is_named_and_the_rest_goes_on(
    network: Network,
) -> None:
    def too_large() -> Image.Image:
        raise MemoryError

    listed = [
        Picture("large", Path("large"), too_large),
        Picture("small", Path("small"), lambda: noise(0)),
    ]
    bad, sound = predict.predict(listed, network, HAAR, keep=False)
    assert bad == BadFile("large", "too large for the memory that is free")
    assert isinstance(sound, Prediction)


def test_an_hdf5_file_is_refused_with_what_makes_a_keras_file_of_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"load_model\('net\.h5'\)\.save\('net\.keras'\)"):
        predict.load(str(tmp_path / "net.h5"), CLASSES)


def test_what_is_no_network_of_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.keras").write_text("hello")
    for name, reason in (("text.keras", "cannot be loaded"), ("none.keras", "there is no such")):
        with pytest.raises(UserError, match=rf"{name}: .*{reason}") as caught:
            predict.load(str(tmp_path / name), None)
        assert "\n" not in str(caught.value)
    inputs = keras.Input((4,))
    vectors = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    saving.save(vectors, tmp_path / "vectors.keras", CLASSES)
    keras.Sequential([keras.layers.Dense(3)]).save(tmp_path / "unbuilt.keras")
    with pytest.raises(UserError, match=r"unbuilt\.keras: cannot be loaded"):
        predict.load(str(tmp_path / "unbuilt.keras"), CLASSES)
    with pytest.raises(UserError, match="not images of one size"):
        predict.load(str(tmp_path / "vectors.keras"), None)
