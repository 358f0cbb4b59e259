"""Give generated bad inputs to what reads them, for some minutes, and count what comes of them.

`python -m tests.soak.inputs --minutes 60`. An input is taken or refused; any other exception, an
input that takes over two minutes, and a process above --gib of memory end it with status 1.
"""

import argparse
import asyncio
import base64
import faulthandler
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from mlflow.pyfunc import scoring_server
from PIL import Image

from emotion_detection.console import UserError
from emotion_detection.data import image
from emotion_detection.data.image import BadImageError, decode, open_image
from emotion_detection.data.ingest import ingest
from emotion_detection.inference import annotate, demo, onnx, predict
from emotion_detection.inference.faces import HaarFinder
from emotion_detection.inference.pictures import Picture
from emotion_detection.inference.predict import Prediction
from emotion_detection.models import saving, serving
from emotion_detection.settings import params
from tests.support.fuzzing import IMAGES, INGEST, ZIPS, anything, changed_params, damaged, texts
from tests.support.sources import Files, tarred, zipped
from tests.support.untrained import untrained

LONGEST = 120.0
EXAMPLES = 40
HAAR = HaarFinder(20)
"""Of each kind, in a round."""


pictures = st.sampled_from(IMAGES) | damaged(IMAGES) | st.just(b"")
parts = st.sampled_from(
    ["train", "Training", "test", "valid", "a", "b", "A", "x.png", "y.png", "images", "labels.csv"]
) | st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=6)
names = st.lists(parts, min_size=1, max_size=5).map("/".join)
cells = st.sampled_from(
    [
        *("file", "label", "emotion", "pixels", "Usage", "split", "train", "Training", "../Test"),
        *("a", "b", "0", "6", "7", "-1", "x.png", "1 2 3 4", "256", '"', "=1", "\0", "é"),
    ]
)
tables = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=9).map(
    lambda lines: "\n".join(lines).encode()
)
SOUND = {
    f"{split}/{name}/{number}.png": IMAGES[(number + len(name + split)) % len(IMAGES)]
    for split in ("train", "test")
    for name in ("a", "bb")
    for number in range(3)
}
trees = st.builds(
    lambda sound, files, table: sound | files | table,
    st.just(SOUND) | st.just({}),
    st.dictionaries(names, pictures, max_size=8),
    st.just({}) | tables.map(lambda data: {"labels.csv": data}),
)


values = st.recursive(
    st.none()
    | st.integers(-1, 256)
    | st.floats()
    | st.text(max_size=6)
    | pictures.map(lambda data: base64.b64encode(data).decode()),
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.dictionaries(st.sampled_from([serving.COLUMN, "x", ""]), inside, max_size=2)
    ),
    max_leaves=12,
)
forms = st.sampled_from(["inputs", "instances", "dataframe_records", "dataframe_split", "params"])
bodies = (
    (st.dictionaries(forms, values, max_size=2) | values).map(
        lambda value: json.dumps(value).encode()
    )
    | pictures
    | damaged((b'{"inputs": ["AA=="]}', b'{"dataframe_records": [{"image": 1}]}', b"image\nAA==\n"))
)
requests = st.tuples(
    st.sampled_from(["/faces", "/faces?whole=1", "/saliency", "/invocations", "/invocations"]),
    st.sampled_from([demo.BODY_TYPE, "application/json", "text/csv", "", "a"]),
    bodies,
)


