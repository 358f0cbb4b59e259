"""The whole pipeline as a person runs it: real DVC, KerasTuner and MLflow on a small drawn set."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time

import mlflow
import numpy as np
import pandas as pd
import pytest
import skimage.data
from PIL import Image
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page, expect, sync_playwright

from tests.support import documents, reference
from tests.support.project import SMALL, STAGES, Project
from tests.support.servers import free_port

RESULTS = {
    "sample": "data/sample",
    "ingest": "data/dataset",
    "profile": "reports/profile",
    "tune": "models/hyperparameters.json",
    "train": "models/networks",
    "export": "models/model.keras",
    "evaluate": "reports/evaluate/report.html",
}
"""Where the last line of each stage says that its result lies."""

OF_DVC = re.compile(r"> python|\w+ing (stage|lock file) '|To |Use |\t|$")
"""How a line of DVC's own begins."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project that ran `dvc repro` once, its lock file committed."""
    project = Project.begin(tmp_path_factory.mktemp("project"), SMALL, is_warm=False)
    assert project.stages_run_by("dvc", "repro") == set(STAGES)
    project.warm_up()
    project.commit("Run the pipeline")
    return project


def test_every_stage_says_in_a_few_lines_what_it_does_and_where_its_result_lies(
    project: Project,
) -> None:
    lines = project.printed["dvc", "repro"].splitlines()
    said = {stage: [line for line in lines if line.startswith(f"{stage}: ")] for stage in STAGES}
    for stage, own in said.items():
        assert 2 <= len(own) <= 5, own
        assert own[-1].endswith(f"; {RESULTS[stage]}")
    # Nothing of TensorFlow's, MLflow's or any other library's.
    others = [line for line in lines if not any(line in own for own in said.values())]
    assert [line for line in others if not OF_DVC.match(line)] == []
    assert len(lines) <= 60


def test_every_stage_leaves_what_people_look_at(project: Project) -> None:
    for folder, names in {
        "profile": ["class_balance.png", "samples.png", "conflicts.png", "duplicates.csv"],
        "tune": ["trials.csv", "trials.png"],
        "train": ["history.csv", "learning_curves.png"],
        "evaluate": [
            "confusion_counts.png",
            "confusion_normalized.png",
            "per_class.png",
            "roc.png",
            "scores.json",
            "reliability.png",
            "answered.png",
            "corruptions.png",
            "mistakes.png",
            "predictions.csv",
            "reliability.csv",
            "answered.csv",
            "corruptions.csv",
            "report.html",
            "model_card.md",
        ],
    }.items():
        for name in ["metrics.json", *names]:
            path = project.root / "reports" / folder / name
            assert path.is_file(), path
            if path.suffix == ".png":
                Image.open(path).verify()
    profile = project.json("reports/profile/metrics.json")
    assert profile["images"] == {"train": 120, "test": 60}
    assert project.json("data/dataset/dataset.json")["synthetic"] is True
    predictions = pd.read_csv(project.root / "reports/evaluate/predictions.csv")
    metrics = project.json("reports/evaluate/metrics.json")
    assert len(predictions) == 60
    corruptions = pd.read_csv(project.root / "reports/evaluate/corruptions.csv")
    assert corruptions["accuracy"].iloc[0] == pytest.approx(metrics["test/accuracy"], abs=1e-6)
    assert (predictions["actual"] == predictions["predicted"]).mean() == pytest.approx(
        metrics["test/accuracy"], abs=1e-6
    )


def test_the_reference_names_every_output_and_metric(project: Project) -> None:
    files = [
        path.relative_to(project.root).as_posix()
        for folder in ("data/dataset", "models", "reports")
        for path in (project.root / folder).rglob("*")
        if path.is_file() and not {".state", "benchmarks", ".gitignore"} & set(path.parts)
    ]
    outputs, metrics = reference.outputs(), reference.metrics()
    assert [name for name in files if not reference.is_named(name, outputs)] == []
    (train,) = project.runs("train")
    logged = {name for run in (*project.runs("tune"), train) for name in run.data.metrics}
    assert [name for name in logged if not reference.is_named(name, metrics)] == []


