"""`python -m benchmarks`: measure, and write docs/benchmarks.md."""

import argparse
import importlib
import tempfile
from pathlib import Path

from benchmarks.material import Material
from benchmarks.report import ORDER, assemble, keep
from emotion_detection.console import log, run
from emotion_detection.settings import params

SECTIONS = tuple(name for name in ORDER if name != "rivals")


def main() -> None:
    """Measure the sections asked for, and keep the others as they were."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--source",
        type=Path,
        default=Path(params.load().ingest.source),
        help="a .zip or folder to measure on; by default ingest.source",
    )
    parser.add_argument(
        "--model",
        type=Path,
        help="a .keras file that predicting loads; by default it makes an untrained network",
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION")
    parser.add_argument("--turns", type=int, default=5, help="of each contender (default 5)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        material = Material(arguments.source, Path(scratch), arguments.model)
        for name in arguments.only:
            log.info("measuring %s", name)
            keep(name, importlib.import_module(f"benchmarks.{name}").run(material, arguments.turns))
            assemble()


if __name__ == "__main__":
    run(main)
