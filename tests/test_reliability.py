"""docs/reference/errors.md says what bad input comes to: its table, row by row."""

import importlib
import io
import logging
import re
import shutil
import signal
import sqlite3
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from emotion_detection import cli, console, paths
from emotion_detection.files import write_json
from tests.support.stores import alone, put_empty_store

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "reference" / "errors.md"

Case = Callable[["Place"], Callable[[], None]]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    """Name a case as its row of the table does. It makes the bad input and gives what to run."""

    def keep(function: Case) -> Case:
        CASES[name] = function
        return function

    return keep


def rows() -> dict[str, tuple[str, int]]:
    """Return what is printed and the exit status, by what is wrong, as the document says."""
    found = re.findall(r"^\| ([^|]+) \| `` (.+) `` \| (\d+) \|$", TABLE.read_text(), re.MULTILINE)
    return {name: (printed, int(status)) for name, printed, status in found}


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int, side: int = 16) -> bytes:
    return encoded(
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8))
    )


def faces(each: int = 3) -> dict[str, bytes]:
    names = [
        f"{split}/{name}/im{number}.png"
        for split in ("train", "test")
        for name in ("angry", "happy")
        for number in range(each)
    ]
    return {name: png(seed) for seed, name in enumerate(names)}


class Place:
    """A project's folder, of which the params, the source and the dataset can be changed."""

    def __init__(self, root: Path, toy: Path) -> None:
        self.root, self.toy = root, toy
        self.params = yaml.safe_load((ROOT / "params.yaml").read_text())
        self.set("ingest.image_size", [16, 16])
        self.set("ingest.max_bad_fraction", 0.5)
        self.set("network.filters", [4])
        self.set("network.kernel_sizes", [3])
        self.params["tune"]["space"] = {"network.filters": [[4]]}
        self.set("tune.trials", 1)
        self.set("tune.epochs", 1)
        self.set("train.batch_size", 8)
        self.set("train.epochs", 1)

    def set(self, key: str, value: object) -> None:
        section, _, name = key.rpartition(".")
        (self.params[section] if section else self.params)[name] = value
        (self.root / "params.yaml").write_text(yaml.safe_dump(self.params, sort_keys=False))

    @staticmethod
    def stage(name: str) -> Callable[[], None]:
        main: Callable[[], None] = importlib.import_module(f"stages.{name}").main
        return main

    def folder(self, files: dict[str, bytes]) -> Callable[[], None]:
        for name, data in files.items():
            path = self.root / "faces" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.set("ingest.source", "faces")
        return self.stage("ingest")

    def zip(self, files: dict[str, bytes]) -> zipfile.ZipFile:
        self.set("ingest.source", "faces.zip")
        file = zipfile.ZipFile(self.root / "faces.zip", "w", zipfile.ZIP_DEFLATED)
        for name, data in files.items():
            file.writestr(name, data)
        return file

    def dataset(self) -> Path:
        shutil.copytree(self.toy, self.root / paths.DATASET)
        return self.root / paths.DATASET

    def model(self, data: bytes, name: Path = paths.MODEL) -> None:
        (self.root / name).parent.mkdir(parents=True)
        (self.root / name).write_bytes(data)

    def outputs(self) -> dict[Path, bytes]:
        """Return the files that DVC tracks, or would: what lies in hidden folders goes on later."""
        return {
            path: path.read_bytes()
            for folder in ("data", "models", "reports")
            for path in (self.root / folder).rglob("[!.]*")
            if path.is_file()
            and paths.STATE.name not in path.parts
            # It grows while a training runs.
            and path.name != "history.csv"
        }

    def chosen(self) -> None:
        network = {f"network.{name}": value for name, value in self.params["network"].items()}
        write_json(self.root / paths.HYPERPARAMETERS, {"drawn": {}, "params": network})

    def trained(self) -> None:
        self.chosen()
        (self.root / paths.TRAIN).mkdir(parents=True)


def one_image(name: str, data: bytes) -> Case:
    return lambda place: place.folder(faces() | {f"train/angry/{name}": data})


