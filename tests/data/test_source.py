"""Folders and zips of class folders: what is read of them, and what is refused."""

import logging
import os
import re
import struct
import sys
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emotion_detection.console import UserError
from emotion_detection.data import source as source_module
from emotion_detection.data.dataset import BadFile, Dataset
from emotion_detection.data.source import natural_key
from tests.support.sources import (
    HEIGHT,
    WIDTH,
    Files,
    broken,
    encoded,
    faces,
    in_folder,
    in_zip,
    ingested,
    png,
)


def test_the_natural_key_survives_thousands_of_digits() -> None:
    long = "im" + "9" * 6000
    assert sorted([long, "im10", "im9", "im"], key=natural_key) == ["im", "im9", "im10", long]


@pytest.mark.parametrize("layout", ["{}", "archive/{}", "./{}", "{top}/{}", "a/{top}/{top}/{}"])
def test_the_splits_lie_at_the_top_or_below_one_folder(tmp_path: Path, layout: str) -> None:
    files = {
        layout.format(name.replace("train", "Train"), top=name.split("/")[0]): data
        for name, data in faces().items()
    }
    report = ingested(in_zip(tmp_path / "s.zip", files), tmp_path / "out")
    assert report.counts == {"train": {"angry": 3, "happy": 3}, "test": {"angry": 3, "happy": 3}}


def test_windows_separators_are_understood(tmp_path: Path) -> None:
    files = {name.replace("/", "\\"): data for name, data in faces().items()}
    report = ingested(
        in_zip(tmp_path / "s.zip", {**files, "train\\angry\\": b""}), tmp_path / "out"
    )
    assert report.counts["test"] == {"angry": 3, "happy": 3}
    assert report.bad_files == ()


def test_names_may_hold_spaces_and_any_script(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "très triste")
    files = {
        f"train/{decomposed}/a b.png": png(1),
        "train/怒り/1.png": png(2),
        "test/très triste/2.png": png(3),
        "test/怒り/3.png": png(4),
    }
    ingested(in_zip(tmp_path / "s.zip", files), tmp_path / "out")
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
    ingested(path, tmp_path / "unsaid")
    unsaid = Dataset.open(tmp_path / "unsaid")
    assert (unsaid.files, unsaid.digest) == (dataset.files, dataset.digest)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_class_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    source = in_folder(tmp_path / "s", faces(("train",)) | {"train/caf\udce9/1.png": png(1)})
    with pytest.raises(UserError, match=r"class folder 'caf\\udce9'.*not UTF-8; rename it"):
        ingested(source, tmp_path / "out")


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
        report = ingested(source, tmp_path / "out")
        assert report.bad_files == ()
        assert sum(map(len, report.counts.values())) == 4


def test_what_is_not_read_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = {"other/1.png": png(90), "train/labels.csv": b"a,b", "readme.txt": b"hi"}
    with caplog.at_level(logging.INFO):
        report = ingested(in_folder(tmp_path / "s", faces() | extra), tmp_path / "out")
    assert "left out (outside the splits): other, readme.txt" in caplog.text
    assert report.bad_files == ()
    dataset = Dataset.open(tmp_path / "out")
    assert len(dataset) == 12
    assert dataset.left_out == {"outside the splits": 2, "in no class folder": 1}


# --- Layouts that are refused.


