"""Every entry of an outbox is delivered, in order, whatever stops the process or the store."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from emotion_detection.console import UserError
from emotion_detection.tracking import outbox
from emotion_detection.tracking.outbox import (
    BusyError,
    Entry,
    Outbox,
    UnknownRunError,
    UnreachableError,
    abandoned,
    retry,
)


class Store:
    """A store that cannot be reached at the tries for which `away` is true, counted from 1."""

    def __init__(self, away: Callable[[int], bool] = lambda tried: False) -> None:
        self.away = away
        self.tried = 0
        self.delivered: list[tuple[int, str | None]] = []

    def __call__(self, entry: Entry, known: Mapping[str, str], folder: Path) -> str | None:
        self.tried += 1
        if self.away(self.tried):
            raise UnreachableError("the store is away")
        if entry.get("wrong"):
            raise ValueError("no such thing")
        self.delivered.append((entry["number"], known.get(entry["run"])))
        return f"id of {entry['run']}" if entry.get("create") else None

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.delivered]


def entry(number: int, **more: object) -> Entry:
    return {"number": number, "run": "a", **more}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE", 0.01)


def test_entries_are_delivered_in_their_order_and_the_outbox_goes(tmp_path: Path) -> None:
    store = Store()
    kept = Outbox(tmp_path / "run", store)
    kept.append(entry(0, create=True))
    kept.append(entry(1))
    assert kept.flush(60)
    kept.append(entry(2))
    assert kept.close(60)
    assert store.delivered == [(0, None), (1, "id of a"), (2, "id of a")]
    assert list(tmp_path.iterdir()) == []


def test_an_outage_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(away=lambda tried: 3 <= tried <= 6)
    kept = Outbox(tmp_path / "run", store)
    with caplog.at_level(logging.INFO):
        for number in range(8):
            kept.append(entry(number))
        assert kept.close(60)
    assert store.numbers == list(range(8))
    assert [record.message for record in caplog.records] == [
        f"the store is away; what is logged is kept in {kept.folder} until it is back",
        "MLflow is back: what was kept on disk is sent",
    ]


def test_what_is_not_delivered_is_delivered_by_the_next_process(tmp_path: Path) -> None:
    store = Store(away=lambda tried: tried > 2)
    kept = Outbox(tmp_path / "run", store)
    kept.append(entry(0, create=True))
    for number in range(1, 5):
        kept.append(entry(number))
    assert not kept.close(0.1)
    assert kept.problem == "the store is away"
    assert store.numbers == [0, 1]

    later = Store()
    (again,) = abandoned(tmp_path, later)
    assert again.close(60)
    assert later.delivered == [(number, "id of a") for number in (2, 3, 4)]
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_a_killed_process_began_does_not_count(tmp_path: Path) -> None:
    kept = Outbox(tmp_path / "run", Store(away=lambda tried: True))
    kept.append(entry(0))
    kept.append(entry(1))
    assert not kept.close(0)
    with (tmp_path / "run" / "entries.jsonl").open("a") as file:
        file.write('{"number": 2, "ru')
    store = Store()
    again = Outbox(tmp_path / "run", store)
    again.append(entry(3))
    assert again.close(60)
    assert store.numbers == [0, 1, 3]


def test_what_the_store_refuses_is_reported_once_and_the_rest_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    kept = Outbox(tmp_path / "run", store)
    for number in range(4):
        kept.append(entry(number, do="log", wrong=number in (1, 2)))
    assert kept.close(60)
    assert store.numbers == [0, 3]
    assert [record.message for record in caplog.records] == ["not logged (log): no such thing"]


def test_one_process_at_a_time_has_an_outbox_open(tmp_path: Path) -> None:
    first = Outbox(tmp_path / "run", Store(away=lambda tried: True))
    first.append(entry(0))
    with pytest.raises(BusyError):
        Outbox(tmp_path / "run", Store())
    assert list(abandoned(tmp_path, Store())) == []
    assert not first.close(0)
    assert Outbox(tmp_path / "run", Store()).close(60)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_an_error_names_the_file_that_the_disk_has_no_room_for(tmp_path: Path) -> None:
    kept = Outbox(tmp_path / "run", Store())
    (tmp_path / "run" / "entries.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"entries\.jsonl: No space left on device; free some"):
        kept.append(entry(0))
    assert kept.close(60)


def test_an_error_says_that_the_folder_of_an_outbox_was_removed(tmp_path: Path) -> None:
    kept = Outbox(tmp_path / "run", Store())
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match=r"entries\.jsonl: No such file .*; its folder was removed"):
        kept.append(entry(0))
    assert kept.close(60)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_what_cannot_be_marked_as_delivered_is_delivered_again(tmp_path: Path) -> None:
    store = Store(away=lambda tried: tried > 2)
    kept = Outbox(tmp_path / "run", store)
    (tmp_path / "run" / "results.jsonl").symlink_to("/dev/full")
    for number in range(3):
        kept.append(entry(number))
    assert not kept.close(0.1)
    assert store.numbers == [0, 1]
    (tmp_path / "run" / "results.jsonl").unlink()
    later = Store()
    assert Outbox(tmp_path / "run", later).close(60)
    assert later.numbers == [0, 1, 2]


@pytest.mark.parametrize("line", ["no json", "{}", "3", '{"run": 3}', "[" * 10**5, "\0" * 99])
def test_a_damaged_entry_is_told_and_the_rest_is_delivered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    (tmp_path / "run").mkdir()
    entries = tmp_path / "run/entries.jsonl"
    entries.write_text(f"{json.dumps(entry(0))}\n{line}\n{json.dumps(entry(1))}\n")
    store = Store()
    (kept,) = abandoned(tmp_path, store)
    assert kept.close(60)
    assert store.numbers == [0, 1]
    assert caplog.messages == [f"not logged (a damaged entry): damaged lines in {entries}"]


def test_what_follows_a_damaged_result_is_delivered_again(tmp_path: Path) -> None:
    kept = Outbox(tmp_path / "run", Store(away=lambda tried: tried > 3))
    for number in range(4):
        kept.append(entry(number, create=number == 0))
    assert not kept.close(0.1)
    results = tmp_path / "run/results.jsonl"
    results.write_bytes(results.read_bytes().replace(b"null", b"nul\0", 1))
    store = Store()
    assert Outbox(tmp_path / "run", store).close(60)
    assert store.delivered == [(number, "id of a") for number in (1, 2, 3)]


def test_an_outbox_of_an_unknown_run_stays_without_waiting(tmp_path: Path) -> None:
    unknown = True

    def deliver(entry: Entry, known: Mapping[str, str], folder: Path) -> str | None:
        if unknown:
            raise UnknownRunError("the store has no such run")
        return None

    kept = Outbox(tmp_path / "run", deliver)
    kept.append(entry(0))
    assert not kept.close(10**6)
    assert kept.unknown
    unknown = False
    assert Outbox(tmp_path / "run", deliver).close(60)


def test_what_is_no_text_becomes_text(tmp_path: Path) -> None:
    found: list[Entry] = []

    def deliver(entry: Entry, known: Mapping[str, str], folder: Path) -> str | None:
        found.append(entry)
        return None

    kept = Outbox(tmp_path / "run", deliver)
    kept.append({"run": "a", "tags": {"dataset": "caf\udce9 é.zip"}})
    assert kept.close(60)
    assert found == [{"run": "a", "tags": {"dataset": "caf? é.zip"}}]


def test_a_request_is_tried_again_until_its_timeout(caplog: pytest.LogCaptureFixture) -> None:
    tries = 0

    def act() -> int:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise UnreachableError("the store is away")
        return tries

    assert retry(act, 60) == 4
    assert caplog.messages == ["the store is away; trying again for 60 s"]
    tries = 0
    with pytest.raises(UnreachableError):
        retry(act, 0)
