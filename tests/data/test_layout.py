"""Layouts of sources: which files are taken as which split and class, and what is refused."""

import errno
import logging
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emotion_detection.console import UserError
from emotion_detection.data.dataset import SPLITS, Dataset
from tests.support.sources import (
    HEIGHT,
    WIDTH,
    Files,
    encoded,
    faces,
    in_folder,
    in_zip,
    ingested,
    picture,
    png,
    tarred,
    zipped,
)

BOTH = {"angry": 3, "happy": 3}


def moved(files: Files, **prefixes: str) -> Files:
    """Return the files with the first folder of their paths replaced."""
    return {
        f"{prefixes.get(split, split)}/{rest}": data
        for split, _, rest in ((*name.partition("/"),) for name in files)
        for data in (files[f"{split}/{rest}"],)
    }


def in_tar(path: Path, files: Files) -> Path:
    path.write_bytes(tarred(files))
    return path


def counts(folder: Path, source: Path, **changes: Any) -> dict[str, dict[str, int]]:
    return ingested(source, folder / "out", **changes).counts


# --- Splits.


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("training_set/training_set", "test_set/test_set"),
        ("fer2013plus/fer2013/train", "fer2013plus/fer2013/test"),
        ("a/b/c/train", "a/b/c/test"),
    ],
)
def test_splits_are_known_by_their_usual_names_at_any_depth(
    tmp_path: Path, train: str, test: str
) -> None:
    source = in_folder(tmp_path / "s", moved(faces(), train=train, test=test))
    assert counts(tmp_path, source) == {"train": BOTH, "test": BOTH}


@pytest.mark.parametrize("name", ["valid", "validation", "val", "dev"])
def test_a_validation_folder_is_the_hold_out(tmp_path: Path, name: str) -> None:
    files = moved(faces(("train", "v", "test")), v=name)
    report = ingested(in_zip(tmp_path / "s.zip", files), tmp_path / "out")
    assert report.counts == dict.fromkeys(SPLITS, BOTH)
    dataset = Dataset.open(tmp_path / "out")
    assert all(dataset.files[row].startswith(name) for row in dataset.is_validation.nonzero()[0])


def test_without_a_test_folder_the_validation_folder_is_the_test_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = moved(faces(("train", "v")), train="images/train", v="images/validation")
    # And all of it once more, as some archives have it.
    files |= {f"images/{name}": data for name, data in files.items()}
    with caplog.at_level(logging.WARNING):
        report = ingested(in_zip(tmp_path / "s.zip", files), tmp_path / "out")
    assert report.counts == {"train": BOTH, "test": BOTH}
    assert not report.test_is_cut
    assert "the validation images are taken as test images" in caplog.text
    assert Dataset.open(tmp_path / "out").left_out == {"in a second copy of the set": 12}


