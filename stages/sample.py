"""Draw the sample: synthetic grey faces in the layout of the Kaggle archive."""

from emotion_detection import params, paths
from emotion_detection.console import log, run
from emotion_detection.data.synthetic import draw_sample


def main() -> None:
    """Read params, draw the faces, and log how many there are."""
    settings = params.load().sample
    counts = draw_sample(paths.SAMPLE, train=settings.train, test=settings.test)
    train, test = (sum(of_class.values()) for of_class in counts.values())
    log.info("%s: %s train and %s test images", paths.SAMPLE, f"{train:,}", f"{test:,}")


if __name__ == "__main__":
    run(main)
