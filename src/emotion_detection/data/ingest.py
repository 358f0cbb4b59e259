"""Ingest: a folder or zip of class folders becomes a checked, packed dataset.

Every file in a class folder is decoded to its last byte; what is no sound image is listed and left
out.
"""

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
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from emotion_detection.console import UserError, log, progress
from emotion_detection.data.dataset import (
    CHANNELS,
    DIGEST_BYTES,
    IMAGES_FILE,
    SPLITS,
    BadFile,
    ColorMode,
    Dataset,
    group_by_digest,
    set_digest,
)
from emotion_detection.data.image import BadImageError, open_image, prepare
from emotion_detection.data.source import Item, Source, arrange, check_filled, open_source, some
from emotion_detection.data.splits import cut
from emotion_detection.files import atomic

# The processes that decode images would import it for nothing, which takes half a second.
if TYPE_CHECKING:
    from emotion_detection import params

# Up to so many files, starting other processes takes longer than they save.
FILES_IN_PROCESS = 2000
# Large enough to make the cost of sending small, small enough for memory where images are large.
CHUNK_FILES = 32
STRIP_PIXELS = 2**16


@dataclass(frozen=True)
class IngestReport:
    """What ingest found and wrote. `counts` is by split, then class."""

    counts: dict[str, dict[str, int]]
    bad_files: tuple[BadFile, ...]
    duplicate_groups: int  # sets of two or more images with the same digest
    test_is_cut: bool  # the source had no test split: it is a part of train
    dropped_leaks: int  # train images left out since they are also in test
    digest: str


def ingest(source: Path, target: Path, settings: params.Ingest, *, seed: int) -> IngestReport:
    """Write the images of `source`, a folder or zip, as a dataset to the folder `target`.

    Images become `image_size` (height, width), stretched where their proportions differ, and
    `color_mode`. A source without a test split has `test_fraction` of train, drawn with `seed` by
    the images' digests, made its test split; images with the same digest stay on one side. With
    `drop_leaks`, train images that are also in test are left out. `target` is replaced once the
    dataset is complete. Large sets are decoded in processes of their own, so the script that calls
    this needs its `if __name__ == "__main__"`.

    Raises:
        UserError: if the source has another layout, is an unsafe or damaged zip, would unpack to
            more than `max_unpacked_gib`, has a class without images, has more than
            `max_bad_fraction` of its files bad, or has a class that `drop_leaks` leaves without a
            train image.

    """
    if source.resolve().is_relative_to(target.resolve()):
        raise UserError(f"ingest.source: {source} lies in {target}, which ingest replaces; move it")
    with atomic(target) as folder:
        folder.mkdir()
        with closing(open_source(source)) as opened:
            items = arrange(opened.contents(settings.max_unpacked_gib), source)
            decoder = Decoder(opened, settings.image_size, settings.color_mode)
            packed = _pack(items, decoder, folder / IMAGES_FILE)
        _check_bad_files(packed.bad_files, len(items), settings.max_bad_fraction)
        check_filled({(item.is_test, item.class_name) for item in items}, packed.items)
        report = _write(packed, folder, source.resolve().name, settings, seed)
    _log_report(report)
    return report


# --- Decoding: the bytes of a file to the bytes of its pixels.


class Decoded(NamedTuple):
    """An image's pixels as they are packed, (H, W, C) uint8 in C order, and its digest."""

    pixels: bytes
    digest: str


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
        except BadImageError as error:
            return BadFile(path, str(error))
        pixels = prepare(image, self.image_size, self.color_mode)
        return Decoded(pixels, image_digest(image))


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


