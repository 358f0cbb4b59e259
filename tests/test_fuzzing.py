"""Params, archives and images changed at random: what is not valid is a `UserError`.

FUZZ_EXAMPLES sets how many of each are tried.
"""

import contextlib
import copy
import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from emotion_detection import params
from emotion_detection.console import UserError
from emotion_detection.data.dataset import IMAGES_FILE, INDEX_FILE, SUMMARY_FILE, Dataset
from emotion_detection.data.image import BadImageError, decode
from emotion_detection.data.ingest import ingest

ROOT = Path(__file__).parents[1]
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    # The tests are the same in every run; only a set number of examples looks for new ones.
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)

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


def accepted(file: Path) -> bool:
    """Return whether params are accepted; if not, the message is one line that names the file."""
    try:
        return isinstance(params.load(file), params.Params)
    except UserError as error:
        said = str(error)
    assert said.startswith(f"{file}: ")
    assert len(said.splitlines()) == 1
    return False


@fuzzed
@given(values=changed_params() | anything)
def test_any_params_are_taken_or_refused(
    values: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "params.yaml"
    file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    accepted(file)


@fuzzed
@given(
    data=st.binary(max_size=200)
    | st.text(alphabet="abe019:-[]{}&*!|>#'\"%@`?,. \n\t~", max_size=120).map(str.encode)
)
def test_any_file_is_params_or_refused(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "params.yaml"
    file.write_bytes(data)
    assert not accepted(file)


# --- Archives and images.


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


@contextlib.contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder


@fuzzed
@given(data=damaged(ZIPS))
def test_any_archive_is_a_dataset_or_refused(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with emptied(tmp_path_factory.getbasetemp() / "fuzzed") as folder:
        (folder / "s.zip").write_bytes(data)
        said = ""
        try:
            report = ingest(folder / "s.zip", folder / "out", INGEST, seed=0)
        except UserError as error:
            said = str(error)
        if said:
            assert [path.name for path in folder.iterdir()] == ["s.zip"]
        else:
            assert Dataset.open(folder / "out").digest == report.digest


@fuzzed
@given(data=st.data())
def test_any_packed_files_are_a_dataset_or_refused(
    data: st.DataObject, toy: Dataset, packed: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with emptied(tmp_path_factory.getbasetemp() / "packed") as folder:
        for path in packed.iterdir():
            shutil.copy(path, folder)
        path = folder / data.draw(st.sampled_from([IMAGES_FILE, INDEX_FILE, SUMMARY_FILE]))
        path.write_bytes(data.draw(damaged((path.read_bytes(),))))
        said = ""
        try:
            opened = Dataset.open(folder)
        except UserError as error:
            said = str(error)
        if said:
            assert said.startswith(str(folder))
            assert len(said.splitlines()) == 1
        else:
            assert opened.digest == toy.digest
            assert opened.images.shape == toy.images.shape


@fuzzed
@given(data=damaged(IMAGES) | st.binary(max_size=100))
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_are_an_image_or_a_bad_one(data: bytes) -> None:
    with contextlib.suppress(BadImageError):
        assert len(decode(data, (8, 8), "rgb")) == 8 * 8 * 3
