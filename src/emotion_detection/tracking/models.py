"""Networks in MLflow: logged to a run, registered, and read back."""

import base64
import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType, Map
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS
from PIL import Image

from emotion_detection import paths
from emotion_detection.console import UserError
from emotion_detection.data import image
from emotion_detection.data.dataset import Dataset
from emotion_detection.models import serving
from emotion_detection.tracking.store import NOT_THERE, connect_to_read, without_password

if TYPE_CHECKING:  # It imports TensorFlow, as saving does, which takes seconds.
    import keras

MODEL_NAME = "model"

MODEL_PACKAGES = ("tensorflow", "keras", "numpy", "pandas", "pillow")

REGISTERED_MODEL = "emotion-detection"

CHAMPION_ALIAS = "champion"

CHAMPION = f"models:/{REGISTERED_MODEL}@{CHAMPION_ALIAS}"

# Progress bars for copying a dozen small files.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def log_model(
    model: "keras.Model", example: np.ndarray, classes: tuple[str, ...], run_id: str
) -> None:
    """Log `model` to the run `run_id` in the form that `serving.py` serves, with all that it needs.

    `example`, a few images (N, H, W, C) uint8, goes with it as PNG files in base64; `classes` are
    in the order of the model's outputs.
    """
    from emotion_detection.models import saving

    signature = ModelSignature(
        # Images come as text, bytes or arrays, which only Any allows. The column is not required,
        # since MLflow would repeat the whole request in its error; serving.py has a shorter one.
        Schema([ColSpec(AnyType(), serving.COLUMN, required=False)]),
        Schema([ColSpec("string", "label"), ColSpec(Map(DataType.double), "probabilities")]),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / paths.MODEL.name
        saving.save(model, path, classes)
        # As mlflow.pyfunc.log_model does, which logs to MLflow's active run alone.
        Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            name=MODEL_NAME,
            python_model=serving.__file__,
            code_paths=[image.__file__, saving.__file__],
            artifacts={"network": str(path)},
            signature=signature,
            input_example=pd.DataFrame(
                {serving.COLUMN: [_base64_png(pixels) for pixels in example]}
            ),
            # Without these MLflow loads the model in a second process to guess them.
            pip_requirements=[f"{name}=={version(name)}" for name in MODEL_PACKAGES],
            metadata={"classes": list(classes)},
        )


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
            raise (GoneError if gone else UserError)(f"{failed} ({_reason(error)})") from error
        if not any(Path(logged).iterdir()):
            # The disk with the artifacts may not be mounted.
            raise UserError(f"{failed} (none of its files is there)")
        try:
            (path,) = Path(logged).rglob(paths.MODEL.name)
            model, classes = saving.load(path)
            # A model that was not saved by saving.save has the names in MLflow's metadata alone.
            return model, classes or tuple(Model.load(logged).metadata["classes"])
        except (MlflowException, OSError, ValueError, TypeError, LookupError) as error:
            raise GoneError(f"{failed} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@dataclass(frozen=True)
class Origin:
    """Where a network comes from: its name, and the data set it was trained on, if known.

    `selected_on_test` says that its epoch or network was chosen on the test images; `params` are
    those of its run.
    """

    name: str
    dataset: str | None
    dataset_digest: str | None = None
    selected_on_test: bool = False
    params: Mapping[str, str] = field(default_factory=dict)


def origin(model_uri: str = CHAMPION) -> Origin:
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
            data.tags.get("dataset"),
            data.tags.get("dataset.digest"),
            data.tags.get("selected_on_test") == "true",
            data.params,
        )
    except MlflowException:
        return Origin(model_uri, None)


def _base64_png(pixels: np.ndarray) -> str:
    """Return an image (H, W, C) uint8 as a PNG file in base64."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class RegistryError(Exception):
    """A request to MLflow's model registry failed; the message says why."""


@dataclass(frozen=True)
class Version:
    """A registered model: its number, and the data set it was evaluated on."""

    number: str
    dataset: str
    dataset_digest: str
    selected_on_test: bool


