"""The download from Kaggle: the real kagglehub, and a server on loopback for Kaggle."""

import base64
import hashlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emotion_detection.console import UserError
from emotion_detection.data.kaggle import download

ROOT = Path(__file__).parents[2]
OWNER_NAME = "anna/letters"
TARGET = Path("data/letters.zip")
KEPT = Path("data/.download/datasets/anna/letters/3.archive")
# kagglehub writes a mebibyte at a time: a download can only be cut between two of them.
SIDE, PART = 400, 2**20


def bundle() -> bytes:
    """Return a set of two classes, of more than two parts."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for split, images in (("train", 3), ("test", 1)):
            for name in ("a", "b"):
                for number in range(images):
                    file = io.BytesIO()
                    pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
                    Image.fromarray(pixels).save(file, "BMP")
                    archive.writestr(f"{split}/{name}/im{number}.bmp", file.getvalue())
    return buffer.getvalue()


class Kaggle(ThreadingHTTPServer):
    """What kagglehub asks of Kaggle and of its storage, as a proxy that is told to be both."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = bundle()
        self.md5: str | None = base64.b64encode(hashlib.md5(self.content).digest()).decode()
        self.status = 200
        self.cut_after: int | None = None  # bytes of the content
        self.stall = False  # rather than cut
        self.ranges: list[str | None] = []  # of what was asked of the storage

    @property
    def env(self) -> dict[str, str]:
        """What makes kagglehub ask here, without anybody's credentials."""
        proxy = f"http://127.0.0.1:{self.server_address[1]}"
        return {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "http_proxy": proxy}


class Answer(BaseHTTPRequestHandler):
    """One answer."""

    server: Kaggle
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status != 200:
            self._send(self.server.status, b'{"message": "no"}')
        elif self.path.endswith("/GetDataset"):
            self._send(200, json.dumps({"currentVersionNumber": 3}).encode())
        else:
            self._send(302, b"", Location="http://storage.invalid/bundle")

    def do_GET(self) -> None:
        content, asked = self.server.content, self.headers["Range"]
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        headers = {"Accept-Ranges": "bytes"}
        if self.server.md5:
            headers["x-goog-hash"] = f"crc32c=AAAAAA==,md5={self.server.md5}"
        sent = content[start : self.server.cut_after]
        self._send(206 if asked else 200, sent, length=len(content) - start, **headers)
        if self.server.stall:
            time.sleep(60)
        self.close_connection = True

    def _send(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Content-Type", "application/json" if body[:1] == b"{" else "x/y")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kaggle]:
    """Return a Kaggle that has the set, in an empty folder, for a person without an account."""
    server = Kaggle()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for name in [name for name in os.environ if name.upper().startswith(("KAGGLE", "NO_PROXY"))]:
        monkeypatch.delenv(name)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KAGGLEHUB_CACHE", "")  # which download sets: it is put back afterwards
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "emotion_detection.data.kaggle", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def error_of(dataset: str = OWNER_NAME) -> str:
    """Return the line that a download ends with; no zip is left behind."""
    with pytest.raises(UserError) as raised:
        download(dataset)
    assert not TARGET.exists()
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_set_becomes_one_zip_that_ingest_takes_and_is_not_downloaded_again(
    kaggle: Kaggle, caplog: pytest.LogCaptureFixture
) -> None:
    output, errors = command("--dataset", OWNER_NAME).communicate()
    digest = hashlib.sha256(TARGET.read_bytes()).hexdigest()
    line = (
        f"data/letters.zip: 6 train and 2 test images, 2 classes; anna/letters/versions/3, "
        f"sha256 {digest}"
    )
    assert output == ""
    assert errors.splitlines()[-1] == line
    assert "100%" in errors  # of kagglehub's progress bar
    with zipfile.ZipFile(TARGET) as made, zipfile.ZipFile(io.BytesIO(kaggle.content)) as sent:
        assert sorted(made.namelist()) == sorted(sent.namelist())
        assert all(made.read(name) == sent.read(name) for name in sent.namelist())
    assert [path.name for path in Path("data").iterdir()] == ["letters.zip"]

    kaggle.shutdown()
    kaggle.server_close()
    logging.getLogger("emotion_detection").addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "emotion_detection"):
        download(OWNER_NAME)
    logging.getLogger("emotion_detection").removeHandler(caplog.handler)
    assert caplog.messages[-1] == line
    assert kaggle.ranges == [None]


def test_the_same_version_is_the_same_zip(kaggle: Kaggle) -> None:
    download(OWNER_NAME)
    first = TARGET.read_bytes()
    TARGET.unlink()
    download(f"{OWNER_NAME}/versions/3")
    assert TARGET.read_bytes() == first
    with zipfile.ZipFile(TARGET) as made:
        assert {info.date_time[0] for info in made.infolist()} == {1980}


def test_an_interrupted_download_is_resumed(kaggle: Kaggle) -> None:
    kaggle.cut_after = PART + 1000
    message = error_of()
    assert message.startswith("the connection to Kaggle failed (IncompleteRead(")
    assert "run this again, and it resumes where it stopped, or download " in message
    assert KEPT.stat().st_size >= PART

    kaggle.cut_after = None
    kept = KEPT.stat().st_size
    download(OWNER_NAME)
    assert kaggle.ranges == [None, None, f"bytes={kept}-"]
    with zipfile.ZipFile(TARGET) as made:
        assert len(made.namelist()) == 8


def test_a_killed_download_is_resumed(kaggle: Kaggle) -> None:
    kaggle.cut_after, kaggle.stall = PART + 1000, True
    process = command("--dataset", OWNER_NAME)
    while not (KEPT.exists() and KEPT.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    assert error_of() == "data/.download: another process downloads there; wait for it"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not TARGET.exists()
    kaggle.cut_after, kaggle.stall = None, False
    download(OWNER_NAME)
    assert kaggle.ranges[-1] == f"bytes={PART}-"
    assert TARGET.exists()


@pytest.mark.parametrize("checksum", [True, False])
def test_a_damaged_download_is_noticed_and_starts_again(kaggle: Kaggle, checksum: bool) -> None:
    sound = kaggle.content
    kaggle.content = sound[:PART] + bytes(1000) + sound[PART + 1000 :]
    if not checksum:
        kaggle.md5 = None  # the zip's own checksums are left
    assert "was damaged and is removed; run this again" in error_of()
    assert not KEPT.exists()
    kaggle.content = sound
    download(OWNER_NAME)
    assert TARGET.exists()


def test_a_damaged_zip_is_not_taken_for_what_was_downloaded(kaggle: Kaggle) -> None:
    download(OWNER_NAME)
    sound = TARGET.read_bytes()
    TARGET.write_bytes(sound[:PART] + bytes(1000) + sound[PART + 1000 :])
    with pytest.raises(UserError, match=r"letters\.zip: damaged \(.*\); remove it and run"):
        download(OWNER_NAME)
    TARGET.write_bytes(sound)
    with pytest.raises(UserError, match="is anna/letters/versions/3, not otto/letters; move it"):
        download("otto/letters")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            403,
            "everybody download anna/letters (403); put a token from https://www.kaggle.com/settings",
        ),
        (404, "Kaggle has no anna/letters (404); look up its name there"),
        (429, "Kaggle refuses anna/letters for now (429); run this again later, or download"),
        (503, "Kaggle refuses anna/letters for now (503); run this again later, or download"),
    ],
)
def test_a_refusal_says_what_to_do(kaggle: Kaggle, status: int, said: str) -> None:
    kaggle.status = status
    assert said in error_of()


