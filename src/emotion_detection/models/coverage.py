"""Sets of classes that hold the label of as many images as asked for."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_SCORES = 1000
"""Scores that are kept of a class, evenly spaced among all."""

DIGITS = 6


@dataclass(frozen=True)
class Coverage:
    """What the sets rest on: the validation images of each class.

    `scores` has for each class, in ascending order, the probabilities that its validation images
    have for their label.
    """

    scores: tuple[tuple[float, ...], ...]

    def sets(self, probabilities: np.ndarray, coverage: float) -> np.ndarray:
        """Return which classes the set of each image holds, (N, classes) bool.

        `probabilities` is (N, classes). Of the images of each class, the share `coverage` or more
        have their label in their set, if they come from where the validation images come from
        (Sadinle, Lei and Wasserman, "Least ambiguous set-valued classifiers with bounded error
        levels", Journal of the American Statistical Association 114, 2019). A class with too few
        validation images for that is in every set.
        """
        thresholds = [_threshold(own, coverage) for own in self.scores]
        return np.asarray(probabilities >= np.array(thresholds))

    def to_json(self) -> str:
        """Return it as a JSON text."""
        return json.dumps(self.scores)


def _threshold(scores: Sequence[float], coverage: float) -> float:
    # So many of the scores, and of one more image of the class, may be below.
    below = math.floor((len(scores) + 1) * (1 - coverage) + 1e-9)
    return scores[below - 1] if below else 0.0


def measured(labels: np.ndarray, probabilities: np.ndarray) -> Coverage:
    """Return it for the `probabilities` (N, classes) of validation images; `labels` (N,) int64."""
    of_label = probabilities[np.arange(len(labels)), labels]
    scores = []
    for label in range(probabilities.shape[1]):
        own = np.sort(of_label[labels == label])
        places = np.linspace(0, len(own) - 1, min(len(own), MOST_SCORES)).round().astype(np.int64)
        scores.append(tuple(own[places].astype(np.float64).round(DIGITS).tolist()))
    return Coverage(tuple(scores))


def from_json(text: str, classes: int) -> Coverage:
    """Return what `to_json` wrote of so many `classes`.

    Raises:
        ValueError: if it is something else.

    """
    scores = json.loads(text)
    if not (
        isinstance(scores, list)
        and len(scores) == classes
        and all(isinstance(own, list) and own == sorted(own) for own in scores)
        and all(isinstance(score, float) for own in scores for score in own)
    ):
        raise ValueError(f"it has no scores of {classes} classes in ascending order")
    return Coverage(tuple(tuple(own) for own in scores))
