"""The members of an ensemble: each is the network that it would be alone."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest

from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split, split
from emotion_detection.models import saving
from emotion_detection.settings import params
from emotion_detection.settings.params import Ensemble, Network, Params, Train, load
from emotion_detection.stage import Stage
from emotion_detection.tracking import lineage, runs
from emotion_detection.tracking.lineage import Lineage
from emotion_detection.training import ensemble
from tests.support import warm
from tests.support.stores import alone

Make = Callable[..., Network]
PARAMS = Path(__file__).parents[2] / "params.yaml"
SHARED_OVER = ["ensemble.members", "train.seeds"]

# A stage is what dvc.yaml says; this one depends on its params and images alone.
DVC_FILE = """
stages:
  train:
    deps: [data/dataset]
    params: [seed, precision, deterministic, split, ensemble, train]
    outs: [models/networks]
"""


def settings(
    members: int,
    network: Network,
    *,
    init_from: str | None = None,
    seeds: int = 1,
    folds: int = 0,
) -> Params:
    return load(PARAMS).model_copy(
        update={
            "seed": 3,
            "precision": "float32",
            "network": network,
            "split": params.Split(seed=3, folds=folds),
            "ensemble": Ensemble(members=members),
            "train": Train(lr=1e-2, batch_size=24, epochs=2, init_from=init_from, seeds=seeds),
        }
    )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Work in a folder with a stage train and an MLflow store of its own."""
    (tmp_path / "dvc.yaml").write_text(DVC_FILE)
    with alone(tmp_path):
        yield tmp_path


class Trainings:
    """Trains as the stage train does; `stage`, `planned` and `run_id` are those of the last."""

    def __init__(self, toy: Dataset, rows: Split, network: Network) -> None:
        self.toy, self.rows, self.network = toy, rows, network
        self.stage: Stage
        self.planned: list[ensemble.Job]
        self.run_id: str

    def __call__(
        self,
        members: int,
        folder: str,
        *,
        init_from: str | None = None,
        run_id: str | None = None,
        seeds: int = 1,
        folds: int = 0,
    ) -> list[pd.DataFrame]:
        """Train in a new MLflow run, save the networks in `folder`, return their histories."""
        chosen = settings(members, self.network, init_from=init_from, seeds=seeds, folds=folds)
        rows = split(self.toy, chosen.split) if folds else self.rows
        self.planned = ensemble.jobs(chosen, self.toy, rows)
        self.stage = Stage("train", chosen, self.toy, shared_over=SHARED_OVER)
        Path(folder).mkdir()
        with runs.run("train", note="", dataset=self.toy, params={}, tags={}) as self.run_id:
            return ensemble.train_networks(
                *(chosen, self.planned),
                stage=self.stage,
                folder=Path(folder),
                run_id=run_id or self.run_id,
            )

    def curve(self, name: str) -> list[int]:
        """Return the epochs of a curve in the last run."""
        points = mlflow.MlflowClient().get_metric_history(self.run_id, name)
        return [point.step for point in points]


@pytest.fixture
def train(toy: Dataset, rows: Split, network: Make) -> Trainings:
    return Trainings(toy, rows, network((8,), (), arch="plain", convolutions=1, dropout=0.2))


