"""Kill every stage at random moments until the pipeline ends, and compare with an undisturbed run.

It works in a copy of the project with few images: `python -m tests.soak.faults --kills 50`. A kill
takes about a quarter of a minute on idle cores. The exit status is 1 if anything differs.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from emotion_detection import paths
from emotion_detection.inference import onnx
from tests.support.project import SMALL, STAGES, Project

CHANGES: dict[str, Any] = SMALL | {
    # Otherwise threads add up in another order each time, and nothing can be compared.
    "deterministic": True,
    "network": {"filters": [8, 8], "kernel_sizes": [3, 3], "dense_units": [16]},
    "tune": {
        "trials": 4,
        "epochs": 2,
        "space": {
            "network.filters": {"length": [2], "each": [4, 8]},
            "network.dense_units": {"length": [1], "each": [8, 16]},
        },
    },
    "ensemble": {"members": 2},
    "tta": {"flips": True, "shifts": 1},
    "train": {"epochs": 4, "batch_size": 32, "early_stopping_patience": None},
    "export": {"onnx": True},
}


class Stopped(Project):
    """A copy of the project that is run, stopped and compared."""

    def reset(self) -> None:
        """Remove whatever runs have made."""
        self.run("git", "clean", "-fdxq")

    def repro(self) -> subprocess.Popen[bytes]:
        """Start `dvc repro` in a group of its own."""
        with (self.root / "repro.log").open("ab") as log:
            return subprocess.Popen(
                ["dvc", "repro"],
                cwd=self.root,
                env=self.env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def outcome(self) -> dict[str, Any]:
        """Return the results of a run that must not depend on how often it was stopped."""
        with closing(sqlite3.connect(self.root / "mlflow.db")) as store:
            train = "(SELECT run_uuid FROM tags WHERE key = 'stage' AND value = 'train')"
            stages = store.execute(
                "SELECT t.value, r.status, count(*) FROM runs r JOIN tags t USING (run_uuid) "
                "WHERE t.key = 'stage' AND (t.value != 'trial' OR r.status = 'FINISHED') "
                "GROUP BY 1, 2 ORDER BY 1, 2"
            ).fetchall()
            curves = store.execute(
                f"SELECT DISTINCT key, step, value FROM metrics WHERE run_uuid IN {train} AND "
                "(key LIKE 'epoch/%' OR key LIKE 'network\\_%' ESCAPE '\\') "
                "AND key NOT LIKE '%/seconds' ORDER BY 1, 2"
            ).fetchall()
            metrics = store.execute(
                f"SELECT DISTINCT key FROM latest_metrics WHERE run_uuid IN {train} AND "
                "key NOT LIKE 'system/%' ORDER BY 1"
            ).fetchall()
            weights = store.execute(
                "SELECT DISTINCT value FROM tags WHERE key = 'weights.digest'"
            ).fetchall()
            (left_open,) = store.execute(
                "SELECT count(*) FROM runs WHERE status = 'RUNNING'"
            ).fetchone()
        run_id = self.json("models/networks/mlflow_run.json")["run_id"]
        export_id = self.json("models/export_run.json")["run_id"]
        artifacts = self.root / "mlruns" / run_id / "artifacts"
        return {
            "history": self._table("reports/train/history.csv"),
            "trials": self._table("reports/tune/trials.csv"),
            "dataset": self.json("data/dataset/dataset.json"),
            "profile": self.json("reports/profile/metrics.json"),
            "metrics": self.json("reports/evaluate/metrics.json"),
            "predictions": (self.root / "reports/evaluate/predictions.csv").read_bytes(),
            "export": self.json("reports/export/metrics.json")["export/val_accuracy"],
            "export in the training's run": export_id == run_id,
            "ONNX": self._probabilities(),
            "weights": weights,
            "MLflow's runs": stages,
            "MLflow's curves": curves,
            "MLflow's metrics": metrics,
            "MLflow's artifacts": sorted(
                str(path.relative_to(artifacts)) for path in artifacts.rglob("*")
            ),
            "runs left open": left_open,
            "not sent": len(list(self.root.glob("mlruns/.unsent/*/*/"))),
            "left over": sorted(
                str(path.relative_to(self.root))
                for folder in ("data", "models", "reports")
                for path in (self.root / folder).rglob("*.partial")
            ),
        }

    def _probabilities(self) -> bytes:
        """Return the ONNX file's probabilities for the images; its bytes differ each time."""
        network, _ = onnx.load(self.root / paths.ONNX_MODEL)
        return network(np.load(self.root / "data/dataset/images.npy")).tobytes()

    def _table(self, name: str) -> list[dict[str, str]]:
        with (self.root / name).open(newline="", encoding="utf-8") as file:
            return [
                {column: value for column, value in row.items() if column != "seconds"}
                for row in csv.DictReader(file)
            ]


