"""A search by several processes: a chief, which has the oracle, and workers, which run trials.

The protocol and its variables are KerasTuner's: KERASTUNER_TUNER_ID says who a process is, and
KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT where its chief listens, on this machine or another
that shares the folder of the search. KerasTuner's own chief waits for ever for a worker that died;
this one starts its workers again, and gives the trials of the others to whoever asks.
"""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import grpc
from joblib import cpu_count

from emotion_detection.console import SEARCH_WORKER, UserError, log

ID, ADDRESS, PORT = SEARCH_WORKER, "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"

CHIEF = "chief"
"""In an id, it makes a chief of a process."""

LOOPBACK, ANY_FREE = "127.0.0.1", "0"

WATCHDOG = "EMOTION_DETECTION_WATCHDOG"
"""Set for the workers that a chief started: they end with it."""

TRIES = 3
"""How often a trial, or a start without one, may end a worker's process."""

BEAT, SILENCE = 5.0, 300.0
"""Seconds between two signs of life, and without one before a worker's trial goes to another."""

GRACE = 15.0
"""Seconds that an ended process has to say so to MLflow."""

SHUTDOWN, LAST_SENT = 10.0, 90.0
"""Seconds, after the last trial, for workers to hear of it, and then to send MLflow the rest."""


class Oracle(Protocol):
    """What is asked here of a search's oracle, beyond KerasTuner's protocol."""

    max_trials: int
    end_order: list[str]
    ongoing_trials: dict[str, Any]
    tuner_ids: set[str]
    callers: set[str]
    trouble: Exception | None

    @property
    def waiting(self) -> bool:
        """Whether trials that were begun wait for a worker."""

    def give_back(self, worker: str) -> None:
        """Let another worker run the trial of `worker`."""

    def fail(self, worker: str, message: str) -> None:
        """End the trial of `worker` as FAILED."""


def worker_id() -> str | None:
    """Return the id of this process if it is a worker of a search, as KerasTuner's variables say.

    Raises:
        UserError: if some of them are set and others are not, or they are wrong.

    """
    values = {name: os.environ.get(name, "") for name in (ID, ADDRESS, PORT)}
    missing = [name for name, value in values.items() if not value]
    if len(missing) == 3:
        return None
    if missing:
        raise UserError(f"{' and '.join(missing)}: not set; a search over machines needs all three")
    own, port = values[ID], values[PORT]
    if not re.fullmatch(r"[\w.-]+", own):
        raise UserError(f"{ID} = {own}: must be letters, digits, dots and dashes")
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"{PORT} = {port}: must be a whole number from 1 to {2**16 - 1}")
    return None if CHIEF in own else own


def is_chief(workers: int) -> bool:
    """Return whether this process, which is no worker, leads some: its own, or others elsewhere."""
    return workers > 1 or ID in os.environ


