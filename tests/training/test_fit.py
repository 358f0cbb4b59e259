"""Training: what is learnt, what is kept, and when it ends."""

import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset, Split
from emotion_detection.models.network import Architecture, build, export, single_networks
from emotion_detection.params import Augment, LowResolution
from emotion_detection.training.fit import (
    Checkpoints,
    Recipe,
    best_epoch,
    duration,
    fit,
    predict,
)

Make = Callable[..., Architecture]
SHAKEN = Augment(
    rotation=10,
    width_shift=0.1,
    height_shift=0.1,
    shear=0,
    zoom=0.1,
    horizontal_flip=True,
    fill_mode="nearest",
    random_erasing=0,
    mixup=0,
    cutmix=0,
)
RECIPE = Recipe(lr=1e-2, batch_size=12, epochs=3, early_stopping_patience=None)


def silent(figures: Mapping[str, float], epoch: int) -> None:
    pass


class Trainer:
    """Trains fresh copies of one small network on the toy set."""

    def __init__(
        self, toy: Dataset, rows: Split, architecture: Architecture, seed: int = 0
    ) -> None:
        self.toy, self.rows = toy, rows
        self._architecture, self._seed = architecture, seed
        self.model: keras.Model

    def fresh(self) -> keras.Model:
        return build(self._architecture, image_shape=(16, 16, 3), classes=3, seed=self._seed)

    def __call__(
        self,
        recipe: Recipe,
        *,
        train: np.ndarray | None = None,
        seed: int = 0,
        log_epoch: fit.LogEpoch = silent,
        checkpoints: Path | None = None,
        log_kept: bool = False,
        first_epoch: int = 0,
    ) -> pd.DataFrame:
        self.model = self.fresh()
        return fit(
            self.model,
            self.toy,
            train=self.rows.train if train is None else train,
            validation=self.rows.validation,
            recipe=recipe,
            seed=seed,
            log_epoch=log_epoch,
            checkpoints=Checkpoints(checkpoints) if checkpoints else None,
            log_kept=log_kept,
            first_epoch=first_epoch,
            verbose=False,
        )

    def climb_after(self, epoch: int) -> fit.LogEpoch:
        """Turn the training round after `epoch`, so that it unlearns."""

        def turn(figures: Mapping[str, float], number: int) -> None:
            if number == epoch:
                self.model.optimizer.learning_rate.assign(-0.02)

        return turn

    def stall_after_first(self, figures: Mapping[str, float], epoch: int) -> None:
        """Leave the network mistaken, and too slow to mend itself."""
        if epoch == 1:
            last = self.model.get_layer("probabilities")
            last.set_weights([np.roll(weight, 1, axis=-1) for weight in last.get_weights()])
            self.model.optimizer.learning_rate.assign(1e-9)


@pytest.fixture
def trainer(toy: Dataset, rows: Split, architecture: Make) -> Trainer:
    return Trainer(toy, rows, architecture())


Logged = list[tuple[int, dict[str, float]]]


@pytest.fixture(scope="module")
def trained(toy: Dataset, rows: Split, architecture: Make) -> tuple[Trainer, pd.DataFrame, Logged]:
    """Return a network trained by RECIPE, its history and what was logged."""
    trainer = Trainer(toy, rows, architecture())
    logged: Logged = []
    history = trainer(RECIPE, log_epoch=lambda figures, epoch: logged.append((epoch, {**figures})))
    return trainer, history, logged


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float((probabilities.argmax(axis=1) == labels).mean())


def test_what_can_be_learnt_is_learnt_and_written_down(
    trained: tuple[Trainer, pd.DataFrame, Logged],
) -> None:
    _, history, logged = trained
    assert history.columns.tolist() == [
        "epoch",
        "loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
        "lr",
        "seconds",
    ]
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["loss"].is_monotonic_decreasing
    assert history["accuracy"].iloc[-1] > 0.9
    assert history["val_accuracy"].max() > 0.9
    assert history["lr"].tolist() == pytest.approx([1e-2] * 3)

    assert [epoch for epoch, _ in logged] == [1, 2, 3]
    for (_, figures), row in zip(logged, history.to_dict("records"), strict=True):
        assert figures == {name: row[name] for name in history.columns if name != "epoch"}
        assert all(type(value) is float for value in figures.values())