def files(folder: Path) -> dict[Path, int]:
    """Return when each file below `folder` was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def digest(path: Path) -> str:
    return saving.digest(saving.load(path)[0])


def test_one_more_member_trains_that_one_alone(
    place: Path, train: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = train(2, "two")
    shared, folder = train.stage.shared, train.stage.folder
    before = files(shared)
    # Of a member that is trained its network is there, and no checkpoint.
    places = {path.relative_to(shared).parts[:2] for path in before if folder not in path.parents}
    assert places == {("network_1", "trained"), ("network_2", "trained")}

    fit, learning = keras.Model.fit, []

    def noted(model: keras.Model, *args: Any, **options: Any) -> Any:
        learning.append(model)
        return fit(model, *args, **options)

    monkeypatch.setattr(keras.Model, "fit", noted)
    three = train(3, "three")
    assert len(learning) == 1
    assert train.stage.shared == shared
    assert train.stage.folder != folder
    after = files(shared)
    assert {path: after[path] for path in before} == before
    for mine, its in zip(three, two, strict=False):
        pd.testing.assert_frame_equal(mine, its)
    for member in (1, 2):
        name = f"member_{member}.keras"
        assert digest(Path("three", name)) == digest(Path("two", name))
    digests = {digest(path) for path in Path("three").iterdir()}
    assert len(digests) == 3
    # The new run has the curves of all, and the parameters of all together.
    for member in (1, 2, 3):
        assert train.curve(f"network_{member}/val_loss") == [1, 2]
    alone_parameters = saving.load(Path("three/member_1.keras"))[0].count_params()
    logged = mlflow.MlflowClient().get_run(train.run_id).data.params
    assert logged["parameters"] == str(3 * alone_parameters)


def test_more_seeds_train_more_networks_of_which_the_model_is_the_first(
    place: Path, train: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (alone,) = train(1, "one")
    fit = Mock(side_effect=ensemble.fit)
    monkeypatch.setattr(ensemble, "fit", fit)
    trained = train(1, "three", seeds=3)
    assert [call.kwargs["seed"] for call in fit.call_args_list] == [4, 5]
    pd.testing.assert_frame_equal(trained[0], alone)
    assert [path.name for path in Path("three").iterdir()] == ["member_1.keras"]
    assert digest(Path("three/member_1.keras")) == digest(Path("one/member_1.keras"))
    assert train.curve("network_3/val_loss") == [1, 2]
    assert mlflow.MlflowClient().get_run(train.run_id).data.params["parameters"] == str(
        saving.load(Path("one/member_1.keras"))[0].count_params()
    )


def test_folds_validate_every_image_once_and_the_model_learns_from_all(
    place: Path, train: Trainings, toy: Dataset
) -> None:
    trained = train(1, "folds", folds=3)
    best = [int(history["val_accuracy"].argmax()) + 1 for history in trained]
    assert len(best) == 3
    # The model learns from every train image, for the mean of their best epochs.
    (member,) = Path("folds").iterdir()
    assert len(lineage.of_files([member]).images) == np.count_nonzero(toy.is_train) == 90
    assert train.curve("network_1/loss") == list(range(1, round(np.mean(best)) + 1))
    assert train.curve("network_1/val_loss") == []
    assert train.curve("fold_3/val_loss") == [1, 2]

    rows = split(toy, params.Split(seed=3, folds=3))
    report = ensemble.report(
        trained, train.planned, stage=train.stage, folder=Path("folds"), rows=rows
    )
    assert report["metrics"]["val_accuracy"] == pytest.approx(
        np.mean([history["val_accuracy"].max() for history in trained])
    )
    assert report["tables"]["networks"]["network"].unique().tolist() == [1, 2, 3]
    answers = report["tables"]["out_of_fold"].set_index("row")
    assert sorted(answers.index) == list(range(len(toy.labels)))
    assert answers["actual"].tolist() == [toy.classes[label] for label in toy.labels[answers.index]]
    probabilities = answers[[f"probability_{name}" for name in toy.classes]]
    on_test = []
    for job in train.planned[:3]:
        own = answers[answers["fold"] == job.number]
        assert sorted(own.index) == job.rows.validation.tolist()
        model = saving.load(train.stage.shared / job.name / "trained" / ensemble.NETWORK)[0]
        expected = saving.predict(model, toy.images, own.index.to_numpy())
        np.testing.assert_allclose(probabilities.loc[own.index], expected, atol=1e-5)
        on_test.append(saving.predict(model, toy.images, rows.test))
    np.testing.assert_allclose(probabilities.loc[rows.test], np.mean(on_test, axis=0), atol=1e-5)
    assert answers.loc[rows.test, "fold"].isna().all()


def test_an_interrupted_ensemble_goes_on_with_the_epoch_and_member_that_it_was_at(
    place: Path, train: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_epoch, seen = runs.log_epoch, []

    def ending(row: Mapping[str, float], epoch: int, prefix: str) -> None:
        seen.append((prefix, epoch))
        if len(seen) == 4:
            raise KeyboardInterrupt
        log_epoch(row, epoch, prefix)

    monkeypatch.setattr(runs, "log_epoch", ending)
    with pytest.raises(KeyboardInterrupt):
        train(2, "interrupted", run_id="the run")
    train(2, "resumed", run_id="the run")
    ends = [("network_2", 2)]
    assert seen == [("network_1", 1), ("network_1", 2), ("network_2", 1), *ends, *ends]
    assert sorted(path.name for path in Path("resumed").iterdir()) == [
        "member_1.keras",
        "member_2.keras",
    ]


def test_a_run_that_goes_on_has_the_epochs_that_were_logged_to_another(
    place: Path, train: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []

    def ending(row: Mapping[str, float], epoch: int, prefix: str) -> None:
        seen.append((prefix, epoch))
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs, "log_epoch", ending)
    with pytest.raises(KeyboardInterrupt):
        train(3, "interrupted", run_id="first")
    train(2, "fewer", run_id="second")
    del seen[:]
    seen.extend([("", 0)] * 2)
    train(3, "resumed", run_id="first")
    logged = [(f"network_{member}", epoch) for member in (1, 2, 3) for epoch in (1, 2)]
    assert seen[2:] == logged


def test_the_saved_member_is_the_best_epoch_with_the_names_of_its_classes(
    place: Path, train: Trainings, toy: Dataset, rows: Split
) -> None:
    (history,) = train(1, "one")
    model, classes = saving.load(Path("one/member_1.keras"))
    assert classes == toy.classes
    answers = saving.predict(model, toy.images, rows.validation)
    labels = toy.labels[rows.validation]
    best = history.iloc[history["val_accuracy"].argmax()]
    assert (answers.argmax(axis=1) == labels).mean() == pytest.approx(best["val_accuracy"])
    loss = -np.log(answers[np.arange(len(labels)), labels]).mean()
    assert loss == pytest.approx(best["val_loss"], rel=1e-4)
    assert train.curve("epoch/val_loss") == [1, 2]


def test_each_member_starts_from_the_model_that_is_set_and_a_resumed_one_does_not(
    place: Path,
    train: Trainings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    started: list[str] = []
    toy, rows = train.toy, train.rows

    def start(model: keras.Model, uri: str, *, dataset: Dataset) -> Lineage:
        started.append(uri)
        return lineage.joined([lineage.of_images(toy.digests[row] for row in rows.test[:2])], [uri])

    monkeypatch.setattr(ensemble, "start", start)
    uri = "models:/faces/1"
    trained = train(1, "one", init_from=uri)
    assert started == [uri]
    # What it learnt from, through the model that it started from too, is in its file.
    learnt = lineage.of_files([Path("one/member_1.keras")])
    assert (len(learnt.images), learnt.ancestors) == (len(rows.train) + 2, (uri,))
    assert "An ancestor of this model learnt from 2 of the test images" in caplog.text
    report = ensemble.report(
        trained, train.planned, stage=train.stage, folder=Path("one"), rows=rows
    )
    assert report["tags"] == {"leak": "true"}
    # The first is there, and the second begins.
    train(2, "two", init_from=uri)
    assert started == [uri] * 2


TRAINED = """
import sys
from pathlib import Path
from emotion_detection.settings import params
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import split
from emotion_detection.models import saving
from emotion_detection.stage import Stage
from emotion_detection.tracking import runs
from emotion_detection.training import ensemble