def test_the_search_is_a_run_with_a_child_a_trial(project: Project) -> None:
    (tune,) = project.runs("tune")
    trials = project.runs("trial")
    table = pd.read_csv(project.root / "reports/tune/trials.csv")
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {tune.info.run_id}
    assert len(trials) == len(table) == 2
    assert table.loc[0, "network.filters"] == "16 16 16"
    assert table["status"].tolist() == ["COMPLETED", "FAILED"]
    assert "too deep" in table.loc[1, "message"]
    assert project.json("reports/tune/metrics.json").items() <= tune.data.metrics.items()
    assert tune.data.tags["best.trial"] == "01"
    by_name = {run.info.run_name: run for run in trials}
    assert by_name["trial 01"].info.status == "FINISHED"
    assert by_name["trial 02"].info.status == "FAILED"
    assert by_name["trial 01"].data.tags["dataset"] == "sample"
    assert by_name["trial 01"].data.tags["mlflow.note.content"].startswith("Trial 1 of the search")
    assert by_name["trial 01"].data.params == {
        **{"network.filters": "16 16 16", "network.kernel_sizes": "3 3 3"},
        **{f"network.filters.{block}": "16" for block in (1, 2, 3)},
        **{f"network.kernel_sizes.{block}": "3" for block in (1, 2, 3)},
        **{"parameters": "5847", "gflops": str(table.loc[0, "gflops"]), "epochs": "1"},
    }
    client = mlflow.MlflowClient(project.tracking_uri)
    curve = client.get_metric_history(by_name["trial 01"].info.run_id, "epoch/val_accuracy")
    assert [point.step for point in curve] == [1]
    assert "trials.csv" in project.artifacts(tune, "tune")


def test_the_train_run_tells_what_made_the_model_and_what_it_scores(project: Project) -> None:
    (train,) = project.runs("train")
    assert train.info.status == "FINISHED"
    assert train.data.params["train.lr"] == "0.003"
    assert train.data.params["network.filters"] == "16 16 16"
    assert train.data.tags["dataset"] == "sample"
    assert train.data.tags["selected_on_test"] == "false"
    assert len(train.data.tags["git.commit"]) == 40
    assert train.inputs.dataset_inputs[0].dataset.name == "sample"
    client = mlflow.MlflowClient(project.tracking_uri)
    history = pd.read_csv(project.root / "reports/train/history.csv")
    curve = client.get_metric_history(train.info.run_id, "epoch/val_loss")
    assert [point.step for point in curve] == [1, 2]
    np.testing.assert_allclose([point.value for point in curve], history["val_loss"])
    # DVC and MLflow say the same by the same names.
    for stage in ("train", "export", "evaluate"):
        metrics = project.json(f"reports/{stage}/metrics.json")
        assert metrics.items() <= train.data.metrics.items()
    assert "test/accuracy" in metrics
    assert any(name.startswith("system/") for name in train.data.metrics)
    assert "confusion_counts.png" in project.artifacts(train, "evaluate")
    assert {"learning_curves.png", "lineage.json"} <= set(project.artifacts(train, "train"))


