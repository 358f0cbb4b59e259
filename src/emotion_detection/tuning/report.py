"""What a search came to: in words, tables, figures and the tags of its MLflow run."""

from typing import Any

from emotion_detection.data.splits import Split
from emotion_detection.figures import training as figures
from emotion_detection.params import Tune
from emotion_detection.tracking.tags import BEST_TRIAL, WORKERS
from emotion_detection.tuning.search import Found, shown
from emotion_detection.tuning.tuner import ENDS, PRUNED

NOTE = (
    "Its trials are the child runs: select them to compare. What was drawn is in their parameters."
)


def description(settings: Tune, rows: Split) -> str:
    """Return a search in words, for the log and MLflow."""
    limits = [f"{settings.trials} trials"] if settings.trials is not None else []
    limits += [settings.budget] if settings.budget is not None else []
    return (
        f"A {settings.oracle} search of {' or '.join(limits)}, each of at most {settings.epochs} "
        f"epochs on {len(rows.train):,} train and {len(rows.validation):,} validation images"
    )


def summary(found: Found) -> str:
    """Return what a search came to, in words."""
    table = found.trials.set_index("trial")["val_accuracy"]
    chosen = _percent(table[found.trial])
    if not found.drawn:
        best = f"best of {len(table)}: {_percent(table.max())}; params.yaml: {chosen}"
        return f"nothing found is better than params.yaml ({best}{_again(found, 1)})"
    settings = ", ".join(f"{name} {shown(value)}" for name, value in found.drawn.items())
    return (
        f"best of {len(table)} trials: trial {found.trial:02d}, validation accuracy {chosen}"
        f"{_again(found, found.trial)}, with {settings}"
    )


def _again(found: Found, number: int) -> str:
    """Return what trial `number` came to with other seeds, and how much less that is."""
    again = found.repeats.loc[found.repeats["trial"] == number, "val_accuracy"]
    if again.empty:
        return ""
    spread = f" +- {100 * again.std():.1f}" if len(again) > 1 else ""
    lost = 100 * (optimism(found) or 0.0)
    return (
        f", with other seeds {100 * again.mean():.1f}{spread} %; the search's scores of its best "
        f"are {lost:.1f} points too high"
    )


def optimism(found: Found) -> float | None:
    """Return how much higher the finalists' scores in the search are than with other seeds.

    That is the mean over those that the search chose; None where there are no repeats.
    """
    chosen = found.repeats[found.repeats["trial"] != 1]
    if chosen.empty:
        return None
    first = found.trials.set_index("trial")["val_accuracy"]
    means = chosen.groupby("trial")["val_accuracy"].mean()
    return float((first[means.index] - means).mean())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def report(found: Found, settings: Tune) -> dict[str, Any]:
    """Return what `Stage.write` writes of a search."""
    table, lost = found.trials, optimism(found)
    done = table.loc[table["status"] == "COMPLETED"]
    return {
        "metrics": {
            "tune/trials": len(table),
            "tune/failed": len(table) - len(done),
            "tune/pruned": int((table["end"] == ENDS[PRUNED]).sum()),
            "tune/best_val_accuracy": float(done["val_accuracy"].max()),
            **({} if lost is None else {"tune/optimism": lost}),
        },
        "tables": {"trials": table, "repeats": found.repeats},
        "figures": {"trials": figures.trials(table)},
        # Not in DVC's tables, where it would seem a change between any two experiments.
        "more_metrics": {
            "tune/seconds": float(table["seconds"].sum() + found.repeats["seconds"].sum())
        },
        "tags": {BEST_TRIAL: f"{found.trial:02d}", WORKERS: str(settings.workers)},
        "headline": summary(found),
    }