def test_an_images_prediction_is_in_its_row_whatever_the_order(
    trained: tuple[Trainer, pd.DataFrame, Logged],
) -> None:
    trainer = trained[0]
    wanted = np.concatenate([trainer.rows.test, trainer.rows.test[:3]])
    found = predict(trainer.model, trainer.toy, wanted, batch_size=4)
    assert found.shape == (18, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        found[::-1], predict(trainer.model, trainer.toy, wanted[::-1], batch_size=7), atol=1e-5
    )
    np.testing.assert_allclose(found, trainer.model(trainer.toy.images[wanted]).numpy(), atol=1e-5)


def test_the_weights_of_the_best_epoch_are_kept(trainer: Trainer, tmp_path: Path) -> None:
    recipe = Recipe(lr=1e-2, batch_size=12, epochs=5, early_stopping_patience=None)
    history = trainer(recipe, log_epoch=trainer.climb_after(3), checkpoints=tmp_path / "state")

    best = best_epoch(history)
    assert best["epoch"] <= 3
    assert best["val_accuracy"] > history["val_accuracy"].iloc[-1]
    rows = trainer.rows.validation
    probabilities = predict(trainer.model, trainer.toy, rows, 18)
    labels = trainer.toy.labels[rows]
    assert accuracy(probabilities, labels) == pytest.approx(best["val_accuracy"])
    own = probabilities[np.arange(len(rows)), labels]
    assert -np.log(own).mean() == pytest.approx(best["val_loss"], rel=1e-4)


class CutOffError(Exception):
    """Stands for whatever ends a process."""


def cut_at(last: int) -> fit.LogEpoch:
    def cut(figures: Mapping[str, float], epoch: int) -> None:
        if epoch == last:
            raise CutOffError

    return cut


def noting(seen: Logged) -> fit.LogEpoch:
    return lambda figures, epoch: seen.append((epoch, dict(figures)))


@pytest.mark.parametrize(
    ("recipe", "afters", "count"),
    [
        # Dropout's random state, Adam's moments and both counters have to survive.
        (
            replace(RECIPE, lr=5e-2, epochs=9, early_stopping_patience=4, reduce_lr_patience=1),
            (1, 4),
            1,
        ),
        # So have the place in the cycle and the averaged weights.
        (
            replace(
                RECIPE,
                epochs=5,
                schedule="one_cycle",
                warmup=0.4,
                weight_decay=0.01,
                ema=0.2,
                label_smoothing=0.1,
            ),
            (2,),
            1,
        ),
        (
            replace(RECIPE, epochs=4, optimizer="sgd", schedule="one_cycle", ema=0.2),
            (2,),
            2,
        ),
    ],
)
def test_a_training_that_was_cut_off_ends_as_an_unbroken_one(
    toy: Dataset,
    rows: Split,
    architecture: Make,
    tmp_path: Path,
    recipe: Recipe,
    afters: tuple[int, ...],
    count: int,
) -> None:
    recipe = replace(recipe, augment=SHAKEN, no_aug_epochs=1)
    trainer = Trainer(toy, rows, architecture(dropout=0.3, members=count))
    unbroken = trainer(recipe, checkpoints=tmp_path / "unbroken")
    weights = trainer.model.get_weights()

    for after in afters:
        state = tmp_path / f"cut after {after}"
        assert not Checkpoints(state).begun()
        with pytest.raises(CutOffError):
            trainer(recipe, checkpoints=state, log_epoch=cut_at(after + 1))
        assert Checkpoints(state).begun()
        seen: Logged = []
        history = trainer(recipe, checkpoints=state, log_epoch=noting(seen))
        assert [epoch for epoch, _ in seen] == list(range(after + 1, len(unbroken) + 1))
        pd.testing.assert_frame_equal(
            history.drop(columns="seconds"), unbroken.drop(columns="seconds"), rtol=1e-4
        )
        for mine, its in zip(trainer.model.get_weights(), weights, strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-3, atol=1e-4)


