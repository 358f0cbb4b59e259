"""What a search draws: tune.space as a person writes it, as KerasTuner has it, and back again."""

from pathlib import Path
from typing import Any

import pytest

from emotion_detection.settings import params
from emotion_detection.settings.params import Network, Train
from emotion_detection.settings.sections import flat
from emotion_detection.settings.space import Space
from tests.support.project import ROOT

SECTIONS = {
    "network": Network(filters=(8, 4), kernel_sizes=(3, 3), dense_units=(8,), dense_dropout=0.2),
    "train": Train(lr=3e-3, batch_size=64, epochs=10),
}
OWN = flat(SECTIONS["network"], "network.") | flat(SECTIONS["train"], "train.")
WRITTEN: dict[str, Any] = {
    # What it depends on comes later.
    "network.kernel_sizes": {"length": "network.filters", "each": [3, 5]},
    "train.augment.rotation": {"min": 0, "max": 25, "step": 5},
    "train.reduce_lr_patience": {"min": 1, "max": 4, "when": {"train.schedule": "plateau"}},
    "train.schedule": ["plateau", "one_cycle"],
    "train.early_stopping_patience": [None, 5],
    "train.lr": {"min": 3e-4, "max": 1e-2, "log": True},
    "train.batch_size": {"min": 32, "max": 128, "step": 2, "log": True},
    "network.filters": [[8, 4], [8, 4, 8]],
    "network.dense_units": {"length": [0, 2], "each": {"min": 8, "max": 64}},
    "network.squeeze_excitation": [False, True],
}


def test_what_is_drawn_is_of_the_form_of_the_param() -> None:
    space = Space(WRITTEN, SECTIONS)
    names = {each.name for each in space.declare().space}
    assert names == {
        *(WRITTEN.keys() - {"network.kernel_sizes", "network.dense_units"}),
        *(f"network.kernel_sizes.{block}" for block in (1, 2, 3)),
        *("network.dense_units.length", "network.dense_units.1", "network.dense_units.2"),
    }
    values = {
        **{"network.filters": 1, "network.squeeze_excitation": 1, "train.schedule": 1},
        **{f"network.kernel_sizes.{block}": block % 2 for block in (1, 2, 3)},
        **{"network.dense_units.length": 1, "network.dense_units.1": 9, "network.dense_units.2": 8},
        **{"train.augment.rotation": 5, "train.lr": 0.00123456789, "train.batch_size": 2},
        "train.early_stopping_patience": 0,
    }
    assert space.drawn(values) == {
        "network.filters": (8, 4, 8),
        "network.kernel_sizes": (5, 3, 5),
        "network.dense_units": (9, 8),
        "network.squeeze_excitation": True,
        "train.schedule": "one_cycle",
        "train.lr": 0.001235,
        "train.batch_size": 128,
        "train.augment.rotation": 25.0,
        "train.early_stopping_patience": None,
    }
    # A condition that does not hold leaves what params.yaml has.
    assert space.settings(values)["train.reduce_lr_patience"] is None
    plateau = space.drawn(values | {"train.schedule": 0, "train.reduce_lr_patience": 3})
    assert plateau["train.reduce_lr_patience"] == 3


def test_draws_are_settings_of_the_space_and_become_the_same_values_again() -> None:
    import keras_tuner

    space = Space(WRITTEN, SECTIONS)
    oracle = keras_tuner.oracles.RandomSearchOracle(
        objective=keras_tuner.Objective("val_accuracy", "max"),
        hyperparameters=space.declare(),
        seed=1,
    )
    for _ in range(50):
        settings = space.settings(oracle._random_values())
        assert len(settings["network.filters"]) == len(settings["network.kernel_sizes"])
        again = space.values_of(settings)
        assert again is not None
        assert space.settings(again) == settings


@pytest.mark.parametrize(
    ("changes", "inside"),
    [
        ({}, True),
        ({"network.filters": (8, 5)}, False),
        ({"network.kernel_sizes": (3, 4)}, False),
        ({"network.dense_units": (8, 64)}, True),
        ({"network.dense_units": (8, 65)}, False),
        ({"network.dense_units": (8, 8, 8)}, False),
        ({"train.lr": 0.02}, False),
        ({"train.augment.rotation": 7.0}, False),
        ({"train.reduce_lr_patience": 2}, True),
        ({"train.schedule": "one_cycle", "train.reduce_lr_patience": 2}, False),
        # It is not searched.
        ({"train.weight_decay": 0.5}, False),
    ],
)
def test_settings_are_inside_the_space_if_they_may_be_drawn(
    changes: dict[str, Any], inside: bool
) -> None:
    own = OWN | {"train.reduce_lr_patience": 1, "network.dense_units": ()}
    sections = SECTIONS | {"train": Train(lr=3e-3, batch_size=64, epochs=10)}
    space = Space(WRITTEN, sections)
    assert (space.values_of(own | changes) is not None) == inside


