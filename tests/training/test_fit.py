"""Training: what is learnt, what is kept, and that an interruption changes nothing."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.models.layers import plain
from emotion_detection.models.saving import predict
from emotion_detection.settings.params import Network, Train
from emotion_detection.training.checkpoints import Checkpoints
from tests.support.trainer import (
    AUGMENT,
    SETTINGS,
    Logged,
    ProcessEndedError,
    Trainer,
    interrupting,
    noting,
)

Make = Callable[..., Network]


def changed(**settings: Any) -> Train:
    return SETTINGS.model_copy(update=settings)


@pytest.fixture(scope="module")
def trained(toy: Dataset, rows: Split, network: Make) -> tuple[Trainer, pd.DataFrame, Logged]:
    """Return a network trained by SETTINGS, its history and what was logged."""
    trainer = Trainer(toy, rows, network((8,), convolutions=1))
    logged: Logged = []
    return trainer, trainer(log_epoch=noting(logged)), logged


def test_what_can_be_learnt_is_learnt_and_written_down(
    trained: tuple[Trainer, pd.DataFrame, Logged],
) -> None:
    _, history, logged = trained
    figures = ["loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds"]
    assert history.columns.tolist() == ["epoch", *figures]
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["loss"].is_monotonic_decreasing
    assert history["accuracy"].iloc[-1] > 0.9
    assert history["val_accuracy"].max() > 0.9
    assert history["lr"].tolist() == pytest.approx([1e-2] * 3)

    assert [epoch for epoch, _ in logged] == [1, 2, 3]
    for (_, values), row in zip(logged, history.to_dict("records"), strict=True):
        assert values == {name: row[name] for name in figures}
        assert all(type(value) is float for value in values.values())


def test_without_checkpoints_the_weights_of_the_last_epoch_are_kept(
    trained: tuple[Trainer, pd.DataFrame, Logged],
) -> None:
    trainer, history, _ = trained
    loss, _ = trainer.validate()
    assert loss == pytest.approx(history["val_loss"].iloc[-1], rel=1e-4)


INTERRUPTED: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    # Dropout's random state, Adam's moments and both counters have to survive.
    "adam, plateau": (
        {},
        {"lr": 5e-2, "epochs": 9, "early_stopping_patience": 4, "reduce_lr_patience": 1},
        (4,),
    ),
    # So have the place in the cycle and the averaged weights.
    "adam, one_cycle, ema": (
        {},
        {
            **{"epochs": 5, "schedule": "one_cycle", "weight_decay": 0.01, "ema": 0.2},
            **{"label_smoothing": 0.1},
        },
        (2,),
    ),
    "sgd, ema, class weights": (
        {},
        {
            **{"epochs": 4, "optimizer": "sgd", "schedule": "one_cycle", "ema": 0.2},
            **{"class_weights": 1.0},
        },
        (2,),
    ),
    # The interruption is before, and the resumed training goes on beyond the change of size.
    "progressive resizing": (
        {"arch": "plain", "dense_units": ()},
        {"epochs": 4, "schedule": "one_cycle", "progressive_resizing": 2},
        (1,),
    ),
}


@pytest.mark.parametrize("case", INTERRUPTED)
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    toy: Dataset, rows: Split, network: Make, tmp_path: Path, case: str
) -> None:
    options, settings, afters = INTERRUPTED[case]
    chosen = changed(**settings, augment=AUGMENT, no_aug_epochs=1)
    trainer = Trainer(toy, rows, network((8,), convolutions=1, dropout=0.3, **options))
    uninterrupted = trainer(chosen, checkpoints=tmp_path / "uninterrupted")
    weights = trainer.model.get_weights()

    for after in afters:
        state = tmp_path / f"interrupted after {after}"
        assert not Checkpoints(state).exist()
        with pytest.raises(ProcessEndedError):
            trainer(chosen, checkpoints=state, log_epoch=interrupting(after + 1))
        assert Checkpoints(state).exist()
        seen: Logged = []
        history = trainer(chosen, checkpoints=state, log_epoch=noting(seen))
        assert [epoch for epoch, _ in seen] == list(range(after + 1, len(uninterrupted) + 1))
        pd.testing.assert_frame_equal(
            history.drop(columns="seconds"), uninterrupted.drop(columns="seconds"), rtol=1e-4
        )
        for mine, its in zip(trainer.model.get_weights(), weights, strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-3, atol=1e-4)


def test_a_completed_training_is_not_done_again(trainer: Trainer, tmp_path: Path) -> None:
    history = trainer(checkpoints=tmp_path)
    weights = trainer.model.get_weights()

    def never(figures: Mapping[str, float], epoch: int) -> None:
        pytest.fail(f"trained epoch {epoch} again")

    again = trainer(checkpoints=tmp_path, log_epoch=never)
    pd.testing.assert_frame_equal(again, history)
    for mine, its in zip(trainer.model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(mine, its)
    # A new MLflow run gets the epochs of an earlier process too.
    seen: Logged = []
    trainer(checkpoints=tmp_path, log_resumed=True, log_epoch=noting(seen))
    assert [{"epoch": epoch, **figures} for epoch, figures in seen] == history.to_dict("records")


def test_one_cycle_raises_the_rate_and_lowers_it_to_nothing(trainer: Trainer) -> None:
    settings = changed(epochs=10, schedule="one_cycle", reduce_lr_patience=1)
    rates = trainer(settings)["lr"].to_numpy()
    # A row has the rate that its epoch began with.
    assert rates[0] == pytest.approx(1e-2 / 25)
    assert rates.argmax() == 3
    assert rates[3] == pytest.approx(1e-2)
    assert (np.diff(rates[3:]) < 0).all()
    assert rates[-1] < 1e-3


def test_a_training_in_parts_is_one_training_on_one_cycle(trainer: Trainer, tmp_path: Path) -> None:
    settings = changed(epochs=4, schedule="one_cycle")
    at_once = trainer(settings, checkpoints=tmp_path / "at_once")
    first = trainer(settings, checkpoints=tmp_path / "parts", until=1)
    assert first["epoch"].tolist() == [1]
    whole = trainer(settings, checkpoints=tmp_path / "parts")
    pd.testing.assert_frame_equal(
        whole.drop(columns="seconds"), at_once.drop(columns="seconds"), rtol=1e-4
    )


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weight_decay_shrinks_kernels_alone(trainer: Trainer, optimizer: str) -> None:
    def weights() -> dict[str, np.ndarray]:
        return {weight.path: weight.numpy() for weight in trainer.model.trainable_weights}

    settings = changed(lr=1e-7, epochs=1, optimizer=optimizer)
    trainer(settings)
    without = weights()
    trainer(settings.model_copy(update={"weight_decay": 1e5}))
    for path, decayed in weights().items():
        kept = 0.99**6 if path.endswith("kernel") else 1.0
        np.testing.assert_allclose(decayed, kept * without[path], rtol=1e-3, atol=1e-5)


def test_what_is_validated_and_kept_are_the_averaged_weights(
    trainer: Trainer, tmp_path: Path
) -> None:
    trainer(changed(epochs=1), checkpoints=tmp_path / "last")
    last = trainer.model.get_weights()
    history = trainer(changed(epochs=1, ema=0.8), checkpoints=tmp_path / "averaged")
    averaged = trainer.model.get_weights()
    assert any(not np.allclose(mine, its) for mine, its in zip(averaged, last, strict=True))
    loss, _ = trainer.validate()
    assert loss == pytest.approx(history["val_loss"][0], rel=1e-4)


def test_a_confident_mistake_is_learnt_from_by_its_logits(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step over all rows at once, from weights that are certain and mistaken."""
    make = trainer.fresh

    def fresh(settings: Train = SETTINGS) -> keras.Model:
        model = make(settings)
        kernel = model.get_layer("probabilities").kernel
        kernel.assign(100 * kernel)
        return model

    model, labels = fresh(), trainer.toy.labels[trainer.rows.train]
    last = model.get_layer("probabilities")
    before = keras.Model(model.input, last.input)
    with tf.GradientTape() as tape:
        features = before(trainer.toy.images[trainer.rows.train], training=True)
        logits = features @ last.kernel.value + last.bias.value
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        loss = tf.reduce_mean(losses)
    # Of a probability below 1e-7 there is no gradient.
    assert np.mean(losses > -np.log(1e-7)) > 0.1
    first = model.get_layer("block1a_conv").kernel
    expected = tape.gradient(loss, [first.value, last.kernel.value])

    monkeypatch.setattr(trainer, "fresh", fresh)
    history = trainer(changed(optimizer="sgd", lr=1e-3, epochs=1, batch_size=72))
    assert history["loss"][0] == pytest.approx(float(loss), rel=1e-4)
    for name, old, gradient in zip(
        ("block1a_conv", "probabilities"), (first, last.kernel), expected, strict=True
    ):
        step = trainer.model.get_layer(name).kernel - old
        # Nesterov's first step is 1.9 times that of plain descent.
        np.testing.assert_allclose(step, -1.9e-3 * gradient, rtol=1e-2, atol=1e-5)


