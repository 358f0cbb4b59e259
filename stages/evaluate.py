"""Score the model on the test split, and add the scores to the run that trained it."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emotion_detection import figures, params, paths, stage, tracking
from emotion_detection.console import UserError, log, run
from emotion_detection.data.dataset import Dataset, sampled
from emotion_detection.evaluation.metrics import champion, corruptions, metrics, report
from emotion_detection.files import atomic, write_json
from emotion_detection.models.network import load
from emotion_detection.training.fit import fit

HEADLINES = (
    "accuracy",
    "macro_f1",
    "macro_auc",
    "loss",
    "calibration_error",
    "leaked_images",
    "accuracy_without_leaks",
    "corrupted_accuracy",
)


def main() -> None:
    """Read params, predict the test images, write scores, tables, figures and a report."""
    # That this begins says that the end of train is noted.
    stage.forget(paths.TRAIN_STATE)
    values = params.load()
    settings = values.evaluate
    dataset = Dataset.open(paths.DATASET)
    model = load(paths.MODEL)
    trained = _trained()
    rows = dataset.is_test.nonzero()[0]
    result = metrics.evaluate(
        dataset.labels[rows],
        fit.predict(model, dataset, rows, settings.batch_size),
        dataset.classes,
        leaked=dataset.leaked[rows],
        bootstrap=settings.bootstrap,
        seed=values.seed,
    )
    worsened = _robustness(model, dataset, rows, values)
    wrong = result.most_confident_mistakes(settings.mistakes)
    drawn = _figures(result, worsened, wrong, dataset.images[rows[wrong]])
    metrics = result.metrics()
    if worsened is not None:
        metrics["corrupted_accuracy"] = corruptions.mean_accuracy(worsened)
    run_id = tracking.load_run_id(paths.TRAIN_RUN)
    with tracking.resumed(run_id) as tracked:
        decision = _verdict(run_id if tracked else None, result, dataset, rows, values)
        with atomic(paths.EVALUATE) as folder:
            folder.mkdir()
            write_json(folder / paths.METRICS, _headlines(metrics))
            write_json(folder / "scores.json", metrics)
            write_json(folder / "champion.json", decision.as_json())
            files = [dataset.files[row] for row in rows]
            result.predictions(files).to_csv(
                folder / "predictions.csv", index=False, errors="surrogateescape"
            )
            result.roc_points().to_csv(folder / "roc.csv", index=False)
            result.per_class_table().to_csv(folder / "per_class.csv", index=False)
            result.reliability().round(metrics.DIGITS).to_csv(
                folder / "reliability.csv", index=False
            )
            if worsened is not None:
                worsened.to_csv(folder / "robustness.csv", index=False)
            else:
                # `dvc plots` complains of a table that is not there.
                (folder / "robustness.csv").write_text("condition,accuracy\n", encoding="utf-8")
            for name, figure in drawn.items():
                figures.save(figure, folder / f"{name}.png")
            report.write(
                report.Subject(
                    result=result,
                    dataset=dataset,
                    robustness=worsened,
                    decision=decision,
                    facts=report.training_facts(model, values, trained),
                    selected_on_test=values.split.validation == "test",
                    drawn=Path(values.ingest.source).resolve() == paths.SAMPLE.resolve(),
                ),
                folder,
                drawn,
            )
        if tracked:
            tracking.log_metrics(_tracked(metrics), dataset)
            tracking.log_metrics(
                {f"versus_champion/{name}": value for name, value in decision.metrics().items()}
            )
            tracking.set_tags(_tags(decision))
            tracking.log_files(paths.EVALUATE, "evaluation")
    log.info(
        "test accuracy %.4f (95 %% interval %.4f to %.4f), macro F1 %.4f on %s images; see %s",
        result.accuracy.value,
        result.accuracy.low,
        result.accuracy.high,
        result.macro_f1.value,
        f"{len(rows):,}",
        paths.EVALUATE,
    )
    if decision.version is None:
        log.info("not in the model registry: %s", decision.why)
    else:
        log.info(
            "version %s in the model registry %s champion: %s",
            decision.version,
            "is" if decision.champion else "is not",
            decision.why,
        )


def _trained() -> dict[str, float]:
    path = paths.TRAIN / paths.METRICS
    try:
        metrics: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `dvc repro train`") from error
    return metrics


def _figures(
    result: metrics.Evaluation,
    worsened: pd.DataFrame | None,
    wrong: np.ndarray,
    images_wrong: np.ndarray,
) -> dict[str, Figure]:
    drawn = {
        "confusion_counts": figures.confusion_matrix(
            result.confusion, result.classes, normalize=False
        ),
        "confusion_normalized": figures.confusion_matrix(
            result.confusion, result.classes, normalize=True
        ),
        "per_class": figures.per_class_bars(result),
        "reliability": figures.reliability(result),
        "roc": figures.roc_curves(result),
        "mistakes": figures.mistakes(
            images_wrong,
            [result.classes[label] for label in result.labels[wrong]],
            [result.classes[label] for label in result.predicted[wrong]],
            result.confidence[wrong],
        ),
    }
    if worsened is not None:
        drawn["robustness"] = figures.robustness(worsened)
    return drawn


def _robustness(
    model: keras.Model, dataset: Dataset, rows: np.ndarray, values: params.Params
) -> pd.DataFrame | None:
    settings = values.evaluate
    if settings.corruption_images == 0:
        return None
    chosen = sampled(dataset, rows, settings.corruption_images, values.seed)
    log.info(
        "robustness is measured on %s of %s test images",
        f"{len(chosen):,}",
        f"{len(rows):,}",
    )
    return corruptions.measure(
        model.predict_on_batch,
        dataset,
        chosen,
        batch_size=settings.batch_size,
        bootstrap=settings.bootstrap,
        seed=values.seed,
    )


def _verdict(
    run_id: str | None,
    result: metrics.Evaluation,
    dataset: Dataset,
    rows: np.ndarray,
    values: params.Params,
) -> champion.Decision:
    settings = values.evaluate
    if not settings.register_model:
        return champion.unregistered("evaluate.register_model is false")
    if run_id is None:
        return champion.unregistered("the MLflow run that trained it is gone")
    return champion.challenge(
        run_id,
        result,
        dataset,
        rows,
        batch_size=settings.batch_size,
        bootstrap=settings.bootstrap,
        seed=values.seed,
    )


def _tags(decision: champion.Decision) -> dict[str, str]:
    if decision.version is None:
        return {}
    return {"registered.version": decision.version, "champion.decision": decision.why}


def _headlines(metrics: dict[str, Any]) -> dict[str, float]:
    """Return what DVC's tables have room for, by the names that MLflow has."""
    return {f"test/{name}": metrics[name] for name in HEADLINES if name in metrics}


def _tracked(metrics: dict[str, Any]) -> dict[str, float]:
    """Return test/accuracy and test/f1/happy; MLflow makes a section of charts of each prefix."""
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
