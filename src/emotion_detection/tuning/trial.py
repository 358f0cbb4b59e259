"""One trial of a search: a network is built, trained for a while, and logged as a child run."""

import math
from collections.abc import Mapping

import keras

from emotion_detection.console import Progress, UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.models.network import forward_gflops
from emotion_detection.params import Train, Tune
from emotion_detection.tracking import runs, tags
from emotion_detection.training.callbacks import best_epoch
from emotion_detection.training.fit import fit, network_to_train
from emotion_detection.tuning.search import Outcome, Trial
from emotion_detection.tuning.space import columns_of, values_of


def run_trial(
    trial: Trial,
    dataset: Dataset,
    rows: Split,
    settings: Tune,
    *,
    precision: str,
    seed: int,
) -> Outcome:
    """Train the network of `trial` on `rows` of `dataset`, and return what it came to.

    It is a child of the current MLflow run. Trials of hyperband leave their weights for those that
    go on from them.

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
            "Its network is in the parameters; blocks, layers and sizes are there one by one "
            "for charts over several trials.\n\n"
            "`val_accuracy` is what the search maximizes, `epoch/` has the curves behind it."
        ),
    ):
        return _trained(trial, dataset, rows, settings, precision, seed)


def _logged_params(trial: Trial, dataset: Dataset) -> Mapping[str, object]:
    gflops = forward_gflops(trial.network, dataset.images.shape[1:], len(dataset.classes))
    # The values one by one too: MLflow's charts over trials take numbers.
    return {
        **columns_of(trial.network),
        **values_of(trial.network),
        "gflops": round(gflops, 4),
        "epochs": trial.epochs,
    }


def _trained(
    trial: Trial, dataset: Dataset, rows: Split, settings: Tune, precision: str, seed: int
) -> Outcome:
    training = Train(
        optimizer="adam",
        lr=settings.lr,
        schedule="one_cycle",
        batch_size=settings.batch_size,
        epochs=trial.epochs,
    )
    model = network_to_train(trial.network, dataset, training, precision=precision, seed=seed)
    runs.log_params({"parameters": model.count_params()})
    if trial.continues:
        model.load_weights(trial.continues)
    what = f"tune: trial {trial.number}/{trial.total}"
    with Progress(what, note=trial.standing, lines=False) as progress:
        history = fit(
            model,
            dataset,
            rows,
            training,
            seed=seed,
            log_epoch=runs.log_epoch,
            first_epoch=trial.first_epoch,
            progress=progress,
        )
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
    if settings.oracle == "hyperband":
        _leave(model, trial, float(history["loss"].iloc[-1]))
    return outcome


def _leave(model: keras.Model, trial: Trial, last_loss: float) -> None:
    if not math.isfinite(last_loss):
        raise UserError("its last loss is not a number, and nothing goes on from there")
    model.save_weights(trial.checkpoint)
