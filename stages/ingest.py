"""Check every image of the source and pack them into one array with an index."""

from pathlib import Path

from emotion_detection import paths
from emotion_detection.console import run
from emotion_detection.files import keep_out_of_git
from emotion_detection.settings import params


def main() -> None:
    """Read params and ingest; the log says what was found."""
    from emotion_detection.data.ingest import ingest  # its SciPy may not fit into memory

    values = params.load()
    source, seed = Path(values.ingest.source), values.split.seed
    keep_out_of_git(source)
    ingest(source, paths.DATASET, values.ingest, seed=seed, corrections=paths.CORRECTIONS)


if __name__ == "__main__":
    run(main, stage="ingest")
