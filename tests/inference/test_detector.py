"""Which detector is taken, and how YuNet's file comes to a machine."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from emotion_detection import paths
from emotion_detection.console import UserError
from emotion_detection.inference import detector
from emotion_detection.inference.faces import HaarFinder, YuNetFinder
from tests.support.astronaut import around_the_face, astronaut

EMOTIONS = ("happy", "sad")


class Mirror:
    """An address that serves YuNet's file, or what `answer` does in its place."""

    def __init__(self) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda request: None
        self.requests = 0
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.requests += 1
                mirror.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/yunet.onnx"

    def send(self, body: bytes, *, length: int | None = None) -> None:
        """Answer with `body`, and say that it has `length` bytes."""

        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(200)
            request.send_header("Content-Length", str(len(body) if length is None else length))
            request.end_headers()
            request.wfile.write(body)

        self.answer = answer


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """Yield a mirror that is fetched from, into an empty cache."""
    mirror = Mirror()
    monkeypatch.delenv(detector.VARIABLE)
    monkeypatch.setenv(detector.URL_VARIABLE, mirror.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    thread = threading.Thread(target=mirror.server.serve_forever, args=(0.01,))
    thread.start()
    yield mirror
    mirror.server.shutdown()
    mirror.server.server_close()
    thread.join()


def test_yunet_is_fetched_once_and_kept(
    mirror: Mirror, yunet_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "emotion_detection")
    mirror.send(yunet_file.read_bytes())
    for _ in range(2):
        finder = detector.load(None, EMOTIONS)
        assert isinstance(finder, YuNetFinder)
        assert around_the_face(finder(astronaut())[0].box)
    assert mirror.requests == 1
    assert [path.name for path in paths.cache().glob("*.onnx")] == [detector.FILE]
    assert caplog.messages == [f"fetching the face detector YuNet (232 kB) once, from {mirror.url}"]
    # A disk may damage it.
    (paths.cache() / detector.FILE).write_bytes(b"damaged")
    detector.load(None, EMOTIONS)
    assert mirror.requests == 2
    assert (paths.cache() / detector.FILE).read_bytes() == yunet_file.read_bytes()


def test_a_cache_that_cannot_be_written_is_told_and_does_without(
    mirror: Mirror, yunet_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    mirror.send(yunet_file.read_bytes())
    assert isinstance(detector.load(None, EMOTIONS), YuNetFinder)
    assert "cannot be kept" in caplog.text


def wrong(mirror: Mirror) -> None:
    mirror.send(b"<html>Sign in</html>")


def endless(mirror: Mirror) -> None:
    mirror.send(bytes(10 * detector.BYTES))


def cut_short(mirror: Mirror) -> None:
    mirror.send(bytes(1000), length=detector.BYTES)


def empty(mirror: Mirror) -> None:
    mirror.send(b"")


def closed(mirror: Mirror) -> None:
    mirror.answer = lambda request: request.connection.close()


def missing(mirror: Mirror) -> None:
    mirror.answer = lambda request: request.send_error(404)


def garbage(mirror: Mirror) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"\x00\x01\x02\n\n")

    mirror.answer = answer


def silent(mirror: Mirror) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(1)  # until the client leaves

    mirror.answer = answer


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (wrong, "20 bytes came that are not the face detector YuNet, of 232,589 bytes"),
        (endless, "232,590 bytes came that are not"),
        (cut_short, "1,000 bytes came that are not"),
        (empty, "0 bytes came that are not"),
        (closed, "cannot be fetched (Remote end closed connection without response)"),
        (missing, "cannot be fetched (Not Found)"),
        (garbage, "cannot be fetched ("),
        (silent, "cannot be fetched (timed out)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_where_it_does_not_come_the_cascade_is_used_and_one_line_says_what_to_do(
    mirror: Mirror,
    answers: Callable[[Mirror], None],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(detector, "TIMEOUT", 0.3)
    answers(mirror)
    assert isinstance(detector.load(None, EMOTIONS), HaarFinder)
    (line,) = caplog.messages
    assert said in line
    assert f"download {mirror.url} elsewhere and name the file by --detector" in line
    assert "until then OpenCV's Haar cascade" in line
    assert not paths.cache().exists()
    # Who asked for it gets nothing else.
    with pytest.raises(UserError, match="name the file by --detector"):
        detector.load("yunet", EMOTIONS)


def test_without_a_network_the_cascade_is_used(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for url in ("http://127.0.0.1:9/yunet.onnx", "file:///etc/hostname", "http://[", "yunet"):
        monkeypatch.setenv(detector.URL_VARIABLE, url)
        assert isinstance(detector.load(None, EMOTIONS), HaarFinder)
        assert caplog.messages[-1].startswith("the face detector YuNet cannot be fetched (")
    assert len(caplog.messages) == 4


def test_a_file_is_named_by_the_option_or_the_variable(
    mirror: Mirror, yunet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(detector.load(str(yunet_file), ("cat", "dog")), YuNetFinder)
    monkeypatch.setenv(detector.VARIABLE, str(yunet_file))
    assert isinstance(detector.load(None, EMOTIONS), YuNetFinder)
    assert isinstance(detector.load("haar", EMOTIONS), HaarFinder)
    assert mirror.requests == 0


def test_pictures_are_taken_whole_if_no_class_is_an_emotion(mirror: Mirror) -> None:
    assert detector.load(None, ("cat", "dog")) is None
    assert detector.load("none", EMOTIONS) is None
    assert isinstance(detector.load("haar", ("cat", "dog")), HaarFinder)
    assert mirror.requests == 0


def test_what_is_no_detector_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--detector: there is no file mtcnn; give yunet, haar"):
        detector.check("mtcnn")
    monkeypatch.setenv(detector.VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match=rf"{detector.VARIABLE}: there is no file {tmp_path}"):
        detector.check(None)
    for content in (b"", b"no network", bytes(1000)):
        (tmp_path / "other.onnx").write_bytes(content)
        with pytest.raises(UserError, match=r"other\.onnx: is not YuNet \(.*\); give the path of"):
            detector.load(str(tmp_path / "other.onnx"), EMOTIONS)
