"""Search for a network; with tune.trials 0, take the one in params.yaml.

With more tune.workers than one, this is the chief of as many processes that run the same.
"""

import sys
from functools import partial

from emotion_detection import params, paths
from emotion_detection.console import log, run
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import part, split
from emotion_detection.params import Params
from emotion_detection.tuning.chosen import save_hyperparameters, write_empty_report

WORKER = (sys.executable, "-m", "stages.tune")


def main() -> None:
    """Read params, search, and write what was found."""
    settings = params.load()
    if settings.tune.trials:
        _search(settings)
        return
    log.info("tune.trials = 0: no search, the network of params.yaml is taken")
    save_hyperparameters(settings.network, paths.HYPERPARAMETERS)
    write_empty_report(paths.TUNE)


def _search(settings: Params) -> None:
    # Imported here, since TensorFlow takes seconds.
    from emotion_detection.stage import Stage
    from emotion_detection.tuning.search import NOTE, Task, description, report, search, work
    from emotion_detection.tuning.trial import run_trial
    from emotion_detection.tuning.workers import worker_id

    tune, seed, worker = settings.tune, settings.seed, worker_id()
    dataset = Dataset.open(paths.DATASET)
    rows = part(dataset, split(dataset, settings.split), tune.images, settings.split.seed)
    stage = Stage("tune", settings, dataset)
    if worker is None and stage.restore():
        return
    task = Task(tune, settings.network, dataset.images.shape[1:], len(dataset.classes), seed)
    train = partial(
        run_trial, dataset=dataset, rows=rows, settings=tune, precision=stage.precision, seed=seed
    )
    if worker is not None:
        with stage.joined(worker):
            work(task, worker, folder=stage.folder, run=train)
        return
    about = description(tune, rows)
    log.info("%s; %s", about, stage.computes_in)
    with stage.run(note=f"{about} of **{dataset.source}**.\n\n{NOTE}", rows=rows):
        chosen, trials = search(task, folder=stage.folder, run=train, command=WORKER)
        save_hyperparameters(chosen, paths.HYPERPARAMETERS)
        stage.write(**report(trials, chosen, tune))


if __name__ == "__main__":
    run(main)