def test_a_network_that_began_on_smaller_images_ends_on_full_ones(
    toy: Dataset, rows: Split, network: Make
) -> None:
    trainer = Trainer(toy, rows, network((8, 8), (), arch="plain", convolutions=1))
    history = trainer(changed(epochs=12, progressive_resizing=6, ema=0.05))
    assert history["val_accuracy"].iloc[-1] > 0.9
    saved = plain(trainer.model, (16, 16, 3))
    assert saved.input_shape == (None, 16, 16, 3)
    np.testing.assert_allclose(
        predict(saved, toy.images, rows.validation),
        trainer.model(toy.images[rows.validation]),
        atol=1e-5,
    )


def test_a_network_must_fit_the_smaller_images_too(
    toy: Dataset, rows: Split, network: Make
) -> None:
    deep = Trainer(toy, rows, network((2,) * 5, (), arch="plain"))
    deep.fresh()
    with pytest.raises(UserError, match="5 blocks is too deep for images of 11x11"):
        deep.fresh(changed(progressive_resizing=1))
    flat = Trainer(toy, rows, network())
    with pytest.raises(UserError, match=r"progressive_resizing.*arch notebook.*one size"):
        flat.fresh(changed(progressive_resizing=1))


def test_smoothed_labels_keep_the_loss_above_what_they_leave(trainer: Trainer) -> None:
    history = trainer(changed(label_smoothing=0.3))
    # The least loss that targets of 0.8, 0.1 and 0.1 leave.
    assert history["loss"].min() > -(0.8 * math.log(0.8) + 0.2 * math.log(0.1))


