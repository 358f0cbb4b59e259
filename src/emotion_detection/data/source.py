"""The source of a dataset: a folder or a zip, and the files in it.

A zip is not trusted: its members are read one by one, within bounds.
"""

import os
import posixpath
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn

from emotion_detection import paths
from emotion_detection.console import UserError, log
from emotion_detection.data.image import BadImageError

MAX_FILE_BYTES = 256 * 2**20
MAX_DEPTH = 32
UTF_8_NAME = 1 << 11  # the flag of a zip member whose name is in UTF-8
UNICODE_PATH = 0x7075  # the extra field that has a member's name in UTF-8 (APPNOTE 4.6.9)
LIKELY_ENCODINGS = ("gbk", "shift_jis", "euc_kr", "cp1250", "cp1251", "cp1252", "cp437")
CLUTTER = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"),
    paths.SYNTHETIC_MARK.casefold(),
}

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
    """A folder. Links to files and to folders are followed; one that leads back to a folder above
    it is left out, so that nothing can loop.
    """

    encoding = None

    def __init__(self, path: Path) -> None:
        """Remember the path; nothing is opened before it is read."""
        self.path = path

    def close(self) -> None:
        """Do nothing: files are opened one by one."""

    def contents(self) -> Listing:
        """Return what the folder holds, in any order.

        Raises:
            UserError: if a folder in it cannot be listed, or lies deeper than `MAX_DEPTH`.

        """
        files: list[tuple[str, ...]] = []
        folders: set[tuple[str, ...]] = set()
        links: list[str] = []
        for parts, folder_names, file_names in self._walk(links):
            folders |= {(*parts, name) for name in folder_names}
            files += [(*parts, name) for name in file_names if not _is_clutter(name)]
        if links:
            log.warning(
                "ingest: links to folders are followed: %s; DVC does not see changes behind them "
                "(run `dvc repro --force ingest` after one)",
                some(sorted(links)),
            )
        return Listing(files, folders)

    def _walk(self, links: list[str]) -> Iterator[tuple[tuple[str, ...], list[str], list[str]]]:
        """Yield each folder's parts and the names in it, and note links to folders."""

        def stop(error: OSError) -> NoReturn:
            raise UserError(f"ingest.source: {error.filename} cannot be listed: {error.strerror}")

        above: dict[tuple[str, ...], frozenset[tuple[int, int]]] = {}
        for folder, folder_names, file_names in os.walk(self.path, onerror=stop, followlinks=True):
            parts = Path(folder).relative_to(self.path).parts
            if len(parts) > MAX_DEPTH:
                raise UserError(f"ingest.source: {folder} is more than {MAX_DEPTH} folders deep")
            found = Path(folder).stat()
            own = above.get(parts[:-1], frozenset()) | {(found.st_dev, found.st_ino)}
            above[parts] = own
            names = [name for name in folder_names if not _is_clutter(name)]
            folder_names.clear()
            for name in names:
                path = Path(folder, name)
                if path.is_symlink():
                    target = path.stat()
                    if (target.st_dev, target.st_ino) in own:
                        log.warning("ingest: left out: %s is a link to a folder above it", path)
                        continue
                    links.append("/".join((*parts, name)))
                folder_names.append(name)
            yield parts, folder_names, file_names

    def open(self, name: str) -> IO[bytes]:
        """Return the file `name`, its path in the folder, opened for reading.

        Raises:
            UserError: if it is no regular file: a named pipe would never open.

        """
        path = self.path / name
        if not path.is_file():
            raise UserError(f"ingest.source: {path} is not a regular file; remove it")
        return path.open("rb")

    def read(self, name: str) -> bytes:
        """Return the content of the file `name`, its path in the folder.

        Raises:
            BadImageError: if it cannot be read or has more than `MAX_FILE_BYTES`.

        """
        path = self.path / name
        try:
            found = path.stat()
            # Checked before opening: opening a named pipe would never return.
            if not stat.S_ISREG(found.st_mode):
                raise BadImageError("not a regular file")
            _check_file_size(found.st_size)
            with path.open("rb") as file:
                return file.read(found.st_size)
        except OSError as error:
            raise BadImageError(f"cannot be read: {error.strerror}") from error
        except ValueError as error:  # of a NUL
            raise BadImageError(f"cannot be read: {error}") from error


