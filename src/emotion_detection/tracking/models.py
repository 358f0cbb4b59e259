"""Networks in MLflow: logged to a run, and read back."""

import base64
import contextlib
import io
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Map

from emotion_detection import paths
from emotion_detection.console import UserError, first_line, log
from emotion_detection.data import image
from emotion_detection.data.dataset import SYNTHETIC_NOTICE
from emotion_detection.data.synthetic import draw_face
from emotion_detection.models import serving
from emotion_detection.tracking.provenance import installed
from emotion_detection.tracking.store import (
    NOT_THERE,
    connect_to_read,
    without_password,
)
from emotion_detection.tracking.tags import (
    DATASET,
    DATASET_DIGEST,
    DATASET_SYNTHETIC,
    SELECTED_ON_TEST,
    flag,
)

if TYPE_CHECKING:  # It imports TensorFlow, as saving does, which takes seconds.
    import keras

MODEL_NAME = "model"

EXAMPLE_SIDE = 48  # pixels

MODEL_PACKAGES = ("tensorflow", "keras", "numpy", "pandas", "pillow")

REGISTERED_MODEL = "emotion-detection"

CHAMPION_ALIAS = "champion"

CHAMPION = f"models:/{REGISTERED_MODEL}@{CHAMPION_ALIAS}"

# Progress bars for copying a dozen small files.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@contextlib.contextmanager
def _without(notice: str | None) -> Iterator[None]:
    """Drop the log line `notice` while the block lasts, which loads a model to try its example."""

    def is_other(record: logging.LogRecord) -> bool:
        return record.getMessage() != notice

    log.addFilter(is_other)
    try:
        yield
    finally:
        log.removeFilter(is_other)


