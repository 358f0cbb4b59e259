"""Score the model on the test split, and add the scores to the run that trained it."""

from typing import Any

from emotion_detection import evaluation, figures, layout, params, tracking, training
from emotion_detection.console import log, run
from emotion_detection.dataset import Dataset
from emotion_detection.files import whole, write_json
from emotion_detection.network import load


def main() -> None:
    """Read params, predict the test images, write scores, tables and figures."""
    values = params.load()
    settings = values.evaluate
    dataset = Dataset.open(layout.DATASET)
    rows = dataset.is_test.nonzero()[0]
    probabilities = training.predict(load(layout.MODEL), dataset, rows, settings.batch_size)
    result = evaluation.evaluate(
        dataset.labels[rows],
        probabilities,
        dataset.classes,
        bootstrap=settings.bootstrap,
        seed=values.seed,
    )
    wrong = result.most_confident_mistakes(settings.mistakes)
    drawn = {
        "confusion_counts": figures.confusion_matrix(
            result.confusion, result.classes, normalize=False
        ),
        "confusion_normalized": figures.confusion_matrix(
            result.confusion, result.classes, normalize=True
        ),
        "per_class": figures.per_class_bars(result),
        "roc": figures.roc_curves(result),
        "mistakes": figures.mistakes(
            dataset.images[rows[wrong]],
            [result.classes[label] for label in result.labels[wrong]],
            [result.classes[label] for label in result.predicted[wrong]],
            result.confidence[wrong],
        ),
    }
    metrics = result.metrics()
    with whole(layout.EVALUATE) as report:
        report.mkdir()
        write_json(report / layout.METRICS, metrics)
        files = [dataset.files[row] for row in rows]
        result.predictions(files).to_csv(report / "predictions.csv", index=False)
        result.roc_points().to_csv(report / "roc.csv", index=False)
        result.per_class_table().to_csv(report / "per_class.csv", index=False)
        for name, figure in drawn.items():
            figures.save(figure, report / f"{name}.png")
    with tracking.resumed(tracking.load_run_id(layout.TRAIN_RUN)) as tracked:
        if tracked:
            tracking.log_metrics(_tracked(metrics))
            tracking.log_files(layout.EVALUATE, "evaluation")
    log.info(
        "test accuracy %.4f (95 %% interval %.4f to %.4f), macro F1 %.4f on %s images; see %s",
        result.accuracy.value,
        result.accuracy.low,
        result.accuracy.high,
        result.macro_f1.value,
        f"{len(rows):,}",
        layout.EVALUATE,
    )


def _tracked(metrics: dict[str, Any]) -> dict[str, float]:
    """Give test/accuracy and test/f1/happy; MLflow makes a section of charts of each prefix."""
    per_class = metrics["per_class"]
    return {
        **{f"test/{name}": value for name, value in metrics.items() if name != "per_class"},
        **{
            f"test/{score}/{name}": per_class[name][score]
            for score in ("precision", "recall", "f1")
            for name in per_class
        },
    }


if __name__ == "__main__":
    run(main)
