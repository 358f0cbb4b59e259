"""The page and the card that tell what an evaluation found."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure
from playwright.sync_api import Browser, Page, expect, sync_playwright

from emotion_detection import figures, params
from emotion_detection.data.dataset import Dataset
from emotion_detection.evaluation.champion import Decision
from emotion_detection.evaluation.metrics import corruptions, evaluate, report
from emotion_detection.evaluation.report import Subject

PARAMS = params.load(Path(__file__).parents[1] / "params.yaml")
# Nobody names a class so, but a folder may be called anything.
NAMES = ("angry", "<b>bold</b> & a|b", "un très très long nom de classe")
LOOKS = {"light": ("light", 1200), "dark": ("dark", 1200), "phone": ("dark", 390)}


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
        robustness=corruptions.measure(
            lambda images: rng.random((len(images), 3)),
            toy,
            rows,
            batch_size=15,
            bootstrap=100,
            seed=0,
        ),
        decision=Decision("7", True, "it is the first on toy.zip"),
        facts=[("network", "of a few layers")],
        selected_on_test=False,
        drawn=False,
    )


def drawn(subject: Subject) -> dict[str, Figure]:
    result = subject.result
    wrong = result.most_confident_mistakes(5)
    names = np.array(result.classes)
    found = {
        "confusion_normalized": figures.confusion_matrix(
            result.confusion, result.classes, normalize=True
        ),
        "roc": figures.roc_curves(result),
        "reliability": figures.reliability(result),
        "mistakes": figures.mistakes(
            subject.dataset.images[wrong],
            names[result.labels[wrong]].tolist(),
            names[result.predicted[wrong]].tolist(),
            result.confidence[wrong],
        ),
    }
    if subject.robustness is not None:
        found["robustness"] = figures.robustness(subject.robustness)
    return found


def written(subject: Subject, folder: Path) -> tuple[str, str]:
    """Write both into `folder`, and give their texts."""
    found = drawn(subject)
    for name, figure in found.items():
        figures.save(figure, folder / f"{name}.png")
    report.write(subject, folder, found)
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
    assert page.evaluate("[...document.images].map(i => i.naturalWidth > 100)") == [True] * 5

    accuracy = f"{100 * subject.result.accuracy.value:.1f}\u00a0%"
    expect(page.get_by_role("heading", level=1)).to_contain_text(accuracy)
    for name in NAMES:
        expect(page.get_by_role("rowheader", name=name, exact=True)).to_be_visible()
    expect(page.get_by_text("4 test images are also in train")).to_be_visible()
    expect(page.get_by_text("Version 7 in the model registry is champion")).to_be_visible()

    brightness = "(e => getComputedStyle(e).{}.match(/\\d+/g).slice(0, 3).map(Number))"
    behind = page.locator("body").evaluate(brightness.format("backgroundColor"))
    ink = page.locator("body").evaluate(brightness.format("color"))
    assert (sum(behind) < sum(ink)) is (scheme == "dark")
    assert abs(sum(behind) - sum(ink)) > 450
    # Figures are drawn on white, and lie on it by night too.
    card = page.locator(".picture").first.evaluate(brightness.format("backgroundColor"))
    assert card == [255, 255, 255]
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
    assert page.count('src="data:image/webp;base64,') == 5
    assert 'alt="Calibration error ' in page
    assert 'alt="Recall is highest' in page


def test_the_card_tells_each_class_with_its_intervals(folder: Path, subject: Subject) -> None:
    card = (folder / "model_card.md").read_text()
    first = subject.result.per_class[0]
    recall = f"{100 * first.recall.value:.1f}\u00a0% ({100 * first.recall.low:.1f}\u00a0% to "
    (row,) = (line for line in card.splitlines() if line.startswith("| angry | 5 |"))
    assert recall in row
    assert "\\<b\\>bold\\</b\\> & a\\|b" in card
    assert "](mistakes.png)" in card
    assert subject.robustness is not None
    assert card.count("\u00a0points to ") == len(subject.robustness)
    assert "| blur 4 % |" in card
    assert "- network: of a few layers" in card
    tables = [line for line in card.splitlines() if line.startswith("|")]
    cells = {len(line.replace("\\|", "").split("|")) for line in tables}
    assert cells == {5, 6, 8}


def test_what_is_not_there_is_not_shown(subject: Subject, tmp_path: Path) -> None:
    less = replace(
        subject,
        result=evaluate([0, 0], [[0.9, 0.1], [0.8, 0.2]], ("a", "b"), leaked=[1, 1], seed=0),
        robustness=None,
        decision=Decision(None, False, "evaluate.register_model is false"),
        selected_on_test=True,
        drawn=True,
    )
    page, card = written(less, tmp_path)
    for text in (page, card.replace("\\", "")):
        assert "too good" in text
        assert "drawn by a program" in text
        assert "evaluate.register_model is false" in text
        assert "Worse images" not in text
        assert "accuracy without leaks" not in text
        assert "macro AUC" not in text
        assert "No image is taken for another class." in text
        assert "nan" not in text.casefold().split()


def test_the_same_evaluation_gives_the_same_bytes(
    subject: Subject, folder: Path, tmp_path: Path
) -> None:
    for path in folder.glob("*.png"):
        shutil.copy2(path, tmp_path)
    report.write(subject, tmp_path, drawn(subject))
    for name in ("report.html", "model_card.md"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_training_is_told_in_words() -> None:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    trained = {"epochs": 12, "best_epoch": 9, "val_accuracy": 0.5}
    facts = dict(report.training_facts(model, PARAMS, trained))
    assert facts["network"] == (
        "330 parameters: convolutions of 4 filters, dense layers of 2 units"
    )
    assert facts["training"].startswith(
        "Adam, one cycle up to a learning rate of 0.003, batches of"
    )
    assert "rotation 10.0" in facts["training"]
    assert facts["validation"].startswith("15.0\u00a0% of train")
    assert facts["epoch"].startswith("9 of 12, ")

    other = keras.Sequential.from_config(model.get_config() | {"name": "other"})
    images = keras.Input((8, 8, 1))
    twice = keras.Model(images, keras.layers.Average()([model(images), other(images)]))
    network = PARAMS.network.model_copy(update={"members": 2})
    facts = dict(
        report.training_facts(twice, PARAMS.model_copy(update={"network": network}), trained)
    )
    assert facts["network"] == (
        "660 parameters: 2 members, each with convolutions of 4 filters, dense layers of 2 units"
    )

    none = PARAMS.train.augment.model_copy(
        update=dict.fromkeys(PARAMS.train.augment.model_dump(exclude={"fill_mode"}), 0)
    )
    changed = PARAMS.model_copy(
        update={
            "train": PARAMS.train.model_copy(update={"augment": none, "schedule": "plateau"}),
            "split": PARAMS.split.model_copy(update={"validation": "test"}),
        }
    )
    facts = dict(report.training_facts(model, changed, trained))
    assert facts["training"].startswith("Adam, from a learning rate of 0.003, batches of 128, ")
    assert facts["training"].endswith("augmentation: none")
    assert facts["validation"] == "the test images, which leaks"

    lightly = PARAMS.model_copy(
        update={"train": PARAMS.train.model_copy(update={"no_aug_epochs": 3})}
    )
    facts = dict(report.training_facts(model, lightly, trained))
    assert facts["training"].endswith("; in the last 3 epochs flips and shifts alone")
