"""Train the network that tune chose, once per seed, and track it."""

from emotion_detection import paths
from emotion_detection.console import log, quiet, run
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import split
from emotion_detection.files import atomic
from emotion_detection.settings import params
from emotion_detection.settings.sections import flat
from emotion_detection.tuning.chosen import applied


def main() -> None:
    """Read params, train, write the networks, their history and their MLflow run's id."""
    settings = applied(params.load(), paths.HYPERPARAMETERS, stage="train")
    dataset = Dataset.open(paths.DATASET)
    rows = split(dataset, settings.split)
    # Imported here, since TensorFlow takes seconds, and wrong params are refused before.
    with quiet():
        from emotion_detection.stage import Stage
        from emotion_detection.training import ensemble

    stage = Stage("train", settings, dataset, shared_over=["ensemble.members", "train.seeds"])
    if stage.restore():
        return
    planned = ensemble.jobs(settings, dataset, rows)
    about = ensemble.description(planned)
    stage.announce(about)
    note = f"{about}, of **{{data}}**.\n\n{ensemble.NOTE}"
    with (
        stage.run(note=note, rows=rows, params=flat(settings.network, "network.")) as run_id,
        atomic(paths.NETWORKS) as folder,
    ):
        folder.mkdir()
        trained = ensemble.train_networks(
            settings, planned, stage=stage, folder=folder, run_id=run_id
        )
        stage.save_run_id(folder / paths.RUN_FILE)
        stage.write(**ensemble.report(trained, planned, stage=stage, folder=folder, rows=rows))
    log.info(
        "train: %s; %s", ensemble.summary(trained, folds=settings.split.folds > 0), paths.NETWORKS
    )


if __name__ == "__main__":
    run(main, stage="train")
