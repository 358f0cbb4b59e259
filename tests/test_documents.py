"""The commands, params and links of the documents are what the project has."""

import re
from pathlib import Path

import pytest

from emotion_detection import params
from tests.support.documents import DOCUMENTS, ELSEWHERE, NOT_RUN, ROOT, RUN, commands, targets

KNOWN = (*RUN, *ELSEWHERE, *NOT_RUN)
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
    keys = params.flat(params.load(ROOT / "params.yaml"))
    named = {key for command in KNOWN for key in re.findall(r"-S [\"']?([\w.]+)=", command)}
    assert named - keys.keys() == set()


@pytest.mark.parametrize("document", LINKED, ids=lambda path: path.name)
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
