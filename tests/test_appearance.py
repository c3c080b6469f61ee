"""The strong recipe's changes of light, contrast, colour, sharpness and resolution, and the choice of a recipe."""

import dataclasses

import numpy as np
import pytest
from folders import dataset, record, refused, source_model, succeeded
from scipy import ndimage

from jaxtta import checkpoint
from jaxtta.data import appearance
from jaxtta.data.appearance import Appearance, change_appearance, multiplier
from jaxtta.data.augment import RECIPES

pytest_plugins = ("command_line",)

KINDS = [name.removesuffix("_probability") for name in vars(Appearance()) if name.endswith("_probability")]
NOTHING = Appearance(**{f"{kind}_probability": 0.0 for kind in KINDS})
EVERYTHING = Appearance(**{f"{kind}_probability": 1.0 for kind in KINDS})
SHAPES = [(24, 20, 3), (24, 20, 1), (24, 20, 4), (1, 9, 2), (10, 12, 14, 1), (10, 12, 14, 3), (1, 8, 8, 2)]


def generator(seed=0):
    return np.random.default_rng(seed)


def smooth(shape=(48, 40, 3), seed=0):
    """A smooth random image whose channels all differ, in [0.1, 0.9]."""
    image = generator(seed).random(shape, dtype=np.float32)
    image = ndimage.gaussian_filter(image, [3.0] * (len(shape) - 1) + [0.0])
    return (0.1 + 0.8 * (image - image.min()) / np.ptp(image)).astype(np.float32)


def axes(image):
    return tuple(range(image.ndim - 1))


def changed(image, seed=0, settings=EVERYTHING):
    return change_appearance(generator(seed), image, settings, axes=axes(image))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_number_of_axes_and_channels(shape):
    image = generator().random(shape, dtype=np.float32)
    image.setflags(write=False)
    for settings in (EVERYTHING, Appearance()):
        for seed in range(6):
            result = changed(image, seed, settings)
            assert result.shape == shape and result.dtype == np.float32 and np.isfinite(result).all()
    np.testing.assert_array_equal(changed(image, 3), changed(image, 3))
    assert not np.array_equal(changed(image, 3), changed(image, 4))
    assert changed(image, settings=NOTHING) is image


@pytest.mark.parametrize("kind", KINDS)
def test_each_change_can_be_had_alone(kind):
    """And is drawn as often as is said."""
    image = smooth()
    alone = dataclasses.replace(NOTHING, **{f"{kind}_probability": 1.0})
    assert all(not np.allclose(changed(image, seed, alone), image, atol=1e-5) for seed in range(4))
    seldom = dataclasses.replace(NOTHING, **{f"{kind}_probability": 0.3})
    made = np.mean([changed(image, seed, seldom) is not image for seed in range(200)])
    assert 0.15 < made < 0.45


def test_channels_share_their_number_half_of_the_time():
    image = np.ones((8, 8, 3), np.float32) * np.float32(0.5)
    alone = dataclasses.replace(NOTHING, offset_probability=1.0)
    moved = np.array([changed(image, seed, alone)[0, 0] - 0.5 for seed in range(200)])
    shared = np.ptp(moved, axis=1) < 1e-6
    assert 0.35 < shared.mean() < 0.65
    assert np.abs(moved).max() <= 0.2 + 1e-6 and np.abs(moved).max() > 0.19


def test_the_field_of_light_is_smooth_and_bounded():
    for space in ((64, 48), (12, 40, 30), (1, 16), (1, 1)):
        field = appearance.polynomial_field(generator(1), space)
        assert field.shape == space and field.dtype == np.float32
        assert abs(field.mean()) < 1e-5 and np.abs(field).max() <= 1 + 1e-6
    rows, columns = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 48), indexing="ij")
    terms = [rows**i * columns**j for i in range(4) for j in range(4) if i + j <= 3]
    field = appearance.polynomial_field(generator(2), (64, 48))
    design = np.stack(terms, axis=-1).reshape(-1, len(terms))
    rest = field.ravel() - design @ np.linalg.lstsq(design, field.ravel(), rcond=None)[0]
    assert np.abs(rest).max() < 1e-5 and np.abs(field).max() == pytest.approx(1, abs=1e-6)


