"""How fast a trained network scores images: arrays, files, and over HTTP."""

import base64
import dataclasses
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import keras
import numpy as np
import requests

from benchmarks import ours
from benchmarks.material import NOTEBOOK, SEED, Material
from benchmarks.report import Section
from benchmarks.turns import Turn, alone, measure
from emotion_detection import modelfile
from emotion_detection.dataset import Dataset
from emotion_detection.network import export

FILES = (1_000, 10_000)
BAD = 10
"""Of the files: empty, cut short and no image in turn."""
REQUESTS = 1_000
# What the command does, with a look at the clock after each step.
COLD = """
import json, sys, time
times = [time.perf_counter()]
from pathlib import Path
from emotion_detection import predict
times.append(time.perf_counter())
import tensorflow
times.append(time.perf_counter())
network = predict.load(sys.argv[1], None)
times.append(time.perf_counter())
list(predict.predict(predict.pictures([Path(sys.argv[2])]), network, detect=True, keep=False))
times.append(time.perf_counter())
steps = (
    *("NumPy, OpenCV and Pillow are imported", "TensorFlow and Keras are"),
    *("the model is loaded", "the face is labelled"),
)
print(json.dumps(dict(zip(steps, (b - a for a, b in zip(times, times[1:]))))))
"""
# What is measured is the way to the network, so it is a small one.
SMALL = dataclasses.replace(NOTEBOOK, filters=(8, 8, 8, 8))


def _plain(turn: Turn, model: str, images: np.ndarray) -> None:
    network = keras.models.load_model(model, compile=False)
    while True:
        turn.begin()
        network.predict(images, batch_size=32, verbose=0)
        turn.end(len(images))


def _label(model: str, folder: Path) -> tuple[int, int, float]:
    """Label the files of `folder`; gives how many were labelled, left out, and the seconds."""
    from emotion_detection import predict
    from emotion_detection.dataset import BadFile

    network = predict.load(model, None)
    began = time.perf_counter()
    found = predict.pictures([folder])
    results = predict.predict(found, network, detect=True, keep=False)
    bad = sum(isinstance(result, BadFile) for result in results)
    return len(found) - bad, bad, time.perf_counter() - began


def _cold(model: Path, file: Path) -> dict[str, float]:
    """Label one file in a fresh Python; gives the seconds until it has done each step."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", COLD, str(model), str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    whole = time.perf_counter() - began
    steps: dict[str, float] = json.loads(done.stdout)
    return {"Python has started and ended": whole - sum(steps.values()), **steps}


def _log(root: Path, packed: Path, model: str) -> str:
    """Log the network to an MLflow store in `root`; gives the model's URI."""
    os.environ["DVC_ROOT"] = str(root)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    from emotion_detection import tracking

    dataset = Dataset.open(packed)
    with tracking.run("train", note="", dataset=dataset, params={}, tags={}) as run_id:
        network, classes = modelfile.load(Path(model))
        assert classes is not None
        tracking.log_model(network, np.asarray(dataset.images[:2]), classes)
    return f"runs:/{run_id}/{tracking.MODEL_NAME}"


