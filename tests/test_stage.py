"""State keys, completed outputs, and the dependencies that dvc.yaml lists for each stage."""

import ast
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from emotion_detection import paths, stage
from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.files import locked
from emotion_detection.settings import params
from emotion_detection.settings.sections import flat
from emotion_detection.stage import Stage, content_digest
from emotion_detection.tuning.chosen import save_hyperparameters
from tests.support.stores import alone

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "emotion_detection"
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]

NOT_AN_OUTPUT = (
    *("__init__", "console", "paths", "files", "stage", "tracking/"),
    *("settings/sections", "settings/params"),
)
"""What no output depends on, or what the stage's params stand for."""

NOT_WEIGHTS_OR_CHOICES = (
    *(*NOT_AN_OUTPUT, "figures/", "models/saving"),
    *("tuning/post", "tuning/workers"),
)
"""What a search and a training do not depend on either: hours of work are not done again for a
figure, a file format, or how processes are supervised."""

LOGGED = {
    "export": {
        "src/emotion_detection/data/image.py",
        "src/emotion_detection/models/serving.py",
    }
}
"""Code that a logged model carries a copy of."""

EXEMPT = {"tune": NOT_WEIGHTS_OR_CHOICES, "train": NOT_WEIGHTS_OR_CHOICES}


def imported(file: Path) -> Iterator[Path]:
    """Return the files of the package that `file` imports, wherever in it."""
    for node in ast.walk(_without_type_checking(ast.parse(file.read_text("utf-8")))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            path = ROOT / "src" / Path(*name.split(".")).with_suffix(".py")
            if name.startswith("emotion_detection") and path.is_file():
                yield path


def _without_type_checking(tree: ast.Module) -> ast.Module:
    class Remove(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if ast.unparse(node.test) == "TYPE_CHECKING" else node

    cleaned: ast.Module = Remove().visit(tree)
    return cleaned


def needed(name: str) -> set[str]:
    """Return the modules that can change an output of the stage, as dvc.yaml would list them."""
    exempt = EXEMPT.get(name, NOT_AN_OUTPUT)
    found: set[Path] = set()
    waiting = [ROOT / "stages" / f"{name}.py"]
    while waiting:
        for path in imported(waiting.pop()):
            inside = path.relative_to(PACKAGE).with_suffix("").as_posix()
            if path not in found and not inside.startswith(exempt):
                found.add(path)
                waiting.append(path)
    return {path.relative_to(ROOT).as_posix() for path in found}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_code_that_it_imports_and_on_no_other(name: str) -> None:
    listed = {dep for dep in STAGES[name]["deps"] if dep.startswith("src/")}
    templates = {dep for dep in listed if dep.endswith(".j2")}
    assert f"stages/{name}.py" in STAGES[name]["deps"]
    assert listed - templates == needed(name) | LOGGED.get(name, set())
    assert all((ROOT / dep).is_file() for dep in listed)


def test_the_report_depends_on_its_templates() -> None:
    templates = (PACKAGE / "evaluation" / "templates").glob("*.j2")
    names = {path.relative_to(ROOT).as_posix() for path in templates if "demo" not in path.name}
    assert names <= set(STAGES["evaluate"]["deps"])


def test_every_param_of_a_stage_is_in_params_yaml() -> None:
    names = set(flat(params.load(ROOT / "params.yaml")))
    for name in STAGES:
        for listed in STAGES[name].get("params", ()):
            assert any(key == listed or key.startswith(f"{listed}.") for key in names), listed


CODE = '''"""A module."""

def double(x):
    """Return twice `x`."""
    return 2 * x  # not more
'''


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        (CODE.replace("  # not more", "  # and no more than that"), True),
        (CODE.replace("Return twice `x`.", "Return `x` two times."), True),
        (CODE.replace("2 * x", "(2 *\n            x)"), True),
        (CODE.replace("2 * x", "3 * x"), False),
        (CODE.replace("def double(x)", "def double(x=1)"), False),
    ],
)
def test_comments_docstrings_and_layout_of_code_make_no_difference(
    changed: str, same: bool, tmp_path: Path
) -> None:
    before, after = tmp_path / "before.py", tmp_path / "after.py"
    before.write_text(CODE)
    after.write_text(changed)
    assert (content_digest(before) == content_digest(after)) is same


