"""What a network has learnt from, and what of it scores the network today."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emotion_detection.data.dataset import SPLITS, Dataset, group_by_digest
from emotion_detection.data.splits import Split
from emotion_detection.tracking import lineage
from emotion_detection.tracking.lineage import NOTHING_SEEN, Lineage, Seen


def of_rows(dataset: Dataset, rows: np.ndarray) -> Lineage:
    return lineage.of_images(dataset.digests[row] for row in rows)


def child(dataset: Dataset, rows: Split, *ancestors: Lineage) -> Lineage:
    """Return the lineage of a training on `rows` that started from `ancestors`."""
    return lineage.joined([of_rows(dataset, rows.train), *ancestors], ancestors=["models:/faces/1"])


def test_a_network_that_learnt_from_its_own_train_images_alone_has_seen_nothing(
    toy: Dataset, rows: Split
) -> None:
    own = of_rows(toy, rows.train)
    assert own.seen(toy, rows) == NOTHING_SEEN
    assert NOTHING_SEEN.tags() == {"leak": "false"}
    assert (NOTHING_SEEN.metrics(), NOTHING_SEEN.sentences) == ({}, [])
    # An ancestor with the same split has not either.
    assert child(toy, rows, own).seen(toy, rows) == NOTHING_SEEN


def test_what_an_ancestor_learnt_from_is_found_among_the_images_that_score(
    toy: Dataset, rows: Split
) -> None:
    # Another seed of the split, and of a cut test split.
    grandparent = of_rows(toy, np.concatenate([rows.validation[:4], rows.test[:3]]))
    parent = child(toy, rows, grandparent)
    for found in (parent, child(toy, rows, parent), lineage.joined([parent])):
        seen = found.seen(toy, rows)
        assert seen == Seen(test=3, validation=4)
        assert seen.tags() == {"leak": "true"}
        assert seen.metrics() == {"inherited_leaks": 3}
        assert "learnt from 3 of the test images, so the scores are too good" in seen.sentences[0]
        assert "4 of the validation images" in seen.sentences[1]


def test_the_images_are_known_in_any_order_size_and_set(toy: Dataset, rows: Split) -> None:
    ancestor = child(toy, rows, of_rows(toy, rows.test))
    order = np.random.default_rng(0).permutation(len(toy))
    shuffled = replace(
        toy,
        images=toy.images[order][:, :8, :8],
        labels=toy.labels[order],
        splits=toy.splits[order],
        digests=[toy.digests[row] for row in order],
        groups=group_by_digest([toy.digests[row] for row in order]),
        source="another.zip",
    )
    train, test = np.flatnonzero(shuffled.is_train), np.flatnonzero(shuffled.is_test)
    again = Split(train, train[:0], test, selected_on_test=False)
    assert ancestor.seen(shuffled, again).test == len(rows.test)


def test_leaks_of_the_data_set_count_only_where_they_were_dropped(
    toy: Dataset, rows: Split
) -> None:
    digests = list(toy.digests)
    digests[rows.test[0]] = digests[rows.train[0]]
    leaky = replace(toy, digests=digests, groups=group_by_digest(digests))
    own = of_rows(leaky, rows.train)
    assert own.seen(leaky, rows) == NOTHING_SEEN
    # The same set without them, as ingest.drop_leaks makes it, and a network of the former.
    splits = leaky.splits.copy()
    splits[rows.train[0]] = SPLITS.index("validation")
    dropped = replace(leaky, splits=splits)
    fewer = replace(rows, train=rows.train[1:])
    assert child(dropped, fewer, own).seen(dropped, fewer).test == 1


def test_what_is_unknown_is_said_and_is_no_leak(toy: Dataset, rows: Split) -> None:
    foreign = lineage.from_json(None, "models:/elsewhere/2")
    seen = child(toy, rows, foreign).seen(toy, rows)
    assert (seen.leak, seen.unknown) == (False, ("models:/elsewhere/2",))
    assert seen.tags() == {"leak": "unknown"}
    assert "unknown what models:/elsewhere/2 learnt from" in seen.sentences[0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"image_digests": "AAA"}', "{"])
def test_a_text_that_is_no_lineage_is_unknown(text: str) -> None:
    assert lineage.from_json(text, "a file").unknown == ("a file",)


def test_the_text_is_small_and_says_all(toy: Dataset, rows: Split, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    many = lineage.of_images(rng.bytes(16).hex() for _ in range(10_000))
    assert len(many.to_json()) < 11 * 10_000
    found = child(toy, rows, many, lineage.from_json(None, "a file"))
    found.write(tmp_path)
    again = lineage.from_json((tmp_path / lineage.FILE).read_text(), "nothing")
    np.testing.assert_array_equal(again.images, found.images)
    assert (again.ancestors, again.unknown) == (("models:/faces/1",), ("a file",))
    assert again.to_json() == found.to_json()
