"""From a folder or zip of class folders to a dataset."""

import io
import logging
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emotion_detection.console import UserError
from emotion_detection.data import decode
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.decode import image_digest
from emotion_detection.data.synthetic import draw_sample
from tests.support.sources import (
    HEIGHT,
    WIDTH,
    Files,
    broken,
    colour_picture,
    encoded,
    faces,
    in_folder,
    in_zip,
    ingested,
    picture,
    png,
)


def test_a_zip_and_its_folder_are_the_same_dataset(tmp_path: Path) -> None:
    files = faces()
    reports = [
        ingested(in_zip(tmp_path / "faces.zip", files), tmp_path / "a"),
        ingested(in_folder(tmp_path / "faces", files), tmp_path / "b"),
    ]
    first, second = (Dataset.open(tmp_path / name) for name in "ab")

    assert reports[0] == reports[1]
    assert first.digest == second.digest == reports[0].digest
    assert first.files == second.files == list(files)
    assert (first.source, second.source) == ("faces.zip", "faces")
    assert first.classes == ("angry", "happy")
    assert not first.test_is_cut
    assert first.images.shape == (12, HEIGHT, WIDTH, 1)
    for seed in range(12):
        assert np.array_equal(first.images[seed, :, :, 0], np.asarray(picture(seed)))
    assert first.is_test.tolist() == [False] * 6 + [True] * 6
    assert first.labels.tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert reports[0].counts == first.counts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "faces", "faces.zip"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes")
def test_the_name_of_a_source_is_text_whatever_its_bytes_are(tmp_path: Path) -> None:
    # MLflow takes no other.
    ingested(in_zip(tmp_path / os.fsdecode(b"caf\xe9.zip"), faces()), tmp_path / "a")
    assert Dataset.open(tmp_path / "a").source == "caf\ufffd.zip"


def test_a_set_that_a_program_drew_is_known_wherever_it_goes(tmp_path: Path) -> None:
    draw_sample(tmp_path / "sample", train=60, test=30, image_size=16)
    files = {
        f"moved/{path.relative_to(tmp_path / 'sample').as_posix()}": path.read_bytes()
        for path in (tmp_path / "sample").rglob("*.*")
    }
    for number, source in enumerate(
        (
            tmp_path / "sample",
            in_zip(tmp_path / "moved.zip", files),
            in_folder(tmp_path / "real", faces()),
        )
    ):
        ingested(source, tmp_path / str(number))
    drawn = [Dataset.open(tmp_path / str(number)) for number in range(3)]
    assert [dataset.synthetic for dataset in drawn] == [True, True, False]
    assert drawn[0].digest == drawn[1].digest


def test_rows_run_by_split_class_and_natural_name(tmp_path: Path) -> None:
    names = [
        "train/b/im1.png",
        "train/b/im2.png",
        "train/b/im10.png",
        "train/c/1.png",
        "test/b/0.png",
        "test/c/0.png",
    ]
    source = in_zip(tmp_path / "s.zip", {name: png(1) for name in reversed(names)})
    ingested(source, tmp_path / "out")
    assert Dataset.open(tmp_path / "out").files == names


# --- What an image is known by.