def _serve(root: Path, uri: str, image: bytes) -> tuple[list[float], str]:
    """Serve a model; gives the milliseconds of each of REQUESTS, and the answer to a wrong one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "models", "serve"),
            *("-m", uri, "--env-manager", "local", "--port", port),
        ],
        env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{(root / 'mlflow.db').as_posix()}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        while True:
            if server.poll() is not None:
                raise RuntimeError(f"mlflow models serve ended with {server.returncode}")
            try:
                requests.get(f"{address}/ping", timeout=5).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(0.2)
        request = {"inputs": [base64.b64encode(image).decode()]}
        milliseconds = []
        with requests.Session() as session:
            for _ in range(REQUESTS):
                began = time.perf_counter()
                answer = session.post(f"{address}/invocations", json=request, timeout=60)
                answer.raise_for_status()
                milliseconds.append(1000 * (time.perf_counter() - began))
            wrong = session.post(f"{address}/invocations", json={"inputs": ["%"]}, timeout=60)
        return milliseconds, f"{wrong.status_code} and `{wrong.json()['message']}`"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _files(material: Material, count: int) -> Path:
    """Make a folder of `count` image files, BAD of them bad."""
    folder = material.scratch / f"files-{count}"
    folder.mkdir()
    found = sorted(path for path in material.folder.rglob("*") if path.is_file())
    rows = np.resize(np.random.default_rng(SEED).permutation(len(found)), count - BAD)
    for number, row in enumerate(rows):
        shutil.copy(found[row], folder / f"{number}{found[row].suffix}")
    sound = found[0].read_bytes()
    for number in range(BAD):
        content = (b"", sound[: len(sound) // 2], b"no image")[number % 3]
        (folder / f"bad{number}.png").write_bytes(content)
    return folder


def run(material: Material, turns: int) -> Section:
    """Measure and describe."""
    dataset = material.dataset
    path = material.scratch / "model.keras"
    modelfile.save(export(ours.make(NOTEBOOK, dataset), NOTEBOOK), path, dataset.classes)
    small = material.scratch / "small.keras"
    modelfile.save(export(ours.make(SMALL, dataset), SMALL), small, dataset.classes)
    test = dataset.is_test.nonzero()[0]
    rates = measure(
        {
            "evaluate, batches of 256": partial(
                ours.score, packed=material.packed, model=path, batch_size=256
            ),
            "`model.predict` of an array, batches of 32": partial(
                _plain, model=str(path), images=np.asarray(dataset.images[test])
            ),
        },
        turns=turns,
    )
    section = Section("Scoring")
    section.say(f"The notebook's network on {len(test):,} test images, in float32:")
    section.table(("", "images/s"), [(name, str(rate)) for name, rate in rates.items()])
    _say_files(section, material, small)
    _say_cold(section, material, path, turns)
    _say_serving(section, material, path)
    return section


def _say_files(section: Section, material: Material, model: Path) -> None:
    rows = []
    for count in FILES:
        done = alone(_label, model=str(model), folder=_files(material, count))
        labelled, bad, seconds = done.value
        rows.append(
            (f"{count:,}", f"{labelled:,}", bad, f"{count / seconds:,.0f}", f"{done.peak_gib:.2f}")
        )
    section.say(
        "`emotion-detection predict` on a folder of files, with a network of 8 filters a block; "
        "memory is private and resident, at its highest, TensorFlow's own in it:"
    )
    section.table(("files", "labelled", "bad, and told", "files/s", "GiB"), rows)


def _say_cold(section: Section, material: Material, model: Path, turns: int) -> None:
    file = next(path for path in sorted(material.folder.rglob("*")) if path.is_file())
    cold = [_cold(model, file) for _ in range(turns)]
    section.say(
        "What `emotion-detection predict` does on one file, in a fresh Python, "
        f"{statistics.median(sum(steps.values()) for steps in cold):.1f} s in all (medians of "
        f"{turns}):"
    )
    section.table(
        ("until", "seconds"),
        [(step, f"{statistics.median(of[step] for of in cold):.2f}") for step in cold[0]],
    )


def _say_serving(section: Section, material: Material, model: Path) -> None:
    root = material.scratch / "served"
    root.mkdir()
    uri = alone(_log, root=root, packed=material.packed, model=str(model)).value
    file = next(path for path in sorted(material.folder.rglob("*")) if path.is_file())
    milliseconds, wrong = _serve(root, uri, file.read_bytes())
    section.say(
        f"`mlflow models serve` with the notebook's network, {REQUESTS:,} requests of one image as "
        "base64, one after the other, from this machine: "
        f"{np.percentile(milliseconds, 50):.1f} ms at the median, "
        f"{np.percentile(milliseconds, 99):.1f} ms at the 99th percentile. A request that is no "
        f"base64 gets {wrong}."
    )
