"""How predictions are written: each format gives what writes one to stdout, after its header."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from emotion_detection.console import printable

# The help lists the formats, and imports nothing heavy.
if TYPE_CHECKING:
    from emotion_detection.inference.predict import Prediction

DIGITS = 6

Write = Callable[["Prediction"], None]


def _table(classes: Sequence[str]) -> Write:
    names = [printable(name) for name in classes]
    width = max(map(len, ("label", *names)))

    def line(label: str, confidence: str, face: str, box: str, file: str) -> None:
        print(f"{label:<{width}}  {confidence:>10}  {face:>4}  {box:<19}  {file}", flush=True)

    line("label", "confidence", "face", "left,top size", "file")

    def write(prediction: "Prediction") -> None:
        for number, face in enumerate(prediction.faces, start=1):
            left, top, box_width, box_height = face.box
            line(
                names[face.label],
                f"{face.confidence:.1%}",
                str(number),
                f"{left},{top} {box_width}x{box_height}",
                printable(prediction.picture.name),
            )

    return write


def _json(classes: Sequence[str]) -> Write:
    def write(prediction: "Prediction") -> None:
        for number, face in enumerate(prediction.faces, start=1):
            value = {
                "file": prediction.picture.name,
                "face": number,
                "box": face.box._asdict(),
                "detection_confidence": _rounded(face.detection_confidence),
                "label": classes[face.label],
                "confidence": round(face.confidence, DIGITS),
                "probabilities": {
                    name: round(float(probability), DIGITS)
                    for name, probability in zip(classes, face.probabilities, strict=True)
                },
            }
            print(json.dumps(value), flush=True)

    return write


def _rounded(confidence: float | None) -> float | None:
    return None if confidence is None else round(confidence, DIGITS)


def _csv(classes: Sequence[str]) -> Write:
    from emotion_detection.files import cell

    # A terminal would act on what a name holds.
    shown = printable if sys.stdout.isatty() else str
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(
        (
            *("file", "face", "left", "top", "width", "height", "detection_confidence"),
            *("label", "confidence"),
            *(shown(f"probability_{name}") for name in classes),
        )
    )

    def write(prediction: "Prediction") -> None:
        for number, face in enumerate(prediction.faces, start=1):
            writer.writerow(
                (
                    *(cell(shown(prediction.picture.name)), number, *face.box),
                    _rounded(face.detection_confidence),
                    cell(shown(classes[face.label])),
                    *(
                        f"{value:.{DIGITS}f}"
                        for value in (face.confidence, *face.probabilities.tolist())
                    ),
                )
            )
        sys.stdout.flush()

    return write


WRITERS: dict[str, Callable[[Sequence[str]], Write]] = {
    "table": _table,
    "json": _json,
    "csv": _csv,
}
