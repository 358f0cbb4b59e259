"""The page and the model card of an evaluation."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from playwright.sync_api import Browser, Page, expect, sync_playwright
from ruamel.yaml import YAML

from emotion_detection.data.dataset import Dataset
from emotion_detection.evaluation import corruptions, report
from emotion_detection.evaluation.champion import Decision
from emotion_detection.evaluation.metrics import evaluate, flat_metrics, headlines
from emotion_detection.evaluation.report import Subject
from emotion_detection.figures import style
from emotion_detection.figures.evaluation import evaluation_figures
from emotion_detection.models.calibration import with_temperature
from emotion_detection.models.coverage import Coverage
from emotion_detection.settings import params
from emotion_detection.settings.params import Network, Params
from emotion_detection.settings.sections import changed
from emotion_detection.tracking import lineage
from tests.support.figures import ensemble_history
from tests.support.figures import history as curves

PARAMS = params.load(Path(__file__).parents[2] / "params.yaml")
# Nobody names a class so, but a folder may be called anything.
NAMES = ("angry", "<b>bold</b> & a|b", "un très très long nom de classe")
LOOKS = {"light": ("light", 1200), "dark": ("dark", 1200), "phone": ("dark", 390)}


BRIGHTNESS = "e => Math.max(...getComputedStyle(e).backgroundColor.match(/\\d+/g).map(Number))"
# The texts, those of figures too, whose contrast by WCAG 2 with what is behind them is below 4.5.
HARD_TO_READ = """() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const luminance = colour => numbers(colour).slice(0, 3)
        .map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = element => {
        const colour = getComputedStyle(element).backgroundColor;
        const clear = numbers(colour)[3] === 0;
        return clear && element.parentElement ? behind(element.parentElement) : colour;
    };
    const texts = [...document.querySelectorAll("body *")].filter(element =>
        [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
    return texts.filter(element => {
        const style = getComputedStyle(element);
        const colour = element.closest("svg") ? style.fill : style.color;
        const [dark, light] = [luminance(colour), luminance(behind(element))].sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05) < 4.5;
    }).map(element => element.textContent);
}"""


@pytest.fixture(scope="module")
def subject(toy: Dataset) -> Subject:
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(toy.is_test)
    labels = toy.labels[rows]
    logits = rng.normal(size=(len(rows), 3)) + 1.5 * np.eye(3)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    leaked = np.arange(len(rows)) < 4
    return Subject(
        result=evaluate(labels, probabilities, NAMES, leaked=leaked, seed=0),
        dataset=replace(toy, classes=NAMES),
        rows=rows,
        corrupted=corruptions.measure(
            lambda images: rng.random((len(images), 3)), toy, rows, bootstrap=100, seed=0
        ),
        decision=Decision("7", True, "it is the first model on toy.zip", scored=3),
        history=curves(12, best=9),
        origin=[("date", "2026-01-02 03:04 UTC"), ("command", "dvc exp run -S train.lr=0.001")],
        facts=[("network", "of a few layers")],
        selected_on_test=False,
        synthetic=False,
    )


def test_the_report_says_what_the_temperature_does_to_the_calibration_error(
    subject: Subject,
) -> None:
    before = subject.result.calibration_error
    scaled = replace(
        subject.result, probabilities=with_temperature(subject.result.probabilities, 0.5)
    )
    assert report.calibration(scaled, 0.5) == (
        "temperature 0.50, fitted on the validation images; the calibration error on test is "
        f"{100 * scaled.calibration_error:.1f}\u00a0%, without it {100 * before:.1f}\u00a0%"
    )
    assert report.calibration(subject.result, 1.0).startswith("none")


def test_the_report_says_how_often_the_sets_hold_the_label(subject: Subject) -> None:
    # The first class is in every set, the second from 0.5, the third never.
    text = Coverage(((), (0.5,) * 9, (2.0,) * 9)).to_json()
    labels, probabilities = subject.result.labels, subject.result.probabilities
    second = probabilities[:, 1] >= 0.5
    right = (labels == 0) | ((labels == 1) & second)
    assert report.sets(subject.result, text) == (
        "made to hold the label of 90.0\u00a0% of the images of each class; of the test images "
        f"{100 * right.mean():.1f}\u00a0% have it in theirs (lowest: {NAMES[2]}, 0.0\u00a0%); "
        f"{100 * (~second).mean():.1f}\u00a0% have one class in it, "
        f"{100 * second.mean():.1f}\u00a0% two"
    )
    assert report.sets(subject.result, None).startswith("none")


def drawn(subject: Subject) -> dict[str, Figure]:
    images = subject.dataset.images
    return evaluation_figures(subject.result, subject.corrupted, images, subject.rows)


def written(subject: Subject, folder: Path) -> tuple[str, str]:
    """Write both into `folder`, and return their texts."""
    found = drawn(subject)
    for name, figure in found.items():
        style.save(figure, folder / f"{name}.png")
    report.write(subject, found, folder)
    page, card = ((folder / name).read_text() for name in ("report.html", "model_card.md"))
    return page, card


@pytest.fixture(scope="module")
def folder(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the page, the card and their figures."""
    folder = tmp_path_factory.mktemp("report")
    written(subject, folder)
    return folder


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


