"""A network in one .onnx file, which answers as Keras does where there is no TensorFlow."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper
from PIL import Image

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.inference import onnx, predict
from emotion_detection.models import saving
from tests.support.untrained import untrained

CLASSES = ("très triste", "怒り", "happy")


@pytest.mark.parametrize(
    ("options", "members", "views"),
    [
        ({"arch": "notebook"}, 1, {}),
        ({"arch": "plain"}, 1, {"flips": True, "shifts": 2}),
        ({"arch": "residual", "squeeze_excitation": True}, 1, {"flips": True}),
        ({"arch": "plain"}, 2, {"flips": True, "temperature": 0.7}),
    ],
)
def test_it_answers_as_keras_for_any_number_of_images(
    toy: Dataset, tmp_path: Path, options: dict[str, Any], members: int, views: dict[str, Any]
) -> None:
    networks = [untrained((16, 16, 3), seed=seed, **options) for seed in range(members)]
    model = saving.combined(networks, **views)
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
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same network as model.onnx and model.keras."""
    folder = tmp_path_factory.mktemp("saved")
    model = untrained((16, 16, 3))
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
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "floats", [given], [made])
    opset = [helper.make_opsetid("", 15)]
    file = helper.make_model(graph, opset_imports=opset, ir_version=8)
    path.write_bytes(file.SerializeToString())
    with pytest.raises(UserError, match=r"takes tensor\(float\), not uint8"):
        predict.load(str(path), None)


def foreign(path: Path, nodes: list[NodeProto], shape: tuple[int, ...], images: Any = "N") -> str:
    """Save a network of three classes that answers with `nodes`, whatever it is shown."""
    given = helper.make_tensor_value_info("images", TensorProto.UINT8, (images, 16, 16, 3))
    made = helper.make_tensor_value_info("p", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "foreign", [given], [made])
    opset = [helper.make_opsetid("", 17)]
    file = helper.make_model(graph, opset_imports=opset, ir_version=8)
    file.metadata_props.add(key="classes", value=json.dumps(CLASSES))
    path.write_bytes(file.SerializeToString())
    return str(path)


def constant(name: str, kind: int, values: list[Any], shape: tuple[int, ...] = ()) -> NodeProto:
    value = helper.make_tensor(name, kind, shape, values)
    return helper.make_node("Constant", [], [name], value=value)


def test_a_network_that_answers_too_little_or_never_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    images = np.zeros((2, 16, 16, 3), np.uint8)
    row = constant("p", TensorProto.FLOAT, [0.2, 0.3, 0.5], (1, 3))
    few = predict.load(foreign(path, [row], (1, 3)))
    with pytest.raises(UserError, match=r"answers 2 images with \(1, 3\), not \(2, 3\)"):
        few.probabilities(images)
    one = predict.load(foreign(path, [row], (1, 3), images=1))
    with pytest.raises(UserError, match=r"model\.onnx: fails on 2 images") as raised:
        one.probabilities(images)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="has None outputs, but 3 classes"):
        predict.load(foreign(path, [constant("p", TensorProto.FLOAT, [1.0])], ()))

    monkeypatch.setattr(onnx, "LONGEST_ANSWER", 0.3)
    of_step = [
        helper.make_tensor_value_info("step", TensorProto.INT64, ()),
        *(helper.make_tensor_value_info(name, TensorProto.BOOL, ()) for name in ("on", "further")),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3)) for name in "xy"),
    ]
    step = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["further"]), helper.make_node("Relu", ["x"], ["y"])],
        "step",
        [of_step[0], of_step[1], of_step[3]],
        [of_step[2], of_step[4]],
    )
    endless = [
        constant("true", TensorProto.BOOL, [True]),
        constant("first", TensorProto.FLOAT, [0.2, 0.3, 0.5], (1, 3)),
        helper.make_node("Loop", ["", "true", "first"], ["p"], body=step),
    ]
    network = predict.load(foreign(path, endless, (1, 3)))
    with pytest.raises(UserError, match=r"model\.onnx: fails on 2 images .*terminate"):
        network.probabilities(images)


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


def test_an_export_tells_how_it_compares_with_keras(toy: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    metrics = onnx.export(untrained((16, 16, 3)), path, toy)
    assert onnx.load(path)[1] == toy.classes
    assert 0 <= metrics.pop("export/onnx_largest_difference") < 1e-5
    assert set(metrics) == {
        f"export/{name}_images_per_second{suffix}"
        for name in ("keras", "onnx")
        for suffix in ("", "_one_by_one")
    }
    assert all(speed > 0 for speed in metrics.values())


def test_what_differs_too_much_is_not_exported(toy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        onnx.export(untrained((16, 16, 3)), tmp_path / "model.onnx", toy, tolerance=1e-12)
    message = str(raised.value)
    assert re.match(r"model\.onnx: a probability differs from Keras's by \d\.\de-\d\d, ", message)
    assert "at most 1e-12 is allowed" in message
    assert "export.onnx = false" in message