def header_of(width: int, height: int) -> bytes:
    """Return a PNG that says to have so many pixels, and has none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("L", (12, 16)), "JPEG", exif=exif)


CLUTTER = dict.fromkeys(
    ("__MACOSX/train/angry/._a.png", "train/.DS_Store", "train/angry/Thumbs.db"), b"?"
)
FRAMES = [Image.new("L", (16, 16), shade) for shade in (0, 90, 180)]

CASES |= {
    "an empty image file": one_image("a.png", b""),
    "a truncated image": one_image("a.png", png(90, 64)[:-900]),
    "an image without pixels": one_image("a.png", header_of(0, 0)),
    "an image of absurd size": one_image("a.png", header_of(60_000, 60_000)),
    "a text file named as an image": one_image("a.png", b"Not found"),
    "an image named as another kind": one_image("a.jpg", png(90)),
    "a CMYK image": one_image("a.jpg", encoded(Image.new("CMYK", (16, 16)), "JPEG")),
    "a 16-bit image": one_image(
        "a.png", encoded(Image.fromarray(np.full((16, 16), 999, np.uint16)))
    ),
    "an animation": one_image(
        "a.gif", encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])
    ),
    "an image turned by its EXIF": one_image("a.jpg", turned()),
    "more bad images than allowed": lambda place: place.folder(
        faces() | {f"train/angry/bad{n:02d}.png": b"" for n in range(20)}
    ),
    "a class named with spaces": lambda place: place.folder(
        {name.replace("angry", "very angry"): data for name, data in faces().items()}
    ),
    "a class named in any script": lambda place: place.folder(
        {name.replace("angry", "怒り"): data for name, data in faces().items()}
    ),
    "a class folder whose name is not UTF-8": lambda place: place.folder(
        faces() | {"train/caf\udce9/a.png": png(90)}
    ),
    "a class folder named with a dot before": lambda place: place.folder(
        faces() | {"train/.hidden/a.png": png(90)}
    ),
    "`__MACOSX`, `.DS_Store`, `Thumbs.db`": lambda place: place.folder(faces() | CLUTTER),
    "one class alone": lambda place: place.folder(
        {name: data for name, data in faces().items() if "happy" not in name}
    ),
    "a class in test alone": lambda place: place.folder(faces() | {"test/sad/a.png": png(90)}),
    "a split without classes": lambda place: place.folder({"train/readme.txt": b""}),
    "test images without classes": lambda place: place.folder(
        {name: data for name, data in faces().items() if "test" not in name}
        | {"test/a.png": png(90)}
    ),
}


@case("an empty folder")
def _(place: Place) -> Callable[[], None]:
    (place.root / "faces").mkdir()
    return place.folder({})


@case("an empty class")
def _(place: Place) -> Callable[[], None]:
    for split in ("train", "test"):
        (place.root / "faces" / split / "sad").mkdir(parents=True)
    return place.folder(faces())


@case("one image in a class")
def _(place: Place) -> Callable[[], None]:
    place.folder(faces(each=20) | {"train/sad/a.png": png(90), "test/sad/a.png": png(91)})()
    return place.stage("tune")


@case("a loop of links")
def _(place: Place) -> Callable[[], None]:
    ingest = place.folder(faces())
    (place.root / "faces/train/angry/loop").symlink_to(place.root / "faces")
    (place.root / "faces/train/angry/self.png").symlink_to("self.png")
    return ingest


@case("a source that is not there")
def _(place: Place) -> Callable[[], None]:
    place.set("ingest.source", "faces.zip")
    return place.stage("ingest")


@case("a source of another kind")
def _(place: Place) -> Callable[[], None]:
    place.set("ingest.source", "faces.rar")
    (place.root / "faces.rar").write_bytes(b"Rar!")
    return place.stage("ingest")


@case("a zip cut short")
def _(place: Place) -> Callable[[], None]:
    place.zip(faces()).close()
    path = place.root / "faces.zip"
    path.write_bytes(path.read_bytes()[:-100])
    return place.stage("ingest")


def zipped(files: dict[str, bytes]) -> Case:
    def make(place: Place) -> Callable[[], None]:
        place.zip(faces() | files).close()
        return place.stage("ingest")

    return make


CASES |= {
    "a zip with `__MACOSX`, `.DS_Store`, `Thumbs.db`": zipped(CLUTTER),
    "a zip with `..` in a name": zipped({"../evil.png": png(90)}),
    "a zip with an absolute name": zipped({"/etc/evil.png": png(90)}),
}


@case("a zip with a link")
def _(place: Place) -> Callable[[], None]:
    link = zipfile.ZipInfo("train/angry/link.png")
    link.external_attr = 0o120777 << 16
    with place.zip(faces()) as file:
        file.writestr(link, "/etc/passwd")
    return place.stage("ingest")


@case("a zip with a name twice")
def _(place: Place) -> Callable[[], None]:
    with place.zip(faces()) as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("train/angry/im0.png", png(90))
    return place.stage("ingest")


@case("an encrypted zip")
def _(place: Place) -> Callable[[], None]:
    with place.zip(faces()) as file:
        for member in file.filelist:
            member.flag_bits |= 1
    return place.stage("ingest")


@case("a zip of a terabyte in a kilobyte")
def _(place: Place) -> Callable[[], None]:
    with place.zip(faces()) as file:
        file.filelist[0].file_size = 2**40
    return place.stage("ingest")


@case("a zip that holds more than it says")
def _(place: Place) -> Callable[[], None]:
    with place.zip(faces()) as file:
        file.filelist[0].file_size = 50
    return place.stage("ingest")


def setting(key: str, value: object, stage: str = "ingest") -> Case:
    def make(place: Place) -> Callable[[], None]:
        place.set(key, value)
        return place.stage(stage)

    return make


CASES |= {
    "a param that is none": setting("train.lerning_rate", 0.1),
    "a param of the wrong type": setting("train.epochs", "fifty"),
    "a negative size": setting("ingest.image_size", [-48, 48]),
    "more epochs on smaller images than in all": setting("train.progressive_resizing", 30),
}


@case("a batch larger than the set")
def _(place: Place) -> Callable[[], None]:
    place.dataset()
    place.chosen()
    place.set("train.batch_size", 1000)
    return place.stage("train")


@case("a learning rate that a training cannot bear")
def _(place: Place) -> Callable[[], None]:
    place.dataset()
    place.chosen()
    place.set("train.optimizer", "sgd")
    place.set("train.lr", 1e30)
    return place.stage("train")


@case("a network too deep for the image")
def _(place: Place) -> Callable[[], None]:
    place.dataset()
    place.params["network"] |= {"filters": [4] * 6, "kernel_sizes": [3] * 6}
    place.chosen()
    return place.stage("train")


@case("a damaged params.yaml")
def _(place: Place) -> Callable[[], None]:
    (place.root / "params.yaml").write_text("tune: {a: b\n")
    return place.stage("ingest")


@case("a damaged dataset")
def _(place: Place) -> Callable[[], None]:
    images = place.dataset() / "images.npy"
    images.write_bytes(images.read_bytes()[:1000])
    place.chosen()
    return place.stage("train")


@case("no dataset")
def _(place: Place) -> Callable[[], None]:
    place.chosen()
    return place.stage("train")


@case("damaged hyperparameters")
def _(place: Place) -> Callable[[], None]:
    place.chosen()
    (place.root / paths.HYPERPARAMETERS).write_text("{}")
    return place.stage("train")


class InterruptedError(Exception):
    """A stage was interrupted."""


def interrupted(stage: Callable[[], None], name: str) -> None:
    """Leave a stage's state as one does that is interrupted just before its end."""

    def interrupt(*_: object, **__: object) -> None:
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(name, interrupt)
        with pytest.raises(InterruptedError):
            stage()


