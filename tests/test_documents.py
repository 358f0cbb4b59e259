"""The commands, params and links of the documents are what the project has."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from emotion_detection.settings import params
from emotion_detection.settings.sections import flat
from tests.support import reference
from tests.support.documents import DOCUMENTS, ELSEWHERE, NOT_RUN, ROOT, RUN, commands, targets

KNOWN = (*RUN, *ELSEWHERE, *NOT_RUN)
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKED = (*DOCUMENTS, ROOT / "CHANGELOG.md")


def test_every_command_of_the_documents_is_run_or_it_is_said_why_not() -> None:
    unknown = [
        f"{document.relative_to(ROOT)}: `{command}`"
        for document in DOCUMENTS
        for command in commands(document.read_text(encoding="utf-8"))
        if command not in KNOWN
    ]
    assert not unknown, (
        "run these in the small project (RUN in tests/support/documents.py), or name there the "
        f"test that runs them (ELSEWHERE) or why none does (NOT_RUN): {'; '.join(unknown)}"
    )


def test_no_command_is_listed_that_the_documents_no_longer_name() -> None:
    named = {
        command
        for document in DOCUMENTS
        for command in commands(document.read_text(encoding="utf-8"))
    }
    assert [command for command in KNOWN if command not in named] == []


def test_every_param_that_a_command_sets_exists() -> None:
    keys = flat(params.load(ROOT / "params.yaml"))
    named = {key for command in KNOWN for key in re.findall(r"-S [\"']?([\w.]+)=", command)}
    assert named - keys.keys() == set()


@pytest.mark.parametrize("document", LINKED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        if "://" in file:
            continue
        path = document.parent / file if file else document
        found = targets(path.read_text(encoding="utf-8")) if path.suffix == ".md" else ()
        if not path.exists() or (anchor and anchor not in found):
            broken.append(link)
    assert broken == []


def test_commands_are_found_in_blocks_tables_and_sentences() -> None:
    text = (
        "```sh\nfirst one   # comment\nsecond \\\n  one\ncat x |\n  wc\n```\n"
        "```\ndvc third\na tree  of files\n```\n```json\n{}\n```\n"
        "| to | run |\n|---|---|\n| do | `mlflow fourth 'a\\|b'`, then `DVC=1 make fifth` |\n"
        "Or `dvc`, `params.yaml`, ``make `no` such`` and `dvc\nsixth`.\n"
    )
    assert list(commands(text)) == [
        *("first one", "second one", "cat x | wc", "dvc third"),
        *("mlflow fourth 'a|b'", "DVC=1 make fifth", "dvc sixth"),
    ]


def test_headings_and_anchors_are_targets_of_links() -> None:
    text = (
        "# The `first`, in HTTP\n```\n# no heading\n```\n"
        "| <a id='row'></a>x |\n## <a id='s'></a>It's\n"
    )
    assert targets(text) == {"the-first-in-http", "row", "s", "its"}


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_reference_says_what_the_code_says(name: str) -> None:
    written = (reference.REFERENCE / name).read_text(encoding="utf-8")
    assert written == reference.PAGES[name](), "run `python -m tests.support.reference`"


def test_every_environment_variable_of_the_project_is_in_the_reference() -> None:
    page = (reference.REFERENCE / "variables.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    used = set(re.findall(r"\bEMOTION_DETECTION_[A-Z_]+", code))
    assert used <= set(re.findall(r"\w+", page))


def test_every_output_of_dvc_is_in_the_reference() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    known = reference.outputs()
    for stage in stages.values():
        for out in stage["outs"]:
            path = out if isinstance(out, str) else next(iter(out))
            assert any(name == path or name.startswith(f"{path}/") for name in known), path


def test_the_tree_in_the_readme_names_every_module() -> None:
    (tree,) = re.findall(r"^## The tree\n+```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    lines = dict(re.findall(r"^  (\w+)/ +((?:.+\n(?: {20,}.+\n)*))", tree, re.MULTILINE))
    for package in (path for path in (ROOT / "src/emotion_detection").iterdir() if path.is_dir()):
        if package.name in ("figures", "tracking", "__pycache__"):
            continue
        modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
        assert modules <= set(re.findall(r"\w+", lines[package.name])), package.name


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_pre_commit_and_ci_check_what_make_lint_checks() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook["entry"] for repository in hooks["repos"] for hook in repository["hooks"]]
    programs = {entry.removeprefix(".venv/bin/").split(" --")[0] for entry in entries}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert {re.split(r" [-.]", line.strip())[0] for line in lint.splitlines()} == programs
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert ".ci/run" in [step.get("run") for step in workflow["jobs"]["checks"]["steps"]]


def test_the_version_and_the_license_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert (
        (ROOT / "LICENSE").read_text(encoding="utf-8").startswith(f"{project['license']} License")
    )


def test_the_containers_use_what_the_project_has() -> None:
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f" AS {container['build']['target']}\n" in dockerfile
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = f"{re.sub('apt-get.*', '', dockerfile)} {container['postCreateCommand']}"
    used = re.findall(r"\bmake (\S+)", commands)
    assert all(f"\n{target}:" in makefile for target in used), used
    for copied in re.findall(r"^COPY --chown=user (.+) \S+$", dockerfile, re.MULTILINE):
        assert all(list(ROOT.glob(name)) for name in copied.split() if name != "."), copied
