"""Corrections of labels, from the file to the dataset and its scores."""

import logging
from pathlib import Path

import numpy as np
import pytest

from emotion_detection.console import UserError
from emotion_detection.data import profile
from emotion_detection.data.dataset import Dataset
from emotion_detection.data.splits import split
from emotion_detection.evaluation.metrics import evaluate_dataset
from emotion_detection.settings import params
from tests.support.sources import faces, in_folder, in_zip, ingested, png

HEADER = "digest,old,new,who,when,why\n"


def corrected(folder: Path, source: Path, text: str) -> Dataset:
    """Return the dataset of `source` with corrections of this text."""
    folder.mkdir()
    path = folder / "corrections.csv"
    path.write_text(HEADER + text, encoding="utf-8")
    ingested(source, folder / "dataset", corrections=path)
    return Dataset.open(folder / "dataset")


def test_corrections_are_found_by_pixels_whatever_the_files_are_called(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = faces()
    caplog.set_level(logging.INFO)
    source = in_folder(tmp_path / "faces", files)
    plain = corrected(tmp_path / "plain", source, "")
    first, second, third, test = (plain.digests[row] for row in (0, 1, 2, 6))
    assert plain.corrections == plain.relabelled == {}
    text = (
        f"{first},angry,angry,me,,first thought\n"
        f"{first},angry,happy,me,,\n"  # the last wins
        f"{second},angry,,me,,no face\n"
        f"{third},happy,angry,me,,\n"  # it is angry: contradictory
        f"{test},angry,happy,me,,\n"
        f"{'0' * 32},angry,happy,me,,\n"
    )
    renamed = {name.replace("im", "picture "): data for name, data in files.items()}
    found = corrected(tmp_path / "found", in_zip(tmp_path / "renamed.zip", renamed), text)

    assert found.corrections == {
        **{"relabelled": 2, "dropped": 1},
        **{"not_found": 1, "contradictory": 1},
    }
    assert second not in found.digests
    label = dict(zip(found.digests, found.labels.tolist(), strict=True))
    assert (label[first], label[third], label[test]) == (1, 0, 1)
    assert found.relabelled == {found.digests.index(first): 0, found.digests.index(test): 0}
    assert found.digest != plain.digest
    assert "2 images relabelled and 1 dropped" in caplog.text
    measured = profile.measure(found)
    assert measured.metrics()["corrections"] == found.corrections
    assert "2 labels are corrected" in measured.summary()


def test_a_correction_holds_for_every_copy_and_moves_no_image(tmp_path: Path) -> None:
    files = faces(("train",), each=12) | {"train/happy/copy.png": png(0)}
    source = in_folder(tmp_path / "faces", files)
    plain = corrected(tmp_path / "plain", source, "")
    digest = plain.digests[plain.files.index("train/angry/im0.png")]
    found = corrected(tmp_path / "found", source, f"{digest},angry,happy,,,\n")

    assert found.files == plain.files
    assert np.array_equal(found.splits, plain.splits)
    assert {found.labels[row] for row, of in enumerate(found.digests) if of == digest} == {1}
    settings = params.Split(fraction=0.2)
    assert np.array_equal(split(found, settings).validation, split(plain, settings).validation)
    kept = corrected(tmp_path / "kept", source, f"{digest},angry,angry,,,unsure\n")
    assert kept.digest == plain.digest


def test_scores_are_by_the_corrected_labels_and_by_those_of_the_set(tmp_path: Path) -> None:
    source = in_folder(tmp_path / "faces", faces())
    plain = corrected(tmp_path / "plain", source, "")
    found = corrected(tmp_path / "found", source, f"{plain.digests[6]},angry,happy,,,\n")
    rows = np.flatnonzero(found.is_test)
    right = np.eye(2)[found.labels[rows]]
    scores = evaluate_dataset(found, rows, right, seed=0).metrics()
    assert scores["accuracy"] == 1
    assert scores["accuracy_as_labelled"] == pytest.approx(5 / 6, abs=1e-6)
    assert scores["corrected_labels"] == 1
    rows = np.flatnonzero(plain.is_test)
    without = evaluate_dataset(plain, rows, right, seed=0).metrics()
    assert "accuracy_as_labelled" not in without


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digest,label\n", "first line must be digest,old,new"),
        (f"{HEADER}abc,angry\n", "entry 2 has 2 fields, not 6"),
        (f'{HEADER}"abc', "cannot be read"),
        ("", "first line must be digest,old,new"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "corrections.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        ingested(in_folder(tmp_path / "s", faces()), tmp_path / "out", corrections=path)


def test_a_class_keeps_an_image_in_every_split(tmp_path: Path) -> None:
    source = in_folder(tmp_path / "faces", faces(each=1))
    plain = corrected(tmp_path / "plain", source, "")
    with pytest.raises(UserError, match="leaves class 'angry' without an image in test"):
        corrected(tmp_path / "none", source, f"{plain.digests[2]},angry,happy,,,\n")
