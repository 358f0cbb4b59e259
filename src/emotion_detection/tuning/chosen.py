"""The network that tune chose, in a file for the stages after it."""

import json
from pathlib import Path

from emotion_detection import paths
from emotion_detection.console import UserError
from emotion_detection.files import atomic, write_json
from emotion_detection.params import Network, validate


def save_hyperparameters(network: Network, path: Path) -> None:
    """Write the network that tune chose."""
    write_json(path, network.model_dump())


def load_hyperparameters(path: Path) -> Network:
    """Return the network that tune chose.

    Raises:
        UserError: if the file is missing or does not hold a network.

    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `dvc repro tune`") from None
    try:
        network = validate(Network, values, path)
    except UserError as error:
        raise UserError(f"{error}; run `dvc repro tune`") from None
    if absent := [name for name in Network.model_fields if name not in network.model_fields_set]:
        raise UserError(f"{path}: {', '.join(absent)}: missing; run `dvc repro tune`")
    return network


def write_empty_report(folder: Path) -> None:
    """Write the report of a search that looked at nothing."""
    with atomic(folder) as report:
        report.mkdir()
        write_json(report / paths.METRICS, {"tune/trials": 0})
        # `dvc plots` complains of a table that is not there.
        (report / "trials.csv").write_text("trial,val_accuracy\n", encoding="utf-8")
