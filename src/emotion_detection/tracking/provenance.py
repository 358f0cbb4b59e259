"""The commit, versions, machine and process that a run comes from."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from emotion_detection.tracking import tags

PACKAGES = ("tensorflow", "keras", "keras-tuner", "numpy", "scikit-learn", "mlflow", "dvc")


def provenance() -> dict[str, str]:
    """Return tags for the commit, the DVC experiment, the versions and the machine of a run."""
    found = {
        tags.MACHINE: f"{_processor()}, {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        tags.SYSTEM: f"{platform.system()} {platform.machine()}",
        tags.PYTHON: platform.python_version(),
        **{f"{tags.VERSION}{name}": installed(name).partition("==")[2] for name in PACKAGES},
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        found[tags.GIT_COMMIT] = commit
        changed = _git("status", "--porcelain", "--untracked-files=no")
        found[tags.GIT_DIRTY] = tags.flag(bool(changed))
    for tag, variable in (
        (tags.DVC_EXPERIMENT, "DVC_EXP_NAME"),
        (tags.DVC_BASELINE, "DVC_EXP_BASELINE_REV"),
    ):
        if os.environ.get(variable):
            found[tag] = os.environ[variable]
    return found


def installed(package: str) -> str:
    """Return `package` and its version as pip pins them: numpy==2.4.6.

    TensorFlow without GPU support is tensorflow-cpu==2.21.0.
    """
    try:
        return f"{package}=={version(package)}"
    except PackageNotFoundError:
        return f"{package}-cpu=={version(f'{package}-cpu')}"


def run_name(stage: str, source: str, tagged: Mapping[str, str]) -> str:
    """Return the name of a run: its stage, the DVC experiment and the data.

    It has "(selected on test)" in it where `tagged`, its tags, says so.
    """
    selected = tagged.get(tags.SELECTED_ON_TEST) == tags.flag(True)
    marker = "(selected on test)" if selected else None
    return " ".join(filter(None, (stage, os.environ.get("DVC_EXP_NAME"), marker, "on", source)))


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.decode(errors="replace").strip()


def this_process() -> str:
    """Return a name that no other process has, now or later."""
    # A process id alone is used again.
    return f"{platform.node()} {os.getpid()} {psutil.Process().create_time():.2f}"


def is_gone(process: str) -> bool:
    """Return whether `process`, from a run's tag, was one of this machine and has ended."""
    try:
        node, number, started = process.rsplit(" ", 2)
        if node != platform.node():
            return False
        # The start is told by a clock that may have been adjusted since.
        return abs(psutil.Process(int(number)).create_time() - float(started)) > 5
    except psutil.NoSuchProcess:
        return True
    except (ValueError, psutil.Error):
        return False
