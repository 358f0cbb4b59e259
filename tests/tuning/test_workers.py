"""The workers of a search: who runs which trial, and what becomes of it when processes end."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pandas as pd
import psutil
import pytest
from keras_tuner.src import protos

from emotion_detection.console import UserError
from emotion_detection.settings.params import Network, Train, Tune
from emotion_detection.tuning import workers
from emotion_detection.tuning.search import search
from emotion_detection.tuning.task import Outcome, Task, Trial
from tests.support.servers import free_port

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

SPACE = {
    "network.filters": {"length": [1, 2], "each": [4, 8, 16]},
    "network.kernel_sizes": {"length": "network.filters", "each": [1, 3]},
    "network.dense_units": {"length": [1], "each": [4, 8]},
    "network.dense_dropout": [0.0, 0.2],
    "train.lr": {"min": 1e-3, "max": 1e-2, "log": True},
}
BASELINE = Network(
    arch="notebook",
    filters=(8, 4),
    kernel_sizes=(3, 3),
    dense_units=(8,),
    conv_dropout=0.1,
    dense_dropout=0.2,
    bn_momentum=0.8,
)
TRIALS = 6

# KerasTuner's protocol without KerasTuner, which takes seconds to import.
WORKER = """
import importlib.util, os, signal, sys, time, types
from pathlib import Path
from emotion_detection.console import run
from emotion_detection.tuning.workers import at_work

for name in ("keras_tuner", "keras_tuner.src"):
    sys.modules[name] = module = types.ModuleType(name)
    module.__path__ = [str(Path(sys.argv[1], *name.split(".")[1:]))]
import grpc
from keras_tuner.src.protos.v4 import service_pb2, service_pb2_grpc

def main():
    me, begun = os.environ["KERASTUNER_TUNER_ID"], Path(sys.argv[2])
    address = os.environ["KERASTUNER_ORACLE_IP"] + ":" + os.environ["KERASTUNER_ORACLE_PORT"]
    oracle = service_pb2_grpc.OracleStub(grpc.insecure_channel(address))
    with at_work(me, begun.with_name("search")):
        while True:
            request = service_pb2.CreateTrialRequest(tuner_id=me)
            trial = oracle.CreateTrial(request, wait_for_ready=True).trial
            if not trial.hyperparameters.values.values:
                break
            number = int(trial.trial_id) + 1
            earlier = begun.read_text() if begun.exists() else ""
            with begun.open("a") as file:
                file.write(f"{number} {me} {os.getpid()}\\n")
            first_time = f"{number} {me} " not in earlier
            TROUBLE
            metrics = {"val_accuracy": number / 10, "val_loss": 1.5, "parameters": 2**24 + 1}
            metrics |= {"epochs": 3, "seconds": 0.125}
            oracle.UpdateTrial(
                service_pb2.UpdateTrialRequest(trial_id=trial.trial_id, metrics=metrics)
            )
            trial.status = 5
            oracle.EndTrial(service_pb2.EndTrialRequest(trial=trial))