def break_down(trainer: Trainer) -> Callable[[Mapping[str, float], int], None]:
    def log_epoch(figures: Mapping[str, float], epoch: int) -> None:
        trainer.model.optimizer.learning_rate.assign(float("nan"))

    return log_epoch


def test_a_training_whose_loss_is_not_a_number_ends_with_its_best_epoch(
    trainer: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    history = trainer(changed(epochs=5), log_epoch=break_down(trainer), checkpoints=tmp_path)
    assert len(history) == 2
    assert math.isnan(history["loss"].iloc[-1])
    assert (
        "the loss of epoch 2 is nan, and the training ends there, its best epoch 1" in caplog.text
    )
    assert all(np.isfinite(weights).all() for weights in trainer.model.get_weights())


def test_a_training_without_one_good_epoch_is_an_error(trainer: Trainer) -> None:
    with pytest.raises(UserError, match=r"lr = 1e\+30: the loss of epoch 1 is .*give a lower one"):
        trainer(changed(lr=1e30, optimizer="sgd"))


def test_balanced_weights_let_every_class_count_the_same(trainer: Trainer) -> None:
    """One step over all rows at once: its loss is that of the initial weights."""
    labels = trainer.toy.labels
    few = np.concatenate(
        [
            trainer.rows.train[labels[trainer.rows.train] == label][:images]
            for label, images in enumerate((20, 6, 4))
        ]
    )
    probabilities = trainer.fresh()(trainer.toy.images[few], training=True).numpy()
    losses = -np.log(probabilities[np.arange(30), labels[few]])
    of_class = [losses[labels[few] == label].mean() for label in range(3)]

    for power, expected in (
        (0.0, losses.mean()),
        (0.5, np.average(of_class, weights=np.sqrt([20, 6, 4]))),
        (1.0, np.mean(of_class)),
    ):
        settings = changed(lr=1e-3, batch_size=30, epochs=1, class_weights=power)
        history = trainer(settings, train=few)
        assert history["loss"][0] == pytest.approx(expected, rel=1e-4)


def test_a_batch_larger_than_the_set_is_made_smaller(
    trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(trainer(changed(batch_size=73, epochs=1))) == 1
    assert (
        "batch_size = 73 is larger than the 72 training images; 72 are taken instead" in caplog.text
    )


def test_the_seed_fixes_a_training(toy: Dataset, rows: Split, network: Make) -> None:
    trainer = Trainer(toy, rows, network((8,), convolutions=1, dropout=0.3))
    first, second, other = (
        trainer(changed(epochs=1), seed=seed)["loss"].tolist() for seed in (0, 0, 1)
    )
    assert first == pytest.approx(second, rel=1e-4)
    assert first != pytest.approx(other, rel=1e-4)


def test_a_step_is_traced_once(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    step, traced = keras.Model.train_step, []

    def noted(model: keras.Model, data: object) -> object:
        traced.append(model)
        return step(model, data)

    monkeypatch.setattr(keras.Model, "train_step", noted)
    trainer(changed(batch_size=20, ema=0.1, class_weights=0.5))
    assert traced == [trainer.model]
