"""Confident learning: which labels are wrong, by probabilities of networks that did not learn them.

After Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels",
Journal of Artificial Intelligence Research 70, 2021.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emotion_detection.evaluation.intervals import (
    INTERVAL_PERCENTILES,
    Estimate,
    Floats,
    Ints,
    wilson,
)

RESAMPLES = 200


@dataclass(frozen=True, eq=False)
class Judgement:
    """What confident learning finds in N images of K classes.

    `joint` (K, K) float64 is the estimated share of all images by given label, in rows, and true
    one. `wrong` is the estimated share of wrong labels among the images given each class, and
    `wrong_of_all` that among all; a class without images has 0. `suggested` (N,) int64 is another
    class where the label is suspect, and -1 elsewhere. `score` (N,) float64 is (1 + m) / 2 of the
    normalised margin m, the probability of the label minus the highest other one: near 0, the label
    is hardly right.
    """

    joint: Floats
    wrong: tuple[Estimate, ...]
    wrong_of_all: Estimate
    suggested: Ints
    score: Floats

    @property
    def suspects(self) -> Ints:
        """The rows whose labels are suspect, (n,) int64, the lowest score first."""
        rows = np.flatnonzero(self.suggested >= 0)
        return rows[np.argsort(self.score[rows], kind="stable")]


def judge(
    labels: Ints, probabilities: Floats, *, resamples: int = RESAMPLES, seed: int
) -> Judgement:
    """Return what is wrong in `labels` (N,) int64, by `probabilities` (N, K) of each image's class.

    They have to be of networks that did not learn from the image. A label is suspect where the
    image is confidently of another class: off the diagonal of the confident joint. The intervals
    are 95 % intervals by a percentile bootstrap over the images, in which `seed` decides; they take
    the probabilities as they are, and reach as far as Wilson's of no wrong label.
    """
    classes = probabilities.shape[1]
    likely = _confident_class(labels, probabilities, np.ones(len(labels)))
    joint = _joint(labels, likely, np.ones(len(labels)), classes)
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, classes + 1))
    for number in range(resamples):
        weights = np.bincount(rng.integers(len(labels), size=len(labels)), minlength=len(labels))
        of = _confident_class(labels, probabilities, weights)
        drawn[number] = _shares_wrong(_joint(labels, of, weights, classes))
    ends = np.percentile(drawn, INTERVAL_PERCENTILES, axis=0)
    found = _shares_wrong(joint)
    # Without a suspect every resample has 0, which says too much of a few images.
    images = [*np.bincount(labels, minlength=classes).tolist(), len(labels)]
    none = [wilson(0, number).high for number in images]
    low, high = np.minimum(ends[0], found), np.max([ends[1], found, none], axis=0)
    wrong = [Estimate(*map(float, of)) for of in zip(found, low, high, strict=True)]
    of_label = probabilities[np.arange(len(labels)), labels]
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return Judgement(
        joint=joint,
        wrong=tuple(wrong[:-1]),
        wrong_of_all=wrong[-1],
        suggested=np.where((likely >= 0) & (likely != labels), likely, -1),
        score=(1 + of_label - others.max(axis=1)) / 2,
    )


def _confident_class(labels: Ints, probabilities: Floats, weights: npt.NDArray) -> Ints:
    """Return the class that each image is confidently of, (N,) int64; -1 where it is of none.

    That is the most probable one of those whose probability reaches the class's threshold, which is
    its mean over the images with this label.
    """
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    images = np.bincount(labels, weights, minlength=classes)
    sums = np.bincount(labels, weights * own, minlength=classes)
    thresholds = np.divide(sums, images, out=np.full(classes, np.inf), where=images > 0)
    # One unit of rounding would otherwise leave out the only image of a class.
    reached = probabilities >= thresholds - 1e-9
    return np.where(reached.any(axis=1), np.where(reached, probabilities, -1).argmax(axis=1), -1)


def _joint(labels: Ints, likely: Ints, weights: npt.NDArray, classes: int) -> Floats:
    """Return the estimated joint of given and true labels, (K, K), with sum 1.

    The counts of given and confident classes are scaled so that each row has the class's share of
    the images.
    """
    sure = likely >= 0
    cells = labels[sure] * classes + likely[sure]
    counts = np.bincount(cells, weights[sure], minlength=classes**2).reshape(classes, classes)
    images = np.bincount(labels, weights, minlength=classes)
    # A class of which nothing is sure is taken as it is labelled.
    np.fill_diagonal(counts, counts.diagonal() + (counts.sum(axis=1) == 0))
    return counts * (images / counts.sum(axis=1) / images.sum())[:, None]


def _shares_wrong(joint: Floats) -> Floats:
    """Return the share of wrong labels of each class, and of all: (K + 1,)."""
    images, right = joint.sum(axis=1), joint.diagonal()
    of_class = np.divide(images - right, images, out=np.zeros(len(joint)), where=images > 0)
    return np.append(of_class, (images - right).sum())
