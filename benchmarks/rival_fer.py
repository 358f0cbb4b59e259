"""Classify images with the networks that the package `fer` ships.

For benchmarks/rivals.py, which runs this in an environment that has `fer`.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from fer.fer import FER

BATCH_SIZE = 256


class Whole(FER):
    """FER without its face detector: an image is a face, and fills its rectangle."""

    def __init__(self, *, use_tflite: bool) -> None:
        """Load the full network, or the quantised one, which is FER's default."""
        super().__init__(use_tflite=use_tflite, offsets=(0, 0))
        self.faces: list[np.ndarray] = []

    def _classify_emotions(self, gray_faces: np.ndarray) -> np.ndarray:
        # `detect_emotions` rounds what it is given here to two digits.
        self.faces.append(gray_faces)
        return np.zeros((len(gray_faces), len(self._get_labels())))

    def classify(self, files: list[Path]) -> np.ndarray:
        """Return the probabilities (N, 7) float32 of the images in `files`."""
        for file in files:
            image = cv2.imread(str(file))
            assert image is not None
            self.detect_emotions(image, [(0, 0, image.shape[1], image.shape[0])])
        faces = np.concatenate(self.faces)
        parts = [
            np.asarray(super(Whole, self)._classify_emotions(faces[first : first + BATCH_SIZE]))
            for first in range(0, len(faces), BATCH_SIZE)
        ]
        return np.concatenate(parts)


def main() -> None:
    """Classify FOLDER/test."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path, help="a .json to write")
    arguments = parser.parse_args()
    files = sorted((arguments.folder / "test").iterdir())
    labels = FER._get_labels()
    contenders = [
        {
            "name": name,
            "trained": "shipped",
            "classes": [labels[label] for label in range(len(labels))],
            "probabilities": Whole(use_tflite=quantised).classify(files).tolist(),
        }
        for name, quantised in (("fer, quantised", True), ("fer, in float32", False))
    ]
    for contender in contenders:
        contender["parameters"] = FER._model_cache.count_params()
    versions = {name: version(name) for name in ("fer", "tensorflow")}
    arguments.output.write_text(json.dumps({"versions": versions, "contenders": contenders}))


if __name__ == "__main__":
    main()
