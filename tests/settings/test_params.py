"""params.yaml: what is declared, what is read, and what is said about a wrong value."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import modify_yaml
from ruamel.yaml import YAML

from emotion_detection.console import UserError
from emotion_detection.settings import params
from emotion_detection.settings.params import Params
from emotion_detection.settings.sections import Section, changed, flat
from emotion_detection.settings.space import Space

REPOSITORY = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(REPOSITORY.read_text())
    return path


def put(file: Path, key: str, value: str) -> None:
    """Write another value after `key` (section.name), as a person does in an editor."""
    text, end = file.read_text(), 0
    for depth, part in enumerate(key.split(".")):
        # With the lines of a list.
        line = re.compile(rf"^{'  ' * depth}{part}:(.*(?:\n *- .*)*)$", re.MULTILINE).search(
            text, end
        )
        assert line is not None
        start, end = line.span(1)
    file.write_text(f"{text[:start]} {value}{text[end:]}")


def complaint(file: Path) -> str:
    """Return what is said about `file`, less its name."""
    with pytest.raises(UserError) as raised:
        params.load(file)
    message = str(raised.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message.replace(f"{file}: ", "")


def test_a_path_without_a_nul(file: Path) -> None:
    put(file, "ingest.source", '"a\\0b"')
    assert complaint(file) == r'ingest.source = "a\u0000b": is no path, since it holds a NUL'


# --- What is declared.


def test_the_repositorys_own_file_is_valid() -> None:
    values = params.load(REPOSITORY)
    assert values.train.lr == 3e-3
    assert values.ingest.image_size == (48, 48)
    # The search begins with the settings that are named there.
    sections = {"network": values.network, "train": values.train}
    own = flat(values.network, "network.") | flat(values.train, "train.")
    assert Space(values.tune.space, sections).values_of(own) is not None


def declared(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    """Yield each section and setting of params.py by its dotted name, with what it means."""
    for name, field in section.model_fields.items():
        of = field.annotation
        if isinstance(of, type) and issubclass(of, Section):
            yield f"{prefix}{name}", of.__doc__
            yield from declared(of, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description


def commented(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield each section and setting of params.yaml by its dotted name, with its comment."""
    parents: list[str] = []
    name, comment = "", None
    in_space = False
    for line in text.splitlines():
        if in_space and re.match(r"    ", line) and "#" not in line:
            # What is drawn, by the names of other settings.
            continue
        if key := re.match(r"( *)(\w+):(?:[^#]*)(?:# (.*))?$", line):
            if name:
                yield name, comment
            del parents[len(key[1]) // 2 :]
            parents.append(key[2])
            name, comment = ".".join(parents), key[3]
            in_space = name == "tune.space"
        elif (further := re.match(r" +# (.*)$", line)) and comment:
            comment += f" {further[1]}"
        else:
            assert re.match(r" *- \S+$|# .*$|$", line), line
    yield name, comment


def test_params_yaml_names_every_setting_once_with_what_params_py_says_it_means() -> None:
    expected = [(name, text and " ".join(text.split())) for name, text in declared(Params)]
    assert all(text for _, text in expected)
    assert list(commented(REPOSITORY.read_text())) == expected
    leaves = flat(params.load(REPOSITORY))
    assert set(leaves) <= {name for name, _ in expected}


def differing_lines(before: str, after: str) -> int:
    old, new = before.splitlines(), after.splitlines()
    assert len(old) == len(new)
    return sum(one != other for one, other in zip(old, new, strict=True))


SCALARS = [
    name
    for name, value in flat(params.load(REPOSITORY)).items()
    if not isinstance(value, tuple | dict)
]


@pytest.mark.parametrize("name", SCALARS)
def test_dvc_changes_the_line_of_a_setting_and_no_other(file: Path, name: str) -> None:
    before = file.read_text()
    *parents, last = name.split(".")
    with modify_yaml(file) as values:
        for parent in parents:
            values = values[parent]
        values[last] = 12345
    assert differing_lines(before, file.read_text()) == 1


@pytest.mark.parametrize(
    "override",
    [
        "train.lr=5e-5",
        "train.epochs=52",
        "train.early_stopping_patience=8",
        "train.init_from=models:/emotion-detection/2",
        "ingest.source='data/archive (1).zip'",
        "ingest.image_size=[48,64]",
        "network.filters=[16,64,128,512]",
        "tune.space={train.lr:{max:0.02}}",
        "evaluate.corruption_images=null",
    ],
)
def test_a_setting_of_dvc_exp_run_changes_its_line_and_no_other(file: Path, override: str) -> None:
    before = file.read_text()
    apply_overrides(file, [override])
    assert differing_lines(before, file.read_text()) == 1
    params.load(file)


@pytest.mark.parametrize(
    "overrides",
    [
        ["~tune.space", "+tune.space={train.lr:{min:3e-4,max:1e-2,log:true}}"],
        ["+tune.space={train.batch_size:[64,128]}"],
    ],
)
def test_dvc_exp_run_replaces_the_space_or_adds_to_it(file: Path, overrides: list[str]) -> None:
    before = params.load(file).tune.space
    apply_overrides(file, overrides)
    after = params.load(file).tune.space
    if len(overrides) == 2:
        assert after == {"train.lr": {"min": 3e-4, "max": 1e-2, "log": True}}
    else:
        assert after == before | {"train.batch_size": [64, 128]}


def test_what_differs_from_the_defaults_is_told_apart() -> None:
    augment = params.Augment(rotation=10.0, horizontal_flip=True)
    assert changed(augment) == {"rotation": 10.0, "horizontal_flip": True}
    train = params.Train(epochs=3, augment=augment)
    assert changed(train) == {
        "epochs": 3,
        "augment.rotation": 10.0,
        "augment.horizontal_flip": True,
    }
    # Every default means "off".
    for of in (params.Tta, params.Augment):
        off = flat(of())
        assert not any(value for name, value in off.items() if name != "fill_mode")


# --- What is read.


@pytest.mark.parametrize("typed", ["5e-4", "5E-4", "0.5e-3", "5.e-4", ".0005", "+5e-4", "0.0005"])
def test_a_learning_rate_typed_by_hand_is_a_number(file: Path, typed: str) -> None:
    put(file, "train.lr", typed)
    assert params.load(file).train.lr == 5e-4


@pytest.mark.parametrize(("typed", "value"), [("5e-05", 5e-5), ("1e-3", 1e-3), ("1", 1.0)])
def test_other_spellings_of_numbers(file: Path, typed: str, value: float) -> None:
    put(file, "train.lr", typed)
    lr = params.load(file).train.lr
    assert lr == value
    assert isinstance(lr, float)


@pytest.mark.parametrize(
    ("typed", "value"),
    [("010", 10), ("09", 9), ("0o10", 8), ("0x10", 16), ("1_000", 1000)],
)
def test_whole_numbers_are_those_of_yaml_1_2(file: Path, typed: str, value: int) -> None:
    put(file, "seed", typed)
    assert params.load(file).seed == value


@pytest.mark.parametrize("word", ["no", "on", "off", "y", "1:30"])
def test_words_that_old_yaml_takes_for_something_else_stay_words(file: Path, word: str) -> None:
    put(file, "ingest.source", word)
    assert params.load(file).ingest.source == word


def test_null_switches_off_what_may_be_off(file: Path) -> None:
    for key in (
        "train.early_stopping_patience",
        "train.reduce_lr_patience",
        "tune.max_gflops",
        "evaluate.corruption_images",
    ):
        put(file, key, "null")
    values = params.load(file)
    assert values.train.early_stopping_patience is None
    assert values.train.reduce_lr_patience is None
    assert values.tune.max_gflops is None
    assert values.evaluate.corruption_images is None


@pytest.mark.parametrize(
    ("key", "typed", "message"),
    [
        ("train.epochs", "fifty", 'train.epochs = "fifty": must be a whole number'),
        ("train.epochs", "true", "train.epochs = true: must be a whole number"),
        ("train.epochs", "10.0", "train.epochs = 10.0: must be a whole number"),
        ("train.epochs", "", "train.epochs = null: must be a whole number"),
        ("train.epochs", "1 000", 'train.epochs = "1 000": must be a whole number'),
        ("train.epochs", "2013-01-01", "train.epochs = 2013-01-01: must be a whole number"),
        ("train.epochs", "0", "train.epochs = 0: must be at least 1"),
        ("train.epochs", "2147483648", "train.epochs = 2147483648: must be less than 2147483648"),
        ("train.epochs", "-5", "train.epochs = -5: must be at least 1"),
        ("train.lr", "fast", 'train.lr = "fast": must be a number'),
        ("train.lr", "true", "train.lr = true: must be a number"),
        ("train.lr", "0", "train.lr = 0: must be more than 0"),
        ("train.lr", "-1e-3", "train.lr = -0.001: must be more than 0"),
        ("train.lr", ".nan", "train.lr = NaN: must be a finite number"),
        ("train.lr", ".inf", "train.lr = Infinity: must be a finite number"),
        ("train.lr", "1e999", "train.lr = Infinity: must be a finite number"),
        ("network.bn_momentum", "1.0", "network.bn_momentum = 1.0: must be less than 1"),
        ("train.augment.rotation", "200", "train.augment.rotation = 200: must be at most 180"),
        (
            "train.augment.horizontal_flip",
            "yes",
            'train.augment.horizontal_flip = "yes": must be true or false',
        ),
        (
            "train.augment.horizontal_flip",
            "1",
            "train.augment.horizontal_flip = 1: must be true or false",
        ),
        ("ingest.drop_leaks", "1", "ingest.drop_leaks = 1: must be true or false"),
        (
            "evaluate.corruption_images",
            "-1",
            "evaluate.corruption_images = -1: must be at least 0",
        ),
        ("export.onnx", "yes", 'export.onnx = "yes": must be true or false'),
        ("ingest.max_unpacked_gib", "0", "ingest.max_unpacked_gib = 0: must be more than 0"),
        ("ingest.test_fraction", "1", "ingest.test_fraction = 1: must be less than 1"),
        (
            "tta.shifts",
            "49",
            "tta.shifts = 49 is more pixels than images of ingest.image_size have a side; use at "
            "most 48",
        ),
        ("tta.flips", "2", "tta.flips = 2: must be true or false"),
        ("split.folds", "1", "split: folds = 1 leaves no image to train on; use 2 or more"),
        ("ensemble.members", "0", "ensemble.members = 0: must be at least 1"),
        ("tune.budget", "30", "tune.budget = 30: must be text; put it in quotes"),
        ("tune.budget", "half an hour", 'tune.budget = "half an hour": must be a time as 90s, 30m'),
        ("tune.trials", "null", "tune: trials and budget are both null, and the search has no end"),
        ("tune.oracle", "grid", "tune.oracle = \"grid\": must be 'random', 'bayesian' or 'hyper"),
        ("ingest.source", "3", "ingest.source = 3: must be text; put it in quotes"),
        # DVC refuses it too, in other words.
        (
            "ingest.source",
            "2013-01-01",
            "ingest.source = 2013-01-01: must be text; put it in quotes",
        ),
        ("ingest.source", "''", 'ingest.source = "": must not be empty'),
        ("ingest.image_size", "48", "ingest.image_size = 48: must be a list in [ ]"),
        ("ingest.image_size", "[48]", "ingest.image_size.1: missing"),
        (
            "ingest.image_size",
            "[48, 48, 3]",
            "ingest.image_size = [48, 48, 3]: has 3 entries and may have 2",
        ),
        (
            "ingest.image_size",
            "[1, 2013-01-01, 3]",
            'ingest.image_size = [1, "2013-01-01", 3]: has 3 entries and may have 2',
        ),
        ("network.filters", "[]", "network.filters = []: has 0 entries and needs at least 1"),
        ("network.filters", "[32, 8, 0, 8]", "network.filters.2 = 0: must be at least 1"),
        (
            "network.filters",
            "[32, 64]",
            "network: filters has 2 entries and kernel_sizes 4; each needs one per block",
        ),
        ("network.convolutions", "0", "network.convolutions = 0: must be at least 1"),
        ("network.convolutions", "9", "network.convolutions = 9: must be at most 8"),
        *(
            (
                "network.convolutions",
                written,
                f"network.convolutions = {written}: must be a whole number",
            )
            for written in ("true", "2.0", "[]", "[2, 2, 3, 2]", '"2 2"')
        ),
        (
            "train.progressive_resizing",
            "21",
            "train: progressive_resizing = 21 is more than epochs = 20; lower it, or raise epochs",
        ),
        (
            "train.no_aug_epochs",
            "21",
            "train: no_aug_epochs = 21 is more than epochs = 20; lower it, or raise epochs",
        ),
        *(
            (
                "train.init_from",
                model,
                f'train.init_from = "{model}": must be a model in MLflow that stays the same',
            )
            for model in (
                "models:/emotion-detection@champion",
                "models:/emotion-detection/latest",
                "models:/emotion-detection/Production",
                "models/model.keras",
            )
        ),
        ("network.conv_dropout", "1", "network.conv_dropout = 1: must be less than 1"),
        ("seed", "-1", "seed = -1: must be at least 0"),
        ("seed", "3000000000", "seed = 3000000000: must be less than 2147483648"),
        ("ensemble", "10 #", "ensemble = 10: must be a section of members"),
        ("train.augment", "10 #", "train.augment = 10: must be a section of rotation, shift"),
    ],
)
def test_a_wrong_value_is_named_with_what_may_be(
    file: Path, key: str, typed: str, message: str
) -> None:
    if typed.endswith("#"):
        *_, name = key.split(".")
        section = rf"(?m)^( *){name}:.*\n(?:\1 .*\n)+"
        file.write_text(re.sub(section, rf"\1{name}: {typed}\n", file.read_text()))
    else:
        put(file, key, typed)
    assert complaint(file).startswith(message)


@pytest.mark.parametrize(
    ("key", "typed", "message"),
    [
        ("split.validation", "test", "split: folds are parts of train, and validation is test"),
        ("train.seeds", "3", "split.folds and train.seeds both give an interval; use one of them"),
        ("train.reduce_lr_patience", "3", "with split.folds the model is trained without valid"),
    ],
)
def test_what_folds_exclude_is_named(file: Path, key: str, typed: str, message: str) -> None:
    put(file, "split.folds", "5")
    put(file, "train.schedule", "plateau")
    params.load(file)
    put(file, key, typed)
    assert complaint(file).startswith(message)


@pytest.mark.parametrize(
    "model", ["models:/emotion-detection/2", "models:/m-0a1b", "runs:/0a/model"]
)
def test_a_model_that_stays_the_same_may_be_started_from(file: Path, model: str) -> None:
    put(file, "train.init_from", model)
    assert params.load(file).train.init_from == model


def test_a_misspelt_key_is_named_with_the_one_that_was_meant(file: Path) -> None:
    file.write_text(file.read_text().replace("  trials: ", "  trails: "))
    assert complaint(file) == "tune.trails: unknown key; did you mean trials?"


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (
            "colour: red",
            "colour: unknown key; allowed: seed, precision, deterministic, sample, ingest",
        ),
        ('"a\\nb": red', "a\\nb: unknown key; allowed: seed"),
        ("1: red", "1: unknown key; allowed: seed, precision, deterministic, sample, ingest"),
        ("sed: 3", "sed: unknown key; did you mean seed?"),
    ],
)
def test_a_key_that_is_nothing_is_refused(file: Path, added: str, message: str) -> None:
    file.write_text(f"{added}\n{file.read_text()}")
    assert complaint(file).startswith(message)


