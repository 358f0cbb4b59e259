"""Search for better settings; with tune.trials 0, take those in params.yaml.

With more tune.workers than one, this is the chief of as many processes that run the same.
"""

import sys
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
        from emotion_detection.tuning.workers import worker_id

    tune, seed, worker = settings.tune, settings.seed, worker_id()
    dataset = Dataset.open(paths.DATASET)
    rows = part(dataset, holdout(dataset, settings.split), tune.images, settings.split.seed)
    stage = Stage("tune", settings, dataset, shared_over=varying(settings), also=["train"])
    if worker is None and stage.restore():
        return
    of = dataset.images.shape[1:], len(dataset.classes)
    task = Task(tune, settings.network, settings.train, *of, seed)
    train = partial(run_trial, dataset=dataset, rows=rows, precision=stage.precision)
    folder, records = stage.folder, stage.shared / "trials"
    if worker is not None:
        with stage.joined(worker):
            search.work(task, worker, folder=folder, records=records, run=train)
        return
    about = report.description(tune, rows)
    stage.announce(about)
    with stage.run(note=f"{about} of **{{data}}**.\n\n{report.NOTE}", rows=rows):
        command = (sys.executable, "-m", "stages.tune")
        found = search.search(task, folder=folder, records=records, run=train, command=command)
        save_hyperparameters(settings, found.drawn, paths.HYPERPARAMETERS)
        stage.write(**report.report(found, tune))
    log.info("tune: %s; %s", report.summary(found), paths.HYPERPARAMETERS)


if __name__ == "__main__":
    run(main, stage="tune")
