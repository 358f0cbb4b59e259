"""params.yaml as typed, validated objects; every error names the key, the value and what may be."""

import difflib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from emotion_detection.console import UserError


class _Yaml12Loader(yaml.SafeLoader):
    """YAML 1.2's scalars, as DVC reads them: 5e-4 is a number, `no` and `on` are words."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        # 010 is ten here, and eight in YAML 1.1.
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _Yaml12Loader.construct_yaml_int)
_Yaml12Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Yaml12Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def _one_or_each(value: Any) -> Any:
    several = isinstance(value, list | tuple)
    entries = value if several else [value]
    if not entries or any(type(entry) is not int or not 1 <= entry <= 8 for entry in entries):
        raise ValueError("must be a whole number from 1 to 8, or a list of them, one a block")
    return tuple(value) if several else value


Convolutions = Annotated[int | tuple[int, ...], BeforeValidator(_one_or_each)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Float = Annotated[float, BeforeValidator(_finite)]
Fraction = Annotated[Float, Field(ge=0, lt=1)]
OpenFraction = Annotated[Float, Field(gt=0, lt=1)]
Positive = Annotated[Float, Field(gt=0)]
Size = Annotated[int, Field(ge=8, le=4096)]
KernelSize = Annotated[int, Field(ge=1, le=15)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


# A YAML list becomes a tuple, which strict models would refuse.
Counts = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]
KernelSizes = Annotated[tuple[KernelSize, ...], Field(strict=False, min_length=1)]
Fractions = Annotated[tuple[Fraction, ...], Field(strict=False, min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Sample(_Section):
    """The drawn faces: images a split, pixels a side."""

    train: Annotated[int, Field(ge=50)]
    test: Annotated[int, Field(ge=25)]
    image_size: Annotated[int, Field(ge=16, le=512)]
    seed: Seed


class Ingest(_Section):
    """Where the images come from and what they are turned into."""

    source: Annotated[str, Field(min_length=1)]
    image_size: Annotated[tuple[Size, Size], Field(strict=False)]
    color_mode: Literal["rgb", "grayscale"]
    max_bad_fraction: Annotated[Float, Field(ge=0, le=1)]
    max_unpacked_gib: Positive
    test_fraction: OpenFraction
    drop_leaks: bool


class Split(_Section):
    """How validation images are chosen."""

    validation: Literal["holdout", "test"]
    fraction: OpenFraction


class Profile(_Section):
    """What the profile shows."""

    samples_per_class: Annotated[int, Field(ge=1, le=30)]


class SingleNetwork(_Section):
    """One network, as it is trained; an entry of a list is a block or a layer."""

    family: Literal["notebook", "plain", "residual", "depthwise"]
    filters: Counts
    kernel_sizes: KernelSizes
    convolutions: Convolutions
    dense_units: Annotated[tuple[Count, ...], Field(strict=False)]
    squeeze_excitation: bool
    conv_dropout: Fraction
    dense_dropout: Fraction
    norm_momentum: Fraction

    @model_validator(mode="after")
    def _one_entry_a_block(self) -> Self:
        for name in ("kernel_sizes", "convolutions"):
            entries = getattr(self, name)
            if isinstance(entries, tuple) and len(self.filters) != len(entries):
                raise ValueError(
                    f"filters has {len(self.filters)} entries and {name} {len(entries)}; "
                    "each needs one a block"
                )
        return self


class Network(SingleNetwork):
    """How many networks answer together, and what they are shown of an image."""

    average_flips: bool
    average_shifts: Annotated[int, Field(ge=0, le=32)]
    soften: Annotated[Float, Field(ge=0, le=2)]
    members: Count


class Space(_Section):
    """The values a search draws from."""

    blocks: Counts
    filters: Counts
    kernel_size: KernelSizes
    dense_layers: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)
    ]
    dense_units: Counts
    dense_dropout: Fractions


class Tune(_Section):
    """The search and what every trial of it shares."""

    oracle: Literal["random", "bayesian", "hyperband"]
    trials: Annotated[int, Field(ge=0)]
    workers: Annotated[int, Field(ge=1, le=1024)]
    epochs: Count
    images: Count | None
    lr: Positive
    schedule: Literal["one_cycle", "constant"]
    batch_size: Count
    early_stopping_patience: Count | None
    max_gflops: Positive | None
    space: Space


class Augment(_Section):
    """Random changes of the training images; all zero and false is none."""

    rotation: Annotated[Float, Field(ge=0, le=180)]
    width_shift: Fraction
    height_shift: Fraction
    shear: Annotated[Float, Field(ge=0, lt=90)]
    zoom: Fraction
    horizontal_flip: bool
    fill_mode: Literal["nearest", "constant", "reflect", "wrap"]
    erasing: Fraction
    mixup: Annotated[Float, Field(ge=0)]
    cutmix: Annotated[Float, Field(ge=0)]


class LowResolution(_Section):
    """How many epochs begin on smaller images, and how small."""

    epochs: Annotated[int, Field(ge=0)]
    scale: OpenFraction


def _fixed_model(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(
        r"models:/[^/@]+/\d+|models:/m-\w+|runs:/\w+/\w+", value
    ):
        raise ValueError(
            "must be a model in MLflow that stays the same, as models:/emotion-detection/2: DVC "
            "does not see where an alias, a stage or latest moves"
        )
    return value


FixedModel = Annotated[str, BeforeValidator(_fixed_model)]


class Distillation(_Section):
    """Networks that training learns from besides the labels, and how much."""

    teachers: Annotated[tuple[FixedModel, ...], Field(strict=False)]
    weight: Annotated[Float, Field(gt=0, le=1)]


class Train(_Section):
    """The training of the final network."""

    optimizer: Literal["adam", "sgd"]
    lr: Positive
    schedule: Literal["plateau", "one_cycle"]
    warmup: Fraction
    weight_decay: Annotated[Float, Field(ge=0)]
    average_window: Fraction
    label_smoothing: Fraction
    batch_size: Count
    epochs: Count
    early_stopping_patience: Count | None
    reduce_lr_patience: Count | None
    reduce_lr_factor: OpenFraction
    class_weights: Annotated[Float, Field(ge=0, le=1)]
    low_resolution: LowResolution
    start_from: FixedModel | None
    members_from: Annotated[tuple[FixedModel, ...], Field(strict=False)]
    distillation: Distillation
    augment: Augment
    light_epochs: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _parts_within_epochs(self) -> Self:
        for name, part in (
            ("low_resolution.epochs", self.low_resolution.epochs),
            ("light_epochs", self.light_epochs),
        ):
            if part > self.epochs:
                raise ValueError(
                    f"{name} = {part} is more than epochs = {self.epochs}; lower it, or raise "
                    "epochs"
                )
        if self.distillation.teachers and self.low_resolution.epochs:
            raise ValueError(
                f"low_resolution.epochs = {self.low_resolution.epochs}: distillation.teachers see "
                "the images of a training, and know them in full size alone; set it to 0"
            )
        return self


class Evaluate(_Section):
    """The evaluation on the test split."""

    batch_size: Count
    bootstrap: Annotated[int, Field(ge=100)]
    mistakes: Annotated[int, Field(ge=1, le=100)]
    robustness_images: Annotated[int, Field(ge=0)] | None
    register_model: bool


class Export(_Section):
    """What the trained network is exported to."""

    onnx: bool
    tolerance: Positive


class Params(_Section):
    """All of params.yaml."""

    seed: Seed
    precision: Literal["auto", "float32", "mixed_bfloat16"]
    deterministic: bool
    sample: Sample
    ingest: Ingest
    split: Split
    profile: Profile
    network: Network
    tune: Tune
    train: Train
    evaluate: Evaluate
    export: Export


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and validate `path`.

    Raises:
        UserError: with a line for each wrong key: its name, its value and what is allowed.

    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    try:
        values = yaml.load(text, _Yaml12Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        where = " ".join(str(error).split())
        raise UserError(f"{path}: not YAML ({where})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no sections; expected {', '.join(Params.model_fields)}")
    return validate(Params, values, path)


SectionT = TypeVar("SectionT", bound=_Section)


def validate(section: type[SectionT], values: Any, path: Path) -> SectionT:
    """Give `values`, which were read from `path`, as a `section`.

    Raises:
        UserError: with a line for each wrong key: its name, its value and what is allowed.

    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False)
        lines = [_on_one_line(_describe(detail, section)) for detail in details]
        raise UserError("; ".join(f"{path}: {line}" for line in lines)) from None


_ALLOWED = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "tuple_type": "must be a list in [ ]",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "too_short": "has {actual_length} entries and needs at least {min_length}",
    "too_long": "has {actual_length} entries and may have {max_length}",
}


def _describe(detail: Any, root: type[_Section]) -> str:
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
    value = "" if isinstance(detail["input"], dict) else f" = {_as_written(detail['input'])}"
    return f"{key}{value}: {message}".lstrip(" :")


def _on_one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _as_written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _keys_of(root: type[_Section], section: Sequence[int | str]) -> list[str]:
    model: Any = root
    for part in section:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
