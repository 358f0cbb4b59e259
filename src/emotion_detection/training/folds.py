"""What networks that were trained on folds say of the images that they did not learn from."""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from emotion_detection.console import Progress
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.models.saving import load, predict


def out_of_fold(networks: Sequence[Path], parts: Sequence[Split], dataset: Dataset) -> pd.DataFrame:
    """Return the probabilities of each image by networks that did not learn from it, a row each.

    `networks` are .keras files, each trained on the split of `parts` in its place. Columns: row (of
    `dataset`), file, split (train or test), fold (from 1; none for a test image, whose
    probabilities are the mean over all networks), actual (the class's name), and
    probability_<class> for each, to 6 digits.
    """
    probabilities = np.zeros((len(dataset.labels), len(dataset.classes)))
    fold = np.zeros(len(dataset.labels), np.int64)
    test = parts[0].test
    total = sum(len(part.validation) + len(test) for part in parts)
    with Progress("train: predicting out of fold", total=total, unit="images") as progress:
        for number, (path, part) in enumerate(zip(networks, parts, strict=True), start=1):
            # Keras keeps every graph that it built until it is told not to.
            keras.backend.clear_session()
            model, own = load(path)[0], part.validation
            fold[own] = number
            probabilities[own] = predict(model, dataset.images, own, progress.advance)
            if len(test):
                answers = predict(model, dataset.images, test, progress.advance)
                probabilities[test] += answers / len(parts)
    rows = np.flatnonzero((fold > 0) | dataset.is_test)
    known = pd.DataFrame(
        {
            "row": rows,
            "file": [dataset.files[row] for row in rows],
            "split": np.where(dataset.is_test[rows], "test", "train"),
            "fold": pd.Series(fold[rows]).astype("Int64").replace(0, pd.NA),
            "actual": np.array(dataset.classes)[dataset.labels[rows]],
        }
    )
    names = [f"probability_{name}" for name in dataset.classes]
    named = pd.DataFrame(probabilities[rows].round(6), columns=names)
    return pd.concat([known, named], axis=1)
