"""Training augmentation: what moves together, what stays, how often and how far."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from jaxtta.core import InputError
from jaxtta.data import augment as module
from jaxtta.data.appearance import Appearance, multiplier
from jaxtta.data.augment import RELEASED, STRONG, Augmentation, augment

NOTHING = Augmentation(
    elastic_probability=0.0,
    rotation_probability=0.0,
    scale_probability=0.0,
    mirror_probability=0.0,
    brightness_probability=0.0,
    noise_probability=0.0,
)
EVERYTHING = Augmentation(
    elastic_probability=1.0,
    rotation_probability=1.0,
    scale_probability=1.0,
    mirror_probability=1.0,
    brightness_probability=1.0,
    noise_probability=1.0,
)
SETTINGS = pytest.mark.parametrize(
    "settings", [RELEASED, STRONG, EVERYTHING, NOTHING], ids=["released", "strong", "everything", "nothing"]
)


def only(**changes):
    return dataclasses.replace(NOTHING, **changes)


def disc(height=96, width=80, centre=(40.0, 45.0), radius=18.0):
    """A bright disc with a brighter cup inside on a dark ramp, and its label map 0, 1, 2."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - centre[0], x - centre[1])
    labels = (distance < radius).astype(np.uint8) + (distance < radius / 2)
    ramp = 0.1 * x / width
    image = np.stack([ramp + 0.4 * labels, ramp + 0.3 * labels, ramp + 0.2 * labels], axis=-1)
    return ((image - image.min()) / (image.max() - image.min())).astype(np.float32), labels


def generator(seed=0):
    return np.random.default_rng(seed)


def overlap(first, second):
    return 2 * np.sum(first & second) / (np.sum(first) + np.sum(second))


