"""Networks and their classes in one file, and several networks and views in one model."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import pytest

from emotion_detection.console import UserError
from emotion_detection.data.dataset import Dataset
from emotion_detection.models import saving
from emotion_detection.models.layers import plain
from emotion_detection.settings.params import Network
from emotion_detection.stage import load_network
from tests.support.networks import KINDS, leaves, noise, same_weights, small

Make = Callable[..., Network]
CLASSES = ("très triste", "怒り", "happy")


@pytest.fixture(scope="module")
def model(network: Make) -> keras.Model:
    return plain(small(network()))


def members(network: Make, count: int) -> list[keras.Model]:
    """Return networks of the seeds 0, 1, ..., as they are saved."""
    return [plain(small(network(arch="plain"), seed=seed)) for seed in range(count)]


def views(images: np.ndarray, *, flips: bool, shifts: int) -> list[np.ndarray]:
    """Return what a person would average over, spelt out in NumPy."""
    found = [images]
    if shifts:
        wider = np.pad(images, ((0, 0), (shifts,) * 2, (shifts,) * 2, (0, 0)), mode="symmetric")
        ends = (0, 2 * shifts)
        found += [wider[:, top : top + 16, left : left + 16] for top in ends for left in ends]
    return found + [view[:, :, ::-1] for view in found] if flips else found


def mean(
    networks: Sequence[keras.Model], images: np.ndarray, *, flips: bool = False, shifts: int = 0
) -> np.ndarray:
    every = views(images, flips=flips, shifts=shifts)
    return np.mean([each(view).numpy() for each in networks for view in every], axis=0)


def test_the_classes_travel_with_the_network(
    tmp_path: Path, model: keras.Model, toy: Dataset
) -> None:
    path = tmp_path / "model.keras"
    saving.save(model, path, CLASSES, {"lineage": "its lineage"})
    expected = model.predict(toy.images[:5], verbose=0)

    assert saving.notes(path) == {"lineage": "its lineage"}
    loaded, classes = saving.load(path.rename(tmp_path / "other.keras"))
    assert classes == CLASSES
    np.testing.assert_array_equal(loaded.predict(toy.images[:5], verbose=0), expected)
    by_keras = keras.models.load_model(tmp_path / "other.keras")
    np.testing.assert_array_equal(by_keras.predict(toy.images[:5], verbose=0), expected)


def test_a_file_that_keras_saved_has_no_classes(tmp_path: Path, model: keras.Model) -> None:
    model.save(tmp_path / "model.keras")
    loaded, classes = saving.load(tmp_path / "model.keras")
    assert classes is None
    assert loaded.output_shape == (None, 3)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    inputs = keras.Input((16, 16, 3))
    outputs = keras.layers.Lambda(lambda images: images * 2)(inputs)
    saving.save(keras.Model(inputs, outputs), tmp_path / "model.keras", CLASSES)
    with pytest.raises(ValueError, match="safe_mode"):
        saving.load(tmp_path / "model.keras")


def test_a_network_file_that_is_missing_or_damaged_is_named_with_the_remedy(
    tmp_path: Path, model: keras.Model
) -> None:
    path = tmp_path / "member_1.keras"
    message = r"member_1\.keras: cannot be loaded .*dvc repro train"
    with pytest.raises(UserError, match=message):
        load_network(path, "train")
    path.write_bytes(b"PK\x03\x04 no model")
    with pytest.raises(UserError, match=message):
        load_network(path, "train")
    saving.save(model, path, CLASSES)
    assert same_weights(load_network(path, "train"), model)


def test_compiled_once_a_model_takes_any_number_of_images(model: keras.Model, toy: Dataset) -> None:
    probabilities = saving.compiled(model)
    for count in (1, 2, 7):
        found = probabilities(toy.images[:count])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, model(toy.images[:count]), rtol=1e-5, atol=1e-6)


def test_a_prediction_is_in_the_place_of_its_row_whatever_the_batches(
    model: keras.Model, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.array([104, 3, 99, 4, 4, 12, 0, 50])
    expected = model(toy.images[rows]).numpy()
    # All at once, in batches of three, one by one.
    for pixels in (saving.BATCH_PIXELS, 3 * 16 * 16, 1):
        monkeypatch.setattr(saving, "BATCH_PIXELS", pixels)
        found = saving.predict(model, toy.images, rows)
        assert found.shape == (8, 3)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_with_flips_an_image_and_its_mirror_image_have_one_answer(
    network: Make, tmp_path: Path, kind: str
) -> None:
    trained = plain(small(network(**KINDS[kind])))
    images = noise(6)
    model = saving.combined([trained], flips=True)
    saving.save(model, tmp_path / "model.keras", CLASSES)
    expected = mean([trained], images, flips=True)
    for found in (model, saving.load(tmp_path / "model.keras")[0]):
        np.testing.assert_allclose(found(images), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found(images[:, :, ::-1]), expected, rtol=1e-5, atol=1e-6)
    assert model.count_params() == trained.count_params()
    assert model.input_shape == trained.input_shape
    assert model.input.dtype == "uint8"


@pytest.mark.parametrize("flips", [False, True])
def test_with_shifts_an_answer_is_the_mean_over_the_image_and_its_four_corners(
    network: Make, tmp_path: Path, flips: bool
) -> None:
    trained = plain(small(network(arch="plain")))
    images = noise(6)
    saving.save(
        saving.combined([trained], flips=flips, shifts=2), tmp_path / "model.keras", CLASSES
    )
    found = saving.load(tmp_path / "model.keras")[0](images)
    expected = mean([trained], images, flips=flips, shifts=2)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(trained(images), expected, rtol=1e-5, atol=1e-6)


def test_shifts_may_be_as_wide_as_the_image(model: keras.Model) -> None:
    found = saving.combined([model], shifts=16)(noise(2))
    np.testing.assert_allclose(found, mean([model], noise(2), shifts=16), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("flips", "shifts"), [(False, 0), (True, 1)])
def test_an_ensemble_answers_with_the_mean_and_has_each_member_once(
    network: Make, tmp_path: Path, flips: bool, shifts: int
) -> None:
    images = noise(6)
    trained = members(network, 3)
    expected = mean(trained, images, flips=flips, shifts=shifts)
    model = saving.combined(trained, flips=flips, shifts=shifts)
    path = tmp_path / "model.keras"
    saving.save(model, path, CLASSES)
    loaded, classes = saving.load(path)
    assert classes == CLASSES
    for found in (model, loaded):
        answers = found(images)
        assert answers.dtype == "float32"
        np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-6)
        assert found.count_params() == 3 * trained[0].count_params()
        kernels = [layer for layer in leaves(found) if layer.name == "probabilities"]
        assert len(kernels) == 3
    saving.save(trained[0], tmp_path / "one.keras", CLASSES)

    def weights_size(file: Path) -> int:
        with zipfile.ZipFile(file) as opened:
            return opened.getinfo("model.weights.h5").file_size

    assert weights_size(path) < 3.5 * weights_size(tmp_path / "one.keras")


@pytest.mark.parametrize("flips", [False, True])
def test_a_temperature_divides_the_logits_of_the_mean(
    model: keras.Model, tmp_path: Path, flips: bool
) -> None:
    saving.save(
        saving.combined([model], flips=flips, temperature=0.5), tmp_path / "model.keras", CLASSES
    )
    loaded = saving.load(tmp_path / "model.keras")[0]
    before = mean([model], noise(6), flips=flips)
    np.testing.assert_allclose(
        loaded(noise(6)), before**2 / (before**2).sum(axis=1, keepdims=True), rtol=1e-4
    )
    assert saving.temperature(loaded) == 0.5
    assert saving.temperature(model) == 1
    assert len(saving.single(loaded).layers) == len(model.layers)


def test_one_network_without_other_views_stays_as_it_is(model: keras.Model) -> None:
    assert saving.combined([model]) is model


def test_the_trained_network_is_found_in_a_model_of_several_views(
    network: Make, model: keras.Model
) -> None:
    assert saving.single(model) is model
    assert saving.single(saving.combined([model], flips=True, shifts=1)) is model
    with pytest.raises(ValueError, match="ensemble of 2 networks"):
        saving.single(saving.combined(members(network, 2)))


def test_the_digest_changes_with_every_bit_of_the_weights(network: Make) -> None:
    model, same = small(network()), small(network())
    assert saving.digest(model) == saving.digest(same)
    weights = same.get_weights()
    weights[-1][0] = np.nextafter(weights[-1][0], np.float32(1))
    same.set_weights(weights)
    assert saving.digest(model) != saving.digest(same)
