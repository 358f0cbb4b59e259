"""`emotion-detection recipe`, as a person uses it in the project, with real Git and DVC."""

import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides

from emotion_detection import files
from emotion_detection.console import UserError
from emotion_detection.settings import params, recipes
from emotion_detection.settings.sections import changed, flat
from tests.support.project import Project

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
COMMAND = (sys.executable, "-m", "emotion_detection.cli", "recipe")
# A stage that takes no time, and fails where its only file is not there.
PIPELINE = """\
stages:
  copy:
    cmd: {cmd}
    params: [ingest.source, split, network, train]
    outs: [copy.yaml]
"""


def make(root: Path, cmd: str = "cp params.yaml copy.yaml") -> Project:
    """Return a folder with the project's params and recipes, and a pipeline of one stage."""
    project = Project(root)
    project.env["PYTHONPATH"] = str(ROOT / "src")
    (root / "recipes").mkdir(parents=True)
    for name in ("params.yaml", *(f"recipes/{name}.yaml" for name in NAMES)):
        (root / name).write_bytes((ROOT / name).read_bytes())
    (root / "dvc.yaml").write_text(PIPELINE.format(cmd=cmd))
    (root / ".gitignore").write_text("/copy.yaml\n")
    return project


def with_git(project: Project) -> Project:
    project.run("git", "init", "--quiet", "--initial-branch", "main")
    project.run("git", "config", "user.name", "A Person")
    project.run("git", "config", "user.email", "person@example.org")
    project.commit("Begin")
    return project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project in a Git repository, all committed; the test works in it."""
    project = with_git(make(tmp_path / "project"))
    monkeypatch.chdir(project.root)
    return project


def with_dvc(project: Project) -> Project:
    project.run("dvc", "init", "--quiet")
    project.commit("Let DVC in")
    return project


def refused(project: Project, *arguments: str) -> str:
    """Return the one line that is said where the command is refused."""
    done = subprocess.run(
        (*COMMAND, *arguments), cwd=project.root, env=project.env, text=True, capture_output=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


def values() -> dict[str, Any]:
    return flat(params.load())


COMMITTED = flat(params.load(ROOT / "params.yaml"))


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and f"{prefix}{key}" != recipes.SPACE:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", tuple(value) if isinstance(value, list) else value


# --- The recipes of the repository.


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_holds_only_what_it_changes(name: str) -> None:
    held = dict(leaves(files.read_yaml(ROOT / "recipes" / f"{name}.yaml")))
    assert held
    # A kernel size per block: they go with the filters, whatever a person has committed.
    assert ("network.kernel_sizes" in held) == ("network.filters" in held)
    held.pop("network.kernel_sizes", None)
    assert {key: value for key, value in held.items() if COMMITTED[key] == value} == {}


@pytest.mark.parametrize("name", NAMES)
def test_the_head_of_a_recipe_says_what_it_reaches_and_how_to_run_it(name: str) -> None:
    head = (ROOT / "recipes" / f"{name}.yaml").read_text().partition("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    # What a search finds depends on the data.
    assert ("% test accuracy" in head.partition("\n")[0]) == (name != "notebook-search")
    assert f"emotion-detection recipe {name} --run " in head
    assert "AMD EPYC" in head


def test_best_is_an_ensemble_that_trains_on_smaller_images_first(project: Project) -> None:
    recipes.write(recipes.changes("best"))
    best = params.load()
    assert (best.ensemble.members, best.tta.flips, best.tta.shifts) == (6, True, 2)
    assert (best.train.epochs, best.train.progressive_resizing) == (52, 28)
    assert best.train.no_aug_epochs == 6
    assert (best.tune.trials, best.split.fraction) == (0, 0.05)


def test_quick_trains_the_committed_network_without_a_search(project: Project) -> None:
    recipes.write(recipes.changes("quick"))
    changed = {key: value for key, value in values().items() if COMMITTED[key] != value}
    assert changed == {"split.fraction": 0.05, "tune.trials": 0, "train.epochs": 12}


def test_the_notebooks_recipe_is_its_network_and_its_training(project: Project) -> None:
    from emotion_detection.models.network import build

    recipes.write(recipes.changes("notebook"))
    notebook = params.load()
    model = build(notebook.network, image_shape=(48, 48, 3), classes=7)
    assert (notebook.ingest.color_mode, model.count_params()) == ("rgb", 557_799)
    assert notebook.split.validation == "test"
    assert (notebook.train.lr, notebook.train.batch_size, notebook.train.epochs) == (5e-4, 256, 50)
    assert (notebook.ensemble.members, notebook.tta) == (1, params.Tta())
    # Nothing of params.yaml's own training is left.
    assert changed(notebook.train) == {
        "lr": 5e-4,
        "batch_size": 256,
        "epochs": 50,
        "early_stopping_patience": 8,
        "reduce_lr_patience": 4,
    }


def test_the_notebooks_search_is_its_space_and_what_its_trials_share(project: Project) -> None:
    recipes.write(recipes.changes("notebook-search"))
    notebook = params.load()
    assert notebook.tune.space == {
        "network.filters": {"length": [3, 4, 5], "each": [16, 32, 64, 128, 256, 512]},
        "network.kernel_sizes": {"length": "network.filters", "each": [3, 5]},
        "network.dense_units": {"length": [0, 1, 2, 3], "each": [32, 64, 128, 256]},
        "network.dense_dropout": [0.3, 0.4, 0.5, 0.6, 0.7],
    }
    tune, train = notebook.tune, notebook.train
    assert (tune.oracle, tune.trials, tune.epochs, tune.images) == ("random", 10, 10, None)
    assert (tune.max_gflops, tune.budget, tune.pruning, tune.repeats) == (None, None, False, 0)
    assert changed(train) == {"lr": 1e-4, "epochs": 50}
    assert (train.optimizer, train.batch_size) == ("adam", 128)
    # Its network, on validation images.
    assert (notebook.network.arch, notebook.network.conv_dropout) == ("notebook", 0.2)
    assert (notebook.ingest.color_mode, notebook.split.validation) == ("rgb", "holdout")


def test_a_recipes_space_takes_the_place_of_another(project: Project) -> None:
    recipes.write(recipes.changes("notebook-search"))
    (change,) = (each for each in recipes.changes("quick") if each.name == "tune.space")
    assert change.after == COMMITTED["tune.space"]
    # So does DVC, when the recipe is run.
    apply_overrides(params.PARAMS, recipes.options_of([change]))
    assert params.load().tune.space == COMMITTED["tune.space"]


def test_without_a_name_the_recipes_are_listed_with_what_they_reach(project: Project) -> None:
    (project.root / "recipes" / "mine.yaml").write_text("train: {epochs: 3}\n")
    listed = project.run(*COMMAND).splitlines()
    assert [line.split()[0] for line in listed] == sorted([*NAMES, "mine"])
    (quick,) = (line for line in listed if line.startswith("quick "))
    assert "FER-2013 in 7 minutes: 65.6 % test accuracy" in quick
    assert all(len(line) <= 100 for line in listed)


# --- Writing params.yaml.


def test_a_recipe_is_written_as_dvc_would_and_what_changed_is_printed(project: Project) -> None:
    before = (project.root / "params.yaml").read_text()
    printed = project.run(*COMMAND, "quick").splitlines()
    assert printed[:-1] == [
        "split.fraction: 0.15 -> 0.05",
        "tune.trials: 3 -> 0",
        "train.epochs: 20 -> 12",
    ]
    assert printed[-1] == "params.yaml: 3 settings changed; `dvc repro` runs the pipeline"
    by_dvc = project.root / "by_dvc.yaml"
    by_dvc.write_text(before)
    apply_overrides(by_dvc, ["split.fraction=0.05", "tune.trials=0", "train.epochs=12"])
    assert (project.root / "params.yaml").read_text() == by_dvc.read_text()
    assert project.run(*COMMAND, "quick") == "params.yaml: has these settings already\n"


@pytest.mark.parametrize("name", NAMES)
def test_lists_and_nulls_are_written_as_dvc_would(project: Project, name: str) -> None:
    by_dvc = project.root / "by_dvc.yaml"
    by_dvc.write_text((project.root / "params.yaml").read_text())
    changed = recipes.changes(name)
    apply_overrides(by_dvc, recipes.options_of(changed))
    recipes.write(changed)
    assert (project.root / "params.yaml").read_text() == by_dvc.read_text()


@pytest.mark.parametrize("first", NAMES)
def test_nothing_of_one_recipe_is_left_in_the_next(project: Project, first: str) -> None:
    for name in NAMES:
        project.run("git", "checkout", "--quiet", "params.yaml")
        recipes.write(recipes.changes(name))
        alone = values()
        project.run("git", "checkout", "--quiet", "params.yaml")
        recipes.write(recipes.changes(first))
        recipes.write(recipes.changes(name))
        assert values() == alone


def test_ingest_source_and_uncommitted_comments_stay(project: Project) -> None:
    file = project.root / "params.yaml"
    apply_overrides(file, ["ingest.source='data/archive (1).zip'", "train.lr=1", "seed=7"])
    file.write_text(f"# mine\n{file.read_text()}")
    changed = recipes.changes("quick")
    assert [str(change) for change in changed] == [
        "seed: 7 -> 2013",
        "split.fraction: 0.15 -> 0.05",
        "tune.trials: 3 -> 0",
        "train.lr: 1 -> 0.003",
        "train.epochs: 20 -> 12",
    ]
    recipes.write(changed)
    assert values()["ingest.source"] == "data/archive (1).zip"
    assert file.read_text().startswith("# mine\n")


def test_values_come_from_the_last_commit(project: Project) -> None:
    apply_overrides("params.yaml", ["train.batch_size=32"])
    project.commit("Take smaller batches")
    apply_overrides("params.yaml", ["train.batch_size=16"])
    recipes.write(recipes.changes("quick"))
    assert values()["train.batch_size"] == 32


def test_a_recipe_of_ones_own_is_taken(project: Project) -> None:
    (project.root / "recipes" / "mine.yaml").write_text(
        "# Mine.\nnetwork:\n  filters: [8, 16]\n  kernel_sizes: [5, 3]\n"
        "ingest: {source: data/mine.zip}\ntrain:\n  init_from: models:/emotion-detection/2\n"
    )
    recipes.write(recipes.changes("mine"))
    assert values()["network.kernel_sizes"] == (5, 3)
    assert values()["ingest.source"] == "data/mine.zip"
    assert values()["train.init_from"] == "models:/emotion-detection/2"


def test_the_recipe_that_params_yaml_holds_is_known(project: Project) -> None:
    assert recipes.held() is None
    for name in NAMES:
        recipes.write(recipes.changes(name))
        apply_overrides("params.yaml", ["seed=5", "ingest.source=mine", "evaluate.register=never"])
        assert recipes.held() == name
        apply_overrides("params.yaml", ["train.lr=0.7"])
        assert recipes.held() is None


def test_outside_git_the_recipe_is_the_one_that_names_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    project = make(tmp_path / "project")
    monkeypatch.chdir(project.root)
    (project.root / "recipes" / "less.yaml").write_text("# Less.\ntune: {trials: 0}\n")
    recipes.write(recipes.changes("quick"))
    assert recipes.held() == "quick"
    monkeypatch.chdir(tmp_path)
    assert recipes.held() is None


def test_outside_git_what_a_recipe_does_not_name_stays_and_that_is_said(tmp_path: Path) -> None:
    project = make(tmp_path / "project")
    file = project.root / "params.yaml"
    apply_overrides(file, ["seed=7"])
    printed = project.run(*COMMAND, "quick")
    assert "Git has no committed version of it" in printed
    assert params.load(file).seed == 7
    assert params.load(file).train.epochs == 12


# --- Going back.


def test_reset_brings_the_committed_file_back(project: Project) -> None:
    file = project.root / "params.yaml"
    before = file.read_text()
    recipes.write(recipes.changes("notebook"))
    apply_overrides(file, ["train.init_from=models:/emotion-detection/2"])
    printed = project.run(*COMMAND, "--reset")
    assert "train.init_from: models:/emotion-detection/2 -> null" in printed
    assert "network.arch: notebook -> plain" in printed
    assert file.read_text() == before
    assert project.run("git", "status", "--porcelain") == ""


def test_reset_keeps_ingest_source_and_says_so(project: Project) -> None:
    apply_overrides("params.yaml", ["ingest.source=data/faces.zip", "train.epochs=3"])
    printed = project.run(*COMMAND, "--reset")
    assert "ingest.source stays data/faces.zip" in printed
    assert "train.epochs: 3 -> 20" in printed
    different = {key for key, value in values().items() if COMMITTED[key] != value}
    assert different == {"ingest.source"}


def test_reset_replaces_a_file_that_cannot_be_read(project: Project) -> None:
    before = (project.root / "params.yaml").read_text()
    (project.root / "params.yaml").write_text("tune: {a: b\n")
    assert refused(project, "quick").endswith("; --reset brings the committed one back")
    assert "not YAML" in project.run(*COMMAND, "--reset")
    assert (project.root / "params.yaml").read_text() == before


# --- Running.


@pytest.mark.slow
def test_a_recipe_runs_as_an_experiment_with_further_settings(project: Project) -> None:
    with_dvc(project)
    printed = project.run(
        *(*COMMAND, "best", "--run", "-S", "ingest.source='data/archive (1).zip'"),
        *("-S", "train.epochs=30"),
    )
    assert "ensemble.members: 1 -> 6" in printed
    # As after `dvc exp run -S`, the values are in params.yaml, and the stage has seen them.
    assert (project.root / "copy.yaml").read_text() == (project.root / "params.yaml").read_text()
    assert values()["ingest.source"] == "data/archive (1).zip"
    assert (values()["train.epochs"], values()["ensemble.members"]) == (30, 6)
    assert "# trained one after the other" in (project.root / "params.yaml").read_text()
    (name,) = project.run("dvc", "exp", "list", "--name-only").split()
    assert name.startswith("best-")

    # A second one of the same recipe is another experiment.
    time.sleep(1)
    project.run(*COMMAND, "best", "--run")
    assert values()["train.epochs"] == 52
    names = project.run("dvc", "exp", "list", "--name-only").split()
    assert len(names) == 2
    assert all(name.startswith("best-") for name in names)


def test_a_queued_recipe_leaves_params_yaml_alone(project: Project) -> None:
    with_dvc(project)
    project.run(*COMMAND, "quick", "--run", "--queue", "--name", "later")
    assert project.run("git", "status", "--porcelain") == ""
    assert "later" in project.run("dvc", "queue", "status")


def test_what_dvc_refuses_is_dvcs_to_say(project: Project) -> None:
    with_dvc(project)
    before = (project.root / "params.yaml").read_text()
    done = subprocess.run(
        (*COMMAND, "quick", "--run", "-S", "train.epocs=3"),
        cwd=project.root,
        env=project.env,
        text=True,
        capture_output=True,
    )
    assert done.returncode not in (0, 1)
    assert "Key 'epocs' is not in struct" in done.stderr
    assert "Traceback" not in done.stderr
    assert (project.root / "params.yaml").read_text() == before


@pytest.mark.skipif(os.name == "nt", reason="needs process groups")
def test_ctrl_c_waits_for_dvc_to_end_its_stage(tmp_path: Path) -> None:
    project = with_git(make(tmp_path / "project", cmd="python slow.py"))
    (project.root / "slow.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n    time.sleep(1)\n    pathlib.Path('ended').touch()\n    sys.exit(1)\n"
        "signal.signal(signal.SIGINT, end)\npathlib.Path('begun').touch()\ntime.sleep(60)\n"
    )
    project.commit("Take a minute")
    with_dvc(project)
    running = subprocess.Popen(
        (*COMMAND, "quick", "--run"),
        cwd=project.root,
        env=project.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while not (project.root / "begun").exists():
        assert running.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    # As the terminal does, which sends it to all that it runs.
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert (project.root / "ended").exists()
    assert running.returncode != 0
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 3, 0.05, 5e-05, [], [32, 128], [0.3, 0.5]),
        *("data/archive (1).zip", "models:/emotion-detection/2", "it's", "null", "3", ""),
        *("C:\\faces\\", "a\\'b", 'say "so"', "a, b: [c]", "très"),
    ],
)
def test_any_value_reaches_dvc_as_it_is(tmp_path: Path, value: Any) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("a:\n  b: 1\n")
    apply_overrides(file, [f"a.b={recipes.override(value)}"])
    assert files.read_yaml(file) == {"a": {"b": value}}
    assert not isinstance(value, float) or math.isfinite(value)


# --- What is refused, in one line.


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("quik", "error: quik: there is no recipes/quik.yaml; did you mean quick?"),
        (
            "xyz",
            "error: xyz: there is no recipes/xyz.yaml; there are best, notebook, notebook-search, "
            "quick",
        ),
        ("../params", "error: ../params: there is no recipes/../params.yaml; there are best,"),
    ],
)
def test_an_unknown_recipe_is_refused_with_those_there_are(
    project: Project, name: str, line: str
) -> None:
    assert refused(project, name).startswith(line)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epocs: 3}", "train.epocs: unknown key; did you mean epochs?"),
        ("trian: {epochs: 3}", "trian: unknown key; did you mean train?"),
        ("train: {epochs: 0}", "train.epochs = 0: must be at least 1"),
        ("train: 3", "train = 3: must be a section of optimizer, lr"),
        ("train:", "train = null: must be a section of optimizer, lr"),
        ("train: {epochs: {a: 1}}", "train.epochs: must be a whole number"),
        ("network: {filters: [8, 8]}", "network: filters has 2 entries and kernel_sizes 4"),
        ("# nothing", "holds no sections"),
        ("train: {a", "not YAML ("),
        ("train: {epochs: 3, epochs: 4}", "not YAML ("),
    ],
)
def test_a_wrong_key_or_value_in_a_recipe_is_named(
    project: Project, text: str, message: str
) -> None:
    before = (project.root / "params.yaml").read_text()
    (project.root / "recipes" / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as raised:
        recipes.changes("mine")
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"recipes/mine.yaml: {message}")
    assert (project.root / "params.yaml").read_text() == before


def test_another_folder_than_the_projects_is_refused(project: Project, tmp_path: Path) -> None:
    elsewhere = Project(tmp_path / "elsewhere")
    elsewhere.env["PYTHONPATH"] = str(ROOT / "src")
    elsewhere.root.mkdir()
    hint = "run this in the project's root folder"
    line = refused(elsewhere, "quick")
    assert line == f"error: recipes: there is no such folder here; {hint}"
    assert refused(elsewhere) == line
    assert f"no committed params.yaml here to go back to; {hint}" in refused(elsewhere, "--reset")
    (project.root / "params.yaml").unlink()
    assert refused(project, "quick") == f"error: params.yaml: there is no such file here; {hint}"


def test_a_wrong_params_yaml_is_named_by_its_own_name(project: Project) -> None:
    (project.root / "params.yaml").write_text(
        (project.root / "params.yaml").read_text().replace("  epochs: 20 ", "  epocs: 20 ")
    )
    assert refused(project, "quick").startswith(
        "error: params.yaml: train.epocs: unknown key; did you mean epochs?"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run",), "give a NAME before --run"),
        (("--run", "quick"), "give a NAME before --run"),
        (("quick", "--reset"), "give a NAME or --reset, not both"),
    ],
)
def test_what_does_not_go_together_is_told(
    project: Project, arguments: tuple[str, ...], message: str
) -> None:
    done = subprocess.run(
        (*COMMAND, *arguments), cwd=project.root, env=project.env, text=True, capture_output=True
    )
    assert done.returncode == 2
    assert message in done.stderr


# --- The command that gave a result.


def test_the_command_that_gave_a_result_names_its_recipe_and_what_else_was_set(
    project: Project,
) -> None:
    assert recipes.command() == "dvc repro"
    for name in NAMES:
        recipes.write(recipes.changes(name))
        assert recipes.command() == f"emotion-detection recipe {name} --run"
    recipes.reset()
    recipes.write(recipes.changes("quick"))
    recipes.write([recipes.Change("ingest.source", None, "my faces.zip")])
    found = shlex.split(recipes.command())
    assert found == ["emotion-detection", "recipe", "quick", "--run", "-S", found[-1]]
    assert found[-1] == "ingest.source='my faces.zip'"


def test_without_a_recipe_the_command_names_what_was_changed(project: Project) -> None:
    recipes.write(
        [
            recipes.Change("ingest.source", None, "data/faces.zip"),
            recipes.Change("train.epochs", None, 7),
        ]
    )
    assert recipes.command() == "dvc exp run -S ingest.source=data/faces.zip -S train.epochs=7"


def test_without_git_the_command_is_dvcs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make(tmp_path / "project").root)
    assert recipes.command() == "dvc repro"