def test_a_folder_is_told_by_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "networks"
    folder.mkdir()
    (folder / "a.txt").write_text("1")
    first = content_digest(folder)
    (folder / "a.txt").rename(folder / "b.txt")
    assert content_digest(folder) != first
    with pytest.raises(UserError, match=r"nothing.json: cannot be read .*; run `dvc repro`"):
        content_digest(tmp_path / "nothing.json")


# Completed outputs


@pytest.fixture
def project(tmp_path: Path, packed: Path) -> Iterator[Path]:
    """Return a project's folder that has what the stage export depends on."""
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copytree(ROOT / "stages", tmp_path / "stages")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(packed, tmp_path / paths.DATASET)
    (tmp_path / paths.NETWORKS).mkdir(parents=True)
    (tmp_path / paths.network(0)).write_text("weights")
    with alone(tmp_path):
        yield tmp_path


def export(**changes: object) -> Stage:
    settings = params.load()
    tta = settings.tta.model_copy(update=changes)
    return Stage("export", settings.model_copy(update={"tta": tta}), Dataset.open(paths.DATASET))


def work(of: Stage, text: str) -> None:
    """Write the outputs of a stage, and complete it."""
    paths.MODEL.write_text(text)
    paths.EXPORT_RUN.write_text("{}")
    paths.ONNX.mkdir(exist_ok=True)
    of.report.mkdir(parents=True, exist_ok=True)
    (of.report / paths.METRICS).write_text("{}")
    of.complete()


def note(of: Stage) -> None:
    """Write dvc.lock as DVC does after a stage."""
    settings = YAML(typ="safe").load(Path("params.yaml"))
    code = [dep for dep in STAGES["export"]["deps"] if Path(dep).is_file()]
    lock = {
        "ingest": {"outs": [{"path": "data/dataset", "md5": "d.dir"}]},
        "train": {"outs": [{"path": "models/networks", "md5": "n.dir"}]},
        "export": {
            "deps": [
                {"path": "data/dataset", "md5": "d.dir"},
                {"path": "models/networks", "md5": "n.dir"},
                *(
                    {"path": dep, "md5": hashlib.md5(Path(dep).read_bytes()).hexdigest()}
                    for dep in code
                ),
            ],
            "params": {
                "params.yaml": {name: settings[name] for name in ("split", "tta", "export")}
            },
            "outs": [{"path": paths.MODEL.as_posix(), "md5": "m"}],
        },
    }
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": lock}))


def test_outputs_that_were_completed_and_not_noted_come_back(project: Path) -> None:
    work(export(), "first")
    paths.MODEL.unlink()
    assert export().restore()
    assert paths.MODEL.read_text() == "first"


def test_outputs_come_back_after_a_comment_was_changed(project: Path) -> None:
    work(export(), "first")
    note(export())
    with Path("src/emotion_detection/models/saving.py").open("a") as file:
        file.write("# A comment.\n")
    paths.MODEL.unlink()
    assert export().restore()
    assert paths.MODEL.read_text() == "first"


def test_a_stage_that_is_forced_works_anew(project: Path) -> None:
    work(export(), "first")
    note(export())
    assert stage.is_in_lock_file(export().definition)
    assert not export().restore()
    # Interrupted, the new work is not taken for completed.
    assert not export().restore()
    work(export(), "second")
    # Forced once more, it works anew again: DVC may have noted the same as before.
    assert not export().restore()


