"""Learning from other networks besides the labels: knowledge distillation (arXiv 1503.02531).

The targets are computed once, from the images as they are, so that an epoch costs no more than
without. A network may learn from one like itself (born-again networks, arXiv 1805.04770): where
labels are noisy, another's probabilities say which of them to doubt.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from emotion_detection import modelfile, tracking
from emotion_detection.console import UserError, log, progress
from emotion_detection.dataset import Dataset
from emotion_detection.files import whole
from emotion_detection.inputs import one_hot

BATCH_SIZE = 256


def targets(
    teachers: Sequence[str],
    weight: float,
    *,
    dataset: Dataset,
    rows: np.ndarray,
    held_out: Mapping[str, object],
    kept: Path,
) -> np.ndarray:
    """Give what is to be learnt of each image: (rows of the dataset, classes) float32.

    For `rows` (n,) int64 that is the mean of the probabilities of `teachers`, models in MLflow by
    their URIs, by `weight`, and of the label by the rest; elsewhere it is the label. `held_out` are
    the params that say which train images are for validation: who was trained with others has seen
    them, which is warned of. The file `kept` spares a training that was cut off the time; the
    caller names it after all that the targets depend on.

    Raises:
        UserError: if a teacher cannot be loaded, is for other classes or images, or was chosen on
            the test images.

    """
    if kept.exists():
        taught = np.load(kept)
    else:
        networks = [_load(teacher, dataset, held_out) for teacher in teachers]
        taught = _ask(networks, dataset, rows)
        with whole(kept) as path:
            np.save(path, taught)
    agreeing = float((taught.argmax(axis=1) == dataset.labels[rows]).mean())
    log.info("the teachers say what the label says of %.1f %% of the train images", 100 * agreeing)
    learnt = one_hot(dataset.labels, len(dataset.classes))
    learnt[rows] = (1 - weight) * learnt[rows] + weight * taught
    return learnt


def _load(teacher: str, dataset: Dataset, held_out: Mapping[str, object]) -> keras.Model:
    key = f"train.distillation.teachers: {teacher}"
    try:
        model, classes = tracking.load_network(teacher)
    except UserError as error:
        raise UserError(f"train.distillation.teachers: {error}") from error
    origin = tracking.origin(teacher)
    if origin.dataset_digest is None:
        raise UserError(
            f"{key}: its run is not in MLflow, so that nobody knows if it has seen the test "
            "images; take another"
        )
    if origin.leaking:
        raise UserError(
            f"{key}: was chosen on the test images, and who learns from it scores too well; take "
            "one that was trained with split.validation = holdout"
        )
    if origin.dataset_digest != dataset.digest:
        log.warning(
            "%s learnt from other data, %s: it may know little of %s, and if it has seen test "
            "images of it, the scores are too good",
            teacher,
            origin.dataset,
            dataset.source,
        )
    elif any(origin.params.get(name) != str(value) for name, value in held_out.items()):
        log.warning(
            "%s was trained with other %s: it has seen images that are for validation now, and "
            "val_accuracy is too good",
            teacher,
            ", ".join(held_out),
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
    return model


def _ask(networks: Sequence[keras.Model], dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Give the mean of what the networks say of `rows`: (n, classes) float32."""
    said = np.zeros((len(rows), len(dataset.classes)), np.float32)
    asked = [modelfile.compiled(network) for network in networks]
    starts = range(0, len(rows), BATCH_SIZE)
    for start in progress(starts, description="teachers", unit="batches"):
        part = slice(start, start + BATCH_SIZE)
        images = dataset.images[rows[part]]
        said[part] = np.mean([ask(images) for ask in asked], axis=0)
    return said
