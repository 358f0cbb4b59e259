"""Which model is registered, and which one becomes champion."""

import logging
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from mlflow.entities.model_registry import ModelVersion

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.evaluation.champion import Challenger, Decision, Register, challenge
from emotion_detection.evaluation.metrics import evaluate
from emotion_detection.models import saving
from emotion_detection.tracking import models, runs
from emotion_detection.tracking.lineage import Seen
from emotion_detection.tracking.registry import champion as champion_of
from emotion_detection.tracking.registry import load_version
from tests.support.stores import alone

NAME = "emotion-detection"


def network(certainty: float, known: int) -> keras.Model:
    """Return a network that knows the first `known` classes of the toy set."""
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.AveragePooling2D(8),
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    kernel = np.zeros((2, 2, 3, 3))
    for label in range(known):
        kernel[label // 2, label % 2, :, label] = certainty
    model.set_weights([kernel.reshape(12, 3), np.zeros(3)])
    return model


class Registry:
    """Trains nothing, and evaluates, in a store of its own."""

    def __init__(self, toy: Dataset, root: Path) -> None:
        self.toy, self.root = toy, root
        self.client = mlflow.MlflowClient(f"sqlite:///{(root / 'mlflow.db').as_posix()}")

    def train(self, known: int, *, selected_on_test: bool = False, certainty: float = 5.0) -> str:
        """Return the run of a model."""
        tags = {"selected_on_test": str(selected_on_test).lower()}
        with runs.run("train", note="", dataset=self.toy, params={}, tags=tags) as run_id:
            model = network(certainty, known)
            runs.log_model(model, self.toy.classes)
        return run_id

    def challenge(
        self,
        run_id: str | None,
        known: int,
        dataset: Dataset | None = None,
        register: Register = "always",
    ) -> Decision:
        """Evaluate the model of a run, which knows so many classes."""
        challenger = self.challenger(run_id, known, dataset or self.toy)
        with runs.resumed(run_id):
            decision = challenge(challenger, register=register, bootstrap=200, seed=0)
            if run_id is not None:
                runs.log_metrics({"test/accuracy": challenger.result.accuracy.value})
        return decision

    def challenger(self, run_id: str | None, known: int, dataset: Dataset) -> Challenger:
        rows = np.flatnonzero(dataset.is_test)
        probabilities = saving.predict(network(5.0, known), dataset.images, rows)
        result = evaluate(dataset.labels[rows], probabilities, dataset.classes, seed=0)
        return Challenger(run_id, result, dataset, rows)

    @property
    def versions(self) -> list[ModelVersion]:
        found = self.client.search_model_versions(f"name = '{NAME}'")
        return sorted(found, key=lambda version: int(version.version))

    @property
    def aliases(self) -> dict[str, str]:
        aliases = self.client.get_registered_model(NAME).aliases
        return {alias: str(number) for alias, number in aliases.items()}


@pytest.fixture
def registry(toy: Dataset, tmp_path: Path) -> Iterator[Registry]:
    with alone(tmp_path):
        yield Registry(toy, tmp_path)


def test_only_a_better_model_takes_the_title(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    toy = registry.toy
    own = f"champion-{toy.digest[:8]}"
    runs = {known: registry.train(known) for known in (1, 0, 3)}

    first = registry.challenge(runs[1], known=1)
    only = "it is only the first model on toy.zip, compared with no other"
    assert first == Decision("1", True, only, scored=1)
    assert first.looked_at == "scored by this model alone"
    assert f"When it was evaluated: {only}." in registry.versions[0].description
    assert registry.aliases == {own: "1", "champion": "1"}

    # It takes every image for the first class, and so does the first model.
    second = registry.challenge(runs[0], known=0)
    assert (second.version, second.champion, second.against) == ("2", False, "1")
    assert second.comparison is not None
    assert second.metrics() == {
        "versus_champion/accuracy_difference": 0,
        "versus_champion/accuracy_difference_low": 0,
        "versus_champion/accuracy_difference_high": 0,
        "versus_champion/p_value": 1,
        "versus_champion/p_value_needed": 0.025,
    }
    assert second.tags() == {"registered.version": "2", "champion.decision": second.why}
    assert second.sentence == (
        f"Version 2 in the model registry is not champion of its data set: {second.why}."
    )
    assert registry.aliases == {own: "1", "champion": "1"}

    third = registry.challenge(runs[3], known=3)
    assert (third.version, third.champion, third.against) == ("3", True, "1")
    assert third.comparison is not None
    assert third.comparison.only_old == 0
    difference = round(third.comparison.only_new / 15, 6)
    assert third.metrics()["versus_champion/accuracy_difference"] == difference
    assert third.metrics()["versus_champion/accuracy_difference_low"] > 0
    # The p value is that of the test which decided: all images that only one has right are its.
    assert third.comparison.p_value == 0.5**third.comparison.only_new <= 0.05 / 6
    assert f"p = {third.comparison.p_value:.3g}, and challenge 2 on these test" in third.why
    assert third.looked_at.startswith("scored by this model and 2 others before")
    assert third.as_json()["accuracy_difference"] == difference
    assert third.as_json()["only_new_right"] == third.comparison.only_new
    assert registry.aliases == {own: "3", "champion": "3"}

    again = registry.challenge(runs[3], known=3)
    assert again == Decision("3", True, "it became champion in an earlier evaluation", scored=3)
    assert [version.run_id for version in registry.versions] == [runs[1], runs[0], runs[3]]
    assert f"When it was evaluated: {third.why}." in registry.versions[2].description
    tags = registry.versions[2].tags
    assert tags == {
        "dataset": "toy.zip",
        "dataset.digest": toy.digest,
        "dataset.synthetic": "false",
        "leak": "false",
        "selected_on_test": "false",
        "test/accuracy": "1",
        "test/macro_f1": "1",
    }

    # What anyone loads by the alias is what was evaluated.
    rows = np.flatnonzero(toy.is_test)
    champion = champion_of(toy.digest)
    assert champion is not None
    np.testing.assert_allclose(
        saving.predict(load_version(champion), toy.images, rows),
        saving.predict(network(5.0, 3), toy.images, rows),
        rtol=1e-5,
    )


def test_every_model_that_was_scored_makes_the_next_one_need_more(registry: Registry) -> None:
    registry.challenge(registry.train(1), known=1)
    registry.challenge(registry.train(0), known=0, register="never")
    registry.challenge(registry.train(0), known=0, register="better")
    # Deleted runs have looked at the test images too.
    unregistered = registry.train(0)
    registry.challenge(unregistered, known=0, register="never")
    registry.client.delete_run(unregistered)
    # Two classes right in place of one are five images that only it has right.
    decision = registry.challenge(registry.train(2), known=2)
    assert (decision.scored, decision.champion) == (5, False)
    assert decision.comparison is not None
    assert decision.comparison.difference.low > 0
    assert decision.comparison.p_value == 1 / 32
    assert "challenge 4 on these test images needs 0.0025 or less" in decision.why


def test_two_evaluations_at_once_give_one_champion(registry: Registry) -> None:
    registry.challenge(registry.train(1), known=1)
    both = [registry.challenger(registry.train(3), 3, registry.toy) for _ in range(2)]
    with ThreadPoolExecutor() as threads:
        decisions = list(threads.map(partial(challenge, bootstrap=200, seed=0), both))
    loser, winner = sorted(decisions, key=lambda decision: decision.champion)
    assert (winner.champion, winner.against, winner.challenge) == (True, "1", 1)
    # It was compared with the one that had just become champion.
    assert (loser.champion, loser.against, loser.challenge) == (False, winner.version, 2)
    assert registry.aliases["champion"] == winner.version


def test_each_data_set_has_a_champion_and_the_alias_follows_the_last_one(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(registry.toy, digest="f" * 32, source="other.zip")
    own = f"champion-{registry.toy.digest[:8]}"
    runs = {known: registry.train(known) for known in (3, 1)}
    registry.challenge(runs[3], known=3)
    caplog.set_level(logging.INFO)
    assert registry.challenge(runs[1], known=1, dataset=other).champion
    assert registry.aliases == {own: "1", "champion-ffffffff": "2", "champion": "2"}
    own_set = f"toy.zip ({registry.toy.digest[:8]})"
    assert f"from version 1, the champion of {own_set}, to version 2, the" in caplog.text
    assert "champion of other.zip (ffffffff), which was evaluated last" in caplog.text

    # Back on the first one, a worse model gives the alias back to the champion there.
    registry.challenge(registry.train(0), known=0)
    assert registry.aliases == {own: "1", "champion-ffffffff": "2", "champion": "1"}


def test_a_model_selected_on_test_is_registered_and_never_champion(registry: Registry) -> None:
    decision = registry.challenge(registry.train(3, selected_on_test=True), known=3)
    assert (decision.version, decision.champion) == ("1", False)
    assert "selected on the test images" in decision.why
    assert registry.aliases == {}
    (version,) = registry.versions
    assert version.tags["selected_on_test"] == "true"
    assert version.description.startswith(
        "**Selected on test**, accuracy 1.0000, macro_f1 1.0000 on the 15"
    )
    assert "the network of the run *train (selected on test) on toy.zip*" in version.description


def test_a_model_whose_ancestor_learnt_from_test_images_is_never_champion(
    registry: Registry,
) -> None:
    run_id = registry.train(3)
    challenger = replace(registry.challenger(run_id, 3, registry.toy), seen=Seen(test=2))
    decision = challenge(challenger, register="always", bootstrap=200, seed=0)
    assert (decision.version, decision.champion) == ("1", False)
    assert "an ancestor learnt from test images" in decision.why
    assert registry.aliases == {}
    (version,) = registry.versions
    assert version.tags["leak"] == "true"
    assert version.description.startswith("**Leak**, accuracy 1.0000")
    # Of unknown lineage it may be.
    unknown = replace(challenger, seen=Seen(unknown=("models:/elsewhere/1",)))
    assert challenge(unknown, bootstrap=200, seed=0).champion


def test_a_champion_whose_files_are_gone_is_replaced(registry: Registry) -> None:
    registry.challenge(registry.train(3), known=3)
    for network_file in (registry.root / "mlruns").rglob("*.keras"):
        network_file.unlink()
    decision = registry.challenge(registry.train(1), known=1)
    assert (decision.version, decision.champion, decision.comparison) == ("2", True, None)
    assert "version 1, the champion so far, is gone" in decision.why
    assert registry.aliases["champion"] == "2"


def test_a_champion_that_is_out_of_reach_keeps_its_title(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.challenge(registry.train(3), known=3)
    challenger = registry.train(1)
    nobody = "http://127.0.0.1:9/api/2.0/mlflow-artifacts/artifacts"
    with closing(sqlite3.connect(registry.root / "mlflow.db")) as store, store:
        store.execute("UPDATE logged_models SET artifact_location = ?", (nobody,))
        store.execute("UPDATE model_versions SET storage_location = ?", (nobody,))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    decision = registry.challenge(challenger, known=1)
    assert (decision.version, decision.champion, decision.comparison) == ("2", False, None)
    assert "version 1, the champion so far, cannot be loaded now" in decision.why
    assert registry.aliases["champion"] == "1"


def test_who_loads_a_model_writes_nothing(registry: Registry) -> None:
    with pytest.raises(UserError, match="models:/none/1: cannot be loaded from"):
        models.load_network("models:/none/1")
    assert [found.name for found in registry.client.search_experiments()] == ["Default"]


def test_a_run_without_a_model_is_told(registry: Registry) -> None:
    with runs.run("train", note="", dataset=registry.toy, params={}, tags={}) as run_id:
        pass
    decision = registry.challenge(run_id, known=3)
    assert decision.version is None
    assert "logged no model" in decision.why
    assert decision.sentence.startswith("The model is not in the model registry: MLflow's model")
    assert (decision.metrics(), decision.tags()) == ({}, {"champion.decision": decision.why})
    assert decision.as_json() == {
        "version": None,
        "champion": False,
        "why": decision.why,
        "against": None,
        "models_scored": 1,
    }


def test_a_model_that_is_not_to_be_registered_is_not(registry: Registry) -> None:
    run_id = registry.train(3)
    decision = registry.challenge(run_id, known=3, register="never")
    assert decision == Decision(None, False, "evaluate.register is never", scored=1)
    assert registry.client.search_registered_models() == []


def test_only_what_becomes_champion_is_registered_unless_more_is_asked_for(
    registry: Registry,
) -> None:
    chosen_on_test = registry.train(3, selected_on_test=True)
    decision = registry.challenge(chosen_on_test, known=3, register="better")
    assert decision.sentence.startswith("The model is not in the model registry: it was selected")
    assert registry.client.search_registered_models() == []

    worse = registry.train(1)
    for known, run_id in ((3, registry.train(3)), (1, worse)):
        decision = registry.challenge(run_id, known=known, register="better")
    assert (decision.version, decision.champion, decision.against) == (None, False, "1")
    assert decision.tags() == {"champion.decision": decision.why}
    assert len(decision.metrics()) == 5
    assert [version.version for version in registry.versions] == [1]
    assert registry.challenge(worse, known=1, register="always").version == "2"
    # It keeps its version.
    assert registry.challenge(worse, known=1, register="better").version == "2"


def test_the_alias_champion_stays_with_photographs(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    photos = replace(registry.toy, digest="f" * 32, source="photos.zip")
    drawn = replace(registry.toy, digest="d" * 32, source="sample", synthetic=True)
    other = replace(registry.toy, digest="e" * 32, source="sample", synthetic=True)
    run_id = registry.train(3)
    for number, dataset, leader in (
        ("1", drawn, "1"),
        ("2", other, "2"),
        ("3", photos, "3"),
        ("4", drawn, "3"),
    ):
        with caplog.at_level(logging.INFO):
            caplog.clear()
            known = int(number) - 1
            assert registry.challenge(registry.train(known), known=known, dataset=dataset)
        assert registry.aliases["champion"] == leader
    assert "stays with version 3, the champion of photos.zip (ffffffff): sample is" in caplog.text
    assert registry.aliases["champion-dddddddd"] == "4"
    assert "15 synthetic test images of sample" in registry.versions[0].description
    assert models.origin("models:/emotion-detection/1").notice is None  # its run has photographs
    assert run_id


def test_a_model_without_a_run_is_not_registered(registry: Registry) -> None:
    decision = registry.challenge(None, known=3)
    assert decision == Decision(None, False, "the MLflow run that logged it is gone", scored=1)
    assert registry.client.search_registered_models() == []