run(main)
"""
DIES = "os.kill(os.getpid(), signal.SIGKILL)"
HANGS = "time.sleep(600)"
WAITS_FOR_THE_OTHER = (
    "while len({line.split()[1] for line in begun.read_text().splitlines()}) < 2: time.sleep(0.02)"
)


def pretend(trial: Trial) -> Outcome:
    row = {"epoch": 1, "loss": 1.0, "val_loss": 1.5, "val_accuracy": trial.number / 10}
    return Outcome([row | {"epoch": epoch} for epoch in (1, 2, 3)], 2**24 + 1)


class Place:
    """A folder for a search, and for the list of trials that its workers began."""

    def __init__(self, root: Path) -> None:
        self.folder, self.begun_file = root / "search", root / "begun"

    def look(
        self,
        trouble: str = "pass",
        number: int = 2,
        *,
        script: str | None = None,
        folder: Path | None = None,
        oracle: str = "random",
    ) -> tuple[Mapping[str, Any], pd.DataFrame]:
        """Search with `number` workers that are up to `trouble` in each trial."""
        packages = Path(str(protos.__file__)).parents[2]
        text = script or WORKER.replace("TROUBLE", trouble)
        settings = Tune(space=SPACE, trials=TRIALS, epochs=3, workers=number)
        settings = settings.model_copy(update={"oracle": oracle})
        task = Task(settings, BASELINE, Train(lr=3e-3), (16, 16, 3), 3, seed=7)
        place = folder or self.folder
        found = search(
            task,
            folder=place,
            records=place / "trials",
            run=pretend,
            command=(sys.executable, "-c", text, str(packages), str(self.begun_file)),
        )
        return found.drawn, found.trials

    def begun(self) -> list[tuple[int, str, int]]:
        """Return the trials that were begun, by whom, and the number of its process."""
        lines = self.begun_file.read_text().splitlines() if self.begun_file.exists() else []
        words = [line.split() for line in lines]
        return [(int(trial), name, int(process)) for trial, name, process in words]

    def when_begun(self, count: int, act: Callable[[], object]) -> None:
        """Do something from another thread when so many trials were begun."""

        def wait() -> None:
            while len(self.begun()) < count:
                time.sleep(0.02)
            act()

        threading.Thread(target=wait, daemon=True).start()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in (workers.ID, workers.ADDRESS, workers.PORT):
        monkeypatch.delenv(name, raising=False)
    place = Place(tmp_path)
    yield place
    assert not [number for _, _, number in place.begun() if psutil.pid_exists(number)]


def decided(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table.drop(columns="seconds").to_dict("records")


def test_workers_run_each_trial_once_and_find_what_one_process_does(
    place: Place,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO", "emotion_detection")
    # Nobody listens there, and gRPC would wait.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    best, table = place.look(WAITS_FOR_THE_OTHER)
    alone, expected = place.look(number=1, folder=tmp_path / "alone")
    assert best == alone
    assert decided(table) == decided(expected)
    assert set(table["seconds"]) == {0.125}
    assert sorted(trial for trial, _, _ in place.begun()) == list(range(1, TRIALS + 1))
    assert {name for _, name, _ in place.begun()} == {"local-1", "local-2"}
    lines = [line for line in caplog.messages if line.startswith("tune: trial ")][-TRIALS:]
    assert [line.partition(";")[0] for line in lines] == [
        f"tune: trial {number}/6: validation accuracy {10 * number:.1f} %, the best so far"
        for number in range(1, TRIALS + 1)
    ]


def test_a_worker_that_is_killed_starts_again_with_its_trial(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    _, table = place.look(f"if number == 2 and first_time: {DIES}")
    assert table["status"].tolist() == ["COMPLETED"] * TRIALS
    begun = place.begun()
    assert Counter(trial for trial, _, _ in begun) == Counter([*range(1, TRIALS + 1), 2])
    (first, second) = [(name, process) for trial, name, process in begun if trial == 2]
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert f"{first[0]} ended in its trial (killed by SIGKILL) and starts again" in caplog.text


def test_a_trial_that_kills_every_worker_fails(place: Place) -> None:
    _, table = place.look(f"if number == 3: {DIES}")
    assert [trial for trial, _, _ in place.begun()].count(3) == workers.TRIES
    failed = table[table["status"] == "FAILED"]
    assert failed["trial"].tolist() == [3]
    assert failed["message"].tolist() == ["it ended its process 3 times (killed by SIGKILL)"]
    assert (table["status"] == "COMPLETED").sum() == TRIALS - 1


def test_workers_that_cannot_start_end_the_search(place: Place) -> None:
    with pytest.raises(UserError, match=r"local-\d ended 3 times before it had a .*exit status 7"):
        place.look(script="raise SystemExit(7)")


def test_no_trial_fails_because_a_worker_cannot_start_any_more(place: Place) -> None:
    changed = f"if Path({str(place.begun_file)!r}).exists(): raise SystemExit(7)"
    script = WORKER.replace("TROUBLE", DIES).replace("def main():", f"{changed}\n\ndef main():")
    with pytest.raises(UserError, match=r"local-\d ended 3 times before it had a .*exit status 7"):
        place.look(script=script)
    _, table = place.look()
    assert table["status"].tolist() == ["COMPLETED"] * TRIALS


@pytest.mark.parametrize("oracle", ["random", "hyperband"])
def test_an_interrupted_search_ends_its_workers_and_goes_on_later(
    place: Place, oracle: str
) -> None:
    place.when_begun(4, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        place.look(f"if number > 2: {HANGS}", oracle=oracle)
    assert {trial for trial, _, _ in place.begun()} == {1, 2, 3, 4}
    assert not [number for _, _, number in place.begun() if psutil.pid_exists(number)]
    # With however many.
    _, table = place.look(oracle=oracle, number=3)
    assert table["status"].tolist() == ["COMPLETED"] * TRIALS
    assert table["trial"].tolist() == list(range(1, TRIALS + 1))


def test_the_trial_of_a_worker_elsewhere_that_falls_silent_is_run_here(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = str(free_port())
    for name, value in zip(
        (workers.ID, workers.ADDRESS, workers.PORT), ("chief", "127.0.0.1", port), strict=True
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(workers, "SILENCE", 1.0)
    service = protos.get_service()
    taken: list[int] = []

    def take_one() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = service.CreateTrialRequest(tuner_id="elsewhere")
            oracle = protos.get_service_grpc().OracleStub(channel)
            trial = oracle.CreateTrial(request, wait_for_ready=True).trial
            taken.append(int(trial.trial_id) + 1)

    place.when_begun(1, take_one)
    _, table = place.look("time.sleep(0.1)", number=1)
    assert "elsewhere gave no sign of life for 1 s" in caplog.text
    assert table["status"].tolist() == ["COMPLETED"] * TRIALS
    assert len(taken) == 1
    assert [name for trial, name, _ in place.begun() if trial in taken] == ["local-1"]


def test_an_address_that_is_taken_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv(workers.ID, "chief")
        monkeypatch.setenv(workers.ADDRESS, "127.0.0.1")
        monkeypatch.setenv(workers.PORT, str(port))
        with pytest.raises(UserError, match=rf"127.0.0.1:{port}: cannot listen there; set KERAST"):
            place.look()


@pytest.mark.parametrize("gone", ["chief", "folder"])
def test_no_worker_outlives_its_chief(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    folder = tmp_path / "search"
    folder.mkdir()
    script = (
        "import sys, time; from pathlib import Path\n"
        "from emotion_detection import console\n"
        "from emotion_detection.tuning import workers\n"
        "workers.BEAT = 0.1\n"
        "def main():\n"
        "    with workers.at_work('local-1', Path(sys.argv[1])):\n"
        "        time.sleep(600)\n"
        "console.run(main)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, folder],
        env={**os.environ, workers.WATCHDOG: "1"},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as worker:
        while not list(folder.iterdir()):
            time.sleep(0.02)
        assert worker.poll() is None
        if gone == "folder":
            (folder / "local-1.alive").unlink()
        else:
            assert worker.stdin is not None
            worker.stdin.close()
            worker.stdin = None
        _, errors = worker.communicate(timeout=60)
    assert (worker.returncode, errors) == (143, "terminated\n")


def test_the_cores_and_gpus_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [])
    threads = dict.fromkeys(names, "8")
    for name, value in threads.items():
        monkeypatch.setenv(name, value)
    assert workers.share(0, 3) == dict.fromkeys(threads, "2")
    assert workers.share(8, 9) == dict.fromkeys(threads, "1")
    for name in threads:
        monkeypatch.delenv(name)
    cores = len(psutil.Process().cpu_affinity())
    assert workers.share(0, 1) == dict.fromkeys(threads, str(cores))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    gpus = [workers.share(number, 3)["CUDA_VISIBLE_DEVICES"] for number in range(3)]
    assert gpus == ["2", "5", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    gpus = [workers.share(number, 2)["CUDA_VISIBLE_DEVICES"] for number in range(2)]
    assert gpus == ["0,2", "1"]
    # Without the variable they are all there.
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [kind, kind])
    gpus = [workers.share(number, 3)["CUDA_VISIBLE_DEVICES"] for number in range(3)]
    assert gpus == ["0", "1", "0"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("", "", ""), None),
        (("chief", "10.0.0.5", "8000"), None),
        (("b-7.local", "10.0.0.5", "8000"), "b-7.local"),
    ],
)
def test_the_variables_tell_a_worker_from_its_chief(
    monkeypatch: pytest.MonkeyPatch, values: tuple[str, ...], expected: str | None
) -> None:
    for name, value in zip((workers.ID, workers.ADDRESS, workers.PORT), values, strict=True):
        monkeypatch.setenv(name, value)
    assert workers.worker_id() == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("b-7", "", "8000"), "KERASTUNER_ORACLE_IP: not set; a search over machines needs all"),
        (("", "10.0.0.5", ""), "KERASTUNER_TUNER_ID and KERASTUNER_ORACLE_PORT: not set"),
        (("../b", "10.0.0.5", "8000"), "KERASTUNER_TUNER_ID = ../b: must be letters"),
        (("b", "10.0.0.5", "80000"), "KERASTUNER_ORACLE_PORT = 80000: must be a whole number from"),
    ],
)
def test_wrong_variables_are_named(
    monkeypatch: pytest.MonkeyPatch, values: tuple[str, ...], message: str
) -> None:
    for name, value in zip((workers.ID, workers.ADDRESS, workers.PORT), values, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as raised:
        workers.worker_id()
    assert str(raised.value).startswith(message)
