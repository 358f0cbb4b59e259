"""Send what MLflow has missed while it was away: `python -m emotion_detection.send`."""

from emotion_detection.console import run
from emotion_detection.tracking import send

if __name__ == "__main__":
    run(send)
