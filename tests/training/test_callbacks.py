"""What happens around the epochs: which is the best, when a training stops, what it logs."""

import logging
import re
from typing import Any

import pandas as pd
import pytest

from emotion_detection.params import Train
from emotion_detection.training.callbacks import best_epoch, duration, seconds_left
from tests.support.trainer import SETTINGS, Trainer


def test_the_best_epoch_is_the_first_with_the_highest_val_accuracy() -> None:
    history = pd.DataFrame({"epoch": [1, 2, 3, 4], "val_accuracy": [0.2, 0.7, 0.7, 0.1]})
    assert best_epoch(history)["epoch"] == 2


def test_a_training_that_gets_no_better_stops_early(trainer: Trainer) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 9, "early_stopping_patience": 2})
    history = trainer(settings, log_epoch=trainer.stall_after_first)
    assert history["val_loss"].argmin() == 0
    assert len(history) == 1 + 2


def test_on_a_plateau_the_learning_rate_is_halved(trainer: Trainer) -> None:
    settings = SETTINGS.model_copy(
        update={"epochs": 4, "schedule": "plateau", "reduce_lr_patience": 1}
    )
    history = trainer(settings, log_epoch=trainer.stall_after_first)
    assert history["val_loss"].argmin() == 0
    # The rate of a row is the one that its epoch was trained with.
    expected = [1e-2, 1e-9, 5e-10, 2.5e-10]
    assert history["lr"].tolist() == pytest.approx(expected, rel=1e-4, abs=0)


def test_each_epoch_is_a_log_line_with_its_figures_and_the_time_left(
    trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "emotion_detection")
    history = trainer(SETTINGS.model_copy(update={"epochs": 2}), verbose=True)
    lines = [line for line in caplog.messages if line.startswith("epoch ")]
    for line, row in zip(lines, history.itertuples(), strict=True):
        assert line.startswith(
            f"epoch {row.epoch}/2  loss {row.loss:.3f}  accuracy {row.accuracy:.3f}  "
            f"val_loss {row.val_loss:.3f}  val_accuracy {row.val_accuracy:.3f}  lr 1.0e-02  "
        )
        assert re.search(r"\d+ s, at most \d+ (s|min) left$", line)
    assert lines[-1].endswith("at most 0 s left")


@pytest.mark.parametrize(
    ("settings", "epoch", "left"),
    [
        ({"epochs": 10}, 4, 60),
        ({"epochs": 10, "progressive_resizing": 6}, 7, 30),
        # Two more small epochs, and four whose images have 9/4 the pixels.
        ({"epochs": 10, "progressive_resizing": 6}, 4, 2 * 10 + 4 * 22.5),
    ],
)
def test_the_time_left_depends_on_the_size_of_the_images_to_come(
    settings: dict[str, Any], epoch: int, left: float
) -> None:
    row = {"epoch": epoch, "seconds": 10.0}
    assert seconds_left(row, Train(**settings)) == pytest.approx(left)


@pytest.mark.parametrize(
    ("seconds", "words"),
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
def test_durations_read_as_a_person_says_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words
