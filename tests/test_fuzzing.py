"""Params, archives and images changed at random: what is not valid is a `UserError`.

FUZZ_EXAMPLES sets how many of each are tried.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emotion_detection.console import UserError
from emotion_detection.data.dataset import IMAGES_FILE, INDEX_FILE, SUMMARY_FILE, Dataset
from emotion_detection.data.image import BadImageError, decode
from emotion_detection.data.ingest import ingest
from emotion_detection.settings import params
from tests.support.fuzzing import IMAGES, INGEST, ZIPS, anything, changed_params, damaged, texts

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    # The tests are the same in every run; only a set number of examples looks for new ones.
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)


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
@given(data=texts)
def test_any_file_is_params_or_refused(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "params.yaml"
    file.write_bytes(data)
    assert not accepted(file)


# --- Archives and images.


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
