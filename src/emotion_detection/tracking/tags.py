"""The names of the tags that runs and versions of the registered model have."""

STAGE = "stage"
"""The DVC stage, or `trial`."""

RECIPE = "recipe"
"""The recipe that params.yaml held, or params.yaml."""

DATASET = "dataset"
DATASET_DIGEST = "dataset.digest"
DATASET_TEST = "dataset.test"
"""Where the test split comes from."""

DATASET_SYNTHETIC = "dataset.synthetic"
"""`true` where a program drew the images."""

SELECTED_ON_TEST = "selected_on_test"
"""`true` where the epoch or the network was chosen on the test images."""

LEAK = "leak"
"""`true` where an ancestor of the model learnt from test images, `unknown` where nobody knows."""

PRECISION_WHY = "precision.why"
BEST_TRIAL = "best.trial"
TRIAL_END = "trial.end"
"""Why a trial ended: complete, pruned or out of time."""

WORKERS = "workers"

GIT_COMMIT = "git.commit"
GIT_DIRTY = "git.dirty"
DVC_EXPERIMENT = "dvc.experiment"
DVC_BASELINE = "dvc.baseline"
MACHINE, SYSTEM, PYTHON = "machine", "system", "python"
VERSION = "version."
"""The beginning of the names of packages' versions."""

REGISTERED_VERSION = "registered.version"
CHAMPION_DECISION = "champion.decision"
CHAMPION_CHALLENGE = "champion.challenge"
"""Which challenge of the champion of its data set the run was, from 1; 0 where there was none."""

PROCESS = "process"
"""The process that a run is logged from: a run that it left open can be ended."""

OUTBOX_RUN = "outbox.run"
"""What an outbox called a run before there was one in MLflow."""

EXPORT_KEY = "export.key"
"""Which export of a training the run has."""

TRAIN_RUN = "train.run"
"""The run of the training that an export is of."""


def flag(value: bool) -> str:
    """Return how a tag says whether something holds."""
    return str(value).lower()
