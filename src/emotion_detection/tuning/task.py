"""What a search is about, and what its trials take and return."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from emotion_detection.console import UserError
from emotion_detection.models.network import forward_gflops
from emotion_detection.settings.params import Network, Params, Train, Tune, seconds
from emotion_detection.settings.sections import flat, updated
from emotion_detection.settings.space import Space
from emotion_detection.training.callbacks import Row
from emotion_detection.tuning.oracle import OUTSIDE

ENDS = COMPLETE, PRUNED, OUT_OF_TIME = "complete", "pruned", "out of time"
"""How a trial may end: after its epochs, behind the others, or at tune.budget."""


@dataclass(frozen=True)
class Outcome:
    """What a trial's training came to: its epochs so far, and the size of its network."""

    rows: Sequence[Row]
    parameters: int


@dataclass(frozen=True)
class Trial:
    """One network to look at, and how to train it.

    `drawn` is what is searched, by dotted name. It trains until the epoch `until`, or where `stop`
    gives a reason to end after its epochs so far, one of ENDS or "", and goes on from the
    checkpoints in `folder`. What it came to is `known` where it was trained before. `standing` says
    how the search stands, for who watches it, and `interrupted` whether the trial ends at once.
    """

    name: str
    number: int
    total: int | None
    network: Network
    training: Train
    drawn: Mapping[str, Any]
    until: int
    seed: int
    folder: Path
    stop: Callable[[Sequence[Row]], str]
    known: Outcome | None = None
    standing: str = ""
    interrupted: Callable[[], bool] = bool


RunTrial = Callable[[Trial], Outcome]

Told = Callable[[Sequence[Row]], bool]
"""Takes the epochs of a trial so far, after each, and returns whether it ends there."""

TrainTrial = Callable[[Trial, Told], Outcome]
"""Trains a trial, in this process or another."""


class SearchError(UserError):
    """An error that ends a search, and not only a trial."""


@dataclass(frozen=True)
class Task:
    """What a search is about: its settings, those of params.yaml, and the images it is for."""

    settings: Tune
    network: Network
    train: Train
    image_shape: tuple[int, int, int]
    classes: int
    seed: int
    space: Space = field(init=False)

    def __post_init__(self) -> None:
        """Read tune.space."""
        sections = {"network": self.network, "train": self.train}
        object.__setattr__(self, "space", Space(self.settings.space, sections))

    @property
    def own(self) -> dict[str, Any]:
        """The settings of params.yaml, by dotted name."""
        return flat(self.network, "network.") | flat(self.train, "train.")

    def drawn(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is searched, by dotted name, for KerasTuner's `values`."""
        if OUTSIDE in values:
            return {name: self.own[name] for name in self.space.entries}
        return self.space.drawn(values)

    def network_of(self, values: Mapping[str, Any]) -> Network:
        """Return the network for KerasTuner's `values`."""
        return updated(self.network, "network", self.drawn(values))

    def training_of(self, values: Mapping[str, Any]) -> Train:
        """Return the training of a trial for KerasTuner's `values`; raises ValidationError."""
        return shortened(updated(self.train, "train", self.drawn(values)), self.settings.epochs)

    def gflops(self, values: Mapping[str, Any]) -> float:
        """Return 1e9 operations of a forward pass of the network for KerasTuner's `values`."""
        return forward_gflops(self.network_of(values), self.image_shape, self.classes)

    def allowed(self, values: Mapping[str, Any]) -> bool:
        """Return whether `values` go together, and tune.max_gflops allows their network."""
        most = self.settings.max_gflops
        try:
            self.training_of(values)
            return most is None or self.gflops(values) <= most
        except ValidationError:
            return False

    def settings_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return all settings of a trial, by dotted name, for KerasTuner's `values`."""
        return self.own | self.drawn(values)

    def key(self, values: Mapping[str, Any], seed: int | None = None) -> str:
        """Return a name that no trial of other settings, or of another seed, has."""
        settings = self.settings_of(values) | {"seed": self.seed if seed is None else seed}
        text = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def budget(self) -> float:
        """The time of the search, in seconds."""
        return math.inf if self.settings.budget is None else seconds(self.settings.budget)

    @property
    def prunes(self) -> bool:
        """Whether trials may end early: hyperband has a rule of its own."""
        return self.settings.pruning and self.settings.oracle != "hyperband"


def shortened(training: Train, epochs: int) -> Train:
    """Return `training` for `epochs` epochs in place of its own, with its other counts of epochs in
    proportion.
    """
    part = epochs / training.epochs
    patiences = ("early_stopping_patience", "reduce_lr_patience")
    counts: dict[str, int | None] = {
        name: min(epochs, round(part * getattr(training, name)))
        for name in ("progressive_resizing", "no_aug_epochs")
    }
    for name in patiences:
        patience = getattr(training, name)
        counts[name] = None if patience is None else max(1, round(part * patience))
    return training.model_copy(update={**counts, "epochs": epochs})


def varying(params: Params) -> list[str]:
    """Return the params, by dotted name, that may change while the records of trials are kept.

    A record has the settings of its trial; which trials there are changes none of them.
    """
    search = ("oracle", "trials", "budget", "pruning", "repeats", "space", "max_gflops")
    settings = flat(params.network, "network.") | flat(params.train, "train.")
    return [*(f"tune.{name}" for name in search), *settings]
