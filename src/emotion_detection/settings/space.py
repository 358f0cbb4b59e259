"""What a search draws: tune.space, checked, and as KerasTuner's hyperparameters and back again.

KerasTuner has a value of a list by its place in the list, and a list of drawn length as its length
and its entries: "network.filters.length", "network.filters.1" and so on.
"""

import contextlib
import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from emotion_detection.settings.sections import Section, flat, frozen, lines, updated

if TYPE_CHECKING:  # It takes TensorFlow along, which a stage without a search does not need.
    import keras_tuner

FORMS = (
    "must be a list of values, or one of {values: [...]}, {min: ..., max: ...} and {length: [...], "
    "each: [...]}"
)
FIXED = {
    "train.epochs": "tune.epochs says how long a trial trains",
    "train.seeds": "tune.repeats says how many seeds compare the best trials",
    "train.init_from": "name one model there",
}
"""Params that are not drawn, and why."""

PER_BLOCK = ("network.filters", "network.kernel_sizes")
"""Lists that have to be of the same length."""

MOST_STEPS = 1000
"""Values that a range in steps may have."""

DIGITS = 4
"""Significant, of a number drawn from a range: more say nothing, and the protocol loses some."""


@dataclass(frozen=True)
class Choices:
    """One of some values."""

    values: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included."""

    low: float
    high: float
    log: bool
    whole: bool
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Lists:
    """A list whose entries are drawn one by one.

    Its length is one of `lengths`, or that of the list `like`.
    """

    each: Choices | Range
    lengths: tuple[int, ...] = ()
    like: str = ""
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


Entry = Choices | Range | Lists
Check = Callable[[Any], Any]
"""Returns a value as the param has it, or raises ValueError."""


class Space:
    """What may be drawn for the params of `sections`, {"network": ..., "train": ...}.

    A param that is not drawn, or not under this condition, has its value there.
    """

    def __init__(self, written: Mapping[str, Any], sections: Mapping[str, Section]) -> None:
        """Take tune.space as it is written; raises ValueError as `parse` does."""
        self.entries = parse(written, sections)
        self._base = _flat(sections)

    def declare(self) -> "keras_tuner.HyperParameters":
        """Return the space as KerasTuner's."""
        import keras_tuner

        hp = keras_tuner.HyperParameters()
        for name, entry in self.entries.items():
            with contextlib.ExitStack() as scopes:
                for parent, wanted in entry.when.items():
                    places = [self._choices(parent).index(value) for value in wanted]
                    scopes.enter_context(hp.conditional_scope(parent, places))
                self._declare(hp, name, entry)
        return hp

    def _declare(self, hp: "keras_tuner.HyperParameters", name: str, entry: Entry) -> None:
        if isinstance(entry, Choices):
            hp.Choice(name, list(range(len(entry.values))))
        elif isinstance(entry, Range):
            declare = hp.Int if entry.whole else hp.Float
            declare(name, entry.low, entry.high, sampling="log" if entry.log else "linear")
        else:
            if entry.lengths:
                hp.Choice(f"{name}.length", list(range(len(entry.lengths))))
            parent, lengths = self._length_of(name)
            for number in range(1, max(lengths) + 1):
                places = [place for place, length in enumerate(lengths) if length >= number]
                scope = hp.conditional_scope(parent, places) if parent else contextlib.nullcontext()
                with scope:
                    self._declare(hp, f"{name}.{number}", entry.each)

    def _choices(self, name: str) -> tuple[Any, ...]:
        entry = self.entries[name]
        assert isinstance(entry, Choices)
        return entry.values

    def _length_of(self, name: str) -> tuple[str, list[int]]:
        """Return which of KerasTuner's says how long the list `name` is, and what each place means.

        The name is "" where the length is not drawn.
        """
        entry = self.entries.get(name)
        if isinstance(entry, Choices):
            return name, [len(value) for value in entry.values]
        if isinstance(entry, Lists):
            return (
                self._length_of(entry.like) if entry.like else (f"{name}.length", [*entry.lengths])
            )
        return "", [len(self._base[name])]

    def drawn(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what KerasTuner's `values` draw, by dotted name, without what is not under their
        conditions.
        """
        found: dict[str, Any] = {}
        for name, entry in self.entries.items():
            if not all(found.get(parent) in wanted for parent, wanted in entry.when.items()):
                continue
            if isinstance(entry, Lists):
                parent, lengths = self._length_of(name)
                if parent and parent not in values:
                    continue
                length = lengths[values[parent]] if parent else lengths[0]
                found[name] = tuple(
                    _drawn(entry.each, values[f"{name}.{number}"])
                    for number in range(1, length + 1)
                )
            else:
                found[name] = _drawn(entry, values[name])
        return found

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return all params of the sections, by dotted name, with what `values` draw."""
        return self._base | self.drawn(values)

    def values_of(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return KerasTuner's values for `settings`, all params of the sections by dotted name.

        None says that the space has no such settings.
        """
        values: dict[str, Any] = {}
        try:
            for name, entry in self.entries.items():
                if not all(
                    parent in values and settings[parent] in wanted
                    for parent, wanted in entry.when.items()
                ):
                    continue
                value = settings[name]
                if isinstance(entry, Lists):
                    if entry.lengths:
                        values[f"{name}.length"] = entry.lengths.index(len(value))
                    for number, of_list in enumerate(value, 1):
                        values[f"{name}.{number}"] = _place(entry.each, of_list)
                else:
                    values[name] = _place(entry, value)
            same = self.settings(values) == dict(settings)
        except (ValueError, KeyError):
            return None
        return values if same else None


def _drawn(entry: Choices | Range, value: Any) -> Any:
    if isinstance(entry, Choices):
        return entry.values[value]
    return int(value) if entry.whole else _short(value)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _place(entry: Choices | Range, value: Any) -> Any:
    """Return KerasTuner's value; raises ValueError where `entry` does not have it."""
    if isinstance(entry, Choices):
        return entry.values.index(value)
    if not entry.low <= value <= entry.high:
        raise ValueError
    return value


def _flat(sections: Mapping[str, Section]) -> dict[str, Any]:
    return {
        key: value
        for name, section in sections.items()
        for key, value in flat(section, f"{name}.").items()
    }


# Reading it


def parse(written: Mapping[str, Any], sections: Mapping[str, Section]) -> dict[str, Entry]:
    """Return the entries of tune.space by name, each after those that it depends on.

    Every value that may be drawn is one that the param may have.

    Raises:
        ValueError: with all that is wrong, by name.

    """
    base = _flat(sections)
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    for name, text in written.items():
        try:
            _check_name(name, base)
            entries[name] = _entry(name, text, sections)
        except ValueError as error:
            problems.append(f"tune.space: {error}")
    if not problems:
        try:
            ordered = _in_order(_conditioned(entries, written))
            _check_lengths(ordered, base)
            return ordered
        except ValueError as error:
            problems.append(f"tune.space: {error}")
    raise ValueError("; ".join(problems))


def _check_name(name: str, base: Mapping[str, Any]) -> None:
    if name in FIXED:
        raise ValueError(f"{name}: is not drawn; {FIXED[name]}")
    if name not in base:
        inside = [each for each in base if each.startswith(f"{name}.")]
        close = inside or difflib.get_close_matches(name, base, n=1) or ["network.* or train.*"]
        raise ValueError(f"{name}: is no param of network or train; did you mean {close[0]}?")


def _entry(name: str, text: Any, sections: Mapping[str, Section]) -> Entry:
    form = text if isinstance(text, dict) else {"values": text}
    keys = form.keys() - {"when"}

    def check(value: Any) -> Any:
        return _checked(name, value, sections)

    if keys == {"length", "each"}:
        return _lists_of(name, form, check, _flat(sections))
    if (entry := _simple(name, {key: form[key] for key in keys}, check)) is None:
        raise ValueError(f"{name} = {_shown(text)}: {FORMS}")
    return entry


def _simple(name: str, form: Mapping[str, Any], check: Check) -> Choices | Range | None:
    """Return the values or the range of `form`, None where it is neither."""
    if form.keys() == {"values"} and isinstance(form["values"], list):
        return _choices_of(name, form["values"], check)
    if {"min", "max"} <= form.keys() <= {"min", "max", "step", "log"}:
        return _range_of(name, form, check)
    return None


def _choices_of(name: str, values: list[Any], check: Check) -> Choices:
    if not values:
        raise ValueError(f"{name} = []: needs at least one value")
    checked = [check(value) for value in values]
    if twice := [value for value in checked if checked.count(value) > 1]:
        raise ValueError(f"{name}: has {_shown(twice[0])} twice")
    return Choices(tuple(checked))


def _range_of(name: str, form: Mapping[str, Any], check: Check) -> Choices | Range:
    low, high = (_number(name, key, form[key]) for key in ("min", "max"))
    log, step = form.get("log", False), form.get("step")
    if not isinstance(log, bool):
        raise ValueError(f"{name}.log = {_shown(log)}: must be true or false")
    if low >= high:
        raise ValueError(f"{name}: min = {low} must be less than max = {high}")
    if log and low <= 0:
        raise ValueError(f"{name}.min = {low}: must be more than 0 where log is true")
    low, high = check(low), check(high)
    if step is None:
        return Range(low, high, log, whole=isinstance(low, int))
    step = _number(name, "step", step)
    if step <= (1 if log else 0):
        least = "1, by which a value is multiplied" if log else "0"
        raise ValueError(f"{name}.step = {step}: must be more than {least}")
    steps = math.log(high / low, step) if log else (high - low) / step
    if steps > MOST_STEPS:
        raise ValueError(f"{name}.step = {step}: makes more than {MOST_STEPS} values; raise it")
    values = [
        low * step**number if log else low + step * number
        for number in range(math.floor(steps + 1e-9) + 1)
    ]
    kind = type(low)
    exact = [kind(value) if float(value).is_integer() else _short(value) for value in values]
    return _choices_of(name, exact, check)


def _number(name: str, key: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}.{key} = {_shown(value)}: must be a number")
    return value


def _lists_of(name: str, form: Mapping[str, Any], check: Check, base: Mapping[str, Any]) -> Lists:
    if not isinstance(base[name], tuple):
        raise ValueError(f"{name}: is no list; {FORMS}")
    of_each = form["each"] if isinstance(form["each"], dict) else {"values": form["each"]}
    # An entry is checked as the list that has it alone.
    each = _simple(f"{name}.each", of_each, lambda value: check([value])[0])
    if each is None:
        raise ValueError(f"{name}.each = {_shown(form['each'])}: must be a list, or min and max")
    length = form["length"]
    if isinstance(length, str):
        if length == name or not isinstance(base.get(length), tuple):
            raise ValueError(f"{name}.length = {_shown(length)}: must be the name of another list")
        return Lists(each, like=length)
    wanted = length if isinstance(length, list) else [length]
    if not wanted or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in wanted):
        raise ValueError(f"{name}.length = {_shown(length)}: must be a list of whole numbers")
    first = each.values[0] if isinstance(each, Choices) else each.low
    for number in wanted:
        check([first] * number)
    return Lists(each, lengths=tuple(dict.fromkeys(wanted)))


def _checked(name: str, value: Any, sections: Mapping[str, Section]) -> Any:
    """Return `value` as the param `name` has it; raises ValueError if it may not."""
    prefix = name.partition(".")[0]
    settings = {name: value}
    if name in PER_BLOCK and isinstance(value, list | tuple):
        # The other is drawn with it.
        (other,) = set(PER_BLOCK) - {name}
        settings[other] = [1] * len(value)
    try:
        section = updated(sections[prefix], prefix, settings)
    except ValidationError as error:
        told = lines(error, type(sections[prefix]))
        raise ValueError("; ".join(f"{prefix}.{line}" for line in told)) from None
    return flat(section, f"{prefix}.")[name]


def _conditioned(entries: Mapping[str, Entry], written: Mapping[str, Any]) -> dict[str, Entry]:
    """Return `entries` with their conditions; raises ValueError for one that never holds."""
    found = {}
    for name, entry in entries.items():
        when = written[name].get("when", {}) if isinstance(written[name], dict) else {}
        if not isinstance(when, dict):
            raise ValueError(f"{name}.when = {_shown(when)}: must be {{param: value}}")
        conditions = {}
        for parent, wanted in when.items():
            of = entries.get(parent)
            if not isinstance(of, Choices):
                raise ValueError(f"{name}.when: {parent} has no list of values in tune.space")
            values = [frozen(value) for value in (wanted if isinstance(wanted, list) else [wanted])]
            if missing := [value for value in values if value not in of.values]:
                raise ValueError(
                    f"{name}.when: {parent} is never {_shown(missing[0])} in tune.space"
                )
            conditions[parent] = tuple(values)
        found[name] = replace(entry, when=conditions)
    return found


def _check_lengths(entries: Mapping[str, Entry], base: Mapping[str, Any]) -> None:
    """Raise ValueError where filters and kernel sizes may be drawn with two lengths."""

    def lengths(name: str) -> set[int]:
        entry = entries.get(name)
        own = {len(base[name])}
        if isinstance(entry, Choices):
            found = {len(value) for value in entry.values}
        elif isinstance(entry, Lists):
            found = lengths(entry.like) if entry.like else set(entry.lengths)
        else:
            return own
        return found | own if entry.when else found

    first, second = PER_BLOCK
    of = {name: entry.like for name, entry in entries.items() if isinstance(entry, Lists)}
    tied = of.get(first) == second or of.get(second) == first
    conditions = [entry.when for name in PER_BLOCK if (entry := entries.get(name))]
    if tied and all(when == conditions[0] for when in conditions):
        return
    if len(lengths(first) | lengths(second)) > 1:
        raise ValueError(
            f"{second}: must have one value per block of {first}; give it {{length: {first}, each: "
            "[...]}"
        )


def _in_order(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return `entries`, each after those that it depends on."""
    found: dict[str, Entry] = {}

    def add(name: str, below: tuple[str, ...]) -> None:
        if name in below:
            raise ValueError(f"{name}: depends on itself")
        if name in entries and name not in found:
            entry = entries[name]
            for parent in (*entry.when, *([entry.like] if isinstance(entry, Lists) else [])):
                add(parent, (*below, name))
            found[name] = entry

    for name in entries:
        add(name, ())
    return found


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
