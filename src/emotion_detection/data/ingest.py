"""Ingest: a folder or zip of class folders becomes a checked, packed dataset.

The source holds `train/<class>/` and `test/<class>/`, at its top or below one folder. Every file
in a class folder is decoded whole; what is no sound image is listed and left out. A zip is not
trusted, and never unpacked: its members are read one by one, within bounds.
"""

import hashlib
import multiprocessing
import os
import re
import signal
import stat
import struct
import threading
import unicodedata
import warnings
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np

from emotion_detection.console import UserError, log, progress
from emotion_detection.data.dataset import (
    CHANNELS,
    DIGEST_BYTES,
    IMAGES_FILE,
    SPLITS,
    BadFile,
    ColorMode,
    Dataset,
    cut,
    group_by_digest,
    set_digest,
)
from emotion_detection.data.image import BadImageError, decode
from emotion_detection.files import atomic

MAX_FILE_BYTES = 256 * 2**20
UTF_8_NAME = 1 << 11  # the flag of a zip member whose name is in UTF-8
CLUTTER = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"}

# What the zipfile module raises on damaged archives and members.
ZIP_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    OSError,
    EOFError,
    ValueError,
)

# Up to so many files the start of other processes takes longer than they save.
FILES_IN_PROCESS = 2000
# Enough to hide what sending costs, few enough for memory where images are large.
CHUNK_FILES = 32


@dataclass(frozen=True)
class IngestReport:
    """What ingest found and wrote. `counts` is by split, then class."""

    counts: dict[str, dict[str, int]]
    bad_files: tuple[BadFile, ...]
    duplicate_groups: int  # sets of two or more images with identical pixels
    test_is_cut: bool  # the source had no test split: it is a part of train
    dropped_leaks: int  # train images left out since their pixels are also in test
    digest: str


def ingest(
    source: Path,
    target: Path,
    *,
    image_size: tuple[int, int],
    color_mode: ColorMode,
    max_bad_fraction: float,
    max_unpacked_gib: float,
    test_fraction: float,
    drop_leaks: bool,
    seed: int,
) -> IngestReport:
    """Read the images of `source`, a folder or zip, and write them as a dataset to `target`.

    Images become `image_size` (height, width), stretched where their proportions differ, and
    `color_mode`. A source without a test split has `test_fraction` of train, drawn with `seed`,
    made its test split; images with the same pixels stay on one side. With `drop_leaks`, train
    images whose pixels are also in test are left out. `target` is replaced, and only by a whole
    dataset. Large sets are decoded in processes of their own, so the script that calls this needs
    its `if __name__ == "__main__"`.

    Raises UserError if the source has another layout, is an unsafe or damaged zip, would unpack to
    more than `max_unpacked_gib`, has a class without images, has more than `max_bad_fraction` of
    its files bad, or has a class that `drop_leaks` leaves without a train image.
    """
    if source.resolve().is_relative_to(target.resolve()):
        raise UserError(f"ingest.source: {source} lies in {target}, which ingest replaces; move it")
    with atomic(target) as folder:
        folder.mkdir()
        with closing(open_source(source)) as opened:
            items = arrange(opened.contents(max_unpacked_gib), source)
            decoder = Decoder(opened, image_size, color_mode)
            shape = (*image_size, CHANNELS[color_mode])
            packed = _pack(items, decoder, folder / IMAGES_FILE, shape)
        _check_bad_files(packed.bad_files, len(items), max_bad_fraction)
        _check_filled({(item.is_test, item.class_name) for item in items}, packed.items)
        report = _write(
            packed,
            folder,
            source=source.resolve().name,
            cut_test=not any(item.is_test for item in items),
            test_fraction=test_fraction,
            drop_leaks=drop_leaks,
            seed=seed,
        )
    _log_report(report)
    return report


# --- The source: a folder or a zip, searched and read alike.


@dataclass(frozen=True)
class Listing:
    """Paths of a source, each as its parts. Folders may be empty; clutter is left out."""

    files: list[tuple[str, ...]]
    folders: set[tuple[str, ...]]


