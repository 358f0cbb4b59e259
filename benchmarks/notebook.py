"""The notebook's code, rewritten from its description: plain Keras in float32."""

from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
import psutil
import tensorflow as tf

from benchmarks.turns import Turn
from emotion_detection.settings.params import Network

# Keras 3 keeps it for old code, and only TensorFlow's alias still says where it is.
ImageDataGenerator = tf.keras.preprocessing.image.ImageDataGenerator

LR = 5e-4


def build(network: Network, image_shape: tuple[int, int, int], classes: int) -> Any:
    """Build and compile the network as the notebook did."""
    layers = keras.layers
    model = keras.Sequential([keras.Input(image_shape)])
    for filters, kernel in zip(network.filters, network.kernel_sizes, strict=True):
        for _ in range(network.convolutions):
            model.add(
                layers.Conv2D(
                    filters,
                    kernel,
                    padding="same",
                    activation="relu",
                    kernel_initializer="he_normal",
                )
            )
            model.add(layers.BatchNormalization())
        model.add(layers.MaxPooling2D())
        model.add(layers.Dropout(network.conv_dropout))
    model.add(layers.Flatten())
    for units in network.dense_units:
        model.add(layers.Dense(units, activation="relu", kernel_initializer="he_normal"))
        model.add(layers.BatchNormalization())
        model.add(layers.Dropout(network.dense_dropout))
    model.add(layers.Dense(classes, activation="softmax"))
    model.compile(keras.optimizers.Adam(LR), "categorical_crossentropy", metrics=["accuracy"])
    return model


def batches(folder: Path, batch_size: int, size: tuple[int, int], **transforms: Any) -> Any:
    """Read class folders as the notebook did."""
    generator = ImageDataGenerator(rescale=1 / 255, **transforms)
    return generator.flow_from_directory(
        str(folder), target_size=size, batch_size=batch_size, class_mode="categorical", seed=1
    )


class _Turns(keras.callbacks.Callback):
    def __init__(self, turn: Turn, images: int) -> None:
        super().__init__()
        self._turn, self._images = turn, images

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self._turn.begin()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self._turn.end(self._images)


def train(turn: Turn, network: Network, folder: Path, batch_size: int, steps: int) -> None:
    """Train for ever, a turn of `steps` steps after the other, on the images of `folder`."""
    data = batches(folder, batch_size, (48, 48))
    model = build(network, (48, 48, 3), data.num_classes)
    model.fit(
        data,
        steps_per_epoch=steps,
        epochs=1000,
        callbacks=[_Turns(turn, steps * batch_size)],
        verbose=0,
    )


def augment(
    turn: Turn, images: np.ndarray, transforms: dict[str, Any], batch_size: int, steps: int
) -> None:
    """Make batches of augmented images for ever, and do nothing with them."""
    generator = ImageDataGenerator(rescale=1 / 255, **transforms)
    stream = generator.flow(images, batch_size=batch_size, seed=1)
    while True:
        turn.begin()
        for _ in range(steps):
            next(stream)
        turn.end(steps * batch_size)


def search(
    networks: list[Network],
    x: np.ndarray,
    y: np.ndarray,
    validation: tuple[np.ndarray, np.ndarray],
    batch_size: int,
    epochs: int,
    folder: str,
) -> list[float]:
    """Try `networks` with plain KerasTuner; return the memory, in GiB, after each trial."""
    memory = []

    class Watched(keras_tuner.GridSearch):
        def on_trial_end(self, trial: Any) -> None:
            super().on_trial_end(trial)
            memory.append(psutil.Process().memory_info().rss / 2**30)

        def _configure_tensorboard_dir(self, *arguments: Any) -> None:
            # It imports TensorBoard, whether it is used or not, and the project has none.
            pass

    def hypermodel(hp: keras_tuner.HyperParameters) -> Any:
        chosen = networks[hp.Int("network", 0, len(networks) - 1)]
        return build(chosen, x.shape[1:], y.shape[1])

    tuner = Watched(
        hypermodel,
        objective="val_accuracy",
        max_trials=len(networks),
        directory=folder,
        project_name="notebook",
        overwrite=True,
    )
    generator = ImageDataGenerator(rescale=1 / 255)
    tuner.search(
        generator.flow(x, y, batch_size=batch_size, seed=1),
        validation_data=generator.flow(*validation, batch_size=batch_size),
        epochs=epochs,
        callbacks=[keras.callbacks.EarlyStopping("val_loss", patience=3)],
        verbose=0,
    )
    return memory
