"""The suspect labels of a data set, by the out-of-fold probabilities that train leaves."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emotion_detection.console import UserError
from emotion_detection.data.dataset import SPLITS, Dataset
from emotion_detection.evaluation.intervals import Floats, Ints
from emotion_detection.figures.style import gallery, note
from emotion_detection.files import cell
from emotion_detection.labels.confident import Judgement, judge

WORST = 100
DIGITS = 6
ALL = "all classes"
REMEDY = "run `dvc exp run -S split.folds=5`"


@dataclass(frozen=True, eq=False)
class Found:
    """What is suspect in `dataset`: a `Judgement` by split, and the rows (n,) that it is about."""

    dataset: Dataset
    splits: Mapping[str, tuple[Ints, Judgement]]

    def table(self) -> pd.DataFrame:
        """Return a row a suspect, the lowest score first: digest, file, split, given, suggested...

        `score` is that of `Judgement`.
        """
        columns = ["digest", "file", "split", "given", "suggested", "score"]
        names = self.dataset.classes
        rows = [
            (
                *(self.dataset.digests[row], self.dataset.files[row], split),
                *(names[self.dataset.labels[row]], names[of.suggested[at]]),
                round(float(of.score[at]), DIGITS),
            )
            for split, (of_split, of) in self.splits.items()
            for at, row in zip(of.suspects.tolist(), of_split[of.suspects].tolist(), strict=True)
        ]
        return pd.DataFrame(rows, columns=columns).sort_values("score", kind="stable")

    def summary(self) -> pd.DataFrame:
        """Return a row a split and class: images, suspects, and the share of wrong labels.

        `wrong` is the estimated share, and `wrong_low` and `wrong_high` are the ends of its 95 %
        interval. A last row of each split is of all classes.
        """
        rows = []
        for split, (of_split, of) in self.splits.items():
            labels = self.dataset.labels[of_split]
            for label, name in enumerate((*self.dataset.classes, ALL)):
                own = labels == label if name is not ALL else np.ones(len(labels), bool)
                share = of.wrong_of_all if name is ALL else of.wrong[label]
                rows.append(
                    {
                        **{"split": split, "class": name, "images": int(own.sum())},
                        "suspects": int((of.suggested[own] >= 0).sum()),
                        "wrong": round(share.value, DIGITS),
                        "wrong_low": round(share.low, DIGITS),
                        "wrong_high": round(share.high, DIGITS),
                    }
                )
        return pd.DataFrame(rows)

    def joint(self) -> pd.DataFrame:
        """Return the estimated joint: split, given, true, and the share of the split's images."""
        return pd.DataFrame(
            [
                {"split": split, "given": given, "true": true, "share": round(share, DIGITS)}
                for split, (_, of) in self.splits.items()
                for given, row in zip(self.dataset.classes, of.joint.tolist(), strict=True)
                for true, share in zip(self.dataset.classes, row, strict=True)
            ]
        )

    def sentence(self) -> str:
        """Return on one line how many labels are wrong."""
        return "; ".join(
            f"{len(of.suspects):,} of {len(rows):,} {split} labels are suspect, and an estimated "
            f"{of.wrong_of_all.value:.1%} wrong ({100 * of.wrong_of_all.low:.1f} to "
            f"{100 * of.wrong_of_all.high:.1f})"
            for split, (rows, of) in self.splits.items()
        )

    def worst(self) -> Figure:
        """Return a picture of the suspects with the lowest scores."""
        table = self.table()
        shown = table.head(WORST)
        if shown.empty:
            return note("No label is suspect")
        which = f"; the {len(shown)} least probable" if len(shown) < len(table) else ""
        row_of = {digest: row for row, digest in enumerate(self.dataset.digests)}
        return gallery(
            [self.dataset.images[row_of[digest]] for digest in shown["digest"]],
            [
                [given, f"{suggested}?", f"{score:.3f}, {split}"]
                for given, suggested, score, split in zip(
                    *(shown[name] for name in ("given", "suggested", "score", "split")), strict=True
                )
            ],
            f"{len(table):,} suspect labels, with what they may be{which}",
        )


def find(dataset: Dataset, path: Path, *, seed: int) -> Found:
    """Return what is suspect in `dataset` by the out-of-fold probabilities in the file `path`.

    Each split is judged alone: a train image is judged by one network, and a test image by the mean
    of all, which is surer.

    Raises:
        UserError: if the file is missing, or not of this dataset.

    """
    rows, probabilities = out_of_fold(dataset, path)
    splits = {}
    for number, split in enumerate(SPLITS):
        own = dataset.splits[rows] == number
        if own.any():
            labels = dataset.labels[rows[own]]
            splits[split] = rows[own], judge(labels, probabilities[own], seed=seed)
    return Found(dataset, splits)


def out_of_fold(dataset: Dataset, path: Path) -> tuple[Ints, Floats]:
    """Return rows (n,) of `dataset`, and the probabilities (n, K) that the file `path` has of them.

    Raises:
        UserError: if the file is missing, or not of this dataset.

    """
    names = [cell(name) for name in dataset.classes]
    columns = [cell(f"probability_{name}") for name in dataset.classes]
    try:
        table = pd.read_csv(path, encoding_errors="surrogateescape", keep_default_na=False)
        rows = table["row"].to_numpy(np.int64)
        probabilities = table[columns].to_numpy(np.float64)
        given = table["actual"].tolist()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {REMEDY}") from None
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {REMEDY}") from None
    own = rows.size > 0 and rows.min() >= 0 and rows.max() < len(dataset)
    if not own or given != [names[label] for label in dataset.labels[rows]]:
        raise UserError(f"{path}: is not of the images in data/dataset; run `dvc repro train`")
    return rows, probabilities