def way(trainer: Trainer, model: keras.Model | None = None) -> np.ndarray:
    """Return how far each weight of `model`, or of what was trained, is from where training began."""
    begun, ended = trainer.fresh().get_weights(), (model or trainer.model).get_weights()
    return np.concatenate([(b - a).ravel() for a, b in zip(begun, ended, strict=True)])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_members_learn_as_they_would_alone(
    toy: Dataset, rows: Split, architecture: Make, optimizer: str
) -> None:
    recipe = replace(
        RECIPE,
        epochs=2,
        optimizer=optimizer,
        ema=0.2,
        class_weights=1.0,
        augment=SHAKEN,
    )
    together = Trainer(toy, rows, architecture(dropout=0.3, members=2))
    history = together(recipe)
    own, said = [], []
    for seed, member in enumerate(single_networks(together.model)):
        alone = Trainer(toy, rows, architecture(dropout=0.3), seed=seed)
        own.append(alone(recipe, seed=seed)[["loss", "accuracy"]])
        # Rounding moves a weight whose gradient is nearly nothing: Adam's steps know no size.
        apart = np.linalg.norm(way(alone, member) - way(alone)) / np.linalg.norm(way(alone))
        assert apart < 0.02
        said.append(predict(member, toy, rows.validation, 18))
    loss, accuracy = np.mean(own, axis=0).T
    np.testing.assert_allclose(history["loss"], loss, rtol=1e-3)
    np.testing.assert_allclose(history["accuracy"], accuracy, atol=0.02)
    labels = toy.labels[rows.validation]
    mean = np.mean(said, axis=0)
    assert history["val_accuracy"].iloc[-1] == pytest.approx((mean.argmax(1) == labels).mean())
    loss = -np.log(mean[np.arange(len(labels)), labels]).mean()
    assert history["val_loss"].iloc[-1] == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("added", [1, 2])
def test_members_that_are_added_make_the_network_that_all_at_once_make(
    toy: Dataset, rows: Split, architecture: Make, added: int
) -> None:
    recipe = replace(RECIPE, epochs=2, ema=0.2)
    at_once = Trainer(toy, rows, architecture(dropout=0.3, members=1 + added))
    at_once(recipe)
    first = Trainer(toy, rows, architecture(dropout=0.3))
    first(recipe)
    rest = Trainer(toy, rows, architecture(dropout=0.3, members=added), seed=1)
    rest(recipe, seed=1)
    chosen = architecture(members=1 + added)
    joined = export(rest.model, chosen, others=[first.model])
    for mine, its in zip(joined.get_weights(), at_once.model.get_weights(), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-3, atol=1e-4)


def test_a_training_that_had_ended_is_not_gone_on_with(trainer: Trainer, tmp_path: Path) -> None:
    history = trainer(RECIPE, checkpoints=tmp_path)

    def never(figures: Mapping[str, float], epoch: int) -> None:
        pytest.fail(f"trained epoch {epoch} again")

    again = trainer(RECIPE, checkpoints=tmp_path, log_epoch=never)
    pd.testing.assert_frame_equal(again, history)
    assert len(list(tmp_path.iterdir())) <= 2
    seen: Logged = []
    trainer(RECIPE, checkpoints=tmp_path, log_kept=True, log_epoch=noting(seen))
    assert [{"epoch": epoch, **figures} for epoch, figures in seen] == history.to_dict("records")


def test_a_damaged_checkpoint_is_named(trainer: Trainer, tmp_path: Path) -> None:
    trainer(RECIPE, checkpoints=tmp_path)
    newest = max(tmp_path.iterdir()) / "model.weights.h5"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"epoch_00003: damaged checkpoint .*remove .* train anew"):
        trainer(RECIPE, checkpoints=tmp_path)


def test_without_a_place_for_the_best_weights_the_last_are_kept(
    trained: tuple[Trainer, pd.DataFrame, Logged],
) -> None:
    trainer, history, _ = trained
    rows = trainer.rows.validation
    probabilities = predict(trainer.model, trainer.toy, rows, 18)
    own = probabilities[np.arange(len(rows)), trainer.toy.labels[rows]]
    assert -np.log(own).mean() == pytest.approx(history["val_loss"].iloc[-1], rel=1e-4)


def test_the_best_epoch_is_the_first_with_the_highest_val_accuracy() -> None:
    history = pd.DataFrame({"epoch": [1, 2, 3, 4], "val_accuracy": [0.2, 0.7, 0.7, 0.1]})
    assert best_epoch(history)["epoch"] == 2


def test_a_training_that_gets_no_better_stops_early(trainer: Trainer) -> None:
    recipe = Recipe(lr=1e-2, batch_size=12, epochs=9, early_stopping_patience=2)
    history = trainer(recipe, log_epoch=trainer.stall_after_first)
    assert history["val_loss"].argmin() == 0
    assert len(history) == 1 + 2


