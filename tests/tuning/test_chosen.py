"""The network that tune chose, in a file."""

import json
from pathlib import Path

import pytest

from emotion_detection import paths
from emotion_detection.console import UserError
from emotion_detection.params import Network
from emotion_detection.tuning.chosen import (
    load_hyperparameters,
    save_hyperparameters,
    write_empty_report,
)

BASELINE = Network(
    arch="notebook",
    filters=(8, 4),
    kernel_sizes=(3, 3),
    dense_units=(8,),
    conv_dropout=0.1,
    dense_dropout=0.2,
)


def test_the_network_that_tune_chose_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "hyperparameters.json"
    save_hyperparameters(BASELINE, path)
    found = load_hyperparameters(path)
    assert found == BASELINE
    assert hash(found) == hash(BASELINE)


def test_without_a_search_the_report_has_no_trials(tmp_path: Path) -> None:
    write_empty_report(tmp_path / "tune")
    metrics = json.loads((tmp_path / "tune" / paths.METRICS).read_text())
    assert metrics == {"tune/trials": 0}
    assert (tmp_path / "tune" / "trials.csv").read_text() == "trial,val_accuracy\n"


WRITTEN = BASELINE.model_dump()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("3", "= 3: must be a section of arch, filters, kernel_sizes, convolutions"),
        (json.dumps({"filters": [8, 4, 8]}), "filters has 3 entries and kernel_sizes 4"),
        (json.dumps({**WRITTEN, "filters": "8 4"}), 'filters = "8 4": must be a list'),
        (json.dumps({**WRITTEN, "filters": [8, 4.5]}), "filters.1 = 4.5: must be a whole number"),
        (json.dumps({**WRITTEN, "filters": [8]}), "filters has 1 entries and kernel_sizes 2"),
        (json.dumps({**WRITTEN, "dense_dropout": float("nan")}), "dense_dropout = NaN: must be a"),
        (json.dumps({**WRITTEN, "dropout": 0.5}), "dropout: unknown key"),
        (json.dumps({"arch": "plain"}), "filters, kernel_sizes, convolutions, dense_units, "),
    ],
)
def test_a_file_without_hyperparameters_is_named_with_the_remedy(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "hyperparameters.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as raised:
        load_hyperparameters(path)
    assert str(raised.value).startswith(f"{path}: {message}")
    assert str(raised.value).endswith("; run `dvc repro tune`")