class FolderSource:
    """A folder. Links to files are followed, links to folders are not.

    DVC does the same when it looks for changes, and so nothing can loop.
    """

    def __init__(self, path: Path) -> None:
        """Remember the path; nothing is opened before it is read."""
        self.path = path

    def close(self) -> None:
        """Do nothing: files are opened one by one."""

    def contents(self, max_unpacked_gib: float) -> Listing:
        """Return what the folder holds, in any order; there is nothing to unpack, so no limit."""

        def stop(error: OSError) -> NoReturn:
            raise UserError(f"ingest.source: {error.filename} cannot be listed: {error.strerror}")

        files: list[tuple[str, ...]] = []
        folders: set[tuple[str, ...]] = set()
        links: list[str] = []
        for folder, folder_names, file_names in os.walk(self.path, onerror=stop):
            parts = Path(folder).relative_to(self.path).parts
            folder_names[:] = [name for name in folder_names if not _is_clutter(name)]
            linked = {name for name in folder_names if Path(folder, name).is_symlink()}
            links += ["/".join((*parts, name)) for name in linked]
            folders |= {(*parts, name) for name in folder_names if name not in linked}
            files += [(*parts, name) for name in file_names if not _is_clutter(name)]
        if links:
            log.info("ignored (links to folders are not followed): %s", _some(sorted(links)))
        return Listing(files, folders)

    def read(self, name: str) -> bytes:
        """Return a file's content. Raises BadImageError if it cannot be read or is too large."""
        path = self.path / name
        try:
            # Asked first, since opening a named pipe would wait for ever.
            if not stat.S_ISREG(path.stat().st_mode):
                raise BadImageError("not a regular file")
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise BadImageError(f"cannot be read: {error.strerror}") from error
        _check_file_size(len(data))
        return data


class ZipSource:
    """A zip archive, whose every statement about itself may be false."""

    def __init__(self, path: Path) -> None:
        """Open the archive. Raises UserError if its directory cannot be read."""
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except ZIP_DAMAGE as error:
            raise UserError(
                f"ingest.source: {path} is not a sound zip archive ({error}); download it again"
            ) from error
        self._entries = [(_zip_parts(info), info) for info in self._zip.infolist()]
        self._members = dict(self._entries)

    def close(self) -> None:
        """Close the archive."""
        self._zip.close()

    def contents(self, max_unpacked_gib: float) -> Listing:
        """Return what the archive holds, in any order.

        Raises UserError if a member is unsafe, or if all of them together say to be larger than
        the limit. What they say can be relied on, for `read` stops there.
        """
        for parts, info in self._entries:
            if fault := _zip_fault(parts, info):
                raise UserError(
                    f"ingest.source: {self.path} is refused: its member {info.filename!r} {fault}; "
                    "zip its images anew, or give their folder"
                )
        unpacked = sum(info.file_size for _, info in self._entries) / 2**30
        if unpacked > max_unpacked_gib:
            raise UserError(
                f"ingest.source: {self.path} would unpack to {unpacked:.2f} GiB, more than "
                f"ingest.max_unpacked_gib = {max_unpacked_gib} allows; raise the limit if you "
                "trust the archive"
            )
        files: list[tuple[str, ...]] = []
        folders: set[tuple[str, ...]] = set()
        for parts, info in self._entries:
            if not parts or any(map(_is_clutter, parts)):
                continue
            folder = parts if info.filename.endswith(("/", "\\")) else parts[:-1]
            if folder != parts:
                files.append(parts)
            folders |= {folder[:end] for end in range(1, len(folder) + 1)}
        if len(set(files)) < len(files):
            name, count = Counter(files).most_common(1)[0]
            raise UserError(
                f"ingest.source: {self.path} is refused: it has {count} members "
                f"{'/'.join(name)!r}; zip its images anew, or give their folder"
            )
        return Listing(files, folders)

    def read(self, name: str) -> bytes:
        """Return a member's content. Raises BadImageError if it is damaged or too large."""
        info = self._members[tuple(name.split("/"))]
        _check_file_size(info.file_size)
        try:
            with self._zip.open(info) as member:
                # A bounded read, and one byte more to come to the end, where the CRC is checked.
                return member.read(info.file_size + 1)
        except ZIP_DAMAGE as error:
            raise BadImageError(f"damaged in the zip: {error}") from error


Source = FolderSource | ZipSource


def open_source(path: Path) -> Source:
    """Open a folder or zip of images. Raises UserError if `path` is neither."""
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise UserError(f"ingest.source: {path} does not exist; give a folder or zip of images")
    if not path.is_file() or not (path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)):
        raise UserError(f"ingest.source: {path} is neither a folder nor a zip archive")
    return ZipSource(path)