def without(files: Files, *prefixes: str) -> Files:
    return {name: data for name, data in files.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/b/c.png": b""}, r"no train/ folder, no class folders .*expected .*; found a/"),
        ({"im.png": b""}, r"no train/ folder, .*found no folders"),
        ({"one/train/x/1.png": b"", "two/train/x/1.png": b""}, r"one/train/, two/train/"),
        ({"train/x/1.png": b"", "Train/x/1.png": b""}, r"Train/, train/"),
        (faces() | {"test/sad/1.png": b""}, r"in test that train has not: sad; .*\{sad: null\}"),
        (without(faces(), "test", "train/happy"), r"two classes"),
        ({"train/labels.csv": b""}, r"no train/ folder, no class folders"),
        (without(faces(), "test/happy") | {"test/happy/": b""}, r"'happy' has no image.* test"),
        (
            without(faces(), "test/happy") | {"test/happy/1.png": b"no image"},
            r"'happy' has no image.* test",
        ),
    ],
)
def test_another_layout_is_refused_by_name(tmp_path: Path, files: Files, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ingested(in_zip(tmp_path / "s.zip", files), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_class_folder_is_an_error(tmp_path: Path) -> None:
    source = in_folder(tmp_path / "s", faces())
    for split in ("train", "test"):
        (source / split / "sad").mkdir()
    with pytest.raises(UserError, match=r"'sad' has no image.* test"):
        ingested(source, tmp_path / "out")


def test_a_source_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ingest\.source: .*does not exist"):
        ingested(tmp_path / "none", tmp_path / "out")
    (tmp_path / "set.csv").write_text("a,b")
    with pytest.raises(UserError, match="no class folders and no table of labels"):
        ingested(tmp_path / "set.csv", tmp_path / "out")
    (tmp_path / "set.7z").write_text("7z")
    with pytest.raises(UserError, match=r"neither a folder nor a \.zip, \.tar or \.csv"):
        ingested(tmp_path / "set.7z", tmp_path / "out")
    (tmp_path / "set.zip").write_text("<html>Please log in</html>")
    with pytest.raises(UserError, match="not a sound zip"):
        ingested(tmp_path / "set.zip", tmp_path / "out")


# --- Files that cannot be read.


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
def test_links_and_pipes_in_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = in_folder(tmp_path / "s", faces())
    (tmp_path / "elsewhere.png").write_bytes(png(70))
    (source / "train/angry/linked.png").symlink_to(tmp_path / "elsewhere.png")
    (source / "train/angry/nowhere.png").symlink_to(tmp_path / "nowhere.png")
    (source / "train/angry/self.png").symlink_to("self.png")
    (source / "train/angry/loop").symlink_to(source, target_is_directory=True)
    os.mkfifo(source / "train/angry/pipe.png")
    with caplog.at_level(logging.INFO):
        report = ingested(source, tmp_path / "out")
    assert report.counts["train"]["angry"] == 4
    assert [bad.path.split("/")[-1] for bad in report.bad_files] == [
        "nowhere.png",
        "pipe.png",
        "self.png",
    ]
    assert "train/angry/loop" in caplog.text


def test_a_file_too_large_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "MAX_FILE_BYTES", 2**20)
    files = faces() | {"train/angry/large.png": png(0) + bytes(2**20)}
    for source in (in_zip(tmp_path / "s.zip", files), in_folder(tmp_path / "s", files)):
        report = ingested(source, tmp_path / "out")
        assert report.bad_files == (BadFile("train/angry/large.png", "larger than 1 MiB"),)


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
        ingested(in_zip(tmp_path / "s.zip", faces() | {name: png(9)}), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_nul_in_a_name_is_refused(tmp_path: Path) -> None:
    source = in_zip(tmp_path / "s.zip", faces() | {"train/angry/e_vil.png": png(9)})
    source.write_bytes(source.read_bytes().replace(b"e_vil", b"e\0vil"))
    with pytest.raises(UserError, match="has a NUL in its name"):
        ingested(source, tmp_path / "out")


def test_an_image_twice_is_refused(tmp_path: Path) -> None:
    source = in_zip(tmp_path / "s.zip", faces() | {"train/angry/": b"", "__MACOSX/a": b""})
    with zipfile.ZipFile(source, "a") as file:
        file.writestr("train/angry/", b"")
        file.writestr("__MACOSX/a", b"")
    assert ingested(source, tmp_path / "out").counts["train"] == {"angry": 3, "happy": 3}
    with zipfile.ZipFile(source, "a") as file:
        file.writestr("train/angry/im0.png", png(1))
    with pytest.raises(UserError, match=r"2 members 'train/angry/im0\.png'"):
        ingested(source, tmp_path / "out")


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    source = in_zip(tmp_path / "s.zip", faces())
    link = zipfile.ZipInfo("train/angry/link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(source, "a") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match=r"link\.png' is a link"):
        ingested(source, tmp_path / "out")


def test_encryption_and_other_compression_are_refused(tmp_path: Path) -> None:
    source = in_zip(tmp_path / "s.zip", faces())
    with_flags(source, "train/angry/im1.png", encrypted=True)
    with pytest.raises(UserError, match=r"im1\.png' is encrypted"):
        ingested(source, tmp_path / "out")
    in_zip(source, faces())
    with_flags(source, "train/angry/im1.png", method=zipfile.ZIP_LZMA)
    with pytest.raises(UserError, match=r"im1\.png' is compressed by a method"):
        ingested(source, tmp_path / "out")


def test_a_zip_bomb_is_refused_by_what_it_says(tmp_path: Path) -> None:
    bomb = encoded(Image.new("L", (WIDTH, HEIGHT))) + bytes(4 * 2**20)
    source = in_zip(tmp_path / "s.zip", faces() | {"train/angry/bomb.png": bomb})
    assert source.stat().st_size < 20_000
    with pytest.raises(UserError, match=r"more than ingest\.max_unpacked_gib = 0\.001"):
        ingested(source, tmp_path / "out", max_unpacked_gib=0.001)


def test_a_zip_bomb_that_lies_is_read_no_further_than_it_says(tmp_path: Path) -> None:
    bomb = encoded(Image.new("L", (WIDTH, HEIGHT))) + bytes(4 * 2**20)
    source = in_zip(tmp_path / "s.zip", faces() | {"train/angry/bomb.png": bomb})
    said = struct.pack("<I", len(bomb))
    source.write_bytes(source.read_bytes().replace(said, struct.pack("<I", 100)))
    report = ingested(source, tmp_path / "out", max_unpacked_gib=0.001)
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
    report = ingested(source, tmp_path / "out")
    (bad,) = report.bad_files
    assert bad.path == "train/happy/im2.png"
    assert "damaged in the zip" in bad.reason


def test_a_zip_cut_short_is_refused(tmp_path: Path) -> None:
    source = in_zip(tmp_path / "s.zip", faces())
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a sound zip"):
        ingested(source, tmp_path / "out")


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
            ingested(tmp_path / "s.zip", tmp_path / "out", max_bad_fraction=1)
        except UserError:
            refused += 1
    assert 0 < refused < 150