def test_the_logged_model_is_the_one_evaluated(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (train,) = project.runs("train")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
    model = mlflow.pyfunc.load_model(f"runs:/{train.info.run_id}/model")
    images = np.load(project.root / "data/dataset/images.npy", mmap_mode="r")[-60:]
    predictions = pd.read_csv(project.root / "reports/evaluate/predictions.csv")
    columns = [name for name in predictions if name.startswith("probability_")]
    answers = model.predict({"image": np.asarray(images)})
    found = [list(row.values()) for row in answers["probabilities"]]
    np.testing.assert_allclose(found, predictions[columns].to_numpy(), atol=1e-4)
    assert answers["label"].tolist() == predictions["predicted"].tolist()
    # Its page has its scores, the data that they are on, and a link to its version.
    client = mlflow.MlflowClient(project.tracking_uri)
    logged = client.get_logged_model(train.outputs.model_outputs[0].model_id)
    digest = train.data.tags["dataset.digest"]
    scores = {score.key: score for score in logged.metrics or () if "test/" in score.key}
    assert scores["test/accuracy"].value == train.data.metrics["test/accuracy"]
    assert {(score.dataset_name, score.dataset_digest) for score in scores.values()} == {
        ("sample", digest[:8])
    }
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [
        {"name": "emotion-detection", "version": "1"}
    ]


def test_the_evaluated_model_is_registered_as_champion(project: Project) -> None:
    (train,) = project.runs("train")
    client = mlflow.MlflowClient(project.tracking_uri)
    version = client.get_model_version_by_alias("emotion-detection", "champion")
    assert version.run_id == train.info.run_id
    metrics = project.json("reports/evaluate/metrics.json")
    accuracy = metrics["test/accuracy"]
    assert float(version.tags["test/accuracy"]) == pytest.approx(accuracy, abs=1e-6)
    assert f"accuracy {accuracy:.4f}" in version.description
    assert "60 synthetic test images of sample" in version.description
    assert version.tags["dataset.digest"] == train.data.tags["dataset.digest"]
    assert train.data.tags["registered.version"] == str(version.version)
    decision = project.json("reports/evaluate/champion.json")
    assert (decision["version"], decision["champion"]) == (str(version.version), True)


@pytest.mark.slow
def test_plain_mlflow_ui_shows_the_runs(project: Project, chromium: str) -> None:
    (train,), (tune,) = project.runs("train"), project.runs("tune")
    digest = train.data.tags["dataset.digest"]
    port = str(free_port())
    server = subprocess.Popen(
        ["mlflow", "ui", "--port", port, "--workers", "1"],
        cwd=project.root,
        env=project.env | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        runs = f"http://127.0.0.1:{port}/#/experiments/{train.info.experiment_id}/runs"
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium,
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            )
            page = browser.new_page(viewport={"width": 1500, "height": 950})
            _open(page, f"http://127.0.0.1:{port}")
            page.get_by_role("button", name="Model training").click()
            page.get_by_role("link", name="emotion-detection").first.click()
            for name in ("train on sample", "tune on sample"):
                expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
            expect(page.get_by_text("A run is named after its DVC stage")).to_be_visible()
            expect(page.get_by_text(f"sample ({digest[:8]})").first).to_be_visible()
            results = page.get_by_role("link", name="the runs with their results")
            address = results.get_attribute("href") or ""
            _open(page, f"http://127.0.0.1:{port}/#{address.partition('#')[2]}")
            for name in ("test/accuracy", "test/macro_f1", "recipe", "git.commit"):
                header = page.get_by_role("columnheader", name=name, exact=True)
                expect(header.first).to_be_visible()
            _open(page, f"{runs}/{train.info.run_id}")
            expect(page.get_by_text("Test accuracy").first).to_be_visible()
            _open(page, f"{runs}/{tune.info.run_id}")
            for name in ("trial 01", "trial 02"):
                expect(page.get_by_role("link", name=name)).to_be_visible()
            trials = json.dumps([run.info.run_id for run in project.runs("trial")])
            experiment = json.dumps([train.info.experiment_id])
            compared = f"/#/compare-runs?runs={trials}&experiments={experiment}"
            _open(page, f"http://127.0.0.1:{port}{compared}")
            axes = page.locator("svg .axis-title")
            for name in ("network.filters.1", "gflops"):
                page.get_by_role("combobox").first.click()
                page.keyboard.type(name)
                page.keyboard.press("Enter")
                page.keyboard.press("Escape")
                expect(axes.filter(has_text=name)).to_be_visible()
            _open(page, f"{runs}/{train.info.run_id}/model-metrics")
            for name in ("train on sample (epoch/accuracy)", "val_loss"):
                expect(page.get_by_text(name, exact=True).first).to_be_visible()
            _open(page, f"{runs}/{train.info.run_id}/artifacts/evaluate/roc.png")
            page.wait_for_function("[...document.images].some(i => i.naturalWidth > 500)")
            browser.close()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _open(page: Page, url: str) -> None:
    """Open a page of a server that may still be starting, and wait longer for what is on it."""
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    for _ in range(60):
        try:
            page.goto("about:blank")  # a new fragment alone loads nothing
            page.goto(url)
            break
        except PlaywrightError:
            page.wait_for_timeout(1000)


def test_nothing_runs_twice_and_a_change_runs_what_depends_on_it(project: Project) -> None:
    assert project.stages_run_by("dvc", "repro") == set()
    ran = project.stages_run_by("dvc", "exp", "run", "--name", "faster", "-S", "train.lr=1e-3")
    assert ran == {"train", "export", "evaluate"}
    newest = project.runs("train")[0]
    assert newest.data.params["train.lr"] == "0.001"
    assert newest.data.tags["dvc.experiment"] == "faster"
    assert "that of version 1, the champion so far" in newest.data.tags["champion.decision"]
    assert newest.info.run_name == "train faster on sample"
    assert 0 <= newest.data.metrics["versus_champion/p_value"] <= 1

    # -S writes one line of params.yaml, and leaves the layout of the others alone.
    assert project.run("git", "diff", "--numstat", "params.yaml").split()[:2] == ["1", "1"]
    shown = pd.read_csv(io.StringIO(project.run("dvc", "exp", "show", "--csv")))
    assert {"workspace", "main", "faster"} <= set(shown["Experiment"].fillna(shown["rev"]))
    _check_comparison(project)
    difference = project.run("dvc", "metrics", "diff", "HEAD", "faster", "--all")
    assert "test/macro_f1" in difference
    plots = project.run("dvc", "plots", "diff", "HEAD", "faster", "--out", "dvc_plots")
    page = (project.root / "dvc_plots/index.html").read_text()
    assert "index.html" in plots
    for name in ("loss", "accuracy", "confusion matrix", "F1 by class", "calibration", "corrupted"):
        assert name in page
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


def _check_comparison(project: Project) -> None:
    """Check what `make compare` shows on a terminal of 120 columns."""
    makefile = (project.root / "Makefile").read_text()
    (line,) = re.findall(r"^\t(dvc exp show .*)$", makefile, re.MULTILINE)
    table = project.run("env", "COLUMNS=120", *shlex.split(line), "--no-pager")
    (header,) = (row for row in table.splitlines() if "Experiment" in row)
    columns = ["export/val_accuracy", "test/accuracy", "test/macro_f1", "train.lr"]
    # A metric that is the same in all experiments is not shown.
    shown = header.split()[2:]
    assert shown == [name for name in columns if name in shown]
    assert shown[-1] == "train.lr"
    assert "test/accuracy" in shown
    assert max(map(len, table.splitlines())) <= 120
    assert "!" not in table


@pytest.mark.slow
def test_the_model_is_exported_to_onnx_where_a_param_asks_for_it(project: Project) -> None:
    assert not (project.root / "models/onnx/model.onnx").exists()
    before = {run.info.run_id for run in project.runs("train")}
    ran = project.stages_run_by("dvc", "exp", "run", "-S", "export.onnx=true")
    assert ran >= {"export"}
    assert "train" not in ran
    (export,) = project.runs("export")
    assert export.data.tags["train.run"] in before
    assert export.data.metrics["export/onnx_images_per_second"] > 0
    assert export.data.metrics["export/onnx_largest_difference"] <= 1e-4

    answers = [
        project.run("emotion-detection", "predict", *options, "data/sample/test/happy")
        for options in (
            ("--format", "csv", "--model", "models/onnx/model.onnx"),
            ("--format", "csv", "--model", "models/model.keras"),
        )
    ]
    by_onnx, by_keras = (
        pd.read_csv(io.StringIO(text[text.index("file,") :].partition("\npredict:")[0]))
        for text in answers
    )
    assert len(by_onnx) > 0
    assert by_onnx["label"].tolist() == by_keras["label"].tolist()
    np.testing.assert_allclose(by_onnx["confidence"], by_keras["confidence"], atol=1e-4)
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


def test_other_tta_gives_other_scores_without_an_epoch(project: Project) -> None:
    trainings = len(project.runs("train"))
    flipped = pd.read_csv(project.root / "reports/evaluate/predictions.csv")
    first = max(
        (run for run in project.runs("train") if "dvc.experiment" not in run.data.tags),
        key=lambda run: run.info.start_time,
    )
    ran = project.stages_run_by("dvc", "exp", "run", "-n", "plain", "-S", "tta.flips=false")
    assert ran == {"export", "evaluate"}
    assert len(project.runs("train")) == trainings
    plain = pd.read_csv(project.root / "reports/evaluate/predictions.csv")
    column = next(name for name in plain if name.startswith("probability_"))
    assert not np.allclose(plain[column], flipped[column])
    newest = project.runs("export")[0]
    assert newest.data.tags["train.run"] == first.info.run_id
    assert newest.data.params["tta.flips"] == "false"
    assert newest.data.params["train.lr"] == first.data.params["train.lr"]
    metrics = project.json("reports/evaluate/metrics.json")
    assert newest.data.metrics["test/accuracy"] == pytest.approx(metrics["test/accuracy"])
    assert "registered.version" in newest.data.tags
    # The training's own run keeps the scores of its own export.
    client = mlflow.MlflowClient(project.tracking_uri)
    kept = client.get_run(first.info.run_id)
    assert kept.data.metrics["test/accuracy"] == first.data.metrics["test/accuracy"]
    assert kept.data.params["tta.flips"] == "true"
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


def test_a_comment_in_the_code_gives_the_old_outputs_back(project: Project) -> None:
    trainings = [len(project.runs(stage)) for stage in ("tune", "train", "export")]
    made = (project.root / "models/model.keras").read_bytes()
    for name in ("data/splits.py", "models/network.py", "training/loader.py"):
        with (project.root / "src/emotion_detection" / name).open("a") as file:
            file.write("# Nothing but a comment.\n")
    assert project.stages_run_by("dvc", "repro") >= {"tune", "train"}
    assert (project.root / "models/model.keras").read_bytes() == made
    assert [len(project.runs(stage)) for stage in ("tune", "train", "export")] == trainings
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


@pytest.mark.slow
def test_more_members_leave_those_that_are_trained(project: Project) -> None:
    uri = "models:/emotion-detection/1"
    first = project.runs("train")[-1]
    printed = [
        project.run(
            *("dvc", "exp", "run", "-n", f"members-{members}", "-S", "train.epochs=1"),
            *("-S", f"train.init_from={uri}", "-S", f"ensemble.members={members}", "train"),
        )
        for members in (2, 3)
    ]
    # A search knows nothing of members.
    assert "Running stage 'tune'" not in "".join(printed)
    assert "learnt from other data" not in printed[0]
    assert "An ancestor of this model learnt" not in printed[0]
    assert printed[1].count(", trained before") == 2
    assert "train: network 3/3: validation accuracy" in printed[1]
    two, three = (
        next(run for run in project.runs("train") if run.data.tags.get("dvc.experiment") == name)
        for name in ("members-2", "members-3")
    )
    assert three.data.params["train.init_from"] == uri
    assert three.data.tags["leak"] == "false"
    lineage = project.json("reports/train/lineage.json")
    assert (lineage["ancestors"], lineage["unknown"]) == ([uri], [])
    assert three.data.params["ensemble.members"] == "3"
    for number in (1, 2):
        name = f"network_{number}/val_loss"
        assert three.data.metrics[name] == two.data.metrics[name]
    assert "network_3/val_loss" in three.data.metrics
    project.run("dvc", "repro", "evaluate")
    evaluated = mlflow.MlflowClient(project.tracking_uri).get_run(three.info.run_id)
    parameters = int(first.data.params["parameters"])
    assert int(evaluated.data.params["parameters"]) == 3 * parameters
    assert "registered.version" in evaluated.data.tags
    networks = pd.read_csv(project.root / "reports/train/networks.csv")
    assert networks["network"].tolist() == [1, 2, 3]
    metrics = project.json("reports/train/metrics.json")
    assert metrics["val_accuracy"] == pytest.approx(networks["val_accuracy"].mean())
    # Of as many seeds none is trained again, and the model is that of the first.
    again = project.run(
        *("dvc", "exp", "run", "-n", "seeds-3", "-S", "ensemble.members=1"),
        *("-S", "train.seeds=3", "train"),
    )
    assert again.count(", trained before") == 3
    assert "Running stage 'tune'" not in again
    assert [path.name for path in (project.root / "models/networks").glob("*.keras")] == [
        "member_1.keras"
    ]
    assert "over 3 networks (95 % interval of the mean" in again
    compared = project.run("emotion-detection", "compare", "seeds-3", "members-2")
    assert "seeds-3: validation accuracy" in compared
    assert "members-2: validation accuracy" in compared
    assert "neither is known to be better" in compared
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


@pytest.mark.slow
def test_folds_score_a_setting_and_leave_a_model_of_all_images(project: Project) -> None:
    printed = project.run(
        *("dvc", "exp", "run", "-n", "folds", "-S", "train.epochs=2", "-S", "split.folds=2"),
    )
    # A search knows nothing of folds.
    assert "Running stage 'tune'" not in printed
    assert "over 2 networks (95 % interval of the mean" in printed
    assert "export: no image left for validation" in printed
    assert "export/val_accuracy" not in project.json("reports/export/metrics.json")
    answers = pd.read_csv(project.root / "reports/train/out_of_fold.csv")
    assert answers["fold"].value_counts().sum() == (answers["split"] == "train").sum()
    page = (project.root / "reports/evaluate/report.html").read_text()
    assert "2 folds of train, a network for each; this model learnt from all" in page
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


@pytest.mark.slow
def test_the_commands_of_the_documents_work(project: Project) -> None:
    source = project.root / "data/emotion-detection-fer.zip"
    shutil.make_archive(str(source.with_suffix("")), "zip", project.root / "data/sample")
    shutil.copy(source, source.with_name("archive (1).zip"))
    Image.fromarray(skimage.data.astronaut()).save(project.root / "photo.jpg")
    project.run("dvc", "exp", "run", "-n", "other", "-S", "evaluate.corruption_images=0")
    for command, smaller in documents.RUN.items():
        done = subprocess.run(
            ["sh", "-ec", f"{command.replace('EXP1', 'main').replace('EXP2', 'other')} {smaller}"],
            cwd=project.root,
            env=project.env | {"BROWSER": "true"},
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    # The last training had the notebook's recipe, which looks at the test images while it trains.
    notebook = project.runs("train")[0]
    assert notebook.info.run_name.endswith(" (selected on test) on emotion-detection-fer.zip")
    assert notebook.data.tags["selected_on_test"] == "true"
    project.run("git", "checkout", "--quiet", ".")
    project.run("git", "clean", "--quiet", "--force", "-d")
    project.run("dvc", "checkout")


@pytest.mark.slow
def test_a_killed_training_goes_on_where_it_was(project: Project) -> None:
    client = mlflow.MlflowClient(project.tracking_uri)
    first = client.get_model_version("emotion-detection", "1")
    client.create_registered_model("begun")
    client.create_model_version("begun", "models:/emotion-detection/1", first.run_id)
    settings = {"epochs": 8, "early_stopping_patience": None, "init_from": "models:/begun/1"}
    project.set_params({"train": settings})
    runs_before = {run.info.run_id for run in project.runs("train")}
    state = project.root / "models" / ".state" / "train"
    # In a copy of the project, as queued jobs run, which is gone when it is queued again.
    job = subprocess.Popen(
        ["dvc", "exp", "run", "--temp"],
        cwd=project.root,
        env=project.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not any(state.glob("*/network_1/epoch_00002")):
        assert job.poll() is None
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()

    project.set_params({"train": {"epochs": 1}})
    assert "1 interrupted with other params, data or code wait in" in project.run(
        "dvc", "repro", "train"
    )
    project.set_params({"train": {"epochs": 8}})
    # Its weights are in the checkpoint.
    client.delete_registered_model("begun")
    assert "goes on after epoch" in project.run("dvc", "exp", "run", "--temp", "--name", "again")
    project.run("dvc", "exp", "apply", "again")
    history = pd.read_csv(project.root / "reports/train/history.csv")
    assert history["epoch"].tolist() == list(range(1, 9))
    one_epoch, run = (run for run in project.runs("train") if run.info.run_id not in runs_before)
    assert one_epoch.data.params["train.epochs"] == "1"
    assert run.info.status == "FINISHED"
    experiment = [run.info.experiment_id]
    assert not client.search_runs(experiment, "attributes.status = 'RUNNING'")
    assert len(run.data.tags["weights.digest"]) == 64
    steps = {point.step for point in client.get_metric_history(run.info.run_id, "epoch/val_loss")}
    assert steps == set(range(1, 9))
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


@pytest.mark.slow
def test_what_was_completed_and_not_noted_is_not_done_twice(project: Project) -> None:
    project.set_params({"tune": {"images": 90}, "train": {"lr": 1.5e-3}})
    lock = project.root / "dvc.lock"
    outputs = {
        "tune": ("models/hyperparameters.json", "reports/tune/trials.csv"),
        "train": (
            "models/networks/member_1.keras",
            "models/networks/mlflow_run.json",
            "reports/train/history.csv",
        ),
        "export": ("models/model.keras", "models/export_run.json", "reports/export/metrics.json"),
    }
    runs_before = {stage: len(project.runs(stage)) for stage in outputs}
    noted = lock.read_bytes()
    project.run("dvc", "repro", "export")
    made = {path: (project.root / path).read_bytes() for own in outputs.values() for path in own}
    # As after a Ctrl-C between the stages' ends and DVC's notes of them.
    lock.write_bytes(noted)
    again = project.run("dvc", "repro", "--no-run-cache", "export")
    for stage in outputs:
        assert f"{stage}: same params, data and code as before" in again
        assert len(project.runs(stage)) == runs_before[stage] + (stage != "export")
    assert {path: (project.root / path).read_bytes() for path in made} == made

    assert project.stages_run_by("dvc", "repro") == {"evaluate"}
    # A person who forces a stage wants it done anew.
    trainings = len(project.runs("train"))
    forced = project.run("dvc", "repro", "--single-item", "--force", "train")
    assert "same params, data and code" not in forced
    assert len(project.runs("train")) == trainings + 1
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout")


@pytest.mark.slow
def test_queued_experiments_land_in_the_main_store(project: Project) -> None:
    for name, rate in (("low", "1e-4"), ("high", "2e-3")):
        project.run("dvc", "exp", "run", "--queue", "--name", name, "-S", f"train.lr={rate}")
    project.run_queue(jobs=2)
    runs = {run.data.tags.get("dvc.experiment"): run for run in project.runs("train")}
    assert {"low", "high"} <= set(runs)
    for name in ("low", "high"):
        assert runs[name].info.status == "FINISHED"
        assert "test/accuracy" in runs[name].data.metrics
        assert {"roc.png", "report.html"} <= project.artifacts(runs[name], "evaluate")
        assert "registered.version" in runs[name].data.tags


@pytest.mark.slow
def test_one_changed_image_is_ingested_and_the_rest_follows(project: Project) -> None:
    source = project.root / "faces"
    shutil.copytree(project.root / "data/sample", source)
    project.set_params({"ingest": {"source": "faces"}})
    # As if it had been ingested before.
    project.run("dvc", "commit", "--force")
    assert project.stages_run_by("dvc", "repro") == set()
    image = source / "train/happy/im0.png"
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    ran = project.stages_run_by("dvc", "repro")
    assert ran == {"ingest", "profile", "tune", "train", "export", "evaluate"}
    assert project.runs("train")[0].data.tags["dataset"] == "faces"


def test_a_wrong_param_stops_before_any_work(project: Project) -> None:
    project.set_params({"train": {"lr": -1}})
    done = subprocess.run(
        ["dvc", "repro"], cwd=project.root, env=project.env, text=True, capture_output=True
    )
    assert done.returncode != 0
    assert "params.yaml: train.lr = -1: must be more than 0" in done.stderr
    assert "Traceback" not in done.stderr