def test_every_wrong_key_is_named_at_once(file: Path) -> None:
    put(file, "train.epochs", "0")
    put(file, "tune.epochs", "0")
    assert complaint(file) == (
        "tune.epochs = 0: must be at least 1; train.epochs = 0: must be at least 1"
    )


def test_a_missing_section_is_named(file: Path) -> None:
    file.write_text(re.sub(r"(?m)^export:.*\n(?: .*\n)+", "", file.read_text()))
    assert complaint(file) == "export: missing"


@pytest.mark.parametrize("name", SCALARS)
def test_a_missing_key_is_named_although_it_has_a_default(file: Path, name: str) -> None:
    written = YAML(typ="safe")
    values = written.load(file)
    *parents, last = name.split(".")
    section = values
    for parent in parents:
        section = section[parent]
    del section[last]
    written.dump(values, file)
    assert complaint(file) == f"{name}: missing"


def test_several_missing_keys_are_named_at_once(file: Path) -> None:
    text = re.sub(r"(?m)^  (?:lr|  rotation): 0?\.?\d+ .*\n", "", file.read_text())
    file.write_text(text)
    assert complaint(file) == "train.lr: missing; train.augment.rotation: missing"


def test_a_key_that_is_there_twice_is_refused(file: Path) -> None:
    file.write_text(file.read_text().replace("  test: 200 ", "  train: 200 "))
    assert re.match(r'not YAML \(.*duplicate key "train"', complaint(file))


@pytest.mark.parametrize("text", ["tune: {a: b\n", "a: b: c", "\0", "&a [*b]", "a: !!python/x y"])
def test_what_is_no_yaml_is_said_to_be_none(file: Path, text: str) -> None:
    file.write_text(text)
    assert complaint(file).startswith("not YAML (")


@pytest.mark.parametrize("text", ["", "# nothing\n", "- seed\n- 3\n", "3\n"])
def test_a_file_without_sections_is_told_which(file: Path, text: str) -> None:
    file.write_text(text)
    assert complaint(file).startswith("holds no sections")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none.yaml").startswith("cannot be read (")
    assert complaint(tmp_path).startswith("cannot be read (")
    (tmp_path / "latin.yaml").write_bytes("# très\n".encode("latin-1"))
    assert complaint(tmp_path / "latin.yaml").startswith("cannot be read (")
