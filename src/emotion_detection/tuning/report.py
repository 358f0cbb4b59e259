"""What a search came to: in words, tables, figures and the tags of its MLflow run."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from emotion_detection.data.splits import Split
from emotion_detection.figures import training as figures
from emotion_detection.params import Tune
from emotion_detection.tracking.tags import BEST_TRIAL, WORKERS
from emotion_detection.tuning.search import shown

NOTE = (
    "Its trials are the child runs: select them to compare. What was drawn is in their parameters."
)


def description(settings: Tune, rows: Split) -> str:
    """Return a search in words, for the log and MLflow."""
    return (
        f"A {settings.oracle} search of {settings.trials} trials of at most {settings.epochs} "
        f"epochs on {len(rows.train):,} train and {len(rows.validation):,} validation images"
    )


def summary(table: pd.DataFrame, drawn: Mapping[str, Any]) -> str:
    """Return what a search came to, in words; `drawn` is what the best trial drew."""
    best = table.loc[table["val_accuracy"].idxmax()]
    accuracy = f"validation accuracy {100 * best['val_accuracy']:.1f} %"
    if not drawn:
        return f"nothing of {len(table)} trials is better than params.yaml, {accuracy}"
    settings = ", ".join(f"{name} {shown(value)}" for name, value in drawn.items())
    return f"best of {len(table)} trials: trial {best['trial']:02d}, {accuracy}, with {settings}"


def report(table: pd.DataFrame, drawn: Mapping[str, Any], settings: Tune) -> dict[str, Any]:
    """Return what `Stage.write` writes of a search with the trials `table`."""
    best = table.loc[table["val_accuracy"].idxmax()]
    return {
        "metrics": {
            "tune/trials": len(table),
            "tune/failed": int((table["status"] != "COMPLETED").sum()),
            "tune/best_val_accuracy": float(best["val_accuracy"]),
        },
        "tables": {"trials": table},
        "figures": {"trials": figures.trials(table)},
        # Not in DVC's tables, where it would seem a change between any two experiments.
        "more_metrics": {"tune/seconds": float(table["seconds"].sum())},
        "tags": {BEST_TRIAL: f"{best['trial']:02d}", WORKERS: str(settings.workers)},
        "headline": summary(table, drawn),
    }
