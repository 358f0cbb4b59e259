"""The report of an evaluation: a page in one file, and a model card."""

import base64
import io
import json
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

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset, are_emotions
from emotion_detection.evaluation.bootstrap import Estimate
from emotion_detection.evaluation.champion import Decision
from emotion_detection.evaluation.corruptions import mean_accuracy, metrics
from emotion_detection.evaluation.metrics import Evaluation
from emotion_detection.files import atomic, write_json
from emotion_detection.params import Network, Params, Section, Split, changed

PAGE, CARD = "report.html", "model_card.md"
FIGURES = ("confusion_normalized", "roc", "reliability", "corruptions", "mistakes")
# Of WebP: the letters in a plot are as sharp as in its PNG.
QUALITY = 88
# The page shows a plot in these shares of its full width: below the first its text is too small to
# read, above the second it is larger than the page's own.
LEGIBLE, LARGEST = 0.6, 0.85

LIMITS_OF_EMOTIONS = (
    "A label is the expression that somebody saw in a picture. It is not what the person felt: "
    "faces do not show feelings reliably, nor alike in all people and situations (Barrett et al., "
    '"Emotional expressions reconsidered", Psychological Science in the Public Interest 20, 2019).',
    "No decision about a person may rest on it: not on work, school, health, credit, insurance, "
    "policing or borders. People whom it is used on have to know of it and to agree.",
    "The European Union forbids systems that infer emotions of people at work and in education, "
    "except for medical or safety reasons (Regulation (EU) 2024/1689, AI Act, article 5(1)(f)).",
    "FER-2013, for which this pipeline is made, was gathered by web search and has many wrong and "
    "doubtful labels: people agree with them on about 65 % of the images (Goodfellow et al., "
    '"Challenges in representation learning: a report on three machine learning contests", 2013).',
    "Who is in the pictures is not recorded: not their age, gender, skin colour or where they "
    "live. So nobody can say for which people it works less well, and one has to assume that there "
    "are some.",
    "It answers for any picture, also without a face, and cannot answer that no class fits.",
)
LIMITS = (
    "How the pictures were gathered, and how many of their labels are wrong, is not recorded. The "
    "scores hold for pictures gathered in the same way, and are only as good as the labels.",
    "It answers for any picture, also of something else altogether, and cannot answer that no "
    "class fits.",
)
SYNTHETIC = (
    "These faces are synthetic, drawn by a program. The scores show that the pipeline works, and "
    "say nothing about people."
)


@dataclass(frozen=True)
class Subject:
    """What is reported on.

    `corrupted` is a table of `corruptions.measure`; `facts` are lines of name and text, such as
    `training_facts`; `selected_on_test` says that epoch and network were chosen on the test images,
    and `synthetic` that the images are no photographs.
    """

    result: Evaluation
    dataset: Dataset
    corrupted: pd.DataFrame
    decision: Decision
    facts: Sequence[tuple[str, str]]
    selected_on_test: bool
    synthetic: bool

    @property
    def scores(self) -> dict[str, Any]:
        """All scores, those of classes nested, and the accuracy on corrupted images."""
        return self.result.metrics() | metrics(self.corrupted)


def subject(
    result: Evaluation,
    dataset: Dataset,
    corrupted: pd.DataFrame,
    decision: Decision,
    facts: Sequence[tuple[str, str]],
    settings: Params,
) -> Subject:
    """Return what is reported on a model that was made and evaluated with `settings`."""
    return Subject(
        result,
        dataset,
        corrupted,
        decision,
        facts,
        selected_on_test=settings.split.validation == "test",
        synthetic=dataset.synthetic,
    )


def history(folder: Path) -> pd.DataFrame:
    """Return the history of each member in train's report `folder`.

    Raises:
        UserError: if it is not there.

    """
    members, single = folder / "members.csv", folder / "history.csv"
    try:
        return pd.read_csv(members if members.exists() else single)
    except (OSError, ValueError) as error:
        raise UserError(f"{single}: cannot be read ({error}); run `dvc repro train`") from error


def headline(result: Evaluation) -> str:
    """Return the scores in a line, for a log."""
    accuracy, macro_f1 = result.accuracy, result.macro_f1
    return (
        f"test accuracy {_percent(accuracy.value)} (95 % interval {_interval(accuracy)}), macro F1 "
        f"{macro_f1.value:.3f}, on {len(result.labels):,} images"
    )


@dataclass(frozen=True)
class Picture:
    """A figure in the page: a data URI, its title, and its size in pixels."""

    data: str
    title: str
    width: int
    height: int

    @property
    def narrowest(self) -> int:
        """The width in pixels below which the page scrolls it instead of making it smaller."""
        return round(LEGIBLE * self.width)

    @property
    def widest(self) -> int:
        """The largest width in pixels at which the page shows it."""
        return round(LARGEST * self.width)


def training_facts(
    model: keras.Model, network: Network, values: Params, history: pd.DataFrame
) -> list[tuple[str, str]]:
    """Return lines of name and text on how `model`, with all its members, was trained.

    `network` is the one that was trained, which a search may have chosen, and `history` is that of
    `figures.training.learning_curves`. Params that have their default are not listed.
    """
    sections: dict[str, Section] = {
        "network": network,
        "ensemble": values.ensemble,
        "tta": values.tta,
        "split": values.split,
        "train": values.train,
    }
    return [
        ("network", _layers(model, network, values.ensemble.members)),
        ("validation", _validation(values.split)),
        ("best epoch", _best_epochs(history)),
        *((f"{name} params", _changed(section)) for name, section in sections.items()),
    ]


