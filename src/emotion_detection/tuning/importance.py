"""Which of the searched settings the scores of a search depend on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

LEAST = 8
"""Trials of which something can be said."""

TREES, SHUFFLES = 200, 20


def importance(drawn: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> pd.DataFrame:
    """Return the searched settings, the most important first: setting, importance.

    `drawn` has the settings of each trial by dotted name. Importance is the loss of R² of a random
    forest, fitted to the scores, where the values of a setting are shuffled among the trials
    (Breiman 2001, Machine Learning 45), as a share of the sum over all settings. There are no rows
    for fewer than LEAST trials, or where all score alike.
    """
    # It takes most of a second.
    from sklearn.ensemble import RandomForestRegressor

    names = list(dict.fromkeys(name for each in drawn for name in each))
    y = np.asarray(scores, dtype=float)
    if len(y) < LEAST or np.ptp(y) == 0:
        return pd.DataFrame({"setting": [], "importance": []})
    blocks = [np.array([_numbers(each.get(name)) for each in drawn]) for name in names]
    x = np.concatenate(blocks, axis=1)
    forest = RandomForestRegressor(TREES, random_state=0).fit(x, y)
    generator, error = np.random.default_rng(0), np.mean((forest.predict(x) - y) ** 2)
    losses, begin = [], 0
    for block in blocks:
        of_name = slice(begin, begin + block.shape[1])
        begin += block.shape[1]
        worse = []
        for _ in range(SHUFFLES):
            shuffled = x.copy()
            shuffled[:, of_name] = x[generator.permutation(len(y)), of_name]
            worse.append(np.mean((forest.predict(shuffled) - y) ** 2) - error)
        losses.append(max(0.0, float(np.mean(worse))))
    shares = np.array(losses) / (sum(losses) or 1.0)
    table = pd.DataFrame({"setting": names, "importance": shares.round(4)})
    return table.sort_values("importance", ascending=False, kind="stable", ignore_index=True)


def _numbers(value: Any) -> list[float]:
    """Return a value as numbers: of a list its length, mean and last, of a word its code."""
    if isinstance(value, tuple):
        entries = [_numbers(entry)[0] for entry in value] or [0.0]
        return [float(len(value)), float(np.mean(entries)), entries[-1]]
    if isinstance(value, str):
        return [float(int.from_bytes(value.encode()[:4], "big")), 0.0, 0.0]
    return [-1.0 if value is None else float(value), 0.0, 0.0]
