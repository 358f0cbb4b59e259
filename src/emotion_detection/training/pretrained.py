"""Networks in MLflow that a training starts from, adds members to, or learns from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import keras
import tensorflow as tf

from emotion_detection import tracking
from emotion_detection.console import UserError, log
from emotion_detection.data.dataset import Dataset
from emotion_detection.models.network import (
    Architecture,
    as_trained,
    build,
    single_networks,
    without_views,
)
from emotion_detection.training.fit import Teach


def start(model: keras.Model, uri: str, *, dataset: Dataset, held: Mapping[str, object]) -> None:
    """Set `model` to the weights of the model in MLflow at `uri`.

    `held` are the params that say which train images are for validation: who was trained with
    others has seen them, which is warned of.

    Raises:
        UserError: if it cannot be loaded, is for other classes or images, is another network, or
            was chosen on the test images.

    """
    key = f"train.init_from: {uri}"
    found = without_views(_load(key, uri, dataset, held))
    _check_alike(key, found, model)
    model.set_weights(found.get_weights())


def members(
    uris: Sequence[str],
    architecture: Architecture,
    *,
    dataset: Dataset,
    held: Mapping[str, object],
) -> list[keras.Model]:
    """Return the members that the models in MLflow at `uris` have.

    Each takes images (N, H, W, C) uint8 and gives probabilities (N, classes) float32. `held`
    is as for `start`.

    Raises:
        UserError: if one cannot be loaded, is for other classes or images, is another network
            than a member of `architecture`, or was chosen on the test images; or if they leave
            none of its members to train.

    """
    shape, classes = dataset.images.shape[1:], len(dataset.classes)
    one = build(replace(architecture, members=1), image_shape=shape, classes=classes)
    found = []
    for uri in uris:
        key = f"train.members_from: {uri}"
        for member in single_networks(_load(key, uri, dataset, held)):
            _check_alike(key, member, one)
            found.append(member)
    if len(found) >= architecture.members:
        raise UserError(
            f"network.members = {architecture.members}: {' and '.join(uris)} of train.members_from "
            f"have {len(found)}, which leaves none to train; set it to at least {len(found) + 1}"
        )
    return found


def teacher(
    uris: Sequence[str],
    weight: float,
    *,
    dataset: Dataset,
    held: Mapping[str, object],
    precision: str,
) -> Teach:
    """Return what the models in MLflow at `uris` make of a batch: knowledge distillation.

    What is learnt of an image is the mean of their probabilities by `weight`, and its label by the
    rest (arXiv 1503.02531). They see each image just as it is trained on, changed and mixed: that
    is what makes a student come near to several teachers' mean (arXiv 2106.05237). `held` is
    as for `start`, `precision` a Keras dtype policy.

    Raises:
        UserError: if one cannot be loaded, is for other classes or images, or was chosen on the
            test images.

    """
    networks = [
        as_trained(_load(f"train.distillation.teachers: {uri}", uri, dataset, held), precision)
        for uri in uris
    ]

    def teach(images: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        said = tf.add_n([network(images, training=False) for network in networks])
        return (1 - weight) * targets + weight * said / len(networks)

    return teach


def _check_alike(key: str, found: keras.Model, wanted: keras.Model) -> None:
    if [each.shape for each in found.weights] != [each.shape for each in wanted.weights]:
        raise UserError(
            f"{key}: is another network than the one to train; set the params of network as it was "
            "trained with, and tune.trials=0"
        )


def _load(key: str, uri: str, dataset: Dataset, held: Mapping[str, object]) -> keras.Model:
    """Load a network that has not seen what this training is scored by; `key` names it."""
    try:
        model, classes = tracking.load_network(uri)
    except UserError as error:
        raise UserError(f"{key.partition(':')[0]}: {error}") from error
    origin = tracking.origin(uri)
    if origin.dataset_digest is None:
        raise UserError(
            f"{key}: its run is not in MLflow, so that nobody knows if it has seen the test "
            "images; take another"
        )
    if origin.selected_on_test:
        raise UserError(
            f"{key}: was chosen on the test images, and who learns from it scores too well; take "
            "one that was trained with split.validation = holdout"
        )
    if origin.dataset_digest != dataset.digest:
        log.warning(
            "%s learnt from other data, %s: it may know little of %s, and if it has seen test "
            "images of it, the scores are too good",
            uri,
            origin.dataset,
            dataset.source,
        )
    elif any(origin.params.get(name) != str(value) for name, value in held.items()):
        log.warning(
            "%s was trained with other %s: it has seen images that are for validation now, and "
            "val_accuracy is too good",
            uri,
            ", ".join(held),
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
