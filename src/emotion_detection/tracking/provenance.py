"""What made a run: the commit, the versions, the machine, the process."""

import contextlib
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import psutil

from emotion_detection.tracking.store import hidden

PACKAGES = ("tensorflow", "keras", "keras-tuner", "numpy", "scikit-learn", "mlflow", "dvc")

DIFF_BYTES = 2**20


def provenance() -> dict[str, str]:
    """Return tags that say what makes a run, and on what."""
    tags = {
        "machine": f"{_processor()}, {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{f"version.{name}": version(name) for name in PACKAGES},
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["git.commit"] = commit
        tags["git.dirty"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    for tag, variable in (
        ("dvc.experiment", "DVC_EXP_NAME"),
        ("dvc.baseline", "DVC_EXP_BASELINE_REV"),
    ):
        if os.environ.get(variable):
            tags[tag] = os.environ[variable]
    return tags


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_diff() -> bytes:
    """Return what the files that Git tracks have more than the commit, at most DIFF_BYTES of it."""
    diff = hidden(_git("diff", "--no-color", "--no-ext-diff", "HEAD"))
    if not diff:
        return b""
    data = f"{diff}\n".encode()
    if len(data) > DIFF_BYTES:
        data = data[:DIFF_BYTES] + f"\n... and {len(data) - DIFF_BYTES:,} bytes more\n".encode()
    return data


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.decode(errors="replace").strip()


def this_process() -> str:
    """Name this process so that no other, now or later, has its name."""
    # A number is used again, a number and a start are not.
    return f"{platform.node()} {os.getpid()} {psutil.Process().create_time():.2f}"


def is_gone(process: str) -> bool:
    """Tell whether `process`, from a run's tag, is of this machine and no more."""
    try:
        node, number, started = process.rsplit(" ", 2)
        if node != platform.node():
            return False
        # The clock that it is told by may have been put right since.
        return abs(psutil.Process(int(number)).create_time() - float(started)) > 5
    except psutil.NoSuchProcess:
        return True
    except (ValueError, psutil.Error):
        return False
