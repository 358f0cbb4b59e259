"""Every path the stages exchange, relative to the project's root, where DVC runs them."""

import os
from pathlib import Path

DATA = Path("data")
SAMPLE = DATA / "sample"
DATASET = DATA / "dataset"

DOWNLOADS = DATA / ".download"
"""What came of a data set so far; gone once it is there."""

PROFILE = Path("reports/profile")
TUNE = Path("reports/tune")
TRAIN = Path("reports/train")
EVALUATE = Path("reports/evaluate")
EXPORT_REPORT = Path("reports/export")

METRICS = "metrics.json"
"""The name, in each report folder, of what `dvc metrics show` reads."""

HYPERPARAMETERS = Path("models/hyperparameters.json")
MODEL = Path("models/model.keras")
TRAIN_RUN = Path("models/train_run.json")

EXPORT = Path("models/export")
ONNX = EXPORT / "model.onnx"
EXPORTED = EXPORT / "export.json"
"""What was exported, also where that is nothing: every stage of DVC's leaves its outputs."""

SEARCH_STATE = Path("models/.search")
"""A folder a search, KerasTuner's until it has ended, and then what it made: no output of a stage,
since DVC deletes those before it runs one."""


def main_root() -> Path:
    """Give the root of the project that a person opened.

    A queued DVC experiment runs in a copy that is deleted afterwards, and DVC_ROOT then names the
    project it was copied from: what must outlive the copy belongs there.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


TRAIN_STATE = Path("models/.train")
"""A folder a training: its checkpoints, and then what it made; likewise no output."""

NOTES = Path("dvc.lock")
"""What changes when the end of a stage is noted."""

RUN_FILE = "mlflow_run.json"
"""The name, in either, of what says which MLflow run goes on."""


def journals() -> Path:
    """Give the folder of what is logged and not yet in MLflow, a folder a run."""
    return main_root() / "mlruns" / ".unsent"
