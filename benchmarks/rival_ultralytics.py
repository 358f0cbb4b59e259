"""Train Ultralytics' smallest classifier from scratch, and classify images with it.

For benchmarks/rivals.py, which runs this in an environment that has `ultralytics`.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO

NETWORK = "yolo26n-cls.yaml"
STRIDE = 32
BATCH_SIZE = 128
"""Trains more images a second on two cores than its default of 16, or 64."""


def main() -> None:
    """Train on FOLDER/learn/train, choose the epoch on FOLDER/learn/val, classify FOLDER/test."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path, help="a .json to write")
    parser.add_argument("--side", type=int, required=True, help="of an image, in pixels")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    # Its sides are multiples of its largest stride.
    side = -(-arguments.side // STRIDE) * STRIDE
    epochs = 0

    def count(trainer: Any) -> None:
        nonlocal epochs
        epochs = trainer.epoch + 1

    model = YOLO(NETWORK)
    model.add_callback("on_train_end", count)
    began = time.perf_counter()
    model.train(
        data=str(arguments.folder / "learn"),
        time=arguments.minutes / 60,
        imgsz=side,
        batch=BATCH_SIZE,
        pretrained=False,
        cache="ram",
        plots=False,
        seed=arguments.seed,
        project=str(arguments.output.parent),
        name="ultralytics",
    )
    seconds = time.perf_counter() - began
    best = YOLO(model.trainer.best)
    files = sorted((arguments.folder / "test").iterdir())
    found = best.predict([str(file) for file in files], imgsz=side, stream=True, verbose=False)
    probabilities = [result.probs.data.tolist() for result in found]
    contender = {
        "name": f"Ultralytics, {Path(NETWORK).stem}, {side}x{side}",
        "parameters": sum(weights.numel() for weights in best.model.parameters()),
        "trained": f"{seconds / 60:.1f} min, {epochs} epochs",
        "classes": [best.names[label] for label in range(len(best.names))],
        "probabilities": probabilities,
    }
    versions = {"ultralytics": version("ultralytics"), "torch": torch.__version__}
    arguments.output.write_text(json.dumps({"versions": versions, "contenders": [contender]}))


if __name__ == "__main__":
    main()
