"""Which parts of an image a network's prediction rests on."""

from collections.abc import Callable

import numpy as np
from scipy.interpolate import pchip_interpolate

# Of the shorter side: about an eye with its brow, or half a mouth.
COVER = 0.25
STEPS = 3  # in which the cover moves over its own side
BATCH = 64


def occlusion(
    probabilities: Callable[[np.ndarray], np.ndarray], image: np.ndarray, label: int
) -> np.ndarray:
    """Return by how much a grey square over each pixel makes a label less probable, (H, W) float32.

    It is negative where the label becomes more probable. The square's side is `COVER` of the
    shorter one of `image` (H, W, C) uint8. Its centre moves over the whole image in steps of about
    a third of that, and between them the values are interpolated. The network is only asked for
    its `probabilities`, (N, H, W, C) uint8 -> (N, classes), so any will do. (Zeiler and Fergus,
    "Visualizing and understanding convolutional networks", 2014, section 4.2, arXiv 1311.2901.)
    """
    height, width, _ = image.shape
    side = COVER * min(height, width)
    rows, columns = _centres(height, side), _centres(width, side)
    down, across = (
        np.abs(np.arange(length) - centres[:, np.newaxis]) < side / 2
        for length, centres in ((height, rows), (width, columns))
    )
    covers = (down[:, np.newaxis, :, np.newaxis] & across[:, np.newaxis]).reshape(
        -1, height, width, 1
    )
    grey = image.mean(axis=(0, 1)).round().astype(np.uint8)
    (whole,) = probabilities(image[np.newaxis])[:, label]
    lost = np.concatenate(
        [
            whole - probabilities(np.where(batch, grey, image))[:, label]
            for batch in np.split(covers, range(BATCH, len(covers), BATCH))
        ]
    ).reshape(len(rows), len(columns))
    # Of the smooth ones, this interpolation alone gives no more than the most that was measured.
    lost = pchip_interpolate(rows, lost, np.arange(height), axis=0)
    return np.asarray(pchip_interpolate(columns, lost, np.arange(width), axis=1), np.float32)


def _centres(length: int, side: float) -> np.ndarray:
    """Return the pixels along `length`, from end to end, that the square's centre comes to."""
    steps = max(2, round(STEPS * length / side))
    return np.unique(np.linspace(0, length - 1, steps).round())
