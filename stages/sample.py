"""Draw the sample: grey faces in the layout of the Kaggle archive."""

from emotion_detection import layout, params
from emotion_detection.console import log, run
from emotion_detection.sample import draw_sample


def main() -> None:
    """Read params, draw, and say what was drawn."""
    settings = params.load().sample
    counts = draw_sample(
        layout.SAMPLE,
        train=settings.train,
        test=settings.test,
        image_size=settings.image_size,
        seed=settings.seed,
    )
    totals = {split: sum(of_class.values()) for split, of_class in counts.items()}
    log.info("drew %d train and %d test faces in %s", *totals.values(), layout.SAMPLE)


if __name__ == "__main__":
    run(main)
