"""Decoding: the files of a source to pixels, in as many processes as there are cores."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from emotion_detection.console import UserError
from emotion_detection.data import near_duplicates
from emotion_detection.data.dataset import CHANNELS, DIGEST_BYTES, BadFile, ColorMode
from emotion_detection.data.image import NO_MEMORY, BadImageError, open_image, prepare
from emotion_detection.data.layout import Item
from emotion_detection.data.source import Source, open_source

# Up to so many files, starting other processes takes longer than they save.
FILES_IN_PROCESS = 2000
# Large enough to make the cost of sending small, small enough for memory where images are large.
CHUNK_FILES = 32
STRIP_PIXELS = 2**16


class Decoded(NamedTuple):
    """An image's pixels as they are packed, (H, W, C) uint8 in C order, and its digest."""

    pixels: bytes
    digest: str
    reduced: bytes  # as near-duplicates are sought
    doubt: str | None = None  # why it may not be the picture that is meant


@dataclass(frozen=True)
class Decoder:
    """Reads and decodes files of one source to images of one size and colour mode."""

    source: Source
    image_size: tuple[int, int]
    color_mode: ColorMode

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape of an image, (H, W, C)."""
        return (*self.image_size, CHANNELS[self.color_mode])

    def __call__(self, paths: Sequence[str]) -> list[Decoded | BadFile]:
        """Return the decoded files in their order; for a bad one, the reason."""
        with warnings.catch_warnings():
            # Pillow warns of flaws that it can work around: the pixels are sound.
            warnings.simplefilter("ignore")
            return [self._decode(path) for path in paths]

    def _decode(self, path: str) -> Decoded | BadFile:
        try:
            image = open_image(self.source.read(path))
            pixels = prepare(image, self.image_size, self.color_mode)
            return Decoded(
                pixels, image_digest(image), near_duplicates.reduced(image), image.info.get("doubt")
            )
        except BadImageError as error:
            return BadFile(path, str(error))
        except MemoryError:
            return BadFile(path, NO_MEMORY)


def image_digest(image: Image.Image) -> str:
    """Return the hex digest by which an image of mode L or RGB is known: of its pixels and size.

    The image is to be as `open_image` returns it, so that its digest does not depend on what it is
    packed in. A picture without colour has the same digest whether it is stored as grey or as RGB.
    """
    if image.mode == "RGB" and all(map(_is_grey, _strips(image))):
        image = image.getchannel("R")
    # Processors have instructions for SHA-256, which makes it faster than the others.
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}".encode())
    for strip in _strips(image):
        digest.update(strip.tobytes())
    return digest.hexdigest()[: 2 * DIGEST_BYTES]


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """Return an image from top to bottom in strips that fit into a processor's cache.

    For a large photo this is three times as fast as to copy all of its pixels at once.
    """
    rows = max(1, STRIP_PIXELS // image.width)
    if rows >= image.height:
        yield image
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _is_grey(image: Image.Image) -> bool:
    """Return whether the three channels of an RGB image are equal."""
    red, green, blue = (channel.tobytes() for channel in image.split())
    return red == green == blue


# --- Every core at once.


def decode_all(items: list[Item], decoder: Decoder) -> Generator[Decoded | BadFile]:
    """Return the decoded items in their order, from other processes if there are many."""
    chunks = [
        [item.path for item in items[start : start + CHUNK_FILES]]
        for start in range(0, len(items), CHUNK_FILES)
    ]
    if len(items) <= FILES_IN_PROCESS:
        for chunk in chunks:
            yield from decoder(chunk)
        return
    # Not at the top, since each worker would import it.
    from joblib import cpu_count

    # At most 61, since Windows cannot wait for more.
    workers = min(cpu_count(), 61, len(items) // 1000 + 1)
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers,
        # Not forked, on any system: the fork of a process with threads may hang.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(
            decoder.source.path,
            decoder.source.encoding,
            decoder.image_size,
            decoder.color_mode,
        ),
    )
    try:
        # Few chunks are under way at a time, so that memory stays small whatever the set's size.
        under_way: deque[Future[list[Decoded | BadFile]]] = deque()
        for chunk in chunks:
            under_way.append(pool.submit(_decode_in_worker, chunk))
            if len(under_way) > 4 * workers:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that decodes images was killed: is there enough memory?"
        ) from error
    except BaseException:
        # Ctrl-C should not have to wait for the chunks under way.
        for worker in set(multiprocessing.active_children()) - before:
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_worker_decoder: Decoder


def _start_worker(
    source: Path, encoding: str | None, image_size: tuple[int, int], color_mode: ColorMode
) -> None:
    # Ctrl-C reaches every process of the terminal; only the parent is to act on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    global _worker_decoder
    _worker_decoder = Decoder(open_source(source, encoding), image_size, color_mode)


def _exit_with_parent() -> None:
    """End this worker when its parent is killed; otherwise it would never end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode_in_worker(paths: list[str]) -> list[Decoded | BadFile]:
    return _worker_decoder(paths)
