"""Score the model on the test split, and add the scores to its MLflow run."""

from functools import partial

import numpy as np

from emotion_detection import paths
from emotion_detection.console import log, quiet, run
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import sampled, split
from emotion_detection.settings import params
from emotion_detection.tuning.chosen import applied


def main() -> None:
    """Read params, predict the test images, write scores, tables, figures and a report."""
    settings = applied(params.load(), paths.HYPERPARAMETERS)
    dataset = Dataset.open(paths.DATASET)
    # Imported here, since TensorFlow takes seconds, and wrong params are refused before.
    with quiet():
        from emotion_detection.evaluation import champion, corruptions, metrics, predictions, report
        from emotion_detection.figures.evaluation import evaluation_figures
        from emotion_detection.models import saving
        from emotion_detection.stage import Stage, load_network
        from emotion_detection.tracking import lineage, runs

    stage, seed = Stage("evaluate", settings, dataset), settings.seed
    if stage.restore():
        return
    model, rows = load_network(paths.MODEL, "export"), np.flatnonzero(dataset.is_test)
    stage.announce(f"{len(rows):,} test images")
    seen = lineage.of_files([paths.MODEL]).seen(dataset, split(dataset, settings.split))
    answers = predictions.predict(model, dataset, rows)
    result = metrics.evaluate_dataset(dataset, rows, answers, seed=seed)
    some = sampled(dataset, rows, settings.evaluate.corruption_images, settings.split.seed)
    corrupted = corruptions.measure(saving.predictor(model), dataset, some, seed=seed)
    figures = evaluation_figures(result, corrupted, dataset.images, rows)
    with stage.logging_to(runs.resumed(runs.load_run_id(paths.EXPORT_RUN))) as run_id:
        challenger = champion.Challenger(run_id, result, dataset, rows, seen)
        decision = champion.challenge(challenger, register=settings.evaluate.register, seed=seed)
        subject = report.subject(challenger, corrupted, decision, model, settings)
        scores = metrics.flat_metrics(subject.scores)
        stage.write(
            metrics.headlines(scores),
            tables=result.tables([dataset.files[row] for row in rows]) | {"corruptions": corrupted},
            figures=figures,
            more_metrics=scores | decision.metrics(),
            more_files=partial(report.write, subject, figures),
            tags=subject.tags(),
            headline=report.headline(subject),
        )
    log.info("evaluate: %s", decision.sentence)
    log.info("evaluate: %s; %s", report.headline(subject), paths.EVALUATE / "report.html")


if __name__ == "__main__":
    run(main, stage="evaluate")
