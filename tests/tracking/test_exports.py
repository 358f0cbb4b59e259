"""The runs of a training's exports: its own for the first, and one for each other setting."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from emotion_detection.data.dataset import Dataset
from emotion_detection.tracking import models, registry, runs
from tests.support import warm
from tests.support.stores import alone
from tests.support.tiny import tiny

TAGS = {"selected_on_test": "true", "precision.why": "no AMX", "recipe": "quick"}


@pytest.fixture(autouse=True)
def _in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with alone(tmp_path):
        yield


@pytest.fixture
def trained(toy: Dataset, tmp_path: Path) -> str:
    """Return the id of a training's run."""
    with runs.run("train", note="", dataset=toy, params={"seed": 3}, tags=TAGS) as run_id:
        runs.log_metrics({"val_accuracy": 0.5})
    return str(run_id)


def export(run_id: str | None, key: str, flips: bool) -> str | None:
    params = {"tta": {"flips": flips, "shifts": 2}}
    with runs.exported(run_id, key, params, "What **this** is.") as found:
        if found is not None:
            runs.log_metrics({"export/seconds": 1.5})
    return found


def look(run_id: str | None) -> Run:
    return mlflow.MlflowClient().get_run(run_id)


def test_the_first_export_is_in_the_run_of_its_training(trained: str) -> None:
    before = look(trained)
    assert export(trained, "a", flips=True) == trained
    after = look(trained)
    assert after.data.params == {"seed": "3", "tta.flips": "true", "tta.shifts": "2"}
    assert after.data.tags == before.data.tags | {"export.key": "a"}
    assert after.data.metrics["export/seconds"] == 1.5
    assert after.info.run_name == before.info.run_name
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)


def test_another_export_has_a_run_that_says_which_training_it_is_of(
    trained: str, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(trained, "a", flips=True)
    training = look(trained)
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-heart")
    found = export(trained, "b", flips=False)
    assert found not in (None, trained)
    run = look(found)
    assert run.info.run_name == "export puffy-heart (selected on test) on toy.zip"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "3", "tta.flips": "false", "tta.shifts": "2"}
    tags = run.data.tags
    assert (tags["stage"], tags["train.run"], tags["export.key"]) == ("export", trained, "b")
    assert (tags["dataset"], tags["dataset.digest"]) == ("toy.zip", toy.digest)
    assert (tags["selected_on_test"], tags["precision.why"]) == ("true", "no AMX")
    assert tags["dvc.experiment"] == "puffy-heart"
    assert "recipe" not in tags
    assert tags["version.keras"] == training.data.tags["version.keras"]
    assert tags["mlflow.note.content"] == (
        "What **this** is.\n\nAn export of the training *train (selected on test) on toy.zip*, run "
        f"{trained}."
    )
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("toy.zip", toy.digest[:8])
    assert run.data.metrics["export/seconds"] == 1.5
    assert "val_accuracy" not in run.data.metrics
    # The training keeps what it had.
    assert look(trained).data.params == training.data.params
    assert look(trained).data.tags == training.data.tags


def test_the_same_export_again_goes_on_in_its_run(trained: str) -> None:
    export(trained, "a", flips=True)
    other = export(trained, "b", flips=False)
    assert export(trained, "a", flips=True) == trained
    assert export(trained, "b", flips=False) == other
    third = export(trained, "c", flips=True)
    assert third not in (trained, other)
    mlflow.MlflowClient().delete_run(other)
    assert export(trained, "b", flips=False) not in (trained, other, third)


def test_an_export_that_is_interrupted_is_ended_and_goes_on_in_its_run(trained: str) -> None:
    export(trained, "a", flips=True)
    with pytest.raises(KeyboardInterrupt), runs.exported(trained, "b", {}, "") as first:
        raise KeyboardInterrupt
    assert look(first).info.status == "KILLED"
    assert mlflow.active_run() is None
    assert export(trained, "b", flips=True) == first
    assert look(first).info.status == "FINISHED"


def test_without_the_training_nothing_is_logged(
    trained: str, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow.MlflowClient().delete_run(trained)
    for run_id in ("0" * 32, trained, None):
        caplog.clear()
        assert export(run_id, "a", flips=True) is None
        assert f"MLflow run {run_id} is not in sqlite:" in caplog.text
        assert "dvc repro --force train" in caplog.text


EXPORT = """
import sys
from emotion_detection import console
from emotion_detection.tracking import runs

def main():
    with runs.exported(sys.argv[1], sys.argv[2], {}, "") as run_id:
        print(run_id)

console.run(main)
"""


def test_two_experiments_that_export_at_once_have_a_run_each(trained: str) -> None:
    both = [
        subprocess.Popen(
            [warm.python(), "-c", EXPORT, trained, key], stdout=subprocess.PIPE, text=True
        )
        for key in ("a", "b")
    ]
    found = [process.communicate(timeout=240)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len(set(found)) == 2
    assert trained in found
    keys = [look(run_id).data.tags["export.key"] for run_id in found]
    assert keys == ["a", "b"]


def test_each_export_is_registered_with_its_own_model(trained: str, toy: Dataset) -> None:
    networks = {key: tiny(toy, seed) for seed, key in enumerate("ab")}
    registered = {}
    for key, network in networks.items():
        with runs.exported(trained, key, {}, "") as run_id:
            assert run_id is not None
            runs.log_model(network, toy.classes)
        with runs.resumed(run_id):
            runs.log_metrics({"test/accuracy": 0.75}, toy)
        candidate = registry.candidate(run_id)
        assert (candidate.selected_on_test, candidate.number) == (True, None)
        number = registry.register(candidate, toy, {"accuracy": 0.75}, "tried")
        again = registry.candidate(run_id)
        assert again == replace(candidate, number=number)
        assert registry.register(again, toy, {"accuracy": 0.75}, "tried") == number
        registered[key] = (run_id, number)
        (score,) = (
            metric
            for metric in mlflow.MlflowClient()
            .get_logged_model(look(run_id).outputs.model_outputs[0].model_id)
            .metrics
            if metric.key == "test/accuracy"
        )
        assert (score.value, score.dataset_name) == (0.75, "toy.zip")
    assert [number for _, number in registered.values()] == ["1", "2"]
    for key, (run_id, number) in registered.items():
        uri = f"models:/{models.REGISTERED_MODEL}/{number}"
        loaded, _ = models.load_network(uri)
        images = toy.images[:3]
        assert (loaded.predict(images, verbose=0) == networks[key].predict(images, verbose=0)).all()
        assert look(run_id).data.params["seed"] == "3"
        assert look(run_id).info.status == "FINISHED"
