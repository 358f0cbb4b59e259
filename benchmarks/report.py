"""The tables of docs/benchmarks.md, a file for each section so that one can be measured alone."""

import importlib.util
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emotion_detection.files import atomic
from emotion_detection.tracking.provenance import installed

SECTIONS = Path("reports/benchmarks")
ORDER = (
    *("training", "architectures", "quality", "feeding", "searching", "stages", "memory"),
    *("predicting", "rivals"),
)
"""The sections in the order of the document."""
DOCUMENT = Path("docs/benchmarks.md")
PACKAGES = ("tensorflow", "keras", "keras-tuner", "numpy", "pillow", "torch")


@dataclass
class Section:
    """A heading, tables and the sentences that explain them."""

    title: str
    parts: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Add a paragraph."""
        self.parts.append(text)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table; all columns but the first are aligned to the right."""
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
        self.parts.append("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))


def keep(name: str, section: Section) -> None:
    """Write a section that was just measured to its file."""
    measured = f"*{time.strftime('%Y-%m-%d')}, commit {_commit()}, {machine()}; {versions()}.*"
    text = "\n\n".join([f"## {section.title}", *section.parts, measured])
    SECTIONS.mkdir(parents=True, exist_ok=True)
    with atomic(SECTIONS / f"{name}.md") as path:
        path.write_text(text + "\n", encoding="utf-8")


def assemble() -> None:
    """Write the document from the files of its sections."""
    kept = [SECTIONS / f"{name}.md" for name in ORDER]
    texts = [path.read_text(encoding="utf-8") for path in kept if path.exists()]
    head = (
        "# Benchmarks\n\n"
        "Written by `python -m benchmarks --source data/emotion-detection-fer.zip --model "
        "models/model.keras` (`--only` measures one section) and, for the last section, by "
        "`python -m benchmarks.rivals`. PyTorch is measured where it is installed. Each contender "
        "runs in a process of its own, and they take turns; the first turn is left out. A number "
        "is the median of the turns, with the lowest and the highest in brackets.\n"
    )
    DOCUMENT.parent.mkdir(exist_ok=True)
    with atomic(DOCUMENT) as path:
        path.write_text("\n".join([head, *texts]), encoding="utf-8")


def machine() -> str:
    """Return the cores, processor and system of this machine."""
    model = platform.processor() or platform.machine()
    features = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text()
        model = text.split("model name\t: ")[1].splitlines()[0]
        flags = text.split("flags\t\t: ")[1].splitlines()[0].split()
        wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        features = f" with {', '.join(flag for flag in wanted if flag in flags)}"
    return f"{os.cpu_count()} cores of {model}{features}, {platform.system()}"


def versions() -> str:
    """Return the versions of Python and of the packages that are measured."""
    there = [name for name in PACKAGES if importlib.util.find_spec(_module(name))]
    return f"Python {platform.python_version()}, " + ", ".join(
        installed(name).replace("==", " ") for name in there
    )


def _module(package: str) -> str:
    return {"pillow": "PIL"}.get(package, package.replace("-", "_"))


def _commit() -> str:
    def git(*command: str) -> str:
        done = subprocess.run(["git", *command], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    # What a benchmark writes does not change what it measures.
    changed = git("status", "--porcelain", "--", "src", "stages", "benchmarks", "params.yaml")
    return git("describe", "--always") + ("-dirty" if changed else "")
