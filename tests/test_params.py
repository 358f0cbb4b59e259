"""params.yaml: what is read, and what is said about a wrong value."""

import re
from pathlib import Path
from typing import Any

import pytest

from emotion_detection import params
from emotion_detection.console import UserError
from emotion_detection.models.network import Architecture, build

REPOSITORY = Path(__file__).parents[1] / "params.yaml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(REPOSITORY.read_text())
    return path


def put(file: Path, key: str, value: str) -> None:
    """Return `key` (section.name) another value, as a person does in an editor."""
    text, end = file.read_text(), 0
    for depth, part in enumerate(key.split(".")):
        line = re.compile(rf"^{'  ' * depth}{part}:(.*)$", re.MULTILINE).search(text, end)
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


def test_the_repositorys_own_file_is_valid() -> None:
    values = params.load(REPOSITORY)
    assert values.train.lr == 3e-3
    assert values.ingest.image_size == (48, 48)
    # The search begins with the network that is named there.
    space, network = values.tune.space, values.network
    assert set(network.filters) <= set(space.filters)
    assert len(network.dense_units) in space.dense_layers
    assert network.dense_dropout in space.dense_dropout


def put_recipe(file: Path, name: str) -> set[str]:
    """Change `file` as `$(cat recipes/NAME)` does, and give the keys."""
    changed = set()
    for line in (REPOSITORY.parent / "recipes" / name).read_text().splitlines():
        key, _, value = line.removeprefix("-S ").partition("=")
        put(file, key, value)
        changed.add(key)
    return changed


def test_finish_goes_on_from_the_network_of_best(file: Path) -> None:
    put_recipe(file, "best")
    first = params.load(file)
    put_recipe(file, "finish")
    put(file, "train.init_from", "models:/emotion-detection/2")
    then = params.load(file)
    assert (first.train.epochs, first.train.no_aug_epochs) == (52, 6)
    assert then.train.no_aug_epochs == then.train.epochs == 5
    # One that takes its weights, and is validated on images that it has not seen.
    of_no_weight = {"conv_dropout", "dense_dropout"}
    networks = [each.network.model_dump(exclude=of_no_weight) for each in (first, then)]
    assert networks[0] == networks[1]
    assert (first.seed, first.split) == (then.seed, then.split)


def test_the_notebooks_recipe_leaves_nothing_of_the_default_one(file: Path) -> None:
    changed = put_recipe(file, "notebook")
    values = params.load(file)
    architecture = Architecture(**dict(values.network))
    model = build(architecture, image_shape=(48, 48, 3), classes=7)
    assert (values.ingest.color_mode, model.count_params()) == ("rgb", 557_799)
    assert values.split.validation == "test"
    assert (values.train.lr, values.train.batch_size, values.train.epochs) == (5e-4, 256, 50)
    assert set(values.train.augment.model_dump(exclude={"fill_mode"}).values()) == {0}

    def keys(section: str, values: dict[str, Any]) -> set[str]:
        return {
            name
            for key, value in values.items()
            for name in (
                keys(f"{section}.{key}", value) if isinstance(value, dict) else {f"{section}.{key}"}
            )
        }

    for section in ("network", "train"):
        unused = {"train.warmup", "train.distillation.weight", "train.augment.fill_mode"}
        assert keys(section, values.model_dump()[section]) - unused <= changed


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


@pytest.mark.parametrize(("typed", "value"), [("010", 10), ("09", 9), ("0o10", 8), ("0x10", 16)])
def test_whole_numbers_are_those_of_yaml_1_2(file: Path, typed: str, value: int) -> None:
    put(file, "seed", typed)
    assert params.load(file).seed == value


