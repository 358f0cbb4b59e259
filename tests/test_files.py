"""Files are whole or as they were, and a lock is one process's at a time."""

import errno
import os
import subprocess
import sys
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


def test_what_hdf5_says_of_a_full_disk_is_understood(tmp_path: Path) -> None:
    reason = os.strerror(errno.ENOSPC)
    with (
        pytest.raises(UserError, match=rf"epoch_00001: {reason}"),
        atomic(tmp_path / "epoch_00001"),
    ):
        raise RuntimeError(f"Unable to flush file (errno = 28, error message = '{reason}')")


def test_another_error_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a"):
        (tmp_path / "none").read_bytes()


def test_a_lock_is_one_processs_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys; from pathlib import Path; from emotion_detection.files import locked\n"
        "with locked(Path(sys.argv[1])) as mine: print(mine, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        with locked(path) as mine:
            assert not mine
        other.kill()
    with locked(path) as mine:
        assert mine
    with locked(path, wait=True) as mine:
        assert mine
