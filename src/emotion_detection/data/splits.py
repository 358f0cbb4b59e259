"""The split of a dataset into train, validation and test, and parts of it for quicker runs.

Everything here is drawn by the digests of the images and a seed. File names, the order of rows and
the size or colour mode that ingest packs them in make no difference: the same images land on the
same side. Duplicates and near-duplicates stay on one side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from emotion_detection.console import UserError, log
from emotion_detection.data.dataset import Dataset

# The processes that decode images would import it for nothing, which takes half a second.
if TYPE_CHECKING:
    from emotion_detection.settings import params


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of a dataset by use: (n,) int64 arrays, sorted.

    With `selected_on_test`, `validation` is the test rows, so what is chosen on it is chosen on
    test.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    selected_on_test: bool


def split(dataset: Dataset, settings: params.Split) -> Split:
    """Return the rows that the model is trained, validated and tested on.

    With `settings.folds` it is trained on all images that are not for testing, and validated on
    none.

    Raises:
        UserError: as `holdout` does.

    """
    if not settings.folds:
        return holdout(dataset, settings)
    train, test = np.flatnonzero(~dataset.is_test), np.flatnonzero(dataset.is_test)
    return Split(train, train[:0], test, selected_on_test=False)


def folds(dataset: Dataset, settings: params.Split) -> list[Split]:
    """Return a split for each of `settings.folds` parts, which is validated on that part.

    The parts are stratified by the labels as the set gives them, so that a correction moves no
    image, and of one size as far as duplicates and near-duplicates, which stay in one of them,
    allow. None where there are no folds.

    Raises:
        UserError: if a class is too small to be in every part.

    """
    whole, parts = split(dataset, settings), []
    rest = whole.train
    _check_classes(dataset, rest, settings.folds)
    for others in range(settings.folds - 1, 0, -1):
        own = cut(
            dataset.given[rest],
            _at(dataset.drawn_by, rest),
            _at(dataset.digests, rest),
            dataset.classes,
            fraction=1 / (others + 1),
            seed=settings.seed,
            key="split.folds",
            sides=f"all of {settings.folds} folds",
        )
        parts.append(rest[own])
        rest = rest[~own]
    return [
        Split(np.setdiff1d(whole.train, part), part, whole.test, selected_on_test=False)
        for part in ([*parts, rest] if parts else [])
    ]


def _check_classes(dataset: Dataset, rows: np.ndarray, number: int) -> None:
    """Raise `UserError` where a class of `rows` has too few different images for `number` folds."""
    digests = np.array(_at(dataset.digests, rows))
    for label, name in enumerate(dataset.classes):
        own = digests[dataset.given[rows] == label]
        if (distinct := len(set(own.tolist()))) < number:
            raise UserError(
                f"class {name!r} is too small for split.folds = {number}: it has {len(own)} images "
                f"in train, {distinct} of them different; use fewer folds, add images to it, or "
                "remove the class"
            )


def holdout(dataset: Dataset, settings: params.Split) -> Split:
    """Return the train, validation and test rows of a dataset, without regard to folds.

    `holdout` validates on the source's own validation images where it has some, and otherwise sets
    a stratified `fraction` of the train rows aside for it. `test` validates
    on the test rows, as published notebooks on these sets do: its scores can be compared with
    theirs, and are too good.

    Raises:
        UserError: if a class is too small to be in both train and validation.

    """
    train, test = np.flatnonzero(dataset.is_train), np.flatnonzero(dataset.is_test)
    own = np.flatnonzero(dataset.is_validation)
    if settings.validation == "test":
        return Split(train, test, test, selected_on_test=True)
    if len(own):
        return Split(train, own, test, selected_on_test=False)
    # By the labels as the set gives them: a correction moves no image to the other side.
    in_validation = cut(
        dataset.given[train],
        _at(dataset.drawn_by, train),
        _at(dataset.digests, train),
        dataset.classes,
        fraction=settings.fraction,
        seed=settings.seed,
        key="split.fraction",
        sides="both train and validation",
    )
    return Split(train[~in_validation], train[in_validation], test, selected_on_test=False)


def _at(values: Sequence[str], rows: np.ndarray) -> list[str]:
    return [values[row] for row in rows.tolist()]


def cut(
    labels: np.ndarray,
    near: Sequence[str],
    digests: Sequence[str],
    classes: Sequence[str],
    *,
    fraction: float,
    seed: int,
    key: str,
    sides: str,
) -> np.ndarray:
    """Return a `stratified_mask`, (N,) bool, that has every class on both of its sides.

    Rows are drawn by `near`, what `Dataset.drawn_by` is; where that leaves all of a class on one
    side, its rows are drawn by their own `digests`, with a warning. `key`, the setting that
    `fraction` comes from, and `sides` ("both train and test") are for the messages.

    Raises:
        UserError: if a class is too small for that.

    """

    def on_one_side() -> list[int]:
        shares = [mask[labels == label] for label in range(len(classes))]
        return [label for label, own in enumerate(shares) if own.all() or not own.any()]

    drawn_by = list(near)
    mask = stratified_mask(labels, drawn_by, fraction, seed)
    if alike := on_one_side():
        for row in np.flatnonzero(np.isin(labels, alike)).tolist():
            drawn_by[row] = digests[row]
        mask = stratified_mask(labels, drawn_by, fraction, seed)
    for label in on_one_side():
        name, own = classes[label], labels == label
        distinct = len({digests[row] for row in np.flatnonzero(own).tolist()})
        raise UserError(
            f"class {name!r} is too small to be in {sides} ({key}): it has "
            f"{np.count_nonzero(own)} images there, {distinct} of them different; "
            "add images to it, or remove the class"
        )
    if alike:
        log.warning(
            "all images of %s are near-duplicates of one another, so that these are in %s",
            *(", ".join(classes[label] for label in alike), sides),
        )
    return mask


def stratified_mask(
    labels: np.ndarray, digests: Sequence[str], fraction: float, seed: int
) -> np.ndarray:
    """Return about `fraction` of the rows of every class, at random, as a mask (N,) bool.

    `labels` is (N,) int64. Rows with the same digest form a group, which is taken whole or not at
    all; if it carries several labels, it counts towards each. The same images, labels, fraction and
    seed give the same choice, in any order of rows and on any platform.

    A class without mixed groups has, if it has two groups or more, at least one on either side; its
    share otherwise misses `fraction` by at most half its smallest group left out.
    """
    names, group_of = np.unique(np.array(digests), return_inverse=True)
    n_groups, n_classes = len(names), int(labels.max()) + 1
    members = np.bincount(group_of * n_classes + labels, minlength=n_groups * n_classes)
    members = members.reshape(n_groups, n_classes)
    totals = members.sum(axis=0)
    target = np.maximum(np.clip(np.rint(fraction * totals), 1, totals - 1), 0).astype(np.int64)

    # Random order, not largest first: otherwise every large group would land on the chosen side.
    order = random_order(names.tolist(), seed)
    chosen = np.zeros(n_groups, bool)
    missing = target.copy()
    for group in order:
        if (members[group] <= missing).all():
            chosen[group] = True
            missing -= members[group]

    # What is still missing is smaller than any group left; one more may yet come closer.
    for label in np.flatnonzero(missing):
        rest = totals - target + missing
        candidates = order[~chosen[order] & (members[order, label] > 0)]
        fits = ((members[candidates] < rest) | (members[candidates] == 0)).all(axis=1)
        candidates = candidates[fits]
        if not len(candidates):
            continue
        distance = np.abs(missing - members[candidates]).sum(axis=1)
        best = int(distance.argmin())
        is_empty = missing[label] == target[label]
        if is_empty or distance[best] < np.abs(missing).sum():
            chosen[candidates[best]] = True
            missing -= members[candidates[best]]
    return chosen[group_of]


def random_order(digests: Sequence[str], seed: int) -> np.ndarray:
    """Return the places of `digests` in a random order, (N,) int64.

    Each digest has a random rank of its own, so which others there are and how they are arranged
    makes no difference to the order of any two.
    """
    key = str(seed).encode()
    ranks = b"".join(
        hashlib.blake2b(digest.encode(), key=key, digest_size=8).digest() for digest in digests
    )
    return np.argsort(np.frombuffer(ranks, ">u8"), kind="stable")


def part(dataset: Dataset, rows: Split, images: int | None, seed: int) -> Split:
    """Return a stratified part of `rows` with about `images` train rows; `None` returns all.

    Validation shrinks in proportion, so that scoring an epoch stays cheap beside training it.
    """
    if images is None or images >= len(rows.train):
        return rows
    share = images / len(rows.train)
    return Split(
        _share(dataset, rows.train, share, seed),
        _share(dataset, rows.validation, share, seed),
        rows.test,
        selected_on_test=rows.selected_on_test,
    )


def sampled(dataset: Dataset, rows: np.ndarray, images: int | None, seed: int) -> np.ndarray:
    """Return about `images` of `rows` (n,) int64, stratified and sorted; `None` returns all.

    Unless it is 0, every class has one at least.
    """
    if images is None or images >= len(rows):
        return rows
    if images == 0:
        return rows[:0]
    return _share(dataset, rows, images / len(rows), seed)


def _share(dataset: Dataset, rows: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return a `share` of the rows of every class, at least one, sorted."""
    drawn = rows[random_order([dataset.digests[row] for row in rows], seed)]
    taken = []
    for label in range(len(dataset.classes)):
        own = drawn[dataset.labels[drawn] == label]
        taken.append(own[: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(taken))