def log_model(
    model: "keras.Model",
    classes: tuple[str, ...],
    run_id: str,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Log `model` to the run `run_id` in the form that `serving.py` serves, with all that it needs.

    `classes` and `notes` are what `saving.save` takes. Its input example is two synthetic faces, as
    PNG files in base64: no image of the data set leaves the project.
    """
    from emotion_detection.models import saving

    signature = ModelSignature(
        # No inputs: with a schema for them MLflow would refuse arrays, bytes and lists before
        # serving.py sees them, and repeat the whole request in its error.
        outputs=Schema([ColSpec("string", "label"), ColSpec(Map(DataType.double), "probabilities")])
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / paths.MODEL.name
        saving.save(model, path, classes, notes)
        # As mlflow.pyfunc.log_model does, which logs to MLflow's active run alone.
        with _without((notes or {}).get("notice")):
            Model.log(
                artifact_path=None,
                flavor=mlflow.pyfunc,
                run_id=run_id,
                name=MODEL_NAME,
                python_model=serving.__file__,
                code_paths=[image.__file__, saving.__file__],
                artifacts={"network": str(path)},
                signature=signature,
                input_example=pd.DataFrame({serving.COLUMN: _examples()}),
                # Without these MLflow loads the model in a second process to guess them.
                pip_requirements=[line for name in MODEL_PACKAGES for line in _pinned(name)],
                metadata={"classes": list(classes)},
            )


def _examples() -> list[str]:
    """Return two synthetic faces as PNG files in base64."""
    rng, examples = np.random.default_rng(0), []
    for emotion in ("happy", "sad"):
        buffer = io.BytesIO()
        draw_face(rng, emotion, EXAMPLE_SIDE).save(buffer, "PNG")
        examples.append(base64.b64encode(buffer.getvalue()).decode())
    return examples


def _pinned(package: str) -> list[str]:
    """Return what a machine that serves the model has to install of `package`."""
    requirement = installed(package)
    if not requirement.startswith("tensorflow-cpu"):
        return [requirement]
    # Other systems have it under its usual name alone.
    here = "sys_platform == 'linux' and platform_machine == 'x86_64'"
    elsewhere = "sys_platform != 'linux' or platform_machine != 'x86_64'"
    return [f"{requirement}; {here}", f"{requirement.replace('-cpu', '')}; {elsewhere}"]


class GoneError(UserError):
    """A model is not in MLflow, or its files are gone."""


def load_network(model_uri: str = CHAMPION) -> "tuple[keras.Model, tuple[str, ...]]":
    """Return the network of a logged model, and the names of its classes.

    `model_uri` is MLflow's, such as models:/name@alias or runs:/id/model. The network turns images
    (N, H, W, C) uint8 into probabilities (N, classes) float32.

    Raises:
        GoneError: if there is no such model in the store, or its file is damaged.
        UserError: if the store cannot be reached.

    """
    return load_with_notes(model_uri)[:2]


def load_with_notes(model_uri: str) -> "tuple[keras.Model, tuple[str, ...], dict[str, str]]":
    """Return what `load_network` does, and the `saving.notes` of its file; raise as it does."""
    from emotion_detection.models import saving

    try:
        connect_to_read()
    except UserError as error:
        raise UserError(f"{model_uri}: {error}") from error
    failed = f"{model_uri}: cannot be loaded from {without_password()}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            logged = mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=folder)
        except Exception as error:  # Artifact stores raise errors of their packages.
            gone = isinstance(error, MlflowException) and error.error_code in NOT_THERE
            raise (GoneError if gone else UserError)(f"{failed} ({first_line(error)})") from error
        if not any(Path(logged).iterdir()):
            # The disk with the artifacts may not be mounted.
            raise UserError(f"{failed} (none of its files is there)")
        try:
            (path,) = Path(logged).rglob(paths.MODEL.name)
            model, classes = saving.load(path)
            # A model that was not saved by saving.save has the names in MLflow's metadata alone.
            classes = classes or tuple(Model.load(logged).metadata["classes"])
            return model, classes, saving.notes(path)
        except (MlflowException, OSError, ValueError, TypeError, LookupError) as error:
            raise GoneError(f"{failed} ({first_line(error)})") from error


@dataclass(frozen=True)
class Origin:
    """Where a network comes from: its name, and the data set it was trained on, if known.

    `selected_on_test` says that its epoch or network was chosen on the test images, and `notice` is
    what whoever uses it has to know, None where there is nothing.
    """

    name: str
    dataset: str | None
    dataset_digest: str | None = None
    selected_on_test: bool = False
    notice: str | None = None


def pinned(model_uri: str) -> str:
    """Return `model_uri` with the number of the version that its alias is now.

    It stays as it is without an alias, or if that cannot be looked up.
    """
    named = re.fullmatch(r"models:/([^/@]+)@(.+)", model_uri)
    if named is None:
        return model_uri
    try:
        connect_to_read()
        version = mlflow.MlflowClient().get_model_version_by_alias(*named.groups())
    except (UserError, MlflowException):
        return model_uri
    return f"models:/{named[1]}/{version.version}"


def origin(model_uri: str) -> Origin:
    """Return where a model in the store comes from, as far as the store knows.

    Raises:
        UserError: if the store cannot be reached.

    """
    connect_to_read()
    client = mlflow.MlflowClient()
    try:
        named = re.fullmatch(r"models:/([^/@]+)(?:@(.+)|/(\d+))", model_uri)
        if named is None:
            name, run_id = model_uri, mlflow.models.get_model_info(model_uri).run_id
        else:
            registered, alias, number = named.groups()
            version = (
                client.get_model_version_by_alias(registered, alias)
                if alias
                else client.get_model_version(registered, number)
            )
            name, run_id = f"{registered}, version {version.version}", version.run_id
        data = client.get_run(run_id).data
        return Origin(
            name,
            data.tags.get(DATASET),
            data.tags.get(DATASET_DIGEST),
            data.tags.get(SELECTED_ON_TEST) == flag(True),
            SYNTHETIC_NOTICE if data.tags.get(DATASET_SYNTHETIC) == flag(True) else None,
        )
    except MlflowException:
        return Origin(model_uri, None)


def logged_model(client: mlflow.MlflowClient, run: mlflow.entities.Run) -> str | None:
    """Return the id of the newest model that `run` logged, None if it logged none."""
    logged = run.outputs.model_outputs if run.outputs else []
    models = [client.get_logged_model(output.model_id) for output in logged]
    if not models:
        return None
    # A stage that was killed while it logged its model logs it again, and so does an export that is
    # made anew.
    newest = max(models, key=lambda model: model.creation_timestamp)
    return str(newest.model_id)
