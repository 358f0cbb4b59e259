"""What the machine has, as it is seen without TensorFlow."""

from pathlib import Path

import pytest

from emotion_detection import machine

CARD = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 100\nGPU UUID: \t GPU-1\n"


def test_nvidias_card_is_named_by_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CARDS", tmp_path)
    monkeypatch.setenv("PATH", "")
    assert machine.nvidia_card() is None
    (tmp_path / "0000:18:00.0").mkdir()
    (tmp_path / "0000:18:00.0" / "information").write_text(CARD)
    assert machine.nvidia_card() == "NVIDIA H200"


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
    monkeypatch.setattr(machine, "CARDS", tmp_path / "nothing")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.nvidia_card() == name