class ZipSource:
    """A zip archive. What it says about itself may be false, and is checked."""

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        """Open the archive; `encoding` is that of names which are neither marked as UTF-8 nor it.

        Raises:
            UserError: if its directory cannot be read.

        """
        self.path = path
        self.encoding = encoding
        try:
            self._zip = zipfile.ZipFile(path)
        except ZIP_DAMAGE as error:
            raise UserError(
                f"ingest.source: {path} is not a sound zip archive ({error}); download it again"
            ) from error
        self._entries = [(self._parts(info), info) for info in self._zip.infolist()]
        self._members = dict(self._entries)

    def close(self) -> None:
        """Close the archive."""
        self._zip.close()

    @property
    def unpacked_bytes(self) -> int:
        """The sum of the sizes that the archive states of its members.

        A member that is larger does no harm, since `read` stops at the stated size.
        """
        return sum(info.file_size for _, info in self._entries)

    def contents(self) -> Listing:
        """Return what the archive holds, in any order.

        Raises:
            UserError: if a member is unsafe or there twice.

        """
        files: list[tuple[str, ...]] = []
        folders: set[tuple[str, ...]] = set()
        for parts, info in self._entries:
            if fault := _zip_fault(parts, info):
                raise self._refused(f"its member {info.filename[:200]!r} {fault}")
            if not parts or any(map(_is_clutter, parts)):
                continue
            folder = parts if info.filename.endswith(("/", "\\")) else parts[:-1]
            if folder != parts:
                files.append(parts)
            while folder and folder not in folders:
                folders.add(folder)
                folder = folder[:-1]
        if len(set(files)) < len(files):
            name, count = Counter(files).most_common(1)[0]
            raise self._refused(f"it has {count} members {'/'.join(name)!r}")
        return Listing(files, folders)

    def _refused(self, fault: str) -> UserError:
        return UserError(
            f"ingest.source: {self.path} is refused: {fault}; zip its images anew, or give their "
            "folder"
        )

    def _parts(self, info: zipfile.ZipInfo) -> tuple[str, ...]:
        # Some Windows programs write backslashes, against the standard.
        return PurePosixPath(self._name(info).replace("\\", "/")).parts

    def _name(self, info: zipfile.ZipInfo) -> str:
        """Return a member's name: of its Unicode field, as UTF-8, or in `encoding`."""
        if info.flag_bits & UTF_8_NAME:
            return info.filename
        # What zipfile has decoded as cp437, which has a character for every byte.
        raw = info.orig_filename.encode("cp437")
        if (name := _unicode_path(info.extra, raw)) is not None:
            return name
        for encoding in ("utf-8", self.encoding):
            with suppress(UnicodeError):
                if encoding is not None:
                    return raw.decode(encoding)
        if self.encoding is not None:
            raise UserError(
                f"ingest.zip_encoding = {self.encoding}: {self.path} has a name that is not in it: "
                f"{raw!r}"
            )
        folder = raw.rpartition(b"/")[0]
        try:
            folder.decode()
        except UnicodeError:
            raise UserError(
                f"ingest.source: the names in {self.path} are not in UTF-8; set "
                f"ingest.zip_encoding to theirs. {raw!r} would be: {_readings(folder)}"
            ) from None
        return info.orig_filename

    def open(self, name: str) -> IO[bytes]:
        """Return the member `name`, opened for reading."""
        return self._zip.open(self._members[tuple(name.split("/"))])

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


def is_synthetic(source: Source, images: Sequence[str]) -> bool:
    """Return whether a program drew `images`: whether `paths.SYNTHETIC_MARK` lies above them."""
    folder = PurePosixPath(posixpath.commonpath(images))
    for above in (folder, *folder.parents):
        with suppress(BadImageError, KeyError):
            source.read(str(above / paths.SYNTHETIC_MARK))
            return True
    return False


def open_source(path: Path, encoding: str | None = None) -> Source:
    """Open the folder or zip of images at `path`; `encoding` is as of `ZipSource`.

    Raises:
        UserError: if it is neither, or a zip that cannot be read.

    """
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise UserError(f"ingest.source: {path} does not exist; give a folder or archive of images")
    if not path.is_file() or not (path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)):
        raise UserError(f"ingest.source: {path} is neither a folder nor a .zip, .tar or .csv file")
    return ZipSource(path, encoding)


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Return the name in a member's Unicode Path field, unless it belongs to another `raw` name."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and len(field) > 5:
            version, crc = struct.unpack_from("<BI", field)
            with suppress(UnicodeError):
                if version == 1 and crc == zlib.crc32(raw):
                    return field[5:].decode()
    return None


def _readings(raw: bytes) -> str:
    """Return how a name reads in the encodings that are likely."""
    readings = []
    for encoding in LIKELY_ENCODINGS:
        with suppress(UnicodeError):
            readings.append(f"{raw.decode(encoding)!r} ({encoding})")
    return ", ".join(readings)


def _zip_fault(parts: tuple[str, ...], info: zipfile.ZipInfo) -> str | None:
    """Return why a member is unsafe or unusable; None if it is neither."""
    if len(parts) > MAX_DEPTH:
        return f"is more than {MAX_DEPTH} folders deep"
    if ".." in parts:
        return "has '..' in its name"
    if any("\0" in part for part in parts):
        return "has a NUL in its name"
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


def state(source: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of every file of a source, by its path."""
    if not source.is_dir():
        found = source.stat() if source.exists() else None
        return {} if found is None else {source.name: (found.st_size, found.st_mtime_ns)}
    files = {}
    for folder, _, names in os.walk(source):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 (twice as fast for a million files)
            found = os.lstat(path)
            files[os.path.relpath(path, source)] = (found.st_size, found.st_mtime_ns)
    return files


def check_unchanged(source: Path, before: dict[str, tuple[int, int]]) -> None:
    """Check that the files of a source are those of the `state` before.

    DVC looks at the source after ingest has read it, and would take the dataset for that of the
    files that are there then.

    Raises:
        UserError: if they are not.

    """
    after = state(source)
    changed = sorted(name for name, _ in before.items() ^ after.items())
    if changed:
        raise UserError(
            f"ingest.source: {source} changed while it was read ({some(changed)}); run this again "
            "once it is complete"
        )


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return a sort key by which im2 comes before im10."""
    # At most 18 digits at a time: Python refuses to convert thousands of them to an integer.
    parts = re.split("([0-9]{1,18})", name)
    return [int(part) if odd % 2 else part for odd, part in enumerate(parts)], name


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first `most` of the names as text, with the number of the others."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
