"""Training throughput of the notebook's network, and where the time of a step goes."""

import importlib.util
import os
import subprocess
import sys
import time
from collections import defaultdict
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks import notebook, ours, pytorch
from benchmarks.material import NOTEBOOK, SEED, Material
from benchmarks.report import Section
from benchmarks.turns import Contender, Rates, measure
from emotion_detection.models.hardware import resolve_precision
from emotion_detection.models.network import build, forward_gflops

STEPS = 12
"""Steps a turn."""


def run(material: Material, turns: int) -> Section:
    """Measure and describe."""
    section = Section("Training")
    dataset = material.dataset
    forward = forward_gflops(NOTEBOOK, dataset.images.shape[1:], len(dataset.classes))
    rate = measure(
        {kind: partial(ours.matrix_product, dtype=kind) for kind in ("float32", "bfloat16")},
        turns=turns,
    )
    teraflops = {kind: rates.median / 1e12 for kind, rates in rate.items()}
    section.say(
        f"The notebook's last network, {3 * forward:.2f} GFLOP an image and training step. A "
        f"4096-square matrix product through TensorFlow runs at {teraflops['float32']:.2f} TFLOP/s "
        f"in float32 and {teraflops['bfloat16']:.2f} in bfloat16 here; at that rate a network "
        f"would train at {1e3 * teraflops['bfloat16'] / (3 * forward):,.0f} images/s."
    )
    for batch_size in (256, 64):
        rows = material.some(STEPS * batch_size)
        contenders: dict[str, Contender] = {
            "the notebook's code, float32": partial(
                notebook.train,
                network=NOTEBOOK,
                folder=material.folder,
                batch_size=batch_size,
                steps=max(2, STEPS // 4),
            ),
            **{
                name: partial(
                    ours.train,
                    network=NOTEBOOK,
                    packed=material.packed,
                    rows=rows,
                    batch_size=batch_size,
                    precision=precision,
                )
                for name, precision in (
                    ("this project, float32", "float32"),
                    ("this project, `precision: auto`", "auto"),
                )
            },
        }
        if importlib.util.find_spec("torch"):
            contenders |= {
                f"PyTorch, channels-last, {name}": partial(
                    pytorch.train,
                    network=NOTEBOOK,
                    images=np.asarray(dataset.images[np.sort(rows)]),
                    labels=dataset.labels[np.sort(rows)],
                    batch_size=batch_size,
                    steps=STEPS // 2,
                    bfloat16=bfloat16,
                    compiled=compiled,
                )
                for name, bfloat16, compiled in (
                    ("float32", False, False),
                    ("bfloat16", True, False),
                    ("bfloat16, compiled", True, True),
                )
            }
        rates = measure(contenders, turns=turns)
        first = next(iter(rates.values()))
        section.say(f"Batches of {batch_size}:")
        section.table(
            ("", "images/s", "times the notebook's", "TFLOP/s", "of the bfloat16 product"),
            [
                _row(name, rate, first, 3 * forward, teraflops["bfloat16"])
                for name, rate in rates.items()
            ],
        )
    _explain(section)
    _try(section, material, turns)
    return section


def _row(name: str, rate: Rates, first: Rates, gflop: float, ceiling: float) -> tuple[str, ...]:
    achieved = rate.median * gflop / 1e3
    return (
        name,
        str(rate),
        f"{rate.median / first.median:.1f}",
        f"{achieved:.2f}",
        f"{achieved / ceiling:.0%}",
    )


def _explain(section: Section) -> None:
    """Add where the time of a step goes, from oneDNN's own log of single operations in turn."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training"],
        env={**os.environ, "ONEDNN_VERBOSE": "1", "TF_NUM_INTEROP_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    log, _, seconds = done.stdout.partition("BEGIN\n")[2].partition("END ")
    spent: dict[str, float] = defaultdict(float)
    for line in log.splitlines():
        fields = line.split(",")
        if "exec" in fields and fields[-1].replace(".", "").isdigit():
            at = fields.index("exec")
            spent[f"{fields[at + 2].replace('_', ' ')}, {fields[at + 4].replace('_', ' ')}"] += (
                float(fields[-1]) / 1e3
            )
    whole = float(seconds)
    rows = [
        (name, f"{part / whole:.0%}")
        for name, part in sorted(spent.items(), key=lambda entry: -entry[1])[:8]
    ]
    rows.append(("all else", f"{1 - sum(spent.values()) / whole:.0%}"))
    section.say("Where a step of this project goes, by oneDNN's log (one operation at a time):")
    section.table(("operation", "share"), rows)


def _try(section: Section, material: Material, turns: int) -> None:
    """Add what a step would gain by doing without its parts, or by asking Python less often."""
    still = NOTEBOOK.model_copy(update={"conv_dropout": 0.0, "dense_dropout": 0.0})
    common: dict[str, Any] = {
        "packed": material.packed,
        "rows": material.some(STEPS * 256),
        "batch_size": 256,
    }
    rates = measure(
        {
            "as it is": partial(ours.step, network=NOTEBOOK, **common),
            "without dropout": partial(ours.step, network=still, **common),
            "without the accuracy": partial(ours.step, network=NOTEBOOK, metrics=False, **common),
            "plain SGD for Adam": partial(ours.step, network=NOTEBOOK, optimizer="sgd", **common),
            f"`steps_per_execution` {STEPS}": partial(
                ours.step, network=NOTEBOOK, steps_per_execution=STEPS, **common
            ),
        },
        turns=turns,
    )
    section.say("What a step of 256 images would gain without its parts that are not arithmetic:")
    whole = rates["as it is"].median
    section.table(
        ("", "images/s", "gain"),
        [(name, str(rate), f"{rate.median / whole - 1:+.1%}") for name, rate in rates.items()],
    )


def _steps() -> None:
    model = build(
        NOTEBOOK,
        image_shape=(48, 48, 3),
        classes=7,
        precision=resolve_precision("auto")[0],
        seed=SEED,
    )
    model.compile(
        keras.optimizers.Adam(5e-4), keras.losses.SparseCategoricalCrossentropy(), jit_compile=False
    )
    random = np.random.default_rng(SEED)
    x = tf.constant(random.integers(0, 256, (256, 48, 48, 3), np.uint8))
    y = tf.constant(random.integers(0, 7, 256))
    for _ in range(3):
        model.train_on_batch(x, y)
    print("BEGIN", flush=True)
    began = time.perf_counter()
    for _ in range(5):
        model.train_on_batch(x, y)
    print(f"END {time.perf_counter() - began}", flush=True)


if __name__ == "__main__":
    _steps()
