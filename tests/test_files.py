"""A file is written whole or not at all, and one process at a time holds a lock."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from emotion_detection.console import UserError
from emotion_detection.files import (
    atomic,
    locked,
    parse_yaml,
    read_yaml,
    write_csv,
    write_json,
)

needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def fill(path: Path) -> None:
    with atomic(path) as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_text("new")


@needs_dev_full
def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"old": 1})
    with pytest.raises(UserError) as raised:
        fill(path)
    assert str(raised.value) == (
        f"{path}: No space left on device; free some space and run this again"
    )
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


def test_a_full_disk_that_hdf5_reports_is_recognised(tmp_path: Path) -> None:
    reason = os.strerror(errno.ENOSPC)
    with (
        pytest.raises(UserError, match=rf"epoch_00001: {reason}"),
        atomic(tmp_path / "epoch_00001"),
    ):
        raise RuntimeError(f"Unable to flush file (errno = 28, error message = '{reason}')")


def test_another_error_is_not_reported_as_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a"):
        (tmp_path / "none").read_bytes()


HOLD = """
import sys
from pathlib import Path
from emotion_detection.files import locked
with locked(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Let another process hold the lock `path`."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        yield other
        other.kill()


def test_one_process_holds_a_lock_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path), locked(path) as mine:
        assert not mine
    with locked(path) as mine:
        assert mine
        with locked(path) as again:
            assert not again


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path) as other:
        threading.Timer(0.5, other.kill).start()
        began = time.monotonic()
        with locked(path, wait=True) as mine:
            assert mine
            assert other.wait() == -signal.SIGKILL
        assert time.monotonic() - began > 0.4


def test_a_lock_in_a_folder_that_is_removed_is_free(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run" / "lock") as mine:
        assert mine
        shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run" / "lock") as mine:
        assert mine


def test_a_formula_in_a_csv_file_is_text(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["=1"], [["=HYPERLINK(1)", "-x", -1.5, "a=b", "@a", "+a"]])
    assert (tmp_path / "a.csv").read_text() == "'=1\n'=HYPERLINK(1),'-x,-1.5,a=b,'@a,'+a\n"


REPEATING = {
    "a list that holds itself": "filters: &f [16, *f]",
    "a section that holds itself": "&a\na: *a",
    "aliases of aliases": "a: &a [x, x, x, x, x, x, x, x]\n"
    + "\n".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]" for old, new in pairwise("abcdefghi")
    ),
}


@pytest.mark.parametrize("text", REPEATING.values(), ids=REPEATING)
def test_aliases_that_repeat_without_end_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"params\.yaml: holds more than 50,000 values"):
        parse_yaml(text, Path("params.yaml"))


def test_a_yaml_file_is_read_no_further_than_settings_are_long(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("# none\n" * 100_000)
    with pytest.raises(UserError, match="larger than 256 KiB"):
        read_yaml(tmp_path / "params.yaml")


def test_a_key_that_is_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match='found duplicate key "seed"'):
        parse_yaml("seed: 1\nseed: 2", Path("params.yaml"))
