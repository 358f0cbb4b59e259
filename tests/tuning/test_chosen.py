"""What tune chose, in a file, and what train makes of it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from emotion_detection import paths
from emotion_detection.console import UserError
from emotion_detection.settings import params
from emotion_detection.settings.params import Params
from emotion_detection.settings.sections import flat
from emotion_detection.tuning.chosen import applied, save_hyperparameters, write_empty_report
from tests.support.project import ROOT

SETTINGS = params.load(ROOT / "params.yaml")
DRAWN: dict[str, Any] = {
    "network.filters": (8, 4),
    "network.kernel_sizes": (3, 5),
    "train.lr": 1e-2,
    "train.augment.rotation": 20.0,
}


def with_train(**changes: Any) -> Params:
    return SETTINGS.model_copy(update={"train": SETTINGS.train.model_copy(update=changes)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "hyperparameters.json"
    save_hyperparameters(SETTINGS, DRAWN, path)
    return path


def test_a_training_takes_what_the_search_drew_and_says_so(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "emotion_detection")
    found = applied(SETTINGS, path, stage="train")
    assert (found.network.filters, found.network.kernel_sizes) == ((8, 4), (3, 5))
    assert (found.train.lr, found.train.augment.rotation) == (1e-2, 20.0)
    assert (found.train.batch_size, found.seed) == (SETTINGS.train.batch_size, SETTINGS.seed)
    assert hash(found.network) is not None
    assert caplog.messages == [
        "train: network.filters = [8, 4], as the search drew it",
        "train: network.kernel_sizes = [3, 5], as the search drew it",
        "train: train.lr = 0.01, as the search drew it",
        "train: train.augment.rotation = 20.0, as the search drew it",
    ]
    caplog.clear()
    assert applied(SETTINGS, path) == found
    assert not caplog.messages


def test_a_setting_that_was_changed_since_the_search_wins(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "emotion_detection")
    found = applied(with_train(lr=5e-4, weight_decay=0.05), path, stage="train")
    assert (found.train.lr, found.train.weight_decay) == (5e-4, 0.05)
    assert found.train.augment.rotation == 20.0
    assert caplog.messages[-2:] == [
        "train: train.lr = 0.0005, as params.yaml was changed to since the search, which drew 0.01",
        "train: train.weight_decay = 0.05, as params.yaml was changed to since the search, which "
        "had 0.01",
    ]


def test_without_a_search_a_training_takes_params_yaml(tmp_path: Path) -> None:
    path = tmp_path / "hyperparameters.json"
    save_hyperparameters(SETTINGS, None, path)
    assert applied(SETTINGS, path) == SETTINGS
    # What a training had before is nothing that it depends on.
    save_hyperparameters(with_train(lr=5e-4), None, other := tmp_path / "other.json")
    assert other.read_bytes() == path.read_bytes()


def test_without_a_search_the_report_has_no_trials(tmp_path: Path) -> None:
    write_empty_report(tmp_path / "tune")
    metrics = json.loads((tmp_path / "tune" / paths.METRICS).read_text())
    assert metrics == {"tune/trials": 0}
    assert (tmp_path / "tune" / "trials.csv").read_text() == "trial,val_accuracy\n"


def text(drawn: dict[str, Any]) -> str:
    return json.dumps({"drawn": drawn, "params": flat(SETTINGS.network, "network.")})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("3", "holds no drawn and params"),
        ("{}", "holds no drawn and params"),
        (text({"network.filters": [8, 4, 8]}), "filters has 3 entries and kernel_sizes 4"),
        (text({"network.filters": "8 4"}), 'filters = "8 4": must be a list'),
        (text({"network.dense_dropout": float("nan")}), "dense_dropout = NaN: must be a"),
        (text({"train.lr": 0}), "lr = 0: must be more than 0"),
        (text({"network.dropout": 0.5}), "network.dropout: unknown key"),
        ('{"drawn": {}, "params": {"network.arch": "plain"}}', "network.filters, network.kernel_s"),
    ],
)
def test_a_file_without_hyperparameters_is_named_with_the_remedy(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "hyperparameters.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as raised:
        applied(SETTINGS, path)
    assert str(raised.value).startswith(f"{path}: {message}")
    assert str(raised.value).endswith("; run `dvc repro tune`")