def running(repro: subprocess.Popen[bytes]) -> str | None:
    """Return the stage that `dvc repro` is at, if it is at one."""
    try:
        for process in psutil.Process(repro.pid).children(recursive=True):
            words = process.cmdline()
            if len(words) > 1 and words[-1].startswith("stages."):
                return words[-1].removeprefix("stages.")
    except psutil.Error:
        pass
    return None


def undisturbed(project: Stopped) -> dict[str, float]:
    """Run the pipeline once and return the seconds that each stage took."""
    seconds: Counter[str] = Counter()
    repro, before = project.repro(), time.monotonic()
    while repro.poll() is None:
        time.sleep(0.05)
        now = time.monotonic()
        if (stage := running(repro)) is not None:
            seconds[stage] += now - before  # type: ignore[assignment]
        before = now
    if repro.returncode:
        sys.exit(f"the undisturbed run failed: see {project.root / 'repro.log'}")
    return dict(seconds)


def disturbed(
    project: Stopped, seconds: dict[str, float], how: signal.Signals, draw: random.Random
) -> Counter[str]:
    """Run the pipeline, killing each stage once at a random moment, and count the kills."""
    kills: Counter[str] = Counter()
    todo = set(STAGES)
    while True:
        repro, killed = project.repro(), False
        while repro.poll() is None:
            stage = running(repro)
            if stage in todo:
                todo.remove(stage)
                began, wait = time.monotonic(), draw.uniform(0, seconds[stage])
                while (took := time.monotonic() - began) < wait and running(repro) == stage:
                    time.sleep(0.02)
                if running(repro) == stage:
                    os.killpg(repro.pid, how)
                    kills[stage] += 1
                    killed = True
                    break
                # Quicker than it was in the rounds before.
                seconds[stage] = took
            time.sleep(0.02)
        if repro.wait() == 0:
            return kills
        if not killed:
            sys.exit(f"a run that was not killed failed: see {project.root / 'repro.log'}")


def main() -> int:
    """Kill, compare, and print a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="at least so many in all")
    parser.add_argument("--signal", choices=("KILL", "INT", "TERM"), default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # A background job of a shell ignores Ctrl-C, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    draw = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="faults."))
    project = Stopped.begin(folder, CHANGES)
    seconds = undisturbed(project)
    expected = project.outcome()
    took = "  ".join(f"{stage} {seconds[stage]:.1f} s" for stage in STAGES)
    print(f"undisturbed  {took}", flush=True)

    total: Counter[str] = Counter()
    differing = 0
    print("round", *(f"{stage:>9}" for stage in STAGES), "  differs from the undisturbed run")
    number = 0
    while total.total() < arguments.kills:
        number += 1
        project.reset()
        kills = disturbed(project, seconds, signal.Signals[f"SIG{arguments.signal}"], draw)
        total += kills
        found = project.outcome()
        differs = [name for name in expected if found[name] != expected[name]]
        differing += bool(differs)
        print(
            f"{number:5}",
            *(f"{kills[stage]:9}" for stage in STAGES),
            f"  {', '.join(differs) or 'in nothing'}",
            flush=True,
        )
        if differs:
            shutil.copytree(folder, f"{folder}.{number}", symlinks=True)
            print(f"      kept in {folder}.{number}")
    print("  all", *(f"{total[stage]:9}" for stage in STAGES), f"  {differing} of {number} rounds")
    shutil.rmtree(folder)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
