"""A page that shows what a network predicts for the faces in a photo, and where it looks.

It is for one person at this machine: it answers on the loopback address alone, stores nothing, and
looks at one picture at a time.
"""

import asyncio
import base64
import io
import socket
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from emotion_detection.console import Terminated, UserError, log
from emotion_detection.data.dataset import CHANNELS, are_emotions
from emotion_detection.data.image import BadImageError, decode, open_image, prepare
from emotion_detection.evaluation.report import environment, limits
from emotion_detection.figures.style import class_colour
from emotion_detection.inference import predict, saliency
from emotion_detection.inference.faces import FaceFinder, cut
from emotion_detection.inference.pictures import Picture
from emotion_detection.inference.predict import Face, Network, Prediction
from emotion_detection.tracking.models import Origin

HOST = "127.0.0.1"
PAGE = "demo.html.j2"
MAX_MIB = 25
TIMEOUT = 20.0  # seconds that a picture waits for those before it
AT_ONCE = 4  # pictures that are held in memory
PIECE_TIMEOUT, UPLOAD_TIMEOUT = 5.0, 60.0  # seconds for the next piece of a picture, and for all
CLOSING = 2  # seconds that Ctrl-C waits for answers
BUSY = "It is busy with another picture: try again in a moment."
SHOWN_SIDE = 1280
HEAT_SCALE = 4  # of the network's pixels, so that the heat is smooth
HEAT_OPACITY = 0.75
# A form or script of another site can send no such type unless this one agrees, which it does not.
BODY_TYPE = "application/octet-stream"
# The page needs nothing from anywhere, and nobody's page may hold it.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src data:; connect-src 'self' data:; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
}


def serve(network: Network, origin: Origin, port: int, finder: FaceFinder | None) -> None:
    """Answer at `port` of the loopback address, any free one if 0, until Ctrl-C.

    Raises:
        UserError: if another program has the port.

    """
    try:
        listening = socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"--port {port}: {error}; give another, or 0 for any") from error
    with listening:
        log.info("Ctrl-C ends it; open http://%s:%d", *listening.getsockname())
        config = uvicorn.Config(
            app(network, origin, finder),
            log_level="warning",
            lifespan="off",
            timeout_graceful_shutdown=CLOSING,
        )
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except Terminated:
            raise
        except KeyboardInterrupt:
            return  # as the line above says


def app(
    network: Network, origin: Origin, finder: FaceFinder | None, *, timeout: float = TIMEOUT
) -> Starlette:
    """Make the web application: a page at /, and what its script asks at /faces and /saliency.

    Both take the bytes of an image file and answer with JSON: {"error": why} where they can make
    nothing of it, or after they waited `timeout` seconds for another. With /faces?whole=1 the
    picture is taken for a face.
    """
    answers = _Answers(network, finder, _page(network, origin), timeout)
    return Starlette(
        routes=[
            Route("/", answers.page),
            Route("/faces", answers.faces, methods=["POST"]),
            Route("/saliency", answers.saliency, methods=["POST"]),
        ],
        middleware=[
            # A site can give its own name the address 127.0.0.1, and its pages would be ours.
            Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
            Middleware(RequestBodyLimitMiddleware, max_body_size=MAX_MIB * 2**20),
        ],
    )


def _page(network: Network, origin: Origin) -> str:
    height, width = network.image_size
    return (
        environment(escape=True)
        .get_template(PAGE)
        .render(
            origin=origin,
            emotions=are_emotions(network.classes),
            classes=network.classes,
            colours=[class_colour(index) for index in range(len(network.classes))],
            pixels=f"{width}×{height}",
            color_mode=network.color_mode,
            notice=network.notice,
            limits=limits(network.classes),
            max_mib=MAX_MIB,
            body_type=BODY_TYPE,
        )
    )


