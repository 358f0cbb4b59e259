"""The page of `emotion-detection demo`, in a browser."""

import asyncio
import contextlib
import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from starlette.applications import Starlette

from emotion_detection import paths
from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.inference import demo, detector, pictures, predict
from emotion_detection.inference.faces import HaarFinder
from emotion_detection.inference.predict import Network
from emotion_detection.tracking.models import Origin
from tests.support.environment import without_settings

ORIGIN = Origin("emotion-detection, <b>version 7</b>", "toy.zip")
LOOKS = {"light": ("light", 1200), "dark": ("dark", 1200), "phone": ("dark", 390)}


@pytest.fixture(scope="module")
def network(store: Path) -> Network:
    return predict.load(str(store / paths.MODEL), None)


class Gate:
    """What a picture waits at before the network sees it."""

    def __init__(self) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.open.set()

    def __call__(self) -> None:
        self.reached.set()
        assert self.open.wait(60)


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@contextlib.contextmanager
def serving(network: Network, gate: Gate, *, timeout: float) -> Iterator[int]:
    """Run a demo of which the network waits at `gate`, and give its port."""

    def probabilities(images: np.ndarray) -> np.ndarray:
        gate()
        return network.probabilities(images)

    with socket.create_server((demo.HOST, 0)) as listening:
        finder = detector.load(None, network.classes)
        app = demo.app(
            replace(network, probabilities=probabilities), ORIGIN, finder, timeout=timeout
        )
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def port(network: Network, gate: Gate) -> Iterator[int]:
    with serving(network, gate, timeout=60) as port:
        yield port


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo with two faces, one without, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("album")
    astronaut = skimage.data.astronaut()
    Image.fromarray(np.concatenate([astronaut, astronaut], axis=1)).save(folder / "photo.jpg")
    Image.fromarray(astronaut[:400]).save(folder / "camera.jpg")
    Image.new("RGB", (300, 200), "white").save(folder / "blank.png")
    (folder / "notes.jpg").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def browser(chromium: str, album: Path) -> Iterator[Browser]:
    """Start a browser whose camera always shows the same face."""
    expect.set_options(timeout=60_000)
    film = album / "film.mjpeg"
    film.write_bytes((album / "camera.jpg").read_bytes())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=[
                *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-video-capture={film}",
            ],
        )
        yield browser
        browser.close()


class Seen:
    """The page as it is opened, and what went on meanwhile."""

    def __init__(
        self, browser: Browser, port: int, look: str = "light", *, camera: bool = False
    ) -> None:
        scheme, width = LOOKS[look]
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 800},
            color_scheme="dark" if scheme == "dark" else "light",
            permissions=["camera"] if camera else [],
        )
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"http://{demo.HOST}:{port}")

    def give(self, file: Any) -> None:
        self.page.get_by_label("Choose a photo").set_input_files(file)


@pytest.fixture
def seen(browser: Browser, port: int) -> Iterator[Seen]:
    seen = Seen(browser, port)
    yield seen
    seen.page.close()


def shown_probabilities(page: Page, number: int) -> dict[str, float]:
    """Return the probabilities in percent that the page shows of a face, by class."""
    rows = page.get_by_role("article", name=f"face {number}").get_by_role("row")
    cells = (text.split() for text in rows.all_inner_texts())
    return {name: float(share) for name, share, _ in cells}


@pytest.mark.parametrize("look", LOOKS)
def test_every_face_of_a_photo_is_shown_with_what_it_is_taken_for(
    look: str, browser: Browser, port: int, album: Path, network: Network
) -> None:
    seen = Seen(browser, port, look)
    page = seen.page
    seen.give(album / "photo.jpg")
    expect(page.get_by_role("status")).to_have_text("2 faces, from left to right")
    (found,) = predict.predict(
        pictures.listed([album / "photo.jpg"]), network, HaarFinder(20), keep=False
    )
    assert isinstance(found, predict.Prediction)
    picture = page.get_by_alt_text("the picture").bounding_box()
    assert picture is not None
    for number, face in enumerate(found.faces, start=1):
        name = network.classes[face.label]
        shares = shown_probabilities(page, number)
        assert list(shares) == list(network.classes)
        np.testing.assert_allclose(list(shares.values()), 100 * face.probabilities, atol=0.051)
        card = page.get_by_role("article", name=f"face {number}")
        expect(card.get_by_role("heading")).to_contain_text(name)
        expect(card.get_by_alt_text(f"heat where face {number} is looked at")).to_be_visible()
        bars = card.locator("i").evaluate_all("all => all.map(bar => bar.offsetWidth)")
        assert int(np.argmax(bars)) == face.label

        box = page.get_by_role("link", name=f"face {number}: {name}").bounding_box()
        assert box is not None
        scale = picture["width"] / 1024
        assert box["x"] - picture["x"] == pytest.approx(scale * face.box.left, abs=1)
        assert box["y"] - picture["y"] == pytest.approx(scale * face.box.top, abs=1)
        assert box["width"] == pytest.approx(scale * face.box.width, abs=1)

    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert seen.messages == []
    own = (f"http://{demo.HOST}:{port}/", "data:")
    assert [url for url in seen.requests if not url.startswith(own)] == []
    behind, ink = (
        page.locator("body").evaluate(
            f"e => getComputedStyle(e).{colour}.match(/\\d+/g).slice(0, 3).map(Number)"
        )
        for colour in ("backgroundColor", "color")
    )
    assert (sum(behind) < sum(ink)) is (LOOKS[look][0] == "dark")
    page.close()


