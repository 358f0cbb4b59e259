"""Corrections of wrong labels: a small file in Git, which ingest applies to the images it reads.

An image is known by its digest, see `dataset`, so that a correction survives another file name and
another archive.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emotion_detection.console import UserError, log

COLUMNS = ("digest", "old", "new", "who", "when", "why")


class Correction(NamedTuple):
    """A decision about the label of an image: a line of the file.

    `old` is the class that the set gives the image. `new` is the class that it shows, empty where
    it shows none and is to be dropped; where it equals `old`, nothing changes.
    """

    digest: str
    old: str
    new: str
    who: str = ""
    when: str = ""
    why: str = ""


@dataclass(frozen=True, eq=False)
class Corrected:
    """What corrections make of N images: `labels` (N,) int64, and `dropped` (N,) bool.

    `counts` says what was done: images relabelled and dropped, and corrections not_found and
    contradictory.
    """

    labels: np.ndarray
    dropped: np.ndarray
    counts: dict[str, int]


def read(path: Path) -> dict[str, Correction]:
    """Return the last correction of each image by its digest; none where there is no file.

    Raises:
        UserError: if the file is no table with the columns of `Correction`.

    """
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not rows or rows[0] != list(COLUMNS):
        raise UserError(f"{path}: its first line must be {','.join(COLUMNS)}")
    found: dict[str, Correction] = {}
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        if len(row) != len(COLUMNS):
            raise UserError(f"{path}: entry {number} has {len(row)} fields, not {len(COLUMNS)}")
        found[row[0]] = Correction(*row)
    return found


def apply(
    corrections: Mapping[str, Correction],
    labels: np.ndarray,
    digests: Sequence[str],
    classes: Sequence[str],
) -> Corrected:
    """Return what `corrections`, by digest, make of images with these labels and digests.

    A correction holds for every copy of its image, whatever their labels. It is contradictory if no
    copy has its `old` label, or if its `new` one is not among `classes`; it then changes nothing.
    """
    rows: dict[str, list[int]] = {}
    for row, digest in enumerate(digests):
        if digest in corrections:
            rows.setdefault(digest, []).append(row)
    corrected, dropped = labels.copy(), np.zeros(len(labels), bool)
    contradictory = []
    for digest, copies in rows.items():
        _, old, new, *_ = corrections[digest]
        known = new in ("", *classes)
        if not known or old not in {classes[label] for label in labels[copies]}:
            contradictory.append(digest)
        elif not new:
            dropped[copies] = True
        elif new != old:
            corrected[copies] = classes.index(new)
    counts = {
        "relabelled": int(np.count_nonzero(corrected != labels)),
        "dropped": int(np.count_nonzero(dropped)),
        "not_found": len(corrections) - len(rows),
        "contradictory": len(contradictory),
    }
    return Corrected(corrected, dropped, counts)


def check_left(
    path: Path, classes: Sequence[str], before: Iterable[tuple[str, int]], after: Corrected
) -> None:
    """Raise UserError if corrections take from a split all images of a class that it had.

    `before` has the split and the label of each image, as the set gives them.
    """
    before = list(before)
    left = {
        (split, label)
        for (split, _), label, gone in zip(before, after.labels, after.dropped, strict=True)
        if not gone
    }
    if lost := sorted(set(before) - left):
        split, label = lost[0]
        raise UserError(f"{path}: leaves class {classes[label]!r} without an image in {split}")


def report(counts: Mapping[str, int], path: Path) -> None:
    """Log what `Corrected.counts` says; nothing where there are no corrections."""
    if counts["relabelled"] or counts["dropped"]:
        log.info(
            "ingest: %s images relabelled and %s dropped, by the corrections in %s",
            *(f"{counts['relabelled']:,}", f"{counts['dropped']:,}", path),
        )
    if counts["not_found"] or counts["contradictory"]:
        log.warning(
            "ingest: of the corrections in %s, %s are of images that the set does not have, and %s "
            "contradict it (another old label, or an unknown class)",
            *(path, f"{counts['not_found']:,}", f"{counts['contradictory']:,}"),
        )
