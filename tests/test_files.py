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
from pathlib import Path

import pytest

from emotion_detection.console import UserError
from emotion_detection.files import atomic, locked, write_json

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