def test_a_length_may_be_that_of_params_yaml() -> None:
    space = Space({"network.kernel_sizes": {"length": "network.filters", "each": [5]}}, SECTIONS)
    values = {"network.kernel_sizes.1": 0, "network.kernel_sizes.2": 0}
    assert {each.name for each in space.declare().space} == values.keys()
    assert space.drawn(values) == {"network.kernel_sizes": (5, 5)}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"train.lrr": [1]}, "train.lrr: is no param of network or train; did you mean train.lr?"),
        ({"train.augment": [1]}, "train.augment: is no param of network or train; did you mean tr"),
        ({"tune.epochs": [1]}, "tune.epochs: is no param of network or train; did you mean tra"),
        ({"train.epochs": [1]}, "train.epochs: is not drawn; tune.epochs says how long a trial tr"),
        ({"train.init_from": [None]}, "train.init_from: is not drawn; name one model there"),
        ({"train.lr": 1e-3}, "train.lr = 0.001: must be a list of values, or one of {values"),
        ({"train.lr": {"min": 1}}, 'train.lr = {"min": 1}: must be a list of values, or one of'),
        ({"train.lr": {"min": 1, "max": 2, "stp": 1}}, "train.lr = {"),
        ({"train.lr": []}, "train.lr = []: needs at least one value"),
        ({"train.lr": [1e-3, 0]}, "train.lr = 0: must be more than 0"),
        ({"train.lr": [0.1, "fast"]}, 'train.lr = "fast": must be a number'),
        ({"train.lr": [0.1, 0.1]}, "train.lr: has 0.1 twice"),
        ({"train.lr": {"min": 0, "max": 1}}, "train.lr = 0: must be more than 0"),
        ({"train.lr": {"min": 2, "max": 1}}, "train.lr: min = 2 must be less than max = 1"),
        ({"train.lr": {"min": "a", "max": 1}}, 'train.lr.min = "a": must be a number'),
        ({"train.ema": {"min": 0, "max": 0.5, "log": True}}, "train.ema.min = 0: must be more t"),
        ({"train.ema": {"min": 0, "max": 0.5, "log": 1}}, "train.ema.log = 1: must be true or fa"),
        ({"train.ema": {"min": 0, "max": 0.5, "step": 0}}, "train.ema.step = 0: must be more than"),
        ({"train.ema": {"min": 0, "max": 0.5, "step": 1e-5}}, "train.ema.step = 1e-05: makes more"),
        ({"train.batch_size": {"min": 1, "max": 9.5}}, "train.batch_size = 9.5: must be a whole"),
        ({"train.augment.shift": [0.1, 1]}, "train.augment.shift = 1: must be less than 1"),
        ({"train.optimizer": ["adam", "lion"]}, "train.optimizer = \"lion\": must be 'adam' or"),
        ({"train.optimizer": {"min": 1, "max": 2}}, "train.optimizer = 1: must be 'adam' or 'sgd'"),
        ({"train.no_aug_epochs": [11]}, "train.no_aug_epochs = 11 is more than epochs = 10"),
        ({"network.filters": [8, 4]}, "network.filters = 8: must be a list in [ ]"),
        ({"network.filters": [[8, 0]]}, "network.filters.1 = 0: must be at least 1"),
        ({"network.filters": [[8, 4, 2]]}, "network.kernel_sizes: must have one value per block"),
        ({"network.filters": {"length": [1, 2], "each": [4]}}, "network.kernel_sizes: must have o"),
        ({"network.filters": {"length": [0], "each": [4]}}, "network.filters = []: has 0 entries"),
        ({"network.filters": {"length": 2.5, "each": [4]}}, "network.filters.length = 2.5: must"),
        ({"network.filters": {"length": "train.lr", "each": [4]}}, 'network.filters.length = "tr'),
        ({"network.filters": {"length": [2], "each": 4}}, "network.filters.each = 4: must be a li"),
        ({"network.dense_units": {"length": [2], "each": [0]}}, "network.dense_units.0 = 0: must"),
        ({"train.lr": {"length": [2], "each": [4]}}, "train.lr: is no list; must be a list of v"),
        ({"train.lr": {"values": [1], "when": 3}}, "train.lr.when = 3: must be {param: value}"),
        (
            {"train.lr": {"values": [0.1], "when": {"train.optimizer": "sgd"}}},
            "train.lr.when: train.optimizer has no list of values in tune.space",
        ),
        (
            {
                "train.lr": {"values": [0.1], "when": {"train.optimizer": "sgd"}},
                "train.optimizer": ["adam"],
            },
            'train.lr.when: train.optimizer is never "sgd" in tune.space',
        ),
        (
            {
                "train.lr": {"values": [0.1], "when": {"train.ema": 0}},
                "train.ema": {"values": [0], "when": {"train.lr": 0.1}},
            },
            "train.lr: depends on itself",
        ),
    ],
)
def test_what_cannot_be_drawn_is_named(written: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^tune\.space: ") as raised:
        Space(written, SECTIONS)
    assert str(raised.value).removeprefix("tune.space: ").startswith(message)


def test_a_wrong_space_is_an_error_of_params_yaml(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text("utf-8")
    file.write_text(text.replace("    train.lr: {min: 0.001", "    train.lr: {min: -1"))
    with pytest.raises(params.UserError, match=r"params\.yaml: tune\.space: train\.lr\.min = -1"):
        params.load(file)
