"""Ingest: a folder or archive of images with their classes becomes a checked, packed dataset.

Every image file is decoded to its last byte; what is no sound image is listed and left out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from joblib import cpu_count

from emotion_detection.console import UserError, log, progress
from emotion_detection.data import corrections as corrected_labels
from emotion_detection.data import near_duplicates
from emotion_detection.data.dataset import (
    IMAGES_FILE,
    SPLITS,
    BadFile,
    Dataset,
    drawn_by,
    group_by_digest,
    set_digest,
    write_near_pairs,
)
from emotion_detection.data.decode import Decoder, decode_all
from emotion_detection.data.layout import Item, Names
from emotion_detection.data.source import (
    check_unchanged,
    is_synthetic,
    some,
    state,
)
from emotion_detection.data.splits import cut
from emotion_detection.data.unpack import Unpacking, arranged
from emotion_detection.files import atomic

# The processes that decode images would import it for nothing, which takes half a second.
if TYPE_CHECKING:
    from emotion_detection.settings import params

TRAIN, TEST = SPLITS.index("train"), SPLITS.index("test")


@dataclass(frozen=True)
class IngestReport:
    """What ingest found and wrote. `counts` is by split, then class."""

    counts: dict[str, dict[str, int]]
    bad_files: tuple[BadFile, ...]
    duplicate_groups: int  # sets of two or more images with the same digest
    near_duplicate_groups: int  # sets of two or more images that are near-duplicates
    test_is_cut: bool  # the source had no test split: it is a part of train
    dropped_leaks: int  # train images left out since they are also in test
    digest: str


def ingest(
    source: Path,
    target: Path,
    settings: params.Ingest,
    *,
    seed: int,
    corrections: Path | None = None,
) -> IngestReport:
    """Write the images of `source`, a folder or archive, as a dataset to the folder `target`.

    Images become `image_size` (height, width), stretched where their proportions differ, and
    `color_mode`. A source without a test split has `test_fraction` of train, drawn with `seed` by
    the images' digests, made its test split; images with the same digest stay on one side. With
    `drop_leaks`, train images that are also in test are left out. The file `corrections` relabels
    and drops images, after the splits are drawn. `target` is replaced once the dataset is complete.
    Large sets are decoded in processes of their own, so the script that calls
    this needs its `if __name__ == "__main__"`.

    Raises:
        UserError: if the source has another layout, is unsafe or damaged, would unpack to more than
            `max_unpacked_gib`, has a class without images, has more than `max_bad_fraction` of its
            files bad, has a class that `drop_leaks` leaves without a train image, or changes while
            it is read; if `corrections` cannot be read, or leaves a class without an image.

    """
    source = Path(os.path.expanduser(source))  # noqa: PTH111 (it leaves a ~ that is no home)
    # Path.resolve would raise for a link to itself.
    if Path(os.path.realpath(source)).is_relative_to(os.path.realpath(target)):
        raise UserError(f"ingest.source: {source} lies in {target}, which ingest replaces; move it")
    log.info("ingest: images of %s; %d cores", source, cpu_count())
    before = state(source)
    with atomic(target) as folder:
        folder.mkdir()
        names = Names(settings.splits, settings.classes)
        unpacking = Unpacking(
            folder.with_name("unpacked"), settings.max_unpacked_gib, settings.zip_encoding
        )
        opened, arrangement = arranged(source, names, unpacking)
        with closing(opened):
            decoder = Decoder(opened, settings.image_size, settings.color_mode)
            packed = _pack(arrangement.items, decoder, folder / IMAGES_FILE)
            drawn = is_synthetic(opened, [item.path for item in arrangement.items])
        _check_bad_files(packed.bad_files, len(arrangement.items), settings.max_bad_fraction)
        _check_filled(arrangement.items, packed.items)
        # A name is shown and logged as text, whatever its bytes are.
        name = os.fsencode(Path(os.path.realpath(source)).name).decode(errors="replace")
        origin = Origin(name, drawn, arrangement.left_out)
        report = _write(packed, folder, origin, settings, seed, corrections)
        check_unchanged(source, before)
    _log_report(report, target)
    return report


def _check_filled(expected: list[Item], found: list[Item]) -> None:
    """Raise UserError if no file of a class in a split can be read."""
    empty = sorted({item[:2] for item in expected} - {item[:2] for item in found})
    if empty:
        split, name = empty[0]
        raise UserError(
            f"ingest.source: class {name!r} has no image that can be read in {split}; add some, or "
            "remove the class"
        )


# --- Packing: decoded images to the files of a dataset.


@dataclass(frozen=True)
class Packed:
    """The sound items with their digests, whose images lie in an .npy file; and the bad files."""

    items: list[Item]
    digests: list[str]
    bad_files: tuple[BadFile, ...]
    images_path: Path
    reduced_path: Path  # of (N, 48, 48) uint8, as near-duplicates are sought


def _pack(items: list[Item], decoder: Decoder, path: Path) -> Packed:
    """Decode the items and write the pixels of the sound ones to the .npy file `path`."""
    sound: list[Item] = []
    digests: list[str] = []
    bad: list[BadFile] = []
    doubts: list[str] = []
    # On disk, since those of a large set may not fit into memory.
    reduced_path = path.with_name("reduced.bin")
    with (
        path.open("wb") as file,
        reduced_path.open("wb") as reduced,
        closing(decode_all(items, decoder)) as results,
    ):
        _write_npy_header(file, (len(items), *decoder.shape))
        bar = progress(results, description="ingest", unit="images", total=len(items))
        for item, result in zip(items, bar, strict=True):
            if isinstance(result, BadFile):
                bad.append(result)
            else:
                file.write(result.pixels)
                reduced.write(result.reduced)
                sound.append(item)
                digests.append(result.digest)
                if result.doubt:
                    doubts.append(f"{item.path} ({result.doubt})")
        # Now their number is known. NumPy pads its header, so this one is as long as the first.
        file.seek(0)
        _write_npy_header(file, (len(sound), *decoder.shape))
    if doubts:
        log.warning(
            "ingest: %s files may not be what is meant: %s", f"{len(doubts):,}", some(doubts)
        )
    return Packed(sound, digests, tuple(bad), path, reduced_path)


def _write_npy_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _check_bad_files(bad: Sequence[BadFile], total: int, max_bad_fraction: float) -> None:
    if len(bad) > max_bad_fraction * total:
        named = some([f"{file.path} ({file.reason})" for file in bad])
        raise UserError(
            f"ingest.source: {len(bad):,} of {total:,} files ({len(bad) / total:.1%}) are bad, "
            f"more than ingest.max_bad_fraction = {max_bad_fraction} allows: {named}; mend or "
            "remove them, or raise the limit"
        )


class Origin(NamedTuple):
    """The folder or archive that images come from.

    Its name, whether a program drew the images, and the number of files left out, by reason.
    """

    name: str
    synthetic: bool
    left_out: Counter[str]


def _write(
    packed: Packed,
    folder: Path,
    source: Origin,
    settings: params.Ingest,
    seed: int,
    corrections: Path | None,
) -> IngestReport:
    """Write the index beside the packed images, after the changes of the splits asked for."""
    items, digests = packed.items, packed.digests
    classes = tuple(sorted({item.class_name for item in items}))
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of[item.class_name] for item in items], np.int64)
    groups = group_by_digest(digests)
    pairs, scores = _near_duplicates(packed, groups, settings.near_duplicates)
    near_groups = near_duplicates.grouped(groups, pairs)
    splits = np.array([SPLITS.index(item.split) for item in items], np.int64)
    test_is_cut = TEST not in splits
    if test_is_cut:
        near = drawn_by(digests, near_groups)
        splits[_cut(labels, near, digests, classes, settings.test_fraction, seed)] = TEST
    kept = _kept(splits, labels, digests, classes, drop_leaks=settings.drop_leaks)
    dropped_leaks = len(items) - len(kept)
    # After the splits are drawn, so that a correction moves no image from one to another.
    given = labels
    labels, kept, counts = _corrected(corrections, labels, splits, kept, digests, classes)
    if not np.array_equal(kept, np.arange(len(items))):
        _rearrange(packed.images_path, kept)
    digests, labels, splits = [digests[row] for row in kept], labels[kept], splits[kept]
    given = given[kept]
    near_groups = near_duplicates.grouped(near_groups[kept], np.empty((0, 2), np.int64))
    images = np.lib.format.open_memmap(packed.images_path, mode="r")
    dataset = Dataset(
        images=images,
        files=[items[row].path for row in kept],
        labels=labels,
        classes=classes,
        splits=splits,
        digests=digests,
        groups=group_by_digest(digests),
        near_groups=near_groups,
        digest=set_digest(digests, labels, splits, classes, images.shape[1:], given),
        source=source.name,
        synthetic=source.synthetic,
        test_is_cut=test_is_cut,
        bad_files=packed.bad_files,
        left_out=source.left_out,
        dropped_leaks=dropped_leaks,
        relabelled={int(row): int(given[row]) for row in np.flatnonzero(given != labels)},
        corrections=counts,
    )
    dataset.write_index(folder)
    _write_pairs(folder, pairs, scores, kept)
    return _report(dataset)


def _cut(
    labels: np.ndarray,
    near: Sequence[str],
    digests: Sequence[str],
    classes: Sequence[str],
    fraction: float,
    seed: int,
) -> np.ndarray:
    key, sides = "ingest.test_fraction", "train and test"
    return cut(labels, near, digests, classes, fraction=fraction, seed=seed, key=key, sides=sides)


def _report(dataset: Dataset) -> IngestReport:
    return IngestReport(
        counts=dataset.counts,
        bad_files=dataset.bad_files,
        duplicate_groups=int(np.count_nonzero(np.bincount(dataset.groups) > 1)),
        near_duplicate_groups=dataset.near_sets,
        test_is_cut=dataset.test_is_cut,
        dropped_leaks=dataset.dropped_leaks,
        digest=dataset.digest,
    )


def _kept(
    splits: np.ndarray,
    labels: np.ndarray,
    digests: Sequence[str],
    classes: Sequence[str],
    *,
    drop_leaks: bool,
) -> np.ndarray:
    """Return the rows by split, without leaks if they are to be dropped: (n,) int64."""
    kept = np.argsort(splits, kind="stable")
    if not drop_leaks:
        return kept
    in_test = {digest for digest, split in zip(digests, splits, strict=True) if split == TEST}
    leaks = np.array([digest in in_test for digest in digests]) & (splits == TRAIN)
    _check_left(classes, labels[(splits == TRAIN) & ~leaks])
    return kept[~leaks[kept]]


def _corrected(
    path: Path | None,
    labels: np.ndarray,
    splits: np.ndarray,
    kept: np.ndarray,
    digests: Sequence[str],
    classes: Sequence[str],
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Return labels (N,) int64, the rows that stay of `kept`, and what the file `path` did."""
    known = {} if path is None else corrected_labels.read(path)
    if path is None or not known:
        return labels, kept, {}
    of = [digests[row] for row in kept]
    found = corrected_labels.apply(known, labels[kept], of, classes)
    names = [SPLITS[split] for split in splits[kept]]
    before = zip(names, labels[kept].tolist(), strict=True)
    corrected_labels.check_left(path, classes, before, found)
    corrected_labels.report(found.counts, path)
    labels = labels.copy()
    labels[kept] = found.labels
    return labels, kept[~found.dropped], found.counts


