"""Networks that are trained one after the other: members of an ensemble, seeds, folds."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import keras
import pandas as pd

from emotion_detection import paths
from emotion_detection.console import Progress, duration, log
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split, folds
from emotion_detection.figures.training import learning_curves
from emotion_detection.files import atomic, write_json
from emotion_detection.models.layers import plain
from emotion_detection.models.saving import load, save
from emotion_detection.settings.params import Params, Train
from emotion_detection.stage import Stage
from emotion_detection.tracking import lineage, runs
from emotion_detection.training.callbacks import LogEpoch, Row, accuracy, best_epoch, figures
from emotion_detection.training.checkpoints import Checkpoints
from emotion_detection.training.fit import fit, network_to_train
from emotion_detection.training.folds import out_of_fold
from emotion_detection.training.pretrained import start
from emotion_detection.training.seeds import spread

TRAINED, NETWORK, HISTORY = "trained", "network.keras", "history.csv"

NOTE = (
    "Curves are under Model metrics, figures under Artifacts, the model under Logged models.\n\n"
    "The `test/` metrics are evaluate's, on the test split."
)


@dataclass(frozen=True)
class Job:
    """A network to train on `rows`: the `number`th, from 1, of its `kind`, of which there are `of`.

    It is the network that it would be alone with its `seed`. `member` says that the model is made
    of it. It is trained to the epoch `until`, None for train.epochs.
    """

    kind: Literal["network", "fold"]
    number: int
    of: int
    seed: int
    rows: Split
    member: bool
    until: int | None = None

    @property
    def name(self) -> str:
        """Its name in files and in MLflow."""
        return f"{self.kind}_{self.number}"

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.kind} {self.number}/{self.of}"


def jobs(settings: Params, dataset: Dataset, rows: Split) -> list[Job]:
    """Return the networks to train, in their order; with split.folds one a fold comes before.

    Raises:
        UserError: as `folds` does.

    """
    parts = folds(dataset, settings.split)
    members, number = (
        settings.ensemble.members,
        max(settings.ensemble.members, settings.train.seeds),
    )
    return [
        *(
            Job("fold", index + 1, len(parts), settings.seed, part, member=False)
            for index, part in enumerate(parts)
        ),
        *(
            Job("network", index + 1, number, settings.seed + index, rows, member=index < members)
            for index in range(number)
        ),
    ]


def description(planned: Sequence[Job]) -> str:
    """Return a training in words, for the log and MLflow."""
    parts, networks = _by_kind(planned, "fold"), _by_kind(planned, "network")
    number, members = len(networks), sum(job.member for job in networks)
    several = "1 network" if number == 1 else f"{number} networks, one after the other,"
    on = f"on {len(networks[0].rows.train):,} images"
    if parts:
        return (
            f"Training a network for each of {len(parts)} folds, and then {several} {on}, of all "
            "folds, for the model"
        )
    used = "first" if members == 1 else f"first {members}"
    which = f"; the model is made of the {used}" if number > members else ""
    return f"Training {several} {on}, validating on {len(networks[0].rows.validation):,}{which}"


def _by_kind(planned: Sequence[Job], kind: str) -> list[Job]:
    return [job for job in planned if job.kind == kind]


def train_networks(
    settings: Params, planned: Sequence[Job], *, stage: Stage, folder: Path, run_id: str
) -> list[pd.DataFrame]:
    """Train networks one after the other, and save the members in `folder`.

    Return the histories of those that are validated: all, or those of the folds. The model's are
    then trained for as many epochs as the folds took to their best on average. While they train,
    the stage's report has the tables of `histories` so far.

    Raises:
        UserError: as `fit` and `pretrained.start` do.

    """
    validated: list[pd.DataFrame] = []
    for done, job in enumerate(planned):
        has_validation = len(job.rows.validation) > 0
        history = train_network(
            job if has_validation else replace(job, until=_mean_best_epoch(validated)),
            settings,
            stage=stage,
            folder=folder,
            run_id=run_id,
            before=validated,
            others=len(planned) - done - 1,
        )
        if has_validation:
            validated.append(history)
    return validated


def _mean_best_epoch(trained: Sequence[pd.DataFrame]) -> int:
    return round(sum(int(best_epoch(history)["epoch"]) for history in trained) / len(trained))


def train_network(
    job: Job,
    settings: Params,
    *,
    stage: Stage,
    folder: Path,
    run_id: str,
    before: Sequence[pd.DataFrame] = (),
    others: int = 0,
) -> pd.DataFrame:
    """Train the network `job`, save it in `folder` if it is a member, and return its history.

    Its state does not depend on the number of networks, so where there are more of them those that
    are trained already stay as they are. The epochs that were not logged to the current MLflow run,
    `run_id`, are logged to it too. `before` are the histories of the networks before it, for the
    report, and `others` come after it.

    Raises:
        UserError: as `fit` and `pretrained.start` do.

    """
    alone = job.of == 1 and not before
    prefix = "epoch" if alone else job.name
    state = stage.shared / job.name
    trained = state / TRAINED
    logged = stage.folder / f"{job.name}.json"
    known = _logged(logged)
    reused = trained.exists()
    if not reused:
        write_json(logged, {"run_id": run_id, "complete": False})
        _train(
            job,
            settings,
            what="train" if alone else f"train: {job}",
            stage=stage,
            state=state,
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
    if job.member:
        if job.number == 1:
            parameters = load(trained / NETWORK)[0].count_params()
            runs.log_params({"parameters": settings.ensemble.members * parameters})
        shutil.copyfile(trained / NETWORK, folder / paths.network(job.number - 1).name)
    if not alone:
        _log_network(job, history, others, reused=reused)
    return history


def _log_network(job: Job, history: pd.DataFrame, others: int, *, reused: bool) -> None:
    seconds = float(history["seconds"].sum())
    time = "trained before" if reused else duration(seconds)
    left = f"; about {duration(seconds * others)} left for the others" if others else ""
    log.info("train: %s: %s, %s%s", job, summary([history]), time, left)


def _logged(path: Path) -> dict[str, Any]:
    """Return which run a network's epochs were logged to last, and whether all of them were."""
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known