class _Answers:
    """Answers requests with one network, which looks at one picture at a time."""

    def __init__(
        self, network: Network, finder: FaceFinder | None, html: str, timeout: float
    ) -> None:
        self._network, self._finder = network, finder
        self._html, self._timeout = html, timeout
        self._turn = threading.Lock()
        self._places = asyncio.Semaphore(AT_ONCE)

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self._html, headers=HEADERS)

    async def faces(self, request: Request) -> Response:
        finder = None if "whole" in request.query_params else self._finder
        return await self._answer(request, lambda data: self._faces(data, finder))

    async def saliency(self, request: Request) -> Response:
        return await self._answer(request, self._saliency)

    async def _answer(
        self, request: Request, answer: Callable[[bytes], dict[str, Any]]
    ) -> Response:
        if request.headers.get("content-type") != BODY_TYPE:
            raise HTTPException(415, f"The Content-Type must be {BODY_TYPE}.")
        try:
            await asyncio.wait_for(self._places.acquire(), self._timeout)
        except TimeoutError:
            return _error(BUSY)
        except asyncio.CancelledError:
            return Response(status_code=503)  # Ctrl-C
        try:
            data = await _body(request)
            return await run_in_threadpool(lambda: self._in_turn(lambda: answer(data)))
        except TimeoutError:
            raise HTTPException(408, "The picture did not arrive in time.") from None
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody gets
        except asyncio.CancelledError:
            return Response(status_code=503)  # Ctrl-C
        finally:
            self._places.release()

    def _in_turn(self, answer: Callable[[], dict[str, Any]]) -> Response:
        if not self._turn.acquire(timeout=self._timeout):
            return _error(BUSY)
        try:
            with warnings.catch_warnings():
                # Pillow warns of flaws that it can work around: the pixels are sound.
                warnings.simplefilter("ignore")
                return JSONResponse(answer(), headers=HEADERS)
        except BadImageError as error:
            return _error(f"It cannot be taken for a picture: {error}.")
        except UserError as error:
            return _error(f"The network cannot label it: {error}.")
        except MemoryError:
            return _error("There is too little memory for it.")
        finally:
            self._turn.release()

    def _faces(self, data: bytes, finder: FaceFinder | None) -> dict[str, Any]:
        network = self._network
        image = open_image(data)
        picture = Picture("", Path(), lambda: image)
        (found,) = predict.predict([picture], network, finder, keep=False)
        # A picture that opened can lack nothing but a face.
        faces = found.faces if isinstance(found, Prediction) else ()
        shown = image.copy()
        shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        return {
            "picture": _data_uri(shown, "JPEG"),
            "width": image.width,
            "height": image.height,
            "faces": [
                {
                    "box": face.box._asdict(),
                    "label": face.label,
                    "probabilities": [round(float(p), 6) for p in face.probabilities],
                    "detection_confidence": face.detection_confidence,
                    "pixels": _data_uri(self._crop(image, face), "PNG"),
                }
                for face in faces
            ],
        }

    def _crop(self, image: Image.Image, face: Face) -> Image.Image:
        """Return a face as the network gets it."""
        mode = "L" if self._network.color_mode == "grayscale" else "RGB"
        pixels = prepare(
            cut(image, face.box, face.angle), self._network.image_size, self._network.color_mode
        )
        return Image.frombytes(mode, self._network.image_size[::-1], pixels)

    def _saliency(self, data: bytes) -> dict[str, Any]:
        network = self._network
        pixels = np.frombuffer(decode(data, network.image_size, network.color_mode), np.uint8)
        image = pixels.reshape(*network.image_size, CHANNELS[network.color_mode])
        (probabilities,) = network.probabilities(image[np.newaxis])
        label = int(probabilities.argmax())
        lost = saliency.occlusion(network.probabilities, image, label)
        confidence = float(probabilities[label])
        return {
            "heat": _data_uri(_heat(lost), "PNG"),
            "label": label,
            "confidence": round(confidence, 6),
            "least": round(confidence - float(lost.max()), 6),
        }


def _error(reason: str) -> Response:
    # With a status of its own the browser would log it as an error of the page.
    return JSONResponse({"error": reason}, headers=HEADERS)


async def _body(request: Request) -> bytes:
    """Return the body of a request; raise TimeoutError or ClientDisconnect if it does not come."""
    pieces: list[bytes] = []
    stream = request.stream()
    async with asyncio.timeout(UPLOAD_TIMEOUT):
        while (piece := await asyncio.wait_for(anext(stream, None), PIECE_TIMEOUT)) is not None:
            pieces.append(piece)
    return b"".join(pieces)


def _heat(lost: np.ndarray) -> Image.Image:
    """Draw what `saliency.occlusion` returns, to be laid over the image: the more, the brighter."""
    share = np.clip(lost / max(float(lost.max()), 1e-6), 0, 1).astype(np.float32)
    height, width = lost.shape
    size = (HEAT_SCALE * width, HEAT_SCALE * height)
    smooth = np.asarray(Image.fromarray(share).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    coloured = matplotlib.colormaps["inferno"](smooth)
    coloured[..., 3] = HEAT_OPACITY * smooth
    return Image.fromarray((coloured * 255).round().astype(np.uint8))


def _data_uri(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"data:{Image.MIME[kind]};base64,{data}"
