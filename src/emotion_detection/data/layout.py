"""The layout of a source: which of its files is of which split and class.

Folders decide it: `train/<class>/`, and `test/<class>/` and `validation/<class>/` where they are
there, under their usual names and at any depth; or class folders without a split. What decides the
classes and the splits is taken as it is meant, or refused with the way to mend it. What is left out
is counted by reason.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from emotion_detection.console import UserError, log
from emotion_detection.data.source import Listing, natural_key, some

SplitName = Literal["train", "validation", "test"]
Parts = tuple[str, ...]

SPLIT_OF: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "publictest", "privatetest"), "test"),
}
"""Usual names of splits, in lower case and without what `_split_named` removes."""

NO_IMAGE = {
    *(".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf", ".doc"),
    *(".npy", ".npz", ".mat", ".pkl", ".h5", ".py", ".ipynb", ".log", ".ini", ".db", ".lnk"),
}
"""Suffixes of files that are not meant as images, and so are not bad ones either."""

UNLABELLED = "in a split without class folders"
OUTSIDE = "outside the splits"
COPY = "in a second copy of the set"
STRAY = "in no class folder"
NOT_MEANT = "not an image by its suffix"
UNWANTED = "of a class that ingest.classes leaves out"


class Item(NamedTuple):
    """A file of the source, with its split and class."""

    split: SplitName
    class_name: str
    path: str


@dataclass
class Arrangement:
    """The images of a source by split, class and natural name order, and what is left out."""

    items: list[Item]
    left_out: Counter[str] = field(default_factory=Counter)
    """The number of files by the reason."""


@dataclass(frozen=True)
class Names:
    """What the params say of the names in a source."""

    splits: Mapping[str, SplitName | None] = field(default_factory=dict)
    classes: Mapping[str, str | None] = field(default_factory=dict)

    def split(self, name: str) -> SplitName | None:
        """Return the split that a folder or a value of a table's column is, if it is one."""
        for given, split in self.splits.items():
            if given.casefold() == name.casefold():
                return split
        words = re.sub("[^a-z]", "", name.casefold())
        for affix in ("seg", "images", "image", "data", "set", "split"):
            words = words.removeprefix(affix).removesuffix(affix)
        return SPLIT_OF.get(words)


@dataclass
class _Tree:
    """The folders of a listing with what lies in them."""

    listing: Listing

    def __post_init__(self) -> None:
        self.children: defaultdict[Parts, list[Parts]] = defaultdict(list)
        for folder in sorted(self.listing.folders):
            self.children[folder[:-1]].append(folder)
        self.filled: set[Parts] = set()
        """Folders with a file in them, at any depth."""
        for parts in self.listing.files:
            folder = parts[:-1]
            while folder not in self.filled:
                self.filled.add(folder)
                if not folder:
                    break
                folder = folder[:-1]

    def classes(self, root: Parts) -> list[Parts]:
        """Return the folders in `root` that hold files."""
        return [folder for folder in self.children[root] if folder in self.filled]

    def unnested(self, root: Parts, names: Names) -> Parts:
        """Return train/train/ for train/ where it holds nothing else, as in many Kaggle sets."""
        while True:
            inside = self.children[root]
            if len(inside) != 1 or not (
                inside[0][-1].casefold() == root[-1].casefold()
                or (
                    names.split(inside[0][-1])
                    and names.split(inside[0][-1]) == names.split(root[-1])
                )
            ):
                return root
            root = inside[0]


def arrange(listing: Listing, source: Path, names: Names) -> Arrangement | None:
    """Return the images that folders arrange by split and class; None if there are none.

    A class is named as its folder, in Unicode's composed form, since systems differ in the form
    that they store; names that differ in case alone are one class. A class folder may hold further
    folders. `source` is for the messages.

    Raises:
        UserError: if the layout is ambiguous, or the classes of its splits do not fit together.

    """
    tree = _Tree(listing)
    roots = _splits(tree, source, names)
    if roots is None:
        return None
    return _arranged(tree, roots, source, names)


