"""The champion behind MLflow's server, where nothing of the project can be imported."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
import skimage.data
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModelContext
from PIL import Image

from emotion_detection import paths
from emotion_detection.data import image
from emotion_detection.data.dataset import Dataset
from emotion_detection.models import saving
from emotion_detection.models.serving import EmotionModel
from emotion_detection.tracking.models import CHAMPION
from tests.support.environment import without_settings
from tests.support.servers import free_port
from tests.support.stores import alone
from tests.support.untrained import untrained

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "guide" / "predict.md").read_text(encoding="utf-8")


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def address(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the champion as the documentation says, and give the server's address."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "emotion_detection.py").write_text("raise ImportError('the model needs no package')")
    port = str(free_port())
    (command,) = re.findall(r"^mlflow models serve .*$", DOCS, re.MULTILINE)
    environment = without_settings() | {
        "PYTHONPATH": str(folder),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command.replace("5001", port).split(),
            cwd=store,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while True:
            assert server.poll() is None, (folder / "log").read_text()
            try:
                requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@pytest.fixture(scope="module")
def network(store: Path) -> keras.Model:
    return keras.models.load_model(store / paths.MODEL)


def ask(address: str, request: Any) -> requests.Response:
    return requests.post(f"{address}/invocations", json=request, timeout=60)


FORMATS = {
    "records": lambda texts, _: {"dataframe_records": [{"image": text} for text in texts]},
    "split": lambda texts, _: {
        "dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}
    },
    "inputs": lambda texts, _: {"inputs": texts},
    "one input": lambda texts, _: {"inputs": texts[:1]},
    "lines": lambda texts, _: {"inputs": [re.sub("(.{76})", r"\1\n", text) for text in texts]},
    "instances": lambda texts, _: {"instances": texts},
    "named instances": lambda texts, _: {"instances": [{"image": text} for text in texts]},
    "pixels": lambda _, pixels: {"instances": pixels.tolist()},
    "pixels of one": lambda _, pixels: {"inputs": pixels[:1].tolist()},
    "pixels as records": lambda _, pixels: {
        "dataframe_records": [{"image": image.tolist()} for image in pixels]
    },
    "both": lambda texts, pixels: {
        "dataframe_records": [{"image": texts[0]}, {"image": pixels[1].tolist()}]
    },
}


@pytest.mark.parametrize("form", FORMATS)
def test_images_are_labelled_in_every_format(
    address: str, toy: Dataset, network: keras.Model, form: str
) -> None:
    images = np.asarray(toy.images[:3])
    expected = network.predict(images, verbose=0)
    answer = ask(address, FORMATS[form]([encoded(image) for image in images], images))
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["predictions"]
    assert len(predictions) == {"one input": 1, "pixels of one": 1, "both": 2}.get(form, 3)
    for row, prediction in enumerate(predictions):
        assert list(prediction["probabilities"]) == list(toy.classes)
        found = list(prediction["probabilities"].values())
        np.testing.assert_allclose(found, expected[row], rtol=1e-4, atol=1e-5)
        assert prediction["label"] == toy.classes[int(expected[row].argmax())]


def test_a_photo_is_prepared_as_in_training(
    address: str, toy: Dataset, network: keras.Model
) -> None:
    from emotion_detection.data.image import decode

    exif = Image.Exif()
    exif[0x0112] = 6
    text = encoded(skimage.data.astronaut()[:, :400], "JPEG", exif=exif)
    pixels = np.frombuffer(decode(base64.b64decode(text), (16, 16), "rgb"), np.uint8)
    expected = network.predict(pixels.reshape(1, 16, 16, 3), verbose=0)
    (prediction,) = ask(address, {"inputs": [text]}).json()["predictions"]
    found = list(prediction["probabilities"].values())
    np.testing.assert_allclose(found, expected[0], rtol=1e-4, atol=1e-5)


SOUND = encoded(np.zeros((16, 16, 3), np.uint8))
WRONG = {
    "another key": ({"dataframe_records": [{"img": SOUND}]}, 'no images: give each .* "image"'),
    "a key missing": (
        {"dataframe_records": [{"image": SOUND}, {"img": SOUND}]},
        'image 1: the key "image" is missing or null',
    ),
    "null": ({"inputs": [None]}, 'image 0: the key "image" is missing or null'),
    "no base64": ({"inputs": [SOUND, "%%%"]}, "image 1: not base64"),
    "base64 cut off": ({"inputs": [SOUND[:-1]]}, "image 0: not base64 .*padding"),
    "no image": ({"inputs": ["aGVsbG8="]}, "image 0: not an image"),
    "image cut off": ({"inputs": [SOUND[:60]]}, "image 0: .+"),
    "empty": ({"inputs": [""]}, "image 0: empty file"),
    "none": ({"inputs": []}, "no images: the request is empty"),
    "a number": ({"inputs": [5]}, "image 0: it is int 5; give the bytes of a PNG or JPEG"),
    "another size": (
        {"instances": np.zeros((2, 8, 8, 3), int).tolist()},
        r"image 0: its shape is \(8, 8, 3\), and pixels must be \(16, 16, 3\)",
    ),
    "no batch": (
        {"instances": np.zeros((16, 16, 3), int).tolist()},
        r"image 0: its shape is \(16, 3\)",
    ),
    "fractions": (
        {"instances": np.full((1, 16, 16, 3), 0.5).tolist()},
        "image 0: its pixels are not all whole numbers from 0 to 255",
    ),
    "beyond 255": (
        {"instances": np.full((1, 16, 16, 3), 256).tolist()},
        "image 0: its pixels are not all whole numbers from 0 to 255",
    ),
    "ragged": (
        {"dataframe_records": [{"image": [[[1, 2, 3]], [[1]]]}]},
        "image 0: its rows differ in length",
    ),
    "a path": ({"inputs": ["/etc/passwd"]}, "image 0: not base64 .* and not a path"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_told_what_is_wrong(address: str, name: str) -> None:
    request, reason = WRONG[name]
    answer = ask(address, request)
    assert answer.status_code == 400
    message = answer.json()["message"]
    assert re.match(reason, message), message
    assert "\n" not in message
    assert len(message) < 200


def png(pixels: np.ndarray) -> bytes:
    return base64.b64decode(encoded(pixels))


IN_PYTHON = {
    "array": lambda images: images,
    "integers": lambda images: images.astype(np.int64),
    "list of arrays": lambda images: list(images),
    "nested lists": lambda images: images.tolist(),
    "bytes": lambda images: png(images[0]),
    "list of bytes": lambda images: [png(image) for image in images],
    "array of bytes": lambda images: np.array([png(image) for image in images], object),
    "base64": lambda images: encoded(images[0]),
    "list of base64": lambda images: [encoded(image) for image in images],
    "dict": lambda images: {"image": images},
    "dicts": lambda images: [{"image": encoded(image)} for image in images],
    "series": lambda images: pd.Series([png(image) for image in images]),
    "frame of bytes": lambda images: pd.DataFrame({"image": [png(image) for image in images]}),
    "frame of base64": lambda images: pd.DataFrame({"image": list(map(encoded, images))}),
    "frame of arrays": lambda images: pd.DataFrame({"image": list(images)}),
}


@pytest.fixture(scope="module")
def champion(store: Path) -> mlflow.pyfunc.PyFuncModel:
    with alone(store):
        return mlflow.pyfunc.load_model(CHAMPION)


@pytest.mark.parametrize("form", IN_PYTHON)
def test_images_are_labelled_in_python_in_every_form(
    champion: mlflow.pyfunc.PyFuncModel, toy: Dataset, network: keras.Model, form: str
) -> None:
    images = np.asarray(toy.images[:3])
    expected = network.predict(images, verbose=0)
    answer = champion.predict(IN_PYTHON[form](images))
    assert len(answer) == (1 if form in ("bytes", "base64") else 3)
    for row, (label, probabilities) in enumerate(answer.itertuples(index=False)):
        assert list(probabilities) == list(toy.classes)
        np.testing.assert_allclose(list(probabilities.values()), expected[row], rtol=1e-4)
        assert label == max(probabilities, key=probabilities.get)


def test_what_is_no_image_is_refused_in_python_in_one_line(
    champion: mlflow.pyfunc.PyFuncModel, tmp_path: Path
) -> None:
    path = tmp_path / "face.png"
    path.write_bytes(png(np.zeros((16, 16, 3), np.uint8)))
    for given, reason in (
        (str(path), "image 0: not base64 .* and not a path"),
        (path, "no images: the input is PosixPath; give encoded images or pixels"),
        ([path], "image 0: it is PosixPath .*; give the bytes of a PNG or JPEG file"),
        (np.zeros((2, 16, 16), np.uint8), r"image 0: its shape is \(16, 16\), and pixels must be"),
        (np.zeros((1, 16, 16, 3)), "image 0: its pixels are not all whole numbers from 0 to 255"),
    ):
        with pytest.raises(MlflowException, match=reason) as caught:
            champion.predict(given)
        assert "\n" not in str(caught.value)


def test_an_error_of_the_machine_is_told_without_its_paths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> np.ndarray:
        raise MemoryError("/home/anna/model.keras")

    monkeypatch.setattr(EmotionModel, "_pixels", fail)
    with pytest.raises(MlflowException, match=r"^it cannot be answered \(MemoryError\)$") as caught:
        EmotionModel().predict(pd.DataFrame({"image": ["AAAA"]}))
    assert "anna" not in caught.value.serialize_as_json()


def test_grey_pixels_need_no_axis_for_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "image", image)
    monkeypatch.setitem(sys.modules, "saving", saving)
    path = tmp_path / "grey.keras"
    saving.save(untrained((16, 16, 1)), path, ("angry", "happy", "sad"))
    served = EmotionModel()
    served.load_context(PythonModelContext({"network": str(path)}, {}))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16), np.uint8)
    pd.testing.assert_frame_equal(served.predict(images), served.predict(images[..., np.newaxis]))


@pytest.mark.slow
def test_the_commands_of_the_documentation_work(
    address: str, store: Path, toy: Dataset, tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    program = tmp_path / "bin" / "emotion-detection"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m emotion_detection.cli "$@"\n')
    program.chmod(0o755)
    astronaut = Image.fromarray(skimage.data.astronaut())
    astronaut.save(store / "photo.jpg")
    (store / "faces").mkdir()
    for path in ("face.png", "face.jpg", "faces/face.png"):
        Image.fromarray(np.asarray(toy.images[0])).save(store / path)
    environment = without_settings() | {"PYTHONPATH": str(ROOT / "src")}
    environment["PATH"] = f"{program.parent}{os.pathsep}{environment['PATH']}"
    done = [
        subprocess.run(
            ["sh", "-ec", block.replace("http://127.0.0.1:5001", address)],
            cwd=store,
            env=environment,
            capture_output=True,
            text=True,
        )
        for block in re.findall(r"^```sh\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
    ]
    assert [run.returncode for run in done] == [0, 0, 0], done
    # TensorFlow says nothing between the bars.
    assert all("predict:" in line for line in done[0].stderr.split("\n") if line), done[0].stderr
    table, one, several = (run.stdout for run in done)
    assert [line.split()[-1] for line in table.splitlines()] == [
        *("file", "photo.jpg"),
        *("file", "photo.jpg", "faces/face.png"),
    ]
    assert {path.name for path in (store / "annotated").iterdir()} == {"photo.jpg", "face.png"}
    assert len(json.loads(one)["predictions"]) == 1
    assert len(json.loads(several)["predictions"]) == 2