def test_a_stalled_training_goes_on_with_a_lower_rate(trainer: Trainer) -> None:
    recipe = Recipe(
        lr=1e-2,
        batch_size=12,
        epochs=4,
        early_stopping_patience=None,
        schedule="plateau",
        reduce_lr_patience=1,
        reduce_lr_factor=0.1,
    )
    history = trainer(recipe, log_epoch=trainer.stall_after_first)
    assert history["val_loss"].argmin() == 0
    # The rate of a row is the one that its epoch was trained with.
    assert history["lr"].tolist() == pytest.approx([1e-2, 1e-9, 1e-10, 1e-11], rel=1e-4, abs=0)


def test_one_cycle_raises_the_rate_and_lowers_it_to_nothing(trainer: Trainer) -> None:
    recipe = replace(RECIPE, epochs=10, schedule="one_cycle", warmup=0.3, reduce_lr_patience=1)
    rates = trainer(recipe)["lr"].to_numpy()
    # A row has the rate that its epoch began with.
    assert rates[0] == pytest.approx(1e-2 / 25)
    assert rates.argmax() == 3
    assert rates[3] == pytest.approx(1e-2)
    assert (np.diff(rates[3:]) < 0).all()
    assert rates[-1] < 1e-3


def test_a_training_that_starts_later_has_a_cycle_of_its_own(trainer: Trainer) -> None:
    recipe = replace(RECIPE, epochs=12, schedule="one_cycle", warmup=0.3)
    later = trainer(recipe, first_epoch=2)["lr"]
    whole = trainer(replace(recipe, epochs=10))["lr"]
    assert later.tolist() == whole.tolist()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weight_decay_shrinks_kernels_alone(trainer: Trainer, optimizer: str) -> None:
    def kernels() -> dict[str, np.ndarray]:
        return {weight.path: weight.numpy() for weight in trainer.model.trainable_weights}

    recipe = replace(RECIPE, lr=1e-7, epochs=1, optimizer=optimizer)
    trainer(recipe)
    without = kernels()
    trainer(replace(recipe, weight_decay=1e5))
    for path, decayed in kernels().items():
        kept = 0.99**6 if path.endswith("kernel") else 1.0
        np.testing.assert_allclose(decayed, kept * without[path], rtol=1e-3, atol=1e-5)


def test_what_is_validated_and_kept_are_the_averaged_weights(
    trainer: Trainer, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, epochs=1)
    trainer(recipe, checkpoints=tmp_path / "plain")
    plain = trainer.model.get_weights()
    history = trainer(replace(recipe, ema=0.8), checkpoints=tmp_path / "averaged")
    assert any(
        not np.allclose(mine, its)
        for mine, its in zip(trainer.model.get_weights(), plain, strict=True)
    )
    rows = trainer.rows.validation
    own = predict(trainer.model, trainer.toy, rows, 18)[np.arange(18), trainer.toy.labels[rows]]
    assert -np.log(own).mean() == pytest.approx(history["val_loss"][0], rel=1e-4)


def test_a_network_that_began_on_smaller_images_ends_on_full_ones(
    toy: Dataset, rows: Split, architecture: Make
) -> None:
    chosen = architecture((8, 8), (), family="plain")
    recipe = replace(
        RECIPE, epochs=12, progressive_resizing=LowResolution(epochs=6, scale=0.5), ema=0.05
    )
    model = build(
        chosen, image_shape=(16, 16, 3), classes=3, smallest=recipe.smallest((16, 16)), seed=0
    )
    history = fit(
        model,
        toy,
        train=rows.train,
        validation=rows.validation,
        recipe=recipe,
        seed=0,
        log_epoch=silent,
        verbose=False,
    )
    assert history["val_accuracy"].iloc[-1] > 0.9
    saved = export(model, chosen, (16, 16, 3))
    assert saved.input_shape == (None, 16, 16, 3)
    some = rows.validation
    np.testing.assert_allclose(
        predict(saved, toy, some, 18), predict(model, toy, some, 18), atol=1e-5
    )


def test_smoothed_labels_are_never_quite_believed(trainer: Trainer) -> None:
    history = trainer(replace(RECIPE, label_smoothing=0.3))
    # The least loss that targets of 0.8, 0.1 and 0.1 leave.
    assert history["loss"].min() > -(0.8 * math.log(0.8) + 0.2 * math.log(0.1))