def test_class_folders_without_a_split_are_train(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = in_folder(tmp_path / "s", moved(faces(("train",)), train="CK+48"))
    with caplog.at_level(logging.WARNING):
        report = ingested(source, tmp_path / "out")
    assert report.counts == {"train": {"angry": 2, "happy": 2}, "test": {"angry": 1, "happy": 1}}
    assert report.test_is_cut
    assert "CK+48 has no train/: its 2 folders are taken as classes: angry, happy" in caplog.text


def test_a_folder_without_labels_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = faces(("train",)) | {f"test/{n}.png": png(50 + n) for n in range(4)}
    with caplog.at_level(logging.WARNING):
        report = ingested(in_folder(tmp_path / "s", files), tmp_path / "out")
    assert report.test_is_cut
    assert "s/test has no class folders" in caplog.text
    assert Dataset.open(tmp_path / "out").left_out == {"in a split without class folders": 4}


def test_files_that_are_not_meant_as_images_are_counted_and_not_bad(tmp_path: Path) -> None:
    files = faces() | {"train/angry/boxes.txt": b"0 0 1 1", "readme.txt": b"hi", "train/a.csv": b""}
    report = ingested(in_folder(tmp_path / "s", files), tmp_path / "out", max_bad_fraction=0)
    assert report.bad_files == ()
    assert Dataset.open(tmp_path / "out").left_out == {
        "not an image by its suffix": 1,
        "outside the splits": 1,
        "in no class folder": 1,
    }


def test_a_labelled_folder_of_another_name_is_not_passed_over(tmp_path: Path) -> None:
    files = faces() | moved(faces(("train",)), train="more")
    source = in_folder(tmp_path / "s", {k: v + bytes([len(k)]) for k, v in files.items()})
    with pytest.raises(UserError, match=r"s/more/ has the classes.*ingest\.splits \(\{more: val"):
        ingested(source, tmp_path / "out")
    assert counts(tmp_path, source, splits={"more": "validation"}) == dict.fromkeys(SPLITS, BOTH)
    assert counts(tmp_path, source, splits={"more": None}) == {"train": BOTH, "test": BOTH}


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_to_folders_are_followed_unless_they_loop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = in_folder(tmp_path / "s", faces())
    (source / "train/happy").rename(tmp_path / "elsewhere")
    (source / "train/happy").symlink_to(tmp_path / "elsewhere")
    (source / "test").rename(tmp_path / "shared_test")
    (source / "test").symlink_to(tmp_path / "shared_test")
    (source / "train/angry/loop").symlink_to(source)
    with caplog.at_level(logging.WARNING):
        assert counts(tmp_path, source) == {"train": BOTH, "test": BOTH}
    assert "links to folders are followed: test, train/happy" in caplog.text
    assert "train/angry/loop is a link to a folder above it" in caplog.text


# --- Classes.


def test_names_that_differ_in_case_are_one_class(tmp_path: Path) -> None:
    files = {name.replace("test/happy", "test/Happy"): data for name, data in faces().items()}
    assert counts(tmp_path, in_zip(tmp_path / "s.zip", files)) == {"train": BOTH, "test": BOTH}


def test_a_class_of_train_alone_is_kept_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = in_zip(tmp_path / "s.zip", faces() | {"train/sad/1.png": png(90)})
    with caplog.at_level(logging.WARNING):
        found = counts(tmp_path, source)
    assert found == {"train": BOTH | {"sad": 1}, "test": BOTH | {"sad": 0}}
    assert "test has no image of sad" in caplog.text


def test_classes_are_renamed_merged_and_left_out(tmp_path: Path) -> None:
    files = faces() | {f"{split}/sad/{n}.png": png(80 + n) for n, split in enumerate(SPLITS[::2])}
    source = in_zip(tmp_path / "s.zip", files)
    merged = counts(tmp_path, source, classes={"sad": "angry", "happy": "joy"})
    assert merged == {split: {"angry": 4, "joy": 3} for split in ("train", "test")}
    assert counts(tmp_path, source, classes={"Sad": None}) == {"train": BOTH, "test": BOTH}
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.left_out == {"of a class that ingest.classes leaves out": 2}
    with pytest.raises(UserError, match=r"no class 'sat'; it has angry, happy, sad"):
        ingested(source, tmp_path / "out", classes={"sat": None})


# --- Archives.


@pytest.mark.parametrize(
    "make",
    [
        lambda p: in_tar(p / "s.tar.gz", faces()),
        lambda p: in_zip(p / "s.zip", {"fer.zip": zipped(faces())}),
        lambda p: in_zip(
            p / "s.zip",
            {
                f"{split}.zip": zipped({k: v for k, v in faces().items() if k.startswith(split)})
                for split in ("train", "test")
            },
        ),
        lambda p: in_folder(p / "s", {"a.zip": zipped(faces())}),
    ],
)
def test_archives_and_archives_in_them_are_unpacked(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    whole = ingested(in_folder(tmp_path / "plain", faces()), tmp_path / "out")
    report = ingested(make(tmp_path), tmp_path / "out")
    assert report.counts == whole.counts
    assert report.digest == whole.digest
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "images.npy",
        "index.csv",
        "near_duplicates.csv",
        "dataset.json",
    }
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (tarfile.SYMTYPE, "train/angry/x.png", r"is a link or a device"),
        (tarfile.FIFOTYPE, "train/angry/x.png", r"is a link or a device"),
        (tarfile.REGTYPE, "../x.png", r"no sound tar archive"),
    ],
)
def test_an_unsafe_tar_is_refused(tmp_path: Path, kind: bytes, name: str, message: str) -> None:
    path = in_tar(tmp_path / "s.tar.gz", faces())
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(UserError, match=message):
        ingested(path, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.tar.gz"]


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    files = {"train/angry/0.png": bytes(3 * 2**20)}
    for source in (
        in_tar(tmp_path / "s.tar.gz", files),
        in_zip(tmp_path / "s.zip", {"in.zip": zipped(files)}),
    ):
        with pytest.raises(UserError, match=r"more than ingest\.max_unpacked_gib = 0\.001"):
            ingested(source, tmp_path / "out", max_unpacked_gib=0.001)


# --- Tables.


def fer2013(header: str = "emotion,pixels,Usage") -> bytes:
    """Return a small fer2013.csv: two images of each class for train, one for each test part."""
    lines = [header]
    for usage, number in (("Training", 2), ("PublicTest", 1), ("PrivateTest", 1)):
        for emotion in range(7):
            for n in range(number):
                pixels = " ".join(
                    str((emotion * 31 + n * 7 + i + len(usage)) % 256) for i in range(64)
                )
                lines.append(f"{emotion},{pixels},{usage}")
    return "\n".join(lines).encode()


def test_fer2013_csv_is_read_with_its_own_order_of_classes(tmp_path: Path) -> None:
    (tmp_path / "fer2013.csv").write_bytes(fer2013())
    report = ingested(tmp_path / "fer2013.csv", tmp_path / "out", image_size=(8, 8))
    assert {split: sum(c.values()) for split, c in report.counts.items()} == {
        "train": 14,
        "test": 14,
    }
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.classes == (
        "angry",
        "disgust",
        "fear",
        "happy",
        "neutral",
        "sad",
        "surprise",
    )
    (row,) = [
        r for r, file in enumerate(dataset.files) if file.endswith("happy/Training-00008.png")
    ]
    assert dataset.images[row].ravel()[:3].tolist() == [3 * 31 + 8, 3 * 31 + 9, 3 * 31 + 10]
    # The columns of icml_face_data.csv, in archives.
    odd = fer2013("emotion, Usage, pixels".replace(" Usage, pixels", " pixels, Usage"))
    for source in (
        in_zip(tmp_path / "s.zip", {"icml_face_data.csv": odd}),
        in_tar(tmp_path / "s.tar.gz", {"fer2013/icml_face_data.csv": odd}),
    ):
        assert ingested(source, tmp_path / "out", image_size=(8, 8)).digest == report.digest
    three = ingested(
        tmp_path / "fer2013.csv",
        tmp_path / "out",
        image_size=(8, 8),
        splits={"PublicTest": "validation"},
    )
    assert [sum(c.values()) for c in three.counts.values()] == [14, 7, 7]


def test_a_row_of_a_table_that_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "fer2013.csv"
    path.write_bytes(fer2013() + b"\n7,1 2 3 4,Training")
    with pytest.raises(UserError, match=r"fer2013\.csv, line 30: emotion is no number from 0 to 6"):
        ingested(path, tmp_path / "out")
    path.write_bytes(fer2013() + b"\n1,1 2 3 4,Other")
    with pytest.raises(UserError, match=r"line 30: 'Other' is no split.*\{Other: validation\}"):
        ingested(path, tmp_path / "out")
    path.write_bytes(fer2013() + b"\n1,1 2 3,Training")
    (bad,) = ingested(path, tmp_path / "out", image_size=(8, 8)).bad_files
    assert bad.path == "train/disgust/Training-00030.png"


@pytest.mark.parametrize("named", ["{}.png", "{}", "images/{}.png"])
def test_a_table_labels_files(tmp_path: Path, named: str) -> None:
    images = {f"images/{n}.png": png(n) for n in range(8)}
    rows = "".join(
        f"{named.format(n)},{('angry', 'happy')[n % 2]},{('train', 'test')[n > 5]}\n"
        for n in range(8)
    )
    files = images | {"labels.csv": f"filename,label,split\n{rows}".encode()}
    report = ingested(in_zip(tmp_path / "s.zip", files), tmp_path / "out")
    assert report.counts == {"train": BOTH, "test": {"angry": 1, "happy": 1}}


def test_a_table_that_names_no_file_is_refused(tmp_path: Path) -> None:
    files = {"images/1.png": png(1), "labels.csv": b"image,label\n1,angry\n2,happy\n"}
    with pytest.raises(UserError, match=r"labels\.csv, line 3: '2' is no image file"):
        ingested(in_zip(tmp_path / "s.zip", files), tmp_path / "out")


# --- Names in a zip.


def renamed(path: Path, encoding: str) -> None:
    """Write the names of a zip in another encoding, which it does not say."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    placeholder = {name: f"{number:04d}.png" for number, name in enumerate(files)}
    raw = {name: name.encode(encoding) for name in files}
    length = max(map(len, raw.values()))
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(placeholder[name].rjust(length, "_"), data)
    content = path.read_bytes()
    for name in files:
        old = placeholder[name].rjust(length, "_").encode()
        stem, dot, suffix = raw[name].rpartition(b".")
        content = content.replace(old, stem + b"_" * (length - len(raw[name])) + dot + suffix)
    path.write_bytes(content)


def test_names_in_another_encoding_are_not_guessed(tmp_path: Path) -> None:
    files = {
        f"{split}/{name}/{n}.png": png(n + 10 * ord(name[0]))
        for split, n in (("train", 1), ("train", 2), ("test", 3))
        for name in ("高兴", "悲伤")
    }
    source = in_zip(tmp_path / "s.zip", files)
    expected = ingested(source, tmp_path / "out").digest
    renamed(source, "gbk")
    with pytest.raises(UserError, match=r"set ingest\.zip_encoding .*'train/高兴' \(gbk\)"):
        ingested(source, tmp_path / "out")
    assert ingested(source, tmp_path / "out", zip_encoding="gbk").digest == expected
    with pytest.raises(UserError, match=r"zip_encoding = ascii: .* not in it"):
        ingested(source, tmp_path / "out", zip_encoding="ascii")


def test_the_unicode_path_field_of_a_zip_wins(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for path, data in faces().items():
            plain = path.replace("happy", "??")
            name = b"\1" + struct.pack("<I", zlib.crc32(plain.encode())) + path.encode()
            info = zipfile.ZipInfo(plain)
            info.extra = struct.pack("<HH", 0x7075, len(name)) + name
            archive.writestr(info, data)
    assert counts(tmp_path, tmp_path / "s.zip") == {"train": BOTH, "test": BOTH}


def test_a_zip_of_very_many_folders_in_one_another_is_refused(tmp_path: Path) -> None:
    deep = "/".join("a" * 3000)
    source = in_zip(tmp_path / "s.zip", faces() | {f"{deep}/{n}.png": b"" for n in range(50)})
    with pytest.raises(UserError, match="more than 32 folders deep") as raised:
        ingested(source, tmp_path / "out")
    assert len(str(raised.value)) < 600


def test_a_source_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emotion_detection.data import ingest as module

    source = in_folder(tmp_path / "s", faces())
    check = module._check_bad_files

    def then_add(*arguments: object) -> None:
        (source / "train/angry/new.png").write_bytes(png(99, HEIGHT, WIDTH))
        check(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_check_bad_files", then_add)
    with pytest.raises(UserError, match=r"changed while it was read \(train/angry/new\.png\)"):
        ingested(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_archive_in_an_archive_is_refused(tmp_path: Path) -> None:
    damaged = bytearray(zipped({"train/angry/a.png": png(0)}))
    damaged[60] ^= 255
    source = in_zip(tmp_path / "s.zip", {"inner.zip": bytes(damaged)})
    with pytest.raises(UserError, match=r"train/angry/a\.png cannot be unpacked from .*inner\.zip"):
        ingested(source, tmp_path / "out")
    nested = {"a": b"", "a/train/angry/a.png": png(0)}
    source = in_zip(tmp_path / "s.zip", {"inner.zip": zipped(nested)})
    with pytest.raises(UserError, match=r"cannot be unpacked"):
        ingested(source, tmp_path / "out")


def test_a_full_disk_is_not_a_damaged_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    source = in_tar(tmp_path / "s.tar.gz", faces())
    with pytest.raises(UserError, match=r"out: No space left on device; free some space"):
        ingested(source, tmp_path / "out")


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("name", ["inner.zip", "labels.csv"])
def test_a_pipe_in_the_place_of_an_archive_or_table_is_named(tmp_path: Path, name: str) -> None:
    source = in_folder(tmp_path / "s", {"readme.txt": b""})
    os.mkfifo(source / name)
    with pytest.raises(UserError, match=rf"s/{name} is not a regular file; remove it"):
        ingested(source, tmp_path / "out")


def test_a_value_of_a_table_is_no_path(tmp_path: Path) -> None:
    source = tmp_path / "fer2013.csv"
    up = f"{'../' * 9}{tmp_path}/Training"
    table = "emotion,pixels,Usage\n" + "".join(
        f"{row % 2},{' '.join(str((row * 37 + at) % 256) for at in range(9))},{use}\n"
        for row, use in enumerate([up, "Training", "PublicTest"] * 8)
    )
    source.write_text(table)
    with pytest.raises(UserError, match=r"is no split that is known"):
        ingested(source, tmp_path / "out")
    source.write_text(table.replace(up, "../../../../../Training"))
    ingested(source, tmp_path / "out", near_duplicates=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fer2013.csv", "out"]
    assert not list(tmp_path.rglob("*.png"))


def test_a_class_whose_images_all_look_alike_is_cut_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = {
        f"angry/{n}.png": encoded(picture(0, 48, 48).point(lambda value, n=n: max(value, n)))
        for n in range(8)
    }
    others = {f"happy/{n}.png": png(n + 10, 48, 48) for n in range(8)}
    report = ingested(in_folder(tmp_path / "s", frames | others), tmp_path / "out")
    assert report.counts["test"] == {"angry": 3, "happy": 3}
    assert "all images of angry are near-duplicates of one another" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="POSIX paths")
def test_a_tilde_is_the_home_and_a_link_to_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    in_folder(tmp_path / "s", faces())
    assert ingested(Path("~/s"), tmp_path / "out").counts["train"] == BOTH
    (tmp_path / "itself").symlink_to("itself")
    with pytest.raises(UserError, match="itself does not exist"):
        ingested(tmp_path / "itself", tmp_path / "out")
