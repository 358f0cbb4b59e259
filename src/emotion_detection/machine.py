"""What this machine has to compute with, as far as it can be seen without TensorFlow."""

import os
import shutil
import subprocess
from pathlib import Path

CARDS = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver for Linux describes its cards."""

LONGEST_ANSWER = 10.0
"""Seconds that nvidia-smi may take."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def nvidia_card() -> str | None:
    """Return the name of this machine's first NVIDIA card, None if there is none."""
    for information in sorted(CARDS.glob("*/information")):
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key == "Model":
                return value.strip()
    # In Windows's Linux and in some containers, only the command knows.
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    try:
        listed = subprocess.run(
            [command, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=LONGEST_ANSWER,
            check=True,
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return next((name.strip() for name in listed if name.strip()), None)