def register(run_id: str, dataset: Dataset, scores: Mapping[str, float]) -> Version:
    """Register the newest model that `run_id` logged as a version of REGISTERED_MODEL, and tag it.

    A model that is registered already keeps its version. The tags are the data set's name and
    digest, `scores` as test/<name>, and `selected_on_test` as the run has it; the description says
    the same in words.

    Raises:
        RegistryError: if the registry fails, or the run logged no model.

    """
    with _registry() as client:
        run = client.get_run(run_id)
        tags = {
            "dataset": dataset.source,
            "dataset.digest": dataset.digest,
            "selected_on_test": run.data.tags.get("selected_on_test", "false"),
            **{f"test/{name}": f"{score:.6g}" for name, score in scores.items()},
        }
        _make_registered_model(client)
        model_id = logged_model(client, run)
        if model_id is None:
            raise ValueError(f"run {run_id} logged no model")
        source = f"models:/{model_id}"
        versions = client.search_model_versions(
            f"name = '{REGISTERED_MODEL}' and run_id = '{run_id}'"
        )
        numbers = [int(version.version) for version in versions if version.source == source]
        if numbers:
            number = max(numbers)
            for key, value in tags.items():
                client.set_model_version_tag(REGISTERED_MODEL, str(number), key, value)
        else:
            number = client.create_model_version(
                REGISTERED_MODEL, source, run_id, tags, model_id=model_id
            ).version
            # As mlflow.register_model does: the page of the logged model links to the version.
            link = json.dumps([{"name": REGISTERED_MODEL, "version": str(number)}])
            client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: link})
        client.update_model_version(REGISTERED_MODEL, str(number), _described(run, dataset, scores))
        return _version(client, str(number))


def _described(run: mlflow.entities.Run, dataset: Dataset, scores: Mapping[str, float]) -> str:
    """Return a line about a version; the list of versions shows its first words."""
    selected_on_test = run.data.tags.get("selected_on_test") == "true"
    return (
        f"{'**Selected on test**, ' if selected_on_test else ''}"
        f"{', '.join(f'{name} {score:.4f}' for name, score in scores.items())} on the "
        f"{int(dataset.is_test.sum()):,} test images of {dataset.source}"
        f"{', on which its epoch or network was chosen' if selected_on_test else ''}; the network "
        f"of the run *{run.info.run_name}*."
    )


def champion(digest: str | None = None) -> Version | None:
    """Return the champion of the data set with this digest, by default of the one evaluated last.

    It is None if there is none.

    Raises:
        RegistryError: if the registry fails.

    """
    with _registry() as client:
        number = client.get_registered_model(REGISTERED_MODEL).aliases.get(_alias(digest))
        return None if number is None else _version(client, str(number))


def promote(version: Version, digest: str | None = None) -> None:
    """Make `version` the champion of the data set with this digest, or the alias `champion`.

    Raises:
        RegistryError: if the registry fails.

    """
    with _registry() as client:
        client.set_registered_model_alias(REGISTERED_MODEL, _alias(digest), version.number)


def load_version(version: Version) -> "keras.Model":
    """Return the network of a registered model. Raises as `load_network` does."""
    return load_network(f"models:/{REGISTERED_MODEL}/{version.number}")[0]


@contextlib.contextmanager
def _registry() -> Iterator[mlflow.MlflowClient]:
    try:
        yield mlflow.MlflowClient()
    except (MlflowException, OSError, ValueError) as error:
        raise RegistryError(_reason(error)) from error


def _alias(digest: str | None) -> str:
    return CHAMPION_ALIAS if digest is None else f"{CHAMPION_ALIAS}-{digest[:8]}"


def _make_registered_model(client: mlflow.MlflowClient) -> None:
    if client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
        return
    try:
        client.create_registered_model(
            REGISTERED_MODEL,
            description=(
                "Every network that evaluate scored. `champion-<digest>` is the best one on the "
                "test images of the data set with this digest; `champion` is the best one on the "
                "data set evaluated last."
            ),
        )
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


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


def _version(client: mlflow.MlflowClient, number: str) -> Version:
    tags = client.get_model_version(REGISTERED_MODEL, number).tags
    return Version(
        number=number,
        dataset=tags.get("dataset", "another data set"),
        dataset_digest=tags.get("dataset.digest", ""),
        selected_on_test=tags.get("selected_on_test") == "true",
    )