@pytest.mark.parametrize("word", ["no", "on", "2013-01-01", "y"])
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
        ("train.epochs", "1_000", 'train.epochs = "1_000": must be a whole number'),
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
        ("train.reduce_lr_factor", "1.0", "train.reduce_lr_factor = 1.0: must be less than 1"),
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
        ("export.tolerance", "0", "export.tolerance = 0: must be more than 0"),
        ("tune.oracle", "grid", "tune.oracle = \"grid\": must be 'random', 'bayesian' or 'hyper"),
        ("ingest.source", "3", "ingest.source = 3: must be text"),
        ("ingest.source", "''", 'ingest.source = "": must not be empty'),
        ("ingest.image_size", "48", "ingest.image_size = 48: must be a list in [ ]"),
        ("ingest.image_size", "[48]", "ingest.image_size.1: missing"),
        (
            "ingest.image_size",
            "[48, 48, 3]",
            "ingest.image_size = [48, 48, 3]: has 3 entries and may have 2",
        ),
        ("network.filters", "[]", "network.filters = []: has 0 entries and needs at least 1"),
        ("network.filters", "[32, 8, 0, 8]", "network.filters.2 = 0: must be at least 1"),
        (
            "network.filters",
            "[32, 64]",
            "network: filters has 2 entries and kernel_sizes 4; each needs one a block",
        ),
        (
            "network.convolutions",
            "[2, 2, 4]",
            "network: filters has 4 entries and convolutions 3; each needs one a block",
        ),
        *(
            (
                "network.convolutions",
                written,
                f"network.convolutions = {written}: must be a whole number from 1 to 8, "
                "or a list of them, one a block",
            )
            for written in ("0", "9", "true", "2.0", "[]", "[2, 2, 0, 2]", '"2 2"')
        ),
        (
            "train.progressive_resizing.epochs",
            "21",
            "train: progressive_resizing.epochs = 21 is more than epochs = 20; lower it, or raise epochs",
        ),
        (
            "train.no_aug_epochs",
            "21",
            "train: no_aug_epochs = 21 is more than epochs = 20; lower it, or raise epochs",
        ),
        (
            "train.init_from",
            "models:/emotion-detection@champion",
            'train.init_from = "models:/emotion-detection@champion": must be a model in MLflow',
        ),
        (
            "train.members_from",
            "[models:/emotion-detection/latest]",
            'train.members_from.0 = "models:/emotion-detection/latest": must be a model in MLflow',
        ),
        *(
            (
                "train.distillation.teachers",
                f"[{teacher}]",
                f'train.distillation.teachers.0 = "{teacher}": must be a model in MLflow',
            )
            for teacher in (
                "models:/emotion-detection@champion",
                "models:/emotion-detection/latest",
                "models/model.keras",
            )
        ),
        ("network.conv_dropout", "1", "network.conv_dropout = 1: must be less than 1"),
        (
            "tune.space.dense_dropout",
            "[0.3, 1.5]",
            "tune.space.dense_dropout.1 = 1.5: must be less",
        ),
        ("seed", "-1", "seed = -1: must be at least 0"),
        ("seed", "3000000000", "seed = 3000000000: must be less than 2147483648"),
        ("profile", "10 #", "profile = 10: must be a section of samples_per_class"),
    ],
)
def test_a_wrong_value_is_named_with_what_may_be(
    file: Path, key: str, typed: str, message: str
) -> None:
    if key == "profile":
        file.write_text(re.sub(r"profile:\n.*\n", f"profile: {typed}\n", file.read_text()))
    else:
        put(file, key, typed)
    assert complaint(file).startswith(message)


def test_teachers_and_smaller_images_are_refused_together(file: Path) -> None:
    put(file, "train.distillation.teachers", "[models:/emotion-detection/2]")
    put(file, "train.progressive_resizing.epochs", "3")
    assert complaint(file) == (
        "train: progressive_resizing.epochs = 3: distillation.teachers see the images of a training, and "
        "know them in full size alone; set it to 0"
    )


def test_a_misspelt_key_is_named_with_the_one_that_was_meant(file: Path) -> None:
    file.write_text(file.read_text().replace("  trials: 10", "  trails: 10"))
    assert complaint(file) == "tune.trials: missing; tune.trails: unknown key; did you mean trials?"


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
    put(file, "tune.lr", "0")
    assert complaint(file) == (
        "tune.lr = 0: must be more than 0; train.epochs = 0: must be at least 1"
    )


def test_a_missing_section_is_named(file: Path) -> None:
    file.write_text(re.sub(r"profile:\n.*\n", "", file.read_text()))
    assert complaint(file) == "profile: missing"


@pytest.mark.parametrize("text", ["tune: {a: b\n", "a: b: c", "\0", "&a [*b]", "a: !!python/x y"])
def test_what_is_no_yaml_is_said_to_be_none(file: Path, text: str) -> None:
    file.write_text(text)
    assert complaint(file).startswith("not YAML (")


@pytest.mark.parametrize("text", ["", "# nothing\n", "- seed\n- 3\n", "3\n"])
def test_a_file_without_sections_is_told_which(file: Path, text: str) -> None:
    file.write_text(text)
    assert complaint(file).startswith(
        "holds no sections; expected seed, precision, deterministic, sample"
    )


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none.yaml").startswith("cannot be read (")
    assert complaint(tmp_path).startswith("cannot be read (")
    (tmp_path / "latin.yaml").write_bytes("# très\n".encode("latin-1"))
    assert complaint(tmp_path / "latin.yaml").startswith("cannot be read (")
