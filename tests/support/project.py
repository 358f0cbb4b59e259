"""A copy of the project to run as a person would, and params with which it runs in seconds."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import mlflow
import yaml
from dvc.utils.serialize import modify_yaml
from mlflow.entities import Run

from tests.support import warm
from tests.support.environment import without_settings

ROOT = Path(__file__).parents[2]
STAGES = ("sample", "ingest", "profile", "tune", "train", "export", "evaluate")
SMALL: dict[str, Any] = {
    "sample": {"train": 120, "test": 60},
    "ingest": {"image_size": [24, 24]},
    "network": {
        "filters": [16, 16, 16],
        "kernel_sizes": [3, 3, 3],
        "convolutions": 1,
        "dense_units": [32],
        "dense_dropout": 0.5,
    },
    "tune": {
        "trials": 2,
        "epochs": 1,
        # Only the baseline and one other network are in it, which is too deep for 24 pixels.
        "space": {
            "network.filters": {"length": [3, 6], "each": [16]},
            "network.kernel_sizes": {"length": "network.filters", "each": [3]},
        },
    },
    "train": {"epochs": 2, "batch_size": 32},
    "evaluate": {"corruption_images": None, "register": "always"},
}


class Project:
    """A copy of the project in a Git and DVC repository of its own."""

    def __init__(self, root: Path, *, is_warm: bool = True) -> None:
        """Take the copy that is at `root`."""
        self.root = root
        # What each command printed when it was run first.
        self.printed: dict[tuple[str, ...], str] = {}
        self.env = without_settings() | {
            "PYTHONPATH": str(root / "src"),
            # Without analytics, and without a process that looks for a new version of DVC.
            "DVC_TEST": "true",
        }
        if is_warm:
            self.warm_up()

    def warm_up(self) -> None:
        """Start python, dvc and emotion-detection from now on as `warm` does, where it can."""
        folder = warm.programs()
        if folder is not None:
            self.env["PATH"] = f"{folder}{os.pathsep}{self.env['PATH']}"

    @classmethod
    def begin(cls, root: Path, params: Mapping[str, Any], *, is_warm: bool = True) -> Self:
        """Copy the project to `root`, change these params, and commit all of it there."""
        tracked = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            text=True,
            capture_output=True,
            check=True,
        ).stdout.splitlines()
        for name in tracked:
            if not name.startswith("tests/") and name != "dvc.lock" and (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        project = cls(root, is_warm=is_warm)
        project.set_params(params)
        project.run("git", "init", "--quiet", "--initial-branch", "main")
        project.run("git", "config", "user.name", "A Person")
        project.run("git", "config", "user.email", "person@example.org")
        project.commit("Begin")
        return project

    def run(self, *command: str) -> str:
        """Run a command as a person would, and return what it printed.

        Raises:
            RuntimeError: with what it printed, if its exit status is not 0.

        """
        done = subprocess.run(
            command, cwd=self.root, env=self.env, text=True, capture_output=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
        printed = done.stdout + done.stderr
        self.printed.setdefault(command, printed)
        return printed

    def stages_run_by(self, *command: str) -> set[str]:
        """Run a command, and return the stages that DVC ran for it."""
        output = self.run(*command)
        return {stage for stage in STAGES if f"Running stage '{stage}'" in output}

    def set_params(self, changes: Mapping[str, Any]) -> None:
        """Change params, and leave those that are not named as they are."""
        path = self.root / "params.yaml"
        # In DVC's own layout, so that -S changes one line.
        with modify_yaml(str(path)) as params:
            params.update(_changed(yaml.safe_load(path.read_text("utf-8")), changes))

    def commit(self, subject: str) -> None:
        """Commit all that there is."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", subject)

    def start_queue(self, jobs: int) -> None:
        """Start running the queued experiments, so many at a time."""
        # The workers stay for a while, at times for ever, and would keep a pipe open.
        start = ("dvc", "queue", "start", "--jobs", str(jobs))
        subprocess.run(start, cwd=self.root, env=self.env, stdout=subprocess.DEVNULL, check=True)

    def run_queue(self, jobs: int) -> None:
        """Run all queued experiments, and return when they have ended."""
        self.start_queue(jobs)
        while re.search("Queued|Running", self.run("dvc", "queue", "status")):
            time.sleep(3)
        self.run("dvc", "queue", "stop", "--kill")

    @property
    def tracking_uri(self) -> str:
        """Return the address of the copy's own MLflow store."""
        return f"sqlite:///{self.root / 'mlflow.db'}"

    def runs(self, stage: str) -> list[Run]:
        """Return the finished MLflow runs of `stage` in the project's store, newest first."""
        client = mlflow.MlflowClient(self.tracking_uri)
        experiment = client.get_experiment_by_name("emotion-detection")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id], f"tags.stage = '{stage}'"))

    def artifacts(self, run: Run, folder: str) -> set[str]:
        """Return the names in a folder of a run's artifacts."""
        client = mlflow.MlflowClient(self.tracking_uri)
        listed = client.list_artifacts(run.info.run_id, folder)
        return {artifact.path.removeprefix(f"{folder}/") for artifact in listed}

    def json(self, path: str) -> dict[str, Any]:
        """Read a JSON object."""
        value: dict[str, Any] = json.loads((self.root / path).read_text("utf-8"))
        return value


def _changed(params: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **params,
        **{
            # What is drawn is one value.
            key: change
            if key == "space" or not isinstance(change, Mapping)
            else _changed(params[key], change)
            for key, change in changes.items()
        },
    }
