"""Networks in MLflow: logged to a run, registered, and read back."""

import base64
import contextlib
import io
import json
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
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Map
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from emotion_detection import paths
from emotion_detection.console import UserError, log
from emotion_detection.data import image
from emotion_detection.data.dataset import SYNTHETIC_NOTICE, Dataset
from emotion_detection.data.synthetic import draw_face
from emotion_detection.models import serving
from emotion_detection.tracking.pages import plain
from emotion_detection.tracking.provenance import installed
from emotion_detection.tracking.store import (
    EXPERIMENT,
    NOT_THERE,
    connect_to_read,
    without_password,
)
from emotion_detection.tracking.tags import (
    CHAMPION_CHALLENGE,
    DATASET,
    DATASET_DIGEST,
    DATASET_SYNTHETIC,
    LEAK,
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
    notice: str | None = None,
    lineage: str | None = None,
) -> None:
    """Log `model` to the run `run_id` in the form that `serving.py` serves, with all that it needs.

    `classes`, `notice` and `lineage` are what `saving.save` takes. Its input example is two
    synthetic faces, as PNG files in base64: no image of the data set leaves the project.
    """
    from emotion_detection.models import saving

    signature = ModelSignature(
        # No inputs: with a schema for them MLflow would refuse arrays, bytes and lists before
        # serving.py sees them, and repeat the whole request in its error.
        outputs=Schema([ColSpec("string", "label"), ColSpec(Map(DataType.double), "probabilities")])
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / paths.MODEL.name
        saving.save(model, path, classes, notice, lineage)
        # As mlflow.pyfunc.log_model does, which logs to MLflow's active run alone.
        with _without(notice):
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
    return load_with_lineage(model_uri)[:2]


def load_with_lineage(model_uri: str) -> "tuple[keras.Model, tuple[str, ...], str | None]":
    """Return what `load_network` does, and the text on what the network learnt from.

    The text is that of `tracking.lineage`, None if the model has none. Raises as `load_network`.
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
            classes = classes or tuple(Model.load(logged).metadata["classes"])
            return model, classes, saving.lineage(path)
        except (MlflowException, OSError, ValueError, TypeError, LookupError) as error:
            raise GoneError(f"{failed} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


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


class RegistryError(Exception):
    """A request to MLflow's model registry failed; the message says why."""


@dataclass(frozen=True)
class Version:
    """A registered model: its number, and the data set it was evaluated on."""

    number: str
    dataset: str
    dataset_digest: str
    synthetic: bool


@dataclass(frozen=True)
class Candidate:
    """The newest model that a run logged; `number` is its version, None if it has none.

    `leak` says that an ancestor of it learnt from test images.
    """

    run_id: str
    model_id: str
    selected_on_test: bool
    number: str | None = None
    leak: bool = False


def candidate(run_id: str) -> Candidate:
    """Return the newest model that `run_id` logged.

    Raises:
        RegistryError: if the registry fails, or the run logged no model.

    """
    with _registry() as client:
        run = client.get_run(run_id)
        model_id = logged_model(client, run)
        if model_id is None:
            raise ValueError(f"run {run_id} logged no model")
        versions = client.search_model_versions(
            f"name = '{REGISTERED_MODEL}' and run_id = '{run_id}'"
        )
        source = _source(model_id)
        numbers = [int(version.version) for version in versions if version.source == source]
        return Candidate(
            run_id,
            model_id,
            run.data.tags.get(SELECTED_ON_TEST) == flag(True),
            str(max(numbers)) if numbers else None,
        )


def _source(model_id: str) -> str:
    return f"models:/{model_id}"


def register(
    candidate: Candidate, dataset: Dataset, scores: Mapping[str, float], decision: str | None
) -> str:
    """Register a model as a version of REGISTERED_MODEL, tag it, and return its number.

    A model that is registered already keeps its version. The tags are the data set's name and
    digest, whether it is synthetic, `scores` as test/<name>, and whether the model was selected on
    test or an ancestor learnt from it; the description says the same in words, and `decision`.
    Without one it stays.

    Raises:
        RegistryError: if the registry fails.

    """
    with _registry() as client:
        run = client.get_run(candidate.run_id)
        tags = {
            DATASET: dataset.source,
            DATASET_DIGEST: dataset.digest,
            DATASET_SYNTHETIC: flag(dataset.synthetic),
            SELECTED_ON_TEST: flag(candidate.selected_on_test),
            LEAK: flag(candidate.leak),
            **{f"test/{name}": f"{score:.6g}" for name, score in scores.items()},
        }
        number = candidate.number
        if number is not None:
            for key, value in tags.items():
                client.set_model_version_tag(REGISTERED_MODEL, number, key, value)
        else:
            _make_registered_model(client)
            made = client.create_model_version(
                REGISTERED_MODEL,
                _source(candidate.model_id),
                candidate.run_id,
                tags,
                model_id=candidate.model_id,
            )
            number = str(made.version)
            # As mlflow.register_model does: the page of the logged model links to the version.
            link = json.dumps([{"name": REGISTERED_MODEL, "version": number}])
            client.set_logged_model_tags(candidate.model_id, {MLFLOW_MODEL_VERSIONS: link})
        if decision is not None:
            described = _described(candidate, run.info.run_name, dataset, scores, decision)
            client.update_model_version(REGISTERED_MODEL, number, described)
        return number


def _described(
    candidate: Candidate,
    run_name: str,
    dataset: Dataset,
    scores: Mapping[str, float],
    decision: str,
) -> str:
    """Return a few lines about a version; the list of versions shows the first words."""
    selected = candidate.selected_on_test
    source = plain(dataset.source)
    return (
        f"{'**Selected on test**, ' if selected else ''}{'**Leak**, ' if candidate.leak else ''}"
        f"{', '.join(f'{name} {score:.4f}' for name, score in scores.items())} on the "
        f"{int(dataset.is_test.sum()):,} {'synthetic ' if dataset.synthetic else ''}test images of "
        f"{source}{', on which its epoch or network was chosen' if selected else ''}; the "
        f"network of the run *{plain(run_name)}*.\n\nWhen it was evaluated: {plain(decision)}."
    )


def evaluated(digest: str) -> set[str]:
    """Return the ids of the runs whose model was scored on the test images of a data set.

    `digest` is the data set's. A run counts whether its model is registered or not, and also where
    it was deleted and not yet removed for good.

    Raises:
        RegistryError: if the store fails.

    """
    found: set[str] = set()
    with _registry() as client:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return found
        # A run that is being evaluated at the same time has no scores yet.
        for scored in ("metrics.`test/accuracy` >= 0", f"tags.`{CHAMPION_CHALLENGE}` LIKE '%'"):
            token = None
            while True:
                page = client.search_runs(
                    [experiment.experiment_id],
                    f"tags.`{DATASET_DIGEST}` = '{digest}' and {scored}",
                    run_view_type=ViewType.ALL,
                    page_token=token,
                )
                found |= {str(run.info.run_id) for run in page}
                token = page.token
                if not token:
                    break
    return found


def note_challenge(run_id: str, challenge: int) -> None:
    """Tag a run with which challenge of the champion of its data set it is.

    Raises:
        RegistryError: if the store fails.

    """
    with _registry() as client:
        client.set_tag(run_id, CHAMPION_CHALLENGE, str(challenge))


def champion(digest: str | None = None) -> Version | None:
    """Return the champion of the data set with this digest, by default of the one evaluated last.

    It is None if there is none.

    Raises:
        RegistryError: if the registry fails.

    """
    with _registry() as client:
        # There is no registered model before the first version.
        for model in client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
            number = model.aliases.get(_alias(digest))
            return None if number is None else _version(client, str(number))
        return None


def promote(number: str, digest: str | None = None) -> None:
    """Make version `number` the champion of the data set with this digest, or the alias `champion`.

    Raises:
        RegistryError: if the registry fails.

    """
    with _registry() as client:
        client.set_registered_model_alias(REGISTERED_MODEL, _alias(digest), number)


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
                "Networks that evaluate scored; `evaluate.register` says which. "
                "`champion-<digest>` is the best one on the test images of the data set with this "
                "digest; `champion` is the best one on the data set evaluated last, and on "
                "photographs as soon as there was one."
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
        dataset=tags.get(DATASET, "another data set"),
        dataset_digest=tags.get(DATASET_DIGEST, ""),
        synthetic=tags.get(DATASET_SYNTHETIC) == flag(True),
    )
