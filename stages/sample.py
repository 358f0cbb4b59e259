"""Draw the sample: grey faces in the layout of the Kaggle archive."""

from emotion_detection import params, paths
from emotion_detection.console import log, run
from emotion_detection.data.synthetic import draw_sample


def main() -> None:
    """Read params, draw, and say what was drawn."""
    settings = params.load().sample
    counts = draw_sample(
        paths.SAMPLE,
        train=settings.train,
        test=settings.test,
        image_size=settings.image_size,
        seed=settings.seed,
    )
    totals = {split: sum(of_class.values()) for split, of_class in counts.items()}
    log.info("drew %d train and %d test faces in %s", *totals.values(), paths.SAMPLE)


if __name__ == "__main__":
    run(main)
