"""The sets of classes that hold the label of as many images as asked for."""

import numpy as np
import pytest

from emotion_detection.models import coverage
from emotion_detection.models.coverage import Coverage


def drawn(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, the last class rare, and the probabilities (rows, 3) of a network for them."""
    labels = rng.choice(3, rows, p=[0.6, 0.3, 0.1])
    logits = rng.normal(size=(rows, 3)) + 1.5 * np.eye(3)[labels]
    # It prefers the first class, so that one threshold for all would not do.
    logits[:, 0] += 1
    exponents = np.exp(logits)
    return labels, exponents / exponents.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("wanted", [0.8, 0.9, 0.95])
def test_the_sets_hold_the_label_of_as_many_images_of_each_class_as_asked_for(
    wanted: float,
) -> None:
    rng = np.random.default_rng(0)
    # The mean over validation sets is at least what was asked for, and little more.
    hits = np.zeros(3)
    repeats = 200
    labels, probabilities = drawn(rng, 20_000)
    for _ in range(repeats):
        sets = coverage.measured(*drawn(rng, 500)).sets(probabilities, wanted)
        held = sets[np.arange(len(labels)), labels]
        hits += [held[labels == label].mean() for label in range(3)]
    assert hits / repeats == pytest.approx([wanted + 0.01] * 3, abs=0.012)


def test_a_class_with_too_few_validation_images_is_in_every_set() -> None:
    # Of five images and one more, one may be missed for a coverage of 5 in 6, and none for more.
    five = Coverage(((0.1, 0.2, 0.3, 0.4, 0.5), ()))
    probabilities = np.array([[0.05, 0.95], [0.15, 0.85]])
    assert five.sets(probabilities, 5 / 6).tolist() == [[False, True], [True, True]]
    assert five.sets(probabilities, 0.84).all()


def test_it_is_the_same_as_json_and_what_is_none_is_refused() -> None:
    labels, probabilities = drawn(np.random.default_rng(1), 5000)
    found = coverage.measured(labels, probabilities)
    assert max(len(own) for own in found.scores) == coverage.MOST_SCORES
    assert coverage.from_json(found.to_json(), 3) == found
    for text in ("[[0.1], [0.2]]", "[[0.2, 0.1], [], []]", '["a", [], []]', "{}", "[[1], [], []]"):
        with pytest.raises(ValueError, match="no scores of 3 classes"):
            coverage.from_json(text, 3)
