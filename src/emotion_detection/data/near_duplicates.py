"""Near-duplicates: pictures that are the same but for a mirror, a shift, a crop, light or a format.

Each image is known by the low frequencies of its grey values, weighted by their frequency so that
all of them count alike (natural images have amplitudes of about 1 / frequency: Field 1987,
https://doi.org/10.1364/JOSAA.4.002379), less the mean of the set. Two images are compared by the
correlation of these, at the best of a few mirrors, shifts and scales. Every image is compared with
every other, in blocks of matrix products: the time grows with the square of the number of images,
the memory with the number.
"""

import functools
import itertools
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy.fft import dct
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from emotion_detection.console import progress

SIDE = 48
"""Pixels of a side of the grey images that are compared."""

THRESHOLD = 0.92
"""The least correlation of near-duplicates, in a set whose images are not all alike."""

NEARER = 0.15
"""How near 1 that of near-duplicates is, as a share of the distance of pairs that are alike."""

ALIKE = 0.95
"""The share of random pairs that are less alike than pairs that are alike."""

CANDIDATE = 0.1
"""Pairs are aligned to the pixel where their correlation misses the threshold by this at most."""

ROWS, COLUMNS = 512, 8192
FREQUENCIES = 10
SHIFT = 3
ZOOMS = (0.9, 1.1)

_POOLED = SIDE // 2


def _basis() -> np.ndarray:
    """Return what pooled images are multiplied by: (_POOLED * _POOLED, D) float32.

    A window, the cosine transform of its low frequencies but the mean, and their weights.
    """
    frequency = np.hypot(*np.indices((FREQUENCIES, FREQUENCIES)))
    used = (frequency > 0) & (frequency < FREQUENCIES)
    hump = np.sin(np.pi * (np.arange(_POOLED) + 0.5) / _POOLED)
    cosines = dct(np.eye(_POOLED), norm="ortho", axis=0)[:FREQUENCIES] * np.sqrt(hump)
    both = np.einsum("ui,vj->uvij", cosines, cosines)[used] * frequency[used][:, None, None]
    return both.reshape(len(both), -1).T.astype(np.float32)


_BASIS = _basis()


@dataclass(frozen=True)
class Alignment:
    """How an image is laid on another: mirrored or not, shifted by pixels, zoomed."""

    mirrored: bool
    right: int
    down: int
    zoom: float = 1.0


ALIGNMENTS = tuple(
    [
        Alignment(mirrored, right, down)
        for mirrored, right, down in itertools.product(
            (False, True), (0, -SHIFT, SHIFT), (0, -SHIFT, SHIFT)
        )
    ]
    + [Alignment(mirrored, 0, 0, zoom) for mirrored in (False, True) for zoom in ZOOMS]
)


def reduced(image: Image.Image) -> bytes:
    """Return an image of any size as it is compared: (SIDE, SIDE) uint8 grey values in C order."""
    grey = image.convert("L")
    if grey.size != (SIDE, SIDE):
        grey = grey.resize((SIDE, SIDE), Image.Resampling.BOX)
    return grey.tobytes()