def test_light_multiplies():
    image, field = smooth(), appearance.polynomial_field(generator(), (48, 40))
    lit = appearance.light(image, field, np.float32([0.0, 0.5, 1.0]))
    np.testing.assert_array_equal(lit[..., 0], image[..., 0])
    np.testing.assert_allclose(lit[..., 1] / image[..., 1], np.exp(0.5 * field), rtol=1e-5)
    assert np.max(np.abs(np.log(lit / image))) == pytest.approx(1.0, abs=1e-4)


def test_contrast_is_about_the_mean_and_keeps_the_range():
    image = smooth()
    half, double = (appearance.contrast(image, np.full(3, factor, np.float32)) for factor in (0.5, 2.0))
    mean = image.mean((0, 1))
    np.testing.assert_allclose(half, mean + 0.5 * (image - mean), atol=1e-6)
    np.testing.assert_allclose(double, np.clip(2 * image - mean, image.min((0, 1)), image.max((0, 1))), atol=1e-6)


def test_gamma_bends_between_the_ends_and_one_changes_nothing():
    image = smooth()
    np.testing.assert_allclose(appearance.gamma(image, np.ones(3, np.float32)), image, atol=1e-6)
    bent = appearance.gamma(image, np.float32([0.5, 1.0, 2.0]))
    for ends in (np.min, np.max):
        np.testing.assert_allclose(ends(bent, axis=(0, 1)), ends(image, axis=(0, 1)), atol=1e-6)
    inside = image[..., 0] < image[..., 0].max()
    assert np.all((bent >= image - 1e-6)[..., 0]) and np.all((bent <= image + 1e-6)[..., 2]) and inside.any()
    low, extent = image[..., 2].min(), np.ptp(image[..., 2])
    np.testing.assert_allclose(bent[..., 2], low + (image[..., 2] - low) ** 2 / extent, atol=1e-6)
    # Of the inverted image, dark values hardly change and bright ones do.
    inverted = 1 - appearance.gamma(1 - image, np.full(3, 2.0, np.float32))
    np.testing.assert_allclose(-appearance.gamma(-image, np.full(3, 2.0, np.float32)), inverted, atol=1e-5)
    assert np.all(inverted >= image - 1e-6)


def test_saturation_moves_colours_from_grey_and_is_for_pictures_of_three_channels():
    image = smooth()
    np.testing.assert_allclose(appearance.saturation(image, 1.0), image, atol=1e-6)
    np.testing.assert_allclose(np.ptp(appearance.saturation(image, 0.0), axis=-1), 0, atol=1e-6)
    doubled = appearance.saturation(image, 2.0)
    np.testing.assert_allclose(doubled.mean(-1), image.mean(-1), atol=1e-6)
    np.testing.assert_allclose(np.ptp(doubled, axis=-1), 2 * np.ptp(image, axis=-1), atol=1e-5)
    alone = dataclasses.replace(NOTHING, saturation_probability=1.0)
    for shape in ((8, 8, 1), (8, 8, 2), (8, 8, 8, 3)):
        other = smooth(shape)
        assert changed(other, settings=alone) is other


def test_blur_and_sharpening_undo_and_stress_details():
    image = smooth() + 0.05 * generator().standard_normal((48, 40, 3), dtype=np.float32)

    def details(x):
        return (x - ndimage.gaussian_filter(x, (1.0, 1.0, 0.0))).std()

    blurred = appearance.blur(image, np.float32([1.0, 1.0, 1.0]), axes=(0, 1))
    np.testing.assert_allclose(
        blurred, ndimage.gaussian_filter(image, (1, 1, 0), mode="nearest", truncate=3), atol=1e-6
    )
    sharp = appearance.sharpen(image, np.ones(3, np.float32), axes=(0, 1))
    assert details(blurred) < 0.6 * details(image) < 0.6 * details(sharp) / 1.3
    assert np.all(sharp.max((0, 1)) <= image.max((0, 1))) and np.all(sharp.min((0, 1)) >= image.min((0, 1)))
    rows = appearance.blur(image, np.full(3, 2.0, np.float32), axes=(1,))
    np.testing.assert_allclose(rows, ndimage.gaussian_filter1d(image, 2, 1, mode="nearest", truncate=3), atol=1e-6)


