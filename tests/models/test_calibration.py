"""The temperature that is fitted on validation images."""

import numpy as np
import pytest

from emotion_detection.data.dataset import Dataset
from emotion_detection.models import calibration, saving
from tests.support.untrained import untrained


def drawn(rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, and the probabilities (rows, 4) that they are drawn with."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(rows, 4))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    return labels, probabilities


@pytest.mark.parametrize("too_sure", [3.0, 1.0, 0.5])
def test_the_temperature_undoes_what_makes_a_model_too_sure_or_too_unsure(too_sure: float) -> None:
    labels, probabilities = drawn()
    given = calibration.with_temperature(probabilities, 1 / too_sure)
    temperature = calibration.fit_temperature(labels, given)
    assert temperature == pytest.approx(too_sure, rel=0.03)
    restored = calibration.with_temperature(given, temperature)
    assert saving.cross_entropy(labels, restored) <= saving.cross_entropy(labels, given)
    np.testing.assert_array_equal(restored.argmax(axis=1), given.argmax(axis=1))


def test_a_probability_of_zero_stays_a_number() -> None:
    found = calibration.with_temperature(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), 0.1)
    np.testing.assert_allclose(found, [[1, 0], [0, 1]], atol=1e-6)


def test_the_scores_are_those_of_the_exported_model(toy: Dataset) -> None:
    model, rows = untrained((16, 16, 3)), np.arange(0, 90, 7)
    found = calibration.fit(model, toy, rows)
    exported = saving.combined([model], temperature=found.temperature)
    answers = saving.predict(exported, toy.images, rows)
    labels = toy.labels[rows]
    assert found.scores == {
        "export/val_accuracy": pytest.approx((answers.argmax(axis=1) == labels).mean(), abs=1e-6),
        "export/val_loss": pytest.approx(saving.cross_entropy(labels, answers), abs=1e-4),
        "export/temperature": found.temperature,
    }
    assert calibration.headlines(found.scores).keys() == {"export/val_accuracy"}
    of_label = answers[np.arange(len(labels)), labels]
    assert found.coverage is not None
    for label, scores in enumerate(found.coverage.scores):
        np.testing.assert_allclose(scores, np.sort(of_label[labels == label]), atol=1e-5)
    assert found.notes == {"coverage": found.coverage.to_json()}


def test_without_validation_images_there_is_no_temperature(toy: Dataset) -> None:
    found = calibration.fit(untrained((16, 16, 3)), toy, np.arange(0))
    assert (found.temperature, found.scores, found.coverage, found.notes) == (1.0, {}, None, {})
