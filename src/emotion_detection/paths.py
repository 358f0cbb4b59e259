"""Every path the stages exchange, relative to the project's root, where DVC runs them."""

import os
from pathlib import Path

DATA = Path("data")
SAMPLE = DATA / "sample"
SYNTHETIC_MARK = "SYNTHETIC.txt"
"""The name of a file beside train/ that says that a program drew the images, wherever they go."""

CORRECTIONS = DATA / "corrections.csv"
"""What is known of wrong labels, in Git; ingest applies it."""

DATASET = DATA / "dataset"
DOWNLOADS = DATA / ".download"
"""What came of a data set so far; gone once it is there."""

REPORTS = Path("reports")
PROFILE = REPORTS / "profile"
TUNE = REPORTS / "tune"
TRAIN = REPORTS / "train"
EVALUATE = REPORTS / "evaluate"
LABELS = REPORTS / "labels"

OUT_OF_FOLD = TRAIN / "out_of_fold.csv"
"""Probabilities of every image by networks that did not learn from it."""

METRICS = "metrics.json"
"""The name, in each report folder, of what `dvc metrics show` reads."""

HYPERPARAMETERS = Path("models/hyperparameters.json")
NETWORKS = Path("models/networks")
"""The trained networks, a .keras file a member, and the MLflow run that trained them."""

MODEL = Path("models/model.keras")
"""The model that is used: the members together, averaged over `tta`."""

ONNX = Path("models/onnx")
"""A folder, since every stage of DVC's leaves its outputs: without export.onnx only its params."""

ONNX_MODEL = ONNX / "model.onnx"

EXPORT_RUN = Path("models/export_run.json")
"""The MLflow run that the model is logged to."""

RUN_FILE = "mlflow_run.json"
"""The name, in a folder of state or of networks, of what says which MLflow run it belongs to."""

STATE = Path("models/.state")
"""One folder per stage, in it one per state key: what was done so far, and the completed outputs.
No output of a stage, since DVC deletes those before it runs one. See `state`."""

DVC_FILE, LOCK_FILE = Path("dvc.yaml"), Path("dvc.lock")


def main_root() -> Path:
    """Return the root of the project that a person opened.

    A queued DVC experiment runs in a copy that is deleted afterwards, and DVC_ROOT then names the
    project it was copied from: what must outlive the copy belongs there.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def state() -> Path:
    """Return the folder STATE of the project that a person opened: it outlives a queued copy."""
    root = main_root()
    return STATE if root == Path.cwd().resolve() else root / STATE


def state_lock(folder: Path) -> Path:
    """Return the lock file of the state `folder`; it can be opened afterwards."""
    locks = state() / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    return locks / f"{folder.parent.name}-{folder.name}"


def network(member: int) -> Path:
    """Return the path of the trained network of `member`, from 0."""
    return NETWORKS / f"member_{member + 1}.keras"


def outboxes() -> Path:
    """Return the folder of what is logged and not yet in MLflow, a folder a run."""
    return main_root() / "mlruns" / ".unsent"


def networks() -> list[Path]:
    """Return the paths of the trained networks that there are, in the order of their members."""
    return sorted(NETWORKS.glob("member_*.keras"), key=lambda path: int(path.stem.split("_")[1]))


def cache() -> Path:
    """Return the folder of what is fetched once for all projects of a person."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "emotion-detection"
