"""The pictures to be labelled: files, folders and a camera."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
from PIL import Image

from emotion_detection.console import UserError, log
from emotion_detection.data.image import FORMATS, open_image
from emotion_detection.data.source import FolderSource, natural_key

ANNOTATED_SUFFIXES = (".jpg", ".jpeg", ".png")
CAMERA_FRAMES = 10


class Picture(NamedTuple):
    """A picture still to be read.

    `name` is for people, and `file` for what is written of it: no two of a list have the same
    `annotated_name`. `path` is where it is, if it is a file.
    """

    name: str
    file: Path
    open: Callable[[], Image.Image]
    path: Path | None = None


def annotated_name(file: Path) -> Path:
    """Return the name of a picture with boxes on it: JPEG stays JPEG, all else becomes PNG."""
    return file if file.suffix.lower() in ANNOTATED_SUFFIXES else Path(f"{file}.png")


def listed(paths: Sequence[Path]) -> list[Picture]:
    """Return files, and of folders every image file at any depth, in natural name order.

    Hidden files and folders are passed over, links to folders are not followed, and a folder that
    cannot be listed is warned of.
    """

    def tell(error: OSError) -> None:
        log.warning("%s left out: cannot be listed (%s)", error.filename, error.strerror)

    Image.init()
    suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in FORMATS}
    found: list[Picture] = []
    taken: set[Path] = set()

    def add(path: Path, file: Path) -> None:
        stem, number = file.stem, 1
        while annotated_name(file) in taken:
            number += 1
            file = file.with_stem(f"{stem}-{number}")
        taken.add(annotated_name(file))
        found.append(Picture(str(path), file, partial(open_file, path), path))

    for path in paths:
        if not path.is_dir():
            add(path, Path(path.name))
            continue
        inside: list[Path] = []
        for folder, folder_names, file_names in os.walk(path, onerror=tell):
            folder_names[:] = [name for name in folder_names if not name.startswith(".")]
            inside += [
                Path(folder, name)
                for name in file_names
                if not name.startswith(".") and Path(name).suffix.lower() in suffixes
            ]
        for file in sorted(inside, key=lambda file: natural_key(str(file))):
            add(file, file.relative_to(path))
    return found


def open_file(path: Path) -> Image.Image:
    """Return the picture at `path` as `open_image` does, which says what it raises."""
    return open_image(FolderSource(path.parent).read(path.name))


def camera(source: int | str) -> Picture:
    """Take a picture with a camera, by its number, or the path of a video.

    Raises UserError if none comes.
    """
    if isinstance(source, int) and not 0 <= source < 2**31:
        raise UserError(f"--camera {source}: must be 0, the first, or more")
    # Its own lines tell which drivers it tried.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture(source)
    taken = None
    # A camera needs some frames to find out how bright it is.
    for _ in range(CAMERA_FRAMES):
        came, frame = capture.read()
        if not came:
            break
        taken = frame
    capture.release()
    if taken is None:
        raise UserError(f"--camera: no picture comes from camera {source}: is it there and free?")
    image = Image.fromarray(cv2.cvtColor(taken, cv2.COLOR_BGR2RGB))
    return Picture(f"camera {source}", Path(f"camera_{source}.png"), lambda: image)
