"""What tune chose, in a file for the stages after it, and what they make of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from emotion_detection import paths
from emotion_detection.console import UserError, log
from emotion_detection.files import atomic, write_json
from emotion_detection.settings.params import Network, Params, Train
from emotion_detection.settings.sections import flat, frozen, lines, updated


def searched(settings: Params) -> Params:
    """Return `settings` as a search depends on them: a trial trains one network."""
    return settings.model_copy(update={"train": settings.train.model_copy(update={"seeds": 1})})


def save_hyperparameters(settings: Params, drawn: Mapping[str, Any] | None, path: Path) -> None:
    """Write what the search chose, by dotted name; {} where that is what params.yaml has.

    Beside it is what `settings` were then, those of train only where there was a search: None says
    that there was none, and a training does not depend on what its settings were before.
    """
    train = {} if drawn is None else flat(settings.train, "train.")
    train.pop("train.seeds", None)
    write_json(
        path,
        {
            "drawn": dict(drawn or {}),
            "params": flat(settings.network, "network.") | train,
        },
    )


def applied(settings: Params, path: Path, stage: str | None = None) -> Params:
    """Return `settings` with the network and the training that tune chose.

    A setting that was changed in params.yaml since the search has its value there. What comes from
    the search, and what was changed since, is logged for `stage`, if there is one.

    Raises:
        UserError: if the file is missing, is damaged, or does not go with `settings`.

    """
    drawn, before = _read(path)
    now = flat(settings.network, "network.") | flat(settings.train, "train.")
    network = {name: value for name, value in before.items() if name.startswith("network.")}
    changed = {
        name: (value, now[name])
        for name, value in before.items()
        if name.startswith("train.") and now[name] != value
    }
    kept = {name: value for name, value in drawn.items() if name not in changed}
    try:
        result = settings.model_copy(
            update={
                "network": updated(settings.network, "network", network | kept),
                "train": updated(settings.train, "train", kept),
            }
        )
    except ValidationError as error:
        section = Network if error.title == Network.__name__ else Train
        raise UserError(
            f"{path}: {'; '.join(lines(error, section))}; run `dvc repro tune`"
        ) from None
    if stage is not None:
        for name, value in kept.items():
            if value != now[name]:
                log.info("%s: %s = %s, as the search drew it", stage, name, _shown(value))
        for name, (old, new) in changed.items():
            log.info(
                "%s: %s = %s, as params.yaml was changed to since the search, which %s %s",
                *(stage, name, _shown(new)),
                *(("drew", _shown(drawn[name])) if name in drawn else ("had", _shown(old))),
            )
    return result


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what was drawn, and what params.yaml had, by dotted name and as params have it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        drawn, before = ({name: frozen(v) for name, v in values[key].items()} for key in KEYS)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `dvc repro tune`") from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: holds no {' and '.join(KEYS)}; run `dvc repro tune`") from None
    names = flat(Network(), "network.").keys()
    known = names | flat(Train(), "train.").keys()
    if absent := [name for name in names if name not in before]:
        raise UserError(f"{path}: {', '.join(absent)}: missing; run `dvc repro tune`")
    if unknown := [name for name in (*drawn, *before) if name not in known]:
        raise UserError(f"{path}: {unknown[0]}: unknown key; run `dvc repro tune`")
    return drawn, before


KEYS = ("drawn", "params")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def write_empty_report(folder: Path) -> None:
    """Write the report of a search that looked at nothing."""
    with atomic(folder) as report:
        report.mkdir()
        write_json(report / paths.METRICS, {"tune/trials": 0})
        # `dvc plots` complains of a table that is not there.
        (report / "trials.csv").write_text("trial,val_accuracy\n", encoding="utf-8")
