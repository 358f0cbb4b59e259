"""Sources that are read from a copy: tar archives, archives in archives, tables of pixels.

They are unpacked beside the dataset while it is made, within bounds, and removed with it.
"""

import lzma
import shutil
import tarfile
import zlib
from contextlib import closing
from pathlib import Path, PurePosixPath

from emotion_detection.console import UserError, log, progress
from emotion_detection.data import layout, tables
from emotion_detection.data.layout import Arrangement, Names
from emotion_detection.data.source import (
    ZIP_DAMAGE,
    FolderSource,
    Listing,
    Source,
    ZipSource,
    open_source,
    some,
)
from emotion_detection.files import is_full

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_MEMBERS = 20_000_000
MAX_NESTED = 3


class Unpacking:
    """Unpacks archives to `folder`; all together may hold `max_gib`."""

    def __init__(self, folder: Path, max_gib: float, encoding: str | None) -> None:
        """Remember the limits; nothing is written yet."""
        self.folder = folder
        self.encoding = encoding
        self._max_gib = max_gib
        self._left = int(max_gib * 2**30)

    def take(self, size: int, path: Path) -> None:
        """Count `size` bytes of `path` as unpacked.

        Raises:
            UserError: if they are too many.

        """
        self._left -= size
        if self._left < 0:
            raise UserError(
                f"ingest.source: {path} would unpack to more than ingest.max_unpacked_gib = "
                f"{self._max_gib} allows; raise the limit if you trust the archive"
            )

    def unpack(self, path: Path, target: Path) -> None:
        """Unpack a zip or tar file to the folder `target`.

        Raises:
            UserError: if it is unsafe, damaged or too large.

        """
        if is_tar(path):
            self._unpack_tar(path, target)
        else:
            with closing(ZipSource(path, self.encoding)) as source:
                self.take(source.unpacked_bytes, path)
                files = source.contents().files
                for parts in progress(files, description=f"unpack {path.name}", unit="files"):
                    _copy(source, "/".join(parts), target.joinpath(*parts))

    def _unpack_tar(self, path: Path, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        try:
            with tarfile.open(path) as tar:
                bar = progress(tar, description=f"unpack {path.name}", unit="files")
                for count, member in enumerate(bar):
                    self.take(member.size + 512, path)
                    if count > MAX_MEMBERS or len(PurePosixPath(member.name).parts) > 32:
                        raise UserError(f"ingest.source: {path} has too many files or folders")
                    if member.isreg():
                        # Python's own filter refuses what would land elsewhere.
                        tar.extract(member, target, filter="data")
                    elif not member.isdir():
                        raise UserError(
                            f"ingest.source: {path} is refused: its member {member.name!r} is a "
                            "link or a device; pack its images anew, or give their folder"
                        )
        except (
            tarfile.TarError,
            EOFError,
            OSError,
            ValueError,
            zlib.error,
            lzma.LZMAError,
        ) as error:
            if is_full(error):
                raise
            raise UserError(
                f"ingest.source: {path} is no sound tar archive ({error}); download it again"
            ) from error


def is_tar(path: Path) -> bool:
    """Return whether a file is a tar archive by its name."""
    return path.name.lower().endswith(TARS)


def arranged(path: Path, names: Names, unpacking: Unpacking) -> tuple[Source, Arrangement]:
    """Return the source at `path`, or of what it was unpacked to, and the arrangement of its files.

    Raises:
        UserError: if it has no layout that is known, or cannot be read.

    """
    source = _opened(path, unpacking)
    for _ in range(MAX_NESTED):
        if isinstance(source, ZipSource):
            unpacking.take(source.unpacked_bytes, path)
        listing = source.contents()
        if arrangement := layout.arrange(listing, path, names):
            break
        if table := tables.pixel_table(listing, source):
            source = _unpacked_table(source, table, unpacking, names)
            continue
        if arrangement := tables.arrange_labels(listing, source, path, names):
            break
        if arrangement := layout.arrange_classes(listing, path, names):
            break
        archives = [parts for parts in listing.files if _is_archive(Path(parts[-1]))]
        if not archives:
            raise _unknown(listing, path)
        source = _unpacked(source, archives, unpacking)
    else:
        raise UserError(f"ingest.source: {path} holds archives in archives in archives")
    layout.check_classes(arrangement.items, path)
    return source, arrangement


def _opened(path: Path, unpacking: Unpacking) -> Source:
    if is_tar(path) and path.is_file():
        unpacking.unpack(path, unpacking.folder / "tar")
        return FolderSource(unpacking.folder / "tar")
    if path.suffix.lower() in tables.TABLES and path.is_file():
        # As the only file of its folder.
        folder = unpacking.folder / "table"
        folder.mkdir(parents=True)
        (folder / path.name).symlink_to(path.resolve())
        return FolderSource(folder)
    return open_source(path, unpacking.encoding)


def _unpacked_table(source: Source, table: str, unpacking: Unpacking, names: Names) -> Source:
    folder = unpacking.folder / "pixels"
    with closing(source):
        tables.unpack_pixels(source, table, folder, names)
    return FolderSource(folder)


def _unpacked(
    source: Source, archives: list[tuple[str, ...]], unpacking: Unpacking
) -> FolderSource:
    """Unpack the archives in a source, each to a folder of its name."""
    log.info("ingest: unpacking what is in it: %s", some(["/".join(parts) for parts in archives]))
    level = len(list(unpacking.folder.glob("level*"))) if unpacking.folder.exists() else 0
    target = unpacking.folder / f"level{level}"
    with closing(source):
        for parts in archives:
            name = parts[-1]
            stem = next(
                (name[: -len(s)] for s in (*TARS, ".zip") if name.lower().endswith(s)), name
            )
            copy = unpacking.folder / "archive" / name
            _copy(source, "/".join(parts), copy)
            unpacking.unpack(copy, target.joinpath(*parts[:-1], stem))
            copy.unlink()
    return FolderSource(target)


def _copy(source: Source, name: str, target: Path) -> None:
    """Copy a file of a source to `target`.

    Raises:
        UserError: if it is damaged, or its name is too long or that of a folder.

    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open(name) as file, target.open("wb") as copy:
            shutil.copyfileobj(file, copy)
    except ZIP_DAMAGE as error:
        if is_full(error):
            raise
        raise UserError(
            f"ingest.source: {name} cannot be unpacked from {source.path} ({error})"
        ) from error


def _is_archive(path: Path) -> bool:
    return is_tar(path) or path.suffix.lower() == ".zip"


def _unknown(listing: Listing, path: Path) -> UserError:
    top = sorted({parts[0] for parts in listing.folders})
    found = some([f"{name}/" for name in top]) if top else "no folders"
    return UserError(
        f"ingest.source: {path} has no train/ folder, no class folders and no table of labels: "
        "expected train/<class>/<images> and test/<class>/<images>, or <class>/<images>; found "
        f"{found}"
    )