@SETTINGS
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_dtypes_and_range_hold_and_inputs_are_left_alone(settings, channels):
    image, labels = disc()
    image = image[..., :channels]
    before = image.copy(), labels.copy()
    image.setflags(write=False)
    labels.setflags(write=False)
    for seed in range(10):
        changed, moved = augment(generator(seed), image, labels, settings=settings)
        assert changed.shape == image.shape and changed.dtype == np.float32
        assert moved.shape == labels.shape and moved.dtype == labels.dtype
        assert changed.min() >= 0.0 and changed.max() <= 1.0
        assert not np.shares_memory(changed, image) and not np.shares_memory(moved, labels)
        changed[:] = 0.0
        moved[:] = 0
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_the_generator_decides_everything():
    image, labels = disc()
    first, again, other = (augment(generator(seed), image, labels, settings=EVERYTHING) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_probabilities_of_zero_change_nothing():
    image, labels = disc()
    for seed in range(5):
        changed, moved = augment(generator(seed), 0.2 + 0.5 * image, labels, settings=NOTHING)
        np.testing.assert_array_equal(changed, 0.2 + 0.5 * image)
        np.testing.assert_array_equal(moved, labels)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("change", ["elastic_probability", "rotation_probability", "scale_probability", "all"])
def test_image_and_labels_move_together(change, order):
    image, labels = disc()
    settings = EVERYTHING if change == "all" else only(**{change: 1.0})
    settings = dataclasses.replace(settings, order=order, brightness_probability=0.0, noise_probability=0.0)
    moved_once = False
    for seed in range(8):
        changed, moved = augment(generator(seed), image, labels, settings=settings)
        for label, threshold in ((1, 0.3), (2, 0.65)):
            assert overlap(changed[..., 0] > threshold, moved >= label) > 0.93
        assert set(np.unique(moved)) <= {0, 1, 2}
        moved_once |= not np.array_equal(moved, labels)
    assert moved_once


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_labels_stay_within_their_values(dtype):
    image, _ = disc()
    labels = np.random.default_rng(0).choice([0, 7, 200], image.shape[:2]).astype(dtype)
    for seed in range(5):
        moved = augment(generator(seed), image, labels, settings=EVERYTHING)[1]
        assert set(np.unique(moved)) <= {0, 7, 200} and moved.dtype == dtype


def test_mirroring_reverses_both_axes_and_keeps_every_value():
    image, labels = disc()
    changed, moved = augment(generator(), image, labels, settings=only(mirror_probability=1.0))
    np.testing.assert_array_equal(changed, image[::-1, ::-1])
    np.testing.assert_array_equal(moved, labels[::-1, ::-1])


def test_mirroring_after_a_rotation_is_the_mirrored_rotation():
    image, labels = disc()
    turned, turned_labels = augment(generator(5), image, labels, settings=only(rotation_probability=1.0))
    both = only(rotation_probability=1.0, mirror_probability=1.0)
    changed, moved = augment(generator(5), image, labels, settings=both)
    np.testing.assert_array_equal(changed, turned[::-1, ::-1])
    np.testing.assert_array_equal(moved, turned_labels[::-1, ::-1])


def test_rotation_turns_about_the_centre_by_at_most_its_angle():
    image, labels = disc(101, 121, centre=(50.0, 95.0), radius=8.0)
    angles = []
    for seed in range(40):
        moved = augment(generator(seed), image, labels, settings=only(rotation_probability=1.0))[1]
        y, x = np.array(ndimage.center_of_mass(moved > 0)) - (50.0, 60.0)
        assert abs(np.hypot(y, x) - 35.0) < 0.5
        angles.append(np.rad2deg(np.arctan2(y, x)))
    assert max(np.abs(angles)) < 15.5
    assert min(angles) < -9 and max(angles) > 9


def test_scale_stays_in_its_range_half_of_it_on_either_side():
    image, labels = disc(121, 121, centre=(60.0, 60.0), radius=30.0)
    areas = []
    for seed in range(60):
        moved = augment(generator(seed), image, labels, settings=only(scale_probability=1.0))[1]
        assert np.hypot(*(np.array(ndimage.center_of_mass(moved > 0)) - 60.0)) < 0.2
        areas.append(np.sum(moved > 0))
    factors = np.sqrt(np.sum(labels > 0) / np.array(areas))
    assert 0.74 < factors.min() < 0.8 and 1.2 < factors.max() < 1.26
    assert 0.25 < np.mean(factors < 1) < 0.75


def test_the_elastic_field_is_smoothed_noise_about_zero_and_reaches_as_far_as_its_smoothing_allows():
    space, deviation = (64, 97), (0.1 * 64, 0.1 * 97)
    for seed in range(5):
        field = module._displacement(generator(seed), space, (0.1, 0.1))
        rng = generator(seed)
        rng.uniform(0.1, 0.1)
        for axis in range(2):
            noise = ndimage.gaussian_filter(rng.uniform(-1.0, 1.0, space), deviation, mode="wrap", truncate=8.0)
            largest = rng.uniform(deviation[axis] / 8, deviation[axis] / 2)
            expected = noise * largest / np.abs(noise).max()
            np.testing.assert_allclose(field[axis], expected - expected.mean(), atol=1e-9)
            assert deviation[axis] / 8 <= largest <= deviation[axis] / 2


def test_an_elastic_deformation_without_extent_moves_nothing():
    image, labels = disc()
    settings = only(elastic_probability=1.0, elastic_extent=(0.0, 0.0))
    changed, moved = augment(generator(), image, labels, settings=settings)
    np.testing.assert_allclose(changed, image, atol=1e-5)
    np.testing.assert_array_equal(moved, labels)


def test_brightness_scales_each_channel_and_the_image_is_rescaled_not_clipped():
    image, labels = disc()
    assert np.all(image.max((0, 1)) > 0)
    changed, moved = augment(generator(1), image, labels, settings=only(brightness_probability=1.0))
    np.testing.assert_array_equal(moved, labels)
    # Up to one common scale, channels are multiplied: ratios within a channel hold (the darkest value is 0).
    dark, bright = image[40, 5], image[40, 45]
    np.testing.assert_allclose(changed[40, 5] / changed[40, 45], dark / bright, rtol=1e-5)
    factors = changed[40, 45] / bright
    assert factors.max() / factors.min() < 1.5 / 0.7 + 1e-6
    assert np.ptp(factors) > 0.01
    assert np.isclose(changed.max(), 1.0) and np.sum(changed[..., 0] == changed[..., 0].max()) < 10


def test_noise_is_added_within_its_range():
    image, labels = disc()
    settings = only(noise_probability=1.0, noise=(0.02, 0.02))
    changed, moved = augment(generator(1), image, labels, settings=settings)
    np.testing.assert_array_equal(moved, labels)
    slope, offset = np.polyfit(image.ravel(), changed.ravel(), 1)
    residual = changed.ravel() - slope * image.ravel() - offset
    assert abs(residual.std() / slope - 0.02) < 0.001


def test_changes_come_at_their_released_rates():
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = np.linspace(0.0, 1.0, 36, dtype=np.float32).reshape(3, 4, 3)
    rng, rounds = generator(), 6000
    spatial, coloured = 0, 0
    for _ in range(rounds):
        changed, moved = augment(rng, image, labels)
        mirrored = [(labels[::v, ::h], image[::v, ::h]) for v in (1, -1) for h in (1, -1)]
        same = [np.array_equal(changed, pixels) for _, pixels in mirrored]
        coloured += not any(same)
        spatial += not any(np.array_equal(moved, turned) for turned, _ in mirrored)
    expected = 1 - 0.9**3 * 0.85**2
    assert abs(coloured / rounds - expected) < 4 * np.sqrt(expected * (1 - expected) / rounds)
    assert spatial / rounds < 1 - 0.9**3  # a small rotation may leave twelve labels where they were
    drawn = [module._coordinates(rng, (3, 4), Augmentation()) is not None for _ in range(rounds)]
    assert abs(np.mean(drawn) - (1 - 0.9**3)) < 4 * np.sqrt(0.271 * 0.729 / rounds)


@pytest.mark.parametrize("constant", [0.0, 0.5])
def test_constant_images_stay_finite(constant):
    image, labels = np.full((16, 12, 3), constant, np.float32), np.zeros((16, 12), np.uint8)
    for seed in range(5):
        for settings in (EVERYTHING, only(brightness_probability=1.0), only(elastic_probability=1.0)):
            assert np.all(np.isfinite(augment(generator(seed), image, labels, settings=settings)[0]))


@pytest.mark.parametrize("shapes", [((8, 8, 3), (8, 9)), ((8, 8), (8, 8)), ((8, 8, 3), (8, 8, 1))])
def test_shapes_that_do_not_go_together_are_named(shapes):
    image, labels = np.zeros(shapes[0], np.float32), np.zeros(shapes[1], np.uint8)
    with pytest.raises(InputError, match=r"labels of shape .*give \[height, width, channels\]") as error:
        augment(generator(), image, labels)
    assert "\n" not in str(error.value)


def ball(shape=(40, 44, 36), centre=(19.0, 23.0, 17.0), radius=11.0):
    """The disc's volume: a bright ball with a brighter core on a dark ramp, `[depth, height, width, 2]`."""
    distance = np.sqrt(sum((x - c) ** 2 for x, c in zip(np.indices(shape), centre)))
    labels = (distance < radius).astype(np.uint8) + (distance < radius / 2)
    ramp = 0.1 * np.indices(shape)[2] / shape[2]
    image = np.stack([ramp + 0.45 * labels, ramp + 0.3 * labels], axis=-1)
    return ((image - image.min()) / (image.max() - image.min())).astype(np.float32), labels


@SETTINGS
@pytest.mark.parametrize("shape", [(20, 24, 28), (5, 40, 32), (1, 16, 16)], ids=["cube", "thick", "one slice"])
def test_volumes_keep_shapes_dtypes_and_range_and_inputs_are_left_alone(settings, shape):
    image = generator().random((*shape, 2), dtype=np.float32)
    labels = generator().choice(np.array([0, 7, 200], np.int32), shape)
    before = image.copy(), labels.copy()
    image.setflags(write=False)
    labels.setflags(write=False)
    for seed in range(5):
        changed, moved = augment(generator(seed), image, labels, settings=settings)
        assert changed.shape == image.shape and changed.dtype == np.float32
        assert moved.shape == labels.shape and moved.dtype == labels.dtype
        assert changed.min() >= 0.0 and changed.max() <= 1.0
        assert set(np.unique(moved)) <= {0, 7, 200}
        assert not np.shares_memory(changed, image) and not np.shares_memory(moved, labels)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(labels, before[1])


@pytest.mark.parametrize("change", ["elastic_probability", "rotation_probability", "scale_probability", "all"])
def test_volume_and_labels_move_together(change):
    image, labels = ball()
    settings = EVERYTHING if change == "all" else only(**{change: 1.0})
    settings = dataclasses.replace(settings, brightness_probability=0.0, noise_probability=0.0)
    moved_once = False
    for seed in range(4):
        changed, moved = augment(generator(seed), image, labels, settings=settings)
        for label, threshold in ((1, 0.3), (2, 0.7)):
            assert overlap(changed[..., 0] > threshold, moved >= label) > 0.9
        moved_once |= not np.array_equal(moved, labels)
    assert moved_once


def test_mirroring_reverses_all_three_axes_and_keeps_every_value():
    image, labels = ball()
    changed, moved = augment(generator(), image, labels, settings=only(mirror_probability=1.0))
    np.testing.assert_array_equal(changed, image[::-1, ::-1, ::-1])
    np.testing.assert_array_equal(moved, labels[::-1, ::-1, ::-1])


def test_each_axis_of_a_volume_is_mirrored_on_its_own():
    labels = np.arange(27).reshape(3, 3, 3)
    image = (labels[..., None] / 26).astype(np.float32)
    rng, seen = generator(), []
    for _ in range(800):
        moved = augment(rng, image, labels, settings=only(mirror_probability=0.5))[1]
        seen.append(tuple(moved[0, 0, 0] // 3**axis % 3 == 2 for axis in (2, 1, 0)))
    counts = [seen.count(turn) for turn in set(seen)]
    assert len(counts) == 8 and min(counts) > 60 and max(counts) < 140


def test_a_volume_turns_about_all_three_axes_as_in_batchgenerators():
    x, y, z = np.deg2rad([generator(3).uniform(-15.0, 15.0, 3)][0])
    about_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    about_y = [[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]]
    about_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    matrix = module._rotation(generator(3), 3, 15.0)
    np.testing.assert_allclose(matrix, np.array(about_z) @ about_y @ about_x, atol=1e-15)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-15)


def test_rotation_of_a_volume_keeps_the_distance_to_the_centre_and_moves_along_every_axis():
    image, labels = ball((41, 41, 41), centre=(28.0, 29.0, 11.0), radius=5.0)
    moves = []
    for seed in range(12):
        moved = augment(generator(seed), image, labels, settings=only(rotation_probability=1.0))[1]
        moves.append(np.array(ndimage.center_of_mass(moved > 0)) - 20.0)
    np.testing.assert_allclose(np.linalg.norm(moves, axis=1), np.linalg.norm([8, 9, -9]), atol=0.4)
    assert np.all(np.std(moves, axis=0) > 0.8)


def test_scale_of_a_volume_acts_on_all_three_axes():
    space = (11, 16, 13)
    centred = np.indices(space) - (np.array(space).reshape(3, 1, 1, 1) - 1) / 2
    for seed in range(6):
        coordinates = module._coordinates(generator(seed), space, only(scale_probability=1.0))
        rng = generator(seed)
        rng.random(3)
        factor = multiplier(rng, 0.75, 1.25)
        np.testing.assert_allclose(coordinates - np.indices(space) + centred, factor * centred, atol=1e-12)


def test_the_elastic_field_of_a_volume_is_smoothed_noise():
    space = (24, 33, 40)
    field = module._displacement(generator(1), space, (0.1, 0.1))
    rng = generator(1)
    rng.uniform(0.1, 0.1)
    for axis, length in enumerate(space):
        deviation = tuple(0.1 * other for other in space)
        noise = ndimage.gaussian_filter(rng.uniform(-1.0, 1.0, space), deviation, mode="wrap", truncate=8.0)
        largest = rng.uniform(0.1 * length / 8, 0.1 * length / 2)
        expected = noise * largest / np.abs(noise).max()
        np.testing.assert_allclose(field[axis], expected - expected.mean(), atol=1e-9)


@pytest.mark.parametrize(
    "space, fixed",
    [
        ((10, 30, 30), ()),
        ((9, 30, 30), (0,)),
        ((30, 9, 30), (1,)),
        ((30, 29, 9), (2,)),
        ((64, 64, 64), ()),
        ((4, 400), ()),
    ],
)
def test_a_volume_is_a_stack_of_thick_slices_from_more_than_three_to_one(space, fixed):
    assert module.out_of_plane(space) == fixed


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order", [1, 3])
def test_thick_slices_all_move_as_one_image_does(axis, order):
    image, labels = disc()
    spatial = only(elastic_probability=1.0, rotation_probability=1.0, scale_probability=1.0)
    settings = dataclasses.replace(spatial, order=order)
    stack, stacked = np.stack([image] * 6, axis), np.stack([labels] * 6, axis)
    changed, moved = augment(generator(2), stack, stacked, settings=settings)
    expected, expected_labels = augment(generator(2), image, labels, settings=settings)
    assert not np.array_equal(expected_labels, labels)
    for part in range(6):
        np.testing.assert_allclose(np.take(changed, part, axis), expected, atol=1e-5)
        np.testing.assert_array_equal(np.take(moved, part, axis), expected_labels)


def test_slices_of_a_thick_stack_do_not_mix():
    labels = np.zeros((6, 64, 64), np.uint8)
    labels[2] = 1
    image = labels[..., None].astype(np.float32)
    for seed in range(5):
        settings = dataclasses.replace(EVERYTHING, mirror_probability=0.0, noise_probability=0.0)
        changed, moved = augment(generator(seed), image, labels, settings=settings)
        assert set(np.nonzero(moved)[0]) == {2}
        assert changed[2].max() > 0.99
        others = np.delete(changed, 2, axis=0)
        np.testing.assert_allclose(others, others.flat[0], atol=0.01)


def test_brightness_and_noise_of_a_volume_leave_its_labels():
    image, labels = ball()
    changed, moved = augment(generator(1), image, labels, settings=only(brightness_probability=1.0))
    np.testing.assert_array_equal(moved, labels)
    np.testing.assert_allclose(
        changed[19, 23, 3] / changed[19, 23, 17], image[19, 23, 3] / image[19, 23, 17], rtol=1e-5
    )
    noisy, moved = augment(generator(1), image, labels, settings=only(noise_probability=1.0, noise=(0.02, 0.02)))
    np.testing.assert_array_equal(moved, labels)
    slope, offset = np.polyfit(image.ravel(), noisy.ravel(), 1)
    assert abs((noisy - slope * image - offset).std() / slope - 0.02) < 0.001


@pytest.mark.parametrize(
    "shapes",
    [((8, 8, 8, 1), (8, 8, 9)), ((8, 8, 8, 1), (8, 8)), ((8, 8, 8), (8, 8, 8)), ((2, 8, 8, 8, 1), (2, 8, 8, 8))],
)
def test_shapes_of_volumes_that_do_not_go_together_are_named(shapes):
    image, labels = np.zeros(shapes[0], np.float32), np.zeros(shapes[1], np.uint8)
    with pytest.raises(InputError, match=r"labels of shape .*or \[depth, height, width, channels\]") as error:
        augment(generator(), image, labels)
    assert "\n" not in str(error.value)


def waves(shape):
    """A ball of two labels in a fixed pattern, for comparing figures."""
    places, middle = np.indices(shape[:-1]), np.array(shape[:-1]).reshape(-1, *[1] * (len(shape) - 1)) / 2
    distance = np.sum((places - middle) ** 2, axis=0)
    labels = (distance < 25).astype(np.uint8) + (distance < 9)
    pattern = np.cos(np.arange(np.prod(shape)).reshape(shape) ** 1.5)
    return (0.3 * labels[..., None] + 0.1 * pattern + 0.2).astype(np.float32), labels


# By the code as it was before there was a strong recipe, which drew and computed the very same: shape, seed; a weighted
# sum of the image, one of the labels, and what the generator gives next.
FIGURES = [
    ((24, 20, 3), 0, -1.53217, 23500, 0.935072),
    ((24, 20, 3), 1, 1.016651, 23406, 0.409199),
    ((24, 20, 3), 3, 0.87872, 30284, 0.6249),
    ((24, 20, 3), 16, 0.253427, 23445, 0.268286),
    ((24, 20, 3), 20, 1.870747, 23406, 0.354247),
    ((24, 20, 3), 25, -1.248069, 21526, 0.121281),
    ((24, 20, 3), 53, -0.622786, 17701, 0.093544),
    ((8, 14, 12, 2), 0, 2.234263, 404586, 0.815854),
    ((8, 14, 12, 2), 3, 1.45121, 344759, 0.77044),
    ((8, 14, 12, 2), 11, 3.845328, 338646, 0.439893),
    ((8, 14, 12, 2), 43, 3.061266, 259637, 0.278534),
    ((8, 14, 12, 2), 53, 2.785678, 411611, 0.868106),
    ((8, 14, 12, 2), 56, -4.183292, 362697, 0.395385),
    ((4, 16, 20, 1), 3, 0.98174, 210575, 0.92025),
    ((4, 16, 20, 1), 22, -0.492936, 208200, 0.050141),
    ((4, 16, 20, 1), 25, 4.015518, 219800, 0.529459),
    ((4, 16, 20, 1), 43, 0.815351, 204590, 0.891902),
]


@pytest.mark.parametrize("shape, seed, pixels, places, following", FIGURES)
def test_the_released_recipe_stays_what_it_was(shape, seed, pixels, places, following):
    rng = generator(seed)
    changed, moved = augment(rng, *waves(shape))
    assert np.sum(np.cos(np.arange(changed.size)) * changed.ravel()) == pytest.approx(pixels, abs=1e-4)
    assert np.sum(np.arange(moved.size) * moved.ravel()) == places
    assert rng.random() == pytest.approx(following, abs=1e-6)


STILL = dataclasses.replace(STRONG, elastic_probability=0.0, rotation_probability=0.0, scale_probability=0.0)


def test_the_strong_recipe_goes_further_than_the_released_one():
    for field in dataclasses.fields(Augmentation):
        released, strong = getattr(RELEASED, field.name), getattr(STRONG, field.name)
        if field.name in ("scale", "brightness"):
            assert strong[0] < released[0] and strong[1] > released[1]
        elif field.name not in ("elastic_extent", "mirror_probability", "order", "appearance"):
            assert strong > released
    image, labels = disc()
    moved = [augment(generator(seed), image, labels, settings=STRONG)[1] for seed in range(40)]
    same = [any(np.array_equal(m, labels[::v, ::h]) for v in (1, -1) for h in (1, -1)) for m in moved]
    assert 0.15 < np.mean(same) < 0.55


@pytest.mark.parametrize("sample", [disc, ball])
def test_a_photograph_keeps_its_range_and_a_window_its_own(sample):
    """A dark window stays dark: its range is that of the volume it was cut from."""
    image, labels = sample()
    settings = dataclasses.replace(STILL, noise_probability=0.0)
    looks = 0
    for seed in range(12):
        for low, high in ((0.0, 1.0), (0.1, 0.3)):
            given = (low + (high - low) * image).astype(np.float32)
            changed, moved = augment(generator(seed), given, labels, settings=settings)
            assert changed.min() == pytest.approx(low, abs=1e-6) and changed.max() == pytest.approx(high, abs=1e-6)
            assert np.sum(moved) == np.sum(labels)
            looks += not np.allclose(np.sort(changed, axis=None), np.sort(given, axis=None), atol=1e-3)
    assert looks > 12
    noisy = dataclasses.replace(STILL, brightness_probability=0.0, noise_probability=1.0, noise=(0.05, 0.05))
    noisy = dataclasses.replace(noisy, appearance=NO_LOOK)
    changed = augment(generator(), 0.5 + 0.1 * image, labels, settings=noisy)[0]
    assert 0.25 < changed.min() < 0.48 and 0.62 < changed.max() < 0.85


NO_LOOK = Appearance(**{f.name: 0.0 for f in dataclasses.fields(Appearance) if f.name.endswith("_probability")})


def test_the_strong_recipe_without_a_change_drawn_gives_the_image_back():
    image, labels = disc()
    still = dataclasses.replace(STILL, mirror_probability=0.0, brightness_probability=0.0, noise_probability=0.0)
    given = 0.2 + 0.5 * image
    changed, moved = augment(generator(), given, labels, settings=dataclasses.replace(still, appearance=NO_LOOK))
    np.testing.assert_array_equal(changed, given)
    np.testing.assert_array_equal(moved, labels)
    assert not np.shares_memory(changed, given)


def test_slices_of_a_thick_stack_do_not_mix_by_the_strong_recipe():
    labels = np.zeros((6, 64, 64), np.uint8)
    labels[2] = 1
    image = labels[..., None].astype(np.float32)
    for seed in range(8):
        settings = dataclasses.replace(STRONG, mirror_probability=0.0, noise_probability=0.0)
        looks = dataclasses.replace(NO_LOOK, blur_probability=1.0, sharpening_probability=1.0)
        looks = dataclasses.replace(looks, resolution_probability=1.0)
        changed, moved = augment(
            generator(seed), image, labels, settings=dataclasses.replace(settings, appearance=looks)
        )
        assert set(np.nonzero(moved)[0]) == {2}
        np.testing.assert_allclose(np.delete(changed, 2, axis=0), 0.0, atol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.5, 1.0])
def test_constant_images_stay_finite_by_the_strong_recipe(constant):
    image, labels = np.full((16, 12, 3), constant, np.float32), np.zeros((16, 12), np.uint8)
    settings = dataclasses.replace(STILL, noise_probability=0.0)
    for seed in range(20):
        np.testing.assert_allclose(augment(generator(seed), image, labels, settings=settings)[0], constant, atol=1e-6)
