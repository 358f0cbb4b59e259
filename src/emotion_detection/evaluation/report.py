"""The report of an evaluation: a page in one file, and a model card."""

import base64
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import keras
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from emotion_detection import paths
from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset, are_emotions
from emotion_detection.evaluation.champion import Challenger, Decision
from emotion_detection.evaluation.corruptions import mean_accuracy, metrics
from emotion_detection.evaluation.intervals import Estimate, wilson
from emotion_detection.evaluation.metrics import Evaluation
from emotion_detection.figures import style, svg
from emotion_detection.figures.evaluation import MISTAKES
from emotion_detection.figures.training import learning_curves
from emotion_detection.files import atomic, write_json
from emotion_detection.models import coverage
from emotion_detection.models.calibration import with_temperature
from emotion_detection.models.saving import notes, temperature
from emotion_detection.settings import recipes
from emotion_detection.settings.params import Network, Params, Split
from emotion_detection.settings.sections import Section, changed
from emotion_detection.tracking.lineage import NOTHING_SEEN, Seen
from emotion_detection.tracking.provenance import provenance

PAGE, CARD = "report.html", "model_card.md"
FIGURES = (
    "learning_curves",
    "confusion_normalized",
    "roc",
    "reliability",
    "answered",
    "corruptions",
)
# A page of more ROC curves could not be read, and would be large.
MOST_CURVES = 26
COVERAGE = 0.9
# A photo in the page, in WebP; its longer side in pixels is at most this.
QUALITY, LARGEST_PHOTO = 88, 160

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

    `rows` (N,) int64 are the images of `dataset` that `result` is about; `corrupted` is a table of
    `corruptions.measure`, and `history` one of `ensemble.histories`; `origin` and `facts` are lines
    of name and text, such as `training_facts`; `selected_on_test` says that epoch and network were
    chosen on the test images, `synthetic` that the images are no photographs, and `seen` what
    ancestors of the model learnt from.
    """

    result: Evaluation
    dataset: Dataset
    rows: npt.NDArray[np.int64]
    corrupted: pd.DataFrame
    decision: Decision
    history: pd.DataFrame
    origin: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, str]]
    selected_on_test: bool
    synthetic: bool
    seen: Seen = NOTHING_SEEN

    @property
    def scores(self) -> dict[str, Any]:
        """All scores, those of classes nested, and the accuracy on corrupted images."""
        return self.result.metrics() | metrics(self.corrupted) | self.seen.metrics()

    def tags(self) -> dict[str, str]:
        """Return the tags of the MLflow run."""
        return self.decision.tags() | self.seen.tags()


def subject(
    challenger: Challenger,
    corrupted: pd.DataFrame,
    decision: Decision,
    model: keras.Model,
    settings: Params,
) -> Subject:
    """Return what is reported on `model`, which was made and evaluated with `settings`."""
    trained = history(paths.TRAIN, settings.split.folds or settings.ensemble.members)
    return Subject(
        challenger.result,
        challenger.dataset,
        challenger.rows,
        corrupted,
        decision,
        trained,
        origin=origin(challenger.run_id),
        facts=[
            *training_facts(model, settings, trained),
            ("calibration", calibration(challenger.result, temperature(model))),
            ("sets of classes", sets(challenger.result, notes(paths.MODEL).get("coverage"))),
        ],
        selected_on_test=settings.split.validation == "test",
        synthetic=challenger.dataset.synthetic,
        seen=challenger.seen,
    )


def history(folder: Path, number: int) -> pd.DataFrame:
    """Return the history of each of the first `number` networks in train's report `folder`.

    Raises:
        UserError: if it is not there.

    """
    several, single = folder / "networks.csv", folder / "history.csv"
    try:
        if not several.exists():
            return pd.read_csv(single)
        networks = pd.read_csv(several)
    except (OSError, ValueError) as error:
        raise UserError(f"{single}: cannot be read ({error}); run `dvc repro train`") from error
    own = networks[networks["network"] <= number]
    return own if number > 1 else own.drop(columns="network")


def origin(run_id: str | None) -> list[tuple[str, str]]:
    """Return lines of name and text on when, with what code and by which command it was made.

    `run_id` is the MLflow run, None where there is none.
    """
    tags = provenance()
    commit = tags.get("git.commit", "")[:12]
    if commit and tags.get("git.dirty") == "true":
        commit += ", with uncommitted changes"
    lines = {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": commit,
        "MLflow run": run_id,
        "recipe": recipes.held(),
        "command": recipes.command(),
    }
    return [(name, text) for name, text in lines.items() if text]


def title(result: Evaluation) -> str:
    """Return the accuracy and its interval as one says them."""
    accuracy = result.accuracy
    return f"Test accuracy {_percent(accuracy.value)} ({_interval(accuracy)})"


def headline(subject: Subject) -> str:
    """Return the scores in a line, for a log."""
    result, leaks = subject.result, subject.seen.test
    return (
        f"{title(result)}, macro F1 {result.macro_f1.value:.3f}, on {len(result.labels):,} images"
        + (f", too good: an ancestor learnt from {leaks:,} of them" if leaks else "")
    )


@dataclass(frozen=True)
class Picture:
    """A figure in the page: its title, and its columns of panels as SVG."""

    title: str
    panels: Sequence[svg.Panel]


@dataclass(frozen=True)
class Mistake:
    """A wrongly predicted image in the page, as a data URI."""

    photo: str
    width: int
    height: int
    actual: str
    predicted: str
    confidence: float


def training_facts(
    model: keras.Model, values: Params, history: pd.DataFrame
) -> list[tuple[str, str]]:
    """Return lines of name and text on how `model`, with all its members, was trained.

    `history` is that of `figures.training.learning_curves`. Params that have their default are not
    listed.
    """
    sections: dict[str, Section] = {
        "network": values.network,
        "ensemble": values.ensemble,
        "tta": values.tta,
        "split": values.split,
        "train": values.train,
    }
    return [
        ("network", _layers(model, values.network, values.ensemble.members)),
        ("validation", _validation(values.split)),
        ("best epoch", _best_epochs(history)),
        *((f"{name} params", text) for name, each in sections.items() if (text := _changed(each))),
    ]


def calibration(result: Evaluation, temperature: float) -> str:
    """Return what the `temperature` of the model that gave `result` does, in words."""
    if temperature == 1:
        return "none: there was no image left to fit a temperature on"
    before = replace(
        result, probabilities=with_temperature(result.probabilities, 1 / temperature)
    ).calibration_error
    return (
        f"temperature {temperature:.2f}, fitted on the validation images; the calibration error on "
        f"test is {_percent(result.calibration_error)}, without it {_percent(before)}"
    )


def sets(result: Evaluation, text: str | None) -> str:
    """Return how the sets of `models.coverage`, of which `text` is a note, do on test, in words."""
    if text is None:
        return "none: there was no image left to measure them on"
    held = coverage.from_json(text, len(result.classes)).sets(result.probabilities, COVERAGE)
    right, sizes = held[np.arange(len(held)), result.labels], held.sum(axis=1)
    of_class = {
        name: right[result.labels == label].mean()
        for label, name in enumerate(result.classes)
        if (result.labels == label).any()
    }
    lowest = min(of_class, key=lambda name: of_class[name])
    return (
        f"made to hold the label of {_percent(COVERAGE)} of the images of each class; of the test "
        f"images {_percent(right.mean())} have it in theirs (lowest: {lowest}, "
        f"{_percent(of_class[lowest])}); {_percent((sizes == 1).mean())} have one class in it, "
        f"{_percent((sizes == 2).mean())} two"
    )


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
    if split.folds:
        return (
            f"{split.folds} folds of train, a network for each; this model learnt from all of "
            "them, for as many epochs as these took to their best on average"
        )
    return (
        f"{_percent(split.fraction)} of train, stratified by class; neither copies nor "
        "near-duplicates are in both"
    )


def _best_epochs(history: pd.DataFrame) -> str:
    """Return the epoch that each network was kept at: the first of the highest val_accuracy."""
    several = history["network"] if "network" in history.columns else pd.Series(1, history.index)
    found = []
    for number, epochs in history.groupby(several):
        best = epochs.iloc[int(epochs["val_accuracy"].argmax())]
        name = f"network {number}: " if several.nunique() > 1 else ""
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
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def limits(classes: Sequence[str]) -> tuple[str, ...]:
    """Return what a network of these classes cannot do and must not be used for, a text each."""
    return LIMITS_OF_EMOTIONS if are_emotions(classes) else LIMITS


def write(subject: Subject, figures: Mapping[str, Figure], folder: Path) -> None:
    """Write page, card and JSON files to `folder`, which has each of `figures` as <name>.png."""
    drawn = {"learning_curves": learning_curves(subject.history), **figures}
    if not 0 < sum(of.roc is not None for of in subject.result.per_class) <= MOST_CURVES:
        del drawn["roc"]
    corrupted, wrong = subject.corrupted, mistakes(subject)
    values = {
        **vars(subject),
        "title": title(subject.result),
        "leaks": subject.result.leaked_images > 0 and subject.result.without_leaks is not None,
        "emotions": are_emotions(subject.result.classes),
        "corrupted_accuracy": None if corrupted.empty else _corrupted_accuracy(corrupted),
        "facts": [*_data_facts(subject.dataset), *subject.facts],
        "limits": (*((SYNTHETIC,) if subject.synthetic else ()), *limits(subject.result.classes)),
        "loss_of_uniform_guess": math.log(len(subject.result.classes)),
        "top_confusion": _top_confusion(subject.result),
        "pictures": {name: _picture(name, drawn[name]) for name in FIGURES if name in drawn},
        "mistakes": wrong,
        "dark_colours": style.DARK,
        "sections": [
            (anchor, title)
            for anchor, title, told in (
                ("scores", "Scores", True),
                ("classes", "Classes", True),
                ("calibration", "Calibration", True),
                ("corruptions", "Corrupted images", not corrupted.empty),
                ("mistakes", "Mistakes", bool(wrong)),
                ("training", "Training", True),
                ("limits", "Limits and misuse", True),
            )
            if told
        ],
    }
    write_json(folder / "scores.json", subject.scores)
    write_json(folder / "champion.json", subject.decision.as_json())
    for name in (PAGE, CARD):
        template = environment(escape=name == PAGE).get_template(f"{name}.j2")
        with atomic(folder / name) as path:
            path.write_text(template.render(values), encoding="utf-8", newline="\n")


def mistakes(subject: Subject) -> list[Mistake]:
    """Return the wrong predictions with the highest confidence, highest first."""
    result = subject.result
    return [
        Mistake(
            *_photo(subject.dataset.images[subject.rows[row]]),
            result.classes[result.labels[row]],
            result.classes[result.predicted[row]],
            float(result.confidence[row]),
        )
        for row in result.most_confident_mistakes(MISTAKES)
    ]


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
    filters: dict[str, Callable[..., str]] = {
        "percent": _percent,
        "change": lambda value: f"{100 * value:+.1f}\u00a0points".replace("-", "−"),
        "thousands": lambda value: f"{value:,}",
        "f1": _f1,
        "md": _markdown,
    }
    environment.filters |= filters
    environment.globals |= {"interval": _interval, "wilson": wilson}
    return environment


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def _interval(of: Estimate) -> str:
    """Return the ends of a share's interval in %, without the sign that its value has."""
    return f"{100 * of.low:.1f} to {100 * of.high:.1f}"


def _f1(of: Estimate) -> str:
    return f"{of.value:.3f} ({of.low:.3f} to {of.high:.3f})"


def _markdown(text: str) -> str:
    """Return `text` with Markdown and HTML escaped: a folder may be called anything."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))


def _picture(name: str, figure: Figure) -> Picture:
    return Picture(" ".join(figure.get_suptitle().split()), svg.panels(figure, name))


def _photo(pixels: npt.NDArray[np.uint8]) -> tuple[str, int, int]:
    """Return the image `pixels` (H, W, C) uint8 as a data URI, and its width and height."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    image.thumbnail((LARGEST_PHOTO, LARGEST_PHOTO))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/webp;base64,{data}", *image.size


def _corrupted_accuracy(table: pd.DataFrame) -> Estimate:
    """Return the mean accuracy on corrupted images.

    The interval is that of a share: a mean over several versions of each image varies less, so
    that the true one is no wider.
    """
    images = int(table["images"].iloc[0])
    return wilson(mean_accuracy(table) * images, images)


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
    if done := dataset.corrections:
        corrected = f"{done['relabelled']:,} labels corrected, {done['dropped']:,} images dropped"
        facts.append(("corrections", corrected))
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
