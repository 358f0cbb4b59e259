"""How often the 95 % intervals of scores hold the true score, by the number of images a class.

`python -m tests.soak.coverage` takes about two minutes. Wilson's interval is computed exactly for
the shares 0.01 to 0.99; macro F1 and the F1 of each class are simulated, with 3 and 7 classes whose
recall is about one of RECALLS, and whose mistakes fall on the other classes evenly or unevenly.
The exit status is 1 if a mean of shares or of macro F1 lies outside 94 to 96 %.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from emotion_detection.evaluation.intervals import Estimate, f1, macro_f1, wilson

Floats = npt.NDArray[np.float64]

SIZES = {"6": (6, 6), "50": (50, 50), "1,000": (1000, 1000), "6 in one, 1,000": (6, 1000)}
"""Images of the first class, and of each other one."""

RECALLS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
CLASSES = (3, 7)
RESAMPLES = 400


def shares(images: int) -> Floats:
    """Return the coverage of Wilson's interval at each true share."""
    true = np.arange(1, 100)[:, None] / 100
    hits = np.arange(images + 1)
    ends = np.array([(of.low, of.high) for of in (wilson(int(k), images) for k in hits)])
    inside = (ends[:, 0] <= true) & (true <= ends[:, 1])
    coverage: Floats = (binom.pmf(hits, images, true) * inside).sum(axis=1)
    return coverage


def confusions(recall: float, classes: int, even: bool, rng: np.random.Generator) -> Floats:
    """Return how probable each prediction is (actual, predicted), recalls differing by class."""
    spread = min(0.1, (1 - recall) / 2)
    recalls = recall + rng.uniform(-spread, spread, classes)
    others = np.ones((classes, classes)) if even else rng.dirichlet([0.5] * classes, classes)
    np.fill_diagonal(others, 0)
    others *= (1 - recalls[:, None]) / others.sum(axis=1, keepdims=True)
    return others + np.diag(recalls)


def f1_of(table: Floats) -> Floats:
    """Return the F1 of each class."""
    scores: Floats = 2 * np.diag(table) / (table.sum(axis=0) + table.sum(axis=1))
    return scores


def simulated(
    sizes: tuple[int, int], draws: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Return the coverage of macro F1, and of the F1 of the first class, in each setting."""
    coverage = defaultdict(list)
    for recall, classes, even in product(RECALLS, CLASSES, (True, False)):
        images = np.array([sizes[0]] + [sizes[1]] * (classes - 1))
        inside: dict[str, list[bool]] = defaultdict(list)
        for seed in range(draws):
            probable = confusions(recall, classes, even, rng)
            true = f1_of(images[:, None] * probable)
            table = np.array([rng.multinomial(n, p) for n, p in zip(images, probable, strict=True)])
            inside["macro F1"].append(_holds(macro_f1(table, RESAMPLES, seed), true.mean()))
            of_first = f1(int(table[0, 0]), int(images[0]), int(table[:, 0].sum()))
            inside["F1 of the first class"].append(_holds(of_first, true[0]))
        for name, each in inside.items():
            coverage[name].append(float(np.mean(each)))
    return coverage


def _holds(estimate: Estimate, true: float) -> bool:
    return estimate.low <= true <= estimate.high


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the mean and the lowest coverage of each interval."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.coverage", description=__doc__)
    parser.add_argument("--draws", type=int, default=150, help="in each setting (default 150)")
    draws, rng = parser.parse_args(arguments).draws, np.random.default_rng(0)
    wrong = 0
    print("| score | images a class | mean | lowest |\n|---|---:|---:|---:|")
    for name, sizes in SIZES.items():
        found = simulated(sizes, draws, rng)
        if len(set(sizes)) == 1:
            found = {"share": list(shares(sizes[0])), **found}
        for score, coverage in found.items():
            mean = float(np.mean(coverage))
            wrong += score in ("share", "macro F1") and not 0.94 <= round(mean, 3) <= 0.96
            print(f"| {score} | {name} | {mean:.3f} | {min(coverage):.3f} |", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
