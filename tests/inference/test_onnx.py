"""A network in one .onnx file, which answers as Keras does where there is no TensorFlow."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from PIL import Image

from emotion_detection import paths
from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.inference import onnx, predict
from emotion_detection.models import saving
from emotion_detection.models.network import build, export

ROOT = Path(__file__).parents[1]
CLASSES = ("très triste", "怒り", "happy")


def network(architecture: Any, **options: Any) -> keras.Model:
    chosen = architecture(**options)
    return export(build(chosen, image_shape=(16, 16, 3), classes=3, seed=0), chosen)


@pytest.mark.parametrize(
    "options",
    [
        {"family": "notebook"},
        {"family": "plain", "average_flips": True, "average_shifts": 2, "soften": 0.5},
        {"family": "residual", "squeeze_excitation": True, "average_flips": True},
        {"family": "depthwise"},
        {"family": "plain", "average_flips": True, "members": 2},
    ],
)
def test_it_answers_as_keras_for_any_number_of_images(
    architecture: Any, toy: Dataset, tmp_path: Path, options: dict[str, Any]
) -> None:
    model = network(architecture, **options)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, CLASSES)
    loaded, classes = onnx.load(path)
    assert classes == CLASSES
    assert (loaded.input_shape, loaded.output_shape) == ((None, 16, 16, 3), (None, 3))
    for count in (1, 2, 7):
        found = loaded(np.asarray(toy.images[:count]))
        assert (found.shape, found.dtype) == ((count, 3), np.float32)
    rows = np.arange(len(toy.images))
    by_keras = saving.compiled(model)
    assert onnx.largest_difference(by_keras, loaded, toy.images, rows) < 1e-5
    assert (
        onnx.largest_difference(by_keras, lambda images: 1 - loaded(images), toy.images, rows) > 0.1
    )


@pytest.fixture(scope="module")
def saved(architecture: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same network as model.onnx and model.keras."""
    folder = tmp_path_factory.mktemp("saved")
    model = network(architecture)
    onnx.save(model, folder / "model.onnx", CLASSES)
    saving.save(model, folder / "model.keras", CLASSES)
    return folder


def test_any_program_finds_its_way_in_the_file(saved: Path) -> None:
    session = onnxruntime.InferenceSession(saved / "model.onnx")
    (images,), (probabilities,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["N", 16, 16, 3])
    assert (probabilities.name, probabilities.shape) == ("probabilities", ["N", 3])
    named = session.get_modelmeta().custom_metadata_map["classes"]
    assert json.loads(named) == list(CLASSES)


def test_it_labels_pictures_without_tensorflow(saved: Path, toy: Dataset) -> None:
    Image.fromarray(np.asarray(toy.images[0])).save(saved / "face.png")
    code = (
        "import sys; sys.argv[1:] = 'predict face.png --model model.onnx --format json'.split()\n"
        "from emotion_detection.cli import main\n"
        "main()\n"
        "print(sorted({'tensorflow', 'keras', 'mlflow'} & sys.modules.keys()))"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=saved)
    answer, loaded = printed.splitlines()
    by_keras = predict.load(str(saved / "model.keras"), None).probabilities(
        np.asarray(toy.images[:1])
    )
    expected = dict(zip(CLASSES, by_keras[0].tolist(), strict=True))
    assert json.loads(answer)["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert loaded == "[]"


def test_a_file_that_cannot_serve_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match=r"model\.onnx: cannot be loaded \("):
        predict.load(str(path), None)
    shape = ["N", 16, 16, 3]
    given, made = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy"
    )
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "floats", [given], [made])
    opset = [onnx.helper.make_opsetid("", 15)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    with pytest.raises(UserError, match=r"takes tensor\(float\), not uint8"):
        predict.load(str(path), None)


@pytest.mark.parametrize("package", ["onnx", "tf2onnx", "onnxruntime"])
def test_a_missing_package_names_the_extra_and_the_command(
    package: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saving.load(saved / "model.keras")[0]
    monkeypatch.setitem(sys.modules, package, None)

    def export_and_predict() -> None:
        onnx.save(model, tmp_path / "model.onnx", CLASSES)
        predict.load(str(tmp_path / "model.onnx"), None)

    with pytest.raises(UserError, match=f"the package {package} is missing") as raised:
        export_and_predict()
    (line,) = str(raised.value).splitlines()
    assert "the extra onnx" in line
    assert "make .venv/.extras" in line


def test_what_differs_too_much_is_not_exported(
    saved: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["export"] = {"onnx": True, "tolerance": 1e-12}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    paths.MODEL.parent.mkdir()
    shutil.copytree(packed, paths.DATASET)
    shutil.copy2(saved / "model.keras", paths.MODEL)
    with pytest.raises(UserError) as raised:
        importlib.import_module("stages.export").main()
    message = str(raised.value)
    assert re.match(r"models/export/model\.onnx: a probability is \d\.\de-\d\d from ", message)
    assert "export.tolerance = 1e-12" in message
    assert not paths.EXPORT.exists()
