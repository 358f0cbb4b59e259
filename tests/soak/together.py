"""Two `dvc queue` workers and a browser use one MLflow store at once, and nothing must be missing.

With `python -m tests.soak.together --minutes 10 --store sqlite`, `mlflow ui` shows the file that
the experiments write to. With `--store postgresql` all use an `mlflow server` on PostgreSQL and S3,
which is stopped for a tenth of the time in the middle. The exit status is 1 if anything of an
experiment is missing in MLflow.
"""

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow

from tests.support import servers
from tests.support.project import SMALL, Project

EPOCHS = 30
CHANGES: dict[str, Any] = SMALL | {
    "network": {"filters": [8, 8], "kernel_sizes": [3, 3], "dense_units": [16]},
    "tune": {"trials": 0},
    "train": {"epochs": EPOCHS, "batch_size": 32, "early_stopping_patience": None},
}
CURVES = ("loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds")
STAGES = ("train", "export", "evaluate")
ARTIFACTS = {"train/history.csv", "evaluate/report.html", "evaluate/metrics.json"}


class Queue:
    """A project whose experiments are queued, and run two at a time."""

    def __init__(self, root: Path, env: dict[str, str]) -> None:
        """Copy the project to `root`, and run it once there."""
        self._project = Project.begin(root, CHANGES)
        self._project.env |= env
        self._project.run("dvc", "repro")
        self._project.commit("Run")

    def run(self, until: float) -> dict[str, dict[str, Any]]:
        """Run experiments until that time; return what DVC knows of them, by name."""
        names: list[str] = []
        while time.monotonic() < until:
            status = Counter(self.status().values())
            if status["Queued"] < 2:
                names.append(f"together-{len(names) + 1}")
                lr = f"train.lr={1e-3 * (1 + len(names) / 1000)}"
                self._project.run("dvc", "exp", "run", "--queue", "--name", names[-1], "-S", lr)
            if status["Running"] < 2:
                self._project.start_queue(jobs=2)
            time.sleep(5)
        self._project.run("dvc", "queue", "remove", "--queued")
        while "Running" in self.status().values():
            time.sleep(5)
        ended = self.status()
        self._project.run("dvc", "queue", "stop", "--kill")
        failed = [name for name, status in ended.items() if status == "Failed"]
        if failed:
            logs = (self._project.run("dvc", "queue", "logs", name) for name in failed)
            sys.exit("\n".join(("failed:", *failed, *logs)))
        shown = json.loads(self._project.run("dvc", "exp", "show", "--json"))
        found = {
            experiment["name"]: experiment["revs"][0]["data"]
            for baseline in shown
            for experiment in baseline["experiments"] or []
        }
        return {name: found[name] for name, status in ended.items() if status == "Success"}

    def status(self) -> dict[str, str]:
        """Return Queued, Running, Success or Failed by the name of the experiment."""
        lines = (line.split() for line in self._project.run("dvc", "queue", "status").splitlines())
        return {
            words[1]: words[-1]
            for words in lines
            if len(words) > 2 and words[1].startswith("together-")
        }

    def send(self) -> None:
        """Send what MLflow missed."""
        self._project.run("emotion-detection", "send")