class Seen:
    """A page as it is opened, and what went on meanwhile."""

    def __init__(self, browser: Browser, path: Path, scheme: str, width: int) -> None:
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 800},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())


@pytest.mark.parametrize("look", LOOKS)
def test_the_page_is_right_by_day_by_night_and_on_a_phone(
    look: str, folder: Path, browser: Browser, subject: Subject
) -> None:
    scheme, width = LOOKS[look]
    seen = Seen(browser, folder / "report.html", scheme, width)
    page = seen.page
    assert seen.messages == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wrong = int((~subject.result.correct).sum())
    assert wrong >= 2
    assert page.evaluate("[...document.images].map(i => i.naturalWidth)") == [16] * wrong
    # No figure scrolls, even on a phone, and none is shown larger than it was drawn.
    assert page.evaluate(
        "[...document.querySelectorAll('.picture')].every(e => e.scrollWidth <= e.clientWidth)"
    )

    accuracy = subject.result.accuracy
    value, low, high = (100 * share for share in (accuracy.value, accuracy.low, accuracy.high))
    title = page.get_by_role("heading", level=1)
    expect(title).to_have_text(f"Test accuracy {value:.1f}\u00a0% ({low:.1f} to {high:.1f})")
    for name in NAMES:
        expect(page.get_by_role("rowheader", name=name, exact=True)).to_be_visible()
    expect(
        page.get_by_text("Test images that are also in train, with the same pixels: 4")
    ).to_be_visible()
    expect(page.get_by_text("dvc exp run -S train.lr=0.001")).to_be_visible()
    expect(page.get_by_text("Version 7 in the model registry is champion")).to_be_visible()

    is_dark = page.evaluate(f"({BRIGHTNESS})(document.body)") < 50
    assert is_dark is (scheme == "dark")
    assert page.evaluate(HARD_TO_READ) == []
    page.close()


def test_the_page_can_be_used_with_the_keyboard(folder: Path, browser: Browser) -> None:
    page = Seen(browser, folder / "report.html", "light", 390).page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Scores")).to_be_focused()
    page.get_by_role("link", name="Limits and misuse").press("Enter")
    expect(page.get_by_role("heading", name="Limits and misuse")).to_be_in_viewport()
    scrolls = page.locator(".scroll:visible, .picture").evaluate_all(
        "all => all.filter(e => e.scrollWidth > e.clientWidth).map(e => e.tabIndex)"
    )
    assert scrolls
    assert set(scrolls) == {0}
    table = page.get_by_role("group", name="accuracy by corruption")
    expect(table).to_be_hidden()
    page.locator("summary").press("Enter")
    expect(table).to_be_visible()
    expect(table.get_by_role("rowheader", name="blur 4 %")).to_be_visible()
    page.close()


