"""What a network has learnt from: its train images, and those of the networks that it started from.

It is a JSON text that stays with the network: in each .keras file that a training or an export
writes, and so in each logged model. An image is known by the last 8 bytes of its digest: of a
million images on either side, two different ones are taken for the same with a chance of 1 in
10,000,000.
"""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import Split
from emotion_detection.tracking.tags import LEAK, flag

FILE = "lineage.json"

_HEX = 16  # digits of a digest that are kept


@dataclass(frozen=True)
class Seen:
    """What an ancestor of a model learnt from of the images that it is scored on.

    `test` and `validation` are numbers of images; those that its own training learnt from too, the
    data set's own leaks, do not count. `unknown` are the models in its lineage of which nobody
    knows what they learnt from.
    """

    test: int = 0
    validation: int = 0
    unknown: tuple[str, ...] = ()

    @property
    def leak(self) -> bool:
        """Whether an ancestor learnt from test images, so that the scores are too good."""
        return self.test > 0

    @property
    def sentences(self) -> list[str]:
        """What whoever reads the scores has to know, a text each; none where all is well."""
        found = []
        if self.test:
            found.append(
                f"An ancestor of this model learnt from {self.test:,} of the test images, so the "
                "scores are too good."
            )
        if self.validation:
            found.append(
                f"An ancestor of this model learnt from {self.validation:,} of the validation "
                "images, so val_accuracy and the choice of the epoch are too good."
            )
        if self.unknown:
            found.append(
                f"It is unknown what {', '.join(self.unknown)} learnt from: if test images were "
                "among it, the scores are too good."
            )
        return found

    def metrics(self) -> dict[str, float]:
        """Return the number of test images that an ancestor learnt from, if there are any."""
        return {"inherited_leaks": self.test} if self.test else {}

    def tags(self) -> dict[str, str]:
        """Return the tag of the MLflow run."""
        return {LEAK: "unknown" if self.unknown and not self.leak else flag(self.leak)}


NOTHING_SEEN = Seen()


@dataclass(frozen=True, eq=False)
class Lineage:
    """What a network has learnt from.

    `images` (N,) uint64 are the ends of the digests of the images that it and its ancestors learnt
    from, sorted; `ancestors` the models that it started from, and those that these did; `unknown`
    the ones among all of them of which nobody knows what they learnt from.
    """

    images: npt.NDArray[np.uint64]
    ancestors: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return it as a JSON text, which is the same where the lineage is."""
        images = base64.b64encode(self.images.astype("<u8").tobytes()).decode()
        values = {
            "images": len(self.images),
            "ancestors": self.ancestors,
            "unknown": self.unknown,
            "image_digests": images,
        }
        return json.dumps(values, indent=2) + "\n"

    @property
    def notes(self) -> dict[str, str]:
        """What a file says of it, by `saving.NOTES`."""
        return {"lineage": self.to_json()}

    def write(self, folder: Path) -> None:
        """Write it to `folder` as FILE."""
        (folder / FILE).write_text(self.to_json(), encoding="utf-8", newline="\n")

    def seen(self, dataset: Dataset, rows: Split) -> Seen:
        """Return what an ancestor learnt from of the images that score a training on `rows`."""
        known = _known(dataset.digests)
        inherited = np.setdiff1d(self.images, known[rows.train])
        # `leaked_images` has the leaks, which this training may have held out.
        test = np.isin(known, inherited) & dataset.is_test & ~dataset.leaked
        validation = np.isin(known[rows.validation], inherited)
        return Seen(
            test=int(test.sum()),
            validation=0 if rows.selected_on_test else int(validation.sum()),
            unknown=self.unknown,
        )


def of_images(digests: Iterable[str]) -> Lineage:
    """Return the lineage of a network that learnt from the images with these digests alone."""
    return Lineage(np.unique(_known(digests)))


def from_json(text: str | None, name: str) -> Lineage:
    """Return the lineage that `to_json` wrote; where `text` is none, that of the unknown `name`."""
    try:
        values = json.loads(text or "")
        images = np.frombuffer(base64.b64decode(values["image_digests"]), "<u8").astype(np.uint64)
        return Lineage(images, tuple(values["ancestors"]), tuple(values["unknown"]))
    except (ValueError, KeyError, TypeError):
        return Lineage(np.empty(0, np.uint64), unknown=(name,))


def joined(lineages: Iterable[Lineage], ancestors: Iterable[str] = ()) -> Lineage:
    """Return the lineage of what has learnt from all that `lineages` have, through `ancestors`."""
    each = list(lineages)
    return Lineage(
        np.unique(np.concatenate([np.empty(0, np.uint64), *(one.images for one in each)])),
        tuple(dict.fromkeys([*ancestors, *(name for one in each for name in one.ancestors)])),
        tuple(dict.fromkeys(name for one in each for name in one.unknown)),
    )


def of_files(files: Iterable[Path]) -> Lineage:
    """Return the lineage of the networks in the .keras `files` together."""
    from emotion_detection.models import saving  # It imports TensorFlow, which takes seconds.

    return joined(from_json(saving.notes(file).get("lineage"), file.name) for file in files)


def _known(digests: Iterable[str]) -> npt.NDArray[np.uint64]:
    return np.array([int(digest[-_HEX:], 16) for digest in digests], np.uint64)
