"""Every command that the documents name is known to work, or it is said why nobody knows."""

from documents import DOCUMENTS, ELSEWHERE, NOT_RUN, ROOT, RUN, commands

KNOWN = (*RUN, *ELSEWHERE, *NOT_RUN)


def test_every_command_of_the_documents_is_run_or_it_is_said_why_not() -> None:
    unknown = [
        f"{document.relative_to(ROOT)}: `{command}`"
        for document in DOCUMENTS
        for command in commands(document.read_text(encoding="utf-8"))
        if command not in KNOWN
    ]
    assert not unknown, (
        "run these in the small project (RUN in tests/documents.py), or name there the test that "
        f"runs them (ELSEWHERE) or the reason why none does (NOT_RUN): {'; '.join(unknown)}"
    )


def test_no_command_is_listed_that_the_documents_no_longer_name() -> None:
    named = {
        command
        for document in DOCUMENTS
        for command in commands(document.read_text(encoding="utf-8"))
    }
    assert [command for command in KNOWN if command not in named] == []


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
