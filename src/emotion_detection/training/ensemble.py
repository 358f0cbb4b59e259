"""The members of an ensemble: networks of different seeds, trained one after the other."""

from collections.abc import Sequence
from pathlib import Path

import keras
import pandas as pd

from emotion_detection import paths
from emotion_detection.console import log
from emotion_detection.data.splits import Split
from emotion_detection.models.layers import plain
from emotion_detection.models.saving import save
from emotion_detection.params import Network, Params, flat
from emotion_detection.stage import Stage
from emotion_detection.tracking import runs
from emotion_detection.training.callbacks import best_epoch
from emotion_detection.training.checkpoints import Checkpoints
from emotion_detection.training.fit import fit, network_to_train
from emotion_detection.training.pretrained import start

NOTE = (
    "Curves are under Model metrics, figures under Artifacts, the model under Logged models.\n\n"
    "The `test/` metrics are evaluate's, on the test split."
)


def description(members: int, rows: Split) -> str:
    """Return a training in words, for the log and MLflow."""
    networks = "1 network" if members == 1 else f"{members} networks, one after the other,"
    return (
        f"Training {networks} on {len(rows.train):,} images, validating on {len(rows.validation):,}"
    )


def train_member(
    member: int,
    settings: Params,
    network: Network,
    rows: Split,
    *,
    stage: Stage,
    folder: Path,
    log_resumed: bool,
) -> pd.DataFrame:
    """Train `member`, from 0, save it in `folder`, and return its history.

    It is the network that it would be alone with its seed, `seed` + `member`. Its checkpoints do
    not depend on the number of members, so more members leave those that there are as they are.
    `log_resumed` logs the epochs of an earlier process too.

    Raises:
        UserError: as `fit` and `pretrained.start` do.

    """
    # Keras keeps every graph that it built until it is told not to.
    keras.backend.clear_session()
    dataset = stage.dataset
    seed, members = settings.seed + member, settings.ensemble.members
    checkpoints = Checkpoints(stage.shared / f"member_{member + 1}")
    model = network_to_train(network, dataset, settings.train, precision=stage.precision, seed=seed)
    if member == 0:
        log.info("%s parameters per network", f"{model.count_params():,}")
        runs.log_params({"parameters": members * model.count_params()})
    if members > 1:
        log.info("member %d/%d", member + 1, members)
    if settings.train.init_from and not checkpoints.exist():
        start(
            model, settings.train.init_from, dataset=dataset, split=flat(settings.split, "split.")
        )
    prefix = "epoch" if members == 1 else f"member_{member + 1}"
    history = fit(
        model,
        dataset,
        rows,
        settings.train,
        seed=seed,
        checkpoints=checkpoints,
        log_epoch=lambda row, epoch: runs.log_epoch(row, epoch, prefix),
        log_resumed=log_resumed,
    )
    network_to_save = plain(model, dataset.images.shape[1:])
    save(network_to_save, folder / paths.network(member).name, dataset.classes)
    return history


def histories(of_members: Sequence[pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the tables history, the mean over the members, and of several also members.

    The time of an epoch is in neither: the same training has the same tables.
    """
    numbered = [
        history.drop(columns="seconds").assign(member=member)
        for member, history in enumerate(of_members, start=1)
    ]
    members = pd.concat(numbered, ignore_index=True)
    if len(numbered) == 1:
        return {"history": members.drop(columns="member")}
    mean = members.drop(columns="member").groupby("epoch", as_index=False).mean()
    return {"history": mean, "members": members}


def metrics(of_members: Sequence[pd.DataFrame]) -> dict[str, float]:
    """Return the figures of the epochs that are kept, and of several members their mean."""
    best = [best_epoch(history) for history in of_members]
    rows = pd.DataFrame(
        {
            "epochs": [len(history) for history in of_members],
            "best_epoch": [int(row["epoch"]) for row in best],
            "val_loss": [row["val_loss"] for row in best],
            "val_accuracy": [row["val_accuracy"] for row in best],
            "train_loss": [row["loss"] for row in best],
            "train_accuracy": [row["accuracy"] for row in best],
        }
    )
    if len(rows) > 1:
        return {name: float(value) for name, value in rows.mean().items()}
    # A row of counts and figures would be one of floats.
    return dict(rows.astype(object).iloc[0])
