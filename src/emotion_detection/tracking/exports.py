"""Which MLflow run an export of a training belongs to."""

import hashlib
from collections.abc import Mapping

import mlflow
from mlflow.entities import Param, Run
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from emotion_detection.files import locked
from emotion_detection.tracking import tags
from emotion_detection.tracking.pages import plain
from emotion_detection.tracking.provenance import run_name, this_process
from emotion_detection.tracking.store import EXPERIMENT, exists, outbox_folder

NOT_INHERITED = (
    *("mlflow.", tags.OUTBOX_RUN, tags.EXPORT_KEY, tags.REGISTERED_VERSION),
    *(tags.CHAMPION_DECISION, tags.GIT_COMMIT, tags.GIT_DIRTY, tags.DVC_EXPERIMENT),
    *(tags.DVC_BASELINE, tags.VERSION, tags.STAGE, tags.PROCESS, tags.RECIPE),
    *(tags.MACHINE, tags.SYSTEM, tags.PYTHON),
)
"""Beginnings of the tags of a training's run that do not hold for a later export of it."""


AWAY = "export-"
"""The beginning of the name of an export's run while MLflow cannot be reached."""


def name_while_away(train_run_id: str, key: str) -> str:
    """Return the name of an export's run until MLflow is back; the same export has the same."""
    return AWAY + hashlib.sha256(f"{train_run_id} {key}".encode()).hexdigest()[:32]


def find_run(run_id: str | None) -> str | None:
    """Return the id of the run that `run_id`, its id or its name while away, stands for.

    It is None where there is no such run that can be logged to.
    """
    if run_id is not None and run_id.startswith(AWAY):
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:  # The store was replaced.
            return None
        experiments = [experiment.experiment_id]
        found = client.search_runs(experiments, f"tags.`{tags.OUTBOX_RUN}` = '{run_id}'")
        return str(found[0].info.run_id) if found else None
    return run_id if exists(run_id) else None


def run_of_export(train_run_id: str, key: str, params: Mapping[str, str], note: str) -> str:
    """Return the id of the run that an export is logged to; it is made if it is not there.

    It is the training's own for its first export, which the tag `export.key` = `key` claims, and
    another for each other `key`. `params` are written as MLflow is to show them, and logged to it.

    Raises:
        MlflowException: if MLflow cannot be reached or refuses.

    """
    client = mlflow.MlflowClient()
    # Two experiments that export the same training at once must not both take its run.
    with locked(outbox_folder() / "export.lock", wait=True):
        training = client.get_run(train_run_id)
        if training.data.tags.get(tags.EXPORT_KEY, key) == key:
            client.set_tag(train_run_id, tags.EXPORT_KEY, key)
            _log_params(client, train_run_id, params)
            return train_run_id
        found = client.search_runs(
            [training.info.experiment_id],
            f"tags.`{tags.TRAIN_RUN}` = '{train_run_id}' AND tags.`{tags.EXPORT_KEY}` = '{key}'",
        )
        run = found[0] if found else _create(client, training, key, note)
        run_id = str(run.info.run_id)
        # A killed process may have left a run that it made without them.
        _log_params(client, run_id, {**training.data.params, **params})
        if training.inputs.dataset_inputs:
            client.log_inputs(run_id, training.inputs.dataset_inputs)
        return run_id


def _log_params(client: mlflow.MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    client.log_batch(run_id, params=[Param(*item) for item in params.items()], synchronous=True)


def _create(client: mlflow.MlflowClient, training: Run, key: str, note: str) -> Run:
    inherited = {
        name: value
        for name, value in training.data.tags.items()
        if not name.startswith(NOT_INHERITED)
    }
    train_run_id = str(training.info.run_id)
    source = inherited.get(tags.DATASET, "another data set")
    of = f"An export of the training *{plain(training.info.run_name)}*, run {train_run_id}."
    return client.create_run(
        training.info.experiment_id,
        run_name=run_name("export", source, inherited),
        tags=resolve_tags(
            {
                **inherited,
                tags.STAGE: "export",
                tags.PROCESS: this_process(),
                tags.EXPORT_KEY: key,
                tags.TRAIN_RUN: train_run_id,
                MLFLOW_RUN_NOTE: f"{note}\n\n{of}".strip(),
            }
        ),
    )
