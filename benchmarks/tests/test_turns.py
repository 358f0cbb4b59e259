"""The contenders take their turns; what they measure is for `make bench` to say."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import ours
from benchmarks.material import AUGMENT
from benchmarks.turns import measure
from emotion_detection.data.splits import Split
from emotion_detection.settings.params import Network


@pytest.mark.slow
def test_contenders_take_turns(packed: Path, rows: Split, network: Network) -> None:
    common: dict[str, Any] = {"packed": packed, "rows": rows.train, "batch_size": 36}
    rates = measure(
        {
            "training": partial(ours.train, network=network, **common),
            "training by oneDNN": partial(ours.train_by_onednn, network=network, **common),
            "steps": partial(ours.step, network=network, **common),
            "waiting": partial(ours.waiting, augment=AUGMENT, network=network, **common),
            "feeding": partial(ours.feed, augment=AUGMENT, **common),
        },
        turns=2,
    )
    assert {name: len(rate.each) for name, rate in rates.items()} == dict.fromkeys(rates, 2)
    assert np.min([rate.each for rate in rates.values()]) > 0
    assert max(rates["waiting"].each) < 1


def test_a_contender_that_fails_is_named(packed: Path, rows: Split) -> None:
    feeding = partial(ours.feed, packed=packed / "none", rows=rows.train, batch_size=36)
    with pytest.raises(RuntimeError, match="a set that is gone ended in turn 0"):
        measure({"a set that is gone": partial(feeding, augment=AUGMENT)}, turns=1)
