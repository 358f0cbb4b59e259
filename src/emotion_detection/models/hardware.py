"""What this machine computes quickly."""

import functools
import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path

import keras
import tensorflow as tf
from joblib import cpu_count

from emotion_detection.console import log

CARDS = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver for Linux describes its cards."""

LONGEST_ANSWER = 10.0
"""Seconds that nvidia-smi may take."""


def resolve_precision(wanted: str) -> tuple[str, str]:
    """Return the Keras dtype policy for `wanted` (auto or a policy) and why it was chosen."""
    if wanted != "auto":
        return wanted, "set by the param precision"
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        name = details.get("device_name", "the GPU")
        if details.get("compute_capability", (0, 0)) >= (8, 0):
            return "mixed_bfloat16", f"{name} has bfloat16 matrix units"
        return "float32", f"{name} has no bfloat16 matrix units"
    for flag in ("amx_bf16", "avx512_bf16"):
        if flag in _processor_flags():
            return "mixed_bfloat16", f"the processor has {flag}"
    return "float32", "the processor has no bfloat16 arithmetic that is known to be faster"


def device() -> str:
    """Return what networks are computed on, in words, with why an NVIDIA card is not used."""
    gpus = tf.config.list_physical_devices("GPU")
    own = f"{cpu_count()} cores" if cpu_count() > 1 else "1 core"
    if not gpus:
        card = _nvidia_card()
        return f"CPU, {own}" if card is None else f"CPU, {own} ({card}: {_why_unused()})"
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return f"{name}, {own}" if len(gpus) == 1 else f"{len(gpus)} GPUs ({name}), {own}"


def _nvidia_card() -> str | None:
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


def _why_unused() -> str:
    """Return why TensorFlow does not use the NVIDIA card of this machine, and what to do."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return f"hidden by CUDA_VISIBLE_DEVICES={visible}; unset it to use the card"
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "TensorFlow uses it on x86 Linux and in WSL only"
    build = tf.sysconfig.get_build_info()
    if not build.get("is_cuda_build"):
        return "this TensorFlow has no CUDA; `make gpu` installs the one that has"
    if importlib.util.find_spec("nvidia") is None:
        return "the CUDA libraries are missing; `make gpu` installs them"
    return (
        f"CUDA {build.get('cuda_version', '')} does not start; see whether `nvidia-smi` works and "
        "its driver is recent enough"
    )


def has_amx() -> bool:
    """Return whether bfloat16 is computed by a processor with AMX, and no GPU."""
    return "amx_bf16" in _processor_flags() and not tf.config.list_physical_devices("GPU")


@functools.cache
def _processor_flags() -> frozenset[str]:
    if platform.system() != "Linux":
        return frozenset()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split())
    return frozenset()


@functools.cache
def strategy(kind: str = "GPU") -> tf.distribute.Strategy:
    """Return what a network is to be built under: all devices of `kind` where there are several.

    Each then has a copy of the network and a part of every batch (`tf.distribute`); a single one,
    or none, is left to TensorFlow.
    """
    devices = tf.config.list_logical_devices(kind)
    if len(devices) < 2:
        return tf.distribute.get_strategy()
    log.info("each batch is shared among %d devices", len(devices))
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def be_deterministic(seed: int) -> None:
    """Have TensorFlow compute the same bits each time from now on; there is no way back.

    Operations that add up in the order in which threads end take a fixed one, and are slower.
    What draws from no seed of its own draws from `seed`.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
