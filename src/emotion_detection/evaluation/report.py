"""What an evaluation found, to be read: a page that stands alone, and a model card."""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import keras
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from emotion_detection.data.dataset import Dataset, are_emotions
from emotion_detection.evaluation.champion import Decision
from emotion_detection.evaluation.corruptions import mean_accuracy
from emotion_detection.evaluation.metrics import Estimate, Evaluation
from emotion_detection.files import atomic
from emotion_detection.models.network import leaves
from emotion_detection.params import Params

PAGE, CARD = "report.html", "model_card.md"
FIGURES = ("confusion_normalized", "roc", "reliability", "robustness", "mistakes")
# Of WebP, at which the letters in a plot are as sharp as in the PNG it is made from.
QUALITY = 88
# The text of a plot is too small to read below the one share of its full width, and larger than
# the page's own above the other.
LEGIBLE, LARGEST = 0.6, 0.85

LIMITS_OF_EMOTIONS = (
    "A label is the expression that somebody saw in a picture. It is not what the person felt: "
    "faces do not show feelings reliably, nor alike in all people and situations (Barrett et al., "
    '"Emotional expressions reconsidered", Psychological Science in the Public Interest 20, 2019).',
    "No decision about a person may rest on it: not on work, school, health, credit, insurance, "
    "policing or borders. Whom it is used on has to know of it and to agree.",
    "The European Union forbids systems that infer emotions of people at work and in education, "
    "but for medical or safety reasons (Regulation (EU) 2024/1689, the AI Act, article 5(1)(f)).",
    "FER-2013, for which this pipeline is made, was gathered by web search and has many wrong and "
    "doubtful labels: people agree with them on about 65 % of the images (Goodfellow et al., "
    '"Challenges in representation learning: a report on three machine learning contests", 2013).',
    "Who is in the pictures is not recorded: not their age, their gender, their skin nor where "
    "they live. So nobody can say for whom it works worse, and it has to be taken that it does.",
    "It answers for any picture, also where there is no face, and has no answer for none of these.",
)
LIMITS = (
    "How the pictures were gathered, and how many of their labels are wrong, is not recorded. The "
    "scores hold for pictures gathered alike, and are worth what the labels are.",
    "It answers for any picture, also of something else altogether, and has no answer for none of "
    "these.",
)
DRAWN = (
    "These faces are drawn by a program. The scores show that the pipeline works, and say nothing "
    "about people."
)


@dataclass(frozen=True)
class Subject:
    """What is reported on.

    `robustness` is a table of `robustness.measure`, or None where none was made; `facts` are
    lines of name and text on how the network came about; `selected_on_test` says that it was chosen on the
    test images, and `drawn` that those are no photographs.
    """

    result: Evaluation
    dataset: Dataset
    robustness: pd.DataFrame | None
    decision: Decision
    facts: Sequence[tuple[str, str]]
    selected_on_test: bool
    drawn: bool


@dataclass(frozen=True)
class Picture:
    """A figure as the page holds it: a data URI, what it shows, and its size in pixels."""

    data: str
    title: str
    width: int
    height: int

    @property
    def narrowest(self) -> int:
        """The width below which the page scrolls it instead of making it smaller."""
        return round(LEGIBLE * self.width)

    @property
    def widest(self) -> int:
        """The width above which the page does not make it larger."""
        return round(LARGEST * self.width)


def training_facts(
    model: keras.Model, values: Params, trained: Mapping[str, float]
) -> list[tuple[str, str]]:
    """Say how `model` was trained, in lines of name and text.

    `trained` are train's metrics: epochs, best_epoch and val_accuracy.
    """
    recipe, split = values.train, values.split
    layers = list(leaves(model))
    convolutions = [
        str(layer.filters) for layer in layers if isinstance(layer, keras.layers.Conv2D)
    ]
    dense = [str(layer.units) for layer in layers if isinstance(layer, keras.layers.Dense)]
    members = values.network.members
    together = f"{members} members, each with " if members > 1 else ""
    rate = (
        f"one cycle up to a learning rate of {recipe.lr:g}"
        if recipe.schedule == "one_cycle"
        else f"from a learning rate of {recipe.lr:g}"
    )
    optimizer = {"adam": "Adam", "sgd": "SGD with Nesterov momentum"}[recipe.optimizer]
    shaken = [
        f"{name} {value}".removesuffix(" True")
        for name, value in recipe.augment.model_dump().items()
        if value and name != "fill_mode"
    ]
    lightly = (
        f"; in the last {recipe.no_aug_epochs} epochs flips and shifts alone"
        if shaken and recipe.no_aug_epochs
        else ""
    )
    weighed = (
        f"classes weighed by their inverse frequency to the power of {recipe.class_weights:g}"
        if recipe.class_weights
        else "no class weights"
    )
    held = (
        "the test images, which leaks"
        if split.validation == "test"
        else f"{_percent(split.fraction)} of train, by class; images with the same pixels are on "
        "one side"
    )
    teachers = " and ".join(recipe.distillation.teachers)
    share = _percent(recipe.distillation.weight)
    taught = f"{share} of each target from {teachers}, " if teachers else ""
    begun = f"going on from {recipe.init_from}, " if recipe.init_from else ""
    given = " and ".join(recipe.members_from)
    added = f"the first members from {given}, the others so: " if given else ""
    alone = " of the others alone" if given else ""
    return [
        (
            "network",
            f"{model.count_params():,} parameters: {together}convolutions of "
            f"{', '.join(convolutions[: len(convolutions) // members])} filters, dense layers of "
            f"{', '.join(dense[: len(dense) // members])} units",
        ),
        (
            "training",
            f"{added}{optimizer}, {rate}, batches of {recipe.batch_size}, weight decay "
            f"{recipe.weight_decay:g}, label smoothing {recipe.label_smoothing:g}, {weighed}, "
            f"{begun}{taught}augmentation: {', '.join(shaken) or 'none'}{lightly}",
        ),
        ("validation", held),
        (
            "epoch",
            f"{trained['best_epoch']} of {trained['epochs']}, that of the highest validation "
            f"accuracy{alone} ({_percent(trained['val_accuracy'])})",
        ),
    ]


