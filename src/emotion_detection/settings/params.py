"""Every setting of the pipeline, declared once: its name, default, range and meaning.

A default means "off" where there is such a thing. The text under a setting is its comment in
params.yaml, which a test holds equal.
"""

import codecs
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from emotion_detection.console import UserError
from emotion_detection.files import read_yaml
from emotion_detection.settings import space
from emotion_detection.settings.sections import Section, validate

PARAMS = Path("params.yaml")

# Every class has such a method, which registers subclasses and is not used here.
warnings.filterwarnings("ignore", 'Field name "register" in "Evaluate" shadows')


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def _encoding(name: str) -> str:
    try:
        return codecs.lookup(name).name
    except LookupError:
        raise ValueError("is no encoding that Python knows") from None


Count = Annotated[int, Field(ge=1, lt=2**31)]
WholeNumber = Annotated[int, Field(ge=0, lt=2**31)]
Float = Annotated[float, BeforeValidator(_finite)]
Fraction = Annotated[Float, Field(ge=0, lt=1)]
OpenFraction = Annotated[Float, Field(gt=0, lt=1)]
Positive = Annotated[Float, Field(gt=0)]
Side = Annotated[int, Field(ge=8, le=4096)]

# A YAML list becomes a tuple, which strict models would refuse.
Counts = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]
KernelSizes = Annotated[
    tuple[Annotated[int, Field(ge=1, le=15)], ...], Field(strict=False, min_length=1)
]


class Sample(Section):
    """The synthetic faces, so that a fresh clone runs without a download."""

    train: Annotated[int, Field(ge=50)] = 400
    """images"""

    test: Annotated[int, Field(ge=25)] = 200
    """images"""


class Ingest(Section):
    """Where the images come from and what they are turned into."""

    source: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")] = "data/sample"
    """a folder, .zip, .tar.gz or .csv of labelled images; see docs/guide"""

    image_size: Annotated[tuple[Side, Side], Field(strict=False)] = (48, 48)
    """height, width in pixels; other sizes are resized"""

    color_mode: Literal["grayscale", "rgb"] = "grayscale"
    """grayscale or rgb"""

    splits: dict[str, Literal["train", "validation", "test"] | None] = Field(default_factory=dict)
    """what a folder, or a value of a table, is: train, validation, test, or null to leave it out"""

    classes: dict[str, str | None] = Field(default_factory=dict)
    """another name for a class, one name for several, or null to leave it out"""

    zip_encoding: Annotated[str, AfterValidator(_encoding)] | None = None
    """of the names in a zip that are not UTF-8, as gbk or cp1250"""

    max_bad_fraction: Annotated[Float, Field(ge=0, le=1)] = 0.01
    """more undecodable files than this is an error"""

    max_unpacked_gib: Positive = 64.0
    """an archive that unpacks to more is refused"""

    test_fraction: OpenFraction = 0.2
    """cut from train where the source has no test split"""

    near_duplicates: WholeNumber = 200_000
    """sets of up to so many images are searched for near-duplicates, which takes minutes; 0: off"""

    drop_leaks: bool = False
    """true: leave out train images that are also in test, pixel by pixel"""


class Split(Section):
    """How validation images, and those of a cut test split, are chosen."""

    validation: Literal["holdout", "test"] = "holdout"
    """holdout: a part of train; test: the test images, so that the test scores are too good"""

    fraction: OpenFraction = 0.15
    """of train, for holdout"""

    seed: WholeNumber = 2013
    """draws validation and a cut test split, by the images' pixels"""

    folds: Annotated[int, Field(ge=0, le=100)] = 0
    """cross-validation: a network for each of so many parts of train, validated on it, and the
    model on all of them; 0: off"""

    @model_validator(mode="after")
    def _folds_of_train(self) -> Self:
        if self.folds == 1:
            raise ValueError("folds = 1 leaves no image to train on; use 2 or more, or 0 for none")
        if self.folds and self.validation == "test":
            raise ValueError("folds are parts of train, and validation is test; set it to holdout")
        return self


class Ensemble(Section):
    """How many networks answer together."""

    members: Count = 1
    """trained one after the other, each with its own seed; their probabilities are averaged"""


class Tta(Section):
    """Test-time augmentation: what the exported model averages its answer over."""

    flips: bool = False
    """the image and its mirror image"""

    shifts: WholeNumber = 0
    """pixels by which the image is also shifted, to four corners; 0: off"""


DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def _duration(text: str) -> str:
    match = DURATION.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise ValueError("must be a time as 90s, 30m, 8h or 2d")
    return text


Duration = Annotated[str, AfterValidator(_duration)]


def seconds(duration: str) -> float:
    """Return how many seconds a `duration` of params.yaml is."""
    number, unit = DURATION.fullmatch(duration).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]


class Tune(Section):
    """The search; its trials train as train does, for tune.epochs epochs."""

    oracle: Literal["random", "bayesian", "hyperband"] = "random"
    """random, bayesian or hyperband"""

    trials: WholeNumber | None = 0
    """0: no search, train with the settings below; null: as many as tune.budget allows"""

    budget: Duration | None = None
    """time of the search, as 90s, 30m or 8h; what interrupted parts took counts; null: no limit"""

    pruning: bool = False
    """true: a trial ends early where it is behind the median of the others"""

    repeats: WholeNumber = 0
    """further seeds, by which the best two trials and params.yaml are compared; 0: by one"""

    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """trials side by side, in processes that share the cores; more than 1 needs Ray"""

    epochs: Count = 1
    """of a trial, at most"""

    images: Count | None = None
    """train images a trial learns from, stratified; null: all"""

    space: dict[str, Any]
    """what may be drawn, by the names of params; see docs/guide"""

    max_gflops: Positive | None = None
    """forward pass of one image; more expensive networks are not drawn; null: no limit"""

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.trials is None and self.budget is None:
            raise ValueError("trials and budget are both null, and the search has no end; give one")
        return self


class Network(Section):
    """One network, as it is trained; an entry of a list is a block or a layer."""

    arch: Literal["notebook", "plain", "residual"] = "plain"
    """notebook, plain or residual; see src/emotion_detection/models/network.py"""

    filters: Counts = (16, 64, 128, 256)
    """one per block"""

    kernel_sizes: KernelSizes = (3, 3, 3, 3)
    """one per block"""

    convolutions: Annotated[int, Field(ge=1, le=8)] = 2
    """in every block"""

    dense_units: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    """one per dense layer"""

    squeeze_excitation: bool = False
    """weigh a block's channels by the whole image"""

    conv_dropout: Fraction = 0.0
    """after each block"""

    dense_dropout: Fraction = 0.0
    """after each dense layer, or before the output where there is none"""

    bn_momentum: Fraction = 0.9
    """of batch normalization's moving statistics"""

    @model_validator(mode="after")
    def _one_kernel_size_per_block(self) -> Self:
        if len(self.filters) != len(self.kernel_sizes):
            raise ValueError(
                f"filters has {len(self.filters)} entries and kernel_sizes "
                f"{len(self.kernel_sizes)}; each needs one per block"
            )
        return self


class Augment(Section):
    """Random changes of the training images; 0 and false: off."""

    rotation: Annotated[Float, Field(ge=0, le=180)] = 0.0
    """degrees either way"""

    shift: Fraction = 0.0
    """fraction of the width and of the height either way"""

    shear: Annotated[Float, Field(ge=0, lt=90)] = 0.0
    """degrees either way"""

    zoom: Fraction = 0.0
    """fraction either way"""

    horizontal_flip: bool = False
    """half of the images"""

    fill_mode: Literal["nearest", "constant", "reflect", "wrap"] = "nearest"
    """nearest, constant, reflect or wrap"""

    random_erasing: Fraction = 0.0
    """side of a square painted grey, at most, as a fraction"""