def _zip_parts(info: zipfile.ZipInfo) -> tuple[str, ...]:
    name = info.filename
    if not info.flag_bits & UTF_8_NAME:
        # macOS writes UTF-8 and does not say so, and Python then reads it as the standard has it.
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    # Some Windows programs write backslashes, against the standard.
    return PurePosixPath(name.replace("\\", "/")).parts


def _zip_fault(parts: tuple[str, ...], info: zipfile.ZipInfo) -> str | None:
    """Say why a member is unsafe or unusable, if it is."""
    if ".." in parts:
        return "has '..' in its name"
    if parts and (parts[0].startswith("/") or re.match("[A-Za-z]:", parts[0])):
        return "has an absolute name"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, not a file"
    if info.flag_bits & 1:
        return "is encrypted"
    # The decompressors of the other methods cannot be stopped at a given size.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed by a method other than deflate"
    return None


def _check_file_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise BadImageError(f"larger than {MAX_FILE_BYTES // 2**20} MiB")


def _is_clutter(name: str) -> bool:
    """Tell what systems and tools leave behind, and hidden files, from content."""
    return name.startswith(".") or name.casefold() in CLUTTER


# --- The layout: which file is of which split and class.


class Item(NamedTuple):
    """A file of the source, and what the folders it lies in make of it."""

    is_test: bool
    class_name: str
    path: str


def arrange(listing: Listing, source: Path) -> list[Item]:
    """Return the files in class folders, by split (train first), class and natural name order.

    Class names are the folders', in Unicode's composed form, as systems differ in the form they
    store. A class folder may hold further folders. Raises UserError if the layout is another one.
    """
    train, test = _find_splits(listing.folders, source)
    items: list[Item] = []
    classes: dict[bool, set[str]] = {}
    strays: list[str] = []
    for is_test, root in ((False, train), (True, test)):
        if root is None:
            continue
        depth = len(root)
        classes[is_test] = {
            _composed(folder[depth])
            for folder in listing.folders
            if len(folder) == depth + 1 and folder[:depth] == root
        }
        for parts in listing.files:
            if parts[:depth] != root:
                continue
            path = "/".join(parts)
            if len(parts) < depth + 2:
                strays.append(path)
            else:
                items.append(Item(is_test, _composed(parts[depth]), path))
    if strays:
        log.info("ignored (in no class folder): %s", _some(sorted(strays)))
    _check_classes(classes, items, source)
    return sorted(items, key=lambda item: (item.is_test, item.class_name, natural_key(item.path)))


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return a sort key by which im2 comes before im10."""
    # At most 18 digits at a time: Python refuses to make an integer of thousands.
    parts = re.split("([0-9]{1,18})", name)
    return [int(part) if odd % 2 else part for odd, part in enumerate(parts)], name


def _find_splits(
    folders: set[tuple[str, ...]], source: Path
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Return the paths of the train folder and, if there is one, of the test folder."""

    def named(name: str, among: set[tuple[str, ...]]) -> list[tuple[str, ...]]:
        return sorted(folder for folder in among if folder[-1].casefold() == name)

    def at_depth(depth: int) -> set[tuple[str, ...]]:
        return {folder for folder in folders if len(folder) == depth}

    top = at_depth(1)
    trains = named("train", top) or named("train", at_depth(2))
    if not trains:
        found = _some(sorted(f"{folder[0]}/" for folder in top)) if top else "no folders"
        raise UserError(
            f"ingest.source: {source} has no train/ folder: expected train/<class>/<images> and "
            f"test/<class>/<images>, at the top or below one folder; found {found}"
        )
    parent = trains[0][:-1]
    tests = named("test", {folder for folder in folders if folder[:-1] == parent})
    for same in (trains, tests):
        if len(same) > 1:
            names = ", ".join("/".join(folder) + "/" for folder in same)
            raise UserError(f"ingest.source: {source} has more than one split of a kind: {names}")
    used = {parent, trains[0], *tests}
    ignored = {f for f in folders if f[:-1] in ((), parent) and f not in used}
    if ignored:
        names = _some(sorted("/".join(folder) + "/" for folder in ignored))
        log.info("ignored (only train/ and test/ are read): %s", names)
    return _unnested(trains[0], folders), _unnested(tests[0], folders) if tests else None


