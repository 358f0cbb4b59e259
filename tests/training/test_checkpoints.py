"""The checkpoints of a training: which epochs are kept, and what becomes of a damaged one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emotion_detection.console import UserError
from emotion_detection.files import write_json
from emotion_detection.training import checkpoints
from emotion_detection.training.callbacks import best_epoch
from emotion_detection.training.checkpoints import Checkpoints
from tests.support.trainer import SETTINGS, ProcessEndedError, Trainer


def test_the_weights_of_the_best_epoch_are_kept(trainer: Trainer, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 5})
    history = trainer(settings, log_epoch=trainer.unlearn_after(3), checkpoints=tmp_path)

    best = best_epoch(history)
    assert best["epoch"] <= 3
    assert best["val_accuracy"] > history["val_accuracy"].iloc[-1]
    loss, accuracy = trainer.validate()
    assert accuracy == pytest.approx(best["val_accuracy"])
    assert loss == pytest.approx(best["val_loss"], rel=1e-4)
    # The last is there to go on from, and no other but the best.
    folders = sorted(folder.name for folder in tmp_path.iterdir())
    assert folders == [f"epoch_{best['epoch']:05.0f}", "epoch_00005"]


def test_a_damaged_checkpoint_is_named_with_the_remedy(trainer: Trainer, tmp_path: Path) -> None:
    trainer(checkpoints=tmp_path)
    newest = max(tmp_path.iterdir())
    weights, history = newest / "model.weights.h5", newest / "history.json"
    sound = weights.read_bytes(), history.read_bytes()
    message = r"epoch_00003: damaged checkpoint .*remove .* train anew"
    for damaged, data in (
        (weights, sound[0][:1000]),
        (history, sound[1][:100]),
        (history, json.dumps({"rows": []}).encode()),
    ):
        weights.write_bytes(sound[0])
        history.write_bytes(sound[1])
        damaged.write_bytes(data)
        with pytest.raises(UserError, match=message):
            trainer(checkpoints=tmp_path)


def test_an_epoch_that_was_being_saved_when_its_process_ended_does_not_count(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed_in_the_second(path: Path, value: Any) -> None:
        if len(value["rows"]) == 2:
            raise ProcessEndedError
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_json", killed_in_the_second)
        with pytest.raises(ProcessEndedError):
            trainer(checkpoints=tmp_path)
    seen: list[int] = []
    history = trainer(checkpoints=tmp_path, log_epoch=lambda figures, epoch: seen.append(epoch))
    assert seen == [2, 3]
    assert history["epoch"].tolist() == [1, 2, 3]


def test_a_folder_without_checkpoints_leaves_a_network_as_it_is(
    trainer: Trainer, tmp_path: Path
) -> None:
    nothing, model = Checkpoints(tmp_path / "none"), trainer.fresh()
    before = model.get_weights()
    assert not nothing.exist()
    assert nothing.resume(model) == ([], False)
    for mine, its in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, its)