def share(number: int, of: int) -> dict[str, str]:
    """Return the variables that leave worker `number`, from 0, its share of the cores and GPUs.

    What is set for the whole search, as for one of several in `dvc queue`, is shared likewise.
    """
    shares = {
        name: str(max(1, int(os.environ.get(name) or cpu_count()) // of))
        for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    }
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        from tensorflow import config

        visible = ",".join(str(gpu) for gpu in range(len(config.list_physical_devices("GPU"))))
    if gpus := [gpu for gpu in visible.split(",") if gpu]:
        own = gpus[number::of] or [gpus[number % len(gpus)]]
        shares["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return shares


def lead(oracle: Oracle, *, workers: int, command: Sequence[str], folder: Path) -> None:
    """Have `workers` processes of `command`, and who else joins, run the trials of `oracle`.

    A worker that dies is started again and gets its trial back; a trial that ends its process
    TRIES times is FAILED. What another machine's worker was at is run by others when `folder` has
    had no sign of life of it for SILENCE seconds. No worker outlives this call, however it ends.

    Raises:
        UserError: if the address is taken, or a worker does not get as far as its first trial.

    """
    # It takes TensorFlow along, without which a worker's script may do.
    from keras_tuner.src import protos
    from keras_tuner.src.distribute.oracle_chief import OracleServicer

    host, wanted = os.environ.get(ADDRESS, LOOPBACK), os.environ.get(PORT, ANY_FREE)
    server = grpc.server(ThreadPoolExecutor(max_workers=1), options=[("grpc.so_reuseport", 0)])
    service = OracleServicer(oracle)
    protos.get_service_grpc().add_OracleServicer_to_server(service, server)
    try:
        port = server.add_insecure_port(f"{host}:{wanted}")
    except RuntimeError:
        raise UserError(
            f"{host}:{wanted}: cannot listen there; set {ADDRESS} to an address of this machine "
            f"and {PORT} to a port that is free"
        ) from None
    server.start()
    log.info("tune: %d workers here; the chief listens at %s:%d", workers, host, port)
    # gRPC would ask a proxy for this machine too, and wait an hour for its answer.
    place = {ADDRESS: host, PORT: str(port), "no_grpc_proxy": host}
    running = [
        _Worker(f"local-{number + 1}", command, {**place, **share(number, workers)})
        for number in range(workers)
    ]
    try:
        with hushed(), _ending(running):
            _watch(oracle, service, running, folder)
            _shut_down(oracle, running)
    finally:
        server.stop(None).wait()


class _Worker:
    """A process of this machine that runs trials, and is started as often as it takes."""

    def __init__(self, name: str, command: Sequence[str], variables: dict[str, str]) -> None:
        self.name, self._command, self._variables = name, command, variables
        self.process: subprocess.Popen[str] | None = None
        self._voice: threading.Thread | None = None
        self.deaths_before_a_trial = 0

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command,
            env={**os.environ, ID: self.name, WATCHDOG: "1", **self._variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C is for the chief, who ends its workers.
            start_new_session=True,
        )
        self._voice = threading.Thread(target=self._pass_on, args=(self.process,), daemon=True)
        self._voice.start()

    def _pass_on(self, process: subprocess.Popen[str]) -> None:
        """Say what the worker says, a line at a time, among what the others say."""
        with process:
            for line in process.stdout or ():
                log.info("%s  %s", self.name, line.rstrip())

    def terminate(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def join(self, seconds: float) -> None:
        """Wait for the process and for its last words, so long at most."""
        if self.process is not None and self._voice is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
                self._voice.join(1.0)


@contextlib.contextmanager
def _ending(running: Sequence[_Worker]) -> Iterator[None]:
    """End the processes of `running` with the block."""
    try:
        yield
    finally:
        try:
            for worker in running:
                worker.terminate()
            until = time.monotonic() + GRACE
            for worker in running:
                worker.join(max(0.0, until - time.monotonic()))
        finally:
            for worker in running:
                worker.kill()


def _watch(oracle: Oracle, service: Any, running: Sequence[_Worker], folder: Path) -> None:
    """Keep the workers at work until no trial is left."""
    deaths: Counter[str] = Counter()
    signs = _SignsOfLife(folder)
    while oracle.trouble is None:
        over = service.stop_triggered or len(oracle.end_order) >= oracle.max_trials
        if over and not oracle.ongoing_trials and not oracle.waiting:
            return
        for worker in running:
            if worker.name in oracle.callers:
                worker.deaths_before_a_trial = 0
            if worker.process is None:
                worker.start()
            elif worker.process.poll() is not None:
                _start_again(worker, worker.process.returncode, oracle, deaths)
        for name in list(oracle.ongoing_trials):
            if signs.have_ceased(name):
                log.warning("%s gave no sign of life for %.0f s", name, SILENCE)
                oracle.give_back(name)
        time.sleep(0.2)
    raise oracle.trouble


def _start_again(worker: _Worker, status: int, oracle: Oracle, deaths: Counter[str]) -> None:
    trial = oracle.ongoing_trials.get(worker.name)
    # The one that it had before may still be waiting for it.
    got_it = worker.name in oracle.callers
    oracle.callers.discard(worker.name)
    oracle.tuner_ids.discard(worker.name)
    if trial is None and status == 0:
        # It was told that nothing is left, and another's trial came back since.
        if oracle.waiting:
            worker.start()
        return
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    if trial is None or not got_it:
        worker.deaths_before_a_trial += 1
        if worker.deaths_before_a_trial == TRIES:
            raise UserError(
                f"{worker.name} ended {TRIES} times before it had a trial ({how}); see what it "
                "said above"
            )
        log.warning("%s ended before it had a trial (%s) and starts again", worker.name, how)
    else:
        deaths[trial.trial_id] += 1
        log.warning("%s ended in its trial (%s) and starts again", worker.name, how)
        if deaths[trial.trial_id] == TRIES:
            oracle.fail(worker.name, f"it ended its process {TRIES} times ({how})")
    worker.start()


def _shut_down(oracle: Oracle, running: Sequence[_Worker]) -> None:
    """Let the workers hear that nothing is left, and end by themselves."""
    until = time.monotonic() + SHUTDOWN
    while oracle.tuner_ids and time.monotonic() < until:
        time.sleep(0.1)
    until = time.monotonic() + LAST_SENT
    for worker in running:
        if worker.name not in oracle.tuner_ids:
            worker.join(max(0.0, until - time.monotonic()))


class _SignsOfLife:
    """When the chief last saw a worker touch its file, told by the chief's own clock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[int, float]] = {}

    def have_ceased(self, worker: str) -> bool:
        now = time.monotonic()
        try:
            touched = _sign(self._folder, worker).stat().st_mtime_ns
        except OSError:
            touched = 0
        if worker not in self._seen or self._seen[worker][0] != touched:
            self._seen[worker] = touched, now
        if now - self._seen[worker][1] < SILENCE:
            return False
        del self._seen[worker]
        return True


def _sign(folder: Path, worker: str) -> Path:
    return folder / f"{worker}.alive"


@contextlib.contextmanager
def at_work(worker: str, folder: Path) -> Iterator[None]:
    """Show signs of life in `folder` while the block lasts.

    This process ends as after SIGTERM if its chief, who started it, is gone, or `folder` is.
    """
    done = threading.Event()
    threading.Thread(target=_beat, args=(_sign(folder, worker), done), daemon=True).start()
    if os.environ.get(WATCHDOG):
        threading.Thread(target=_until_nobody_holds_stdin, args=(done,), daemon=True).start()
    try:
        with hushed():
            yield
    finally:
        done.set()


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Drop what KerasTuner prints while the block lasts: what it reloads, and what it packs."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _beat(sign: Path, done: threading.Event) -> None:
    with contextlib.suppress(OSError):
        sign.touch()
    while not done.wait(BEAT):
        try:
            os.utime(sign)
        except FileNotFoundError:
            return _end(done)
        except OSError:
            # A share that is slow, or full, may recover.
            continue
    return None


def _until_nobody_holds_stdin(done: threading.Event) -> None:
    # Not sys.stdin, whose lock Python wants at its end.
    while os.read(0, 1):
        pass
    _end(done)


def _end(done: threading.Event) -> None:
    if not done.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(128 + signal.SIGTERM)
