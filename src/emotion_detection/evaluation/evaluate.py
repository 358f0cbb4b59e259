"""The scores of a model on the test images of a dataset, as the stage evaluate has them."""

from typing import TYPE_CHECKING

import numpy as np

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.settings.params import Params

if TYPE_CHECKING:
    from emotion_detection.evaluation.metrics import Evaluation
    from emotion_detection.inference.model import Model


def evaluate(model: "Model", dataset: Dataset, *, seed: int | None = None) -> "Evaluation":
    """Return the scores of `model` on the test images of `dataset`.

    `accuracy`, `macro_f1` and the scores of each class in `per_class` are estimates with the ends
    of their 95 % intervals; `per_class_table()` and `predictions(files)` are data frames. `seed`
    draws the resamples of the intervals, by default as that of `params.yaml` does.

    Raises:
        UserError: if the model has other classes, or takes images of another size or colour mode.

    """
    if model.classes != dataset.classes:
        raise UserError(
            f"{model.name}: its classes are {', '.join(model.classes)}, and those of "
            f"{dataset.source} are {', '.join(dataset.classes)}"
        )
    mine, its = (
        f"{size[1]}x{size[0]} pixels, {color_mode}"
        for size, color_mode in (
            (model.image_size, model.color_mode),
            (dataset.image_size, dataset.color_mode),
        )
    )
    if mine != its:
        raise UserError(
            f"{model.name}: takes images of {mine}, and those of {dataset.source} are {its}; pack "
            "them anew with ingest.image_size and ingest.color_mode of params.yaml"
        )
    # It imports TensorFlow, which takes seconds.
    from emotion_detection.evaluation import metrics

    rows = np.flatnonzero(dataset.is_test)
    return metrics.evaluate_dataset(
        dataset,
        rows,
        model.probabilities(dataset.images, rows),
        seed=Params.model_fields["seed"].default if seed is None else seed,
    )