def test_other_params_are_other_work_and_going_back_finds_the_first(project: Path) -> None:
    work(export(), "flips")
    assert not export(flips=False).restore()
    work(export(flips=False), "none")
    assert export().restore()
    assert paths.MODEL.read_text() == "flips"


def test_other_code_data_or_inputs_are_other_work(project: Path) -> None:
    work(export(), "first")
    code = Path("src/emotion_detection/models/saving.py")
    before = code.read_text()
    code.write_text(before + "BATCH_PIXELS = 1\n")
    assert not export().restore()
    code.write_text(before)
    assert export().restore()
    paths.network(0).write_text("other weights")
    assert not export().restore()


def test_other_pixels_are_other_work_though_the_images_are_the_same(project: Path) -> None:
    work(export(), "first")
    summary = paths.DATASET / "dataset.json"
    summary.write_text(summary.read_text().replace('"pixels": "', '"pixels": "0'))
    assert not export().restore()


def test_a_state_that_was_half_removed_is_not_taken_for_one(project: Path) -> None:
    work(export(), "first")
    state = export().shared
    state.rename(state.with_name(f".{state.name}.partial"))
    assert not export().restore()
    for shifts in range(stage.STATES_KEPT + 1):
        work(export(shifts=shifts), str(shifts))
    assert export(shifts=stage.STATES_KEPT).restore()


def test_the_oldest_states_are_removed(project: Path) -> None:
    for shifts in range(stage.STATES_KEPT + 2):
        work(export(shifts=shifts), str(shifts))
    states = list((paths.STATE / "export").iterdir())
    assert len(states) == stage.STATES_KEPT
    assert not export(shifts=0).restore()
    assert export(shifts=stage.STATES_KEPT + 1).restore()


def test_interrupted_states_and_those_at_work_are_not_removed_for_completed_ones(
    project: Path,
) -> None:
    interrupted, at_work = export(shifts=20), export(shifts=21)
    for of in (interrupted, at_work):
        of.shared.mkdir(parents=True)
        (of.shared / "epoch_00001").touch()
    with locked(paths.state_lock(at_work.shared)):
        for shifts in range(stage.STATES_KEPT + 1):
            work(export(shifts=shifts), str(shifts))
            export(shifts=30 + shifts).shared.mkdir()
        work(export(shifts=10), "last")
        assert at_work.shared.exists()
    assert not interrupted.shared.exists()
    assert not export(shifts=0).restore()
    assert export(shifts=stage.STATES_KEPT).restore()


def test_two_processes_do_the_same_work_once(project: Path) -> None:
    first, second = export(), export()
    assert not first.restore()
    restored: list[bool] = []
    waiting = threading.Thread(target=lambda: restored.append(second.restore()))
    waiting.start()
    time.sleep(0.2)
    assert restored == []
    work(first, "first")
    waiting.join(timeout=60)
    assert restored == [True]


def test_a_queued_copy_keeps_its_state_in_the_project(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export().folder.parts[:2] == ("models", ".state")
    copy = project / ".dvc/tmp/exps/copy"
    copy.mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(name, copy)
    for name in ("stages", "src", "data", "models"):
        shutil.copytree(name, copy / name)
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(copy)
    work(export(), "made in the copy")
    monkeypatch.chdir(project)
    assert export().restore()
    assert paths.MODEL.read_text() == "made in the copy"


def test_what_is_shared_over_a_param_stays_where_the_param_changes(project: Path) -> None:
    settings = params.load()
    save_hyperparameters(settings, None, paths.HYPERPARAMETERS)
    folders = []
    for members in (2, 3):
        ensemble = settings.ensemble.model_copy(update={"members": members})
        of = Stage(
            "train",
            settings.model_copy(update={"ensemble": ensemble}),
            Dataset.open(paths.DATASET),
            shared_over=["ensemble.members"],
        )
        folders.append((of.shared, of.folder))
    assert folders[0][0] == folders[1][0]
    assert folders[0][1] != folders[1][1]
    assert all(folder.parent == shared for shared, folder in folders)
