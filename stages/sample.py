"""Draw the sample: synthetic grey faces in the layout of the Kaggle archive."""

from emotion_detection import paths
from emotion_detection.console import run
from emotion_detection.data.synthetic import draw_sample
from emotion_detection.settings import params


def main() -> None:
    """Read params and draw; the log says how many there are."""
    settings = params.load().sample
    draw_sample(paths.SAMPLE, train=settings.train, test=settings.test)


if __name__ == "__main__":
    run(main, stage="sample")
