"""The look that all figures share."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from emotion_detection.figures import style
from emotion_detection.figures.data import class_balance, duplicates_grid, sample_grid
from emotion_detection.figures.evaluation import (
    answered,
    confusion_matrix,
    corruptions,
    mistakes,
    per_class_bars,
    reliability,
    roc_curves,
)
from emotion_detection.figures.training import learning_curves, trials
from tests.support.figures import (
    CLASSES,
    EMOTIONS,
    MATRIX,
    TRAIN,
    bars,
    corruptions_table,
    ensemble_history,
    evaluation_of,
    history,
    noise,
    texts,
    trial_table,
)


def every_figure(classes: tuple[str, ...]) -> Iterator[tuple[str, Figure]]:
    evaluation = evaluation_of(classes)
    counts = {name: 37 * (k + 1) ** 2 for k, name in enumerate(classes)}
    wrong = evaluation.most_confident_mistakes(11)
    names = np.array(classes)
    labels = np.arange(60) % len(classes)
    yield "class_balance", class_balance({"train": counts, "test": counts})
    yield "sample_grid", sample_grid(noise(60), labels, classes, 3)
    yield "confusion", confusion_matrix(evaluation.confusion * 9, classes, normalize=False)
    yield "per_class_bars", per_class_bars(evaluation)
    yield "roc_curves", roc_curves(evaluation)
    yield "reliability", reliability(evaluation)
    yield "answered", answered(evaluation)
    yield (
        "mistakes",
        mistakes(
            noise(len(wrong)),
            names[evaluation.labels[wrong]].tolist(),
            names[evaluation.predicted[wrong]].tolist(),
            evaluation.confidence[wrong],
        ),
    )


def figures_without_classes() -> Iterator[tuple[str, Figure]]:
    yield "learning_curves", learning_curves(history())
    close = history()
    close[["loss", "accuracy"]] = close[["val_loss", "val_accuracy"]] * 0.999
    yield "lines that end together", learning_curves(close)
    yield "one epoch", learning_curves(history(1, best=1))
    yield "an ensemble", learning_curves(ensemble_history())
    yield "corruptions", corruptions(corruptions_table())
    yield "trials", trials(trial_table())
    yield "one trial", trials(trial_table().head(1))
    yield "conflicts", duplicates_grid([(image, CLASSES[10][:2]) for image in noise(9)])
    yield "no conflicts", duplicates_grid([])
    yield "no mistakes", mistakes([], [], [], [])


def drawn_texts(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """What reaches the page: findobj would also give the tick labels outside the axes."""
    drawn: list[Text] = []
    draw = Text.draw

    def record(self: Text, *args: Any, **kwargs: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            drawn.append(self)
        draw(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Text, "draw", record)
        FigureCanvasAgg(figure).draw()
    return drawn


def assert_legible(name: str, figure: Figure, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = drawn_texts(figure, monkeypatch)
    boxes = np.array([text.get_window_extent().extents for text in drawn])
    width, height = figure.canvas.get_width_height()
    outside = (boxes < -1).any(axis=1) | (boxes[:, 2] > width + 1) | (boxes[:, 3] > height + 1)
    assert [drawn[i].get_text() for i in np.flatnonzero(outside)] == [], name

    # The boxes of slanted texts overlap where the texts do not.
    straight = np.array([float(text.get_rotation()) % 90 == 0 for text in drawn])
    left, bottom, right, top = (boxes[straight] + [1, 1, -1, -1]).T
    touching = (
        (left[:, None] < right) & (left < right[:, None])
        & (bottom[:, None] < top) & (bottom < top[:, None])
    )  # fmt: skip
    kept = [text.get_text() for text in np.array(drawn, dtype=object)[straight]]
    pairs = [(kept[i], kept[j]) for i, j in zip(*np.nonzero(np.triu(touching, 1)), strict=True)]
    assert pairs == [], name
    assert min(float(text.get_fontsize()) for text in drawn) >= 5.5, name


@pytest.mark.parametrize("number", CLASSES)
def test_no_text_overlaps_or_leaves_the_page(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, figure in every_figure(CLASSES[number]):
        assert_legible(name, figure, monkeypatch)


def test_no_text_overlaps_in_the_figures_without_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, figure in figures_without_classes():
        assert_legible(name, figure, monkeypatch)


def test_a_class_has_the_same_colour_in_every_figure() -> None:
    evaluation = evaluation_of(EMOTIONS)
    expected = [style.class_colour(k).lower() for k in range(7)]
    assert len(set(expected)) == 7
    balance = class_balance({"train": TRAIN}).axes[0]
    scores = per_class_bars(evaluation).axes[0]
    curves = roc_curves(evaluation).axes[0].lines[1:]
    samples = sample_grid(noise(7), np.arange(7), EMOTIONS, 1).axes[0]
    assert [to_hex(bar.get_facecolor()) for bar in bars(balance)] == expected
    assert [to_hex(bar.get_facecolor()) for bar in bars(scores)] == expected
    assert [to_hex(str(curve.get_color())) for curve in curves] == expected
    assert [to_hex(patch.get_facecolor()) for patch in samples.patches] == expected


def test_save_writes_a_png_of_the_figures_size(tmp_path: Path) -> None:
    figure = learning_curves(history())
    path = tmp_path / "new" / "curves.png"
    style.save(figure, path)
    expected = tuple(np.floor(figure.get_size_inches() * style.DPI).astype(int))
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.size == expected
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert "Software" not in image.info
    assert [entry.name for entry in path.parent.iterdir()] == ["curves.png"]


def test_save_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        style.save(confusion_matrix(MATRIX, EMOTIONS[:3], normalize=True), tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_save_leaves_the_old_file_when_drawing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figure.png"
    path.write_text("old")
    figure = class_balance({"train": TRAIN})

    def half_written(partial: Path, **_: object) -> None:
        partial.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", half_written)
    with pytest.raises(OSError, match="disk full"):
        style.save(figure, path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.png"]


def test_figures_can_be_drawn_from_several_threads(tmp_path: Path) -> None:
    def draw(number: int) -> None:
        style.save(
            confusion_matrix(MATRIX, EMOTIONS[:3], normalize=True),
            tmp_path / f"{number}.png",
        )

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert len(list(tmp_path.iterdir())) == 3


def test_names_are_text_in_any_script_that_a_font_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counts = {"train": {"$1": 3, "$10": 2, "$100": 1}}
    style.save(class_balance(counts), tmp_path / "dollars.png")
    assert caplog.text == ""
    # In no font's private corner.
    counts = {"train": {"\uf0ff9": 3, "sad": 2}}
    for _ in range(2):
        style.save(class_balance(counts), tmp_path / "boxes.png")
    assert caplog.text.count("no installed font has \uf0ff, so figures show boxes there") == 1
    assert Path(style.font_file("sad")).name == "DejaVuSans.ttf"
    # Computer Modern has no accents, and matplotlib brings it along, as it does DejaVu.
    style._families.cache_clear()
    monkeypatch.setattr(style, "FONT", "cmr10")
    assert Path(style.font_file("sad")).name == "cmr10.ttf"
    assert "DejaVu" in Path(style.font_file("très triste")).name
    figure = class_balance({"train": {"très triste": 3, "sad": 2}})
    style.save(figure, tmp_path / "accents.png")
    assert figure.axes[0].get_yticklabels()[0].get_fontfamily()[0] == "cmr10"
    assert "DejaVu" in figure.axes[0].get_yticklabels()[0].get_fontfamily()[1]
    style._families.cache_clear()


def test_hundreds_of_classes_give_figures_that_fit_into_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = tuple(f"bird {k}" for k in range(200))
    matrix = confusion_matrix(np.eye(200, dtype=np.int64), classes, normalize=True)
    assert texts(matrix.axes[0]) == []
    assert [tick.get_text() for tick in matrix.axes[0].get_yticklabels()][:2] == [
        "bird 0",
        "bird 1",
    ]
    style.save(matrix, tmp_path / "matrix.png")
    monkeypatch.setattr(style, "LONGEST_SIDE", 1000)
    bars = class_balance({"train": dict.fromkeys(classes[:40], 5)})
    style.save(bars, tmp_path / "bars.png")
    sizes = [Image.open(tmp_path / f"{name}.png").size for name in ("matrix", "bars")]
    assert max(sizes[0]) < 4000
    assert max(sizes[1]) == 1000
