"""The memory that training takes, on the source and on a set that is larger than the memory."""

import shutil
from pathlib import Path

import numpy as np

from benchmarks import ours
from benchmarks.material import NOTEBOOK, SEED, Material
from benchmarks.report import Section
from benchmarks.turns import alone
from emotion_detection.data.dataset import IMAGES_FILE, SPLITS, Dataset, set_digest
from emotion_detection.data.splits import Split
from emotion_detection.settings.params import Network
from emotion_detection.training.fit import fit

LARGE_GIB = 12
LIMIT_GIB = 3
SIZE = 96


def _train(packed: Path, network: Network, images: int, limit_gib: float | None) -> float:
    """Train an epoch on `images` rows drawn from all of the set; return images a second."""
    if limit_gib is not None:
        import resource

        limit = int(limit_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    dataset = Dataset.open(packed)
    rows = np.random.default_rng(SEED).choice(len(dataset), images, replace=False)
    history = fit(
        ours.make(network, dataset),
        dataset,
        Split(train=rows, validation=rows[:256], test=rows[:0], selected_on_test=False),
        ours.settings(256, 1),
        seed=SEED,
    )
    return float(images / history["seconds"].sum())


def _make_large(folder: Path) -> int:
    """Write a packed dataset of LARGE_GIB to `folder`, of noise; return its number of images."""
    count = int(LARGE_GIB * 2**30 / (SIZE * SIZE * 3))
    folder.mkdir(parents=True)
    random = np.random.default_rng(SEED)
    images = np.lib.format.open_memmap(
        folder / "images.npy", "w+", np.uint8, (count, SIZE, SIZE, 3)
    )
    block = random.integers(0, 256, (4096, SIZE, SIZE, 3), np.uint8)
    for start in range(0, count, len(block)):
        images[start : start + len(block)] = block[: count - start]
    images.flush()
    del images
    digests = [f"{row:032x}" for row in range(count)]
    labels = np.arange(count) % 2
    splits = np.where(np.arange(count) < int(count * 0.9), 0, SPLITS.index("test"))
    classes = ("even", "odd")
    Dataset(
        images=np.lib.format.open_memmap(folder / IMAGES_FILE, "r"),
        files=[f"{row}.png" for row in range(count)],
        labels=labels,
        classes=classes,
        splits=splits,
        digests=digests,
        groups=np.arange(count),
        near_groups=np.arange(count),
        digest=set_digest(digests, labels, splits, classes, (SIZE, SIZE, 3)),
        source="noise",
        test_is_cut=False,
        bad_files=(),
    ).write_index(folder)
    return count


def run(material: Material, turns: int) -> Section:
    """Measure and describe; `turns` is not used, since a training is one."""
    real = alone(
        _train,
        packed=material.packed,
        network=NOTEBOOK,
        images=len(material.rows.train),
        limit_gib=None,
    )
    large = material.scratch / "large"
    count = _make_large(large)
    small = NOTEBOOK.model_copy(update={"filters": (4, 4, 4, 4)})
    limited = alone(_train, packed=large, network=small, images=count // 2, limit_gib=LIMIT_GIB)
    shutil.rmtree(large)
    section = Section("Memory")
    section.say(
        "Peak private resident memory during one epoch of training. Pages of the memory-mapped "
        "images do not count, since the system can drop them. The large set is "
        f"{count:,} images of {SIZE}x{SIZE}x3, {LARGE_GIB} GiB on disk, of which the epoch reads "
        f"half, drawn from all of it, with a network of 4 filters a block and RLIMIT_DATA at "
        f"{LIMIT_GIB} GiB."
    )
    section.table(
        ("", "GiB", "images/s"),
        [
            (f"{material.source.name}", f"{real.peak_gib:.2f}", f"{real.value:,.0f}"),
            (f"{LARGE_GIB} GiB of noise", f"{limited.peak_gib:.2f}", f"{limited.value:,.0f}"),
        ],
    )
    return section
