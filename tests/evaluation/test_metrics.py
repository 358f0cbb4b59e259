"""The scores of a classifier, their intervals, and the tables of them."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn import metrics as sk

from emotion_detection.evaluation.metrics import Evaluation, evaluate, flat_metrics, headlines

CLASSES = ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")


def random_set(
    images: int, classes: int, *, seed: int = 0, skill: float = 1.5
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and the probabilities of a classifier that is right more often than chance."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, size=images, p=rng.dirichlet(np.full(classes, 3.0)))
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += skill
    exponentials = np.exp(logits)
    return labels, exponentials / exponentials.sum(axis=1, keepdims=True)


def certain(predicted: Sequence[int] | np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes)[list(predicted)]


@pytest.fixture(scope="module")
def seven() -> Evaluation:
    return evaluate(*random_set(7178, 7), CLASSES, seed=1)


def test_point_scores_agree_with_scikit_learn(seven: Evaluation) -> None:
    report = sk.classification_report(
        seven.labels, seven.predicted, target_names=CLASSES, output_dict=True, zero_division=0
    )
    assert seven.accuracy.value == pytest.approx(report["accuracy"])
    assert seven.macro_f1.value == pytest.approx(report["macro avg"]["f1-score"])
    assert seven.loss == pytest.approx(sk.log_loss(seven.labels, seven.probabilities))
    for scores in seven.per_class:
        expected = report[scores.name]
        assert scores.precision.value == pytest.approx(expected["precision"])
        assert scores.recall.value == pytest.approx(expected["recall"])
        assert scores.f1.value == pytest.approx(expected["f1-score"])
        assert scores.support == expected["support"]
    np.testing.assert_array_equal(
        seven.confusion, sk.confusion_matrix(seven.labels, seven.predicted)
    )


def test_areas_agree_with_scikit_learn(seven: Evaluation) -> None:
    per_class = sk.roc_auc_score(
        np.eye(7)[seven.labels], seven.probabilities, average=None, multi_class="ovr"
    )
    assert [scores.roc.auc for scores in seven.per_class if scores.roc] == pytest.approx(per_class)
    assert seven.macro_auc == pytest.approx(
        sk.roc_auc_score(seven.labels, seven.probabilities, multi_class="ovr")
    )


def test_every_value_lies_in_its_interval(seven: Evaluation) -> None:
    estimates = [seven.accuracy, seven.macro_f1]
    for scores in seven.per_class:
        estimates += [scores.precision, scores.recall, scores.f1]
    for estimate in estimates:
        assert 0 <= estimate.low < estimate.value < estimate.high <= 1


def test_the_seed_decides_the_interval_of_macro_f1_and_nothing_else() -> None:
    labels, probabilities = random_set(500, 7)
    first, again, other = (
        evaluate(labels, probabilities, CLASSES, seed=seed).metrics() for seed in (3, 3, 4)
    )
    assert first == again
    differ = {name for name in first if first[name] != other[name]}
    assert differ == {
        f"macro_f1{which}_{end}" for which in ("", "_without_leaks") for end in ("low", "high")
    }


def test_empty_ratios_are_zero_and_a_class_without_images_does_not_count() -> None:
    # "b" is never predicted, "c" neither occurs nor is predicted.
    found = evaluate([0, 0, 1], certain([0, 0, 0], 3), ("a", "b", "c"), seed=0)
    a, b, c = found.per_class
    assert a.precision.value == pytest.approx(2 / 3)
    assert (b.precision.value, b.recall.value, b.f1.value) == (0, 0, 0)
    assert (c.precision.value, c.recall.value, c.f1.value, c.support) == (0, 0, 0, 0)
    assert (c.recall.low, c.recall.high) == (0, 1)
    assert found.macro_f1.value == pytest.approx(
        sk.f1_score([0, 0, 1], [0, 0, 0], average="macro", zero_division=0)
    )


def test_a_class_absent_from_the_labels_has_no_curve() -> None:
    labels, probabilities = random_set(200, 3)
    labels[labels == 2] = 0
    found = evaluate(labels, probabilities, ("a", "b", "c"), seed=0)
    assert found.per_class[2].roc is None
    metrics = found.metrics()
    assert "auc" not in metrics["per_class"]["c"]
    assert metrics["per_class"]["c"]["support"] == 0
    assert metrics["macro_auc"] == pytest.approx(
        np.mean([metrics["per_class"][name]["auc"] for name in "ab"]), abs=1e-6
    )
    assert set(found.roc_points()["class"]) == {"a", "b"}


def test_labels_of_a_single_class_have_no_macro_auc() -> None:
    found = evaluate([1, 1], certain([1, 0], 2), ("a", "b"), seed=0)
    assert np.isnan(found.macro_auc)
    assert "macro_auc" not in found.metrics()
    assert found.roc_points().empty
    assert list(found.roc_points().columns) == [
        "class",
        "false_positive_rate",
        "true_positive_rate",
    ]


def test_a_certain_mistake_has_a_finite_loss() -> None:
    found = evaluate([0], certain([1], 2), ("a", "b"), seed=0)
    assert found.loss == pytest.approx(-np.log(np.finfo(np.float32).tiny))


def test_metrics_are_strict_json_in_a_fixed_order(seven: Evaluation) -> None:
    metrics = json.loads(json.dumps(seven.metrics(), allow_nan=False))
    assert list(metrics) == [
        "loss",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "macro_f1",
        "macro_f1_low",
        "macro_f1_high",
        "macro_auc",
        "calibration_error",
        "leaked_images",
        "accuracy_without_leaks",
        "accuracy_without_leaks_low",
        "accuracy_without_leaks_high",
        "macro_f1_without_leaks",
        "macro_f1_without_leaks_low",
        "macro_f1_without_leaks_high",
        "per_class",
    ]
    assert list(metrics["per_class"]) == list(CLASSES)
    assert set(metrics["per_class"]["angry"]) == {
        *(
            f"{score}{end}"
            for score in ("precision", "recall", "f1")
            for end in ("", "_low", "_high")
        ),
        "auc",
        "support",
    }
    assert metrics["accuracy"] == round(seven.accuracy.value, 6)


def test_mlflow_and_dvc_have_metrics_of_the_same_names(seven: Evaluation) -> None:
    metrics = seven.metrics() | {"corrupted_accuracy": 0.5}
    flat = flat_metrics(metrics)
    assert all(isinstance(value, int | float) for value in flat.values())
    assert flat["test/accuracy_low"] == metrics["accuracy_low"]
    assert flat["test/f1/happy"] == metrics["per_class"]["happy"]["f1"]
    assert {name for name in flat if name.count("/") == 2} == {
        f"test/{score}/{name}" for score in ("precision", "recall", "f1") for name in CLASSES
    }
    found = headlines(flat)
    assert list(found) == ["test/accuracy", "test/macro_f1"]
    assert found.items() <= flat.items()


def test_all_tables_are_there_by_name(seven: Evaluation) -> None:
    files = [f"test/im{i}.png" for i in range(len(seven.labels))]
    tables = seven.tables(files)
    assert list(tables) == ["predictions", "roc", "per_class", "reliability", "answered"]
    assert tables["predictions"].equals(seven.predictions(files))
    assert tables["roc"].equals(seven.roc_points())
    assert tables["per_class"]["f1"].tolist() == pytest.approx(
        [scores.f1.value for scores in seven.per_class], abs=1e-6
    )
    assert tables["per_class"]["class"].tolist() == list(CLASSES)
    assert tables["reliability"].equals(seven.reliability().round(6))
    with pytest.raises(ValueError, match="1 files for 7,178 images"):
        seven.tables(["a"])


def test_predictions_have_one_row_an_image(seven: Evaluation) -> None:
    files = [f"test/im{i}.png" for i in range(len(seven.labels))]
    table = seven.predictions(files)
    assert list(table.columns) == [
        "file",
        "actual",
        "predicted",
        "confidence",
        *(f"probability_{name}" for name in CLASSES),
    ]
    assert table["file"].tolist() == files
    assert (table["actual"] == table["predicted"]).mean() == pytest.approx(seven.accuracy.value)
    row = table.iloc[5]
    assert row["actual"] == CLASSES[seven.labels[5]]
    assert row[f"probability_{row['predicted']}"] == row["confidence"]
    with pytest.raises(ValueError, match="2 files for 7,178 images"):
        seven.predictions(["a", "b"])


def test_roc_points_are_thinned_but_keep_the_curve(seven: Evaluation) -> None:
    points = seven.roc_points()
    assert points.groupby("class").size().max() <= 200
    for scores in seven.per_class:
        curve = points[points["class"] == scores.name]
        x, y = curve["false_positive_rate"].to_numpy(), curve["true_positive_rate"].to_numpy()
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
        assert (np.diff(x) >= 0).all()
        assert (np.diff(y) >= 0).all()
        assert scores.roc is not None
        assert sk.auc(x, y) == pytest.approx(scores.roc.auc, abs=2e-3)


def test_most_confident_mistakes_are_mistakes_in_order() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
    found = evaluate([0, 0, 1, 0, 0], probabilities, ("a", "b"), seed=0)
    assert found.most_confident_mistakes(10).tolist() == [1, 4, 3, 2]
    assert found.most_confident_mistakes(2).tolist() == [1, 4]
    assert found.most_confident_mistakes(0).tolist() == []


def test_without_leaks_the_scores_are_those_of_the_other_images(seven: Evaluation) -> None:
    leaked = np.random.default_rng(0).random(len(seven.labels)) < 0.1
    found = evaluate(seven.labels, seven.probabilities, CLASSES, leaked=leaked, seed=1)
    alone = evaluate(seven.labels[~leaked], seven.probabilities[~leaked], CLASSES, seed=1)
    assert found.without_leaks is not None
    assert found.without_leaks.accuracy == alone.accuracy
    assert found.without_leaks.macro_f1 == alone.macro_f1
    assert found.accuracy == seven.accuracy
    metrics = found.metrics()
    assert metrics["leaked_images"] == leaked.sum()
    assert metrics["accuracy_without_leaks_low"] == round(alone.accuracy.low, 6)
    assert metrics["macro_f1_without_leaks"] == round(alone.macro_f1.value, 6)


def test_without_a_leak_nothing_is_left_out(seven: Evaluation) -> None:
    metrics = seven.metrics()
    assert metrics["leaked_images"] == 0
    for name in ("accuracy", "accuracy_low", "accuracy_high"):
        assert metrics[name.replace("accuracy", "accuracy_without_leaks")] == metrics[name]


def test_where_everything_leaks_there_is_no_score_without() -> None:
    found = evaluate([0, 1], RIGHT, ("a", "b"), leaked=[True, True], seed=0)
    assert found.without_leaks is None
    assert found.metrics()["leaked_images"] == 2
    assert not [name for name in found.metrics() if "without" in name]
    with pytest.raises(ValueError, match="leaked"):
        evaluate([0, 1], RIGHT, ("a", "b"), leaked=[True], seed=0)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    # Of 10 images at 0.95, 6 are right; of 4 at 0.6, a bin's upper end, which it includes, 3.
    probabilities = np.array([[0.95, 0.05]] * 10 + [[0.6, 0.4]] * 4)
    labels = [0] * 6 + [1] * 4 + [0] * 3 + [1]
    found = evaluate(labels, probabilities, ("a", "b"), seed=0)
    assert found.calibration_error == pytest.approx((10 * 0.35 + 4 * 0.15) / 14)
    table = found.reliability()
    assert table["images"].tolist() == [4, 10]
    assert table["confidence_from"].tolist() == pytest.approx([8 / 15, 14 / 15])
    assert table["confidence_to"].tolist() == pytest.approx([9 / 15, 1])
    assert table["confidence"].tolist() == pytest.approx([0.6, 0.95])
    assert table["accuracy"].tolist() == pytest.approx([0.75, 0.6])
    assert found.reliability(bins=1)["accuracy"].tolist() == pytest.approx([9 / 14])


def test_the_surest_images_are_answered_first() -> None:
    confidence = np.array([0.6, 0.9, 0.7, 0.8])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    table = evaluate([1, 0, 1, 0], probabilities, ("a", "b"), seed=0).answered(parts=4)
    assert table["images"].tolist() == [1, 2, 3, 4]
    assert table["share"].tolist() == [0.25, 0.5, 0.75, 1]
    assert table["confidence"].tolist() == [0.9, 0.8, 0.7, 0.6]
    assert table["accuracy"].tolist() == pytest.approx([1, 1, 2 / 3, 0.5])
    assert (table["accuracy_low"] < table["accuracy"]).all()
    # Of three images twenty shares are three.
    assert len(evaluate([0, 1, 0], np.eye(2)[[0, 1, 1]], ("a", "b"), seed=0).answered()) == 3


def test_a_classifier_that_knows_its_chances_is_calibrated() -> None:
    rng = np.random.default_rng(5)
    first = rng.random(40_000)
    labels = (rng.random(40_000) > first).astype(int)
    found = evaluate(labels, np.stack([first, 1 - first], axis=1), ("a", "b"), seed=0)
    assert found.calibration_error < 0.01
    assert found.reliability()["images"].sum() == 40_000


RIGHT = certain([0, 1], 2)


@pytest.mark.parametrize(
    ("labels", "probabilities", "classes", "message"),
    [
        ([0, 1], RIGHT, ("a",), "two or more different classes"),
        ([0, 1], RIGHT, ("a", "a"), "two or more different classes"),
        ([], np.empty((0, 2)), ("a", "b"), "N at least 1"),
        ([[0, 1]], RIGHT, ("a", "b"), "shape"),
        ([0.0, 1.0], RIGHT, ("a", "b"), "integers, not float64"),
        ([0, 1, 1], RIGHT, ("a", "b"), r"shape \(3, 2\), not \(2, 2\)"),
        ([0, 1], RIGHT, ("a", "b", "c"), r"shape \(2, 3\), not \(2, 2\)"),
        ([0, 2], RIGHT, ("a", "b"), r"0\.\.1, not 0\.\.2"),
        ([-1, 1], RIGHT, ("a", "b"), r"0\.\.1, not -1\.\.1"),
        ([0, 1], RIGHT * np.nan, ("a", "b"), "2 of 2 images are not finite"),
        ([0, 1], RIGHT * 3, ("a", "b"), "logits"),
        ([0, 1], RIGHT * 0.5, ("a", "b"), "sum to 1"),
    ],
)
def test_impossible_inputs_are_refused(
    labels: list[int], probabilities: np.ndarray, classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(labels, probabilities, classes, seed=0)


def test_no_resamples_are_refused() -> None:
    with pytest.raises(ValueError, match="bootstrap"):
        evaluate([0, 1], RIGHT, ("a", "b"), bootstrap=0, seed=0)


def test_near_duplicates_are_left_out_of_scores_of_their_own(seven: Evaluation) -> None:
    near = np.random.default_rng(1).random(len(seven.labels)) < 0.3
    found = evaluate(seven.labels, seven.probabilities, CLASSES, near_leaked=near, seed=1)
    alone = evaluate(seven.labels[~near], seven.probabilities[~near], CLASSES, seed=1)
    metrics = found.metrics()
    assert metrics["near_leaked_images"] == near.sum()
    assert metrics["accuracy_without_near_duplicates"] == round(alone.accuracy.value, 6)
    assert metrics["macro_f1_without_near_duplicates_low"] == round(alone.macro_f1.low, 6)
    assert "accuracy_without_near_duplicates" not in seven.metrics()
