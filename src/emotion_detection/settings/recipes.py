"""Recipes: files with the settings in which an experiment differs from the committed params.yaml.

A recipe holds a part of params.yaml under a comment whose first line says what it reaches. Every
setting that it does not name has the value that Git has committed, but `ingest.source`, which a
person sets once for their own images.
"""

import contextlib
import difflib
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from emotion_detection import files
from emotion_detection.console import UserError, call, log
from emotion_detection.files import atomic
from emotion_detection.settings import params, sections
from emotion_detection.settings.params import PARAMS

FOLDER = Path("recipes")
FREE = (
    *("seed", "precision", "deterministic", "sample", "ingest.source", "tune.workers"),
    *("evaluate", "export"),
)
"""Settings and sections that may differ in a run of a recipe: what it runs on, and what is done
with its model."""

SPACE = "tune.space"
"""A setting whose value is a mapping; one recipe's is not mixed with another's."""

ROOT_HINT = "run this in the project's root folder"


class Change(NamedTuple):
    """A setting, by its dotted name, and its values before and after."""

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        """Return it as a line: `train.epochs: 20 -> 12`."""
        return f"{self.name}: {_shown(self.before)} -> {_shown(self.after)}"


def heads() -> dict[str, str]:
    """Return the recipes by name, each with the first line of its head comment.

    Raises:
        UserError: if there is no folder of recipes here.

    """
    if not FOLDER.is_dir():
        raise UserError(f"{FOLDER}: there is no such folder here; {ROOT_HINT}")
    found = {}
    for path in sorted(FOLDER.glob("*.yaml"), key=lambda path: path.stem):
        first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        found[path.stem] = first.lstrip("# ").rstrip() if first.startswith("#") else ""
    return found


def changes(name: str) -> list[Change]:
    """Return what the recipe `name` changes in params.yaml as it is now.

    Raises:
        UserError: if there is no such recipe or no params.yaml here, or if one of them has a wrong
            key or value.

    """
    names = list(heads())
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names) or 'none'}"
        raise UserError(f"{name}: there is no {FOLDER / name}.yaml; {hint}")
    current = _current()
    base = current
    if (text := _committed()) is None:
        log.info(
            "%s: Git has no committed version of it, so that what %s does not name stays as it is",
            PARAMS,
            name,
        )
    else:
        base = _restored(current, files.parse_yaml(text, PARAMS))
        if "source" in (own := _section(current, "ingest")):
            base = _overlaid(base, {"ingest": {"source": own["source"]}})
    params.check(base, PARAMS)
    recipe = FOLDER / f"{name}.yaml"
    wanted = _overlaid(base, files.read_yaml(recipe))
    params.check(wanted, recipe)
    return _changes(current, wanted)


def held() -> str | None:
    """Return the name of the recipe whose settings params.yaml has, None if there is none.

    It has those of a recipe if each setting is as the recipe or else Git's last commit has it, but
    for those in `FREE`. Of several recipes it is the one that names most.
    """
    try:
        current = files.read_yaml(PARAMS)
        names = list(heads())
    except UserError:
        return None
    base, found = current, []
    with contextlib.suppress(UserError):
        base = _restored(current, files.parse_yaml(_committed() or "", PARAMS))
    for name in names:
        recipe = FOLDER / f"{name}.yaml"
        with contextlib.suppress(UserError):
            named = files.read_yaml(recipe)
            wanted = params.check(_overlaid(base, named), recipe)
            if _fixed(params.check(current, PARAMS)) == _fixed(wanted):
                found.append((len(list(_leaves(named))), name))
    return max(found)[1] if found else None


def _fixed(values: params.Params) -> dict[str, Any]:
    """Return the settings, by dotted name, that make a recipe what it is."""
    return {
        name: value
        for name, value in sections.flat(values).items()
        if not any(name == free or name.startswith(f"{free}.") for free in FREE)
    }


def write(changed: Sequence[Change]) -> None:
    """Write the values after `changed` into params.yaml, which keeps its comments and layout."""
    _write(_edited(PARAMS.read_text(encoding="utf-8"), changed))


def reset() -> list[Change]:
    """Write the committed params.yaml again, but for `ingest.source`, and return what changed.

    Raises:
        UserError: if there is no committed one.

    """
    text = _committed()
    if text is None:
        raise UserError(
            f"--reset: Git has no committed {PARAMS} here to go back to; {ROOT_HINT}, in a clone "
            "or after `git init` and a commit"
        )
    committed = files.parse_yaml(text, PARAMS)
    try:
        current = files.read_yaml(PARAMS)
    except UserError as error:
        log.warning("%s", error)
        current = {}
    source = _section(current, "ingest").get("source")
    if isinstance(source, str) and source != committed["ingest"]["source"]:
        stays = Change("ingest.source", committed["ingest"]["source"], source)
        text = _edited(text, [stays])
        committed["ingest"]["source"] = source
        log.info("ingest.source stays %s", source)
    _write(text)
    return _changes(current, committed) if current else []