def _unnested(root: tuple[str, ...], folders: set[tuple[str, ...]]) -> tuple[str, ...]:
    """Go from train/ into train/train/ where there is no other folder, as in many Kaggle sets."""
    while True:
        inside = [folder for folder in folders if folder[:-1] == root]
        if len(inside) != 1 or inside[0][-1].casefold() != root[-1].casefold():
            return root
        root = inside[0]


def _check_classes(classes: dict[bool, set[str]], items: list[Item], source: Path) -> None:
    train, test = classes[False], classes.get(True)
    for name in sorted(train | (test or set())):
        if not _is_text(name):
            raise UserError(
                f"ingest.source: {source} has a class folder {name!r}, whose name is not UTF-8; "
                "rename it"
            )
    if test is not None and not test:
        raise UserError(
            f"ingest.source: {source} has no class folder in test/, so nobody knows the classes of "
            "its images; rename or remove that folder, and ingest.test_fraction of train is cut "
            "off as the test split"
        )
    if test is not None and train != test:
        only = [
            f"only in {split}: {_some(sorted(names))}"
            for split, names in (("train", train - test), ("test", test - train))
            if names
        ]
        raise UserError(
            f"ingest.source: the classes of {source} differ between its splits; "
            + "; ".join(only)
            + "; give both the same"
        )
    if len(train) < 2:
        raise UserError(
            f"ingest.source: {source} has {_some(sorted(train)) if train else 'no class'} in "
            "train/; two classes are needed at least, each a folder of images"
        )
    _check_filled({(is_test, name) for is_test in classes for name in train}, items)


def _check_filled(expected: set[tuple[bool, str]], items: list[Item]) -> None:
    """Raise UserError unless every expected class of a split has an item."""
    empty = sorted(expected - {(item.is_test, item.class_name) for item in items})
    if empty:
        is_test, name = empty[0]
        raise UserError(
            f"ingest.source: class {name!r} has no image that can be read in {SPLITS[is_test]}; "
            "add some, or remove the class"
        )


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _some(names: Sequence[str], most: int = 5) -> str:
    """Return the first few of the names as text."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --- Decoding: the bytes of a file to the bytes of its pixels.


class Decoded(NamedTuple):
    """An image's pixels, (H, W, C) uint8 in C order, and their digest in hex."""

    pixels: bytes
    digest: str


@dataclass(frozen=True)
class Decoder:
    """Reads and decodes files of one source to images of one size and colour mode."""

    source: Source
    image_size: tuple[int, int]
    color_mode: ColorMode

    def __call__(self, paths: Sequence[str]) -> list[Decoded | BadFile]:
        """Decode the files one after the other; of a bad one return the reason."""
        with warnings.catch_warnings():
            # Pillow warns of flaws that it can work around: the pixels are sound.
            warnings.simplefilter("ignore")
            return [self._decode(path) for path in paths]

    def _decode(self, path: str) -> Decoded | BadFile:
        try:
            pixels = decode(self.source.read(path), self.image_size, self.color_mode)
        except BadImageError as error:
            return BadFile(path, str(error))
        return Decoded(pixels, hashlib.blake2b(pixels, digest_size=DIGEST_BYTES).hexdigest())


# --- Every core at once.


def _decode_all(items: list[Item], decoder: Decoder) -> Generator[Decoded | BadFile]:
    """Decode the items in their order, in processes of their own if there are many."""
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
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers,
        # Started afresh, the same on every system: a fork of a process with threads may hang.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(decoder.source.path, decoder.image_size, decoder.color_mode),
    )
    try:
        # Few chunks are under way at a time, so that memory stays small however large the set.
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
        # After Ctrl-C nobody wants to wait for the chunks under way.
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_worker_decoder: Decoder


def _start_worker(source: Path, image_size: tuple[int, int], color_mode: ColorMode) -> None:
    # Ctrl-C reaches every process of the terminal: the parent alone acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    global _worker_decoder
    _worker_decoder = Decoder(open_source(source), image_size, color_mode)


def _exit_with_parent() -> None:
    """End this worker if its parent is killed; it would wait for work for ever."""
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
    """The sound items, whose images lie in `images_path` in their order; and the bad ones."""

    items: list[Item]
    digests: list[str]
    bad_files: tuple[BadFile, ...]
    images_path: Path
    shape: tuple[int, int, int]


