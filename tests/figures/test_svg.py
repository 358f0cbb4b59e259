"""Figures as SVG for a page."""

import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

from emotion_detection.figures import style, svg
from emotion_detection.figures.evaluation import confusion_matrix, corruptions, roc_curves
from emotion_detection.figures.training import learning_curves
from tests.support.figures import (
    CLASSES,
    EMOTIONS,
    corruptions_table,
    ensemble_history,
    evaluation_of,
    history,
)


def words(panel: svg.Panel) -> list[str]:
    """The texts of a panel as a person would select them."""
    found = ElementTree.fromstring(panel.svg).iter("text")
    return [" ".join("".join(text.itertext()).split()) for text in found]


def drawn() -> dict[str, Figure]:
    evaluation = evaluation_of(EMOTIONS)
    return {
        "learning_curves": learning_curves(history()),
        "confusion": confusion_matrix(evaluation.confusion, EMOTIONS, normalize=True),
        "roc": roc_curves(evaluation),
        "corruptions": corruptions(corruptions_table()),
    }


def test_a_figure_is_as_many_pictures_as_it_has_columns_with_their_texts_as_text() -> None:
    found = {name: svg.panels(figure, name) for name, figure in drawn().items()}
    assert {name: len(panels) for name, panels in found.items()} == {
        "learning_curves": 2,
        "confusion": 1,
        "roc": 1,
        "corruptions": 5,
    }
    loss, accuracy = map(words, found["learning_curves"])
    assert {"loss", "validation", "train"} <= set(loss) - {"accuracy"}
    assert "accuracy" in accuracy
    assert "loss" not in accuracy
    assert set(EMOTIONS) <= set(words(found["confusion"][0]))
    # Panels that share an axis have its numbers each.
    assert all("60 %" in words(panel) for panel in found["corruptions"])
    assert [words(panel)[-1] for panel in found["corruptions"]] == [
        "brightness",
        "contrast",
        "noise",
        "blur",
        "shift",
    ]


def test_a_picture_is_narrow_enough_for_a_phone() -> None:
    narrow = 358  # what a page of 390 pixels has room for
    for name, figure in drawn().items():
        for panel in svg.panels(figure, name):
            assert panel.narrowest <= narrow, name
    (panel,) = svg.panels(roc_curves(evaluation_of(CLASSES[26])), "roc")
    assert panel.narrowest <= narrow


def test_every_colour_is_the_pages_and_has_its_value_on_a_dark_page() -> None:
    colours: set[str] = set()
    for name, figure in (*drawn().items(), ("networks", learning_curves(ensemble_history()))):
        for panel in svg.panels(figure, name):
            without = re.sub(r"var\(--([0-9a-f]{6}), #\1\)", "", panel.svg)
            assert not re.search(r"(fill|stroke): *#", without)
            assert "font-family" not in panel.svg
            assert "DejaVu" not in panel.svg
            colours |= set(re.findall(r"var\(--([0-9a-f]{6})", panel.svg))
    assert colours <= {light.removeprefix("#").lower() for light in style.DARK}


def test_the_pictures_of_a_page_have_no_id_in_common_and_are_the_same_each_time() -> None:
    first, again = (
        [panel.svg for name, figure in drawn().items() for panel in svg.panels(figure, name)]
        for _ in range(2)
    )
    assert first == again
    ids = [found for text in first for found in re.findall(r' id="([^"]+)"', text)]
    assert ids
    assert len(ids) == len(set(ids))
    for text in first:
        used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)
        assert {one or other for one, other in used} <= set(ids)
        assert "<style" not in text
        assert "<metadata" not in text


def test_a_name_that_looks_like_markup_is_text() -> None:
    names = ("<script>alert(1)</script>", "#222222 & co")
    figure = confusion_matrix(evaluation_of(("a", "b")).confusion, names, normalize=False)
    (panel,) = svg.panels(figure, "confusion")
    assert "<script" not in panel.svg
    assert "#222222 & co" in words(panel)


def test_the_figure_stays_as_it_was() -> None:
    figure = corruptions(corruptions_table())
    title = figure.get_suptitle()
    svg.panels(figure, "corruptions")
    assert figure.get_suptitle() == title
    assert all(axes.get_visible() for axes in figure.axes)
