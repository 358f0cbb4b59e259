"""A search in several processes, which Ray places on this machine or on a cluster.

This process, the driver, has the oracle and alone speaks to MLflow. It tells a trial after each
epoch whether to go on, and keeps its checkpoint, so that no process needs its folder.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import os
import platform
import signal
import socket
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import cpu_count

import emotion_detection
from emotion_detection.console import UserError, first_line, log, quiet
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.models.hardware import be_deterministic
from emotion_detection.tracking.provenance import installed
from emotion_detection.training.checkpoints import Checkpoints
from emotion_detection.tuning.post import Post
from emotion_detection.tuning.task import Outcome, SearchError, Told, TrainTrial, Trial
from emotion_detection.tuning.trial import train_trial

ADDRESS = "RAY_ADDRESS"

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, it has a Ray of this machine listen on 127.0.0.1 alone, as it does on macOS anyway."""

TRIES = 3
"""How often a trial may end its process."""

LONGEST_ANSWER = 10.0
"""Seconds that the cluster's address may take to answer."""

BEAT = 0.5
"""Seconds between two looks whether the search is interrupted."""

THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")


@contextlib.contextmanager
def placed(
    workers: int, dataset: Dataset, rows: Split, *, precision: str, seed: int | None = None
) -> Iterator[TrainTrial]:
    """Yield what trains a trial on `rows` of `dataset`: in this process if `workers` is 1.

    Otherwise in processes that Ray places, each with its share of the cores and GPUs: on the
    cluster at RAY_ADDRESS, and without that in processes of this machine, which end with the
    block. With a `seed` they are deterministic, by it.

    Raises:
        UserError: if Ray is not installed, its address does not answer, or a node has other
            versions than this process.

    """
    if workers == 1:
        yield partial(train_trial, dataset=dataset, rows=rows, precision=precision)
        return
    with _connected(workers) as ray:
        share = _share(ray, workers)
        log.info("tune: %d processes with %s", workers, _shown(share))
        assert isinstance(dataset.images, np.memmap)
        data: Dataset | Path = Path(str(dataset.images.filename)).parent
        if ADDRESS in os.environ:
            _check_versions(ray)
            data = dataclasses.replace(dataset, images=np.asarray(dataset.images))
        try:
            common = ray.put((rows, precision, seed)), ray.put(data), int(share["num_cpus"])
        except ray.exceptions.RayError as error:
            raise UserError(
                f"the data set does not fit in Ray's object store ({first_line(error)}); start Ray "
                "with a larger --object-store-memory"
            ) from error
        post = ray.remote(Post).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        run = ray.remote(_train).options(**share, max_retries=TRIES - 1)
        yield partial(_lead, ray, run, post, common)


# Place


@contextlib.contextmanager
def _connected(workers: int) -> Iterator[Any]:
    """Yield Ray, connected, with what its processes print kept away."""
    address = os.environ.get(ADDRESS)
    if address is None:
        os.environ.setdefault(LOOPBACK, "0")
    # Without this Ray starts what takes too much memory again for ever.
    os.environ.setdefault("RAY_task_oom_retries", str(TRIES - 1))
    try:
        import ray
    except ImportError:
        raise UserError(
            f"tune.workers = {workers} needs Ray: `make .venv/.extras` installs it; or set it to 1"
        ) from None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        cores = int(os.environ.get(THREADS[0]) or cpu_count())
        options |= {"num_cpus": max(cores, workers), "include_dashboard": False}
    else:
        _ask(address)
        code = Path(emotion_detection.__file__).parent
        options["runtime_env"] = {"py_modules": [str(code)]}
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        with _hushed():
            try:
                ray.init(address=address or "local", **options)
            except (ConnectionError, RuntimeError, ValueError) as error:
                place = "this machine" if address is None else f"{ADDRESS} = {address}"
                raise UserError(f"{place}: Ray does not start ({first_line(error)})") from error
            # Ray has taken it.
            signal.signal(signal.SIGTERM, terminate)
            yield ray
    finally:
        # It tells of tasks that nobody waits for any more.
        with quiet():
            ray.shutdown()


