"""Networks in MLflow: what a logged one holds, and what is read back."""

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from packaging.requirements import Requirement

from emotion_detection.console import UserError
from emotion_detection.data.dataset import SYNTHETIC_NOTICE, Dataset
from emotion_detection.data.image import decode
from emotion_detection.tracking import models, provenance, runs
from tests.support.stores import alone
from tests.support.tiny import tiny


@pytest.fixture(autouse=True)
def _in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with alone(tmp_path):
        yield


def start(toy: Dataset, **changes: Any) -> Any:
    settings: dict[str, Any] = {"note": "", "dataset": toy, "params": {"seed": 3}, "tags": {}}
    return runs.run("train", **{**settings, **changes})


@pytest.fixture(scope="module")
def model(toy: Dataset) -> keras.Model:
    return tiny(toy)


def test_a_logged_model_is_complete(toy: Dataset, model: keras.Model) -> None:
    images = toy.images[:5]
    with start(toy) as run_id:
        runs.log_model(model, toy.classes)
    uri = f"runs:/{run_id}/{models.MODEL_NAME}"
    expected = model.predict(images, verbose=0)

    answers = mlflow.pyfunc.load_model(uri).predict(images)
    found = [[row[name] for name in toy.classes] for row in answers["probabilities"]]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert answers["label"].tolist() == [toy.classes[best] for best in expected.argmax(axis=1)]

    information = mlflow.models.get_model_info(uri)
    assert information.signature.outputs.input_names() == ["label", "probabilities"]
    assert information.metadata == {"classes": list(toy.classes)}

    folder = Path(mlflow.artifacts.download_artifacts(uri))
    example = json.loads((folder / "serving_input_example.json").read_text())["dataframe_split"]
    drawn = [decode(base64.b64decode(image), (16, 16), "rgb") for (image,) in example["data"]]
    assert len(drawn) == 2
    assert not {image.tobytes() for image in toy.images} & set(drawn)
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"model.keras", "serving.py", "image.py", "saving.py"} <= names
    assert not [name for name in names if "pickle" in name or name.endswith(".pkl")]
    requirements = (folder / "requirements.txt").read_text().splitlines()
    pinned = {line.split("==")[0].removesuffix("-cpu") for line in requirements}
    assert pinned == {"mlflow", "tensorflow", "keras", "numpy", "pandas", "pillow"}


def test_what_serves_a_network_takes_the_tensorflow_of_its_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(package: str) -> str:
        if package == "tensorflow":
            raise provenance.PackageNotFoundError
        return "2.21.0"

    def holds(line: Requirement, environment: dict[str, str]) -> bool:
        return line.marker is not None and line.marker.evaluate(environment)

    monkeypatch.setattr(provenance, "version", version)
    lines = [Requirement(line) for line in models._pinned("tensorflow")]
    for system, machine, wanted in (
        ("linux", "x86_64", "tensorflow-cpu"),
        ("linux", "aarch64", "tensorflow"),
        ("darwin", "x86_64", "tensorflow"),
    ):
        environment = {"sys_platform": system, "platform_machine": machine}
        assert [line.name for line in lines if holds(line, environment)] == [wanted]
    assert {str(line.specifier) for line in lines} == {"==2.21.0"}


def test_a_logged_network_is_loaded_with_its_classes(toy: Dataset, model: keras.Model) -> None:
    images = toy.images[:5]
    with start(toy) as run_id:
        runs.log_model(model, toy.classes)
    loaded, classes = models.load_network(f"runs:/{run_id}/{models.MODEL_NAME}")
    assert classes == toy.classes
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0)
    )


def test_a_logged_network_says_where_it_comes_from(toy: Dataset, model: keras.Model) -> None:
    with start(toy) as run_id:
        runs.log_model(model, toy.classes)
    uri = f"runs:/{run_id}/{models.MODEL_NAME}"
    source = (toy.source, toy.digest)
    assert models.origin(uri) == models.Origin(uri, *source)
    for number in ("1", "2"):
        assert mlflow.register_model(uri, "faces").version == int(number)
    mlflow.MlflowClient().set_registered_model_alias("faces", "best", "1")
    assert models.origin("models:/faces@best") == models.Origin("faces, version 1", *source)
    assert models.pinned("models:/faces@best") == "models:/faces/1"
    assert models.origin("models:/faces/2") == models.Origin("faces, version 2", *source)
    assert models.origin("models:/gone/1") == models.Origin("models:/gone/1", None)
    for unchanged in ("models:/faces/2", "models:/gone@best", uri):
        assert models.pinned(unchanged) == unchanged


def test_a_model_of_synthetic_faces_says_so_wherever_it_is_loaded(
    toy: Dataset, model: keras.Model, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = replace(toy, synthetic=True)
    with start(drawn) as run_id:
        runs.log_model(model, toy.classes, drawn.notes)
    uri = f"runs:/{run_id}/{models.MODEL_NAME}"
    assert models.origin(uri).notice == SYNTHETIC_NOTICE
    mlflow.pyfunc.load_model(uri)
    assert SYNTHETIC_NOTICE in caplog.messages


def test_a_network_that_mlflows_own_flavor_logged_is_loaded(
    toy: Dataset, model: keras.Model
) -> None:
    with start(toy) as run_id:
        mlflow.tensorflow.log_model(
            model,
            name=models.MODEL_NAME,
            pip_requirements=["keras"],
            metadata={"classes": list(toy.classes)},
        )
    loaded, classes = models.load_network(f"runs:/{run_id}/{models.MODEL_NAME}")
    assert classes == toy.classes
    assert loaded.output_shape == (None, 3)


def test_a_network_that_is_not_there_is_told(toy: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").unlink()
    with pytest.raises(UserError, match=f"there is no mlflow.db in {tmp_path}$"):
        models.load_network()
    assert not list(tmp_path.iterdir())
    with start(toy):
        pass
    told = r"^models:/emotion-detection@champion: cannot be loaded from sqlite:.*mlflow\.db \(.+\)$"
    with pytest.raises(UserError, match=told):
        models.load_network()
