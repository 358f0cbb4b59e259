"""The training of one network: loss, optimizer, schedule and epochs."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from emotion_detection.console import Progress, UserError, log
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.models.hardware import strategy
from emotion_detection.models.network import build, check
from emotion_detection.settings.params import Network, Train
from emotion_detection.training.callbacks import (
    History,
    LogEpoch,
    Row,
    SaveEpoch,
    StopAfter,
    best_epoch,
    figures,
    reacting_to_validation,
)
from emotion_detection.training.checkpoints import Checkpoints
from emotion_detection.training.loader import (
    evaluation_batches,
    resized_size,
    steps_per_epoch,
    training_batches,
)

WARMUP = 0.3
"""Share of all steps in which `one_cycle` raises the learning rate."""


def not_logged(row: Mapping[str, float], epoch: int) -> None:
    """Log nothing of an epoch."""


def network_to_train(
    network: Network, dataset: Dataset, settings: Train, *, precision: str, seed: int
) -> keras.Model:
    """Return the untrained network for the images of `dataset`, under the strategy of the devices.

    Raises:
        UserError: if its images are too small for it, those of progressive resizing too.

    """
    shape = dataset.images.shape[1:]
    resizes = settings.progressive_resizing > 0
    if resizes:
        check(network, (*resized_size(dataset.image_size), dataset.channels))
    with strategy().scope():
        return build(
            network,
            image_shape=shape,
            classes=len(dataset.classes),
            precision=precision,
            any_size=resizes,
            seed=seed,
        )


def fit(
    model: keras.Model,
    dataset: Dataset,
    rows: Split,
    settings: Train,
    *,
    seed: int,
    checkpoints: Checkpoints | None = None,
    log_epoch: LogEpoch = not_logged,
    log_resumed: bool = False,
    until: int | None = None,
    stop: Callable[[list[Row]], bool] | None = None,
    what: str = "train",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Train `model` on `rows.train` of `dataset` and return its history, a row per epoch.

    A row is a `callbacks.Row`; the best epoch is `best_epoch`. With `checkpoints`, an interrupted
    training goes on after its last finished epoch, and the model ends with the weights of the best
    epoch; without, with those of the last. It ends after the epoch
    `until` or where `stop` says so of the rows, and goes on from there when it is called again.
    `log_resumed` logs the epochs before the interruption too, `what` names the training in the log,
    and `progress` begins with the first epoch. What was built under a `strategy` of several devices
    trains on them. A batch larger than the training rows is made as small as these.

    Raises:
        UserError: if the batch is too small for the devices, a checkpoint is damaged, or the loss
            of the best epoch is not a number.

    """
    devices = model.distribute_strategy
    settings = _with_fitting_batches(rows, settings, devices.num_replicas_in_sync)
    steps = steps_per_epoch(len(rows.train), settings.batch_size)
    with devices.scope():
        _compile(model, settings, steps * settings.epochs)
    history: list[Row] = []
    ended, first_epoch, last_epoch = False, 0, until or settings.epochs
    if checkpoints is not None:
        with devices.scope():
            history, ended = checkpoints.resume(model)
        first_epoch = len(history)
        if history and not ended and first_epoch < last_epoch:
            log.info("%s: goes on after epoch %d", what, first_epoch)
        for row in history if log_resumed else []:
            log_epoch(figures(row), int(row["epoch"]))
    if not ended and first_epoch < last_epoch:
        reacting = reacting_to_validation(rows, settings)
        callbacks = [
            *reacting,
            keras.callbacks.TerminateOnNaN(),
            History(history, settings, steps, log_epoch, reacting, progress),
            *([keras.callbacks.SwapEMAWeights()] if settings.ema else []),
            *([SaveEpoch(checkpoints.save, history)] if checkpoints is not None else []),
            *([StopAfter(stop, history)] if stop is not None else []),
        ]
        _train(model, dataset, rows, settings, seed, range(first_epoch, last_epoch), callbacks)
    if checkpoints is not None:
        with devices.scope():
            checkpoints.load_best(model, history)
    return _checked(pd.DataFrame(history), settings.lr)