def _fixed_model(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(
        r"models:/[^/@]+/\d+|models:/m-\w+|runs:/\w+/\w+", value
    ):
        raise ValueError(
            "must be a model in MLflow that stays the same, as models:/emotion-detection/2: DVC "
            "does not see where an alias, a stage or latest moves"
        )
    return value


class Train(Section):
    """The training of a network."""

    optimizer: Literal["adam", "sgd"] = "adam"
    """adam, or sgd with a Nesterov momentum of 0.9"""

    lr: Positive = 1e-3
    """the highest, for one_cycle"""

    schedule: Literal["one_cycle", "plateau"] = "plateau"
    """one_cycle: up to lr, then to 0 on a cosine; plateau: halved as reduce_lr_patience says"""

    weight_decay: Annotated[Float, Field(ge=0)] = 0.0
    """times lr, and apart from the gradient"""

    ema: Fraction = 0.0
    """share of all steps that the moving average of the weights spans; 0: off"""

    label_smoothing: Fraction = 0.0
    """share of each label that is spread over all classes"""

    batch_size: Count = 128
    """images"""

    epochs: Count = 1
    """at most; the one with the highest val_accuracy is kept"""

    early_stopping_patience: Count | None = None
    """epochs without a lower val_loss; null: off"""

    reduce_lr_patience: Count | None = None
    """epochs without a lower val_loss after which plateau halves lr; null: off"""

    seeds: Count = 1
    """to train with, for mean and interval of val_accuracy; the first make the model"""

    class_weights: Annotated[Float, Field(ge=0, le=1)] = 0.0
    """power of the class's inverse frequency that weighs the loss; 1: balanced, 0: off"""

    progressive_resizing: WholeNumber = 0
    """first epochs on images of two thirds the size, which are faster; 0: off"""

    no_aug_epochs: WholeNumber = 0
    """last epochs with flips and shifts by whole pixels as the only augmentation"""

    init_from: Annotated[str, BeforeValidator(_fixed_model)] | None = None
    """a model in MLflow to start from, as models:/emotion-detection/2; null: random weights"""

    augment: Augment = Augment()

    @model_validator(mode="after")
    def _parts_within_epochs(self) -> Self:
        for name in ("progressive_resizing", "no_aug_epochs"):
            if getattr(self, name) > self.epochs:
                raise ValueError(
                    f"{name} = {getattr(self, name)} is more than epochs = {self.epochs}; lower "
                    "it, or raise epochs"
                )
        return self


class Evaluate(Section):
    """The evaluation on the test split."""

    corruption_images: WholeNumber | None = 0
    """test images darkened, blurred and so on; 0: off, null: all"""

    register: Literal["always", "better", "never"] = "better"
    """always, better or never: which models become versions in MLflow's registry; better: those
    that become champion of their data set"""


class Export(Section):
    """What the trained networks are exported to."""

    onnx: bool = False
    """true: models/onnx/model.onnx too; needs the packages of the extra onnx"""


class Params(Section):
    """All of params.yaml."""

    seed: WholeNumber = 2013
    """of the search and the training"""

    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    """auto, float32 or mixed_bfloat16; auto takes bfloat16 where hardware has it"""

    deterministic: bool = False
    """true: the same weights to the last bit, on one machine; slower"""

    sample: Sample
    ingest: Ingest
    split: Split
    ensemble: Ensemble
    tta: Tta
    tune: Tune
    network: Network
    train: Train
    evaluate: Evaluate
    export: Export

    @model_validator(mode="after")
    def _shifts_within_images(self) -> Self:
        if self.tta.shifts > (side := min(self.ingest.image_size)):
            raise ValueError(
                f"tta.shifts = {self.tta.shifts} is more pixels than images of "
                f"ingest.image_size have a side; use at most {side}"
            )
        return self

    @model_validator(mode="after")
    def _folds_without_validation(self) -> Self:
        if self.split.folds and self.train.seeds > 1:
            raise ValueError("split.folds and train.seeds both give an interval; use one of them")
        if self.split.folds and self.train.schedule == "plateau" and self.train.reduce_lr_patience:
            raise ValueError(
                "with split.folds the model is trained without validation images, on which "
                "train.reduce_lr_patience waits; set it to null, or train.schedule to one_cycle"
            )
        return self

    @model_validator(mode="after")
    def _space_fits(self) -> Self:
        space.parse(self.tune.space, {"network": self.network, "train": self.train})
        return self


def load(path: Path = PARAMS) -> Params:
    """Return the settings in `path`, as `read_yaml` and `check` do."""
    return check(read_yaml(path), path)


def check(values: dict[str, Any], path: Path) -> Params:
    """Return the settings `values`, which were read from `path` and have to name every one.

    Raises:
        UserError: with a line for each wrong key: its name, its value and what is allowed.

    """
    params = validate(Params, values, path)
    if absent := list(_absent(params)):
        raise UserError("; ".join(f"{path}: {key}: missing" for key in absent))
    return params


def _absent(section: Section, prefix: str = "") -> Iterator[str]:
    for name in type(section).model_fields:
        if name not in section.model_fields_set:
            yield f"{prefix}{name}"
        elif isinstance(value := getattr(section, name), Section):
            yield from _absent(value, f"{prefix}{name}.")