def arrange_classes(listing: Listing, source: Path, names: Names) -> Arrangement | None:
    """Return the images of class folders that lie in no split, all as train; None without any.

    Raises:
        UserError: as `arrange` does.

    """
    tree = _Tree(listing)
    root: Parts = ()
    while len(tree.classes(root)) == 1:
        (root,) = tree.classes(root)
    if len(tree.classes(root)) < 2:
        return None
    arrangement = _arranged(tree, [("train", root)], source, names)
    log.warning(
        "ingest: %s has no train/: its %d folders are taken as classes: %s",
        *("/".join((str(source), *root)), len({item.class_name for item in arrangement.items})),
        some(sorted({item.class_name for item in arrangement.items}), 10),
    )
    return arrangement


def finished(items: Iterable[Item], left_out: Counter[str], names: Names) -> Arrangement:
    """Return the items under the classes that the params name, in order, without other files.

    Raises:
        UserError: if `names.classes` names a class that there is not, or a split has one more than
            train.

    """
    kept = []
    for item in items:
        if PurePosixPath(item.path.partition("#")[0]).suffix.lower() in NO_IMAGE:
            left_out[NOT_MEANT] += 1
        else:
            kept.append(item)
    kept = _in_one_spelling(kept)
    there = {item.class_name for item in kept}
    renamed = {_composed(name).casefold(): new for name, new in names.classes.items()}
    if unknown := sorted(set(renamed) - {name.casefold() for name in there}):
        raise UserError(
            f"ingest.classes: the source has no class {unknown[0]!r}; it has "
            f"{some(sorted(there), 10)}"
        )
    items = []
    for item in kept:
        name = renamed.get(item.class_name.casefold(), item.class_name)
        if name is None:
            left_out[UNWANTED] += 1
        else:
            items.append(item._replace(class_name=_composed(name)))
    if {item.split for item in items} == {"train", "validation"}:
        log.warning("ingest: without a test split, the validation images are taken as test images")
        items = [
            item._replace(split="test") if item.split == "validation" else item for item in items
        ]
    order = {"train": 0, "validation": 1, "test": 2}
    items.sort(key=lambda item: (order[item.split], item.class_name, natural_key(item.path)))
    return Arrangement(items, left_out)


def _splits(tree: _Tree, source: Path, names: Names) -> list[tuple[SplitName, Parts]] | None:
    """Return the roots of the splits in the topmost folder that has train; None without train."""
    parents = sorted({(), *tree.listing.folders}, key=lambda parts: (len(parts), parts))
    found: list[Parts] = []
    for parent in parents:
        if found and len(parent) > len(found[0]):
            break
        of_train = [f for f in tree.children[parent] if names.split(f[-1]) == "train"]
        if any(tree.classes(tree.unnested(folder, names)) for folder in of_train):
            found.append(parent)
    if not found:
        return None
    if len(found) > 1:
        raise _more_than_one(source, [(*parent, "train") for parent in found])
    (parent,) = found
    roots: list[tuple[SplitName, Parts]] = []
    for folder in tree.children[parent]:
        split = names.split(folder[-1])
        if split is not None:
            roots.append((split, tree.unnested(folder, names)))
    for split in ("train", "validation", "test"):
        same = [root for found_split, root in roots if found_split == split]
        named = {name.casefold() for name in names.splits} | {"publictest", "privatetest"}
        if len([root for root in same if root[-1].casefold() not in named]) > 1:
            raise _more_than_one(source, same)
    return roots


def _more_than_one(source: Path, folders: list[Parts]) -> UserError:
    listed = ", ".join("/".join(folder) + "/" for folder in folders)
    return UserError(
        f"ingest.source: {source} has more than one split of a kind: {listed}; give one of them, "
        "or say in ingest.splits what each is, null for one to leave out"
    )


