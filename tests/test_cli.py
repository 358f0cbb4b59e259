"""The command, as a person or a script calls it."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from emotion_detection import cli, paths
from emotion_detection.console import log
from emotion_detection.data.dataset import Dataset
from emotion_detection.models import saving
from emotion_detection.models.coverage import Coverage
from tests.support import warm
from tests.support.project import ROOT
from tests.support.stores import alone
from tests.support.untrained import untrained

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Return a function that runs the command in the store: exit status, stdout and stderr."""
    handlers, level, propagate = list(log.handlers), log.level, log.propagate

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["emotion-detection", *map(str, arguments)])
        log.handlers[:] = []
        try:
            cli.main()
            status = 0
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        return status, *capfd.readouterr()

    with alone(store):
        yield run
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.fixture(scope="module")
def album(toy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two faces in a photo, one that was cut out, and a broken file."""
    folder = tmp_path_factory.mktemp("album")
    astronaut = skimage.data.astronaut()
    Image.fromarray(np.concatenate([astronaut, astronaut], axis=1)).save(folder / "photo.jpg")
    (folder / "faces").mkdir()
    Image.fromarray(np.asarray(toy.images[0])).save(folder / "faces" / "face.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["--help"], "recipe"),
        (["recipe", "--help"], "--reset"),
        (["predict", "--help"], "--annotate FOLDER"),
        (["send", "--help"], "MLflow"),
        (["train", "--help"], "without DVC"),
        (["--version"], version("emotion-detection")),
    ],
)
def test_help_is_quick_since_it_loads_nothing_heavy(command: list[str], expected: str) -> None:
    heavy = {"tensorflow", "keras", "mlflow", "cv2", "numpy", "pydantic", "dvc", "ruamel"}
    code = (
        f"import sys; sys.argv[1:] = {command!r}\n"
        "from emotion_detection.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print(sorted({heavy} & sys.modules.keys()))"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert expected in printed
    assert printed.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gone.png"], "gone.png: there is no such file or folder"),
        (
            ["face.png", "--model", "gone.keras"],
            "gone.keras: there is no such file; give a .keras or .onnx file, or a model in MLflow",
        ),
    ],
)
def test_what_is_not_there_is_told_before_tensorflow_is_loaded(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "face.png").write_bytes(b"")
    code = (
        f"import sys; sys.argv[1:] = {['predict', *arguments]!r}\n"
        "from emotion_detection.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'tensorflow', 'keras', 'mlflow'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"
    assert done.stderr == f"error: {said}\n"


def test_a_network_is_loaded_without_what_keras_has_no_use_for_here(store: Path) -> None:
    code = (
        "import sys\n"
        "from emotion_detection.inference import predict\n"
        f"predict.load({str(store / paths.MODEL)!r}, None)\n"
        "print(sorted({'matplotlib', 'sklearn', 'mlflow'} & sys.modules.keys()))\n"
        "import matplotlib.pyplot, sklearn\n"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert printed.splitlines() == ["[]"]


def test_the_champion_labels_every_face(command: Command, album: Path, toy: Dataset) -> None:
    status, out, err = command("predict", album)
    assert status == 0
    header, *lines = out.splitlines()
    assert header.split() == ["label", "confidence", "face", "left,top", "size", "file"]
    files = [line.split()[-1] for line in lines]
    photo = str(album / "photo.jpg")
    assert files == [str(album / "faces" / "face.png"), photo, photo]
    assert [line.split()[2] for line in lines] == ["1", "1", "2"]
    assert {line.split()[0] for line in lines} <= set(toy.classes)
    assert f"{album / 'broken.png'}: not an image" in err.splitlines()
    # What is no terminal gets no bar.
    assert "predict:" not in err


def test_a_file_of_train_labels_as_the_champion(
    command: Command, album: Path, toy: Dataset
) -> None:
    status, out, _ = command("predict", album, "--model", paths.MODEL, "--format", "json")
    assert status == 0
    entries = [json.loads(line) for line in out.splitlines()]
    assert [entry["face"] for entry in entries] == [1, 1, 2]
    assert entries[0]["box"] == {"left": 0, "top": 0, "width": 16, "height": 16}
    for entry in entries:
        assert list(entry["probabilities"]) == list(toy.classes)
        assert sum(entry["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert entry["confidence"] == max(entry["probabilities"].values())
        assert entry["probabilities"][entry["label"]] == entry["confidence"]

    _, out, _ = command("predict", album, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == len(entries)
    for row, entry in zip(rows, entries, strict=True):
        assert (row["file"], int(row["face"])) == (entry["file"], entry["face"])
        assert row["label"] == entry["label"]
        assert {edge: int(row[edge]) for edge in entry["box"]} == entry["box"]
        for name, probability in entry["probabilities"].items():
            assert float(row[f"probability_{name}"]) == pytest.approx(probability, abs=2e-6)


def test_pictures_are_annotated_under_their_own_names(
    command: Command, album: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "annotated"
    status, _, _ = command("predict", album, "--model", paths.MODEL, "--annotate", folder)
    assert status == 0
    written = {path.relative_to(folder) for path in folder.rglob("*.*")}
    assert written == {Path("photo.jpg"), Path("faces/face.png")}
    before, after = (Image.open(path / "photo.jpg") for path in (album, folder))
    assert before.size == after.size
    assert np.abs(np.asarray(before).astype(int) - np.asarray(after)).max() > 100


def test_no_picture_is_overwritten_by_its_annotation(command: Command, album: Path) -> None:
    before = {path: path.read_bytes() for path in album.rglob("*.*")}
    for given, folder in (((album,), album), ((album / "photo.jpg",), album / "faces" / "..")):
        status, _, err = command("predict", *given, "--model", paths.MODEL, "--annotate", folder)
        assert status == 1
        assert f"--annotate {folder}: it would overwrite {album}" in err
    assert {path: path.read_bytes() for path in album.rglob("*.*")} == before


def test_a_folder_that_has_the_name_of_an_annotated_picture_stays(
    command: Command, album: Path, tmp_path: Path
) -> None:
    (tmp_path / "photo.jpg").mkdir()
    (tmp_path / "photo.jpg" / "kept").write_text("mine")
    status, _, err = command("predict", album, "--model", "none.keras", "--annotate", tmp_path)
    assert status == 1
    assert err == (
        f"error: --annotate: {tmp_path / 'photo.jpg'} is there, and was not written by --annotate; "
        "give another folder\n"
    )
    assert (tmp_path / "photo.jpg" / "kept").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="POSIX names")
def test_a_name_cannot_move_the_cursor_or_become_a_formula(
    command: Command, album: Path, store: Path
) -> None:
    name = "=1\x1b[2K\nerror: x.png"
    folder = store / "=names"
    folder.mkdir()
    shutil.copy(album / "faces" / "face.png", folder / name)
    (folder / f"bad{name}").write_bytes(b"")
    _, out, err = command("predict", "=names", "--model", paths.MODEL)
    assert out.splitlines()[-1].endswith("=names/=1\\x1b[2K\\nerror: x.png")
    assert "=names/bad=1\\x1b[2K\\nerror: x.png: empty file\n" in err
    _, out, _ = command("predict", "=names", "--model", paths.MODEL, "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(out, newline=""))
    assert row["file"] == f"'=names/{name}"


@pytest.mark.parametrize("option", [("--detector", "none"), ("--no-detect",)])
def test_without_detection_a_photo_is_one_face(
    command: Command, album: Path, option: tuple[str, ...]
) -> None:
    status, out, _ = command(
        *("predict", album / "photo.jpg", "--model", paths.MODEL), *option, "--format", "json"
    )
    assert status == 0
    assert json.loads(out)["box"] == {"left": 0, "top": 0, "width": 1024, "height": 512}


def test_no_face_anywhere_is_an_error(command: Command, album: Path, tmp_path: Path) -> None:
    status, out, err = command(
        "predict", album / "broken.png", "gone.png", "--model", paths.MODEL, "--format", "json"
    )
    assert (status, out) == (1, "")
    assert "gone.png: cannot be read: " in err
    assert err.splitlines()[-1] == "error: nothing was labelled in 2 pictures"
    status, _, err = command("predict", tmp_path)
    assert (status, err) == (1, f"error: {tmp_path}: there is no picture in it\n")


def test_a_store_without_a_champion_names_both_ways_out(
    command: Command, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = command("predict", album / "photo.jpg")
    assert (status, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith(
        f"error: models:/emotion-detection@champion: there is no mlflow.db in {tmp_path}"
    )
    assert "alias champion" in line
    assert "--model" in line
    assert not list(tmp_path.iterdir())


def test_a_reader_that_has_seen_enough_ends_it_quietly(store: Path, album: Path) -> None:
    running = subprocess.Popen(
        [warm.python(), "-m", "emotion_detection.cli", "predict", album, "--model", paths.MODEL],
        cwd=store,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    running.stdout.close()
    _, err = running.communicate()
    assert running.returncode == 1
    assert "error" not in err.lower()


NEVER = (2.0,) * 9
"""Scores of a class that is in no prediction set for a coverage of 0.9; () is in every one."""


@pytest.mark.parametrize(
    ("scores", "held"),
    [(((), NEVER, NEVER), {"angry"}), (((), NEVER, ()), {"angry", "sad"}), (((), (), ()), None)],
)
def test_a_coverage_answers_with_the_classes_that_it_takes(
    command: Command, tmp_path: Path, scores: tuple[tuple[float, ...], ...], held: set[str] | None
) -> None:
    model, photo = tmp_path / "model.keras", tmp_path / "face.png"
    notes = {"coverage": Coverage(scores).to_json()}
    saving.save(untrained((16, 16, 3)), model, ("angry", "happy", "sad"), notes)
    Image.new("RGB", (16, 16), 90).save(photo)
    options = (photo, "--model", model, "--coverage", "0.9")
    out = {name: command("predict", *options, "--format", name)[1] for name in ("json", "csv")}
    found = json.loads(out["json"])
    likely = sorted(found["probabilities"], key=found["probabilities"].get, reverse=True)
    expected = [name for name in likely if held is None or name in held]
    assert found["prediction_set"] == expected
    (row,) = csv.DictReader(io.StringIO(out["csv"]))
    assert row["prediction_set"] == ";".join(expected)
    assert row["probability_sad"] == f"{found['probabilities']['sad']:.6f}"
    (_, line) = command("predict", *options)[1].splitlines()
    assert line.startswith("not sure " if held is None else " or ".join(expected) + " ")


def test_a_coverage_is_a_share_and_rests_on_something(command: Command, album: Path) -> None:
    for text in ("0", "1", "90", "x"):
        status, _, err = command("predict", album, f"--coverage={text}")
        assert status == 2
        assert f"{text}: must be " in err
    status, out, err = command("predict", album, "--coverage", "0.9")
    assert (status, out) == (1, "")
    assert "--coverage: this model has no validation images to go by" in err


def test_a_scale_is_a_number_or_a_fraction(command: Command) -> None:
    for text in ("1/0", "-1", "x", "nan"):
        status, _, err = command("predict", "face.png", f"--scale={text}")
        assert status == 2
        assert f"{text}: must be a number, as 1, or a fraction, as 1/255" in err


def test_something_to_look_at_must_be_named(command: Command) -> None:
    status, _, err = command("predict")
    assert status == 2
    assert "give a PATH or --camera" in err


def test_nothing_is_sent_where_mlflow_has_missed_nothing(command: Command) -> None:
    status, out, err = command("send")
    assert (status, out) == (0, "")
    assert len(err.splitlines()) <= 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with params.yaml and stages that write down their names."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "stages").mkdir()
    for name in ("sample", "ingest", "profile", "tune", "train", "export", "evaluate"):
        (tmp_path / "stages" / f"{name}.py").write_text(
            f"print('ran {name}', flush=True)\n"
            f"raise SystemExit(7 if {name!r} == open('failing').read() else 0)\n"
        )
    (tmp_path / "failing").write_text("")
    return tmp_path


def test_the_stages_run_without_dvc_in_their_order(
    command: Command, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    status, out, _ = command("train")
    assert status == 0
    assert out.split("\n")[:-1] == [
        f"ran {name}" for name in ("sample", "ingest", "profile", "tune", "train", "export")
    ]
    assert command("evaluate")[:2] == (0, "ran evaluate\n")

    text = (root / "params.yaml").read_text().replace("data/sample", "faces.zip")
    (root / "params.yaml").write_text(text)
    (root / "failing").write_text("profile")
    assert command("train")[:2] == (7, "ran ingest\nran profile\n")


def test_stages_elsewhere_than_in_the_project_are_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "evaluate"):
        status, out, err = command(name)
        assert (status, out) == (1, "")
        assert len(err.splitlines()) == 1
        assert "root folder" in err


def test_the_report_is_named_and_opened(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.chdir(tmp_path)
    status, out, err = command("report", "--open")
    assert (status, out) == (1, "")
    assert "`dvc repro` or `emotion-detection evaluate` writes it" in err
    paths.EVALUATE.mkdir(parents=True)
    (paths.EVALUATE / "report.html").write_text("")
    assert command("report")[:2] == (0, "reports/evaluate/report.html\n")
    assert not opened
    assert command("report", "--open")[0] == 0
    assert opened == [(tmp_path / "reports/evaluate/report.html").as_uri()]
