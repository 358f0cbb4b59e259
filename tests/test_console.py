"""How a script ends: one line and an exit status, and a traceback only if it is asked for."""

import os
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, time
from emotion_detection.console import UserError, run

def main():
    what = sys.argv[1]
    if what == "user":
        raise UserError("params.yaml: train.lr = 0: must be more than 0")
    if what == "system":
        open("/nowhere/at/all")
    # A background job of a shell ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), getattr(signal, what))
    time.sleep(600)

run(main)
"""


def end(what: str, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, what], env=os.environ | env, text=True, capture_output=True
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    ("what", "said", "status"),
    [
        ("user", "error: params.yaml: train.lr = 0: must be more than 0\n", 1),
        ("system", "error: /nowhere/at/all: No such file or directory\n", 1),
        ("SIGINT", "interrupted\n", 128 + signal.SIGINT),
        ("SIGTERM", "terminated\n", 128 + signal.SIGTERM),
    ],
)
def test_a_script_ends_with_one_line(what: str, said: str, status: int) -> None:
    assert end(what) == (status, said)


def test_a_traceback_is_shown_if_asked_for() -> None:
    _, errors = end("user", EMOTION_DETECTION_TRACEBACK="1")
    assert "Traceback" in errors
    assert "must be more than 0" in errors