def _train(
    job: Job,
    settings: Params,
    *,
    what: str,
    stage: Stage,
    state: Path,
    log_epoch: LogEpoch,
    log_resumed: bool,
    before: Sequence[pd.DataFrame],
) -> None:
    """Train a network with its checkpoints in `state`, and leave it and its history in TRAINED."""
    # Keras keeps every graph that it built until it is told not to.
    keras.backend.clear_session()
    dataset, training, checkpoints = stage.dataset, settings.train, Checkpoints(state)
    model = network_to_train(
        settings.network, dataset, training, precision=stage.precision, seed=job.seed
    )
    kept = state / lineage.FILE
    if checkpoints.exist():
        learnt = lineage.from_json(kept.read_text(encoding="utf-8"), kept.name)
    else:
        learnt = _begun(model, dataset, job.rows, training, what)
        with atomic(kept) as path:
            path.write_text(learnt.to_json(), encoding="utf-8")
    so_far: dict[int, Row] = {int(row["epoch"]): row for row in checkpoints.rows()}

    def report() -> None:
        # The report's history has the columns of validation.
        if so_far and len(job.rows.validation):
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
            job.rows,
            training,
            seed=job.seed,
            until=job.until,
            checkpoints=checkpoints,
            log_epoch=log_and_report,
            log_resumed=log_resumed,
            progress=progress,
        )
    with atomic(state / TRAINED) as finished:
        finished.mkdir()
        history.to_csv(finished / HISTORY, index=False)
        copy = plain(model, dataset.images.shape[1:])
        save(copy, finished / NETWORK, dataset.classes, learnt.notes)
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
    trained: Sequence[pd.DataFrame],
    planned: Sequence[Job],
    *,
    stage: Stage,
    folder: Path,
    rows: Split,
) -> dict[str, Any]:
    """Return what the stage reports of networks whose members lie in `folder`, by `Stage.write`.

    `trained` are the histories that `train_networks` returned.
    """
    tables, dataset, parts = histories(trained), stage.dataset, _by_kind(planned, "fold")
    if parts:
        networks = [stage.shared / job.name / TRAINED / NETWORK for job in parts]
        tables["out_of_fold"] = out_of_fold(networks, [job.rows for job in parts], dataset)
    learnt = lineage.of_files(sorted(folder.glob("*.keras")))
    return {
        "metrics": metrics(trained),
        "more_metrics": interval(trained, folds=bool(parts)),
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


def summary(trained: Sequence[pd.DataFrame], *, folds: bool = False) -> str:
    """Return what a training came to, in words; `folds` is that of `spread`."""
    best = [best_epoch(history) for history in trained]
    if len(best) > 1:
        found = spread([row["val_accuracy"] for row in best], folds=folds)
        return f"validation accuracy {found}"
    ((row,), (history,)) = best, trained
    return f"{accuracy(row)} (epoch {int(row['epoch'])} of {len(history)})"


def interval(trained: Sequence[pd.DataFrame], *, folds: bool) -> dict[str, float]:
    """Return the ends of the interval of the mean validation accuracy of several networks.

    `folds` is that of `spread`.
    """
    if len(trained) == 1:
        return {}
    scores = [best_epoch(history)["val_accuracy"] for history in trained]
    found = spread(scores, folds=folds)
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
