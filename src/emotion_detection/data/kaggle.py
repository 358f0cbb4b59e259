"""Download a data set from Kaggle as a zip for ingest: `python -m emotion_detection.data.kaggle`.

kagglehub downloads, resumes after an interruption, compares the checksum and unpacks. The files are
then packed into a single zip, since DVC and experiments handle one file far quicker than tens of
thousands. The same version of a set gives the same zip, byte by byte, on any machine.
"""

import argparse
import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import kagglehub
from kagglehub.exceptions import DataCorruptionError
from kagglehub.handle import DatasetHandle, parse_dataset_handle
from requests import HTTPError, RequestException

from emotion_detection import paths
from emotion_detection.console import UserError, log, progress, run
from emotion_detection.data.layout import Names
from emotion_detection.data.source import natural_key
from emotion_detection.data.unpack import Unpacking, arranged
from emotion_detection.files import atomic, locked

FER = "ananthu017/emotion-detection-fer"

# What kagglehub raises on an archive that was damaged on its way.
DAMAGE = (
    DataCorruptionError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    ValueError,
)


def main() -> None:
    """Run the command as the terminal gave it."""
    dataset = parser().parse_args().dataset
    run(lambda: download(dataset))


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m emotion_detection.data.kaggle",
        description="Download a data set from Kaggle into data/, as a zip for ingest.source.",
    )
    parser.add_argument(
        "--dataset",
        default=FER,
        metavar="OWNER/NAME",
        help="as in the address of its page, or OWNER/NAME/versions/N (default: %(default)s)",
    )
    return parser


def download(dataset: str) -> None:
    """Download the Kaggle set `dataset`, OWNER/NAME, to data/NAME.zip, and log what is in it.

    An interrupted download is resumed. A set that is there already is checked and left as it is.

    Raises:
        UserError: if the set cannot be downloaded, is damaged, or has another layout than ingest
            reads.

    """
    handle = _handle(dataset)
    target = paths.DATA / f"{handle.dataset}.zip"
    if not target.exists():
        paths.DOWNLOADS.mkdir(parents=True, exist_ok=True)
        with locked(paths.DOWNLOADS / "lock") as alone:
            if not alone:
                raise UserError(f"{paths.DOWNLOADS}: another process downloads there; wait for it")
            _fetch(handle, target)
        shutil.rmtree(paths.DOWNLOADS)
    _describe(target, handle)


def _handle(dataset: str) -> DatasetHandle:
    try:
        handle = parse_dataset_handle(dataset)
    except ValueError:
        handle = DatasetHandle("", "")
    # The name becomes the name of a file.
    if not (handle.owner and handle.dataset.strip(".")) or "\\" in dataset:
        raise UserError(
            f"--dataset: {dataset!r} is not OWNER/NAME, as in https://www.kaggle.com/datasets/{FER}"
        )
    return handle


def _fetch(handle: DatasetHandle, target: Path) -> None:
    with atomic(target) as path:
        with _errors_of_kaggle(handle):
            # The default cache is in the home folder, where all of it would stay.
            os.environ["KAGGLEHUB_CACHE"] = str(paths.DOWNLOADS.resolve())
            logging.getLogger("kagglehub").handlers = list(log.handlers)
            folder = Path(kagglehub.dataset_download(str(handle)))
        _pack(folder, path, f"{handle.owner}/{handle.dataset}/versions/{folder.name}")


@contextmanager
def _errors_of_kaggle(handle: DatasetHandle) -> Iterator[None]:
    """Raise what goes wrong between here and Kaggle as a UserError."""
    by_hand = f"or download {handle.to_url()} in a browser and give its path as ingest.source"
    try:
        yield
    except HTTPError as error:
        status = None if error.response is None else error.response.status_code
        if status == 404:
            message = f"--dataset: Kaggle has no {handle} (404); look up its name there"
        elif status in (401, 403):
            message = (
                f"--dataset: Kaggle does not let everybody download {handle} ({status}); put a "
                f"token from https://www.kaggle.com/settings into ~/.kaggle/access_token, {by_hand}"
            )
        else:
            message = f"Kaggle refuses {handle} for now ({status}); run this again later, {by_hand}"
        raise UserError(message) from error
    except RequestException as error:
        resumes = ", and it resumes where it stopped" if _begun() else ""
        raise UserError(
            f"the connection to Kaggle failed ({_reason(error)}); check the network and run this "
            f"again{resumes}, {by_hand}"
        ) from error
    except DAMAGE as error:
        if not (_begun() or isinstance(error, DataCorruptionError)):
            raise UserError(f"kagglehub: {error}") from error
        # Otherwise kagglehub would resume after the damage, or take the archive for complete.
        shutil.rmtree(paths.DOWNLOADS, ignore_errors=True)
        raise UserError(
            f"the download of {handle} was damaged and is removed; run this again, {by_hand}"
        ) from error


def _begun() -> bool:
    return any(paths.DOWNLOADS.rglob("*.archive"))


def _reason(error: BaseException) -> str:
    """Return the message of the first cause, without those of the libraries around it."""
    while error.__context__ is not None:
        error = error.__context__
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _pack(folder: Path, path: Path, comment: str) -> None:
    """Write the files of `folder` to the zip `path`, whose bytes depend on nothing else."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = comment.encode()
        for name in progress(sorted(names, key=natural_key), description="pack", unit="files"):
            # No date and no owner, and no compression, which makes images no smaller.
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o644 << 16
            info.create_system = 3
            archive.writestr(info, (folder / name).read_bytes())


def _describe(path: Path, handle: DatasetHandle) -> None:
    """Log what the zip holds, after checking every byte of it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        # Of any size: the zip was made here.
        unpacking = Unpacking(Path(scratch), max_gib=2**20, encoding=None)
        source, arrangement = arranged(path, Names(), unpacking)
        source.close()
    images = Counter(item.split for item in arrangement.items)
    with zipfile.ZipFile(path) as archive:
        came_from = archive.comment.decode(errors="replace")
        try:
            damaged = archive.testzip()
        except (zipfile.BadZipFile, zlib.error) as error:
            damaged = str(error)
    if damaged:
        raise UserError(f"{path}: damaged ({damaged}); remove it and run this again")
    if came_from and not f"{came_from}/".startswith(f"{handle}/"):
        raise UserError(f"{path}: is {came_from}, not {handle}; move it and run this again")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    log.info(
        "%s: %s images, %d classes; %s, sha256 %s",
        path,
        " and ".join(f"{count:,} {split}" for split, count in images.items()),
        len({item.class_name for item in arrangement.items}),
        came_from or "not downloaded by this command",
        digest,
    )


if __name__ == "__main__":
    main()
