"""One trial of a search: a network is trained, and logged as a child run."""

from collections.abc import Mapping

from emotion_detection.console import Progress
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.models.network import forward_gflops
from emotion_detection.tracking import runs, tags
from emotion_detection.training.callbacks import best_epoch
from emotion_detection.training.checkpoints import Checkpoints
from emotion_detection.training.fit import fit, network_to_train
from emotion_detection.training.pretrained import start
from emotion_detection.tuning.search import Outcome, Trial, shown


def run_trial(trial: Trial, dataset: Dataset, rows: Split, *, precision: str, seed: int) -> Outcome:
    """Train the network of `trial` on `rows` of `dataset`, and return what it came to.

    It is a child of the current MLflow run. Its epochs so far are in its folder, from which it goes
    on.

    Raises:
        UserError: if the network does not fit the images, or its loss is not a number.

    """
    with runs.child(
        f"trial {trial.number:02d}",
        params=_logged_params(trial, dataset),
        tags={
            tags.STAGE: "trial",
            tags.DATASET: dataset.source,
            tags.SELECTED_ON_TEST: tags.flag(rows.selected_on_test),
        },
        note=(
            f"Trial {trial.number} of {trial.total} of the search above it, its parent run.\n\n"
            "What was drawn is in the parameters, the entries of lists one by one too, for charts "
            "over several trials.\n\n"
            "`val_accuracy` is what the search maximizes, `epoch/` has the curves behind it."
        ),
    ):
        return _trained(trial, dataset, rows, precision, seed)


def _logged_params(trial: Trial, dataset: Dataset) -> Mapping[str, object]:
    gflops = forward_gflops(trial.network, dataset.images.shape[1:], len(dataset.classes))
    # MLflow's charts over trials take numbers.
    entries = {
        f"{name}.{number}": entry
        for name, value in trial.drawn.items()
        if isinstance(value, tuple)
        for number, entry in enumerate(value, 1)
    }
    return {
        **{name: shown(value) for name, value in trial.drawn.items()},
        **entries,
        "gflops": round(gflops, 4),
        "epochs": trial.until,
    }


def _trained(trial: Trial, dataset: Dataset, rows: Split, precision: str, seed: int) -> Outcome:
    training, checkpoints = trial.training, Checkpoints(trial.folder)
    model = network_to_train(trial.network, dataset, training, precision=precision, seed=seed)
    runs.log_params({"parameters": model.count_params()})
    if training.init_from and not checkpoints.exist():
        start(model, training.init_from, dataset=dataset)
    what = f"tune: trial {trial.number}/{trial.total}"
    with Progress(what, note=trial.standing, lines=False) as progress:
        history = fit(
            model,
            dataset,
            rows,
            training,
            seed=seed,
            checkpoints=checkpoints,
            log_epoch=runs.log_epoch,
            log_resumed=True,
            until=trial.until,
            what=what,
            progress=progress,
        )
    if trial.until == training.epochs:
        checkpoints.remove()
    best = best_epoch(history)
    outcome = Outcome(
        val_accuracy=float(best["val_accuracy"]),
        val_loss=float(best["val_loss"]),
        parameters=model.count_params(),
        epochs=len(history),
    )
    runs.log_metrics(
        {
            "val_accuracy": outcome.val_accuracy,
            "val_loss": outcome.val_loss,
            "seconds": float(history["seconds"].sum()),
        }
    )
    return outcome
