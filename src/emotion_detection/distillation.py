"""Learning from other networks besides the labels: knowledge distillation (arXiv 1503.02531).

The targets are computed once, from the images as they are, so that an epoch costs no more than
without. A network may learn from one like itself (born-again networks, arXiv 1805.04770): where
labels are noisy, another's probabilities say which of them to doubt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from emotion_detection import modelfile, tracking, training
from emotion_detection.console import UserError, log, progress
from emotion_detection.dataset import Dataset
from emotion_detection.files import whole
from emotion_detection.inputs import one_hot

BATCH_SIZE = 256


@dataclass(frozen=True)
class Teacher:
    """A network to learn from: what it is called, and the digest of its weights."""

    name: str
    model: keras.Model
    digest: str


def load(teachers: Sequence[str], dataset: Dataset) -> list[Teacher]:
    """Load the networks to learn `dataset` from: models in MLflow, by their URIs.

    Raises:
        UserError: if one cannot be loaded, is named by an alias, is for other classes or images, or
            was chosen on the test images.

    """
    return [_load(teacher, dataset) for teacher in teachers]


def _load(teacher: str, dataset: Dataset) -> Teacher:
    key = f"train.distillation.teachers: {teacher}"
    if "@" in teacher:
        raise UserError(
            f"{key}: an alias moves on, and DVC does not see it; name a version, as "
            f"models:/{tracking.REGISTERED_MODEL}/1"
        )
    try:
        model, classes = tracking.load_network(teacher)
    except UserError as error:
        raise UserError(f"train.distillation.teachers: {error}") from error
    origin = tracking.origin(teacher)
    if origin.leaking:
        raise UserError(
            f"{key}: was chosen on the test images, and who learns from it scores too well; take "
            "one that was trained with split.validation = holdout"
        )
    if origin.dataset_digest not in (None, dataset.digest):
        log.warning(
            "%s learnt from other data: if test images of %s are in it, the scores are too good",
            origin.name,
            dataset.source,
        )
    if model.input_shape[1:] != dataset.images.shape[1:]:
        raise UserError(
            f"{key}: takes images of {model.input_shape[1:]}, and those of {dataset.source} are "
            f"{dataset.images.shape[1:]}; take another, or set ingest.image_size and "
            "ingest.color_mode as it was trained with"
        )
    if classes != dataset.classes or model.output_shape[-1] != len(classes):
        raise UserError(
            f"{key}: tells {', '.join(classes)} apart, and {dataset.source} has "
            f"{', '.join(dataset.classes)}"
        )
    return Teacher(origin.name, model, training.digest(model))


def targets(
    teachers: Sequence[Teacher], dataset: Dataset, rows: np.ndarray, weight: float, kept: Path
) -> np.ndarray:
    """Give what is to be learnt of each image: (rows of the dataset, classes) float32.

    For `rows` (n,) int64 that is the mean of the teachers' probabilities, by `weight`, and of the
    label by the rest; elsewhere it is the label. The file `kept` spares a training that was cut off
    the time; the caller names it after all that the targets depend on.
    """
    labels = one_hot(dataset.labels, len(dataset.classes))
    if kept.exists():
        taught = np.load(kept)
    else:
        taught = np.zeros((len(rows), len(dataset.classes)), np.float32)
        asked = [modelfile.compiled(teacher.model) for teacher in teachers]
        starts = range(0, len(rows), BATCH_SIZE)
        for start in progress(starts, description="teachers", unit="batches"):
            part = slice(start, start + BATCH_SIZE)
            images = dataset.images[rows[part]]
            taught[part] = np.mean([ask(images) for ask in asked], axis=0)
        with whole(kept) as path:
            np.save(path, taught)
    agreeing = float((taught.argmax(axis=1) == dataset.labels[rows]).mean())
    log.info("the teachers say what the label says of %.1f %% of the train images", 100 * agreeing)
    labels[rows] = (1 - weight) * labels[rows] + weight * taught
    return labels
