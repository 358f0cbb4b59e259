"""Search for a network; with tune.trials 0, take the one in params.yaml.

With more tune.workers than one, this is the chief of as many processes that run the same.
"""

import sys
from functools import partial

from emotion_detection import params, paths
from emotion_detection.console import log, quiet, run
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import part, split
from emotion_detection.tuning.chosen import save_hyperparameters, write_empty_report


def main() -> None:
    """Read params, search, and write what was found."""
    settings = params.load()
    if not settings.tune.trials:
        log.info("tune: no search (tune.trials is 0); %s", paths.HYPERPARAMETERS)
        save_hyperparameters(settings.network, paths.HYPERPARAMETERS)
        write_empty_report(paths.TUNE)
        return
    # Imported here, since TensorFlow takes seconds.
    with quiet():
        from emotion_detection.stage import Stage
        from emotion_detection.tuning import search
        from emotion_detection.tuning.trial import run_trial
        from emotion_detection.tuning.workers import worker_id

    tune, seed, worker = settings.tune, settings.seed, worker_id()
    dataset = Dataset.open(paths.DATASET)
    rows = part(dataset, split(dataset, settings.split), tune.images, settings.split.seed)
    stage = Stage("tune", settings, dataset)
    if worker is None and stage.restore():
        return
    task = search.Task(tune, settings.network, dataset.images.shape[1:], len(dataset.classes), seed)
    train = partial(
        run_trial, dataset=dataset, rows=rows, settings=tune, precision=stage.precision, seed=seed
    )
    if worker is not None:
        with stage.joined(worker):
            search.work(task, worker, folder=stage.folder, run=train)
        return
    about = search.description(tune, rows)
    stage.announce(about)
    with stage.run(note=f"{about} of **{{data}}**.\n\n{search.NOTE}", rows=rows):
        command = (sys.executable, "-m", "stages.tune")
        chosen, trials = search.search(task, folder=stage.folder, run=train, command=command)
        save_hyperparameters(chosen, paths.HYPERPARAMETERS)
        stage.write(**search.report(trials, chosen, tune))
    log.info("tune: %s; %s", search.summary(trials), paths.HYPERPARAMETERS)


if __name__ == "__main__":
    run(main, stage="tune")
