"""MLflow's registry: the versions of the model, and the champion of each data set."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlflow
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from emotion_detection.console import first_line
from emotion_detection.data.dataset import Dataset
from emotion_detection.tracking.models import (
    CHAMPION_ALIAS,
    REGISTERED_MODEL,
    load_network,
    logged_model,
)
from emotion_detection.tracking.pages import plain
from emotion_detection.tracking.store import EXPERIMENT
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
        raise RegistryError(first_line(error)) from error


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


def _version(client: mlflow.MlflowClient, number: str) -> Version:
    tags = client.get_model_version(REGISTERED_MODEL, number).tags
    return Version(
        number=number,
        dataset=tags.get(DATASET, "another data set"),
        dataset_digest=tags.get(DATASET_DIGEST, ""),
        synthetic=tags.get(DATASET_SYNTHETIC) == flag(True),
    )