@case("a damaged checkpoint")
def _(place: Place) -> Callable[[], None]:
    place.dataset()
    place.chosen()
    interrupted(place.stage("train"), "emotion_detection.training.ensemble.save")
    (weights,) = (place.root / paths.STATE / "train").rglob("*.weights.h5")
    weights.write_bytes(weights.read_bytes()[:1000])
    return place.stage("train")


@case("a damaged search")
def _(place: Place) -> Callable[[], None]:
    place.dataset()
    interrupted(place.stage("tune"), "emotion_detection.stage.Stage.complete")
    (state,) = (place.root / paths.STATE / "tune").rglob("oracle.json")
    state.write_text(state.read_text()[:100])
    return place.stage("tune")


@case("a damaged model")
def _(place: Place) -> Callable[[], None]:
    place.dataset()
    place.model(b"PK\x03\x04 and no more")
    place.trained()
    return place.stage("evaluate")


def that_runs_code(place: Place) -> None:
    import keras

    place.model(b"")
    code = keras.layers.Lambda(lambda x: x * Path("ran").write_text(""), output_shape=(16, 16, 3))
    keras.Sequential([keras.Input((16, 16, 3)), code]).save(place.root / paths.MODEL)
    (place.root / "ran").unlink(missing_ok=True)


def not_run(stage: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        try:
            stage()
        finally:
            assert not Path("ran").exists()

    return run


@case("a model that would run code")
def _(place: Place) -> Callable[[], None]:
    place.dataset()
    that_runs_code(place)
    place.trained()
    return not_run(place.stage("evaluate"))


def predict(model: Path) -> Callable[[], None]:
    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            Path("photo.png").write_bytes(png(90))
            arguments = ["emotion-detection", "predict", "--model", str(model), "photo.png"]
            patch.setattr(sys, "argv", arguments)
            cli.main()

    return run


@case("a damaged model for predict")
def _(place: Place) -> Callable[[], None]:
    place.model(b"PK\x03\x04 and no more")
    return predict(paths.MODEL)


@case("a damaged ONNX model for predict")
def _(place: Place) -> Callable[[], None]:
    place.model(b"no graph", paths.ONNX_MODEL)
    return predict(paths.ONNX_MODEL)


@case("a model for predict that would run code")
def _(place: Place) -> Callable[[], None]:
    that_runs_code(place)
    return not_run(predict(paths.MODEL))


@pytest.fixture
def place(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.syspath_prepend(str(ROOT))
    handlers, level, on_term = console.log.handlers[:], console.log.level, signal.SIGTERM
    before = signal.getsignal(on_term)
    with alone(tmp_path):
        # One for all: to make a store takes longer than what is tried here.
        put_empty_store(tmp_path.parent)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path.parent / 'mlflow.db'}")
        yield Place(tmp_path, packed)
    console.log.handlers, console.log.propagate = handlers, True
    console.log.setLevel(level)
    signal.signal(on_term, before)


def test_every_row_is_tried_out_and_every_case_has_a_row() -> None:
    assert list(rows()) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_bad_input_comes_to_what_the_table_says(
    name: str, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    printed, status = rows()[name]
    stage = CASES[name](place)
    outputs = place.outputs()
    capfd.readouterr()
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    found = 0
    try:
        console.run(stage)
    except SystemExit as end:
        found = int(str(end.code))
    errors = capfd.readouterr().err
    print(errors, file=sys.stderr)
    assert found == status
    assert "Traceback" not in errors
    pattern = re.compile(".*".join(map(re.escape, printed.split("…"))))
    lines = [line for line in errors.splitlines() if line]
    assert pattern.fullmatch(lines[-1]) if status else any(map(pattern.fullmatch, lines))
    with closing(sqlite3.connect(place.root.parent / "mlflow.db")) as store:
        if store.execute("SELECT 1 FROM sqlite_master WHERE name = 'runs'").fetchone():
            assert store.execute("SELECT 1 FROM runs WHERE status = 'RUNNING'").fetchone() is None
    if status:
        assert sum(line.startswith("error: ") for line in lines) == 1
        assert place.outputs() == outputs
