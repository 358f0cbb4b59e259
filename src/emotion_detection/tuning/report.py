"""What a search came to: in words, tables, figures and the tags of its MLflow run."""

import json
from pathlib import Path
from typing import Any

from emotion_detection.data.splits import Split
from emotion_detection.figures import training as figures
from emotion_detection.settings.params import Tune
from emotion_detection.tracking.tags import BEST_TRIAL, WORKERS
from emotion_detection.tuning.search import Found, shown
from emotion_detection.tuning.task import COMPLETE, PRUNED

BEST = 5
"""Trials in the report's table."""

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
    too_high = f"; the best scores of the search are {lost:.1f} points too high"
    return f", with other seeds {100 * again.mean():.1f}{spread} %{too_high if lost > 0 else ''}"


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
            "tune/pruned": int((table["end"] == PRUNED).sum()),
            "tune/best_val_accuracy": float(done["val_accuracy"].max()),
            **({} if lost is None else {"tune/optimism": lost}),
        },
        "tables": {
            "trials": table,
            "repeats": found.repeats,
            "importance": found.importance,
        },
        "figures": {"trials": figures.trials(table)},
        # Not in DVC's tables, where it would seem a change between any two experiments.
        "more_metrics": {
            "tune/seconds": float(table["seconds"].sum() + found.repeats["seconds"].sum())
        },
        "tags": {BEST_TRIAL: f"{found.trial:02d}", WORKERS: str(settings.workers)},
        "headline": summary(found),
        "more_files": lambda folder: _write_page(found, folder),
    }


def _write_page(found: Found, folder: Path) -> None:
    (folder / "report.md").write_text(page(found), encoding="utf-8")


def page(found: Found) -> str:
    """Return the report of a search: the best trials, what mattered, and how to use the result."""
    first, *_ = found.trials.to_dict("records")
    searched = list(found.importance["setting"]) or [name for name in first if "." in str(name)]
    done = found.trials[found.trials["end"] == COMPLETE]
    best = done.sort_values("val_accuracy", ascending=False, kind="stable").head(BEST)
    lines = [
        *("# Search", "", f"{summary(found)[0].upper()}{summary(found)[1:]}.", ""),
        *("## The best trials", "", "![Trials](trials.png)", ""),
        *("| trial | validation accuracy | GFLOP per image | differs from params.yaml in |",),
        "|---:|---:|---:|---|",
    ]
    for row in best.to_dict("records"):
        differs = ", ".join(f"{name} {row[name]}" for name in searched if row[name] != first[name])
        lines.append(
            f"| {row['trial']} | {_percent(row['val_accuracy'])} | {row['gflops']:.3g} | "
            f"{differs or 'nothing'} |"
        )
    if not found.importance.empty:
        lines += ["", "## What mattered", "", _caveat(len(done)), "", "| setting | importance |"]
        lines += ["|---|---:|"]
        lines += [
            f"| {row['setting']} | {100 * row['importance']:.0f} % |"
            for row in found.importance.to_dict("records")
        ]
    return "\n".join([*lines, "", "## Use the result", "", *_use(found)]) + "\n"


def _caveat(trials: int) -> str:
    return (
        f"Of {trials} trials: how much worse a random forest tells their scores apart where the "
        "values of a setting are shuffled. A few dozen trials say little; what comes out on top is "
        "worth a search of its own."
    )


def _use(found: Found) -> list[str]:
    if not found.drawn:
        return ["train uses the settings of params.yaml, and so does a run without a search."]
    options = " ".join(f"-S {name}={_written(value)}" for name, value in found.drawn.items())
    return [
        "train uses it by itself. This command writes it into params.yaml, and trains without a",
        "search:",
        "",
        "```",
        f"dvc exp run -S tune.trials=0 {options}",
        "```",
    ]


def _written(value: Any) -> str:
    """Return `value` as DVC's -S takes it."""
    if isinstance(value, tuple):
        return f"'[{','.join(map(str, value))}]'"
    return value if isinstance(value, str) else json.dumps(value)
