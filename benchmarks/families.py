"""How fast networks of each family train, at equal filters."""

from dataclasses import replace
from functools import partial
from typing import Any, get_args

from benchmarks import ours
from benchmarks.material import Material
from benchmarks.report import Section
from benchmarks.turns import Contender, measure
from emotion_detection import params
from emotion_detection.models.hardware import has_amx
from emotion_detection.models.network import Architecture, Family

BATCH_SIZE = 128
STEPS = 10
"""Steps a turn."""
BY_ONEDNN = "plain, all gradients by oneDNN"


def run(material: Material, turns: int) -> Section:
    """Measure and describe."""
    chosen = Architecture(**dict(params.load().network))
    architectures: dict[str, Architecture] = {
        family: replace(chosen, family=family) for family in get_args(Family)
    }
    rows = material.some(STEPS * BATCH_SIZE)
    common: dict[str, Any] = {
        "packed": material.packed,
        "rows": rows,
        "batch_size": BATCH_SIZE,
    }
    contenders: dict[str, Contender] = {
        family: partial(ours.train, architecture=architecture, **common)
        for family, architecture in architectures.items()
    }
    if has_amx():
        contenders[BY_ONEDNN] = partial(
            ours.train_by_onednn, architecture=architectures["plain"], **common
        )
    rates = measure(contenders, turns=turns)
    dataset = material.dataset
    section = Section("Families")
    section.say(
        f"Training at `precision: auto` in batches of {BATCH_SIZE}, with filters of "
        f"{'-'.join(map(str, chosen.filters))} and kernels of "
        f"{'-'.join(map(str, chosen.kernel_sizes))}; what each learns in that time is another "
        "matter."
    )
    if BY_ONEDNN in rates:
        architectures |= {BY_ONEDNN: architectures["plain"]}
        section.say(
            "This processor has AMX: the gradients of kernels for few pixels are products of "
            "matrices, but in the last row."
        )
    table = []
    for family, architecture in architectures.items():
        forward = architecture.forward_gflops(dataset.images.shape[1:], len(dataset.classes))
        rate = rates[family].median
        table.append(
            (
                family,
                f"{ours.make(architecture, dataset).count_params():,}",
                f"{3 * forward:.3f}",
                str(rates[family]),
                f"{rate / rates['plain'].median:.1f}",
                f"{3 * forward * rate / 1e3:.2f}",
            )
        )
    section.table(
        ("", "parameters", "GFLOP an image", "images/s", "times plain's", "TFLOP/s"), table
    )
    return section
