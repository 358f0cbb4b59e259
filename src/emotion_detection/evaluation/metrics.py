"""Scores of a classifier on labelled images, with their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn import metrics as sk

from emotion_detection.data.dataset import Dataset
from emotion_detection.evaluation import intervals
from emotion_detection.evaluation.intervals import RESAMPLES, Estimate, Floats, Ints, wilson
from emotion_detection.models.saving import cross_entropy

# Wide enough for a softmax in bfloat16, and far too narrow for logits.
ROW_SUM_TOLERANCE = 0.01
# Hides floating-point noise from `dvc metrics diff`, and nothing that a million images could show.
DIGITS = 6
# The metrics that people compare, which DVC's tables have room for, in their order.
HEADLINES = ("accuracy", "macro_f1", "inherited_leaks")


@dataclass(frozen=True, eq=False)
class RocCurve:
    """One class against the rest: rates (T,), a point a threshold, beginning at (0, 0)."""

    false_positive_rate: Floats
    true_positive_rate: Floats
    auc: float

    def thinned(self, points: int) -> "RocCurve":
        """Return at most `points` of the curve, evenly spaced along it, both ends included.

        The area under the curve stays that of all points.
        """
        travelled = self.false_positive_rate + self.true_positive_rate
        wanted = np.linspace(0.0, travelled[-1], points)
        kept = np.unique(np.searchsorted(travelled, wanted).clip(max=len(travelled) - 1))
        return RocCurve(self.false_positive_rate[kept], self.true_positive_rate[kept], self.auc)


@dataclass(frozen=True, eq=False)
class ClassScores:
    """The scores of one class; `roc` is None where there is no curve."""

    name: str
    support: int
    precision: Estimate
    recall: Estimate
    f1: Estimate
    roc: RocCurve | None


@dataclass(frozen=True)
class Totals:
    """Scores over a part of the images."""

    images: int
    accuracy: Estimate
    macro_f1: Estimate


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The predictions of a classifier on N images of K classes, and their scores.

    `labels` is (N,) int64, `probabilities` (N, K) float64 and `confusion` (K, K) int64, with
    actual classes in rows and predicted ones in columns; `macro_auc` is NaN where no class has a
    ROC curve, and `without_leaks` is None where every image is also in train.
    `without_near_duplicates` leaves out those that look like one in train as well; it is None where
    these are none or all. `as_labelled` is by the labels that the set gives, on the same images; it
    is None where no label of them is corrected, and `corrected_labels` says how many are.
    """

    classes: tuple[str, ...]
    labels: Ints
    probabilities: Floats
    loss: float
    accuracy: Estimate
    macro_f1: Estimate
    macro_auc: float
    without_leaks: Totals | None
    confusion: Ints
    per_class: tuple[ClassScores, ...]
    without_near_duplicates: Totals | None = None
    as_labelled: Totals | None = None
    corrected_labels: int = 0

    @property
    def predicted(self) -> Ints:
        """The most probable class of each image, (N,) int64; the first one where several tie."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidence(self) -> Floats:
        """The probability of the predicted class of each image, (N,) float64."""
        return self.probabilities.max(axis=1)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Which images are predicted as labelled, (N,) bool."""
        return self.predicted == self.labels

    @property
    def leaked_images(self) -> int:
        """The number of images that `without_leaks` leaves out."""
        return len(self.labels) - (self.without_leaks.images if self.without_leaks else 0)

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, from 0 to 1, over 15 bins of equal width.

        It is the difference between confidence and accuracy, averaged over the images (Guo, Pleiss,
        Sun and Weinberger, "On calibration of modern neural networks", ICML 2017).
        """
        bins = self.reliability()
        gap = (bins["accuracy"] - bins["confidence"]).abs()
        return float((gap * bins["images"]).sum() / len(self.labels))

    def reliability(self, bins: int = 15) -> pd.DataFrame:
        """Return accuracy by confidence: a row for each of `bins` equal parts of 0 to 1.

        Parts without images are left out. Columns: confidence_from (not included), confidence_to
        (included), images, confidence (their mean) and accuracy.
        """
        number = (np.ceil(self.confidence * bins).astype(np.int64) - 1).clip(0, bins - 1)
        table = pd.DataFrame(
            {"bin": number, "confidence": self.confidence, "accuracy": self.correct}
        )
        found = table.groupby("bin").agg(
            images=("accuracy", "size"),
            confidence=("confidence", "mean"),
            accuracy=("accuracy", "mean"),
        )
        edges = found.index.to_numpy()
        found.insert(0, "confidence_from", edges / bins)
        found.insert(1, "confidence_to", (edges + 1) / bins)
        return found.reset_index(drop=True)

    def answered(self, parts: int = 20) -> pd.DataFrame:
        """Return the accuracy on the surest images alone, for each of `parts` shares up to all.

        Columns: share (from 0 to 1), images, confidence (the lowest of them), accuracy and the ends
        of its interval. It is the curve of selective classification (El-Yaniv and Wiener, "On the
        foundations of noise-free selective classification", JMLR 11, 2010).
        """
        surest = np.argsort(-self.confidence, kind="stable")
        right, number = self.correct[surest].cumsum(), len(surest)
        rows = []
        for images in np.unique(np.ceil(number * np.arange(1, parts + 1) / parts).astype(np.int64)):
            accuracy = wilson(int(right[images - 1]), int(images))
            rows.append(
                {
                    "share": images / number,
                    "images": images,
                    "confidence": self.confidence[surest[images - 1]],
                    "accuracy": accuracy.value,
                    "accuracy_low": accuracy.low,
                    "accuracy_high": accuracy.high,
                }
            )
        return pd.DataFrame(rows)

    def metrics(self) -> dict[str, Any]:
        """Return the scores for a JSON file: those of all images, then `per_class` by name.

        A score that does not exist is left out, since JSON has no NaN.
        """
        totals = {
            "loss": self.loss,
            **_flat("accuracy", self.accuracy),
            **_flat("macro_f1", self.macro_f1),
            "macro_auc": self.macro_auc,
            "calibration_error": self.calibration_error,
            "leaked_images": self.leaked_images,
        }
        if self.without_leaks:
            totals |= _flat("accuracy_without_leaks", self.without_leaks.accuracy)
            totals |= _flat("macro_f1_without_leaks", self.without_leaks.macro_f1)
        if near := self.without_near_duplicates:
            totals["near_leaked_images"] = len(self.labels) - near.images
            totals |= _flat("accuracy_without_near_duplicates", near.accuracy)
            totals |= _flat("macro_f1_without_near_duplicates", near.macro_f1)
        if self.as_labelled:
            totals["corrected_labels"] = self.corrected_labels
            totals |= _flat("accuracy_as_labelled", self.as_labelled.accuracy)
            totals |= _flat("macro_f1_as_labelled", self.as_labelled.macro_f1)
        return {
            **_rounded(totals),
            "per_class": {
                scores.name: {
                    **_rounded(
                        {
                            **_flat("precision", scores.precision),
                            **_flat("recall", scores.recall),
                            **_flat("f1", scores.f1),
                            "auc": np.nan if scores.roc is None else scores.roc.auc,
                        }
                    ),
                    "support": scores.support,
                }
                for scores in self.per_class
            },
        }

    def tables(self, files: Sequence[str]) -> dict[str, pd.DataFrame]:
        """Return predictions, roc, per_class, reliability and answered by name.

        `files` holds N names.

        Raises:
            ValueError: unless there is one file an image.

        """
        return {
            "predictions": self.predictions(files),
            "roc": self.roc_points(),
            "per_class": self.per_class_table(),
            "reliability": self.reliability().round(DIGITS),
            "answered": self.answered().round(DIGITS),
        }

    def predictions(self, files: Sequence[str]) -> pd.DataFrame:
        """Return a row an image: file, actual, predicted, confidence, probability_<class>...

        Raises:
            ValueError: unless there is one file an image.

        """
        if len(files) != len(self.labels):
            raise ValueError(f"{len(files):,} files for {len(self.labels):,} images")
        names = np.array(self.classes, dtype=object)
        return pd.DataFrame(
            {
                "file": list(files),
                "actual": names[self.labels],
                "predicted": names[self.predicted],
                "confidence": self.confidence.round(DIGITS),
                **{
                    f"probability_{name}": column.round(DIGITS)
                    for name, column in zip(self.classes, self.probabilities.T, strict=True)
                },
            }
        )

    def per_class_table(self) -> pd.DataFrame:
        """Return a row a class: class, precision, recall, f1, support."""
        return pd.DataFrame(
            [
                {
                    "class": scores.name,
                    "precision": round(scores.precision.value, DIGITS),
                    "recall": round(scores.recall.value, DIGITS),
                    "f1": round(scores.f1.value, DIGITS),
                    "support": scores.support,
                }
                for scores in self.per_class
            ]
        )

    def roc_points(self, points: int = 200) -> pd.DataFrame:
        """Return the ROC curves as rows of class, false_positive_rate, true_positive_rate.

        At most `points` rows a class; a class without a curve has none.
        """
        columns = ["class", "false_positive_rate", "true_positive_rate"]
        rows = [
            (scores.name, round(float(x), DIGITS), round(float(y), DIGITS))
            for scores in self.per_class
            if scores.roc is not None
            for curve in [scores.roc.thinned(points)]
            for x, y in zip(curve.false_positive_rate, curve.true_positive_rate, strict=True)
        ]
        return pd.DataFrame(rows, columns=columns)

    def most_confident_mistakes(self, n: int) -> Ints:
        """Return the rows of the `n` wrong predictions with the highest confidence, highest first.

        They are fewer where there are fewer mistakes.
        """
        wrong = np.flatnonzero(~self.correct)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:n]


def evaluate(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    classes: Sequence[str],
    *,
    leaked: npt.ArrayLike | None = None,
    near_leaked: npt.ArrayLike | None = None,
    bootstrap: int = RESAMPLES,
    seed: int,
) -> Evaluation:
    """Score `probabilities` (N, K) float against `labels` (N,) int, indices into K `classes`.

    `leaked` (N,) bool marks images that are also in train, which `without_leaks` leaves out, and
    `near_leaked` (N,) bool those that are in train or look like one there; by default there are
    none.

    A ratio whose denominator is 0 is 0, as the precision of a class never predicted. Macro F1 is
    the mean over the classes with images, and macro AUC over those with a ROC curve.

    The intervals are 95 % intervals: Wilson's for shares and F1, and for macro F1 that of a
    bootstrap of `bootstrap` resamples, in which `seed` decides. The images are taken as
    independent. The intervals say how the scores of this model would vary over test sets of this
    size, and nothing about how another training run would differ.

    Raises:
        ValueError: for shapes that disagree, no images, fewer than two classes, repeated class
            names, labels out of range, and probabilities that are none.

    """
    label_array, probability_array = _checked(labels, probabilities, classes)
    if bootstrap < 1:
        raise ValueError(f"bootstrap must be at least 1, got {bootstrap}")
    clean, far = (
        np.ones(len(label_array), bool) if marked is None else ~np.asarray(marked, bool)
        for marked in (leaked, near_leaked)
    )
    if not clean.shape == far.shape == label_array.shape:
        raise ValueError(f"leaked must be of shape {label_array.shape}, not {clean.shape}")
    predicted = probability_array.argmax(axis=1)
    confusion = _confusion(label_array, predicted, len(classes))
    curves = [_roc(label_array == k, probability_array[:, k]) for k in range(len(classes))]
    totals = _totals(confusion, bootstrap, seed)

    def of(rows: npt.NDArray[np.bool_]) -> Totals | None:
        part = _confusion(label_array[rows], predicted[rows], len(classes))
        return _totals(part, bootstrap, seed) if rows.any() else None

    return Evaluation(
        classes=tuple(classes),
        labels=label_array,
        probabilities=probability_array,
        loss=cross_entropy(label_array, probability_array),
        accuracy=totals.accuracy,
        macro_f1=totals.macro_f1,
        macro_auc=_macro_auc(curves),
        without_leaks=totals if clean.all() else of(clean),
        confusion=confusion,
        per_class=tuple(_of_class(confusion, k, name, curves[k]) for k, name in enumerate(classes)),
        without_near_duplicates=None if far.all() else of(far),
    )


def _macro_auc(curves: Sequence[RocCurve | None]) -> float:
    areas = [curve.auc for curve in curves if curve is not None]
    return float(np.mean(areas)) if areas else np.nan


def evaluate_dataset(
    dataset: Dataset, rows: Ints, probabilities: npt.ArrayLike, *, seed: int
) -> Evaluation:
    """Return `evaluate` of the probabilities (n, K) for `rows` (n,) int64 of a dataset."""
    result = evaluate(
        dataset.labels[rows],
        probabilities,
        dataset.classes,
        leaked=dataset.leaked[rows],
        near_leaked=dataset.near_leaked[rows],
        seed=seed,
    )
    before = dataset.given[rows]
    if corrected := int(np.count_nonzero(before != dataset.labels[rows])):
        other = evaluate(before, probabilities, dataset.classes, seed=seed)
        totals = Totals(len(rows), other.accuracy, other.macro_f1)
        return replace(result, as_labelled=totals, corrected_labels=corrected)
    return result


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return what `Evaluation.metrics` gave by the names that MLflow and DVC share.

    Names are test/accuracy or test/f1/happy: MLflow makes a section of charts of each prefix.
    """
    per_class = metrics["per_class"]
    return {
        **{f"test/{name}": value for name, value in metrics.items() if name != "per_class"},
        **{
            f"test/{score}/{name}": per_class[name][score]
            for score in ("precision", "recall", "f1")
            for name in per_class
        },
    }


def headlines(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return those of `flat_metrics` that DVC's tables have room for, in the order of HEADLINES."""
    names = [f"test/{name}" for name in HEADLINES]
    return {name: metrics[name] for name in names if name in metrics}


def _checked(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, classes: Sequence[str]
) -> tuple[Ints, Floats]:
    label_array = np.asarray(labels)
    probability_array = np.asarray(probabilities, dtype=np.float64)
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError(f"expected two or more different classes, got {list(classes)}")
    if label_array.ndim != 1 or label_array.size == 0:
        raise ValueError(f"labels must be of shape (N,), N at least 1, not {label_array.shape}")
    if not np.issubdtype(label_array.dtype, np.integer):
        raise ValueError(f"labels must be integers, not {label_array.dtype}")
    expected = (len(label_array), len(classes))
    if probability_array.shape != expected:
        raise ValueError(
            f"probabilities must be of shape {expected}, not {probability_array.shape}"
        )
    if label_array.min() < 0 or label_array.max() >= len(classes):
        raise ValueError(
            f"labels must lie in 0..{len(classes) - 1}, "
            f"not {label_array.min()}..{label_array.max()}"
        )
    if not np.isfinite(probability_array).all():
        bad = int((~np.isfinite(probability_array).all(axis=1)).sum())
        raise ValueError(f"probabilities of {bad:,} of {len(label_array):,} images are not finite")
    furthest = np.abs(probability_array.sum(axis=1) - 1).max()
    if probability_array.min() < 0 or probability_array.max() > 1 or furthest > ROW_SUM_TOLERANCE:
        raise ValueError("probabilities must lie in [0, 1] and sum to 1 for each image: logits?")
    return label_array.astype(np.int64), probability_array


def _confusion(labels: Ints, predicted: Ints, classes: int) -> Ints:
    cells = np.bincount(labels * classes + predicted, minlength=classes**2)
    return cells.reshape(classes, classes)


def _totals(confusion: Ints, resamples: int, seed: int) -> Totals:
    images = int(confusion.sum())
    return Totals(
        images=images,
        accuracy=wilson(int(np.trace(confusion)), images),
        macro_f1=intervals.macro_f1(confusion, resamples, seed),
    )


def _of_class(confusion: Ints, k: int, name: str, roc: RocCurve | None) -> ClassScores:
    hits, actual, predicted = map(int, (confusion[k, k], confusion[k].sum(), confusion[:, k].sum()))
    return ClassScores(
        name=name,
        support=actual,
        precision=wilson(hits, predicted),
        recall=wilson(hits, actual),
        f1=intervals.f1(hits, actual, predicted),
        roc=roc,
    )


def _roc(is_class: npt.NDArray[np.bool_], probability: Floats) -> RocCurve | None:
    if is_class.all() or not is_class.any():
        return None
    false_positive_rate, true_positive_rate, _ = sk.roc_curve(is_class, probability)
    return RocCurve(
        false_positive_rate,
        true_positive_rate,
        float(sk.auc(false_positive_rate, true_positive_rate)),
    )


def _flat(name: str, score: Estimate) -> dict[str, float]:
    return {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(value, DIGITS) for name, value in scores.items() if not np.isnan(value)}