def test_the_page_says_whose_word_it_is_and_what_it_is_not(seen: Seen, network: Network) -> None:
    page = seen.page
    expect(page.get_by_text("It is no judge of people.")).to_be_visible()
    for fact in (ORIGIN.name, ORIGIN.dataset, ", ".join(network.classes), "16×16 pixels"):
        expect(page.get_by_role("definition").filter(has_text=fact)).to_be_visible()
    page.get_by_text("Limits and misuse").click()
    expect(page.get_by_text("No decision about a person may rest on it")).to_be_visible()


def test_a_picture_without_a_face_may_be_taken_whole(seen: Seen, album: Path) -> None:
    page = seen.page
    seen.give(album / "blank.png")
    expect(page.get_by_role("status")).to_contain_text("No face found.")
    expect(page.get_by_role("article")).to_have_count(0)
    page.get_by_role("button", name="Take the whole picture as a face").click()
    expect(page.get_by_role("status")).to_be_focused()
    expect(page.get_by_role("status")).to_have_text("1 face")
    expect(page.get_by_alt_text("heat where face 1 is looked at")).to_be_visible()
    expect(page.get_by_role("button", name="Take the whole picture as a face")).to_be_hidden()
    assert seen.messages == []


def test_a_network_of_other_things_is_not_said_to_see_faces(
    browser: Browser, network: Network, gate: Gate, album: Path
) -> None:
    with serving(replace(network, classes=("cat", "dog", "owl")), gate, timeout=60) as port:
        seen = Seen(browser, port)
        seen.give(album / "photo.jpg")
        expect(seen.page.get_by_role("status")).to_have_text("1 picture")
        expect(seen.page.get_by_alt_text("heat where picture 1 is looked at")).to_be_visible()
        assert not re.search("face|emotion[^- ]|people", seen.page.locator("body").inner_text())
        assert seen.messages == []
        seen.page.close()


def test_what_is_no_picture_or_too_large_is_told(seen: Seen, album: Path) -> None:
    alert = seen.page.get_by_role("alert")
    seen.give(album / "notes.jpg")
    expect(alert).to_have_text("It cannot be taken for a picture: not an image.")
    with (album / "large.png").open("wb") as large:
        large.truncate(26 * 2**20)
    seen.give(album / "large.png")
    expect(alert).to_have_text("The file has 26 MiB, and 25 are the most: make it smaller first.")
    Image.new("1", (8000, 7000)).save(album / "bomb.png")
    seen.give(album / "bomb.png")
    expect(alert).to_have_text("It cannot be taken for a picture: more than 50,000,000 pixels.")
    seen.give(album / "photo.jpg")
    expect(alert).to_be_hidden()
    expect(seen.page.get_by_role("article")).to_have_count(2)
    assert seen.messages == []


def test_one_picture_is_looked_at_at_a_time(
    browser: Browser, album: Path, network: Network
) -> None:
    gate = Gate()
    gate.open.clear()
    with serving(network, gate, timeout=0.1) as port:
        try:
            first, second = Seen(browser, port), Seen(browser, port)
            first.give(album / "photo.jpg")
            assert gate.reached.wait(60)
            expect(first.page.get_by_role("status")).to_have_text("Looking for faces …")
            second.give(album / "photo.jpg")
            alert = second.page.get_by_role("alert")
            expect(alert).to_contain_text("busy with another picture")
        finally:
            gate.open.set()
        expect(first.page.get_by_role("article")).to_have_count(2)
        for seen in (first, second):
            assert seen.messages == []
            seen.page.close()


def test_a_newer_picture_takes_the_place_of_one_still_looked_at(
    seen: Seen, album: Path, gate: Gate
) -> None:
    gate.open.clear()
    gate.reached.clear()
    try:
        seen.give(album / "photo.jpg")
        assert gate.reached.wait(60)
        seen.give(album / "notes.jpg")
    finally:
        gate.open.set()
    expect(seen.page.get_by_role("alert")).to_contain_text("not an image")
    expect(seen.page.get_by_role("article")).to_have_count(0)


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_picture_may_be_dropped_or_pasted(seen: Seen, album: Path, event: str) -> None:
    page = seen.page

    def happen(files: list[list[int]]) -> None:
        page.locator("#take").evaluate(
            """(target, [event, files]) => {
                const carried = new DataTransfer();
                for (const bytes of files) {
                    carried.items.add(new File([new Uint8Array(bytes)], "photo.jpg"));
                }
                target.dispatchEvent(event === "drop"
                    ? new DragEvent(event, {dataTransfer: carried, bubbles: true})
                    : new ClipboardEvent(event, {clipboardData: carried, bubbles: true}));
            }""",
            [event, files],
        )

    happen([list((album / "photo.jpg").read_bytes())])
    expect(page.get_by_role("article")).to_have_count(2)
    happen([])
    expect(page.get_by_role("alert")).to_be_visible()
    assert seen.messages == []


