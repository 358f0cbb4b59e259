"""What an experiment of DVC's runs, keeps and commits, tried with real DVC and stages of a line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.support.project import ROOT, Project

TOY_STAGE = """\
from pathlib import Path
from emotion_detection.toy import WORD
Path("word.txt").write_text(WORD)
"""

INGEST = """\
import json
from pathlib import Path
from emotion_detection.files import keep_out_of_git
for source in json.loads(Path("sources.json").read_text()):
    keep_out_of_git(Path(source))
Path("done.txt").write_text("done")
"""


@pytest.fixture
def project(tmp_path: Path) -> Callable[[dict[str, str], dict[str, object]], Project]:
    """Return what makes a project of some files and DVC stages, committed."""

    def make(files: dict[str, str], stages: dict[str, object]) -> Project:
        root = tmp_path / "project"
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        YAML().dump({"stages": stages}, root / "dvc.yaml")
        project = Project(root)
        project.run("git", "init", "--quiet", "--initial-branch", "main")
        project.run("git", "config", "user.name", "A Person")
        project.run("git", "config", "user.email", "person@example.org")
        project.run("dvc", "init", "--quiet")
        project.commit("Begin")
        return project

    return make


def test_a_queued_experiment_runs_the_code_that_it_records(project: Callable[..., Project]) -> None:
    module = "src/emotion_detection/toy.py"
    toy = project(
        {
            "stages/__init__.py": (ROOT / "stages/__init__.py").read_text(),
            "stages/toy.py": TOY_STAGE,
            "src/emotion_detection/__init__.py": "",
            module: "WORD = 'queued'\n",
        },
        # PYTHONPATH names the project's own src, as the installed package does.
        {"toy": {"cmd": "python -m stages.toy", "deps": [module], "outs": ["word.txt"]}},
    )
    (toy.root / module).write_text("WORD = 'changed, then queued'\n")
    toy.run("dvc", "exp", "run", "--queue", "--name", "changed")
    (toy.root / module).write_text("WORD = 'changed later'\n")
    toy.run_queue(jobs=1)
    toy.run("git", "checkout", "--quiet", ".")
    toy.run("dvc", "exp", "apply", "changed")
    assert (toy.root / "word.txt").read_text() == "changed, then queued"


SOURCES = (
    "data/fer",
    "data/archive.ZIP",
    "archive (1).zip",
    "photos/[of] *me* #1/é",
    "linked/fer",
)


def test_no_source_in_the_project_goes_into_git(
    project: Callable[..., Project], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "fer/train/happy").mkdir(parents=True)
    (elsewhere / "fer/train/happy/im0.png").write_text("an image")
    toy = project(
        {
            "ingest.py": INGEST,
            "sources.json": "[]",
            "data/.gitignore": (ROOT / "data/.gitignore").read_text(),
            "own/tracked.png": "tracked by Git on purpose",
        },
        {
            "ingest": {
                "cmd": "python ingest.py",
                "deps": [*SOURCES, "own", "ingest.py"],
                "outs": ["done.txt"],
            }
        },
    )
    toy.env["PYTHONPATH"] = str(ROOT / "src")
    (toy.root / "linked").symlink_to(elsewhere)
    for name in SOURCES[:-1]:
        path = toy.root / name
        if path.suffix:
            path.write_text("an archive")
        else:
            (path / "train/happy").mkdir(parents=True)
            (path / "train/happy/im0.png").write_text("an image")
    (toy.root / "sources.json").write_text(json.dumps([*SOURCES, "own", str(elsewhere)]))
    toy.run("dvc", "exp", "run", "--name", "tried")
    named = ("--format=%(refname)", "refs/exps/*/*/tried")
    (experiment,) = toy.run("git", "for-each-ref", *named).split()
    committed = toy.run("git", "ls-tree", "-r", "--name-only", "-z", experiment).split("\0")
    assert "done.txt" not in committed
    assert "dvc.lock" in committed
    images = [path for path in committed if path.endswith((".png", ".zip", ".ZIP"))]
    assert images == ["own/tracked.png"]
    # What lies in data/ is ignored by the file there, and what is ignored is not added again.
    toy.run("python", "ingest.py")
    lines = (toy.root / ".git/info/exclude").read_text().splitlines()
    assert [line for line in lines if line.startswith("/")] == [
        "/archive\\ (1).zip",
        "/photos/\\[of]\\ \\*me\\*\\ #1/é",
        "/linked",
    ]
