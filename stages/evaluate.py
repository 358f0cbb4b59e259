"""Score the model on the test split, and add the scores to its MLflow run."""

import numpy as np

from emotion_detection import params, paths
from emotion_detection.console import log, run
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import sampled
from emotion_detection.tuning.space import load_hyperparameters


def main() -> None:
    """Read params, predict the test images, write scores, tables, figures and a report."""
    settings = params.load()
    dataset = Dataset.open(paths.DATASET)
    network = load_hyperparameters(paths.HYPERPARAMETERS)
    # Imported here, since TensorFlow takes seconds, and wrong params are refused before.
    from emotion_detection.evaluation import champion, corruptions, metrics, report
    from emotion_detection.figures.evaluation import evaluation_figures
    from emotion_detection.models import saving
    from emotion_detection.stage import Stage, load_network
    from emotion_detection.tracking import runs

    stage = Stage("evaluate", settings, dataset)
    if stage.restore():
        return
    model = load_network(paths.MODEL, "export")
    rows = np.flatnonzero(dataset.is_test)
    answers = saving.predict(model, dataset.images, rows)
    result = metrics.evaluate(
        dataset.labels[rows],
        answers,
        dataset.classes,
        leaked=dataset.leaked[rows],
        seed=settings.seed,
    )
    chosen = sampled(dataset, rows, settings.evaluate.corruption_images, settings.split.seed)
    corrupted = corruptions.measure(saving.compiled(model), dataset, chosen, seed=settings.seed)
    scores = metrics.flat_metrics(result.metrics()) | corruptions.metrics(corrupted)
    figures = evaluation_figures(result, corrupted, dataset.images, rows)
    exported = runs.load_run_id(paths.EXPORT_RUN)
    with stage.logging_to(runs.resumed(exported)) as run_id:
        challenger = champion.Challenger(run_id, result, dataset, rows)
        decision = champion.challenge(
            challenger, register_model=settings.evaluate.register_model, seed=settings.seed
        )
        facts = report.training_facts(model, network, settings)
        subject = report.Subject(result, dataset, corrupted, decision, facts, settings)
        stage.write(
            metrics.headlines(scores),
            tables=result.tables([dataset.files[row] for row in rows]) | {"corruptions": corrupted},
            figures=figures,
            more_metrics=scores | decision.metrics(),
            more_files=lambda folder: report.write(subject, folder, figures),
            tags=decision.tags(),
        )
    log.info("%s; see %s", result.sentence(), paths.EVALUATE)
    log.info("%s", decision.sentence)


if __name__ == "__main__":
    run(main)