def _ask(address: str) -> None:
    """Raise a UserError if nobody answers at `address`, for which Ray would wait five minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), LONGEST_ANSWER).close()
    except OSError as error:
        raise UserError(
            f"{ADDRESS} = {address}: no answer ({error.strerror or error}); start Ray there, or "
            "unset it for processes of this machine"
        ) from None


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Drop what Ray prints while the block lasts; it is in Ray's own logs too."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def versions() -> dict[str, str]:
    """Return the versions that all processes of a search share, by name."""
    packages = (installed(name).partition("==") for name in ("tensorflow", "keras", "keras-tuner"))
    own = {name.removesuffix("-cpu"): version for name, _, version in packages}
    return {"Python": platform.python_version().rpartition(".")[0], **own}


def _check_versions(ray: Any) -> None:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    asked = ray.remote(versions)
    answers = {
        node["NodeManagerHostname"]: asked.options(
            num_cpus=0, scheduling_strategy=On(node["NodeID"], soft=False)
        ).remote()
        for node in ray.nodes()
        if node["Alive"]
    }
    for name, answer in answers.items():
        try:
            theirs = ray.get(answer)
        except ray.exceptions.RayError as error:
            raise UserError(f"node {name}: cannot run this code ({_reason(error)})") from error
        for package, version in versions().items():
            if theirs[package] != version:
                raise UserError(
                    f"node {name}: has {package} {theirs[package]}, and this machine {version}; "
                    "install the same there"
                )


def _share(ray: Any, workers: int) -> dict[str, float]:
    """Return the cores and GPUs of one of `workers` trials, which has them on one node."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1] or [1]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    share: dict[str, float] = {"num_cpus": max(1, min(*cores, sum(cores) // workers))}
    if gpus:
        # Several share one, and none has a part of two.
        share["num_gpus"] = gpus // workers or 1 / math.ceil(workers / gpus)
    return share


def _shown(share: dict[str, float]) -> str:
    cores, gpus = share["num_cpus"], share.get("num_gpus")
    words = "1 core" if cores == 1 else f"{cores} cores"
    return f"{words} each" if gpus is None else f"{words} and {gpus:.3g} GPUs each"


# A trial


def _lead(
    ray: Any, run: Any, post: Any, common: Sequence[Any], trial: Trial, told: Told
) -> Outcome:
    """Have a process train `trial`, and take its epochs; Ray starts it again if it dies.

    Raises:
        SearchError: if Ray itself fails.

    """
    name, checkpoints, begun = uuid.uuid4().hex, Checkpoints(trial.folder), False
    plain = dataclasses.replace(
        trial, stop=_unasked, interrupted=bool, known=None, folder=Path(), standing=""
    )
    done = run.remote(name, plain, post, *common)
    try:
        hear = post.hear.remote(name)
        while True:
            ready, _ = ray.wait([hear, done], timeout=BEAT)
            if trial.interrupted():
                raise KeyboardInterrupt
            if hear in ready:
                lines, news = ray.get(hear)
                _log(lines)
                # It waits for an answer, and ends if it cannot be given.
                answer: Any = True
                try:
                    if news is None:
                        if begun:
                            log.warning("%s: its process ended, and it starts again", trial.name)
                        begun, answer = True, checkpoints.pack()
                    else:
                        epochs, packed = news
                        checkpoints.unpack(packed)
                        answer = told(epochs)
                finally:
                    post.answer.remote(name, answer)
                hear = post.hear.remote(name)
            elif ready:
                lines, outcome = ray.get(done)
                _log(lines)
                return outcome
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        raise RuntimeError(f"it ended its process {TRIES} times") from None
    except ray.exceptions.RayError as error:
        raise SearchError(f"Ray: {_reason(error)}") from error


def _unasked(rows: object) -> str:
    return ""


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def _log(lines: Sequence[tuple[int, str]]) -> None:
    for level, line in lines:
        log.log(level, "%s", line)


class _Lines(logging.Handler):
    """Keeps log lines, for the driver to log them."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((record.levelno, record.getMessage()))

    def take(self) -> list[tuple[int, str]]:
        taken, self._lines = self._lines, []
        return taken


@functools.cache
def _opened(path: Path) -> Dataset:
    return Dataset.open(path)


def _train(
    name: str,
    trial: Trial,
    post: Any,
    settings: tuple[Split, str, int | None],
    data: Dataset | Path,
    cores: int,
) -> tuple[list[tuple[int, str]], Outcome]:
    """Train `trial` in this process, one of Ray's, and return its log lines and its outcome."""
    import ray

    # TensorFlow reads them when it first computes.
    os.environ |= dict.fromkeys(THREADS, str(cores))
    rows, precision, seed = settings
    if seed is not None:
        be_deterministic(seed)
    lines = _Lines()
    log.setLevel(logging.INFO)
    log.handlers[:] = [lines]
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        kept = ray.get(post.tell.remote(name, (lines.take(), None)))
        checkpoints.unpack(kept)
        sent = set(kept)

        def told(epochs: Sequence[Any]) -> bool:
            packed = checkpoints.pack(without=sent)
            sent.update(packed)
            return ray.get(post.tell.remote(name, (lines.take(), (list(epochs), packed))))

        outcome = train_trial(
            dataclasses.replace(trial, folder=Path(folder)),
            told,
            dataset=_opened(data) if isinstance(data, Path) else data,
            rows=rows,
            precision=precision,
        )
    return lines.take(), outcome