def _decode_all(items: list[Item], decoder: Decoder) -> Generator[Decoded | BadFile]:
    """Return the decoded items in their order, from other processes if there are many."""
    chunks = [
        [item.path for item in items[start : start + CHUNK_FILES]]
        for start in range(0, len(items), CHUNK_FILES)
    ]
    if len(items) <= FILES_IN_PROCESS:
        for chunk in chunks:
            yield from decoder(chunk)
        return
    # At most 61, since Windows cannot wait for more.
    workers = min(_usable_cores(), 61, len(items) // 1000 + 1)
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers,
        # Not forked, on any system: the fork of a process with threads may hang.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(decoder.source.path, decoder.image_size, decoder.color_mode),
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


def _start_worker(source: Path, image_size: tuple[int, int], color_mode: ColorMode) -> None:
    # Ctrl-C reaches every process of the terminal; only the parent is to act on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    global _worker_decoder
    _worker_decoder = Decoder(open_source(source), image_size, color_mode)


def _exit_with_parent() -> None:
    """End this worker when its parent is killed; otherwise it would never end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode_in_worker(paths: list[str]) -> list[Decoded | BadFile]:
    return _worker_decoder(paths)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- Packing: decoded images to the files of a dataset.


@dataclass(frozen=True)
class Packed:
    """The sound items with their digests, whose images lie in an .npy file; and the bad files."""

    items: list[Item]
    digests: list[str]
    bad_files: tuple[BadFile, ...]
    images_path: Path


def _pack(items: list[Item], decoder: Decoder, path: Path) -> Packed:
    """Decode the items and write the pixels of the sound ones to the .npy file `path`."""
    sound: list[Item] = []
    digests: list[str] = []
    bad: list[BadFile] = []
    with path.open("wb") as file, closing(_decode_all(items, decoder)) as results:
        _write_npy_header(file, (len(items), *decoder.shape))
        bar = progress(results, description="ingest", unit="images", total=len(items))
        for item, result in zip(items, bar, strict=True):
            if isinstance(result, BadFile):
                bad.append(result)
            else:
                file.write(result.pixels)
                sound.append(item)
                digests.append(result.digest)
        # Now their number is known. NumPy pads its header, so this one is as long as the first.
        file.seek(0)
        _write_npy_header(file, (len(sound), *decoder.shape))
    return Packed(sound, digests, tuple(bad), path)


def _write_npy_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _check_bad_files(bad: Sequence[BadFile], total: int, max_bad_fraction: float) -> None:
    if len(bad) > max_bad_fraction * total:
        named = some([f"{file.path} ({file.reason})" for file in bad])
        raise UserError(
            f"ingest.source: {len(bad):,} of {total:,} files ({len(bad) / total:.1%}) are bad, "
            f"more than ingest.max_bad_fraction = {max_bad_fraction} allows: {named}; mend or "
            "remove them, or raise the limit"
        )


def _write(
    packed: Packed, folder: Path, source: str, settings: params.Ingest, seed: int
) -> IngestReport:
    """Write the index beside the packed images, after the changes of the splits asked for."""
    items, digests = packed.items, packed.digests
    classes = tuple(sorted({item.class_name for item in items}))
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of[item.class_name] for item in items], np.int64)
    is_test = np.array([item.is_test for item in items], bool)
    test_is_cut = not is_test.any()
    if test_is_cut:
        is_test = cut(
            labels,
            digests,
            classes,
            fraction=settings.test_fraction,
            seed=seed,
            key="ingest.test_fraction",
            sides="train and test",
        )
    kept = np.argsort(is_test, kind="stable")
    if settings.drop_leaks:
        leaks = _leaks(digests, is_test)
        _check_left(classes, labels[~is_test & ~leaks])
        kept = kept[~leaks[kept]]
    if not np.array_equal(kept, np.arange(len(items))):
        _rearrange(packed.images_path, kept)
    digests, labels, is_test = [digests[row] for row in kept], labels[kept], is_test[kept]
    images = np.lib.format.open_memmap(packed.images_path, mode="r")
    dataset = Dataset(
        images=images,
        files=[items[row].path for row in kept],
        labels=labels,
        classes=classes,
        is_test=is_test,
        digests=digests,
        groups=group_by_digest(digests),
        digest=set_digest(digests, labels, is_test, classes, images.shape[1:]),
        source=source,
        test_is_cut=test_is_cut,
        bad_files=packed.bad_files,
        dropped_leaks=len(items) - len(kept),
    )
    dataset.write_index(folder)
    return IngestReport(
        counts=dataset.counts,
        bad_files=dataset.bad_files,
        duplicate_groups=int(np.count_nonzero(np.bincount(dataset.groups) > 1)),
        test_is_cut=test_is_cut,
        dropped_leaks=dataset.dropped_leaks,
        digest=dataset.digest,
    )


def _leaks(digests: Sequence[str], is_test: np.ndarray) -> np.ndarray:
    """Return which rows are train images that are also in test: (N,) bool."""
    in_test = {digest for digest, test in zip(digests, is_test, strict=True) if test}
    return np.array([digest in in_test for digest in digests]) & ~is_test


def _check_left(classes: Sequence[str], train_labels: np.ndarray) -> None:
    """Raise UserError unless every class has a train image left."""
    left = np.bincount(train_labels, minlength=len(classes))
    if not left.all():
        raise UserError(
            f"ingest.drop_leaks: every train image of class {classes[int(left.argmin())]!r} is "
            "also in test; add others, or set it to false"
        )


def _rearrange(images_path: Path, rows: np.ndarray) -> None:
    """Write an .npy file of images anew with these of its rows, in this order."""
    before_path = images_path.with_suffix(".before")
    images_path.rename(before_path)
    before = np.lib.format.open_memmap(before_path, mode="r")
    with images_path.open("wb") as file:
        _write_npy_header(file, (len(rows), *before.shape[1:]))
        for row in rows:
            file.write(before[row].tobytes())
    del before  # Windows cannot remove a file that is mapped.
    before_path.unlink()


def _log_report(report: IngestReport) -> None:
    train, test = (sum(report.counts[split].values()) for split in SPLITS)
    log.info(
        "%s train and %s test images, %d classes; %s sets of identical images",
        f"{train:,}",
        f"{test:,}",
        len(report.counts["train"]),
        f"{report.duplicate_groups:,}",
    )
    if report.test_is_cut:
        log.info("the source has no test/: the test images were cut from train/")
    if report.dropped_leaks:
        log.info(
            "ingest.drop_leaks: %s train images left out that are also in test",
            f"{report.dropped_leaks:,}",
        )
    if report.bad_files:
        named = some([f"{file.path} ({file.reason})" for file in report.bad_files])
        log.info("%s bad files left out: %s", f"{len(report.bad_files):,}", named)
