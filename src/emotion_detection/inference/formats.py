"""How predictions are written: each format gives what writes one to stdout, after its header."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from emotion_detection.console import printable

# The help lists the formats, and imports nothing heavy.
if TYPE_CHECKING:
    import numpy as np

    from emotion_detection.inference.predict import Face, Prediction

DIGITS = 6

MOST_NAMED = 2
"""Classes in a prediction set that a table names; with more, or none, it is not sure."""

Write = Callable[["Prediction"], None]

Sets = Callable[["np.ndarray"], tuple[int, ...]]
"""Gives the prediction set for the probabilities of a face, as `Network.sets`."""


def _table(classes: Sequence[str], sets: Sets | None) -> Write:
    names = [printable(name) for name in classes]
    longest = sorted(names, key=len)[-MOST_NAMED:]
    width = len(" or ".join(longest)) if sets else max(map(len, ("label", *names)))

    def label(face: "Face") -> str:
        held = sets(face.probabilities) if sets else (face.label,)
        named = " or ".join(names[number] for number in held)
        return named if 0 < len(held) <= MOST_NAMED else "not sure"

    def line(answer: str, confidence: str, face: str, box: str, file: str) -> None:
        print(f"{answer:<{width}}  {confidence:>10}  {face:>4}  {box:<19}  {file}", flush=True)

    line("label", "confidence", "face", "left,top size", "file")

    def write(prediction: "Prediction") -> None:
        for number, face in enumerate(prediction.faces, start=1):
            left, top, box_width, box_height = face.box
            line(
                label(face),
                f"{face.confidence:.1%}",
                str(number),
                f"{left},{top} {box_width}x{box_height}",
                printable(prediction.picture.name),
            )

    return write


def _json(classes: Sequence[str], sets: Sets | None) -> Write:
    def write(prediction: "Prediction") -> None:
        for number, face in enumerate(prediction.faces, start=1):
            value = {
                "file": prediction.picture.name,
                "face": number,
                "box": face.box._asdict(),
                "detection_confidence": _rounded(face.detection_confidence),
                "label": classes[face.label],
                "confidence": round(face.confidence, DIGITS),
                **(
                    {"prediction_set": [classes[number] for number in sets(face.probabilities)]}
                    if sets
                    else {}
                ),
                "probabilities": {
                    name: round(float(probability), DIGITS)
                    for name, probability in zip(classes, face.probabilities, strict=True)
                },
            }
            print(json.dumps(value), flush=True)

    return write


def _rounded(confidence: float | None) -> float | None:
    return None if confidence is None else round(confidence, DIGITS)


def _csv(classes: Sequence[str], sets: Sets | None) -> Write:
    from emotion_detection.files import cell

    # A terminal would act on what a name holds.
    shown = printable if sys.stdout.isatty() else str
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(
        (
            *("file", "face", "left", "top", "width", "height", "detection_confidence"),
            *("label", "confidence"),
            *(("prediction_set",) if sets else ()),
            *(shown(f"probability_{name}") for name in classes),
        )
    )

    def held(face: "Face") -> Iterator[str]:
        assert sets is not None
        yield cell(shown(";".join(classes[number] for number in sets(face.probabilities))))

    def write(prediction: "Prediction") -> None:
        for number, face in enumerate(prediction.faces, start=1):
            writer.writerow(
                (
                    *(cell(shown(prediction.picture.name)), number, *face.box),
                    _rounded(face.detection_confidence),
                    cell(shown(classes[face.label])),
                    f"{face.confidence:.{DIGITS}f}",
                    *(held(face) if sets else ()),
                    *(f"{value:.{DIGITS}f}" for value in face.probabilities.tolist()),
                )
            )
        sys.stdout.flush()

    return write


WRITERS: dict[str, Callable[[Sequence[str], Sets | None], Write]] = {
    "table": _table,
    "json": _json,
    "csv": _csv,
}
