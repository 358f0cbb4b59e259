"""One trial of a search: a network is trained, and logged as a child run."""

from collections.abc import Mapping, Sequence

import keras
import pandas as pd

from emotion_detection.console import Progress
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.models.network import forward_gflops
from emotion_detection.tracking import runs, tags
from emotion_detection.training.callbacks import Row, best_epoch, figures
from emotion_detection.training.checkpoints import Checkpoints
from emotion_detection.training.fit import fit, network_to_train
from emotion_detection.training.pretrained import start
from emotion_detection.tuning.search import shown
from emotion_detection.tuning.task import COMPLETE, Outcome, Told, TrainTrial, Trial


def run_trial(trial: Trial, dataset: Dataset, rows: Split, *, train: TrainTrial) -> Outcome:
    """Have `train` train `trial` on `rows` of `dataset`, and return what it came to.

    It is a child of the current MLflow run.

    Raises:
        UserError: if the network does not fit the images, or its loss is not a number.

    """
    logged = 0

    def told(so_far: Sequence[Row]) -> bool:
        nonlocal logged
        for row in so_far[logged:]:
            runs.log_epoch(figures(row), int(row["epoch"]))
        logged = max(logged, len(so_far))
        return bool(trial.stop(so_far))

    with runs.child(
        trial.name,
        params=_logged_params(trial, dataset),
        tags={
            tags.STAGE: "trial",
            tags.DATASET: dataset.source,
            tags.SELECTED_ON_TEST: tags.flag(rows.selected_on_test),
        },
        note=(
            f"Trial {trial.number} of the search above it, its parent run.\n\n"
            "What was drawn is in the parameters, the entries of lists one by one too, for charts "
            "over several trials.\n\n"
            "`val_accuracy` is what the search maximizes, `epoch/` has the curves behind it."
        ),
    ):
        outcome = trial.known or train(trial, told)
        told(outcome.rows)
        best = best_epoch(pd.DataFrame(outcome.rows))
        runs.log_params({"parameters": outcome.parameters})
        runs.log_metrics(
            {
                "val_accuracy": float(best["val_accuracy"]),
                "val_loss": float(best["val_loss"]),
                "seconds": float(sum(row["seconds"] for row in outcome.rows)),
            }
        )
        runs.set_tags({tags.TRIAL_END: trial.stop(outcome.rows) or COMPLETE})
        return outcome


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


def train_trial(
    trial: Trial, told: Told, *, dataset: Dataset, rows: Split, precision: str
) -> Outcome:
    """Train the network of `trial` on `rows` of `dataset`, and return what it came to.

    `told` takes the epochs so far after each, once its checkpoint is written, and says whether the
    trial ends there. Its epochs so far are in its folder, from which it goes on.

    Raises:
        UserError: if the network does not fit the images, or its loss is not a number.

    """
    # Keras keeps every graph ever built until it is told not to.
    keras.backend.clear_session()
    training, checkpoints = trial.training, Checkpoints(trial.folder)
    model = network_to_train(trial.network, dataset, training, precision=precision, seed=trial.seed)
    if training.init_from and not checkpoints.exist():
        start(model, training.init_from, dataset=dataset)
    so_far = checkpoints.rows()
    # It may have been killed between the epoch and its end.
    if so_far and told(so_far):
        return Outcome(so_far, model.count_params())
    total = "" if trial.total is None else f"/{trial.total}"
    what = f"tune: trial {trial.number}{total}"
    with Progress(f"{what}, {trial.standing}", lines=False) as progress:
        history = fit(
            model,
            dataset,
            rows,
            training,
            seed=trial.seed,
            checkpoints=checkpoints,
            until=trial.until,
            stop=told,
            what=what,
            progress=progress,
        )
    epochs = [
        {str(name): value for name, value in row.items()} for row in history.to_dict("records")
    ]
    return Outcome(epochs, model.count_params())