def test_a_training_that_breaks_down_ends(
    trainer: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(figures: Mapping[str, float], epoch: int) -> None:
        trainer.model.optimizer.learning_rate.assign(float("nan"))

    recipe = Recipe(lr=1e-2, batch_size=12, epochs=5, early_stopping_patience=None)
    history = trainer(recipe, log_epoch=break_down, checkpoints=tmp_path)
    assert len(history) == 2
    assert math.isnan(history["loss"].iloc[-1])
    assert (
        "the loss of epoch 2 is nan, and the training ends there, its best epoch 1" in caplog.text
    )
    assert np.isfinite(trainer.model.get_weights()[0]).all()


def test_balanced_weights_give_every_class_the_same_say(trainer: Trainer) -> None:
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
    of_class = [losses[labels[few] == label] for label in range(3)]

    for power, expected in (
        (0, losses.mean()),
        (0.5, np.average([mine.mean() for mine in of_class], weights=np.sqrt([20, 6, 4]))),
        (1, np.mean([mine.mean() for mine in of_class])),
    ):
        recipe = Recipe(1e-3, 30, 1, None, class_weights=power)
        history = trainer(recipe, train=few)
        assert history["loss"][0] == pytest.approx(expected, rel=1e-4)


def test_a_batch_larger_than_the_set_is_refused(trainer: Trainer) -> None:
    recipe = Recipe(lr=1e-2, batch_size=73, epochs=1, early_stopping_patience=None)
    with pytest.raises(UserError, match=r"batch_size = 73 .* 72 training images; use at most 72"):
        trainer(recipe)


def test_the_seed_fixes_a_training(toy: Dataset, rows: Split, architecture: Make) -> None:
    trainer = Trainer(toy, rows, architecture(dropout=0.3))
    recipe = Recipe(lr=1e-2, batch_size=12, epochs=1, early_stopping_patience=None)
    first, second, other = (trainer(recipe, seed=seed)["loss"].tolist() for seed in (0, 0, 1))
    assert first == pytest.approx(second, rel=1e-4)
    assert first != pytest.approx(other, rel=1e-4)


TWICE = """
import sys
from pathlib import Path
from emotion_detection.training.fit import fit
from emotion_detection.data.dataset import Dataset, split
from emotion_detection.models.network import Architecture, build, export

dataset = Dataset.open(Path(sys.argv[1]))
rows = split(dataset, validation="holdout", fraction=0.2, seed=0)
fit.be_deterministic(3)
network = Architecture("residual", (8, 8), (3, 3), 2, (8,), True, 0.2, 0.2, 0.8, False, 0, 0, 1)
model = build(network, image_shape=(16, 16, 3), classes=3)
recipe = fit.Recipe(lr=1e-2, batch_size=12, epochs=2, early_stopping_patience=None)
fit.fit(
    model, dataset, train=rows.train, validation=rows.validation, recipe=recipe, seed=3,
    log_epoch=lambda *_: None, verbose=False,
)
print(fit.digest(model))
"""


def test_a_deterministic_training_gives_the_same_bits(packed: Path) -> None:
    first, second = (
        subprocess.check_output([sys.executable, "-c", TWICE, packed], text=True).split()[-1]
        for _ in range(2)
    )
    assert first == second


def test_the_digest_is_of_every_bit_of_the_weights(trainer: Trainer) -> None:
    model, same = trainer.fresh(), trainer.fresh()
    assert fit.digest(model) == fit.digest(same)
    weights = same.get_weights()
    weights[-1][0] = np.nextafter(weights[-1][0], np.float32(1))
    same.set_weights(weights)
    assert fit.digest(model) != fit.digest(same)


def test_a_step_is_traced_once(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    step, traced = keras.Model.train_step, []

    def noted(model: keras.Model, data: object) -> object:
        traced.append(model)
        return step(model, data)

    monkeypatch.setattr(keras.Model, "train_step", noted)
    trainer(replace(RECIPE, batch_size=20, ema=0.1, class_weights=0.5))
    assert traced == [trainer.model]


def test_a_training_taken_up_later_counts_on(trainer: Trainer) -> None:
    assert trainer(RECIPE, first_epoch=1)["epoch"].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (42.4, "42 s"),
        (89, "89 s"),
        (90, "2 min"),
        (420, "7 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (11_160, "3.1 h"),
    ],
)
def test_durations_are_said_as_a_person_does(seconds: float, said: str) -> None:
    assert duration(seconds) == said
