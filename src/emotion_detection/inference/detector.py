"""Which detector finds the faces: YuNet, whose file is fetched once, or OpenCV's Haar cascade."""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emotion_detection import paths
from emotion_detection.console import Progress, UserError, first_line, log

# The help and the check of an option import nothing heavy.
if TYPE_CHECKING:
    from emotion_detection.inference.faces import FaceFinder

YUNET, HAAR, NONE = "yunet", "haar", "none"
VARIABLE, URL_VARIABLE = "EMOTION_DETECTION_DETECTOR", "EMOTION_DETECTION_DETECTOR_URL"

FILE = "face_detection_yunet_2023mar.onnx"
URL = f"https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/{FILE}"
SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
BYTES = 232_589
TIMEOUT = 10.0  # seconds for the next piece of it
LIMIT = 60.0  # and for all
PIECE = 2**14

MIN_CONFIDENCE = 0.7
MIN_FACE = 20  # pixels: less than half of FER-2013's images


def check(name: str | None) -> None:
    """Check the detector that a person chose; None leaves the choice to `load`.

    Raises:
        UserError: if it is neither a detector's name nor a file.

    """
    _chosen(name)


def load(
    name: str | None,
    classes: Sequence[str],
    min_confidence: float = MIN_CONFIDENCE,
    min_face: int = MIN_FACE,
) -> "FaceFinder | None":
    """Return what finds the faces, None if pictures are to be taken whole.

    `name` is yunet, haar, none or the path of YuNet's file. By default it is what the variable
    EMOTION_DETECTION_DETECTOR says or else yunet, if a class is an emotion, and none otherwise.
    YuNet is fetched once; where that fails and nobody asked for it, Haar takes its place, with a
    warning. Haar knows no confidence, so that `min_confidence` is YuNet's alone; `min_face` is the
    height of the smallest face in pixels.

    Raises:
        UserError: if there is no such detector, or it cannot be loaded.

    """
    chosen = _chosen(name)
    from emotion_detection.data.dataset import are_emotions

    if chosen == NONE or (name is None and not are_emotions(classes)):
        return None
    from emotion_detection.inference.faces import HaarFinder

    if chosen == HAAR:
        return HaarFinder(min_face)
    if chosen not in (None, YUNET):
        try:
            model = Path(chosen).read_bytes()
        except OSError as error:
            raise UserError(f"{chosen}: cannot be read ({error.strerror})") from error
        return _yunet(chosen, model, min_confidence, min_face)
    try:
        model = fetched()
    except UserError as error:
        if chosen == YUNET:
            raise
        log.warning("%s; until then OpenCV's Haar cascade, which finds fewer faces", error)
        return HaarFinder(min_face)
    return _yunet(YUNET, model, min_confidence, min_face)


def _chosen(name: str | None) -> str | None:
    """Return what is chosen by the option or the variable."""
    chosen, where = (name, "--detector") if name else (os.environ.get(VARIABLE), VARIABLE)
    if chosen in (None, "", YUNET, HAAR, NONE):
        return chosen or None
    # A named pipe would never open.
    if not Path(chosen).is_file():
        raise UserError(
            f"{where}: there is no file {chosen}; give yunet, haar, none or the path of {FILE}"
        )
    return chosen


def _yunet(name: str, model: bytes, min_confidence: float, min_face: int) -> "FaceFinder":
    import cv2

    from emotion_detection.inference.faces import YuNetFinder

    # Its own lines tell how it tries to read what is no network.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return YuNetFinder(model, min_confidence, min_face)
    except (cv2.error, ValueError) as error:
        raise UserError(
            f"{name}: is not YuNet ({first_line(error)}); give the path of {FILE}"
        ) from error


# --- YuNet's file.


def fetched() -> bytes:
    """Return YuNet's file from the cache, where it is put if it is not there yet.

    It comes from OpenCV's model zoo, or the address in EMOTION_DETECTION_DETECTOR_URL.

    Raises:
        UserError: if it cannot be fetched, or other bytes come.

    """
    path = paths.cache() / FILE
    if (model := _cached(path)) is not None:
        return model
    url = os.environ.get(URL_VARIABLE) or URL
    by_hand = (
        f"download {url} elsewhere and name the file by --detector or {VARIABLE}, or run this "
        "again with a network"
    )
    try:
        model = _download(url)
    # What urllib raises on an address that is none, an answer that is none, and all else.
    except (OSError, ValueError, _http_error()) as error:
        reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        raise UserError(
            f"the face detector YuNet cannot be fetched ({reason}); {by_hand}"
        ) from error
    if hashlib.sha256(model).hexdigest() != SHA256:
        raise UserError(
            f"{url}: {len(model):,} bytes came that are not the face detector YuNet, of "
            f"{BYTES:,} bytes; {by_hand}"
        )
    from emotion_detection.files import atomic, locked

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock"), wait=True), atomic(path) as temporary:
            temporary.write_bytes(model)
    except (OSError, UserError) as error:
        log.warning("%s: cannot be kept (%s), and is fetched again next time", path, error)
    return model


def _cached(path: Path) -> bytes | None:
    """Return the file if it is there and sound."""
    try:
        model = path.read_bytes()
    except OSError:
        return None
    return model if hashlib.sha256(model).hexdigest() == SHA256 else None


def _http_error() -> type[Exception]:
    from http.client import HTTPException

    return HTTPException


def _download(url: str) -> bytes:
    """Return what comes from an address, at most one byte more than the file has."""
    from urllib.request import urlopen

    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{url} is no address of the web")
    log.info("fetching the face detector YuNet (%d kB) once, from %s", BYTES // 1000, url)
    pieces: list[bytes] = []
    missing, until = BYTES + 1, time.monotonic() + LIMIT
    with (
        urlopen(url, timeout=TIMEOUT) as answer,
        Progress("fetch", total=BYTES, unit="bytes", delay=1.0) as shown,
    ):
        while missing and (piece := answer.read(min(PIECE, missing))):
            if time.monotonic() > until:
                raise TimeoutError(f"it took more than {LIMIT:.0f} s")
            pieces.append(piece)
            missing -= len(piece)
            shown.advance(len(piece))
    return b"".join(pieces)
