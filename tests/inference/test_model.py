"""A trained network in Python: `import emotion_detection as ed`, as a notebook uses it."""

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import emotion_detection as ed
from emotion_detection import paths
from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.evaluation import metrics
from emotion_detection.inference.faces import Box
from emotion_detection.inference.model import Model
from emotion_detection.models import saving
from emotion_detection.models.coverage import Coverage
from emotion_detection.settings import params
from tests.support.astronaut import around_the_face, astronaut
from tests.support.datasets import make
from tests.support.project import ROOT
from tests.support.stores import alone
from tests.support.untrained import untrained

DOCS = (ROOT / "docs" / "guide" / "predict.md").read_text(encoding="utf-8")
CLASSES = ("angry", "happy", "sad")
SIDE = 16


@pytest.fixture(scope="module")
def model(store: Path) -> Iterator[Model]:
    with alone(store):
        yield ed.load_model()


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("grey") / "model.keras"
    saving.save(untrained((SIDE, SIDE, 1)), path, CLASSES)
    return ed.load_model(path)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_names_of_the_package_are_there_and_cost_nothing_before_they_are_used() -> None:
    code = (
        "import sys\n"
        "import emotion_detection as ed\n"
        "print({'numpy', 'tensorflow', 'mlflow', 'importlib.metadata'} & sys.modules.keys())\n"
        "print({'load_model', 'Dataset', 'evaluate', '__version__'} <= set(dir(ed)))\n"
        "from emotion_detection import *\n"
        "print(ed.__version__, Dataset is ed.Dataset, callable(evaluate))\n"
        "print({'tensorflow', 'mlflow'} & sys.modules.keys(), hasattr(ed, 'nothing'))\n"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    installed = version("emotion-detection")
    assert printed == ["set()", "True", f"{installed} True True", "set() False"]


def test_a_model_is_loaded_by_alias_number_uri_or_file(store: Path, toy: Dataset) -> None:
    face = np.asarray(toy.images[0])
    with alone(store):
        found = [
            ed.load_model(name)
            for name in (1, "1", "models:/emotion-detection/1", paths.MODEL, str(paths.MODEL))
        ]
        assert [model.name for model in found] == [
            *3 * ["models:/emotion-detection/1"],
            *2 * [str(paths.MODEL)],
        ]
        (expected,) = ed.load_model().predict(face)
        for model in found:
            assert model.classes == toy.classes
            assert model.predict(face)[0][0].probabilities == pytest.approx(
                expected[0].probabilities, rel=1e-4
            )
        with pytest.raises(UserError, match="emotion-detection/7"):
            ed.load_model(7)
        with pytest.raises(UserError, match=r"none\.keras: there is no such file"):
            ed.load_model("none.keras")


def test_each_picture_has_a_list_of_labelled_faces(model: Model, tmp_path: Path) -> None:
    astronaut().save(tmp_path / "photo.jpg")
    pair = np.concatenate([np.asarray(astronaut())] * 2, axis=1)
    blank = np.full((90, 120), 255, np.uint8)
    photo, two, none = model.predict([tmp_path / "photo.jpg", pair, blank])
    assert [len(photo), len(two), len(none)] == [1, 2, 0]
    (face,) = photo
    assert around_the_face(face.box)
    assert face.label in model.classes
    assert tuple(face.probabilities) == model.classes
    assert face.confidence == face.probabilities[face.label] == max(face.probabilities.values())
    assert sum(face.probabilities.values()) == pytest.approx(1, abs=1e-5)
    ((whole,),) = model.predict(blank, detector="none")
    assert whole.box == Box(0, 0, 120, 90)


FORMS: dict[str, tuple[Any, int]] = {
    "array": (lambda images, _: images, 3),
    "one image": (lambda images, _: images[0], 1),
    "integers": (lambda images, _: images.astype(np.int64), 3),
    "list of arrays": (lambda images, _: list(images), 3),
    "bytes": (lambda images, _: png(images[0]), 1),
    "list of bytes": (lambda images, _: [png(image) for image in images], 3),
    "path": (lambda _, files: files[0], 1),
    "text": (lambda _, files: str(files[0]), 1),
    "list of paths": (lambda _, files: files, 3),
    "mixed": (lambda images, files: [images[0], str(files[1]), png(images[2])], 3),
}


@pytest.mark.parametrize("form", FORMS)
def test_pictures_may_come_in_any_form(
    model: Model, toy: Dataset, tmp_path: Path, form: str
) -> None:
    images = np.asarray(toy.images[:3])
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for image, file in zip(images, files, strict=True):
        file.write_bytes(png(image))
    given, count = FORMS[form]
    expected = model.probabilities(images)
    found = model.predict(given(images, files))
    assert len(found) == count
    for (face,), probabilities in zip(found, expected, strict=False):
        assert face.box == Box(0, 0, SIDE, SIDE)
        assert list(face.probabilities.values()) == pytest.approx(probabilities.tolist(), rel=1e-4)


def test_grey_pixels_need_no_axis_for_channels(grey: Model) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE), np.uint8)
    expected = grey.predict(images[..., np.newaxis])
    assert len(expected) == 2
    for given in (images, list(images)):
        for (face,), (same,) in zip(grey.predict(given), expected, strict=True):
            assert face.probabilities == pytest.approx(same.probabilities, rel=1e-4)
    assert len(grey.predict(images[0])) == 1


