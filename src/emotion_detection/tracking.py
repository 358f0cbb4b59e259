"""The only module that knows MLflow: where its store is and what a run says."""

import base64
import contextlib
import io
import json
import logging
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.system_metrics import set_system_metrics_sampling_interval
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType, Map
from PIL import Image

from emotion_detection import layout, modelfile, serving
from emotion_detection.console import UserError, log
from emotion_detection.dataset import Dataset
from emotion_detection.files import write_json

EXPERIMENT = "emotion-detection"
MODEL_NAME = "model"
CHAMPION = f"models:/{EXPERIMENT}@champion"
PACKAGES = ("tensorflow", "keras", "keras-tuner", "numpy", "scikit-learn", "mlflow", "dvc")
MODEL_PACKAGES = ("tensorflow", "keras", "numpy", "pandas", "pillow")

# A bar for copying a dozen small files, several times over.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def _connect() -> None:
    """Point MLflow at the store and make the experiment there if it is the first run.

    MLFLOW_TRACKING_URI wins. Otherwise the store is what plain `mlflow ui` opens at the project's
    root: sqlite:///mlflow.db with artifacts in ./mlruns.
    """
    # Its own log lines are about its own workings.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    root = layout.main_root()
    location = None
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(f"sqlite:///{(root / 'mlflow.db').as_posix()}")
        # MLflow would settle on the working directory of whoever is first to use the experiment,
        # and a queued experiment's is deleted.
        location = (root / "mlruns").as_uri()
    client = mlflow.MlflowClient()
    if client.get_experiment_by_name(EXPERIMENT) is None:
        try:
            client.create_experiment(EXPERIMENT, artifact_location=location)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
    mlflow.set_experiment(EXPERIMENT)
    # Opens the page of training runs; the default is the one for language models.
    mlflow.set_experiment_tag("mlflow.experimentKind", "custom_model_development")


@contextlib.contextmanager
def run(
    stage: str,
    *,
    note: str,
    dataset: Dataset,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    run_id: str | None = None,
) -> Iterator[str]:
    """Log to a new run, or go on with `run_id`, while the block lasts, and give its id.

    It is named after `stage` and the DVC experiment, and carries what made it: `params`, the
    data's name and digest, commit, versions and machine. It ends FINISHED, or FAILED after an
    exception.
    """
    _connect()
    set_system_metrics_sampling_interval(5)
    if run_id is not None and not _exists(run_id):
        run_id = None
    name = " ".join(filter(None, (stage, os.environ.get("DVC_EXP_NAME"))))
    with mlflow.start_run(
        run_id, run_name=name, description=note, log_system_metrics=True
    ) as active:
        mlflow.set_tags(
            {
                "stage": stage,
                "dataset": dataset.source,
                "dataset.digest": dataset.digest,
                "dataset.test": "cut from train" if dataset.test_is_cut else "its own",
                **tags,
                **_provenance(),
            }
        )
        log_params(_flat(params))
        _log_dataset(active.info.run_id, dataset)
        yield active.info.run_id


