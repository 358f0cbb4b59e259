"""Small sources for ingest: folders and zips of class folders with images in them."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emotion_detection.data.ingest import IngestReport, ingest
from emotion_detection.settings import params

Files = dict[str, bytes]

HEIGHT, WIDTH = 9, 8


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Return grey noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    return Image.fromarray(pixels)


def colour_picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Return noise in colour."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """Return grey noise as a PNG file."""
    return encoded(picture(seed, height, width))


def faces(splits: tuple[str, ...] = ("train", "test"), each: int = 3) -> Files:
    """Return a small sound source: two classes, all images different."""
    names = [
        f"{split}/{name}/im{number}.png"
        for split in splits
        for name in ("angry", "happy")
        for number in range(each)
    ]
    return {name: png(seed) for seed, name in enumerate(names)}


def in_folder(folder: Path, files: Files) -> Path:
    """Write the files to a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def in_zip(path: Path, files: Files, **options: Any) -> Path:
    """Write the files to a zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def zipped(files: Files) -> bytes:
    """Return a zip of the files, uncompressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: Files) -> bytes:
    """Return a .tar.gz of the files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def ingested(
    source: Path,
    target: Path,
    *,
    seed: int = 0,
    corrections: Path | None = None,
    **changes: Any,
) -> IngestReport:
    """Ingest a source with settings for few images, of which `changes` are others."""
    settings: dict[str, Any] = {
        "image_size": (HEIGHT, WIDTH),
        "max_bad_fraction": 0.5,
        "max_unpacked_gib": 1.0,
        "test_fraction": 0.34,
    }
    ingest_settings = params.Ingest(**(settings | changes))
    return ingest(source, target, ingest_settings, seed=seed, corrections=corrections)


def broken(data: bytes, at: int) -> bytes:
    """Return `data` with one byte changed."""
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]