def limits(classes: Sequence[str]) -> tuple[str, ...]:
    """Return what a network of these classes cannot tell and must not be used for, a text each."""
    return LIMITS_OF_EMOTIONS if are_emotions(classes) else LIMITS


def write(subject: Subject, folder: Path, figures: Mapping[str, Figure]) -> None:
    """Write the page and the card into `folder`, where each of `figures` lies as <name>.png."""
    pictures = {
        name: _picture(folder / f"{name}.png", figures[name]) for name in FIGURES if name in figures
    }
    values = {
        "emotions": are_emotions(subject.result.classes),
        "result": subject.result,
        "dataset": subject.dataset,
        "robustness": subject.robustness,
        "corrupted_accuracy": (
            None if subject.robustness is None else mean_accuracy(subject.robustness)
        ),
        "decision": subject.decision,
        "selected_on_test": subject.selected_on_test,
        "drawn": subject.drawn,
        "facts": [*_data_facts(subject.dataset), *subject.facts],
        "limits": (*((DRAWN,) if subject.drawn else ()), *limits(subject.result.classes)),
        "loss_of_chance": math.log(len(subject.result.classes)),
        "worst_confusion": _worst_confusion(subject.result),
        "pictures": pictures,
        "sections": [
            (anchor, title)
            for anchor, title in (
                ("scores", "Scores"),
                ("classes", "Classes"),
                ("calibration", "Calibration"),
                ("robustness", "Worse images"),
                ("mistakes", "Mistakes"),
                ("made", "What made it"),
                ("limits", "Limits and misuse"),
            )
            if anchor != "robustness" or subject.robustness is not None
        ],
    }
    for name in (PAGE, CARD):
        template = environment(escape=name == PAGE).get_template(f"{name}.j2")
        with atomic(folder / name) as path:
            path.write_text(template.render(values), encoding="utf-8", newline="\n")


def environment(*, escape: bool) -> jinja2.Environment:
    """Return what fills in the package's templates; `escape` is for HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("emotion_detection"),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": _percent,
        "change": lambda value: f"{100 * value:+.1f}\u00a0points".replace("-", "−"),
        "thousands": lambda value: f"{value:,}",
        "md": _markdown,
    }
    environment.globals["interval"] = _interval
    return environment


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def _interval(of: Estimate) -> str:
    return f"{_percent(of.low)} to {_percent(of.high)}"


def _markdown(text: str) -> str:
    """Keep `text` from being taken for Markdown or HTML, whatever a folder may be called."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))


def _picture(path: Path, figure: Figure) -> Picture:
    with Image.open(path) as image:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=QUALITY)
        width, height = image.size
    data = base64.b64encode(buffer.getvalue()).decode()
    title = " ".join(figure.get_suptitle().split())
    return Picture(f"data:image/webp;base64,{data}", title, width, height)


def _data_facts(dataset: Dataset) -> list[tuple[str, str]]:
    train, test = (sum(of_class.values()) for of_class in dataset.counts.values())
    height, width = dataset.image_size
    facts = [
        ("data", f"{dataset.source}, digest {dataset.digest}"),
        (
            "images",
            f"{train:,} train and {test:,} test, {width}×{height} pixels, {dataset.color_mode}"
            + (", the test images cut from train" if dataset.test_is_cut else ""),
        ),
    ]
    if dataset.dropped_leaks:
        facts.append(("leaks", f"{dataset.dropped_leaks:,} train images left out, also in test"))
    return facts


def _worst_confusion(result: Evaluation) -> str:
    """Say what is most often taken for what, by share of its class."""
    shares: Any = result.confusion / result.confusion.sum(axis=1, keepdims=True).clip(min=1)
    for k in range(len(result.classes)):
        shares[k, k] = 0
    actual, taken = divmod(int(shares.argmax()), len(result.classes))
    if shares[actual, taken] == 0:
        return "No image is taken for another class."
    return (
        f"Most often {result.classes[actual]} is taken for {result.classes[taken]}: "
        f"{_percent(shares[actual, taken])} of its images."
    )
