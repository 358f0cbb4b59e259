"""What a script shows in a terminal and in a log file, and how it ends."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from emotion_detection.console import GO_ON, Progress, duration

SCRIPT = """
import os, signal, sys, time
from emotion_detection.console import UserError, log, run

def main():
    what = sys.argv[1]
    if what == "user":
        raise UserError("params.yaml: train.lr = 0: must be more than 0")
    if what == "system":
        open("/nowhere/at/all")
    if what == "memory":
        raise MemoryError
    if what == "name":
        log.info("left out: %s", "a\\x1b[2Kerror: b\\n\\u202egnp.\\udce9")
        raise UserError("\\x1b]0;title\\x07.png: not an image")
    if what == "alone":
        print("began", flush=True)
        return sys.stdin.read()
    # A background job of a shell ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), getattr(signal, what))
    time.sleep(600)

run(main, stage=sys.argv[2] if len(sys.argv) > 2 else "")
"""

CHATTER = """
import os, sys, time
from emotion_detection.console import Progress, UserError, log, progress, quiet, run

def main():
    with quiet():
        # As TensorFlow's C++ code does, and a library's warning.
        os.write(2, b"WARNING: All log messages before absl::InitializeLog()\\n")
        if sys.argv[1] == "broken":
            raise ImportError("libtensorflow.so: undefined symbol")
    log.info("train: begins")
    with Progress("train", total=4) as shown:
        for epoch in range(4):
            time.sleep(0.4)
            shown.advance(note=f"epoch {epoch + 1}/4")
            if epoch == 1:
                log.info("train: news")
    time.sleep(3.5)
    log.info("train: done")

run(main, stage="train")
"""


def in_terminal(script: str, *arguments: str) -> str:
    """Run a script under a pseudo terminal, and return all that it wrote there."""
    import pty

    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=its_end, stderr=its_end
    )
    os.close(its_end)
    written = b""
    # Linux ends a terminal that nobody writes to by an error.
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 4096):
            written += part
    os.close(terminal)
    assert process.wait() == 0
    return written.decode()


@pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")
def test_a_terminal_gets_bars_that_leave_nothing_behind() -> None:
    written = in_terminal(CHATTER, "sound")
    assert "absl" not in written
    assert "epoch 3/4" in written
    # A clock, where there is no bar.
    assert "\rtrain 00:0" in written
    # What is left of a line is what follows the last return to its beginning.
    left = [line.rpartition("\r")[2] for line in written.replace("\r\n", "\n").split("\n")]
    assert [line for line in left if line.strip()] == [
        "train: begins",
        "train: news",
        "train: done",
    ]


def test_a_log_file_gets_lines_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHATTER, "sound"], text=True, capture_output=True, check=True
    )
    assert done.stderr == "train: begins\ntrain: news\ntrain: done\n"


def test_what_was_kept_back_is_shown_where_the_import_fails() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHATTER, "broken"], text=True, capture_output=True, check=False
    )
    assert done.stderr.startswith("WARNING: All log messages before absl")
    assert done.stderr.endswith("ImportError: libtensorflow.so: undefined symbol\n")


def test_lines_about_progress_are_few_and_have_the_time_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    caplog.set_level("INFO", "emotion_detection")
    with Progress("ingest", total=10_000, unit="images", bar=False) as shown:
        for _ in range(10_000):
            now += 0.02
            shown.advance()
    first, *others = caplog.messages
    assert first == "ingest: 501 of 10,000 images, about 3 min left"
    assert 3 <= len(others) <= 10
    assert others[-1].endswith(" s left")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (42.4, "42 s"),
        (89, "89 s"),
        (90, "2 min"),
        (420, "7 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (11_160, "3.1 h"),
    ],
)
def test_durations_read_as_a_person_says_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def end(*arguments: str, cwd: Path | None = None, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=os.environ | env,
        cwd=cwd,
        text=True,
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    ("what", "said", "status"),
    [
        ("user", "error: params.yaml: train.lr = 0: must be more than 0\n", 1),
        ("system", "error: /nowhere/at/all: No such file or directory\n", 1),
        ("memory", "error: not enough memory\n", 1),
        (
            "name",
            "left out: a\\x1b[2Kerror: b\\n\\u202egnp.\\udce9\n"
            "error: \\x1b]0;title\\x07.png: not an image\n",
            1,
        ),
        ("SIGINT", "interrupted\n", 128 + signal.SIGINT),
        ("SIGTERM", "terminated\n", 128 + signal.SIGTERM),
    ],
)
def test_a_script_ends_with_one_line(what: str, said: str, status: int) -> None:
    assert end(what) == (status, said)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_stage_that_is_interrupted_says_how_to_go_on() -> None:
    status = 128 + signal.SIGINT
    assert end("SIGINT", "train") == (status, f"interrupted{GO_ON}\n")


def test_a_stage_waits_for_another_process_that_runs_it(tmp_path: Path) -> None:
    def begin(**env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, "alone", "tune"],
            cwd=tmp_path,
            env=os.environ | env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    first = begin()
    assert first.stdout is not None
    assert first.stdout.readline() == "began\n"
    second = begin()
    assert second.stderr is not None
    assert second.stderr.readline() == (
        "tune: another process runs this stage here; waiting for it to end\n"
    )
    first.kill()
    assert second.communicate() == ("began\n", "")
    first.communicate()


def test_an_error_after_dvc_removed_outputs_says_how_they_come_back(tmp_path: Path) -> None:
    lock = "schema: '2.0'\nstages:\n  train:\n    cmd: python -m stages.train\n"
    (tmp_path / "dvc.lock").write_text(lock)
    of_dvc = {"DVC_STAGE": "train", "DVC_ROOT": str(tmp_path)}
    error = "error: params.yaml: train.lr = 0: must be more than 0\n"
    advice = "`dvc checkout train` brings back its outputs, which DVC removed\n"
    assert end("user", "train", cwd=tmp_path, **of_dvc) == (1, error + advice)
    # Without DVC nothing was removed; and a stage that never ran has no outputs.
    assert end("user", "train", cwd=tmp_path, DVC_STAGE="", DVC_ROOT="") == (1, error)
    of_dvc["DVC_STAGE"] = "tune"
    assert end("user", "tune", cwd=tmp_path, **of_dvc) == (1, error)


def test_a_traceback_is_shown_if_asked_for() -> None:
    _, errors = end("user", EMOTION_DETECTION_TRACEBACK="1")
    assert "Traceback" in errors
    assert "must be more than 0" in errors
