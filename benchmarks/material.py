"""What the benchmarks run on: the notebook's network, and images packed by the project's ingest."""

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from emotion_detection.data.dataset import ColorMode, Dataset
from emotion_detection.data.ingest import ingest
from emotion_detection.data.splits import Split, split
from emotion_detection.settings import params

SEED = 1
NOTEBOOK = params.Network(
    arch="notebook",
    filters=(32, 128, 128, 32),
    kernel_sizes=(3, 3, 3, 3),
    convolutions=2,
    dense_units=(64,),
    conv_dropout=0.2,
    dense_dropout=0.5,
    bn_momentum=0.8,
)
"""The notebook's last network."""
TRANSFORMS = {
    "rotation_range": 15,
    "width_shift_range": 0.1,
    "height_shift_range": 0.1,
    "shear_range": 10,
    "zoom_range": 0.1,
    "horizontal_flip": True,
    "fill_mode": "nearest",
}
AUGMENT = params.Augment(rotation=15, shift=0.1, shear=10, zoom=0.1, horizontal_flip=True)
"""The same as TRANSFORMS in this project's settings."""


@dataclass(frozen=True)
class Material:
    """A source, a scratch folder to unpack and pack it in, and maybe a network to predict with."""

    source: Path
    scratch: Path
    model: Path | None = None

    @cached_property
    def folder(self) -> Path:
        """Return the source's train split as class folders."""
        if self.source.is_dir():
            return next(path for path in sorted(self.source.rglob("train")) if path.is_dir())
        with zipfile.ZipFile(self.source) as file:
            file.extractall(self.scratch / "unpacked")
        return next((self.scratch / "unpacked").rglob("train"))

    @cached_property
    def packed(self) -> Path:
        """Return the folder of the packed dataset, in colour as the notebook read it."""
        return self.pack(self.scratch / "dataset", "rgb")

    def pack(self, folder: Path, color_mode: ColorMode) -> Path:
        """Pack the source into `folder` as params.yaml says, but in `color_mode`."""
        settings = params.load().ingest.model_copy(update={"color_mode": color_mode})
        ingest(self.source, folder, settings, seed=SEED)
        return folder

    @cached_property
    def dataset(self) -> Dataset:
        """Return the packed dataset."""
        return Dataset.open(self.packed)

    @cached_property
    def rows(self) -> Split:
        """Return the clean split."""
        return split(self.dataset, params.Split(fraction=0.15, seed=SEED))

    def some(self, count: int) -> np.ndarray:
        """Return `count` train rows, drawn with a seed."""
        rows = np.random.default_rng(SEED).permutation(self.rows.train)
        return np.resize(rows, count)