def _arranged(
    tree: _Tree, roots: list[tuple[SplitName, Parts]], source: Path, names: Names
) -> Arrangement:
    left_out: Counter[str] = Counter()
    items: list[Item] = []
    empty: list[tuple[SplitName, str]] = []
    labelled = [(split, root) for split, root in roots if tree.classes(root)]
    for split, root in roots:
        if (split, root) not in labelled:
            log.warning(
                "ingest: %s has no class folders, so what its images show is not known: left out",
                "/".join((str(source), *root)),
            )
        empty += [(split, f[-1]) for f in tree.children[root] if f not in tree.filled]
    rest: list[Parts] = []
    for parts in tree.listing.files:
        split_root = next(((s, r) for s, r in roots if parts[: len(r)] == r), None)
        if split_root is None:
            rest.append(parts)
        elif split_root not in labelled:
            left_out[UNLABELLED] += 1
        elif len(parts) < len(split_root[1]) + 2:
            left_out[STRAY] += 1
        else:
            split, root = split_root
            items.append(Item(split, _composed(parts[len(root)]), "/".join(parts)))
    _count_rest(rest, items, roots, left_out, source, names)
    _check_names(items, source)
    if empty:
        split, name = sorted(empty)[0]
        raise UserError(
            f"ingest.source: class {name!r} has no image in {split}; add some, or remove the class"
        )
    return finished(items, left_out, names)


def _count_rest(
    rest: list[Parts],
    items: list[Item],
    roots: list[tuple[SplitName, Parts]],
    left_out: Counter[str],
    source: Path,
    names: Names,
) -> None:
    """Count the files outside the splits.

    Raises:
        UserError: if a folder among them has the classes of the splits and is no copy of them.

    """
    depth = len(roots[0][1]) - 1
    parent = roots[0][1][:depth] if roots[0][1] else ()
    classes = {item.class_name.casefold() for item in items}
    used = {tuple(item.path.split("/"))[len(parent) :] for item in items}
    beside: defaultdict[Parts, set[str]] = defaultdict(set)
    outside: Counter[str] = Counter()
    for parts in rest:
        copied = any(parts[start:] in used for start in range(len(parts) - 1))
        left_out[COPY if copied else OUTSIDE] += 1
        if copied:
            continue
        outside["/".join(parts[: len(parent) + 1])] += 1
        if len(parts) >= 3 and _composed(parts[-2]).casefold() in classes:
            beside[parts[:-2]].add(_composed(parts[-2]).casefold())
    for folder, found in beside.items():
        given = {name.casefold(): split for name, split in names.splits.items()}
        if len(found) * 2 > len(classes) and folder[-1].casefold() not in given:
            raise UserError(
                f"ingest.source: {'/'.join((str(source), *folder))}/ has the classes of the set "
                f"too, and is no split by its name; say what it is by ingest.splits "
                f"({{{folder[-1]}: validation}}, train, test, or null to leave it out)"
            )
    if outside:
        log.warning("ingest: left out (outside the splits): %s", some(sorted(outside)))


def _check_names(items: list[Item], source: Path) -> None:
    for name in sorted({item.class_name for item in items}):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"ingest.source: {source} has a class folder {name!r}, whose name is not UTF-8; "
                "rename it"
            ) from None


def _in_one_spelling(items: list[Item]) -> list[Item]:
    """Return the items with one spelling, train's first, for names that differ in case alone."""
    spelling: dict[str, str] = {}
    others: dict[str, str] = {}
    for _, name in sorted({(item.split != "train", item.class_name) for item in items}):
        kept = spelling.setdefault(name.casefold(), name)
        if kept != name:
            others[name] = kept
    if others:
        log.warning(
            "ingest: class names that differ in case are one class: %s",
            some([f"{name} is {kept}" for name, kept in sorted(others.items())]),
        )
    return [
        item._replace(class_name=others.get(item.class_name, item.class_name)) for item in items
    ]


def check_classes(items: Iterable[Item], source: Path) -> None:
    """Check that the classes of the splits fit together.

    Raises:
        UserError: if train has less than two classes, or another split has one that train has not.

    """
    of_split: defaultdict[SplitName, set[str]] = defaultdict(set)
    for item in items:
        of_split[item.split].add(item.class_name)
    train = of_split.pop("train", set())
    if len(train) < 2:
        raise UserError(
            f"ingest.source: {source} has {some(sorted(train)) if train else 'no class'} in "
            "train; two classes are needed at least, each a folder of images"
        )
    for split, classes in of_split.items():
        if more := sorted(classes - train):
            raise UserError(
                f"ingest.source: {source} has classes in {split} that train has not: {some(more)}; "
                f"add images of them to train, or leave them out by ingest.classes: "
                f"{{{more[0]}: null}}"
            )
        if less := sorted(train - classes):
            log.warning(
                "ingest: %s has no image of %s, so it cannot tell how well these are recognized",
                *(split, some(less)),
            )


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