def command() -> str:
    """Return the command that runs with the values of params.yaml where Git's last commit lies."""
    text, name = _committed(), held()
    if text is None:
        return "dvc repro"
    current = files.read_yaml(PARAMS)
    base, parts = _restored(current, files.parse_yaml(text, PARAMS)), ["dvc", "exp", "run"]
    if name is not None:
        base = _overlaid(base, files.read_yaml(FOLDER / f"{name}.yaml"))
        parts = ["emotion-detection", "recipe", name, "--run"]
    changed = _changes(base, current)
    if name is None and not changed:
        return "dvc repro"
    options = options_of(changed, _unquoted)
    return shlex.join([*parts, *(part for option in options for part in ("-S", option))])


def _unquoted(value: Any) -> str:
    """Return `value` as `override` does, without the quotes that a path or a word needs not."""
    word = isinstance(value, str) and re.fullmatch(r"[a-zA-Z/~.][\w./-]*", value)
    keywords = ("true", "false", "null", "inf", "nan")
    return value if word and value.casefold() not in keywords else override(value)


def run(name: str, changed: Sequence[Change], options: Sequence[str]) -> int:
    """Run DVC's `exp run` with the values after `changed`, and return its exit status.

    `options` are passed on, and win where they set the same. The values are DVC's to write: into
    params.yaml, but not for an experiment that runs elsewhere, as with `--queue`.
    """
    # A name of its own each time: DVC refuses a second experiment of the same name.
    experiment = f"{name}-{datetime.now():%m%d-%H%M%S}"
    settings = options_of(changed)
    return call(
        [
            *(sys.executable, "-m", "dvc", "exp", "run", "--name", experiment),
            *(part for setting in settings for part in ("--set-param", setting)),
            *options,
        ]
    )


def _current() -> dict[str, Any]:
    if not PARAMS.exists():
        raise UserError(f"{PARAMS}: there is no such file here; {ROOT_HINT}")
    try:
        return files.read_yaml(PARAMS)
    except UserError as error:
        raise UserError(f"{error}; --reset brings the committed one back") from None


def _committed() -> str | None:
    """Return the text of params.yaml in Git's last commit, None where there is none."""
    try:
        shown = subprocess.run(
            ["git", "show", f"HEAD:./{PARAMS}"], capture_output=True, check=False
        )
    except FileNotFoundError:
        return None
    return None if shown.returncode else shown.stdout.decode("utf-8", errors="replace")


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def _restored(current: Any, committed: Any, prefix: str = "") -> Any:
    """Return `current` with the committed values; a setting that is not committed keeps its own."""
    if not (_is_section(current, prefix) and isinstance(committed, dict)):
        return committed
    return {
        key: _restored(value, committed[key], f"{prefix}{key}.") if key in committed else value
        for key, value in current.items()
    }


def _is_section(value: Any, prefix: str) -> bool:
    """Return whether `value` holds settings whose dotted names begin with `prefix`."""
    return isinstance(value, dict) and prefix != f"{SPACE}."


def _overlaid(below: dict[str, Any], above: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `below` with the values of `above` in place of its own, section by section."""
    result = dict(below)
    for key, value in above.items():
        under = below.get(key)
        if isinstance(under, dict) and _is_section(value, f"{prefix}{key}."):
            result[key] = _overlaid(under, value, f"{prefix}{key}.")
        else:
            result[key] = value
    return result


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if _is_section(value, f"{prefix}{key}."):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    old = dict(_leaves(before))
    return [
        Change(name, old.get(name), value)
        for name, value in _leaves(after)
        if name not in old or old[name] != value
    ]


def _edited(text: str, changed: Sequence[Change]) -> str:
    """Return the YAML `text` with the values after `changed`, laid out as DVC does it."""
    yaml = YAML()
    yaml.default_flow_style = False
    document = yaml.load(text)
    for change in changed:
        section = document
        *parents, last = change.name.split(".")
        for parent in parents:
            if not isinstance(section.get(parent), dict):
                section[parent] = {}
            section = section[parent]
        _put(section, last, change.after)
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _put(section: dict[str, Any], name: str, value: Any) -> None:
    below = section.get(name)
    if not (isinstance(below, dict) and isinstance(value, dict)):
        section[name] = value
        return
    for key, each in value.items():
        _put(below, key, each)
    for key in below.keys() - value.keys():
        del below[key]


def _write(text: str) -> None:
    with atomic(PARAMS) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def override(value: Any) -> str:
    """Return `value` in Hydra's grammar, which DVC reads settings in."""
    if isinstance(value, list):
        return f"[{','.join(map(override, value))}]"
    if isinstance(value, dict):
        # It takes no quotes around a key.
        return f"{{{','.join(f'{key}:{override(each)}' for key, each in value.items())}}}"
    if isinstance(value, str):
        # A backslash means itself there, but before a quote, where two mean one.
        quoted = re.sub(r"(\\*)'", r"\1\1\\'", value)
        return "'" + re.sub(r"(\\+)$", r"\1\1", quoted) + "'"
    return json.dumps(value)


def options_of(changed: Sequence[Change], written: Callable[[Any], str] = override) -> list[str]:
    """Return what makes the changes with DVC's `-S`, an option each or, for tune.space, two.

    Hydra would mix a mapping with the one that is there.
    """
    settings = {change.name: f"{change.name}={written(change.after)}" for change in changed}
    return [
        option
        for name, setting in settings.items()
        for option in ([f"~{name}", f"+{setting}"] if name == SPACE else [setting])
    ]