dataset, params_file = Dataset.open(Path(sys.argv[1])), Path(sys.argv[2])
seed, members = int(sys.argv[3]), int(sys.argv[4])
rows = split(dataset, params.Split(fraction=0.2, seed=0))
# Curves go nowhere: this is about weights.
runs.log_params = runs.log_epoch = lambda *values: None
settings = params.load(params_file).model_copy(update={
    "seed": seed, "precision": "float32", "deterministic": True,
    "ensemble": params.Ensemble(members=members),
    "train": params.Train(
        lr=1e-2, batch_size=24, epochs=2, ema=0.1, schedule="one_cycle",
        augment=params.Augment(rotation=10, shift=0.1, horizontal_flip=True, random_erasing=0.3),
    ),
    "network": params.Network(
        arch="residual", filters=(8,), kernel_sizes=(3,), dense_units=(8,),
        squeeze_excitation=True, conv_dropout=0.2, dense_dropout=0.2,
    ),
})
stage = Stage("train", settings, dataset, shared_over=["ensemble.members", "train.seeds"])
for job in ensemble.jobs(settings, dataset, rows):
    ensemble.train_network(job, settings, stage=stage, folder=Path(), run_id="none")
    print(saving.digest(saving.load(Path(f"member_{job.number}.keras"))[0]))
