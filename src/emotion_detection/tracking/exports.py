"""Which MLflow run an export of a training belongs to."""

from collections.abc import Mapping

import mlflow
from mlflow.entities import Param, Run
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from emotion_detection.files import locked
from emotion_detection.tracking.provenance import run_name, this_process
from emotion_detection.tracking.store import outbox_folder, request

KEY_TAG = "export.key"
TRAINING_TAG = "train.run"
NOT_INHERITED = (
    *("mlflow.", "outbox.", "export.", "registered.", "champion.", "git.", "dvc.", "version."),
    *("stage", "process", "machine", "system", "python"),
)
"""Beginnings of the tags of a training's run that do not hold for a later export of it."""


def run_of_export(train_run_id: str, key: str, params: Mapping[str, str], note: str) -> str:
    """Return the id of the run that an export is logged to; it is made if it is not there.

    It is the training's own for its first export, which the tag `export.key` = `key` claims, and
    another for each other `key`. `params` are written as MLflow is to show them.

    Raises:
        UserError: if MLflow cannot be reached.

    """
    client = mlflow.MlflowClient()
    # Two experiments that export the same training at once must not both take its run.
    with locked(outbox_folder() / "export.lock", wait=True):
        training = request(lambda: client.get_run(train_run_id))
        if training.data.tags.get(KEY_TAG, key) == key:
            request(lambda: client.set_tag(train_run_id, KEY_TAG, key))
            return train_run_id
        found = request(
            lambda: client.search_runs(
                [training.info.experiment_id],
                f"tags.`{TRAINING_TAG}` = '{train_run_id}' AND tags.`{KEY_TAG}` = '{key}'",
            )
        )
        run = found[0] if found else request(lambda: _create(client, training, key, note))
        run_id = str(run.info.run_id)
        # A killed process may have left a run that it made without them.
        request(lambda: _fill(client, run_id, training, params))
        return run_id


def _create(client: mlflow.MlflowClient, training: Run, key: str, note: str) -> Run:
    inherited = {
        name: value
        for name, value in training.data.tags.items()
        if not name.startswith(NOT_INHERITED)
    }
    train_run_id = str(training.info.run_id)
    source = inherited.get("dataset", "another data set")
    of = f"An export of the training *{training.info.run_name}*, run {train_run_id}."
    return client.create_run(
        training.info.experiment_id,
        run_name=run_name("export", source, inherited),
        tags=resolve_tags(
            {
                **inherited,
                "stage": "export",
                "process": this_process(),
                KEY_TAG: key,
                TRAINING_TAG: train_run_id,
                MLFLOW_RUN_NOTE: f"{note}\n\n{of}".strip(),
            }
        ),
    )


def _fill(
    client: mlflow.MlflowClient, run_id: str, training: Run, params: Mapping[str, str]
) -> None:
    """Log the training's params, with `params` in place of its own, and its data set."""
    every = {**training.data.params, **params}
    client.log_batch(run_id, params=[Param(*item) for item in every.items()], synchronous=True)
    if training.inputs.dataset_inputs:
        client.log_inputs(run_id, training.inputs.dataset_inputs)
