"""The pages of docs/reference that are made from the code: `python -m tests.support.reference`."""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from emotion_detection import cli
from emotion_detection.data import kaggle
from emotion_detection.settings import params
from emotion_detection.settings.params import Params
from emotion_detection.settings.sections import Section

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
NAMES = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    NoneType: "null",
    Any: "what may be drawn",
}
MADE = "<!-- Made by `python -m tests.support.reference`; edit {source} instead. -->"


def main() -> None:
    """Write the pages."""
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8")


# --- params.md


def params_page() -> str:
    """Return the page of every param: its value in params.yaml, what is allowed, what reads it."""
    values = params.load(ROOT / "params.yaml")
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    reads = {name: stage.get("params", []) for name, stage in stages.items()}
    lines = [
        "# Params",
        "",
        MADE.format(source="src/emotion_detection/settings/params.py"),
        "",
        "Every setting of `params.yaml`. `dvc exp run -S train.lr=1e-3` changes one. A wrong name",
        "or value is refused before any work. The stages in the last column run again after a",
        "change, and then those that use their results.",
        "",
        *_section_lines(Params, values, "", reads),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _section_lines(
    section: type[Section], values: Section, name: str, reads: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    settings = {key: getattr(values, key) for key in section.model_fields}
    if name:
        yield from (f"## {name}", "", _cell(section.__doc__ or ""), "")
    yield from ("| param | value | allowed | meaning | stages |", "|---|---|---|---|---|")
    for key, value in settings.items():
        if isinstance(value, Section):
            continue
        field, dotted = section.model_fields[key], f"{name}.{key}" if name else key
        allowed = _allowed(field.annotation, field.metadata)
        readers = ", ".join(stage for stage, listed in reads.items() if _listed(dotted, listed))
        meaning = _cell(field.description or "")
        yield f"| `{dotted}` | {_value(value)} | {allowed} | {meaning} | {readers} |"
    yield ""
    for key, value in settings.items():
        if isinstance(value, Section):
            dotted = f"{name}.{key}" if name else key
            yield from _section_lines(type(value), value, dotted, reads)


def _listed(name: str, listed: Sequence[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in listed)


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict) and value:
        return ", ".join(f"`{key}`" for key in value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _allowed(kind: Any, limits: Sequence[Any] = ()) -> str:
    """Return in words what a field of the type `kind` takes, within the `limits` around it."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _allowed(of[0], [*limits, *_limits(of[1:])])
    if origin in (Union, UnionType):
        return " or ".join(_allowed(each) for each in of)
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in of)
    if origin is tuple:
        least = next((limit.min_length for limit in limits if hasattr(limit, "min_length")), 0)
        how_many = ("one or more" if least else "any number") if of[1] is ... else str(len(of))
        return f"a list of {how_many}: {_allowed(of[0])}"
    if origin is dict:
        return f"names, each with {_allowed(of[1])}"
    return f"{NAMES[kind]}{_range(limits)}"


def _limits(metadata: Sequence[Any]) -> list[Any]:
    """Return the limits among what stands in an Annotated, those in a Field as well."""
    return [
        limit
        for each in metadata
        for limit in (each.metadata if isinstance(each, FieldInfo) else [each])
    ]


def _range(limits: Sequence[Any]) -> str:
    words = {"gt": "more than {}", "ge": "{} or more", "lt": "less than {}", "le": "at most {}"}
    # A limit of 32 bits says nothing to a person.
    found = {
        key: f"{value:g}"
        for limit in limits
        for key in words
        if (value := getattr(limit, key, None)) is not None and value < 2**31
    }
    if "ge" in found and "le" in found:
        return f", {found['ge']} to {found['le']}"
    return "".join(f", {words[key].format(value)}" for key, value in found.items())


# --- commands.md


def commands_page() -> str:
    """Return the page of every command: the program's, the download, and make's."""
    lines = [
        "# Commands",
        "",
        MADE.format(source="the commands' own help, or the Makefile"),
        "",
        "Run them in the project's folder, in its environment (`source .venv/bin/activate`); make",
        "needs no environment and makes it. An error is one line with exit status 1, Ctrl-C gives",
        "130, wrong arguments give 2.",
        "",
        *_command_lines(cli.parser()),
        *_command_lines(kaggle.parser()),
        *_make_lines(),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _command_lines(parser: argparse.ArgumentParser) -> Iterator[str]:
    groups = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    yield from (f"## {parser.prog}", "", parser.description or "", "")
    options = [each for each in parser._actions if each not in groups and each.dest != "help"]
    if options:
        yield from ("| argument | meaning |", "|---|---|")
        for option in options:
            meaning = parser._get_formatter()._expand_help(option) if option.help else ""
            yield f"| `{_argument(option)}` | {_cell(meaning)} |"
        yield ""
    if parser.epilog:
        yield from (parser.epilog, "")
    for group in groups:
        for command in group.choices.values():
            yield from _command_lines(command)


def _argument(option: argparse.Action) -> str:
    if not option.option_strings:
        name = option.metavar or option.dest
        return (
            f"[{name} ...]" if option.nargs == "*" else f"[{name}]" if option.nargs else f"{name}"
        )
    value = option.metavar or (option.dest.upper() if option.nargs != 0 else "")
    if option.choices is not None and not option.metavar:
        value = "{" + ",".join(map(str, option.choices)) + "}"
    return f"{', '.join(option.option_strings)} {value}".strip()


def _make_lines() -> Iterator[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    yield from ("## make", "", "| command | meaning |", "|---|---|")
    for target, meaning in re.findall(r"^([a-z-]+):.*?## *(.+)$", text, re.MULTILINE):
        yield f"| `make {target}` | {_cell(meaning)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


# --- outputs.md and metrics.md, which are written by hand


def outputs() -> list[str]:
    """Return the paths that outputs.md names, with <...> for what varies."""
    return _first_column("outputs.md")


def metrics() -> list[str]:
    """Return the metrics that metrics.md names, with <...> for what varies."""
    return _first_column("metrics.md")


def is_named(name: str, names: Sequence[str]) -> bool:
    """Return whether `name` is one of `names`, in which <...> stands for any text."""
    return any(
        re.fullmatch(".+".join(map(re.escape, re.split("<[^>]*>", each))), name) for each in names
    )


def _first_column(page: str) -> list[str]:
    text = (REFERENCE / page).read_text(encoding="utf-8")
    cells = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    return [
        f"{name}{suffix}"
        for cell in cells
        for name, star in re.findall(r"`([^`]+)`(\*?)", cell)
        for suffix in (("", "_low", "_high") if star else ("",))
    ]


PAGES: Mapping[str, Callable[[], str]] = {
    "params.md": params_page,
    "commands.md": commands_page,
}

if __name__ == "__main__":
    main()