def test_without_a_network_it_says_how_to_do_without(kaggle: Kaggle) -> None:
    kaggle.shutdown()
    kaggle.server_close()
    message = error_of()
    assert message.startswith("the connection to Kaggle failed (Connection refused); check the")
    assert message.endswith(
        "run this again, or download http://localhost/datasets/anna/letters in a browser and give "
        "its path as ingest.source"
    )


@pytest.mark.parametrize("dataset", ["letters", "anna/", "/letters", "anna/..", "a/b/c", r"a\b/c"])
def test_a_set_that_is_not_owner_and_name_is_refused(kaggle: Kaggle, dataset: str) -> None:
    assert f"{dataset!r} is not OWNER/NAME" in error_of(dataset)
    assert kaggle.ranges == []


def test_damaged_credentials_are_named(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", ".")
    Path("kaggle.json").write_text("{")
    assert "Invalid Kaggle credentials file at ./kaggle.json" in error_of()


def test_a_set_of_another_layout_is_said_to_be_none(kaggle: Kaggle) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("letters.csv", "a,b")
    kaggle.content, kaggle.md5 = buffer.getvalue(), None
    with pytest.raises(UserError, match=r"data/letters\.zip has no train/ folder"):
        download(OWNER_NAME)


def test_git_sees_nothing_of_a_download(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "data", tmp_path / "data", ignore=lambda *_: ["sample", "dataset"])
    shutil.copy(ROOT / ".gitignore", tmp_path)
    for path in (TARGET, KEPT, Path("data/.letters.zip.partial/letters.zip")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    status = subprocess.check_output(
        ["git", "status", "--porcelain", "--untracked-files=all"], cwd=tmp_path, text=True
    )
    assert "data/.gitignore" in status
    assert not any(name in status for name in ("letters", "archive"))
