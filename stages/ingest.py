"""Check every image of the source and pack them into one array with an index."""

from pathlib import Path

from emotion_detection import params, paths
from emotion_detection.console import run
from emotion_detection.data.ingest import ingest


def main() -> None:
    """Read params, ingest; the log says what was found."""
    values = params.load()
    settings = values.ingest
    ingest(
        Path(settings.source),
        paths.DATASET,
        image_size=settings.image_size,
        color_mode=settings.color_mode,
        max_bad_fraction=settings.max_bad_fraction,
        max_unpacked_gib=settings.max_unpacked_gib,
        test_fraction=settings.test_fraction,
        drop_leaks=settings.drop_leaks,
        seed=values.seed,
    )


if __name__ == "__main__":
    run(main)
