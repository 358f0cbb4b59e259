"""How fast a network scores images: arrays, files, and over HTTP."""

import base64
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import requests
from PIL import Image

from benchmarks import ours
from benchmarks.material import NOTEBOOK, SEED, Material
from benchmarks.report import Section
from benchmarks.turns import Turn, alone, measure, unshared
from emotion_detection.data.dataset import CHANNELS, Dataset
from emotion_detection.inference import onnx
from emotion_detection.models import saving
from emotion_detection.models.layers import plain
from tests.support.servers import free_port

IMAGES = 2_048
FILES = (1_000, 10_000)
BAD = 10
"""Of the files: empty, cut short and no image in turn."""
REQUESTS = 1_000
COMMAND = (sys.executable, "-m", "emotion_detection.cli", "predict")
# The steps of the command, timed.
COLD = """
import json, sys, time
times = [time.perf_counter()]
from pathlib import Path
from emotion_detection.inference import detector, pictures, predict
times.append(time.perf_counter())
from emotion_detection.models import saving
times.append(time.perf_counter())
network = predict.load(sys.argv[1], None)
times.append(time.perf_counter())
found = pictures.listed([Path(sys.argv[2])])
detector.load("haar", network.classes)(found[0].open())
times.append(time.perf_counter())
list(predict.predict(found, network, None, keep=False))
times.append(time.perf_counter())
steps = (
    *("NumPy, OpenCV and Pillow are imported", "TensorFlow and Keras are"),
    *("the model is loaded and compiled", "the face is found", "it is labelled"),
)
print(json.dumps(dict(zip(steps, (b - a for a, b in zip(times, times[1:]))))))
"""


def _plain(turn: Turn, model: str, images: np.ndarray) -> None:
    network = keras.models.load_model(model, compile=False)
    while True:
        turn.begin()
        network.predict(images, batch_size=32, verbose=0)
        turn.end(len(images))


def _label(model: Path, folder: Path, output: Path) -> tuple[int, int, float, float]:
    """Label `folder` by the command; return files labelled and left out, seconds, and peak GiB."""
    began = time.perf_counter()
    with output.open("w") as out, output.with_suffix(".log").open("w") as err:
        running = subprocess.Popen(
            [*COMMAND, folder, "--model", model, "--format", "csv"], stdout=out, stderr=err
        )
        peak = unshared(psutil.Process(running.pid), until=lambda: running.poll() is not None)
    seconds = time.perf_counter() - began
    if running.returncode:
        raise RuntimeError(f"emotion-detection predict ended with {running.returncode}")
    told = output.with_suffix(".log").read_text().count(str(folder))
    return len(output.read_text().splitlines()) - 1, told, seconds, peak / 2**30


def _cold(model: Path, file: Path) -> dict[str, float]:
    """Label one file in a new process; return the seconds of each step."""
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


def _log(root: Path, packed: Path, model: str) -> None:
    """Make the network the champion of an MLflow store in `root`."""
    os.environ["DVC_ROOT"] = str(root)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    from emotion_detection.tracking import registry, runs

    dataset = Dataset.open(packed)
    with runs.run("train", note="", dataset=dataset, params={}, tags={}) as run_id:
        network, classes = saving.load(Path(model))
        assert classes is not None
        runs.log_model(network, classes)
    candidate = registry.candidate(run_id)
    registry.promote(registry.register(candidate, dataset, scores={}, decision="measured"))