def _pack(items: list[Item], decoder: Decoder, path: Path, shape: tuple[int, int, int]) -> Packed:
    """Decode the items and write the sound ones' pixels to an .npy file."""
    sound: list[Item] = []
    digests: list[str] = []
    bad: list[BadFile] = []
    with path.open("wb") as file, closing(_decode_all(items, decoder)) as results:
        _write_npy_header(file, (len(items), *shape))
        bar = progress(results, description="ingest", unit="images", total=len(items))
        for item, result in zip(items, bar, strict=True):
            if isinstance(result, BadFile):
                bad.append(result)
            else:
                file.write(result.pixels)
                sound.append(item)
                digests.append(result.digest)
        # Now the number is known; numpy pads its header so that this one is as long as the first.
        file.seek(0)
        _write_npy_header(file, (len(sound), *shape))
    return Packed(sound, digests, tuple(bad), path, shape)


def _write_npy_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _check_bad_files(bad: Sequence[BadFile], total: int, max_bad_fraction: float) -> None:
    if len(bad) > max_bad_fraction * total:
        named = _some([f"{file.path} ({file.reason})" for file in bad])
        raise UserError(
            f"ingest.source: {len(bad):,} of {total:,} files ({len(bad) / total:.1%}) are bad, "
            f"more than ingest.max_bad_fraction = {max_bad_fraction} allows: {named}; mend or "
            "remove them, or raise the limit"
        )


def _write(
    packed: Packed,
    folder: Path,
    *,
    source: str,
    cut_test: bool,
    test_fraction: float,
    drop_leaks: bool,
    seed: int,
) -> IngestReport:
    """Write the index beside the packed images, after the changes of the splits asked for."""
    items, digests = packed.items, packed.digests
    classes = tuple(sorted({item.class_name for item in items}))
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[item.class_name] for item in items], np.int64)
    is_test = np.array([item.is_test for item in items], bool)
    if cut_test:
        is_test = cut(
            labels,
            group_by_digest(digests),
            classes,
            fraction=test_fraction,
            seed=seed,
            key="ingest.test_fraction",
            sides="train and test",
        )
    kept = np.argsort(is_test, kind="stable")
    if drop_leaks:
        in_test = {digest for digest, test in zip(digests, is_test, strict=True) if test}
        leaks = np.array([digest in in_test for digest in digests]) & ~is_test
        kept = kept[~leaks[kept]]
        _check_left(classes, labels[~is_test & ~leaks])
    if len(kept) < len(items) or cut_test:
        _rearrange(packed.images_path, kept)
    dropped = len(items) - len(kept)
    items, digests = [items[row] for row in kept], [digests[row] for row in kept]
    labels, is_test = labels[kept], is_test[kept]
    groups = group_by_digest(digests)
    dataset = Dataset(
        images=np.lib.format.open_memmap(packed.images_path, mode="r"),
        files=[item.path for item in items],
        labels=labels,
        classes=classes,
        is_test=is_test,
        digests=digests,
        groups=groups,
        digest=set_digest(digests, labels, is_test, classes, packed.shape),
        source=source,
        test_is_cut=cut_test,
        bad_files=packed.bad_files,
        dropped_leaks=dropped,
    )
    dataset.write_index(folder)
    return IngestReport(
        counts=dataset.counts,
        bad_files=packed.bad_files,
        duplicate_groups=int(np.count_nonzero(np.bincount(groups) > 1)),
        test_is_cut=cut_test,
        dropped_leaks=dropped,
        digest=dataset.digest,
    )


def _check_left(classes: Sequence[str], train_labels: np.ndarray) -> None:
    """Raise UserError unless every class still has a train image."""
    left = np.bincount(train_labels, minlength=len(classes))
    if not left.all():
        raise UserError(
            f"ingest.drop_leaks: every train image of class {classes[int(left.argmin())]!r} is "
            "also in test, pixel by pixel; add others, or set it to false"
        )


def _rearrange(images_path: Path, rows: np.ndarray) -> None:
    """Rewrite an .npy file of images with these of its rows, in this order."""
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
        named = _some([f"{file.path} ({file.reason})" for file in report.bad_files])
        log.info("%s bad files left out: %s", f"{len(report.bad_files):,}", named)
