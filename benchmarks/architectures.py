"""How fast networks of each architecture train, at equal filters."""

from functools import partial
from typing import Any, get_args

from benchmarks import ours
from benchmarks.material import Material
from benchmarks.report import Section
from benchmarks.turns import Contender, measure
from emotion_detection.models.hardware import has_amx
from emotion_detection.models.network import forward_gflops
from emotion_detection.settings import params

BATCH_SIZE = 128
STEPS = 10
"""Steps a turn."""
BY_ONEDNN = "plain, all gradients by oneDNN"


def run(material: Material, turns: int) -> Section:
    """Measure and describe."""
    chosen = params.load().network
    networks: dict[str, params.Network] = {
        arch: chosen.model_copy(update={"arch": arch})
        for arch in get_args(params.Network.model_fields["arch"].annotation)
    }
    rows = material.some(STEPS * BATCH_SIZE)
    common: dict[str, Any] = {
        "packed": material.packed,
        "rows": rows,
        "batch_size": BATCH_SIZE,
    }
    contenders: dict[str, Contender] = {
        arch: partial(ours.train, network=network, **common) for arch, network in networks.items()
    }
    if has_amx():
        contenders[BY_ONEDNN] = partial(ours.train_by_onednn, network=networks["plain"], **common)
    rates = measure(contenders, turns=turns)
    dataset = material.dataset
    section = Section("Architectures")
    section.say(
        f"Training at `precision: auto` in batches of {BATCH_SIZE}, with filters of "
        f"{'-'.join(map(str, chosen.filters))} and kernels of "
        f"{'-'.join(map(str, chosen.kernel_sizes))}; what each learns in that time is another "
        "matter."
    )
    if BY_ONEDNN in rates:
        networks |= {BY_ONEDNN: networks["plain"]}
        section.say(
            "This processor has AMX: the gradients of convolutions over few pixels are products of "
            "matrices, except in the last row."
        )
    table = []
    for arch, network in networks.items():
        forward = forward_gflops(network, dataset.images.shape[1:], len(dataset.classes))
        rate = rates[arch].median
        table.append(
            (
                arch,
                f"{ours.make(network, dataset).count_params():,}",
                f"{3 * forward:.3f}",
                str(rates[arch]),
                f"{rate / rates['plain'].median:.1f}",
                f"{3 * forward * rate / 1e3:.2f}",
            )
        )
    section.table(
        ("", "parameters", "GFLOP an image", "images/s", "times plain's", "TFLOP/s"), table
    )
    return section