def test_the_camera_takes_a_picture(browser: Browser, port: int) -> None:
    seen = Seen(browser, port, "phone", camera=True)
    page = seen.page
    page.get_by_role("button", name="Use the camera").click()
    video = page.get_by_label("what the camera sees")
    expect(video).to_have_js_property("videoWidth", 512)
    page.get_by_role("button", name="Take the picture").click()
    expect(page.get_by_role("article")).to_have_count(1)
    page.get_by_role("button", name="Close the camera").click()
    expect(video).to_be_hidden()
    assert seen.messages == []
    page.close()


def test_a_camera_that_may_not_be_used_is_told(seen: Seen) -> None:
    seen.page.get_by_role("button", name="Use the camera").click()
    expect(seen.page.get_by_role("alert")).to_contain_text("does not let this page use the camera")
    assert seen.messages == []


def test_the_keyboard_is_enough(seen: Seen, album: Path) -> None:
    page = seen.page
    # Listened for from the start, since the browser would not wait with a dialog of its own.
    page.on("filechooser", lambda chooser: chooser.set_files(album / "photo.jpg"))
    page.keyboard.press("Tab")
    expect(page.get_by_label("Choose a photo")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("article")).to_have_count(2)
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Use the camera")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="face 2")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="face 2")).to_be_focused()


def test_other_sites_cannot_use_it(port: int, album: Path) -> None:
    photo = (album / "photo.jpg").read_bytes()

    def status(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> int:
        connection = http.client.HTTPConnection(demo.HOST, port)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status

    ours = {"Content-Type": "application/octet-stream"}
    assert status("POST", "/faces", ours, photo) == 200
    # A name that leads here; what a form or a script without leave can send; and its leave.
    assert status("GET", "/", {"Host": f"rebound.example:{port}"}) == 400
    for kind in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):
        assert status("POST", "/faces", {"Content-Type": kind}, photo) == 415
    assert status("POST", "/saliency", {}, photo) == 415
    asked = {"Origin": "http://other.example", "Access-Control-Request-Method": "POST"}
    assert status("OPTIONS", "/faces", asked) == 405


def test_more_than_the_limit_is_not_read(port: int) -> None:
    connection = http.client.HTTPConnection(demo.HOST, port)
    connection.putrequest("POST", "/faces")
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def posted(app: Starlette, *pieces: bytes | None) -> int | None:
    """Return the status of the answer to an upload of `pieces`, then silence or, at None, a leave.

    It is None where there is no answer.
    """

    async def ask() -> int | None:
        messages = iter(pieces)
        status: int | None = None

        async def receive() -> MutableMapping[str, Any]:
            piece = next(messages, b"")
            if piece == b"":
                await asyncio.Event().wait()
            if piece is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": piece, "more_body": True}

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/octet-stream")]
        asked = {"type": "http", "method": "POST", "path": "/faces", "headers": headers}
        await app({**asked, "query_string": b"", "http_version": "1.1"}, receive, send)
        return status

    # The browser's tests have an event loop in this thread.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, ask()).result()


@pytest.mark.parametrize(("pieces", "status"), [((b"half",), 408), ((b"half", None), 400)])
def test_half_an_upload_and_a_client_that_leaves_hold_nothing(
    monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes | None, ...], status: int
) -> None:
    monkeypatch.setattr(demo, "PIECE_TIMEOUT", 0.01)
    monkeypatch.setattr(demo, "AT_ONCE", 1)
    network = Network(lambda images: images, ("a", "b"), (16, 16), "rgb")
    app = demo.app(network, ORIGIN, None)
    assert [posted(app, *pieces) for _ in range(2)] == [status] * 2


def test_few_pictures_are_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "AT_ONCE", 0)
    network = Network(lambda images: images, ("a", "b"), (16, 16), "rgb")
    # The answer says that it is busy, without a byte of the picture being read.
    assert posted(demo.app(network, ORIGIN, None, timeout=0.01)) == 200


def test_a_port_that_is_taken_or_none_is_told(network: Network) -> None:
    with socket.create_server((demo.HOST, 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {taken}: .*in use.*; give another"):
            demo.serve(network, ORIGIN, taken, None)
    with pytest.raises(UserError, match=r"--port 70000: .*65535"):
        demo.serve(network, ORIGIN, 70000, None)


@pytest.mark.slow
def test_the_command_serves_the_champion_until_ctrl_c(store: Path, toy: Dataset) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "emotion_detection.cli", "demo", "--port", "0"],
        cwd=store,
        env=without_settings(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    try:
        line = running.stderr.readline()
        address = re.fullmatch(r"Ctrl-C ends it; open (http://127\.0\.0\.1:\d+)\n", line)
        assert address, line
        with urllib.request.urlopen(address[1], timeout=30) as response:
            page = response.read().decode()
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "emotion-detection, version 1" in page
        assert toy.source in page
    finally:
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
        status = running.wait()
    assert (status, rest) == (0, "")
