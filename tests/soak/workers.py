"""Search by one process, and by two workers of which one is killed, and compare the trials.

`python -m tests.soak.workers` keeps MLflow's runs on PostgreSQL and S3 on loopback. The exit status
is 1 if a trial is missing or there twice, or if the workers find other scores than one process with
as many threads as each of them has.
"""

import argparse
import contextlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil

from emotion_detection import paths
from emotion_detection.console import run
from emotion_detection.tuning.workers import share
from tests.support import servers
from tests.support.project import Project

WORKERS = 2
TRIALS, EPOCHS = 6, 5
KILLED = 3
"""The trial of which the worker is killed."""


@dataclass(frozen=True)
class Search:
    """The time and results of a search; `runs` counts MLflow's runs by name and status."""

    seconds: float
    processor_seconds: float
    trials: pd.DataFrame
    chosen: dict[str, Any]
    runs: Counter[tuple[str, str]]

    @property
    def missing(self) -> list[str]:
        """The trials that are missing or there twice, in the table or in MLflow."""
        names = [f"trial {number:02d}" for number in range(1, TRIALS + 1)]
        in_table = Counter(f"trial {number:02d}" for number in self.trials["trial"])
        return [
            name for name in names if in_table[name] != 1 or self.runs[name, "FINISHED"] != 1
        ] + sorted(in_table.keys() - set(names))


class Searching:
    """A copy of the project with the synthetic faces, in which searches run."""

    def __init__(self, root: Path, tracking_uri: str) -> None:
        """Copy the project, draw the faces and pack them."""
        self._project = Project.begin(root, {"deterministic": True})
        self._project.env |= {"MLFLOW_TRACKING_URI": tracking_uri}
        self._client = mlflow.MlflowClient(tracking_uri)
        for stage in ("sample", "ingest"):
            self._project.run(*_command(stage))

    def search(self, workers: int, *, threads: int | None = None, kill: bool = False) -> Search:
        """Run tune with that many threads, or all; `kill` kills the worker of trial KILLED."""
        tune = {"trials": TRIALS, "epochs": EPOCHS, "workers": workers}
        self._project.set_params({"tune": tune})
        root = self._project.root
        # It is the same search each time, whose state and completed outputs would be reused.
        shutil.rmtree(root / paths.STATE, ignore_errors=True)
        limits = {} if threads is None else dict.fromkeys(share(0, 1), str(threads))
        began, used = time.perf_counter(), _processor_seconds()
        with tempfile.TemporaryFile("w+") as log:
            chief = subprocess.Popen(
                _command("tune"), cwd=root, env=self._project.env | limits, stderr=log
            )
            while chief.poll() is None:
                if kill and (name := self._worker_with(KILLED)):
                    time.sleep(1)
                    _worker_of(chief, name).kill()
                    kill = False
                time.sleep(0.1)
            if chief.returncode:
                log.seek(0)
                sys.exit(log.read())
        return Search(
            seconds=time.perf_counter() - began,
            processor_seconds=_processor_seconds() - used,
            trials=pd.read_csv(root / paths.TUNE / "trials.csv"),
            chosen=json.loads((root / paths.HYPERPARAMETERS).read_text("utf-8")),
            runs=self._runs(),
        )

    def _worker_with(self, trial: int) -> str | None:
        """Return the name of the worker that is at `trial`, as the search's oracle wrote it."""
        for oracle in (self._project.root / paths.STATE / "tune").rglob("oracle.json"):
            for name, number in json.loads(oracle.read_text("utf-8"))["ongoing_trials"].items():
                if int(number) + 1 == trial:
                    return str(name)
        return None

    def _runs(self) -> Counter[tuple[str, str]]:
        """Return the runs of the newest search's trials, by name and status."""
        experiment = self._client.get_experiment_by_name("emotion-detection").experiment_id
        newest = self._client.search_runs(
            [experiment],
            "tags.stage = 'tune'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )[0].info.run_id
        trials = self._client.search_runs([experiment], f"tags.mlflow.parentRunId = '{newest}'")
        return Counter((trial.info.run_name, trial.info.status) for trial in trials)


def _command(stage: str) -> list[str]:
    return [sys.executable, "-m", f"stages.{stage}"]


def _processor_seconds() -> float:
    """Return the processor time of all processes that this one started, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _worker_of(chief: subprocess.Popen[bytes], name: str) -> psutil.Process:
    return next(
        child
        for child in psutil.Process(chief.pid).children()
        if child.environ().get("KERASTUNER_TUNER_ID") == name
    )


@contextlib.contextmanager
def _tracking() -> Iterator[str]:
    """Run an MLflow server on PostgreSQL and S3 while the block lasts, and yield its address."""
    with contextlib.closing(servers.ObjectStore()) as objects, servers.postgresql() as address:
        server = servers.mlflow_server(address, objects.uri, env=objects.env)
        with contextlib.closing(server):
            server.start()
            yield server.uri


def main() -> None:
    """Search three times, compare, and print a summary."""
    argparse.ArgumentParser(prog="python -m tests.soak.workers", description=__doc__).parse_args()
    if reason := servers.missing_postgresql():
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="workers.") as root, _tracking() as uri:
        project = Searching(Path(root), uri)
        cores = len(psutil.Process().cpu_affinity())
        each = max(1, cores // WORKERS)
        expected = project.search(1, threads=each)
        searches = {
            f"one process, threads: {cores}": project.search(1),
            f"one process, threads: {each}": expected,
            f"{WORKERS} workers, threads of each: {each}": project.search(WORKERS),
            f"the same, one killed in trial {KILLED}": project.search(WORKERS, kill=True),
        }
    print(f"{TRIALS} trials of {EPOCHS} epochs")
    for name, search in searches.items():
        apart = (search.trials["val_accuracy"] - expected.trials["val_accuracy"]).abs().max()
        unfinished = [f"{run} {status}" for run, status in search.runs if status != "FINISHED"]
        print(name)
        print(f"  seconds        {search.seconds:.0f}, of processor {search.processor_seconds:.0f}")
        print(f"  a trial        {search.trials['seconds'].mean():.1f} s on average")
        print(f"  not there once {', '.join(search.missing) or 'none'}")
        print(f"  cut off        {', '.join(unfinished) or 'none'}")
        print(f"  val_accuracy   {search.trials['val_accuracy'].max():.4f} at best")
        print(f"                 {apart:.4f} at most from one process, threads: {each}")
        print(f"  network        {'the same' if search.chosen == expected.chosen else 'another'}")
    _, *others = searches.values()
    sys.exit(
        any(
            of.missing or not of.trials["val_accuracy"].equals(expected.trials["val_accuracy"])
            for of in others
        )
    )


if __name__ == "__main__":
    run(main)
