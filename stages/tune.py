"""Search for better settings; with tune.trials 0, take those in params.yaml."""

from functools import partial

from emotion_detection import paths
from emotion_detection.console import log, quiet, run
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import holdout, part
from emotion_detection.settings import params
from emotion_detection.tuning.chosen import save_hyperparameters, searched, write_empty_report


def main() -> None:
    """Read params, search, and write what was found."""
    settings = searched(params.load())
    if settings.tune.trials == 0:
        log.info("tune: no search (tune.trials is 0); %s", paths.HYPERPARAMETERS)
        save_hyperparameters(settings, None, paths.HYPERPARAMETERS)
        write_empty_report(paths.TUNE)
        return
    # Imported here, since TensorFlow takes seconds.
    with quiet():
        from emotion_detection.stage import Stage
        from emotion_detection.tuning import report, search
        from emotion_detection.tuning.task import Task, varying
        from emotion_detection.tuning.trial import run_trial
        from emotion_detection.tuning.workers import placed

    tune, seed = settings.tune, settings.seed
    dataset = Dataset.open(paths.DATASET)
    rows = part(dataset, holdout(dataset, settings.split), tune.images, settings.split.seed)
    stage = Stage("tune", settings, dataset, shared_over=varying(settings), also=["train"])
    if stage.restore():
        return
    of = dataset.images.shape[1:], len(dataset.classes)
    task = Task(tune, settings.network, settings.train, *of, seed)
    about = report.description(tune, rows)
    stage.announce(about)
    fixed = seed if settings.deterministic else None
    with (
        placed(tune.workers, dataset, rows, precision=stage.precision, seed=fixed) as train,
        stage.run(note=f"{about} of **{{data}}**.\n\n{report.NOTE}", rows=rows),
    ):
        run = partial(run_trial, dataset=dataset, rows=rows, train=train)
        found = search.search(task, folder=stage.folder, records=stage.shared / "trials", run=run)
        save_hyperparameters(settings, found.drawn, paths.HYPERPARAMETERS)
        stage.write(**report.report(found, tune))
    log.info("tune: %s; %s", report.summary(found), paths.HYPERPARAMETERS)


if __name__ == "__main__":
    run(main, stage="tune")