def _write_pairs(folder: Path, pairs: np.ndarray, scores: np.ndarray, kept: np.ndarray) -> None:
    """Write the pairs of near-duplicates, (P, 2) int64 rows of which `kept` are, in this order."""
    new_row = np.full(max(kept.max(), pairs.max(initial=0)) + 1, -1)
    new_row[kept] = np.arange(len(kept))
    pairs = new_row[pairs]
    there = (pairs >= 0).all(axis=1)
    write_near_pairs(folder, np.sort(pairs[there], axis=1), scores[there])


def _near_duplicates(
    packed: Packed, groups: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of near-duplicates, (P, 2) int64 rows, and their correlations, (P,).

    Of duplicates the first is compared. They are in the order of their digests, so that names of
    files make no difference.
    """
    _, rows = np.unique(groups, return_index=True)
    rows = np.array(sorted(rows.tolist(), key=packed.digests.__getitem__), np.int64)
    pairs, scores = np.empty((0, 2), np.int64), np.empty(0)
    if len(rows) <= most:
        side = near_duplicates.SIDE
        images = np.memmap(packed.reduced_path, np.uint8, "r").reshape(-1, side, side)
        pairs, scores, _ = near_duplicates.find(images[rows])
        del images  # Windows cannot remove a file that is mapped.
    elif most:
        log.warning(
            "ingest: %s images are not searched for near-duplicates (ingest.near_duplicates = %s)",
            *(f"{len(rows):,}", f"{most:,}"),
        )
    packed.reduced_path.unlink()
    return rows[pairs], scores


def _check_left(classes: Sequence[str], train_labels: np.ndarray) -> None:
    """Raise UserError unless every class has a train image left."""
    left = np.bincount(train_labels, minlength=len(classes))
    if not left.all():
        raise UserError(
            f"ingest.drop_leaks: every train image of class {classes[int(left.argmin())]!r} is "
            "also in test; add others, or set it to false"
        )


def _rearrange(images_path: Path, rows: np.ndarray) -> None:
    """Write an .npy file of images anew with these of its rows, in this order."""
    before_path = images_path.with_suffix(".before")
    images_path.rename(before_path)
    before = np.lib.format.open_memmap(before_path, mode="r")
    with images_path.open("wb") as file:
        _write_npy_header(file, (len(rows), *before.shape[1:]))
        for row in rows:
            file.write(before[row].tobytes())
    del before  # Windows cannot remove a file that is mapped.
    before_path.unlink()


def _log_report(report: IngestReport, target: Path) -> None:
    if report.test_is_cut:
        log.info("ingest: the source has no test split: the test images were cut from train")
    if report.dropped_leaks:
        log.info(
            "ingest: %s train images left out that are also in test (ingest.drop_leaks)",
            f"{report.dropped_leaks:,}",
        )
    if report.bad_files:
        named = some([f"{file.path} ({file.reason})" for file in report.bad_files])
        log.info("ingest: %s bad files left out: %s", f"{len(report.bad_files):,}", named)
    images = {split: sum(of_class.values()) for split, of_class in report.counts.items()}
    log.info(
        "ingest: %s images, %d classes, %s sets of identical images, %s of near-duplicates; %s",
        " and ".join(f"{count:,} {split}" for split, count in images.items()),
        len(report.counts["train"]),
        f"{report.duplicate_groups:,}",
        f"{report.near_duplicate_groups:,}",
        target,
    )