def _with_fitting_batches(rows: Split, settings: Train, replicas: int) -> Train:
    batch_size = min(settings.batch_size, len(rows.train))
    if batch_size < settings.batch_size:
        log.warning(
            "batch_size = %d is larger than the %d training images; %d are taken instead",
            *(settings.batch_size, batch_size, batch_size),
        )
    for images in (len(rows.train), len(rows.validation)):
        if images < steps_per_epoch(images, batch_size) * replicas:
            raise UserError(
                f"batch_size = {batch_size} leaves some of {replicas} devices without an image; "
                f"use at least {2 * replicas}"
            )
    return settings.model_copy(update={"batch_size": batch_size})


def _compile(model: keras.Model, settings: Train, steps: int) -> None:
    model.compile(
        _optimizer(settings, steps),
        keras.losses.CategoricalCrossentropy(label_smoothing=settings.label_smoothing),
        metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
        # XLA's convolutions on a CPU are slower than oneDNN's.
        jit_compile=False,
    )
    # A step that had its variables still to make would be traced twice.
    model.optimizer.build(model.trainable_variables)


def _optimizer(settings: Train, steps: int) -> keras.optimizers.Optimizer:
    """Return the optimizer for a training of `steps` batches.

    `one_cycle` raises lr from a 25th and lowers it to nothing along a cosine (arXiv 1708.07120).
    Weight decay is decoupled (arXiv 1711.05101) and leaves biases and normalizations alone. With
    `ema`, what is validated and kept is an exponential moving average of the weights.
    """
    lr: Any = settings.lr
    if settings.schedule == "one_cycle":
        warmup = max(1, round(WARMUP * steps))
        lr = keras.optimizers.schedules.CosineDecay(
            settings.lr / 25, max(1, steps - warmup), warmup_target=settings.lr, warmup_steps=warmup
        )
    options: dict[str, Any] = {"weight_decay": settings.weight_decay or None}
    if settings.ema:
        options |= {"use_ema": True, "ema_momentum": 1 - 1 / max(1.0, settings.ema * steps)}
    optimizer = (
        keras.optimizers.SGD(lr, momentum=0.9, nesterov=True, **options)
        if settings.optimizer == "sgd"
        else keras.optimizers.Adam(lr, **options)
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _train(
    model: keras.Model,
    dataset: Dataset,
    rows: Split,
    settings: Train,
    seed: int,
    epochs: range,
    callbacks: list[keras.callbacks.Callback],
) -> None:
    devices = model.distribute_strategy
    replicas = devices.num_replicas_in_sync
    batches = training_batches(
        dataset, rows.train, settings, seed=seed, first_epoch=epochs.start, replicas=replicas
    )
    validation = None
    if len(rows.validation):
        validation = evaluation_batches(
            dataset, rows.validation, settings.batch_size, replicas=replicas
        )
    model.fit(
        _spread(batches, devices),
        steps_per_epoch=steps_per_epoch(len(rows.train), settings.batch_size),
        epochs=epochs.stop,
        initial_epoch=epochs.start,
        validation_data=None if validation is None else _spread(validation, devices),
        validation_steps=(
            steps_per_epoch(len(rows.validation), settings.batch_size)
            if validation is not None and replicas > 1
            else None
        ),
        callbacks=callbacks,
        shuffle=False,
        verbose=0,
    )


def _spread(batches: tf.data.Dataset, devices: tf.distribute.Strategy) -> Any:
    """Return `batches` with each part on a device of its own, pass after pass."""
    if devices.num_replicas_in_sync == 1:
        return batches
    # Keras would take the number of parts for that of batches; it is told where a pass ends.
    return devices.distribute_datasets_from_function(lambda _: batches.repeat())


def _checked(history: pd.DataFrame, lr: float) -> pd.DataFrame:
    last, kept = history.iloc[-1], best_epoch(history)
    validated = kept.get("val_loss", 0.0)
    if not np.isfinite([kept["loss"], validated]).all():
        raise UserError(
            f"lr = {lr:g}: the loss of epoch {kept['epoch']:.0f} is {kept['loss']}, and "
            f"{validated} on validation; give a lower one"
        )
    if not np.isfinite(last["loss"]):
        log.warning(
            "lr = %g: the loss of epoch %d is %s, and the training ends there, its best epoch %d: "
            "a lower lr goes further",
            *(lr, last["epoch"], last["loss"], kept["epoch"]),
        )
    return history
