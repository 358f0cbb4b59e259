"""Scores of a classifier on a labelled set, and how far chance alone could move them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binomtest
from sklearn import metrics as sk

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

INTERVAL_PERCENTILES = (2.5, 97.5)
# Keras clips here too, so that the loss agrees with the one `model.evaluate` prints.
SMALLEST_PROBABILITY = 1e-7
# Wide enough for a softmax computed in bfloat16, far too narrow for logits.
ROW_SUM_TOLERANCE = 0.01
# Finer than one image in a million, so that `dvc metrics diff` shows no floating-point noise.
DIGITS = 6
# Of the bootstrap's tables, so that hundreds of classes need no more memory than 128 MiB.
CELLS_AT_ONCE = 2**24


@dataclass(frozen=True)
class Estimate:
    """A score with the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class RocCurve:
    """One class against the rest: rates of shape (T,), one point a threshold, from (0, 0) up."""

    false_positive_rate: Floats
    true_positive_rate: Floats
    auc: float

    def thinned(self, points: int) -> "RocCurve":
        """Keep at most `points`, evenly spaced along the curve, both ends among them.

        The area stays that of the full curve.
        """
        travelled = self.false_positive_rate + self.true_positive_rate
        wanted = np.linspace(0.0, travelled[-1], points)
        kept = np.unique(np.searchsorted(travelled, wanted).clip(max=len(travelled) - 1))
        return RocCurve(self.false_positive_rate[kept], self.true_positive_rate[kept], self.auc)


@dataclass(frozen=True, eq=False)
class ClassScores:
    """What the classifier does with one class; `roc` is None where no curve exists."""

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
    """Everything `evaluate` found out.

    `labels` is (N,) int64, `probabilities` (N, K) float64 and `confusion` (K, K) int64, with
    actual classes in rows and predicted ones in columns; `macro_auc` is NaN where no class has a
    curve, and `without_leaks` None where every image leaks.
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

    @property
    def predicted(self) -> Ints:
        """The most probable class of each image, (N,) int64; the first one where several tie."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidence(self) -> Floats:
        """The probability of the predicted class of each image, (N,) float64."""
        return self.probabilities.max(axis=1)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Which images are predicted as labelled, (N,)."""
        return self.predicted == self.labels

    @property
    def leaked_images(self) -> int:
        """Images that `without_leaks` leaves out."""
        return len(self.labels) - (self.without_leaks.images if self.without_leaks else 0)

    @property
    def calibration_error(self) -> float:
        """By how much confidence and accuracy differ, averaged over the images: from 0 to 1.

        The expected calibration error over 15 bins of equal width (Guo, Pleiss, Sun and
        Weinberger, "On calibration of modern neural networks", ICML 2017).
        """
        bins = self.reliability()
        gap = (bins["accuracy"] - bins["confidence"]).abs()
        return float((gap * bins["images"]).sum() / len(self.labels))

    def reliability(self, bins: int = 15) -> pd.DataFrame:
        """Accuracy by confidence: one row for each of `bins` equal parts of 0 to 1 with images.

        Columns: confidence_from (not included), confidence_to (included), images, confidence
        (their mean) and accuracy.
        """
        number = (np.ceil(self.confidence * bins).astype(np.int64) - 1).clip(0, bins - 1)
        table = pd.DataFrame({"bin": number, "confidence": self.confidence, "accuracy": self.right})
        found = table.groupby("bin").agg(
            images=("accuracy", "size"),
            confidence=("confidence", "mean"),
            accuracy=("accuracy", "mean"),
        )
        edges = found.index.to_numpy()
        found.insert(0, "confidence_from", edges / bins)
        found.insert(1, "confidence_to", (edges + 1) / bins)
        return found.reset_index(drop=True)

    def metrics(self) -> dict[str, Any]:
        """The scores as JSON: totals first, then `per_class` by name.

        JSON has no NaN: what does not exist is left out.
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

    def predictions(self, files: Sequence[str]) -> pd.DataFrame:
        """One row an image: file, actual, predicted, confidence, probability_<class>...

        Raises ValueError unless there is one file an image.
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
        """One row a class: class, precision, recall, f1, support."""
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
        """The curves as rows of class, false_positive_rate, true_positive_rate.

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
        """Rows of the at most `n` wrong predictions with the highest confidence, highest first."""
        wrong = np.flatnonzero(~self.right)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:n]


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images: the new one against the old one."""

    difference: Estimate
    """Accuracy of the new one less that of the old one."""

    only_new: int
    """Images that the new one alone has right."""

    only_old: int
    """Images that the old one alone has right."""

    p_value: float
    """How often chance alone parts two equal classifiers by so much: McNemar's exact test."""

    @property
    def better(self) -> bool:
        """Whether the new one is better: the whole interval of the difference lies above 0."""
        return self.difference.low > 0


