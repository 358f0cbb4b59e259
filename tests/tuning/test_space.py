"""What a search draws from: params to KerasTuner's values, and back again."""

from collections.abc import Callable

import pytest

from emotion_detection.params import Network, Space
from emotion_detection.tuning.space import (
    columns_of,
    contains,
    declare,
    network_of,
    values_of,
)

Make = Callable[..., Network]
SPACE = Space(
    blocks=(1, 2),
    filters=(4, 8),
    kernel_size=(3,),
    dense_layers=(0, 1),
    dense_units=(8, 16),
    dense_dropout=(0.0, 0.2),
)
BASELINE = Network(
    arch="notebook",
    filters=(8, 4),
    kernel_sizes=(3, 3),
    dense_units=(8,),
    conv_dropout=0.1,
    dense_dropout=0.2,
)


def test_a_network_becomes_values_and_a_network_again() -> None:
    assert network_of(values_of(BASELINE), BASELINE) == BASELINE
    other = BASELINE.model_copy(update={"arch": "residual", "convolutions": 3})
    # What is not searched is the baseline's.
    assert network_of(values_of(BASELINE), other) == other


def test_the_space_declares_what_a_network_of_its_size_has() -> None:
    names = {each.name for each in declare(SPACE).space}
    assert names == {
        *("blocks", "dense_layers", "dense_dropout", "dense_units_1"),
        *("filters_1", "filters_2", "kernel_size_1", "kernel_size_2"),
    }
    assert set(values_of(BASELINE)) == names
    conditions = {each.name: each.conditions for each in declare(SPACE).space}
    assert not conditions["blocks"]
    assert [condition.values for condition in conditions["filters_2"]] == [[2]]


@pytest.mark.parametrize(
    ("changes", "inside"),
    [
        ({}, True),
        ({"filters": (4,), "kernel_sizes": (3,), "dense_units": ()}, True),
        ({"filters": (8, 5)}, False),
        ({"filters": (8, 4, 8), "kernel_sizes": (3, 3, 3)}, False),
        ({"kernel_sizes": (3, 5)}, False),
        ({"dense_units": (8, 8)}, False),
        ({"dense_units": (9,)}, False),
        ({"dense_dropout": 0.1}, False),
        # It is not searched.
        ({"conv_dropout": 0.9}, True),
    ],
)
def test_a_network_is_inside_the_space_if_it_may_be_drawn(
    changes: dict[str, object], inside: bool
) -> None:
    assert contains(SPACE, BASELINE.model_copy(update=changes)) == inside


def test_a_network_without_dense_layers_says_so_in_tables() -> None:
    columns = columns_of(BASELINE.model_copy(update={"dense_units": ()}))
    assert (columns["dense_layers"], columns["dense_units"]) == (0, "none")
    assert columns["filters"] == "8 4"