def _layers(model: keras.Model, network: Network, members: int) -> str:
    ensemble = f"{members} members, each with " if members > 1 else ""
    dense = ", ".join(map(str, network.dense_units))
    return (
        f"{model.count_params():,} parameters: {ensemble}{network.convolutions} convolutions per "
        f"block of {', '.join(map(str, network.filters))} filters ({network.arch}), "
        f"{f'dense layers of {dense} units' if dense else 'no dense layer but the last'}"
    )


def _validation(split: Split) -> str:
    if split.validation == "test":
        return "the test images themselves, on which the epoch and the network were chosen"
    return (
        f"{_percent(split.fraction)} of train, stratified by class; images with the same pixels "
        "are never in both"
    )


def _best_epochs(history: pd.DataFrame) -> str:
    """Return the epoch that each member was kept at: the first of the highest val_accuracy."""
    members = history["member"] if "member" in history.columns else pd.Series(1, history.index)
    found = []
    for member, epochs in history.groupby(members):
        best = epochs.iloc[int(epochs["val_accuracy"].argmax())]
        name = f"member {member}: " if members.nunique() > 1 else ""
        found.append(
            f"{name}{best['epoch']:.0f} of {len(epochs)}, with the highest validation accuracy "
            f"({_percent(best['val_accuracy'])})"
        )
    return "; ".join(found)


def _changed(section: Section) -> str:
    # As params.yaml has them, but for quotes.
    values = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in changed(section).items()
    }
    return ", ".join(f"{name}: {value}" for name, value in values.items()) or "all at their default"


def limits(classes: Sequence[str]) -> tuple[str, ...]:
    """Return what a network of these classes cannot do and must not be used for, a text each."""
    return LIMITS_OF_EMOTIONS if are_emotions(classes) else LIMITS


def write(subject: Subject, figures: Mapping[str, Figure], folder: Path) -> None:
    """Write page, card and JSON files to `folder`, which has each of `figures` as <name>.png."""
    pictures = {
        name: _picture(folder / f"{name}.png", figures[name]) for name in FIGURES if name in figures
    }
    values = {
        "emotions": are_emotions(subject.result.classes),
        "result": subject.result,
        "dataset": subject.dataset,
        "corrupted": subject.corrupted,
        "corrupted_accuracy": (
            None if subject.corrupted.empty else mean_accuracy(subject.corrupted)
        ),
        "decision": subject.decision,
        "selected_on_test": subject.selected_on_test,
        "synthetic": subject.synthetic,
        "facts": [*_data_facts(subject.dataset), *subject.facts],
        "limits": (*((SYNTHETIC,) if subject.synthetic else ()), *limits(subject.result.classes)),
        "loss_of_uniform_guess": math.log(len(subject.result.classes)),
        "top_confusion": _top_confusion(subject.result),
        "pictures": pictures,
        "sections": [
            (anchor, title)
            for anchor, title in (
                ("scores", "Scores"),
                ("classes", "Classes"),
                ("calibration", "Calibration"),
                ("corruptions", "Corrupted images"),
                ("mistakes", "Mistakes"),
                ("made", "How it was made"),
                ("limits", "Limits and misuse"),
            )
            if anchor != "corruptions" or not subject.corrupted.empty
        ],
    }
    write_json(folder / "scores.json", subject.scores)
    write_json(folder / "champion.json", subject.decision.as_json())
    for name in (PAGE, CARD):
        template = environment(escape=name == PAGE).get_template(f"{name}.j2")
        with atomic(folder / name) as path:
            path.write_text(template.render(values), encoding="utf-8", newline="\n")


def environment(*, escape: bool) -> jinja2.Environment:
    """Return what renders the templates of the package; `escape` is for HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("emotion_detection.evaluation"),
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
    """Return `text` with Markdown and HTML escaped: a folder may be called anything."""
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
    images = {split: sum(of_class.values()) for split, of_class in dataset.counts.items()}
    height, width = dataset.image_size
    facts = [
        ("data", f"{dataset.source}, digest {dataset.digest}"),
        (
            "images",
            f"{' and '.join(f'{count:,} {split}' for split, count in images.items())}, "
            f"{width}×{height} pixels, {dataset.color_mode}"
            + (", the test images cut from train" if dataset.test_is_cut else ""),
        ),
    ]
    if dataset.dropped_leaks:
        left_out = f"{dataset.dropped_leaks:,} train images that are also in test are left out"
        facts.append(("leaks", left_out))
    return facts


def _top_confusion(result: Evaluation) -> str:
    """Return a sentence on the most frequent confusion, by its share of the actual class."""
    shares: Any = result.confusion / result.confusion.sum(axis=1, keepdims=True).clip(min=1)
    for k in range(len(result.classes)):
        shares[k, k] = 0
    actual, predicted = divmod(int(shares.argmax()), len(result.classes))
    if shares[actual, predicted] == 0:
        return "Every image was predicted correctly."
    return (
        f"Most frequent confusion: {result.classes[actual]} predicted as "
        f"{result.classes[predicted]} ({_percent(shares[actual, predicted])} of its images)."
    )