def test_a_face_has_the_classes_that_a_coverage_takes(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    known = Coverage(((), (2.0,) * 9, ()))
    saving.save(untrained((SIDE, SIDE, 1)), path, CLASSES, {"coverage": known.to_json()})
    loaded = ed.load_model(path)
    ((face,),) = loaded.predict(np.zeros((SIDE, SIDE), np.uint8), detector="none", coverage=0.9)
    assert face.prediction_set in (("angry", "sad"), ("sad", "angry"))
    ((face,),) = loaded.predict(np.zeros((SIDE, SIDE), np.uint8), detector="none")
    assert face.prediction_set is None


def test_nothing_gives_nothing(grey: Model) -> None:
    assert grey.predict([]) == []
    assert grey.probabilities(np.empty((0, SIDE, SIDE, 1), np.uint8)).shape == (0, 3)


def test_what_is_no_picture_is_refused_in_one_line(grey: Model, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("hello")
    whole = np.zeros((SIDE, SIDE), np.uint8)
    for given, reason in (
        (tmp_path / "notes.png", r"notes\.png: not an image"),
        ([whole, tmp_path / "none.png"], r"none\.png: cannot be read: No such file"),
        (tmp_path, "not a regular file"),
        (b"hello", "picture 0: not an image"),
        ([whole, whole / 255], "picture 1: its pixels are not all whole numbers .* 255"),
        ([whole, 7], "picture 1: it is int; give a path"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"picture 0: its shape is \(8, 8, 4\)"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            grey.predict(given)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"takes uint8 \(N, 16, 16, 1\)"):
        grey.probabilities(np.zeros((2, 8, 8, 1), np.uint8))


def test_a_dataset_is_scored_as_the_stage_evaluate_scores_it(
    model: Model, toy: Dataset, store: Path
) -> None:
    rows = np.flatnonzero(toy.is_test)
    answers = saving.predict(saving.load(store / paths.MODEL)[0], toy.images, rows)
    expected = metrics.evaluate(
        toy.labels[rows],
        answers,
        toy.classes,
        leaked=toy.leaked[rows],
        seed=params.load(ROOT / "params.yaml").seed,
    )
    found = ed.evaluate(model, toy)
    assert found.accuracy == expected.accuracy
    assert found.macro_f1 == expected.macro_f1
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert [scores.name for scores in found.per_class] == list(toy.classes)


def test_a_dataset_that_does_not_fit_is_refused(grey: Model, toy: Dataset) -> None:
    with pytest.raises(UserError, match=r"takes images of 16x16 pixels, grayscale.*are 16x16.*rgb"):
        ed.evaluate(grey, toy)
    other = make([0, 1, 2], [False, True, True], [0, 1, 2])
    with pytest.raises(
        UserError, match=r"its classes are angry, happy, sad, and those of faces\.zip"
    ):
        ed.evaluate(grey, other)


def test_the_code_of_the_documentation_works(store: Path, packed: Path, toy: Dataset) -> None:
    code = re.findall(r"^```python\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
    astronaut().save(store / "photo.jpg")
    (store / "face.png").write_bytes(png(np.asarray(toy.images[0])))
    with alone(store):
        paths.DATASET.parent.mkdir(exist_ok=True)
        paths.DATASET.symlink_to(packed)
        for block in code[:2]:
            names: dict[str, Any] = {}
            exec(block, names)
    assert list(names["model"].predict(np.asarray(toy.images[:1]))) == ["label", "probabilities"]


def test_the_packed_dataset_is_opened_where_ingest_writes_it(
    packed: Path, toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / paths.DATASET).symlink_to(packed)
    monkeypatch.chdir(tmp_path)
    assert ed.Dataset.open().digest == ed.Dataset.open("data/dataset").digest == toy.digest
