"""What the machine is taken for."""

from pathlib import Path

import pytest
import tensorflow as tf

from emotion_detection.models import hardware
from emotion_detection.models.hardware import device, has_amx, resolve_precision


def test_a_precision_that_is_asked_for_is_taken() -> None:
    for wanted in ("float32", "mixed_bfloat16"):
        assert resolve_precision(wanted) == (wanted, "set by the param precision")


def on_processor(monkeypatch: pytest.MonkeyPatch, flags: set[str]) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(hardware, "_processor_flags", lambda: flags)


@pytest.mark.parametrize(
    ("flags", "policy", "reason"),
    [
        ({"avx2", "avx512_bf16", "amx_bf16"}, "mixed_bfloat16", "the processor has amx_bf16"),
        ({"avx2", "avx512_bf16"}, "mixed_bfloat16", "the processor has avx512_bf16"),
        ({"avx2", "avx512f"}, "float32", "the processor has no bfloat16 arithmetic"),
        (set(), "float32", "the processor has no bfloat16 arithmetic"),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], policy: str, reason: str
) -> None:
    on_processor(monkeypatch, flags)
    chosen, why = resolve_precision("auto")
    assert chosen == policy
    assert why.startswith(reason)


@pytest.mark.parametrize(
    ("capability", "policy"),
    [((9, 0), "mixed_bfloat16"), ((8, 0), "mixed_bfloat16"), ((7, 5), "float32")],
)
def test_bfloat16_is_chosen_where_the_gpu_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], policy: str
) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    details = {"device_name": "NVIDIA X", "compute_capability": capability}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    chosen, why = resolve_precision("auto")
    assert chosen == policy
    assert why.startswith("NVIDIA X has ")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads Linux's /proc/cpuinfo")
def test_this_processors_flags_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    text = Path("/proc/cpuinfo").read_text()
    has_bfloat16 = "amx_bf16" in text or "avx512_bf16" in text
    assert resolve_precision("auto")[0] == ("mixed_bfloat16" if has_bfloat16 else "float32")


@pytest.mark.parametrize(
    ("visible", "cuda", "libraries", "why"),
    [
        (None, True, False, "the CUDA libraries are missing; `make gpu` installs them"),
        (None, False, False, "this TensorFlow has no CUDA; `make gpu` installs"),
        (None, True, True, "CUDA 12.5 does not start; see whether `nvidia-smi` works"),
        ("-1", True, True, "hidden by CUDA_VISIBLE_DEVICES=-1"),
    ],
)
def test_a_card_that_is_not_used_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, cuda: bool, libraries: bool, why: str
) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(hardware, "cpu_count", lambda: 2)
    monkeypatch.setattr(hardware, "_nvidia_card", lambda: "NVIDIA X")
    build = {"is_cuda_build": cuda, "cuda_version": "12.5"}
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: build)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: libraries or None)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device().startswith(f"CPU, 2 cores (NVIDIA X: {why}")
    monkeypatch.setattr(hardware, "_nvidia_card", lambda: None)
    assert device() == "CPU, 2 cores"


def test_the_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    details = {"device_name": "NVIDIA X"}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    monkeypatch.setattr(hardware, "cpu_count", lambda: 1)
    for gpus, words in ((1, "NVIDIA X, 1 core"), (2, "2 GPUs (NVIDIA X), 1 core")):
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind, n=gpus: ["GPU"] * n)
        assert device() == words


def test_amx_counts_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    on_processor(monkeypatch, {"avx512_bf16"})
    assert not has_amx()
    on_processor(monkeypatch, {"avx512_bf16", "amx_bf16"})
    assert has_amx()
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    assert not has_amx()


CARD = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 100\nGPU UUID: \t GPU-1\n"


def test_nvidias_card_is_named_by_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "CARDS", tmp_path)
    monkeypatch.setenv("PATH", "")
    assert hardware._nvidia_card() is None
    (tmp_path / "0000:18:00.0").mkdir()
    (tmp_path / "0000:18:00.0" / "information").write_text(CARD)
    assert hardware._nvidia_card() == "NVIDIA H200"


@pytest.mark.parametrize(
    ("script", "name"),
    [("echo NVIDIA X; echo NVIDIA Y", "NVIDIA X"), ("exit 9", None), ("echo", None)],
)
def test_where_the_driver_is_elsewhere_the_command_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, name: str | None
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setattr(hardware, "CARDS", tmp_path / "nothing")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware._nvidia_card() == name
