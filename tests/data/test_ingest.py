"""From a folder or zip of class folders to a dataset, whatever lies in it."""

import io
import logging
import os
import re
import signal
import struct
import subprocess
import sys
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emotion_detection.console import UserError
from emotion_detection.data import ingest
from emotion_detection.data.dataset import BadFile, ColorMode, Dataset
from emotion_detection.data.image import decode
from emotion_detection.data.ingest import IngestReport, ingest, natural_key

Files = dict[str, bytes]

posix_only = pytest.mark.skipif(os.name == "nt", reason="POSIX files and signals")


def picture(seed: int, height: int = 6, width: int = 5) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int, height: int = 6, width: int = 5) -> bytes:
    return encoded(picture(seed, height, width))


def faces(splits: tuple[str, ...] = ("train", "test"), each: int = 3) -> Files:
    """Return a small sound source: two classes, all images different."""
    names = [
        f"{split}/{name}/im{number}.png"
        for split in splits
        for name in ("angry", "happy")
        for number in range(each)
    ]
    return {name: png(seed) for seed, name in enumerate(names)}


def in_folder(folder: Path, files: Files) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def in_zip(path: Path, files: Files, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def run(source: Path, target: Path, **changes: Any) -> IngestReport:
    settings: dict[str, Any] = {
        "image_size": (6, 5),
        "color_mode": "grayscale",
        "max_bad_fraction": 0.5,
        "max_unpacked_gib": 1.0,
        "test_fraction": 0.34,
        "drop_leaks": False,
        "seed": 0,
    }
    return ingest(source, target, **(settings | changes))


def test_a_zip_and_its_folder_are_the_same_dataset(tmp_path: Path) -> None:
    files = faces()
    reports = [
        run(in_zip(tmp_path / "faces.zip", files), tmp_path / "a"),
        run(in_folder(tmp_path / "faces", files), tmp_path / "b"),
    ]
    first, second = (Dataset.open(tmp_path / name) for name in "ab")

    assert reports[0] == reports[1]
    assert first.digest == second.digest == reports[0].digest
    assert first.files == second.files == list(files)
    assert (first.source, second.source) == ("faces.zip", "faces")
    assert first.classes == ("angry", "happy")
    assert not first.test_is_cut
    assert first.images.shape == (12, 6, 5, 1)
    for seed in range(12):
        assert np.array_equal(first.images[seed, :, :, 0], np.asarray(picture(seed)))
    assert first.is_test.tolist() == [False] * 6 + [True] * 6
    assert first.labels.tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert reports[0].counts == first.counts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "faces", "faces.zip"]


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
    run(source, tmp_path / "out")
    assert Dataset.open(tmp_path / "out").files == names


def test_the_natural_key_survives_thousands_of_digits() -> None:
    long = "im" + "9" * 6000
    assert sorted([long, "im10", "im9", "im"], key=natural_key) == ["im", "im9", "im10", long]


@pytest.mark.parametrize("layout", ["{}", "archive/{}", "./{}", "{top}/{}", "a/{top}/{top}/{}"])
def test_the_splits_lie_at_the_top_or_below_one_folder(tmp_path: Path, layout: str) -> None:
    files = {
        layout.format(name.replace("train", "Train"), top=name.split("/")[0]): data
        for name, data in faces().items()
    }
    report = run(in_zip(tmp_path / "s.zip", files), tmp_path / "out")
    assert report.counts == {"train": {"angry": 3, "happy": 3}, "test": {"angry": 3, "happy": 3}}


def test_windows_separators_are_understood(tmp_path: Path) -> None:
    files = {name.replace("/", "\\"): data for name, data in faces().items()}
    report = run(in_zip(tmp_path / "s.zip", {**files, "train\\angry\\": b""}), tmp_path / "out")
    assert report.counts["test"] == {"angry": 3, "happy": 3}
    assert report.bad_files == ()