class _Scores(NamedTuple):
    """Scores of one confusion matrix, or of a stack of them along the first axis."""

    accuracy: Floats
    macro_f1: Floats
    precision: Floats
    recall: Floats
    f1: Floats


def evaluate(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    classes: Sequence[str],
    *,
    leaked: npt.ArrayLike | None = None,
    bootstrap: int = 1000,
    seed: int,
) -> Evaluation:
    """Score `probabilities` (N, K) float against `labels` (N,) int, indices into K `classes`.

    `leaked` (N,) bool says which images the classifier may have learnt from: they are left out of
    `without_leaks`; by default there are none.

    A ratio with nothing in its denominator is 0: the precision of a class never predicted, the
    recall of a class without images, and F1 where both are. Macro F1 averages over all of
    `classes`, absent ones too, as scikit-learn does when it is told the labels. A class absent
    from `labels`, or alone in it, has no ROC curve; macro AUC averages over those that have one.

    The intervals are 95 % percentile intervals over `bootstrap` resamples of the images (Efron,
    "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979). They say
    how the scores of this very model would vary over test sets of this size, its images taken as
    independent; they say nothing of how another training run would differ.

    Raises ValueError for shapes that disagree, no images, fewer than two classes, repeated class
    names, labels out of range, probabilities that are not finite, outside [0, 1] or do not sum to
    1, and `bootstrap` below 1.
    """
    label_array, probability_array = _checked(labels, probabilities, classes)
    if bootstrap < 1:
        raise ValueError(f"bootstrap must be at least 1, got {bootstrap}")

    clean = np.ones(len(label_array), bool) if leaked is None else ~np.asarray(leaked, bool)
    if clean.shape != label_array.shape:
        raise ValueError(f"leaked must be of shape {label_array.shape}, not {clean.shape}")

    of_label = probability_array[np.arange(len(label_array)), label_array]
    predicted = probability_array.argmax(axis=1)
    confusion = _confusion(label_array, predicted, len(classes))
    clean_confusion = _confusion(label_array[clean], predicted[clean], len(classes))
    observed = _scores(confusion)
    resampled = _resampled_scores(confusion, bootstrap, seed)
    curves = [_roc(label_array == k, probability_array[:, k]) for k in range(len(classes))]
    areas = [curve.auc for curve in curves if curve is not None]

    return Evaluation(
        classes=tuple(classes),
        labels=label_array,
        probabilities=probability_array,
        loss=float(-np.log(of_label.clip(min=SMALLEST_PROBABILITY)).mean()),
        accuracy=_estimate(observed.accuracy, resampled.accuracy),
        macro_f1=_estimate(observed.macro_f1, resampled.macro_f1),
        macro_auc=float(np.mean(areas)) if areas else np.nan,
        without_leaks=_totals(clean_confusion, bootstrap, seed) if clean.any() else None,
        confusion=confusion,
        per_class=tuple(
            ClassScores(
                name=name,
                support=int(confusion[k].sum()),
                precision=_estimate(observed.precision[k], resampled.precision[:, k]),
                recall=_estimate(observed.recall[k], resampled.recall[:, k]),
                f1=_estimate(observed.f1[k], resampled.f1[:, k]),
                roc=curves[k],
            )
            for k, name in enumerate(classes)
        ),
    )


