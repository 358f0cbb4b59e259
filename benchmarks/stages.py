"""How long the stages without training take."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np
import yaml
from PIL import Image

from benchmarks.material import Material
from benchmarks.report import Section
from benchmarks.turns import Turn, measure

PROJECT = Path.cwd()


def _stage(turn: Turn, folder: Path, stage: str) -> None:
    while True:
        turn.begin()
        run_stage(folder, stage)
        turn.end(1)


def _keras(turn: Turn, train: Path) -> None:
    while True:
        turn.begin()
        for part in (train, train.parent / "test"):
            data = keras.utils.image_dataset_from_directory(
                part, image_size=(48, 48), batch_size=256, shuffle=False, verbose=False
            )
            for _ in data:
                pass
        turn.end(1)


def _pillow(turn: Turn, train: Path) -> None:
    paths = [path for path in train.parent.rglob("*") if path.is_file()]
    while True:
        turn.begin()
        for path in paths:
            with Image.open(path) as image:
                np.asarray(image.convert("RGB"))
        turn.end(1)


def _nothing(turn: Turn) -> None:
    while True:
        turn.begin()
        subprocess.run(["dvc", "repro"], check=True, capture_output=True)
        turn.end(1)


def workspace(material: Material) -> Path:
    """Make a folder to run stages in, with a params.yaml that reads the source."""
    folder = material.scratch / "workspace"
    if not folder.exists():
        folder.mkdir(parents=True)
        shutil.copytree(PROJECT / "stages", folder / "stages")
        values = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
        values["ingest"]["source"] = str(material.source.resolve())
        (folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


def run_stage(folder: Path, stage: str) -> None:
    """Run a stage in `folder`, as DVC would."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(PROJECT / "src"), environment.get("PYTHONPATH", "")]
    )
    subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
    )


def run(material: Material, turns: int) -> Section:
    """Measure and describe."""
    folder = workspace(material)
    rates = measure(
        {
            "`stages.ingest`: check, hash and pack the source": partial(
                _stage, folder=folder, stage="ingest"
            ),
            "`keras.utils.image_dataset_from_directory`, read once": partial(
                _keras, train=material.folder
            ),
            "Pillow in one thread, decoded and dropped": partial(_pillow, train=material.folder),
        },
        turns=turns,
    )
    run_stage(folder, "ingest")
    rates |= measure(
        {"`stages.profile`": partial(_stage, folder=folder, stage="profile")}, turns=turns
    )
    if subprocess.run(["dvc", "status", "--quiet"], check=False).returncode == 0:
        rates |= measure({"`dvc repro` with nothing to do": _nothing}, turns=turns)
    section = Section("Stages")
    section.say(
        f"{len(material.dataset):,} images; the times of stages include the start of Python."
    )
    section.table(("", "seconds"), [(name, _seconds(rate.each)) for name, rate in rates.items()])
    return section


def _seconds(rates: Sequence[float]) -> str:
    each = sorted(1 / rate for rate in rates)
    return f"{each[len(each) // 2]:.1f} ({each[0]:.1f}-{each[-1]:.1f})"