def test_identical_images_share_a_group(tmp_path: Path) -> None:
    files = faces() | {"test/happy/copy.bmp": encoded(picture(0), "BMP")}
    report = run(in_folder(tmp_path / "s", files), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert report.duplicate_groups == 1
    copies = dataset.groups == dataset.groups[0]
    assert [dataset.files[row] for row in np.flatnonzero(copies)] == [
        "train/angry/im0.png",
        "test/happy/copy.bmp",
    ]


def test_names_may_hold_spaces_and_any_script(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "très triste")
    files = {
        f"train/{decomposed}/a b.png": png(1),
        "train/怒り/1.png": png(2),
        "test/très triste/2.png": png(3),
        "test/怒り/3.png": png(4),
    }
    run(in_zip(tmp_path / "s.zip", files), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.classes == ("très triste", "怒り")
    assert dataset.files[0] == f"train/{decomposed}/a b.png"
    # As macOS zips: in UTF-8, which the zip does not say.
    path = tmp_path / "s.zip"
    data = bytearray(path.read_bytes())
    for signature, flags_at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(re.escape(signature), bytes(data)):
            data[found.start() + flags_at + 1] &= ~0x08
    path.write_bytes(data)
    assert zipfile.ZipFile(path).namelist()[0] != f"train/{decomposed}/a b.png"
    run(path, tmp_path / "unsaid")
    unsaid = Dataset.open(tmp_path / "unsaid")
    assert (unsaid.files, unsaid.digest) == (dataset.files, dataset.digest)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_class_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    source = in_folder(tmp_path / "s", faces(("train",)) | {"train/caf\udce9/1.png": png(1)})
    with pytest.raises(UserError, match=r"class folder 'caf\\udce9'.*not UTF-8; rename it"):
        run(source, tmp_path / "out")


def test_clutter_is_no_content(tmp_path: Path) -> None:
    names = [
        ".DS_Store",
        "train/.DS_Store",
        "train/angry/._im0.png",
        "train/angry/Thumbs.db",
        "test/happy/desktop.ini",
        "train/.ipynb_checkpoints/im0.png",
        "__MACOSX/train/angry/._im0.png",
    ]
    clutter = dict.fromkeys(names, b"?")
    for source in (
        in_zip(tmp_path / "s.zip", faces() | clutter),
        in_folder(tmp_path / "s", faces() | clutter),
    ):
        report = run(source, tmp_path / "out")
        assert report.bad_files == ()
        assert sum(map(len, report.counts.values())) == 4


def test_what_is_not_read_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = {"validation/angry/1.png": png(90), "train/labels.csv": b"a,b", "readme.txt": b"hi"}
    with caplog.at_level(logging.INFO):
        report = run(in_folder(tmp_path / "s", faces() | extra), tmp_path / "out")
    assert "validation/" in caplog.text
    assert "train/labels.csv" in caplog.text
    assert report.bad_files == ()
    assert len(Dataset.open(tmp_path / "out")) == 12


# --- Cutting a test split.


def test_a_source_of_train_alone_has_its_test_split_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = faces(("train",), each=20)
    files |= {f"train/angry/copy{n}.png": files["train/angry/im3.png"] for n in range(3)}
    source = in_folder(tmp_path / "s", files)
    with caplog.at_level(logging.INFO):
        report = run(source, tmp_path / "out", test_fraction=0.25)
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
    assert run(source, tmp_path / "again", test_fraction=0.25).digest == report.digest
    assert run(source, tmp_path / "again", test_fraction=0.25, seed=1).digest != report.digest
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset.json",
        "images.npy",
        "index.csv",
    ]


def test_a_class_too_small_to_cut_is_named(tmp_path: Path) -> None:
    files = faces(("train",)) | {"train/sad/1.png": png(80)}
    with pytest.raises(UserError, match=r"'sad'.*ingest\.test_fraction"):
        run(in_folder(tmp_path / "s", files), tmp_path / "out")


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
    assert run(source, tmp_path / "whole").dropped_leaks == 0
    assert Dataset.open(tmp_path / "whole").leaked.sum() == 2

    with caplog.at_level(logging.INFO):
        report = run(source, tmp_path / "out", drop_leaks=True)
    dataset = Dataset.open(tmp_path / "out")
    assert report.dropped_leaks == dataset.dropped_leaks == 3
    assert "3 train images left out that are also in test" in caplog.text
    assert report.counts == {"train": {"angry": 2, "happy": 3}, "test": {"angry": 3, "happy": 3}}
    assert not dataset.leaked.any()
    for row, name in enumerate(dataset.files):
        assert np.array_equal(
            dataset.images[row, :, :, 0], np.asarray(Image.open(io.BytesIO(files[name])))
        )
    assert dataset.digest != Dataset.open(tmp_path / "whole").digest


def test_a_class_of_leaks_alone_is_named(tmp_path: Path) -> None:
    files = faces()
    files |= {name.replace("test", "train"): png for name, png in files.items() if "t/h" in name}
    with pytest.raises(UserError, match=r"ingest\.drop_leaks: every train image of class 'happy'"):
        run(in_zip(tmp_path / "s.zip", files), tmp_path / "out", drop_leaks=True)


# --- Layouts that are refused.


def without(files: Files, *prefixes: str) -> Files:
    return {name: data for name, data in files.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/b/c.png": b""}, r"no train/ folder: expected .*; found a/"),
        ({"im.png": b""}, r"no train/ folder: .*found no folders"),
        ({"deep/er/train/x/1.png": b""}, r"no train/ folder"),
        ({"one/train/x/1.png": b"", "two/train/x/1.png": b""}, r"one/train/, two/train/"),
        ({"train/x/1.png": b"", "Train/x/1.png": b""}, r"Train/, train/"),
        (without(faces(), "test/happy"), r"differ.*only in train: happy"),
        (without(faces(), "test") | {"test/1.png": png(9)}, r"no class folder in test/.*remove"),
        (without(faces(), "train/happy"), r"differ.*only in test: happy"),
        (faces() | {"test/sad/1.png": b"", "train/bad/1.png": b""}, r"train: bad; .*test: sad"),
        (without(faces(), "test", "train/happy"), r"two classes"),
        ({"train/labels.csv": b""}, r"no class in train/"),
        (without(faces(), "test/happy") | {"test/happy/": b""}, r"'happy' has no image.* test"),
        (
            without(faces(), "test/happy") | {"test/happy/1.png": b"no image"},
            r"'happy' has no image.* test",
        ),
    ],
)
def test_another_layout_is_refused_by_name(tmp_path: Path, files: Files, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(in_zip(tmp_path / "s.zip", files), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_class_folder_is_an_error(tmp_path: Path) -> None:
    source = in_folder(tmp_path / "s", faces())
    for split in ("train", "test"):
        (source / split / "sad").mkdir()
    with pytest.raises(UserError, match=r"'sad' has no image.* train"):
        run(source, tmp_path / "out")


def test_a_source_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ingest\.source: .*does not exist"):
        run(tmp_path / "none", tmp_path / "out")
    (tmp_path / "set.csv").write_text("a,b")
    with pytest.raises(UserError, match="neither a folder nor a zip"):
        run(tmp_path / "set.csv", tmp_path / "out")
    (tmp_path / "set.zip").write_text("<html>Please log in</html>")
    with pytest.raises(UserError, match="not a sound zip"):
        run(tmp_path / "set.zip", tmp_path / "out")


def test_a_source_in_the_target_is_not_replaced_by_it(tmp_path: Path) -> None:
    source = in_zip(tmp_path / "s.zip", faces())
    with pytest.raises(UserError, match="lies in"):
        run(source, tmp_path)
    assert source.exists()


# --- Bad files.


def broken(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


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
    "short.png": (png(1, 64, 64)[:-900], "Truncated"),
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
    report = run(
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
        run(source, tmp_path / "out", max_bad_fraction=0.39)
    assert "8 of 20 files (40.0%)" in str(caught.value)
    assert "ingest.max_bad_fraction = 0.39" in str(caught.value)
    assert "train/angry/bad0.png (empty file)" in str(caught.value)
    assert "and 3 more" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert len(run(source, tmp_path / "out", max_bad_fraction=0.4).bad_files) == 8


def test_a_file_too_large_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "MAX_FILE_BYTES", 2**20)
    files = faces() | {"train/angry/large.png": png(0) + bytes(2**20)}
    for source in (in_zip(tmp_path / "s.zip", files), in_folder(tmp_path / "s", files)):
        report = run(source, tmp_path / "out")
        assert report.bad_files == (BadFile("train/angry/large.png", "larger than 1 MiB"),)


@posix_only
def test_links_and_pipes_in_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = in_folder(tmp_path / "s", faces())
    (tmp_path / "elsewhere.png").write_bytes(png(70))
    (source / "train/angry/linked.png").symlink_to(tmp_path / "elsewhere.png")
    (source / "train/angry/nowhere.png").symlink_to(tmp_path / "nowhere.png")
    (source / "train/angry/self.png").symlink_to("self.png")
    (source / "train/angry/loop").symlink_to(source, target_is_directory=True)
    os.mkfifo(source / "train/angry/pipe.png")
    with caplog.at_level(logging.INFO):
        report = run(source, tmp_path / "out")
    assert report.counts["train"]["angry"] == 4
    assert [bad.path.split("/")[-1] for bad in report.bad_files] == [
        "nowhere.png",
        "pipe.png",
        "self.png",
    ]
    assert "train/angry/loop" in caplog.text


# --- Hostile and damaged zips.


def with_flags(
    path: Path, name: str, *, encrypted: bool = False, method: int | None = None
) -> None:
    """Change what a zip says of a member, in its directory and before the member itself."""
    data = bytearray(path.read_bytes())
    for signature, flags_at, name_at in ((b"PK\x03\x04", 6, 30), (b"PK\x01\x02", 8, 46)):
        start = data.index(signature)
        while data[start + name_at : start + name_at + len(name)] != name.encode():
            start = data.index(signature, start + 1)
        if encrypted:
            data[start + flags_at] |= 1
        if method is not None:
            data[start + flags_at + 2] = method
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil.png", r"'\.\./evil\.png' has '\.\.'"),
        ("train/angry/../../../evil.png", r"has '\.\.'"),
        ("train\\..\\..\\evil.png", r"has '\.\.'"),
        ("/train/angry/evil.png", "absolute"),
        ("\\\\server\\evil.png", "absolute"),
        ("C:\\evil.png", "absolute"),
        ("train/angry//im0.png", r"2 members 'train/angry/im0\.png'"),
    ],
)
def test_an_unsafe_name_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(in_zip(tmp_path / "s.zip", faces() | {name: png(9)}), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_image_twice_is_refused(tmp_path: Path) -> None:
    source = in_zip(tmp_path / "s.zip", faces() | {"train/angry/": b"", "__MACOSX/a": b""})
    with zipfile.ZipFile(source, "a") as file:
        file.writestr("train/angry/", b"")
        file.writestr("__MACOSX/a", b"")
    assert run(source, tmp_path / "out").counts["train"] == {"angry": 3, "happy": 3}
    with zipfile.ZipFile(source, "a") as file:
        file.writestr("train/angry/im0.png", png(1))
    with pytest.raises(UserError, match=r"2 members 'train/angry/im0\.png'"):
        run(source, tmp_path / "out")


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    source = in_zip(tmp_path / "s.zip", faces())
    link = zipfile.ZipInfo("train/angry/link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(source, "a") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match=r"link\.png' is a link"):
        run(source, tmp_path / "out")


def test_encryption_and_other_compression_are_refused(tmp_path: Path) -> None:
    source = in_zip(tmp_path / "s.zip", faces())
    with_flags(source, "train/angry/im1.png", encrypted=True)
    with pytest.raises(UserError, match=r"im1\.png' is encrypted"):
        run(source, tmp_path / "out")
    in_zip(source, faces())
    with_flags(source, "train/angry/im1.png", method=zipfile.ZIP_LZMA)
    with pytest.raises(UserError, match=r"im1\.png' is compressed by a method"):
        run(source, tmp_path / "out")


def test_a_zip_bomb_is_refused_by_what_it_says(tmp_path: Path) -> None:
    bomb = encoded(Image.new("L", (5, 6))) + bytes(4 * 2**20)
    source = in_zip(tmp_path / "s.zip", faces() | {"train/angry/bomb.png": bomb})
    assert source.stat().st_size < 20_000
    with pytest.raises(UserError, match=r"0\.00 GiB.*ingest\.max_unpacked_gib = 0\.001"):
        run(source, tmp_path / "out", max_unpacked_gib=0.001)


def test_a_zip_bomb_that_lies_is_read_no_further_than_it_says(tmp_path: Path) -> None:
    bomb = encoded(Image.new("L", (5, 6))) + bytes(4 * 2**20)
    source = in_zip(tmp_path / "s.zip", faces() | {"train/angry/bomb.png": bomb})
    said = struct.pack("<I", len(bomb))
    source.write_bytes(source.read_bytes().replace(said, struct.pack("<I", 100)))
    report = run(source, tmp_path / "out", max_unpacked_gib=0.001)
    (bad,) = report.bad_files
    assert bad.path == "train/angry/bomb.png"
    assert "CRC" in bad.reason


def test_damage_within_a_zip_is_a_bad_file(tmp_path: Path) -> None:
    files = faces()
    source = tmp_path / "s.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_STORED) as file:
        for name, data in files.items():
            file.writestr(name, data)
    data = source.read_bytes()
    image = files["train/happy/im2.png"]
    source.write_bytes(broken(data, data.index(image) + len(image) - 20))
    report = run(source, tmp_path / "out")
    (bad,) = report.bad_files
    assert bad.path == "train/happy/im2.png"
    assert "damaged in the zip" in bad.reason


def test_a_zip_cut_short_is_refused(tmp_path: Path) -> None:
    source = in_zip(tmp_path / "s.zip", faces())
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a sound zip"):
        run(source, tmp_path / "out")


def test_random_damage_ends_in_a_dataset_or_a_clear_error(tmp_path: Path) -> None:
    sound = in_zip(tmp_path / "s.zip", faces(each=1)).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        data = bytearray(sound)
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        (tmp_path / "s.zip").write_bytes(data)
        try:
            run(tmp_path / "s.zip", tmp_path / "out", max_bad_fraction=1)
        except UserError:
            refused += 1
    assert 0 < refused < 150


# --- Decoding.


def pixels_of(data: bytes, mode: ColorMode = "grayscale") -> np.ndarray:
    return np.frombuffer(decode(data, (6, 5), mode), np.uint8).reshape(6, 5, -1)


def test_grey_becomes_colour_by_copies_and_colour_grey_by_luma() -> None:
    grey = np.asarray(picture(0))
    colour = pixels_of(png(0), "rgb")
    assert np.array_equal(colour, np.stack([grey] * 3, axis=-1))
    red = encoded(Image.new("RGB", (5, 6), (255, 0, 0)))
    assert np.unique(pixels_of(red)).tolist() == [76]


@pytest.mark.parametrize("kind", ["BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF"])
def test_other_formats_decode_to_the_same_pixels(kind: str) -> None:
    found = pixels_of(encoded(picture(0), kind, lossless=True, quality=100))[..., 0]
    difference = found.astype(int) - np.asarray(picture(0))
    assert np.abs(difference).max() <= (2 if kind == "AVIF" else 0)


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (5, 6), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    palette = picture(0).convert("P")
    palette.putpixel((1, 1), 7)
    for grey in (pixels_of(encoded(image)), pixels_of(encoded(image.convert("LA")))):
        assert grey[0, 0, 0] == 0
        assert (grey.ravel()[1:] == 255).all()
    assert pixels_of(encoded(palette, transparency=7))[1, 1, 0] == 255


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.array([[0, 128, 257, 32896, 65535]] * 6, np.uint16)
    expected = [0, 0, 1, 128, 255]
    for kind in ("PNG", "TIFF"):
        assert pixels_of(encoded(Image.fromarray(values), kind))[0, :, 0].tolist() == expected
    portable = b"P5 5 6 65535\n" + values.astype(">u2").tobytes()
    assert pixels_of(portable)[0, :, 0].tolist() == expected


def test_cmyk_and_one_bit_are_converted() -> None:
    ink = encoded(Image.new("CMYK", (5, 6), (0, 0, 0, 255)), "TIFF")
    assert not pixels_of(ink).any()
    paper = encoded(Image.new("CMYK", (5, 6)), "JPEG")
    assert (pixels_of(paper, "rgb") >= 254).all()
    assert (pixels_of(encoded(Image.new("1", (5, 6), 1))) == 255).all()


def test_a_photo_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    image = picture(0, height=5, width=6)
    data = encoded(image, exif=exif)
    assert np.array_equal(pixels_of(data)[..., 0], np.rot90(np.asarray(image), k=-1))


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [picture(seed) for seed in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(pixels_of(data)[..., 0], np.asarray(frames[0]))
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert np.array_equal(pixels_of(data)[..., 0], np.asarray(frames[0]))


def test_another_size_is_resized_without_aliasing() -> None:
    stripes = np.zeros((60, 50), np.uint8)
    stripes[:, ::2] = 255
    small = pixels_of(encoded(Image.fromarray(stripes)))
    assert small.shape == (6, 5, 1)
    assert (np.abs(small.astype(int) - 127) < 12).all()


# --- Whole or not at all, and on every core.


def test_the_target_is_replaced_only_by_a_whole_dataset(tmp_path: Path) -> None:
    target = tmp_path / "data" / "dataset"
    source = in_zip(tmp_path / "s.zip", faces())
    before = run(source, target)
    (target / "stale.txt").write_text("old")
    with pytest.raises(UserError):
        run(source, target, max_unpacked_gib=0.0)
    assert Dataset.open(target).digest == before.digest
    assert (target / "stale.txt").exists()

    in_zip(source, faces(each=4))
    run(source, target)
    assert len(Dataset.open(target)) == 16
    assert not (target / "stale.txt").exists()
    assert [path.name for path in target.parent.iterdir()] == ["dataset"]


@pytest.mark.parametrize("make", [in_zip, in_folder])
def test_processes_and_one_process_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, Files], Path]
) -> None:
    files = faces(each=40) | {"train/angry/im7.png": b"", "test/happy/im9.png": b"?"}
    source = make(tmp_path / "s.zip", files)
    alone = run(source, tmp_path / "alone")
    monkeypatch.setattr(ingest, "FILES_IN_PROCESS", 10)
    together = run(source, tmp_path / "together")

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
from emotion_detection.data import ingest

if __name__ == "__main__":
    ingest.FILES_IN_PROCESS = 10
    console.run(lambda: ingest.ingest(
        Path(sys.argv[1]), Path(sys.argv[2]), image_size=(48, 48), color_mode="rgb",
        max_bad_fraction=0.1, max_unpacked_gib=1.0, test_fraction=0.2, drop_leaks=False, seed=0))
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
    # A background job of a shell is started deaf to Ctrl-C, and so would be its children.
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