def answered(app: Any, target: str, kind: str, body: bytes) -> tuple[int, bytes]:
    """Return the status and the body with which the ASGI application answers a POST."""
    path, _, query = target.partition("?")
    headers = {"host": "localhost", "content-type": kind, "content-length": str(len(body))}
    scope = {
        **{"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http"},
        **{"path": path, "raw_path": path.encode(), "query_string": query.encode()},
        **{"client": ("127.0.0.1", 1), "server": ("localhost", 80), "root_path": ""},
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.get_event_loop().run_until_complete(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


class Inputs:
    """What each kind of input is given to, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        network = untrained((16, 16, 3))
        saving.save(network, folder / "sound.keras", ("angry", "happy", "sad"))
        onnx.save(network, folder / "sound.onnx", ("angry", "happy", "sad"))
        self.network = predict.load(str(folder / "sound.keras"))
        self.page = demo.app(self.network, predict.origin("sound.keras"), HAAR)
        mlflow.pyfunc.save_model(
            folder / "served",
            python_model=serving.__file__,
            code_paths=[image.__file__, saving.__file__],
            artifacts={"network": str(folder / "sound.keras")},
            pip_requirements=[],
        )
        self.served = scoring_server.init(mlflow.pyfunc.load_model(str(folder / "served")))
        asyncio.set_event_loop(asyncio.new_event_loop())
        keras, of_onnx = ((folder / f"sound.{kind}").read_bytes() for kind in ("keras", "onnx"))
        self.kinds: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], object]]] = {
            "params": (changed_params() | anything, self.params),
            "YAML": (texts, self.yaml),
            "images": (damaged(IMAGES), lambda data: decode(data, (8, 8), "rgb")),
            "damaged zips": (damaged(ZIPS), lambda data: self.archive("s.zip", data)),
            "zips": (trees.map(zipped), lambda data: self.archive("s.zip", data)),
            "zips in zips": (
                trees.map(zipped).map(lambda data: zipped({"train.zip": data})),
                lambda data: self.archive("s.zip", data),
            ),
            "tars": (trees.map(tarred), lambda data: self.archive("s.tar.gz", data)),
            "folders": (trees, self.tree),
            "tables": (tables, lambda data: self.archive("s.csv", data)),
            "pictures": (pictures, self.picture),
            "Keras files": (damaged((keras,)), lambda data: self.model("m.keras", data)),
            "ONNX files": (damaged((of_onnx,)), lambda data: self.model("m.onnx", data)),
            "HTTP bodies": (requests, self.request),
        }

    def params(self, values: Any) -> None:
        self.yaml(yaml.safe_dump(values, allow_unicode=True).encode())

    def yaml(self, data: bytes) -> None:
        (self.folder / "params.yaml").write_bytes(data)
        params.load(self.folder / "params.yaml")

    def archive(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)
        ingest(self.folder / name, self.folder / "out", INGEST, seed=0)

    def tree(self, files: Files) -> None:
        root = self.folder / "tree"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for name, data in files.items():
            path = Path(os.path.normpath(root / name))
            # What the file system does not take is no input.
            try:
                if path.is_relative_to(root):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
            except (OSError, ValueError):
                continue
        ingest(root, self.folder / "out", INGEST, seed=0)

    def picture(self, data: bytes) -> None:
        picture = Picture("picture", Path("picture.png"), lambda: open_image(data))
        for finder in (HAAR, None):
            for found in predict.predict([picture], self.network, finder, keep=True):
                if isinstance(found, Prediction) and found.image is not None:
                    annotate.annotated(found.image, found.faces, self.network.classes)

    def model(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)
        network = predict.load(str(self.folder / name))
        shape = (2, *network.image_size, 3 if network.color_mode == "rgb" else 1)
        network.probabilities(np.zeros(shape, np.uint8))

    def request(self, request: tuple[str, str, bytes]) -> None:
        app = self.served if request[0] == "/invocations" else self.page
        status, text = answered(app, *request)
        # MLflow itself answers a CSV file that it cannot read with where in its own code it failed.
        own = (b"serving.py", b"image.py", b"saving.py", str(self.folder).encode())
        if status >= 500 or any(name in text for name in own):
            raise AssertionError(f"{status}: {text[:2000]!r}")
        if status >= 400:
            raise UserError(str(status))


def tried(act: Callable[[Any], object], value: Any) -> str:
    """Return what comes of an input."""
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    try:
        act(value)
    except (UserError, BadImageError):
        return "refused"
    finally:
        faulthandler.cancel_dump_traceback_later()
    return "taken"


def a_round(kind: str, inputs: Inputs, number: int, counts: Counter[tuple[str, str]]) -> None:
    """Try `EXAMPLES` inputs of a kind, others than in any round before."""
    strategy, act = inputs.kinds[kind]

    @seed(number)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def examples(value: Any) -> None:
        try:
            counts[kind, tried(act, value)] += 1
        except Exception:
            counts[kind, "failed"] += 1
            print(f"{kind}: {value!r:.2000}\n{traceback.format_exc()}", flush=True)

    examples()


def main() -> None:
    """Try inputs until the time is over, and print how many of each kind were taken or refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--gib", type=float, default=3, help="of memory, at most")
    arguments = parser.parse_args()
    logging.disable()
    Image.init()
    end, counts, number = time.monotonic() + 60 * arguments.minutes, Counter[tuple[str, str]](), 0
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs(Path(folder))
        while time.monotonic() < end:
            number += 1
            for kind in inputs.kinds:
                a_round(kind, inputs, number, counts)
    for kind in inputs.kinds:
        print(f"{kind:14}", *(f"{counts[kind, o]:7,} {o}" for o in ("taken", "refused", "failed")))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{number} rounds, at most {peak:.1f} GiB")
    sys.exit(peak > arguments.gib or any(outcome == "failed" for _, outcome in counts))


if __name__ == "__main__":
    main()
