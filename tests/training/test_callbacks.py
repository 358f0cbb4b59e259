"""What happens around the epochs: which is the best, when a training stops, what it logs."""

from typing import Any

import pandas as pd
import pytest

from emotion_detection.console import Progress
from emotion_detection.settings.params import Train
from emotion_detection.training.callbacks import best_epoch, work
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


def test_the_progress_has_the_epoch_and_the_accuracy_so_far(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[float, str]] = []
    progress = Progress("train", bar=False, lines=False)
    monkeypatch.setattr(progress, "advance", lambda by, note: said.append((by, note)))
    history = trainer(SETTINGS.model_copy(update={"epochs": 2}), progress=progress)
    steps = len(said) // 2
    assert sum(by for by, _ in said) == pytest.approx(2)
    first = f"epoch 2/2, validation accuracy {100 * history['val_accuracy'][0]:.1f} %"
    assert [note for _, note in said] == ["epoch 1/2"] * steps + [first] * steps


@pytest.mark.parametrize(
    ("settings", "epochs", "amount"),
    [
        ({"epochs": 10}, 4, 4),
        # Their images have 4/9 of the pixels.
        ({"epochs": 10, "progressive_resizing": 6}, 4, 4 * 4 / 9),
        ({"epochs": 10, "progressive_resizing": 6}, 7, 6 * 4 / 9 + 1),
    ],
)
def test_epochs_of_small_images_are_less_work(
    settings: dict[str, Any], epochs: int, amount: float
) -> None:
    assert work(Train(**settings), epochs) == pytest.approx(amount)
