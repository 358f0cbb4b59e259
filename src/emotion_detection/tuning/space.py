"""What a search draws from: tune.space as KerasTuner's hyperparameters, and back as a network."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from emotion_detection.params import Network, Space

if TYPE_CHECKING:  # It takes TensorFlow along, which a stage without a search does not need.
    import keras_tuner


def declare(space: Space) -> "keras_tuner.HyperParameters":
    """Return `space` as KerasTuner's: the filters of block 4 exist where there are 4 blocks."""
    import keras_tuner

    hp = keras_tuner.HyperParameters()
    hp.Choice("blocks", list(space.blocks))
    hp.Choice("dense_layers", list(space.dense_layers))
    hp.Choice("dense_dropout", list(space.dense_dropout))
    for block in range(1, max(space.blocks) + 1):
        with hp.conditional_scope("blocks", [n for n in space.blocks if n >= block]):
            hp.Choice(f"filters_{block}", list(space.filters))
            hp.Choice(f"kernel_size_{block}", list(space.kernel_size))
    for layer in range(1, max(space.dense_layers) + 1):
        with hp.conditional_scope("dense_layers", [n for n in space.dense_layers if n >= layer]):
            hp.Choice(f"dense_units_{layer}", list(space.dense_units))
    return hp


def contains(space: Space, network: Network) -> bool:
    """Return whether `network` may be drawn from `space`."""
    return (
        len(network.filters) in space.blocks
        and set(network.filters) <= set(space.filters)
        and set(network.kernel_sizes) <= set(space.kernel_size)
        and len(network.dense_units) in space.dense_layers
        and set(network.dense_units) <= set(space.dense_units)
        and network.dense_dropout in space.dense_dropout
    )


def values_of(network: Network) -> dict[str, Any]:
    """Return KerasTuner's values for `network`."""
    return {
        "blocks": len(network.filters),
        "dense_layers": len(network.dense_units),
        "dense_dropout": network.dense_dropout,
        **{f"filters_{i}": n for i, n in enumerate(network.filters, 1)},
        **{f"kernel_size_{i}": n for i, n in enumerate(network.kernel_sizes, 1)},
        **{f"dense_units_{i}": n for i, n in enumerate(network.dense_units, 1)},
    }


def network_of(values: Mapping[str, Any], baseline: Network) -> Network:
    """Return the network for KerasTuner's `values`; what is not searched is the baseline's."""
    blocks = range(1, values["blocks"] + 1)
    layers = range(1, values["dense_layers"] + 1)
    return baseline.model_copy(
        update={
            "filters": tuple(values[f"filters_{i}"] for i in blocks),
            "kernel_sizes": tuple(values[f"kernel_size_{i}"] for i in blocks),
            "dense_units": tuple(values[f"dense_units_{i}"] for i in layers),
            "dense_dropout": values["dense_dropout"],
        }
    )


def columns_of(network: Network) -> dict[str, Any]:
    """Return what is searched of `network` as flat columns of tables and MLflow's params."""
    return {
        "blocks": len(network.filters),
        "filters": " ".join(map(str, network.filters)),
        "kernel_sizes": " ".join(map(str, network.kernel_sizes)),
        "dense_layers": len(network.dense_units),
        "dense_units": " ".join(map(str, network.dense_units)) or "none",
        "dense_dropout": network.dense_dropout,
    }
