"""Networks of different seeds, trained one after the other: an ensemble's, or to compare seeds."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import pandas as pd

from emotion_detection import paths
from emotion_detection.console import Progress, duration, log
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.figures.training import learning_curves
from emotion_detection.files import atomic, write_json
from emotion_detection.models.layers import plain
from emotion_detection.models.saving import load, save
from emotion_detection.settings.params import Params, Train
from emotion_detection.stage import Stage
from emotion_detection.tracking import lineage, runs
from emotion_detection.training.callbacks import LogEpoch, Row, best_epoch, figures
from emotion_detection.training.checkpoints import Checkpoints
from emotion_detection.training.fit import fit, network_to_train
from emotion_detection.training.pretrained import start
from emotion_detection.training.seeds import spread

NETWORK, HISTORY = "network.keras", "history.csv"

NOTE = (
    "Curves are under Model metrics, figures under Artifacts, the model under Logged models.\n\n"
    "The `test/` metrics are evaluate's, on the test split."
)


def count(settings: Params) -> int:
    """Return how many networks are trained."""
    return max(settings.ensemble.members, settings.train.seeds)


def description(settings: Params, rows: Split) -> str:
    """Return a training in words, for the log and MLflow."""
    number, members = count(settings), settings.ensemble.members
    networks = "1 network" if number == 1 else f"{number} networks, one after the other,"
    used = "first" if members == 1 else f"first {members}"
    which = f"; the model is made of the {used}" if number > members else ""
    return (
        f"Training {networks} on {len(rows.train):,} images, validating on "
        f"{len(rows.validation):,}{which}"
    )


def train_networks(
    settings: Params, rows: Split, *, stage: Stage, folder: Path, run_id: str
) -> list[pd.DataFrame]:
    """Train networks one after the other, save the members in `folder`; return all histories.

    While they train, the stage's report has the tables of `histories` so far.

    Raises:
        UserError: as `fit` and `pretrained.start` do.

    """
    trained: list[pd.DataFrame] = []
    for index in range(count(settings)):
        history = train_network(
            *(index, settings, rows), stage=stage, folder=folder, run_id=run_id, before=trained
        )
        trained.append(history)
    return trained


def train_network(
    index: int,
    settings: Params,
    rows: Split,
    *,
    stage: Stage,
    folder: Path,
    run_id: str,
    before: Sequence[pd.DataFrame] = (),
) -> pd.DataFrame:
    """Train network `index`, from 0, save it in `folder` if it is a member; return its history.

    It is the network that it would be alone with its seed, `seed` + `index`. Its state does not
    depend on the number of networks, so where there are more of them those that are trained already
    stay as they are. The epochs that were not logged to the current MLflow run, `run_id`, are
    logged to it too. `before` are the histories of the networks before it, for the report.

    Raises:
        UserError: as `fit` and `pretrained.start` do.

    """
    members, number = settings.ensemble.members, count(settings)
    name = f"network_{index + 1}"
    prefix = "epoch" if number == 1 else name
    state = stage.shared / name
    trained = state / "trained"
    logged = stage.folder / f"{name}.json"
    known = _logged(logged)
    reused = trained.exists()
    if not reused:
        write_json(logged, {"run_id": run_id, "complete": False})
        _train(
            settings,
            rows,
            what="train" if number == 1 else f"train: network {index + 1}/{number}",
            stage=stage,
            state=state,
            target=trained,
            seed=settings.seed + index,
            log_epoch=lambda row, epoch: runs.log_epoch(row, epoch, prefix),
            log_resumed=known.get("run_id") != run_id,
            before=before,
        )
        history = pd.read_csv(trained / HISTORY)
    else:
        history = pd.read_csv(trained / HISTORY)
        Checkpoints(state).remove()
        if known != {"run_id": run_id, "complete": True}:
            for row in history.to_dict("records"):
                runs.log_epoch(figures(row), int(row["epoch"]), prefix)
    write_json(logged, {"run_id": run_id, "complete": True})
    stage.shared.touch()
    if index == 0:
        runs.log_params({"parameters": members * load(trained / NETWORK)[0].count_params()})
    if index < members:
        shutil.copyfile(trained / NETWORK, folder / paths.network(index).name)
    if number > 1:
        _log_network(history, index, number, reused=reused)
    return history


def _log_network(history: pd.DataFrame, index: int, number: int, *, reused: bool) -> None:
    seconds, others = float(history["seconds"].sum()), number - index - 1
    time = "trained before" if reused else duration(seconds)
    left = f"; about {duration(seconds * others)} left for the others" if others else ""
    log.info("train: network %d/%d: %s, %s%s", index + 1, number, summary([history]), time, left)


def _logged(path: Path) -> dict[str, Any]:
    """Return which run a network's epochs were logged to last, and whether all of them were."""
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known