def find(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the pairs of near-duplicates among `images`, (N, SIDE, SIDE) uint8.

    They are (P, 2) int64 rows, the smaller first, with their correlations, (P,) float64 with the
    highest first, and the threshold that these reach: `THRESHOLD`, or more in a set whose images
    are much alike, as drawings or digits. An image of one colour is like no other.
    """
    if len(images) < 2:
        return np.empty((0, 2), np.int64), np.empty(0), THRESHOLD
    mean = _mean(images)
    known = np.concatenate(
        [_described(images[start : start + ROWS], mean) for start in range(0, len(images), ROWS)]
    )
    threshold = _threshold(known)
    candidates = _candidates(images, known, mean, threshold - CANDIDATE)
    scores = _aligned(images, candidates, mean)
    near = scores >= threshold
    pairs, scores = candidates[near, :2], scores[near]
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -scores))
    return pairs[order], scores[order], threshold


def grouped(groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return (N,) int64 group numbers that join the `groups` of the rows in `pairs`, (P, 2) int64.

    They are numbered in order of occurrence, as `groups` are.
    """
    size = int(groups.max()) + 1 if len(groups) else 0
    joined = groups[pairs]
    links = coo_array((np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), (size, size))
    _, of_group = connected_components(links, directed=False)
    _, first, number = np.unique(of_group[groups], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[number]


def _mean(images: np.ndarray) -> np.ndarray:
    """Return the mean of what images are compared by, (D,) float32."""
    total = np.zeros(_BASIS.shape[1])
    for start in range(0, len(images), ROWS):
        total += _raw(_laid(images[start : start + ROWS], ALIGNMENTS[0])).sum(axis=0)
    return (total / len(images)).astype(np.float32)


def _laid(images: np.ndarray, alignment: Alignment) -> np.ndarray:
    """Return images (n, SIDE, SIDE) uint8 under an alignment, every two pixels square averaged."""
    rows = _moved(alignment.down, alignment.zoom)
    columns = _moved(alignment.right, alignment.zoom)
    if alignment.mirrored:
        columns = columns[:, ::-1]
    return np.matmul(rows, images.astype(np.float32) @ columns.T)


@functools.cache
def _moved(shift: int, zoom: float) -> np.ndarray:
    """Return what shifts, zooms and pools a line of pixels: (_POOLED, SIDE) float32.

    Values are interpolated; beyond the edge they are those of the edge.
    """
    middle = (SIDE - 1) / 2
    at = np.clip((np.arange(SIDE) - middle - shift) / zoom + middle, 0, SIDE - 1)
    before = np.minimum(at.astype(int), SIDE - 2)
    lines = np.zeros((SIDE, SIDE), np.float32)
    lines[np.arange(SIDE), before] = 1 - (at - before)
    lines[np.arange(SIDE), before + 1] += at - before
    return lines.reshape(_POOLED, 2, SIDE).mean(axis=1)


def _raw(pooled: np.ndarray) -> np.ndarray:
    """Return the weighted low frequencies of pooled images: (n, D) float32."""
    pooled = pooled.reshape(len(pooled), -1)
    pooled = pooled - pooled.mean(axis=1, keepdims=True)
    deviation = np.sqrt(np.square(pooled).mean(axis=1, keepdims=True))
    # Below one of 256 levels there is nothing to see.
    pooled = np.where(deviation < 1, np.float32(0), pooled / np.maximum(deviation, 1))
    return pooled @ _BASIS


def _described(
    images: np.ndarray, mean: np.ndarray, alignment: Alignment = ALIGNMENTS[0]
) -> np.ndarray:
    """Return what images are compared by, of unit length: (n, D) float32."""
    raw = _raw(_laid(images, alignment))
    blank = ~raw.any(axis=1)
    raw -= mean
    raw[blank] = 0
    length = np.linalg.norm(raw, axis=1, keepdims=True)
    return raw / np.maximum(length, np.float32(1e-9))


def _threshold(known: np.ndarray) -> float:
    rows = known[:: max(1, len(known) // 1000)]
    scores = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
    alike = float(np.quantile(scores, ALIKE))
    return max(THRESHOLD, 1 - (1 - alike) * NEARER)


def _candidates(
    images: np.ndarray, known: np.ndarray, mean: np.ndarray, least: float
) -> np.ndarray:
    """Return the pairs whose correlation is `least` at some alignment: (P, 3) int64.

    A row is two images, the smaller first, and the number of their best alignment.
    """
    found = [np.empty((0, 3), np.int64)]
    starts = range(0, len(images), ROWS)
    for start in progress(starts, description="near-duplicates", unit="blocks", total=len(starts)):
        block = images[start : start + ROWS]
        best: dict[tuple[int, int], tuple[float, int]] = {}
        for number, alignment in enumerate(ALIGNMENTS):
            laid = _described(block, mean, alignment)
            for left in range(start, len(images), COLUMNS):
                scores = laid @ known[left : left + COLUMNS].T
                places = np.flatnonzero(scores >= least)
                rows, columns = np.divmod(places, scores.shape[1])
                pairs = zip((rows + start).tolist(), (columns + left).tolist(), strict=True)
                for pair, score in zip(pairs, scores.ravel()[places].tolist(), strict=True):
                    if pair[0] < pair[1] and score > best.get(pair, (-1.0, 0))[0]:
                        best[pair] = (score, number)
        if best:
            found.append(
                np.array([(*pair, number) for pair, (_, number) in best.items()], np.int64)
            )
    return np.concatenate(found)


def _aligned(images: np.ndarray, candidates: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the correlations of candidates, aligned to the pixel: (P,) float64."""
    scores = np.full(len(candidates), -1.0)
    for number, base in enumerate(ALIGNMENTS):
        own = np.flatnonzero(candidates[:, 2] == number)
        for start in range(0, len(own), ROWS):
            places = own[start : start + ROWS]
            first, second = candidates[places, :2].T
            target = _described(images[second], mean)
            for right, down in itertools.product((-1, 0, 1), repeat=2):
                at = replace(base, right=base.right + right, down=base.down + down)
                laid = _described(images[first], mean, at)
                score = np.einsum("nd,nd->n", laid, target, dtype=np.float64)
                scores[places] = np.maximum(scores[places], score)
    # The last digits differ between processors.
    return scores.round(4)