def test_what_is_coarsened_keeps_ramps_and_loses_details():
    ramp = np.repeat(np.linspace(0, 1, 33, dtype=np.float32)[:, None, None], 20, axis=1)
    np.testing.assert_allclose(appearance.coarsen(ramp, 0.5, axes=(0, 1)), ramp, atol=0.02)
    image = generator().random((40, 36, 2), dtype=np.float32)
    coarse = appearance.coarsen(image, 0.5, axes=(0, 1))
    assert coarse.shape == image.shape and coarse.std() < 0.9 * image.std()
    np.testing.assert_array_equal(appearance.coarsen(image, 1.0, axes=(0, 1)), image)
    # Between 18 pixels that are left there are straight lines.
    kept = appearance.coarsen(image, 0.5, axes=(1,))[0, :, 0]
    assert np.sum(np.abs(np.diff(kept, 2)) > 1e-5) <= 2 * 18
    assert appearance.coarsen(image[:1], 0.1, axes=(0,)).shape == (1, 36, 2)


def test_factors_around_one_are_below_it_half_of_the_time():
    rng = generator()
    drawn = np.array([multiplier(rng, 0.5, 3.0) for _ in range(500)])
    assert 0.42 < np.mean(drawn < 1) < 0.58 and drawn.min() >= 0.5 and drawn.max() <= 3.0


TINY = ("--architecture", "unet", "--features", "4,8", "--size", "16", "--batch", 2, "--quiet", "--heads", "none")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images, masks and two sources that no test changes."""
    root = tmp_path_factory.mktemp("appearance")
    for seed in (0, 1):
        source_model(root / f"source{seed}", heads=("segmentation",), seed=seed)
    return dataset(root, 4)


@pytest.fixture
def data(place):
    return ["--images", place / "images", "--masks", place / "masks"]


@pytest.mark.parametrize("name", RECIPES)
def test_train_takes_a_recipe_by_its_name_and_records_it(command, data, tmp_path, name):
    call = ["train", *data, *TINY, "--mask-values", "fundus", "--epochs", 2, "--validation", 0]
    succeeded(command(*call, "--augmentation", name, "--out", tmp_path / name))
    assert record(tmp_path / name)["augmentation"] == name
    assert checkpoint.load(tmp_path / name / "best").manifest["provenance"]["recipe"]["augmentation"] == name
    refused(
        command(*call, "--augmentation", "strange", "--out", tmp_path / "bad"),
        "strange",
        *RECIPES,
        out=tmp_path / "bad",
    )


@pytest.mark.slow
def test_recipes_differ_and_released_is_the_default(command, data, tmp_path):
    call = ["train", *data, *TINY, "--mask-values", "fundus", "--epochs", 1, "--validation", 0]
    losses = {}
    for name, more in [("default", ()), *((name, ("--augmentation", name)) for name in RECIPES)]:
        succeeded(command(*call, *more, "--seed", 3, "--out", tmp_path / name))
        losses[name] = record(tmp_path / name)["last"]["loss"]
    assert losses["default"] == losses["released"] and len(set(losses.values())) == 3


@pytest.mark.slow
def test_finetune_and_rank_take_it_too(command, data, place, tmp_path):
    tuned = ["finetune", "--source", place / "source0", *data, "--epochs", 1, "--quiet", "--augmentation"]
    succeeded(command(*tuned, "strong", "--out", tmp_path / "tuned"))
    assert record(tmp_path / "tuned")["augmentation"] == "strong"
    refused(command(*tuned, "no", "--out", tmp_path / "bad"), "augmentation", *RECIPES, out=tmp_path / "bad")
    ranked = ["rank", "--sources", place / "source0", place / "source1", *data, "--quiet", "--augmentation"]
    succeeded(command(*ranked, "strong", "--out", tmp_path / "ranked"))
    assert record(tmp_path / "ranked")["recipe"]["augmentation"] == "strong"
    refused(command(*ranked, "no", "--out", tmp_path / "bad"), "augmentation", *RECIPES, out=tmp_path / "bad")


@pytest.mark.parametrize("name", ["train", "finetune", "rank"])
def test_the_help_names_every_recipe(command, name):
    said = command(name, "--help").out
    assert "--augmentation " in said and all(recipe in said for recipe in RECIPES)