def test_identical_images_share_a_group_whatever_their_format(tmp_path: Path) -> None:
    files = faces() | {
        "test/happy/copy.bmp": encoded(picture(0), "BMP"),
        "test/happy/copy.webp": encoded(picture(0).convert("RGB"), "WEBP", lossless=True),
    }
    report = ingested(in_folder(tmp_path / "s", files), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert report.duplicate_groups == 1
    copies = dataset.groups == dataset.groups[0]
    assert [dataset.files[row] for row in np.flatnonzero(copies)] == [
        "train/angry/im0.png",
        "test/happy/copy.bmp",
        "test/happy/copy.webp",
    ]


def test_a_large_image_is_known_by_all_of_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (picture, colour_picture):
        image = make(0, 50, 30)
        expected = image_digest(image)
        other = image.copy()
        other.putpixel((29, 49), 0 if image.mode == "L" else (0, 0, 0))
        for pixels in (1, 70, 300):
            monkeypatch.setattr(decode, "STRIP_PIXELS", pixels)
            assert image_digest(image) == expected
            assert image_digest(image.convert("RGB")) == expected
            assert image_digest(other) != expected
        monkeypatch.undo()
    # Grey but for the last pixel.
    speck = picture(0, 50, 30).convert("RGB")
    speck.putpixel((29, 49), (1, 2, 3))
    monkeypatch.setattr(decode, "STRIP_PIXELS", 70)
    assert image_digest(speck) != image_digest(speck.convert("L"))


def test_images_that_only_look_the_same_when_packed_are_no_duplicates(tmp_path: Path) -> None:
    blank = {
        "train/angry/small.png": encoded(Image.new("L", (8, 9), 76)),
        "train/angry/large.png": encoded(Image.new("L", (16, 18), 76)),
        "train/angry/turned.png": encoded(Image.new("L", (18, 16), 76)),
        "train/angry/red.png": encoded(Image.new("RGB", (8, 9), (255, 0, 0))),
    }
    report = ingested(in_folder(tmp_path / "s", faces() | blank), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    rows = [dataset.files.index(name) for name in blank]
    assert np.unique(dataset.images[rows]).tolist() == [76]
    assert len({dataset.digests[row] for row in rows}) == len(rows)
    assert report.duplicate_groups == 0


def test_an_image_is_known_by_its_pixels_as_decoded(tmp_path: Path) -> None:
    files = faces() | {
        f"train/angry/c{seed}.png": encoded(colour_picture(seed, 20, 30)) for seed in range(5)
    }
    source = in_zip(tmp_path / "s.zip", files)
    ingested(source, tmp_path / "first")
    first = Dataset.open(tmp_path / "first")
    found = {first.digest}
    for changes in ({"image_size": (16, 24)}, {"image_size": (40, 8)}, {"color_mode": "rgb"}):
        ingested(source, tmp_path / "other", **changes)
        other = Dataset.open(tmp_path / "other")
        assert (other.files, other.digests) == (first.files, first.digests)
        found.add(other.digest)
    # A network trains on other pixels each time, so the whole set has another digest.
    assert len(found) == 4


def test_the_digest_of_a_set_does_not_depend_on_file_names(tmp_path: Path) -> None:
    files = faces()
    renamed = {
        name.replace("im", f"photo {9 - row} "): data
        for row, (name, data) in enumerate(files.items())
    }
    first = ingested(in_zip(tmp_path / "s.zip", files), tmp_path / "first")
    second = ingested(in_folder(tmp_path / "renamed", renamed), tmp_path / "second")
    assert first.digest == second.digest
    assert Dataset.open(tmp_path / "first").digests != Dataset.open(tmp_path / "second").digests
    renamed["train/angry/im0.png"] = png(77)
    assert (
        ingested(in_folder(tmp_path / "more", renamed), tmp_path / "third").digest != first.digest
    )


# --- Cutting a test split.


def test_a_source_of_train_alone_has_its_test_split_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = faces(("train",), each=20)
    files |= {f"train/angry/copy{n}.png": files["train/angry/im3.png"] for n in range(3)}
    source = in_folder(tmp_path / "s", files)
    with caplog.at_level(logging.INFO):
        report = ingested(source, tmp_path / "out", test_fraction=0.25)
    dataset = Dataset.open(tmp_path / "out")

    assert report.test_is_cut
    assert dataset.test_is_cut
    assert "cut from train" in caplog.text
    assert report.counts["test"] == {"angry": 6, "happy": 5}
    assert (np.diff(dataset.is_test.astype(int)) >= 0).all()
    assert not np.intersect1d(
        dataset.groups[dataset.is_test], dataset.groups[~dataset.is_test]
    ).size
    for row, name in enumerate(dataset.files):
        assert np.array_equal(
            dataset.images[row, :, :, 0], np.asarray(Image.open(io.BytesIO(files[name])))
        )
    assert ingested(source, tmp_path / "again", test_fraction=0.25).digest == report.digest
    assert ingested(source, tmp_path / "again", test_fraction=0.25, seed=1).digest != report.digest
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset.json",
        "images.npy",
        "index.csv",
        "near_duplicates.csv",
    ]


def test_a_class_too_small_to_cut_is_named(tmp_path: Path) -> None:
    files = faces(("train",)) | {"train/sad/1.png": png(80)}
    with pytest.raises(UserError, match=r"'sad'.*ingest\.test_fraction"):
        ingested(in_folder(tmp_path / "s", files), tmp_path / "out")


# --- Leaks.


def test_train_images_that_are_also_in_test_are_left_out_if_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = faces()
    files["train/angry/im1.png"] = files["test/angry/im0.png"]
    files["train/angry/im1 copy.png"] = files["test/angry/im0.png"]
    files["train/happy/im0.png"] = files["test/angry/im2.png"]  # under another label
    files["train/happy/im3.png"] = files["train/happy/im1.png"]  # a duplicate, and no leak
    source = in_zip(tmp_path / "s.zip", files)
    assert ingested(source, tmp_path / "with leaks").dropped_leaks == 0
    assert Dataset.open(tmp_path / "with leaks").leaked.sum() == 2

    with caplog.at_level(logging.INFO):
        report = ingested(source, tmp_path / "out", drop_leaks=True)
    dataset = Dataset.open(tmp_path / "out")
    assert report.dropped_leaks == dataset.dropped_leaks == 3
    assert "3 train images left out that are also in test" in caplog.text
    assert report.counts == {"train": {"angry": 2, "happy": 3}, "test": {"angry": 3, "happy": 3}}
    assert not dataset.leaked.any()
    for row, name in enumerate(dataset.files):
        assert np.array_equal(
            dataset.images[row, :, :, 0], np.asarray(Image.open(io.BytesIO(files[name])))
        )
    assert dataset.digest != Dataset.open(tmp_path / "with leaks").digest


def test_a_class_of_leaks_alone_is_named(tmp_path: Path) -> None:
    files = faces()
    files |= {name.replace("test", "train"): png for name, png in files.items() if "t/h" in name}
    with pytest.raises(UserError, match=r"ingest\.drop_leaks: every train image of class 'happy'"):
        ingested(in_zip(tmp_path / "s.zip", files), tmp_path / "out", drop_leaks=True)


# --- Bad files.


def huge_png() -> bytes:
    """Return a PNG that says to be 60,000 pixels square."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def big_jpeg(size: tuple[int, int] = (8000, 7000)) -> bytes:
    """Return a JPEG of more pixels than allowed, yet too few for Pillow to object."""
    data = bytearray(encoded(Image.new("L", (8, 8)), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", *size)
    return bytes(data)


BAD: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "empty file"),
    "text.png": (b"Not found", "not an image"),
    "vector.svg": (b"<svg/>", "not an image"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "short.png": (png(1, 64, 64)[:-900], "truncated"),
    "short.jpg": (encoded(picture(1, 64, 64), "JPEG")[:-400], "truncated"),
    "flipped.png": (broken(png(1, 64, 64), 900), "broken PNG"),
    "bomb.png": (huge_png(), "more than 50,000,000 pixels"),
    "big.jpg": (big_jpeg(), "more than 50,000,000 pixels"),
    "float.tiff": (encoded(Image.new("F", (5, 6), 0.5), "TIFF"), "floating-point"),
    "int.tiff": (encoded(Image.new("I", (5, 6), 70_000), "TIFF"), "more than 16 bits"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("error")
def test_a_bad_file_is_listed_with_its_reason_and_left_out(tmp_path: Path, name: str) -> None:
    data, reason = BAD[name]
    report = ingested(
        in_folder(tmp_path / "s", faces() | {f"train/angry/{name}": data}), tmp_path / "out"
    )
    dataset = Dataset.open(tmp_path / "out")
    (bad,) = report.bad_files
    assert bad.path == f"train/angry/{name}"
    assert re.search(reason, bad.reason)
    assert "0x" not in bad.reason  # an address would make every run's output another
    assert dataset.bad_files == report.bad_files
    assert len(dataset) == 12
    assert dataset.images[3:].any(axis=(1, 2, 3)).all()


def test_too_many_bad_files_are_an_error_with_the_numbers(tmp_path: Path) -> None:
    files = faces() | {f"train/angry/bad{n}.png": b"" for n in range(8)}
    source = in_zip(tmp_path / "s.zip", files)
    with pytest.raises(UserError) as caught:
        ingested(source, tmp_path / "out", max_bad_fraction=0.39)
    assert "8 of 20 files (40.0%)" in str(caught.value)
    assert "ingest.max_bad_fraction = 0.39" in str(caught.value)
    assert "train/angry/bad0.png (empty file)" in str(caught.value)
    assert "and 3 more" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert len(ingested(source, tmp_path / "out", max_bad_fraction=0.4).bad_files) == 8


def test_an_image_too_large_for_the_memory_is_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(image: Image.Image, *_: object) -> bytes:
        if image.width > WIDTH:
            raise MemoryError
        return image.tobytes()

    monkeypatch.setattr(decode, "prepare", prepare)
    files = faces() | {"train/angry/large.png": png(9, HEIGHT, WIDTH + 1)}
    report = ingested(in_folder(tmp_path / "s", files), tmp_path / "out")
    (bad,) = report.bad_files
    assert (bad.path, bad.reason) == (
        "train/angry/large.png",
        "too large for the memory that is free",
    )


# --- Complete or not at all, and on every core.


def test_a_source_in_the_target_is_not_replaced_by_it(tmp_path: Path) -> None:
    source = in_zip(tmp_path / "s.zip", faces())
    with pytest.raises(UserError, match="lies in"):
        ingested(source, tmp_path)
    assert source.exists()


def test_the_target_is_replaced_only_by_a_complete_dataset(tmp_path: Path) -> None:
    target = tmp_path / "data" / "dataset"
    source = in_zip(tmp_path / "s.zip", faces())
    before = ingested(source, target)
    (target / "stale.txt").write_text("old")
    with pytest.raises(UserError):
        ingested(source, target, max_unpacked_gib=1e-9)
    assert Dataset.open(target).digest == before.digest
    assert (target / "stale.txt").exists()

    in_zip(source, faces(each=4))
    ingested(source, target)
    assert len(Dataset.open(target)) == 16
    assert not (target / "stale.txt").exists()
    assert [path.name for path in target.parent.iterdir()] == ["dataset"]


@pytest.mark.parametrize("make", [in_zip, in_folder])
def test_processes_and_one_process_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, Files], Path]
) -> None:
    files = faces(each=40) | {"train/angry/im7.png": b"", "test/happy/im9.png": b"?"}
    source = make(tmp_path / "s.zip", files)
    alone = ingested(source, tmp_path / "alone")
    monkeypatch.setattr(decode, "FILES_IN_PROCESS", 10)
    together = ingested(source, tmp_path / "together")

    assert together == alone
    assert [bad.path for bad in together.bad_files] == ["train/angry/im7.png", "test/happy/im9.png"]
    for name in ("images.npy", "index.csv", "dataset.json"):
        assert (tmp_path / "together" / name).read_bytes() == (
            tmp_path / "alone" / name
        ).read_bytes()


SLOW_INGEST = """
import sys, time
from pathlib import Path
from emotion_detection import console
from emotion_detection.settings import params
from emotion_detection.data import decode, ingest

if __name__ == "__main__":
    decode.FILES_IN_PROCESS = 10
    console.run(lambda: ingest.ingest(
        Path(sys.argv[1]), Path(sys.argv[2]), params.Ingest(color_mode="rgb"), seed=0))
"""


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_ingest_leaves_no_process_behind(
    tmp_path: Path, how: signal.Signals
) -> None:
    data = encoded(Image.new("L", (1200, 1200)))  # small to store, slow to decode
    names = [f"train/{name}/{number}.png" for name in "ab" for number in range(400)]
    in_zip(tmp_path / "s.zip", dict.fromkeys(names, data))
    (tmp_path / "slow.py").write_text(SLOW_INGEST)
    out = tmp_path / "out"
    # A background job of a shell ignores Ctrl-C, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "slow.py", "s.zip", str(out)],
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    images = tmp_path / ".out.partial" / "out" / "images.npy"
    deadline = time.monotonic() + 240  # only so that a hang ends
    while not (images.exists() and images.stat().st_size > 1000):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = children(process.pid)
    assert workers
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        process.kill()
    _, errors = process.communicate(timeout=240)
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not out.exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert not images.parent.parent.exists()
