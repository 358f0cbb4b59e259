"""The source of a dataset: a folder or a zip of class folders, and what lies in it.

It holds `train/<class>/` and `test/<class>/`, at its top or below one folder. A zip is not trusted,
and never unpacked: its members are read one by one, within bounds.
"""

import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NoReturn

from emotion_detection.console import UserError, log
from emotion_detection.data.dataset import SPLITS
from emotion_detection.data.image import BadImageError

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


@dataclass(frozen=True)
class Listing:
    """Paths in a source, each as a tuple of its parts.

    Folders may be empty. Hidden files and what systems leave behind are not in it.
    """

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
        """Return what the folder holds, in any order; nothing is unpacked, so no limit applies.

        Raises:
            UserError: if a folder in it cannot be listed.

        """

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
            log.info("ignored (links to folders are not followed): %s", some(sorted(links)))
        return Listing(files, folders)

    def read(self, name: str) -> bytes:
        """Return the content of the file `name`, its path in the folder.

        Raises:
            BadImageError: if it cannot be read or has more than `MAX_FILE_BYTES`.

        """
        path = self.path / name
        try:
            # Checked before opening: opening a named pipe would never return.
            if not stat.S_ISREG(path.stat().st_mode):
                raise BadImageError("not a regular file")
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise BadImageError(f"cannot be read: {error.strerror}") from error
        _check_file_size(len(data))
        return data


class ZipSource:
    """A zip archive. What it says about itself may be false, and is checked."""

    def __init__(self, path: Path) -> None:
        """Open the archive.

        Raises:
            UserError: if its directory cannot be read.

        """
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

        `max_unpacked_gib` limits the sum of the sizes that the archive states. A member that is
        larger than stated does no harm, since `read` stops at the stated size.

        Raises:
            UserError: if a member is unsafe or there twice, or if the limit is exceeded.

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
        """Return the content of the member `name`.

        Raises:
            BadImageError: if it is damaged or has more than `MAX_FILE_BYTES`.

        """
        info = self._members[tuple(name.split("/"))]
        _check_file_size(info.file_size)
        try:
            with self._zip.open(info) as member:
                # One byte more than stated, since zipfile checks the CRC at the end of the member.
                return member.read(info.file_size + 1)
        except ZIP_DAMAGE as error:
            raise BadImageError(f"damaged in the zip: {error}") from error


Source = FolderSource | ZipSource


def open_source(path: Path) -> Source:
    """Open the folder or zip of images at `path`.

    Raises:
        UserError: if it is neither, or a zip that cannot be read.

    """
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
        # macOS writes UTF-8 without setting the flag, and zipfile then decodes it as cp437.
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    # Some Windows programs write backslashes, against the standard.
    return PurePosixPath(name.replace("\\", "/")).parts


def _zip_fault(parts: tuple[str, ...], info: zipfile.ZipInfo) -> str | None:
    """Return why a member is unsafe or unusable; None if it is neither."""
    if ".." in parts:
        return "has '..' in its name"
    if parts and (parts[0].startswith("/") or re.match("[A-Za-z]:", parts[0])):
        return "has an absolute name"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, not a file"
    if info.flag_bits & 1:
        return "is encrypted"
    # zipfile cannot stop the decompressors of other methods at a given size.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed by a method other than deflate"
    return None


def _check_file_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise BadImageError(f"larger than {MAX_FILE_BYTES // 2**20} MiB")


def _is_clutter(name: str) -> bool:
    """Return whether a name is that of a hidden file or of what systems leave behind."""
    return name.startswith(".") or name.casefold() in CLUTTER


# --- The layout: which file is of which split and class.


class Item(NamedTuple):
    """A file of the source, with the split and the class that its folders say."""

    is_test: bool
    class_name: str
    path: str


def arrange(listing: Listing, source: Path) -> list[Item]:
    """Return the files in class folders, by split (train first), class and natural name order.

    A class is named as its folder, in Unicode's composed form, since systems differ in the form
    that they store. A class folder may hold further folders. `source` is for the messages.

    Raises:
        UserError: if the layout is another one, or a class has no file in a split.

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
        log.info("ignored (in no class folder): %s", some(sorted(strays)))
    _check_classes(classes, items, source)
    return sorted(items, key=lambda item: (item.is_test, item.class_name, natural_key(item.path)))


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return a sort key by which im2 comes before im10."""
    # At most 18 digits at a time: Python refuses to convert thousands of them to an integer.
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
        found = some(sorted(f"{folder[0]}/" for folder in top)) if top else "no folders"
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
        names = some(sorted("/".join(folder) + "/" for folder in ignored))
        log.info("ignored (only train/ and test/ are read): %s", names)
    return _unnested(trains[0], folders), _unnested(tests[0], folders) if tests else None


def _unnested(root: tuple[str, ...], folders: set[tuple[str, ...]]) -> tuple[str, ...]:
    """Return train/train/ for train/ where it holds nothing else, as in many Kaggle sets."""
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
            f"ingest.source: {source} has no class folder in test/, so the classes of its images "
            "are not known; rename or remove that folder, and ingest.test_fraction of train is cut "
            "off as the test split"
        )
    if test is not None and train != test:
        only = [
            f"only in {split}: {some(sorted(names))}"
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
            f"ingest.source: {source} has {some(sorted(train)) if train else 'no class'} in "
            "train/; two classes are needed at least, each a folder of images"
        )
    check_filled({(is_test, name) for is_test in classes for name in train}, items)


def check_filled(expected: set[tuple[bool, str]], items: list[Item]) -> None:
    """Raise UserError unless every expected pair of is_test and class has an item."""
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


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first `most` of the names as text, with the number of the others."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