def _train(
    settings: Params,
    rows: Split,
    *,
    what: str,
    stage: Stage,
    state: Path,
    target: Path,
    seed: int,
    log_epoch: LogEpoch,
    log_resumed: bool,
    before: Sequence[pd.DataFrame],
) -> None:
    """Train a network with its checkpoints in `state`, and write it and its history to `target`."""
    # Keras keeps every graph that it built until it is told not to.
    keras.backend.clear_session()
    dataset, training, checkpoints = stage.dataset, settings.train, Checkpoints(state)
    options: dict[str, Any] = {"precision": stage.precision, "seed": seed}
    model = network_to_train(settings.network, dataset, training, **options)
    kept = state / lineage.FILE
    if checkpoints.exist():
        learnt = lineage.from_json(kept.read_text(encoding="utf-8"), kept.name)
    else:
        learnt = _begun(model, dataset, rows, training, what)
        with atomic(kept) as path:
            path.write_text(learnt.to_json(), encoding="utf-8")
    so_far: dict[int, Row] = {int(row["epoch"]): row for row in checkpoints.rows()}

    def report() -> None:
        if so_far:
            history = pd.DataFrame(list(so_far.values()))
            stage.write_so_far(histories([*before, history]))

    def log_and_report(row: Mapping[str, float], epoch: int) -> None:
        so_far[epoch] = {"epoch": epoch, **row}
        report()
        log_epoch(row, epoch)

    # DVC has removed what an interrupted training left in the report.
    report()
    with Progress(what) as progress:
        history = fit(
            model,
            dataset,
            rows,
            training,
            seed=seed,
            checkpoints=checkpoints,
            log_epoch=log_and_report,
            log_resumed=log_resumed,
            progress=progress,
        )
    with atomic(target) as finished:
        finished.mkdir()
        history.to_csv(finished / HISTORY, index=False)
        copy = plain(model, dataset.images.shape[1:])
        save(copy, finished / NETWORK, dataset.classes, lineage=learnt.to_json())
    checkpoints.remove()
    kept.unlink()


def _begun(
    model: keras.Model, dataset: Dataset, rows: Split, settings: Train, what: str
) -> lineage.Lineage:
    """Set `model` to what its training begins with, and return what it will have learnt from."""
    own = lineage.of_images(dataset.digests[row] for row in rows.train)
    ancestor = settings.init_from and start(model, settings.init_from, dataset=dataset)
    learnt = lineage.joined([own, ancestor] if ancestor else [own])
    for sentence in learnt.seen(dataset, rows).sentences:
        log.warning("%s: %s", what, sentence)
    return learnt


def report(
    trained: Sequence[pd.DataFrame], folder: Path, dataset: Dataset, rows: Split
) -> dict[str, Any]:
    """Return what the stage reports of networks whose members lie in `folder`, by `Stage.write`.

    `trained` are the histories of all networks.
    """
    tables = histories(trained)
    learnt = lineage.of_files(sorted(folder.glob("*.keras")))
    return {
        "metrics": metrics(trained),
        "more_metrics": interval(trained),
        "tables": tables,
        "figures": {"learning_curves": learning_curves(tables.get("networks", tables["history"]))},
        "more_files": learnt.write,
        "tags": learnt.seen(dataset, rows).tags(),
    }


def histories(trained: Sequence[pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the tables history, the mean over the networks, and of several also networks.

    The time of an epoch is in neither: the same training has the same tables.
    """
    numbered = [
        history.drop(columns="seconds").assign(network=number)
        for number, history in enumerate(trained, start=1)
    ]
    networks = pd.concat(numbered, ignore_index=True)
    if len(numbered) == 1:
        return {"history": networks.drop(columns="network")}
    mean = networks.drop(columns="network").groupby("epoch", as_index=False).mean()
    return {"history": mean, "networks": networks}


def summary(trained: Sequence[pd.DataFrame]) -> str:
    """Return what a training came to, in words."""
    best = [best_epoch(history) for history in trained]
    if len(best) > 1:
        return f"validation accuracy {spread([row['val_accuracy'] for row in best])}"
    ((row,), (history,)) = best, trained
    return (
        f"validation accuracy {100 * row['val_accuracy']:.1f} % (epoch {int(row['epoch'])} of "
        f"{len(history)})"
    )


def interval(trained: Sequence[pd.DataFrame]) -> dict[str, float]:
    """Return the ends of the interval of the mean validation accuracy of several networks."""
    if len(trained) == 1:
        return {}
    found = spread([best_epoch(history)["val_accuracy"] for history in trained])
    return {"val_accuracy_low": found.low, "val_accuracy_high": found.high}


def metrics(trained: Sequence[pd.DataFrame]) -> dict[str, float]:
    """Return the figures of the epochs that are kept; of several networks their mean.

    Of several there is the standard deviation of val_accuracy too.
    """
    best = [best_epoch(history) for history in trained]
    rows = pd.DataFrame(
        {
            "epochs": [len(history) for history in trained],
            "best_epoch": [int(row["epoch"]) for row in best],
            "val_loss": [row["val_loss"] for row in best],
            "val_accuracy": [row["val_accuracy"] for row in best],
            "train_loss": [row["loss"] for row in best],
            "train_accuracy": [row["accuracy"] for row in best],
        }
    )
    if len(rows) > 1:
        mean = {name: float(value) for name, value in rows.mean().items()}
        return mean | {"val_accuracy_sd": float(rows["val_accuracy"].std())}
    # A row of counts and figures would be one of floats.
    return dict(rows.astype(object).iloc[0])