class Browser(threading.Thread):
    """Somebody who opens a page of the runs every half a second."""

    def __init__(self, uri: str) -> None:
        """Browse the MLflow at `uri` once started, until `done` is set."""
        super().__init__(daemon=True)
        self._uri = uri
        self.done = threading.Event()
        self.seconds: list[float] = []
        self.errors: Counter[str] = Counter()

    def run(self) -> None:
        """Go from the experiment to its runs, and to the curves of the newest."""
        while not self.done.wait(0.5):
            with contextlib.suppress(OSError, IndexError, KeyError):
                query = urllib.parse.urlencode({"experiment_name": "emotion-detection"})
                found = self._get(f"/experiments/get-by-name?{query}")
                experiment = found["experiment"]["experiment_id"]
                body = {"experiment_ids": [experiment], "max_results": 100}
                (newest, *_) = self._get("/runs/search", body)["runs"]
                for curve in CURVES:
                    about = {"run_id": newest["info"]["run_id"], "metric_key": f"epoch/{curve}"}
                    self._get(f"/metrics/get-history?{urllib.parse.urlencode(about)}")

    def _get(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"{self._uri}/api/2.0/mlflow{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        began = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                value = json.load(answer)
        except urllib.error.HTTPError as error:
            self.errors[f"status {error.code}"] += 1
            raise
        except OSError:
            self.errors["no answer"] += 1
            raise
        self.seconds.append(time.monotonic() - began)
        return value


def missing(uri: str, experiments: dict[str, dict[str, Any]]) -> list[str]:
    """Return what DVC's experiments have and MLflow at `uri` has not."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("emotion-detection")
    gone = []
    for name, known in experiments.items():
        condition = f"tags.stage = 'train' AND tags.`dvc.experiment` = '{name}'"
        runs = client.search_runs([experiment.experiment_id], condition)
        if len(runs) != 1 or runs[0].info.status != "FINISHED":
            gone.append(f"{name}: {[run.info.status for run in runs]} instead of one finished run")
            continue
        (run,) = runs
        for curve in CURVES:
            points = client.get_metric_history(run.info.run_id, f"epoch/{curve}")
            if sorted({point.step for point in points}) != list(range(1, EPOCHS + 1)):
                gone.append(f"{name}: epoch/{curve} has {len(points)} of {EPOCHS} points")
        gone += [
            f"{name}: {metric} is {run.data.metrics.get(metric)}, and {value} in {file}"
            for file in (f"reports/{stage}/metrics.json" for stage in STAGES)
            for metric, value in known["metrics"][file]["data"].items()
            if run.data.metrics.get(metric) != value
        ]
        listed = {
            artifact.path
            for folder in STAGES
            for artifact in client.list_artifacts(run.info.run_id, folder)
        }
        gone += [f"{name}: no {artifact}" for artifact in sorted(ARTIFACTS - listed)]
    return gone


@contextlib.contextmanager
def tracking(store: str, root: Path) -> Iterator[tuple[servers.Server, dict[str, str]]]:
    """Yield the server to browse, not started yet, and the experiments' environment variables.

    The server is stopped when the block ends.
    """
    if store == "sqlite":
        port = servers.free_port()
        command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        command += ["--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}"]
        with contextlib.closing(servers.Server(command, port, health="/health")) as server:
            yield server, {}
        return
    with contextlib.closing(servers.ObjectStore()) as objects, servers.postgresql() as address:
        found = servers.mlflow_server(address, objects.uri, env=objects.env)
        with contextlib.closing(found) as server:
            # Longer than the outage, so that no stage that begins in it gives up.
            yield server, {"MLFLOW_TRACKING_URI": server.uri, "EMOTION_DETECTION_TIMEOUT": "300"}


def main() -> int:
    """Run, browse, stop the server, compare, and print a summary."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    arguments = parser.parse_args()
    # The servers end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if arguments.store == "postgresql" and (reason := servers.missing_postgresql()):
        sys.exit(reason)
    seconds = 60 * arguments.minutes
    root = Path(tempfile.mkdtemp(prefix="together."))
    with tracking(arguments.store, root) as (server, env):
        if arguments.store == "postgresql":
            server.start()
        queue = Queue(root, env)
        if arguments.store == "sqlite":
            server.start()
        browser = Browser(server.uri)
        browser.start()
        began = time.monotonic()
        outage = 0.0
        if arguments.store == "postgresql":
            outage = seconds / 10

            def interrupt() -> None:
                time.sleep((seconds - outage) / 2)
                server.stop()
                time.sleep(outage)
                server.start()

            threading.Thread(target=interrupt, daemon=True).start()
        experiments = queue.run(until=began + seconds)
        browser.done.set()
        browser.join()
        queue.send()
        gone = missing(server.uri, experiments)
    took = sorted(browser.seconds)
    print(f"store            {arguments.store}, stopped for {outage:.0f} s")
    print(f"time             {(time.monotonic() - began) / 60:.1f} min, two jobs at a time")
    print(f"experiments      {len(experiments)}, of {EPOCHS} epochs and an evaluation each")
    print(f"curve points     {len(experiments) * EPOCHS * len(CURVES)}")
    print(f"requests         {len(took)} answered, {browser.errors.total()} not: ", end="")
    print(", ".join(f"{count} {what}" for what, count in browser.errors.items()) or "none")
    print(f"                 median {took[len(took) // 2]:.2f} s, longest {took[-1]:.2f} s")
    print(f"missing          {len(gone) or 'nothing'}", *gone, sep="\n  ")
    return int(bool(gone) or not experiments)


if __name__ == "__main__":
    sys.exit(main())
