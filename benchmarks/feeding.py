"""The input: how long steps wait for it, and how fast images are augmented."""

from functools import partial

from benchmarks import notebook, ours
from benchmarks.material import AUGMENT, NOTEBOOK, TRANSFORMS, Material
from benchmarks.report import Section
from benchmarks.turns import measure

BATCH_SIZE = 256
STEPS = 12


def run(material: Material, turns: int) -> Section:
    """Measure and describe."""
    rows = material.some(STEPS * BATCH_SIZE)
    packed = material.packed
    shares = measure(
        {
            name: partial(
                ours.waiting,
                network=NOTEBOOK,
                packed=packed,
                rows=rows,
                batch_size=BATCH_SIZE,
                augment=augment,
            )
            for name, augment in (("without augmentation", None), ("with augmentation", AUGMENT))
        },
        turns=turns,
    )
    rates = measure(
        {
            "this project": partial(
                ours.feed, packed=packed, rows=rows, batch_size=BATCH_SIZE, augment=AUGMENT
            ),
            "ImageDataGenerator": partial(
                notebook.augment,
                images=material.dataset.images[rows].astype("float32"),
                transforms=TRANSFORMS,
                batch_size=BATCH_SIZE,
                steps=4,
            ),
        },
        turns=turns,
    )
    section = Section("Input")
    section.say("The share of an epoch that its steps wait for their batch, in batches of 256:")
    section.table(("", "share"), [(name, f"{rate.median:.2%}") for name, rate in shares.items()])
    section.say(
        "Images augmented a second, by rotation, shifts, shear, zoom and flips, with nothing else "
        "running:"
    )
    section.table(
        ("", "images/s", "times ImageDataGenerator's"),
        [
            (name, str(rate), f"{rate.median / rates['ImageDataGenerator'].median:.1f}")
            for name, rate in rates.items()
        ],
    )
    return section
