"""Confident learning on planted wrong labels."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from emotion_detection.labels.confident import Judgement, judge

CLASSES = 7
Planted = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def planted() -> Planted:
    """Return true labels, labels of which a tenth are wrong, and probabilities."""
    rng = np.random.default_rng(0)
    true = rng.integers(CLASSES, size=3000)
    labels, flipped = true.copy(), rng.random(3000) < 0.1
    labels[flipped] = (
        true[flipped] + rng.integers(1, CLASSES, size=np.count_nonzero(flipped))
    ) % CLASSES
    logits = rng.normal(size=(3000, CLASSES)) + 2.5 * np.eye(CLASSES)[true]
    return true, labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def found(planted: Planted) -> Judgement:
    _, labels, probabilities = planted
    return judge(labels, probabilities, seed=0)


def test_suspects_are_those_of_cleanlab(found: Judgement) -> None:
    # By cleanlab 2.9.0: find_label_issues(filter_by="confident_learning") and estimate_joint, which
    # rounds to whole images.
    assert len(found.suspects) == 263
    assert found.joint[0] == pytest.approx(
        [0.12, 0.00167, 0.00233, 0.00267, 0.00233, 0.001, 0.00333], abs=1 / 3000
    )
    assert found.wrong_of_all.value == pytest.approx(0.1413, abs=0.001)


def test_the_lowest_scores_are_wrong_labels(planted: Planted, found: Judgement) -> None:
    true, labels, _ = planted
    wrong = true != labels
    assert roc_auc_score(wrong, -found.score) > 0.97
    assert wrong[found.suspects[:100]].mean() > 0.9
    both = wrong & (found.suggested >= 0)
    assert (found.suggested[both] == true[both]).mean() > 0.95
    assert (np.diff(found.score[found.suspects]) >= 0).all()


def test_shares_lie_in_their_intervals_and_make_up_the_whole(
    planted: Planted, found: Judgement
) -> None:
    _, labels, probabilities = planted
    assert found.joint.sum() == pytest.approx(1)
    assert found.joint.sum(axis=1) == pytest.approx(np.bincount(labels) / len(labels))
    for share in (*found.wrong, found.wrong_of_all):
        assert 0 <= share.low < share.value < share.high <= 1
    assert judge(labels, probabilities, seed=0).wrong == found.wrong


def test_a_small_joint_is_that_of_the_paper_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    first = np.array([0.9, 0.8, 0.1, 0.2, 0.3, 0.1])
    found = judge(labels, np.stack([first, 1 - first], axis=1), resamples=10, seed=0)
    # The thresholds are 0.6 and 0.8: the fifth image reaches none.
    assert found.suggested.tolist() == [-1, -1, 1, -1, -1, -1]
    assert found.joint == pytest.approx(np.array([[1 / 3, 1 / 6], [0, 1 / 2]]))
    assert found.score == pytest.approx([0.9, 0.8, 0.1, 0.8, 0.7, 0.9])


def test_classes_without_images_are_no_trouble() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    found = judge(np.array([0, 1]), probabilities, resamples=10, seed=0)
    assert len(found.suspects) == 0
    assert found.wrong[2].value == 0