"""


@pytest.mark.slow
def test_a_deterministic_member_is_to_the_bit_the_network_that_its_seed_makes_alone(
    packed: Path, tmp_path: Path
) -> None:
    processes = {}
    for name, seed, members in (("ensemble", 3, 2), ("alone", 4, 1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "dvc.yaml").write_text(DVC_FILE)
        arguments = (str(packed), str(PARAMS), str(seed), str(members))
        command = [warm.python(), "-c", TRAINED, *arguments]
        processes[name] = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    digests = {name: process.communicate()[0].split() for name, process in processes.items()}
    assert [process.returncode for process in processes.values()] == [0, 0]
    first, second = digests["ensemble"]
    assert digests["alone"] == [second]
    assert first != second


def test_the_reports_history_grows_while_members_train(
    place: Path, train: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, list[int]]] = []

    def look(when: str, *, interrupt: bool = False) -> None:
        table = Path("reports/train/history.csv")
        seen.append((when, pd.read_csv(table)["epoch"].tolist() if table.exists() else []))
        if interrupt:
            raise KeyboardInterrupt

    log_epoch, fit = runs.log_epoch, ensemble.fit
    monkeypatch.setattr(
        runs, "log_epoch", lambda row, epoch, name: look(name, interrupt=epoch == 2)
    )
    with pytest.raises(KeyboardInterrupt):
        train(2, "interrupted")
    assert seen == [("network_1", [1]), ("network_1", [1, 2])]

    # As DVC does before a stage runs.
    shutil.rmtree("reports")
    seen.clear()
    monkeypatch.setattr(runs, "log_epoch", log_epoch)

    def looking_first(*args: Any, **options: Any) -> Any:
        look("fit")
        return fit(*args, **options)

    monkeypatch.setattr(ensemble, "fit", looking_first)
    histories = ensemble.histories(train(2, "resumed"))
    assert seen == [("fit", [1]), ("fit", [1, 2])]
    assert Path("reports/train/networks.csv").read_text().count("\n") == 5
    kept = pd.read_csv("reports/train/history.csv")
    pd.testing.assert_frame_equal(kept, histories["history"], check_dtype=False)


def history(*accuracies: float) -> pd.DataFrame:
    epochs = range(1, len(accuracies) + 1)
    return pd.DataFrame(
        {
            "epoch": epochs,
            "loss": [2.0 / epoch for epoch in epochs],
            "accuracy": [accuracy - 0.1 for accuracy in accuracies],
            "val_loss": [1.0 / epoch for epoch in epochs],
            "val_accuracy": accuracies,
            "lr": [1e-3] * len(accuracies),
            "seconds": [7.0] * len(accuracies),
        }
    )


def test_the_table_of_one_network_is_its_history_without_times() -> None:
    tables = ensemble.histories([history(0.5, 0.7)])
    assert list(tables) == ["history"]
    pd.testing.assert_frame_equal(tables["history"], history(0.5, 0.7).drop(columns="seconds"))


def test_the_tables_of_an_ensemble_are_the_mean_and_each_member() -> None:
    # The first stopped early: what there is of an epoch is averaged.
    both = [history(0.5, 0.7), history(0.3, 0.6, 0.8)]
    tables = ensemble.histories(both)
    mean, networks = tables["history"], tables["networks"]
    assert mean["epoch"].tolist() == [1, 2, 3]
    assert mean["val_accuracy"].tolist() == pytest.approx([0.4, 0.65, 0.8])
    assert networks["network"].tolist() == [1, 1, 2, 2, 2]
    assert "seconds" not in {*mean.columns, *networks.columns}
    for number, its in enumerate(both, start=1):
        own = networks[networks["network"] == number].drop(columns="network")
        pd.testing.assert_frame_equal(own.reset_index(drop=True), its.drop(columns="seconds"))


def test_the_metrics_are_those_of_the_epoch_that_is_kept() -> None:
    found = ensemble.metrics([history(0.5, 0.7, 0.6)])
    assert found == pytest.approx(
        {
            **{"epochs": 3, "best_epoch": 2, "val_loss": 0.5, "val_accuracy": 0.7},
            **{"train_loss": 1.0, "train_accuracy": 0.6},
        }
    )
    # Counts are written as whole numbers.
    written = json.loads(json.dumps(found))
    assert [type(written[name]) for name in ("epochs", "best_epoch")] == [int, int]


def test_the_metrics_of_an_ensemble_are_the_mean_over_its_members() -> None:
    found = ensemble.metrics([history(0.5, 0.7), history(0.9, 0.6, 0.8)])
    assert found == pytest.approx(
        {
            **{"epochs": 2.5, "best_epoch": 1.5, "val_loss": 0.75, "val_accuracy": 0.8},
            **{"train_loss": 1.5, "train_accuracy": 0.7, "val_accuracy_sd": 0.1 * 2**0.5},
        }
    )


def test_a_training_is_described_in_words(toy: Dataset, rows: Split) -> None:
    def described(members: int, seeds: int, folds: int = 0) -> str:
        chosen = settings(members, Network(), seeds=seeds, folds=folds)
        return ensemble.description(ensemble.jobs(chosen, toy, rows))

    assert described(1, 1) == "Training 1 network on 72 images, validating on 18"
    three = "Training 3 networks, one after the other, on 72 images, validating on 18"
    assert described(3, 1) == described(3, 3) == three
    assert described(1, 3) == f"{three}; the model is made of the first"
    assert described(2, 3) == f"{three}; the model is made of the first 2"
    assert described(1, 1, folds=5) == (
        "Training a network for each of 5 folds, and then 1 network on 72 images, of all folds, "
        "for the model"
    )
