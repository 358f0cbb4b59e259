"""Params, archives, images and tables that are changed at random, for Hypothesis to draw."""

import copy
import io
import zipfile
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st
from PIL import Image

from emotion_detection.settings import params
from tests.support.project import ROOT

SOUND = yaml.safe_load((ROOT / "params.yaml").read_text())

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["train", "5e-4", "auto", "holdout", "hyperband", "random"])
)
keys = st.text(max_size=5) | st.integers() | st.sampled_from([*sorted(SOUND), "lr", "epochs"])
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


def paths(values: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of keys to everything in `values`."""
    found = [prefix] if prefix else []
    if isinstance(values, dict):
        for key, value in values.items():
            found += paths(value, (*prefix, key))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            found += paths(value, (*prefix, index))
    return found


@st.composite
def changed_params(draw: st.DrawFn) -> Any:
    """Return the repository's params with a few of them changed, removed or added to."""
    values = copy.deepcopy(SOUND)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(paths(values)))
        inner = values
        for key in way:
            inner = inner[key]
        match draw(st.sampled_from(["change", "remove", "add"])):
            case "change":
                inner[last] = draw(anything)
            case "remove":
                del inner[last]
            case "add" if isinstance(inner, dict):
                inner[draw(keys)] = draw(anything)
        if not paths(values):
            break
    return values


texts = st.binary(max_size=200) | st.text(
    alphabet="abe019:-[]{}&*!|>#'\"%@`?,. \n\t~", max_size=120
).map(str.encode)
"""Short files of any bytes, and of the characters that mean something in YAML."""


def encoded(seed: int, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 8, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def sound_zip(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for seed, name in enumerate(
            f"{split}/{kind}/{number}.png"
            for split in ("train", "test")
            for kind in "ab"
            for number in range(2)
        ):
            file.writestr(name, encoded(seed))
    return buffer.getvalue()


@st.composite
def damaged(draw: st.DrawFn, sound: tuple[bytes, ...]) -> bytes:
    """Return one of `sound` with bytes overwritten, cut out, repeated or cut off."""
    data = bytearray(draw(st.sampled_from(sound)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 16))
        match draw(st.sampled_from(["write", "write", "cut", "repeat", "end"])):
            case "write":
                data[at : at + length] = draw(st.binary(min_size=1, max_size=length))
            case "cut":
                del data[at : at + length]
            case "repeat":
                data[at:at] = data[at : at + length]
            case "end":
                del data[at:]
    return bytes(data)


INGEST = params.Ingest(
    image_size=(8, 8),
    color_mode="rgb",
    max_bad_fraction=1.0,
    max_unpacked_gib=0.01,
    test_fraction=0.5,
)
ZIPS = (sound_zip(zipfile.ZIP_STORED), sound_zip(zipfile.ZIP_DEFLATED))
KINDS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {},
    "BMP": {},
    "GIF": {},
    "PPM": {},
    "WEBP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "AVIF": {},
}
IMAGES = tuple(encoded(3, kind, **options) for kind, options in KINDS.items())