def compare(
    new: npt.ArrayLike, old: npt.ArrayLike, *, bootstrap: int = 1000, seed: int
) -> Comparison:
    """Compare two classifiers by which of the same N images they have right, (N,) bool each.

    The interval is a 95 % percentile interval over `bootstrap` resamples of the images, both
    classifiers seeing the same ones. The test is McNemar's ("Note on the sampling error of the
    difference between correlated proportions or percentages", Psychometrika 12, 1947), two-sided
    and exact: of the images that one alone has right, each is as likely to be either's.

    Raises ValueError for no images, and for shapes that disagree.
    """
    new_right, old_right = np.asarray(new, bool), np.asarray(old, bool)
    if new_right.shape != old_right.shape or new_right.ndim != 1 or new_right.size == 0:
        raise ValueError(
            f"expected two times the same images, got {new_right.shape} and {old_right.shape}"
        )
    only_new = int((new_right & ~old_right).sum())
    only_old = int((old_right & ~new_right).sum())
    images = len(new_right)
    counts = np.array([only_new, only_old, images - only_new - only_old])
    resampled = np.concatenate(list(_resampled(counts, bootstrap, seed)))
    discordant = only_new + only_old
    return Comparison(
        difference=_estimate(
            np.float64((only_new - only_old) / images), (resampled[:, 0] - resampled[:, 1]) / images
        ),
        only_new=only_new,
        only_old=only_old,
        p_value=float(binomtest(only_new, discordant).pvalue) if discordant else 1.0,
    )


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


def _resampled(counts: Ints, resamples: int, seed: int) -> Iterator[Ints]:
    """Tables of `counts`, confusion matrices say, of images drawn with replacement.

    Gives `resamples` of them in all, (n, *counts.shape) at a time. The scores see an image only as
    a cell of the table, and N draws from N images fall into the cells multinomially: this is the
    bootstrap itself, not an approximation, without touching an image.
    """
    images = counts.sum()
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS_AT_ONCE // counts.size)
    for done in range(0, resamples, at_once):
        size = min(at_once, resamples - done)
        drawn = rng.multinomial(images, counts.ravel() / images, size=size)
        yield drawn.reshape(size, *counts.shape)


def _resampled_scores(confusion: Ints, resamples: int, seed: int) -> _Scores:
    parts = [_scores(drawn) for drawn in _resampled(confusion, resamples, seed)]
    return _Scores(*(np.concatenate(of_score) for of_score in zip(*parts, strict=True)))


def _totals(confusion: Ints, resamples: int, seed: int) -> Totals:
    observed, resampled = _scores(confusion), _resampled_scores(confusion, resamples, seed)
    return Totals(
        images=int(confusion.sum()),
        accuracy=_estimate(observed.accuracy, resampled.accuracy),
        macro_f1=_estimate(observed.macro_f1, resampled.macro_f1),
    )


def _scores(confusion: Ints) -> _Scores:
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    actual = confusion.sum(axis=-1)
    predicted = confusion.sum(axis=-2)
    f1 = _ratio(2 * right, actual + predicted)
    return _Scores(
        accuracy=_ratio(right.sum(axis=-1), actual.sum(axis=-1)),
        macro_f1=f1.mean(axis=-1),
        precision=_ratio(right, predicted),
        recall=_ratio(right, actual),
        f1=f1,
    )


def _ratio(numerator: Ints, denominator: Ints) -> Floats:
    # A numerator here never exceeds its denominator, so 0 / 0 is the only case to decide.
    return numerator / np.maximum(denominator, 1)


def _estimate(value: Floats | np.float64, resampled: Floats) -> Estimate:
    low, high = np.percentile(resampled, INTERVAL_PERCENTILES)
    return Estimate(float(value), float(low), float(high))


def _roc(is_class: npt.NDArray[np.bool_], probability: Floats) -> RocCurve | None:
    if is_class.all() or not is_class.any():
        return None
    false_positive_rate, true_positive_rate, _ = sk.roc_curve(is_class, probability)
    return RocCurve(
        false_positive_rate,
        true_positive_rate,
        float(sk.auc(false_positive_rate, true_positive_rate)),
    )


def _flat(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(value, DIGITS) for name, value in scores.items() if not np.isnan(value)}
