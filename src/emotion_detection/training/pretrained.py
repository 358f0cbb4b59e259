"""A network in MLflow that a training starts from."""

import keras

from emotion_detection.console import UserError, log
from emotion_detection.data.dataset import Dataset
from emotion_detection.models.saving import single
from emotion_detection.tracking.lineage import Lineage, from_json, joined
from emotion_detection.tracking.models import load_with_notes, origin


def start(model: keras.Model, uri: str, *, dataset: Dataset) -> Lineage:
    """Set `model` to the weights of the model in MLflow at `uri`, and return what that learnt from.

    Raises:
        UserError: if it cannot be loaded, is for other classes or images, is another network or an
            ensemble, or was selected on the test images.

    """
    key = f"train.init_from: {uri}"
    try:
        loaded, classes, notes = load_with_notes(uri)
        found = single(loaded)
    except UserError as error:
        raise UserError(f"train.init_from: {error}") from error
    except ValueError as error:
        raise UserError(f"{key}: {error}; take a model of one") from error
    _check_origin(key, uri, dataset)
    _check_task(key, found, classes, dataset)
    if [each.shape for each in found.weights] != [each.shape for each in model.weights]:
        raise UserError(
            f"{key}: is another network than the one to train; set the params of network as it was "
            "trained with, and tune.trials=0"
        )
    model.set_weights(found.get_weights())
    return joined([from_json(notes.get("lineage"), uri)], ancestors=[uri])


def _check_origin(key: str, uri: str, dataset: Dataset) -> None:
    """Raise `UserError` where the model was chosen on test images; say if its data were others."""
    of = origin(uri)
    if of.selected_on_test:
        raise UserError(
            f"{key}: was selected on the test images, and a model that starts from it scores too "
            "well; take one that was trained with split.validation = holdout"
        )
    if of.dataset_digest not in (None, dataset.digest):
        log.info(
            "%s learnt from other data, %s: it may know little of %s",
            *(uri, of.dataset, dataset.source),
        )


def _check_task(key: str, model: keras.Model, classes: tuple[str, ...], dataset: Dataset) -> None:
    if model.input_shape[1:] != dataset.images.shape[1:]:
        raise UserError(
            f"{key}: takes images of {model.input_shape[1:]}, and those of {dataset.source} are "
            f"{dataset.images.shape[1:]}; take another, or set ingest.image_size and "
            "ingest.color_mode as it was trained with"
        )
    if classes != dataset.classes or model.output_shape[-1] != len(classes):
        raise UserError(
            f"{key}: has the classes {', '.join(classes)}, and {dataset.source} has "
            f"{', '.join(dataset.classes)}"
        )
