"""What a section of params.yaml is, and how a wrong value in one is told."""

import difflib
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from emotion_detection.console import UserError, printable


class Section(BaseModel):
    """A section of params.yaml."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


def flat(section: Section, prefix: str = "") -> dict[str, Any]:
    """Return the values of `section` by dotted name: {"train.augment.rotation": 10.0, ...}."""
    values: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value
    return values


def frozen(value: Any) -> Any:
    """Return a value that was read from YAML or JSON as a section has it: lists are tuples."""
    return tuple(value) if isinstance(value, list) else value


def changed(section: Section) -> dict[str, Any]:
    """Return the values of `section` that differ from their defaults, by dotted name."""
    defaults = flat(type(section)())
    return {name: value for name, value in flat(section).items() if value != defaults[name]}


SectionT = TypeVar("SectionT", bound=Section)


def updated(section: SectionT, prefix: str, settings: Mapping[str, Any]) -> SectionT:
    """Return `section` with those of `settings` whose dotted name begins with `prefix` and a dot.

    Raises:
        ValidationError: if they do not go together.

    """
    values = section.model_dump()
    for name, value in settings.items():
        first, *path, last = name.split(".")
        if first == prefix:
            inner = values
            for part in path:
                inner = inner[part]
            inner[last] = value
    return type(section).model_validate(values)


def validate(section: type[SectionT], values: Any, path: Path) -> SectionT:
    """Return `values`, which were read from `path`, as a `section`.

    Raises:
        UserError: with a line for each wrong key: its name, its value and what is allowed.

    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(f"{path}: {line}" for line in lines(error, section))) from None


def lines(error: ValidationError, section: type[Section]) -> list[str]:
    """Return a line for each wrong key of a `section`: its name, its value and what is allowed."""
    details = error.errors(include_url=False)
    return [printable(_describe(detail, section)) for detail in details]


_ALLOWED = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text; put it in quotes",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "is no path, since it holds a NUL",
    "tuple_type": "must be a list in [ ]",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "too_short": "has {actual_length} entries and needs at least {min_length}",
    "too_long": "has {actual_length} entries and may have {max_length}",
}


def _describe(detail: Any, root: type[Section]) -> str:
    *parents, last = detail["loc"] or ("",)
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        name, allowed = str(last), _keys_of(root, parents)
        close = difflib.get_close_matches(name, allowed, n=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(allowed)}"
        return f"{key}: unknown key; {hint}"
    if detail["type"] == "missing":
        return f"{key}: missing"
    if detail["type"] == "model_type":
        message = f"must be a section of {', '.join(_keys_of(root, detail['loc']))}"
    elif detail["type"] in _ALLOWED:
        message = _ALLOWED[detail["type"]].format(**detail.get("ctx", {}))
    else:
        message = detail["msg"].removeprefix("Value error, ")
    given = detail["input"]
    # JSON would show a date in quotes, and the quotes are what it needs.
    if not isinstance(given, date):
        given = json.dumps(given, ensure_ascii=False, default=str)
    value = "" if isinstance(detail["input"], dict) else f" = {given}"
    return f"{key}{value}: {message}".lstrip(" :")


def _keys_of(root: type[Section], section: Sequence[int | str]) -> list[str]:
    model: Any = root
    for part in section:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