@contextlib.contextmanager
def child(name: str, *, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[None]:
    """Log to a child of the current run while the block lasts."""
    with mlflow.start_run(run_name=name, nested=True, tags=dict(tags)):
        log_params(params)
        yield


@contextlib.contextmanager
def resumed(run_id: str | None) -> Iterator[bool]:
    """Log to an earlier run while the block lasts; gives False if it is gone."""
    _connect()
    if run_id is None or not _exists(run_id):
        log.warning(
            "MLflow run %s is not in %s: nothing is logged there; `dvc repro --force train` makes "
            "a new one",
            run_id,
            _without_password(),
        )
        yield False
        return
    with mlflow.start_run(run_id=run_id):
        yield True


def log_params(params: Mapping[str, Any]) -> None:
    """Log `params` to the current run."""
    mlflow.log_params({key: _shown(value) for key, value in params.items()})


def log_metrics(metrics: Mapping[str, float]) -> None:
    """Log `metrics` to the current run."""
    mlflow.log_metrics(dict(metrics))


def log_epoch(metrics: Mapping[str, float], epoch: int) -> None:
    """Log the next points of the current run's curves, as epoch/loss and so on.

    MLflow makes a section of charts of each prefix, and this one comes first.
    """
    mlflow.log_metrics({f"epoch/{name}": value for name, value in metrics.items()}, step=epoch)


def log_files(folder: Path, artifact_folder: str) -> None:
    """Log every file of `folder` to the current run."""
    mlflow.log_artifacts(str(folder), artifact_folder)


def set_tags(tags: Mapping[str, str]) -> None:
    """Set `tags` on the current run."""
    mlflow.set_tags(dict(tags))


def log_model(model: keras.Model, example: np.ndarray, classes: tuple[str, ...]) -> None:
    """Log `model` to the current run as `serving.py` answers for it, with all that it needs.

    `example`, a few images (N, H, W, C) uint8, goes with it as PNG files in base64; `classes` are
    in the order of the model's outputs.
    """
    code = Path(__file__).parent
    signature = ModelSignature(
        # Images come as text, bytes or arrays, which only Any allows; and since MLflow would
        # answer a missing column with the whole request, it is for serving.py to miss it.
        Schema([ColSpec(AnyType(), serving.COLUMN, required=False)]),
        Schema([ColSpec("string", "label"), ColSpec(Map(DataType.double), "probabilities")]),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / layout.MODEL.name
        modelfile.save(model, path, classes)
        mlflow.pyfunc.log_model(
            name=MODEL_NAME,
            python_model=code / "serving.py",
            code_paths=[str(code / "imagefile.py"), str(code / "modelfile.py")],
            artifacts={"network": str(path)},
            signature=signature,
            input_example=pd.DataFrame({serving.COLUMN: [_base64_png(image) for image in example]}),
            # Left to itself MLflow loads the model in a second process to guess these.
            pip_requirements=[f"{name}=={version(name)}" for name in MODEL_PACKAGES],
            metadata={"classes": list(classes)},
        )


def load_network(model_uri: str = CHAMPION) -> tuple[keras.Model, tuple[str, ...]]:
    """Load the network of a logged model, and the names of its classes.

    `model_uri` is MLflow's, such as models:/name@alias or runs:/id/model. The network takes images
    (N, H, W, C) uint8 and gives probabilities (N, classes) float32.

    Raises:
        UserError: if there is no such model in the store, or no network in it.

    """
    if (
        not os.environ.get("MLFLOW_TRACKING_URI")
        and not (layout.main_root() / "mlflow.db").exists()
    ):
        # MLflow would make an empty store wherever it is asked.
        raise UserError(f"{model_uri}: there is no mlflow.db in {layout.main_root()}")
    _connect()
    try:
        with tempfile.TemporaryDirectory() as folder:
            logged = mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=folder)
            (path,) = Path(logged).rglob(layout.MODEL.name)
            model, classes = modelfile.load(path)
            # Models that older code logged have the names in MLflow's metadata alone.
            return model, classes or tuple(Model.load(logged).metadata["classes"])
    except (MlflowException, OSError, ValueError, TypeError, LookupError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{model_uri}: cannot be loaded from {_without_password()} ({reason})"
        ) from error


def _base64_png(image: np.ndarray) -> str:
    """Encode an image (H, W, C) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _exists(run_id: str) -> bool:
    try:
        # A run deleted in MLflow's pages is still there, and cannot be logged to.
        return bool(mlflow.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
    except MlflowException:
        return False


def save_run_id(path: Path, run_id: str) -> None:
    """Write down which run made the files beside `path`."""
    write_json(path, {"run_id": run_id, "tracking_uri": _without_password()})


def load_run_id(path: Path) -> str | None:
    """Give the id that `save_run_id` wrote to `path`, or None where it did not."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _without_password() -> str:
    uri = mlflow.get_tracking_uri()
    scheme, separator, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def _log_dataset(run_id: str, dataset: Dataset) -> None:
    test = int(dataset.is_test.sum())
    entity = MlflowDataset(
        name=dataset.source,
        # MLflow's own digests have eight characters, and its column holds 36.
        digest=dataset.digest[:32],
        source_type="local",
        source=json.dumps({"uri": dataset.source}),
        profile=json.dumps({"train": len(dataset) - test, "test": test}),
    )
    tag = InputTag(key="mlflow.data.context", value="train, test")
    mlflow.MlflowClient().log_inputs(run_id, [DatasetInput(entity, [tag])])


def _provenance() -> dict[str, str]:
    tags = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{f"version.{name}": version(name) for name in PACKAGES},
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["git.commit"] = commit
        tags["git.dirty"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    for tag, variable in (
        ("dvc.experiment", "DVC_EXP_NAME"),
        ("dvc.baseline", "DVC_EXP_BASELINE_REV"),
    ):
        if os.environ.get(variable):
            tags[tag] = os.environ[variable]
    return tags


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "none" if value is None else str(value)