def _wrong(image: bytes) -> dict[str, Any]:
    """Return wrong requests by what is wrong with them."""

    def text(data: bytes) -> str:
        return base64.b64encode(data).decode()

    return {
        "no base64": {"inputs": ["%"]},
        "no image": {"inputs": [text(b"no image")]},
        "an image cut short": {"inputs": [text(image[: len(image) // 2])]},
        "another key": {"dataframe_records": [{"img": text(image)}]},
        "nothing": {"inputs": []},
        "pixels of another size": {"instances": [[[[0]]]]},
        "a format of its own": {"pixels": []},
    }


def _serve(root: Path, file: Path) -> tuple[float, list[float], list[tuple[str, int, str]]]:
    """Serve the champion in `root` and send it requests with curl.

    Returns the seconds until it answers, the milliseconds of each of REQUESTS, and for each wrong
    request what is wrong with it, the status and the message.
    """
    port = str(free_port())
    began = time.perf_counter()
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "models", "serve"),
            *("-m", "models:/emotion-detection@champion", "--env-manager", "local"),
            *("--port", port),
        ],
        env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{(root / 'mlflow.db').as_posix()}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    body = root / "request.json"

    def ask(request: Any) -> tuple[str, int, float]:
        body.write_text(json.dumps(request))
        done = subprocess.run(
            [
                *("curl", "--silent", "--write-out", r"\n%{http_code} %{time_total}"),
                *("-H", "Content-Type: application/json", "-d", f"@{body}"),
                f"http://127.0.0.1:{port}/invocations",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        answer, _, last = done.stdout.rpartition("\n")
        status, seconds = last.split()
        return answer, int(status), 1000 * float(seconds)

    try:
        while True:
            if server.poll() is not None:
                raise RuntimeError(f"mlflow models serve ended with {server.returncode}")
            try:
                requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(0.1)
        start = time.perf_counter() - began
        image = file.read_bytes()
        right = {"dataframe_records": [{"image": base64.b64encode(image).decode()}]}
        milliseconds = []
        for _ in range(REQUESTS):
            answer, status, took = ask(right)
            if status != 200:
                raise RuntimeError(f"mlflow models serve answers with {status}: {answer}")
            milliseconds.append(took)
        wrong = []
        for what, request in _wrong(image).items():
            answer, status, _ = ask(request)
            wrong.append((what, status, json.loads(answer)["message"]))
        return start, milliseconds, wrong
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _export(model: str, packed: Path, path: str) -> tuple[int, float]:
    """Write the network as ONNX; return the number of test images and the largest difference."""
    network, classes = saving.load(Path(model))
    assert classes is not None
    onnx.save(network, Path(path), classes)
    by_onnx, _ = onnx.load(Path(path))
    dataset = Dataset.open(packed)
    rows = dataset.is_test.nonzero()[0]
    by_keras = saving.compiled(network)
    return len(rows), onnx.largest_difference(by_keras, by_onnx, dataset.images, rows)


def _score(turn: Turn, model: str, images: np.ndarray, batch_size: int) -> None:
    """Score `images` for ever with a .keras or .onnx file."""
    if model.endswith(".onnx"):
        network: onnx.Probabilities = onnx.load(Path(model))[0]
    else:
        network = saving.compiled(saving.load(Path(model))[0])
    while True:
        turn.begin()
        for start in range(0, len(images), batch_size):
            network(images[start : start + batch_size])
        turn.end(len(images))


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
    saving.save(plain(ours.make(NOTEBOOK, dataset)), path, dataset.classes)
    test = dataset.is_test.nonzero()[0][:IMAGES]
    rates = measure(
        {
            "evaluate": partial(ours.score, packed=material.packed, model=path),
            "`model.predict` of an array, batches of 32": partial(
                _plain, model=str(path), images=np.asarray(dataset.images[test])
            ),
        },
        turns=turns,
    )
    section = Section("Scoring")
    section.say(f"The notebook's network on {len(test):,} test images, in float32:")
    section.table(("", "images/s"), [(name, str(rate)) for name, rate in rates.items()])
    if material.model:
        path = material.model
    network = saving.load(path)[0]
    section.say(
        f"From here on a network of {network.count_params():,} parameters "
        f"({'trained' if material.model else 'the same, untrained'}), which sees "
        f"{'×'.join(map(str, network.input_shape[1:]))} pixels."
    )
    modes = {count: mode for mode, count in CHANNELS.items()}
    packed = material.pack(
        material.scratch / "dataset-of-the-network", modes[network.input_shape[-1]]
    )
    onnx = material.scratch / "model.onnx"
    root = material.scratch / "served"
    root.mkdir()
    alone(_log, root=root, packed=packed, model=str(path))
    _say_files(section, material, path)
    _say_onnx(section, packed, path, onnx, turns)
    _say_cold(section, material, path, onnx, root, turns)
    _say_serving(section, material, root)
    return section


def _say_files(section: Section, material: Material, model: Path) -> None:
    rows = []
    for count in FILES:
        labelled, told, seconds, peak = _label(
            model, _files(material, count), material.scratch / f"{count}.csv"
        )
        rate = f"{count / seconds:,.0f}"
        rows.append((f"{count:,}", f"{labelled:,}", told, f"{seconds:.1f}", rate, f"{peak:.2f}"))
    section.say(
        "`emotion-detection predict` on a folder of cropped faces; the seconds include its start, "
        "the memory is the peak of private resident memory, with TensorFlow's:"
    )
    section.table(("files", "labelled", "bad, and reported", "seconds", "files/s", "GiB"), rows)


def _say_onnx(section: Section, packed: Path, model: Path, onnx: Path, turns: int) -> None:
    count, difference = alone(_export, model=str(model), packed=packed, path=str(onnx)).value
    images = np.asarray(Dataset.open(packed).images[:IMAGES])
    sizes = {1: images[: IMAGES // 4], 256: images}
    rates = measure(
        {
            (name, size): partial(_score, model=str(of), images=some, batch_size=size)
            for name, of in (("Keras, compiled", model), ("ONNX", onnx))
            for size, some in sizes.items()
        },
        turns=turns,
    )
    section.say(
        f"The probabilities of the ONNX file and of Keras differ by at most {difference:.1e} over "
        f"all {count:,} test images. Images a second:"
    )
    section.table(
        ("", *(f"batches of {size}" for size in sizes)),
        [
            (name, *(str(rates[name, size]) for size in sizes))
            for name in dict.fromkeys(name for name, _ in rates)
        ],
    )


def _say_cold(
    section: Section, material: Material, model: Path, onnx: Path, root: Path, turns: int
) -> None:
    file = next(path for path in sorted(material.folder.rglob("*")) if path.is_file())
    photo = material.scratch / "photo.png"
    canvas = Image.new("L", (640, 480), "white")
    with Image.open(file) as face:
        canvas.paste(face.convert("L").resize((240, 240)), (200, 120))
    canvas.save(photo)

    def seconds(*options: str | Path) -> float:
        began = time.perf_counter()
        # Of a face that is missed it says so, and takes as long.
        subprocess.run(
            [*COMMAND, photo, *options],
            cwd=root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return time.perf_counter() - began

    section.say(
        f"`emotion-detection predict` of one photo of 640×480, in all (medians of {turns}):"
    )
    section.table(
        ("network", "seconds"),
        [
            (name, f"{statistics.median(seconds(*options) for _ in range(turns)):.1f}")
            for name, options in (
                ("a .keras file", ("--model", model.resolve())),
                ("the champion in MLflow", ()),
                ("a .onnx file", ("--model", onnx)),
            )
        ],
    )
    cold = [_cold(model, photo) for _ in range(turns)]
    section.say("Where it goes with a .keras file:")
    section.table(
        ("until", "seconds"),
        [(step, f"{statistics.median(of[step] for of in cold):.2f}") for step in cold[0]],
    )


def _say_serving(section: Section, material: Material, root: Path) -> None:
    file = next(path for path in sorted(material.folder.rglob("*")) if path.is_file())
    start, milliseconds, wrong = _serve(root, file)
    section.say(
        f"`mlflow models serve` answers {start:.0f} s after its start. {REQUESTS:,} requests of "
        "one image as base64, one after the other, each by a curl of its own, from this machine: "
        f"{np.percentile(milliseconds, 50):.1f} ms at the median, "
        f"{np.percentile(milliseconds, 99):.1f} ms at the 99th percentile, "
        f"{max(milliseconds):.1f} ms at most. What wrong ones get:"
    )
    section.table(
        ("request", "status", "message"),
        # MLflow's own ones go on for a paragraph.
        [(what, status, f"`{message.partition('. ')[0]}`") for what, status, message in wrong],
    )
