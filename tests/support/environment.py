"""The environment variables with which tests and benchmarks run programs."""

import os
import sys
from pathlib import Path

SETTINGS = ("AWS_", "DVC_", "GIT_", "MLFLOW_", "_MLFLOW_", "RAY_")


def without_settings() -> dict[str, str]:
    """Return this process's environment, this Python's programs first on PATH.

    What is set there for DVC, Git, KerasTuner, MLflow or an object store is left out.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