def test_the_page_is_small_and_says_what_its_figures_show(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert len(page.encode()) < 500_000
    # Learning curves, confusion matrix, ROC curves, calibration, and a panel a corruption.
    assert page.count("<svg") == 2 + 1 + 1 + 1 + 1 + 5
    assert 'aria-label="Calibration error ' in page
    assert 'aria-label="Recall is highest' in page


def test_the_card_tells_each_class_with_its_intervals(folder: Path, subject: Subject) -> None:
    card = (folder / "model_card.md").read_text()
    first = subject.result.per_class[0]
    recall = f"{100 * first.recall.value:.1f}\u00a0% ({100 * first.recall.low:.1f} to "
    (row,) = (line for line in card.splitlines() if line.startswith("| angry | 5 |"))
    assert recall in row
    assert "\\<b\\>bold\\</b\\> & a\\|b" in card
    assert "](mistakes.png)" in card
    assert "Most frequent confusion: " in card
    assert "Version 7 in the model registry is champion of its data set: it is the first" in card
    assert "- test images: scored by this model and 2 others before" in card
    assert subject.corrupted is not None
    assert card.count("\u00a0points to ") == len(subject.corrupted) - 1
    assert card.startswith(f"# {report.title(subject.result)}: a network for the 3 classes of toy")
    assert "| blur 4 % |" in card
    assert "- network: of a few layers" in card
    tables = [line for line in card.splitlines() if line.startswith("|")]
    cells = {len(line.replace("\\|", "").split("|")) for line in tables}
    assert cells == {4, 5, 8}


def test_what_is_not_there_is_not_shown(subject: Subject, tmp_path: Path) -> None:
    less = replace(
        subject,
        result=evaluate([0, 0], [[0.9, 0.1], [0.8, 0.2]], ("a", "b"), leaked=[1, 1], seed=0),
        corrupted=corruptions.NOT_MEASURED,
        decision=Decision(None, False, "evaluate.register is never"),
        selected_on_test=True,
        synthetic=True,
    )
    page, card = written(less, tmp_path)
    for text in (page, card.replace("\\", "")):
        assert "too good" in text
        assert "synthetic, drawn by a program" in text
        assert "evaluate.register is never" in text
        assert "Corrupted images" not in text
        assert "without leaks" not in text
        assert "macro AUC" not in text
        assert "Mistakes" not in text
        assert "Every image was predicted correctly." in text
        assert "nan" not in text.casefold().split()


def test_the_same_evaluation_gives_the_same_bytes(
    subject: Subject, folder: Path, tmp_path: Path
) -> None:
    written(subject, tmp_path)
    for name in ("report.html", "model_card.md"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def history(epochs: int, best: int, val_accuracy: float = 0.5) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    return pd.DataFrame(
        {"epoch": epoch, "val_accuracy": val_accuracy - 0.01 * np.abs(epoch - best)}
    )


def small_network() -> keras.Sequential:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )


def facts_of(values: Params) -> dict[str, str]:
    return dict(report.training_facts(small_network(), values, history(12, best=9)))


def test_the_training_is_told_by_the_params_that_differ_from_their_default() -> None:
    facts = facts_of(PARAMS)
    assert facts["network"] == (
        "330 parameters: 2 convolutions per block of 16, 64, 128, 256 filters (plain), no dense "
        "layer but the last"
    )
    assert facts["validation"] == (
        "15.0\u00a0% of train, stratified by class; neither copies nor near-duplicates are in both"
    )
    assert facts["best epoch"] == "9 of 12, with the highest validation accuracy (50.0\u00a0%)"
    for name, section in (
        ("network", PARAMS.network),
        ("ensemble", PARAMS.ensemble),
        ("tta", PARAMS.tta),
        ("split", PARAMS.split),
        ("train", PARAMS.train),
    ):
        told = facts.get(f"{name} params", "")
        listed = dict(item.split(": ") for item in re.split(r", (?=[a-z])", told) if ": " in item)
        assert listed.keys() == changed(section).keys()
        for key, value in changed(section).items():
            # As params.yaml is read: true, null, 0.003, [16, 64].
            assert YAML(typ="safe").load(listed[key]) == (
                list(value) if isinstance(value, tuple) else value
            )
    assert "schedule: one_cycle" in facts["train params"]
    assert "augment.rotation: 10.0" in facts["train params"]
    assert "augment.horizontal_flip: true" in facts["train params"]
    assert "optimizer" not in facts["train params"]


def test_a_network_is_told_by_what_differs_from_the_defaults() -> None:
    chosen = Network(filters=(8, 8), kernel_sizes=(3, 5), dense_dropout=0.7)
    facts = facts_of(PARAMS.model_copy(update={"network": chosen}))
    assert facts["network params"] == ("filters: [8, 8], kernel_sizes: [3, 5], dense_dropout: 0.7")


def test_a_selection_on_test_is_told() -> None:
    split = PARAMS.split.model_copy(update={"validation": "test"})
    facts = facts_of(PARAMS.model_copy(update={"split": split}))
    assert facts["validation"].startswith("the test images themselves")
    assert "validation: test" in facts["split params"]


def test_the_report_has_the_curves_of_the_models_networks_alone(tmp_path: Path) -> None:
    curves(3).to_csv(tmp_path / "history.csv", index=False)
    pd.testing.assert_frame_equal(report.history(tmp_path, 1), curves(3))
    networks = ensemble_history(networks=3, epochs=4)
    networks.to_csv(tmp_path / "networks.csv", index=False)
    two = report.history(tmp_path, 2)
    assert two["network"].tolist() == [1] * 4 + [2] * 4
    one = report.history(tmp_path, 1)
    assert "network" not in one
    assert one["val_accuracy"].tolist() == networks["val_accuracy"].tolist()[:4]


def test_an_ensemble_is_told_by_network() -> None:
    model, other = (
        small_network(),
        keras.Sequential.from_config(small_network().get_config() | {"name": "other"}),
    )
    images = keras.Input((8, 8, 1))
    twice = keras.Model(images, keras.layers.Average()([model(images), other(images)]))
    ensemble = PARAMS.ensemble.model_copy(update={"members": 2})
    values = PARAMS.model_copy(update={"ensemble": ensemble})
    histories = pd.concat(
        [
            history(12, best=9).assign(network=1),
            history(10, best=4, val_accuracy=0.6).assign(network=2),
        ],
        ignore_index=True,
    )
    facts = dict(report.training_facts(twice, values, histories))
    assert facts["network"] == (
        "660 parameters: 2 members, each with 2 convolutions per block of 16, 64, 128, 256 filters "
        "(plain), no dense layer but the last"
    )
    assert facts["ensemble params"] == "members: 2"
    assert facts["best epoch"] == (
        "network 1: 9 of 12, with the highest validation accuracy (50.0\u00a0%); "
        "network 2: 4 of 10, with the highest validation accuracy (60.0\u00a0%)"
    )


def test_a_perfect_score_is_not_told_as_certain(subject: Subject, tmp_path: Path) -> None:
    labels = subject.result.labels
    perfect = evaluate(labels, np.eye(3)[labels], NAMES, seed=0)
    page, card = written(replace(subject, result=perfect), tmp_path)
    for text in (page, card):
        assert "Test accuracy 100.0\u00a0% (79.6 to 100.0)" in text
        assert "100.0 to 100.0" not in text


def test_the_log_has_the_headline_of_the_page(subject: Subject) -> None:
    found = report.headline(subject)
    assert found.startswith(report.title(subject.result))
    assert found.endswith(f"macro F1 {subject.result.macro_f1.value:.3f}, on 15 images")


def test_scores_of_images_that_an_ancestor_learnt_from_say_so_everywhere(
    subject: Subject, tmp_path: Path
) -> None:
    seen = lineage.Seen(test=3, validation=4, unknown=("models:/elsewhere/1",))
    leak = replace(subject, seen=seen)
    page, card = written(leak, tmp_path)
    for text in (page, card.replace("\\", "")):
        assert "learnt from 3 of the test images, so the scores are too good" in text
        assert "learnt from 4 of the validation images, so val_accuracy and the choice of" in text
        assert "It is unknown what models:/elsewhere/1 learnt from" in text
    assert report.headline(leak).endswith("too good: an ancestor learnt from 3 of them")
    assert leak.tags()["leak"] == "true"
    shown = headlines(flat_metrics(leak.scores))
    assert list(shown) == ["test/accuracy", "test/macro_f1", "test/inherited_leaks"]
    assert "test/inherited_leaks" not in headlines(flat_metrics(subject.scores))


def test_the_page_says_when_by_what_and_with_which_command_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = dict(report.origin("1234"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", told["date"])
    assert re.match(r"[0-9a-f]{12}\b", told["commit"])
    assert told["MLflow run"] == "1234"
    monkeypatch.chdir(tmp_path)
    assert [name for name, _ in report.origin(None)] == ["date", "command"]
