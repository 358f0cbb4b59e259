"""What is written down and played: all of it, in order, whatever stops either end."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from emotion_detection.console import UserError
from emotion_detection.tracking import outbox
from emotion_detection.tracking.outbox import (
    AwayError,
    BusyError,
    Entry,
    Outbox,
    left_behind,
    persist,
)


class Store:
    """What entries are played to. It is away at the tries that `away` says, counted from 1."""

    def __init__(self, away: Callable[[int], bool] = lambda tried: False) -> None:
        self.away = away
        self.tried = 0
        self.played: list[tuple[int, str | None]] = []

    def __call__(self, entry: Entry, known: Mapping[str, str], folder: Path) -> str | None:
        self.tried += 1
        if self.away(self.tried):
            raise AwayError("the store is away")
        if entry.get("wrong"):
            raise ValueError("no such thing")
        self.played.append((entry["number"], known.get(entry["run"])))
        return f"id of {entry['run']}" if entry.get("create") else None

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.played]


def entry(number: int, **more: object) -> Entry:
    return {"number": number, "run": "a", **more}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE", 0.01)


def test_entries_are_played_in_their_order_and_the_journal_goes(tmp_path: Path) -> None:
    store = Store()
    kept = Outbox(tmp_path / "run", store)
    kept.append(entry(0, create=True))
    kept.append(entry(1))
    assert kept.drained(60)
    kept.append(entry(2))
    assert kept.close(60)
    assert store.played == [(0, None), (1, "id of a"), (2, "id of a")]
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_away_for_a_while_misses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(away=lambda tried: 3 <= tried <= 6)
    kept = Outbox(tmp_path / "run", store)
    with caplog.at_level(logging.INFO):
        for number in range(8):
            kept.append(entry(number))
        assert kept.close(60)
    assert store.numbers == list(range(8))
    assert [record.message for record in caplog.records] == [
        "the store is away; what is logged is kept until it is back",
        "the store is back: what was kept is sent",
    ]


def test_what_is_not_played_is_played_by_who_comes_next(tmp_path: Path) -> None:
    store = Store(away=lambda tried: tried > 2)
    kept = Outbox(tmp_path / "run", store)
    kept.append(entry(0, create=True))
    for number in range(1, 5):
        kept.append(entry(number))
    assert not kept.close(0.1)
    assert kept.trouble == "the store is away"
    assert store.numbers == [0, 1]

    later = Store()
    (again,) = left_behind(tmp_path, later)
    assert again.close(60)
    assert later.played == [(number, "id of a") for number in (2, 3, 4)]
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


def test_what_the_store_refuses_is_told_once_and_the_rest_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    kept = Outbox(tmp_path / "run", store)
    for number in range(4):
        kept.append(entry(number, do="log", wrong=number in (1, 2)))
    assert kept.close(60)
    assert store.numbers == [0, 3]
    assert [record.message for record in caplog.records] == ["not logged (log): no such thing"]


def test_a_journal_is_one_processs_at_a_time(tmp_path: Path) -> None:
    first = Outbox(tmp_path / "run", Store(away=lambda tried: True))
    first.append(entry(0))
    with pytest.raises(BusyError):
        Outbox(tmp_path / "run", Store())
    assert list(left_behind(tmp_path, Store())) == []
    assert not first.close(0)
    assert Outbox(tmp_path / "run", Store()).close(60)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    kept = Outbox(tmp_path / "run", Store())
    (tmp_path / "run" / "entries.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"entries\.jsonl: No space left on device; free some"):
        kept.append(entry(0))
    assert kept.close(60)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_what_cannot_be_ticked_off_is_played_again(tmp_path: Path) -> None:
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


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "entries.jsonl").write_text("{}\nno json\n")
    with pytest.raises(UserError, match=r"run: damaged .*remove it"):
        Outbox(tmp_path / "run", Store())


def test_what_needs_the_store_at_once_waits_for_it(caplog: pytest.LogCaptureFixture) -> None:
    tries = 0

    def act() -> int:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise AwayError("the store is away")
        return tries

    assert persist(act, 60) == 4
    assert caplog.messages == ["the store is away; trying again for 60 s"]
    tries = 0
    with pytest.raises(AwayError):
        persist(act, 0)
