"""The six objectives: their values against NumPy and plain loops, their gradients, and their places in GraTa."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import all_finite, pictures, toy

from jaxtta import objectives, run, stats, views
from jaxtta.core import Method, Output, Task, bind, copy, norm_affine, partition
from jaxtta.methods import METHODS
from jaxtta.objectives import OBJECTIVES, TURNS, consistency, denoising, entropy, rotation, super_resolution, teacher
from jaxtta.resize import resize_aligned
from jaxtta.schedule import schedule

KEY = jax.random.key(5)
SHORT = ("entropy", "reconstruction", "denoising", "super_resolution")  # to compile
TASKS = {"sigmoid": Task(2, "sigmoid"), "softmax": Task(3, "softmax")}
TOYS = {
    "2-D sigmoid": (2, "sigmoid"),
    "2-D softmax of 1 channel": (2, "softmax", "batch", 1),
    "3-D sigmoid of 4 channels": (3, "sigmoid", "instance", 4),
    "3-D softmax": (3, "softmax"),
}
WITHOUT_QUARTERS = {
    "sigmoid": Task(2, "sigmoid", quarter_turns=False),
    "softmax": Task(3, "softmax", quarter_turns=False),
}


def saying(head, output):
    """A network that answers `output(images)`, or the array `output`, for one head and knows no other."""

    def forward(images, heads=("segmentation",)):
        assert heads == (head,)
        return {head: output(images) if callable(output) else output}

    return forward


@functools.cache
def network():
    """`(at, adapted)`: the toy network as objectives see it, with the moments of the image."""
    model, _, source, _ = toy()
    return bind(model, source, stats.image()), partition(source.params, norm_affine)[0]


def lopsided(images, classes):
    """Logits `[batch, *space, classes]` that tell up from down and left from right, centred over the whole batch."""
    seen = sum(weight * jnp.roll(images, 1, axis) for axis, weight in zip(range(1, images.ndim - 1), (3.0, 1.0, -2.0)))
    centred = seen - jnp.mean(seen, keepdims=True)
    return jnp.concatenate([centred, jnp.square(centred)], axis=-1)[..., :classes]


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def softmax(x):
    powers = np.exp(np.asarray(x, np.float64))
    return powers / powers.sum(-1, keepdims=True)


def test_the_registry_is_the_six():
    assert set(OBJECTIVES) == {"entropy", "consistency", "reconstruction", "denoising", "super_resolution", "rotation"}


@pytest.mark.parametrize(
    ("name", "setting"),
    [  # each objective in one setting, and in all with -m slow
        pytest.param(
            name, setting, marks=() if name in SHORT and list(TOYS)[number % len(TOYS)] == setting else pytest.mark.slow
        )
        for number, name in enumerate(OBJECTIVES)
        for setting in TOYS
    ],
)
def test_every_objective_is_a_finite_scalar_with_a_finite_gradient_in_both_places_of_grata(name, setting):
    model, task, source, space = toy(*TOYS[setting])
    method = METHODS["grata"](model, task, auxiliary=name, pseudo=name, optimiser=optax.sgd(1e-2))
    images = pictures(2, *space, model.channels)
    state = method.init(source, images)
    after, output = jax.jit(method.step)(KEY, source, state, images)
    assert all_finite((after, output))
    assert output.info["auxiliary_loss"].shape == output.info["pseudo_loss"].shape == ()
    assert min(output.info[norm] for norm in ("auxiliary_norm", "pseudo_norm", "auxiliary_loss", "pseudo_loss")) > 0
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after)))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("activation", TASKS)
def test_entropy_equals_numpy(activation, full):
    task = TASKS[activation]
    logits = 8 * pictures(2, 5, 6, task.classes) - 4
    p = (sigmoid if activation == "sigmoid" else softmax)(logits)
    expected = -p * np.log(p + 1e-6)
    if full and activation == "sigmoid":
        expected -= (1 - p) * np.log(1 - p + 1e-6)
    got = entropy(task, full=full)(KEY, saying("segmentation", logits), pictures(2, 5, 6, 3))
    np.testing.assert_allclose(got, expected.sum(-1).mean(), rtol=1e-5)


@pytest.mark.parametrize("quarter_turns", [True, False])
@pytest.mark.parametrize("space", [(6, 6), (5, 8), (4, 6, 6), (6, 6, 4)])
@pytest.mark.parametrize("activation", TASKS)
def test_the_teacher_is_the_mean_over_views_one_by_one(activation, space, quarter_turns):
    task, images = (TASKS if quarter_turns else WITHOUT_QUARTERS)[activation], pictures(2, *space, 3)
    turns = views_of(quarter_turns) + ([views.DEPTH_FLIP] if len(space) == 3 else [])

    @jax.jit
    def both(images):
        ones = [view.inverse(task.probabilities(lopsided(view.apply(images), task.classes))) for view in turns]
        return teacher(task, lambda x: {"segmentation": lopsided(x, task.classes)}, images), ones

    got, ones = both(images)
    assert len(ones) == 6 + (len(space) == 3) - (0 if quarter_turns else 2)
    np.testing.assert_allclose(got, np.mean(ones, axis=0), atol=1e-5)


@pytest.mark.parametrize("quarter_turns", [pytest.param(True, marks=pytest.mark.slow), False])
def test_consistency_of_flat_wide_volumes_through_the_network(quarter_turns):
    model, _, source, _ = toy(3, "softmax")
    objective = consistency(Task(3, "softmax", quarter_turns=quarter_turns))
    at, adapted = bind(model, source, stats.image()), partition(source.params, norm_affine)[0]
    volumes = pictures(1, 2, 8, 4, 1)
    loss, slope = jax.jit(jax.value_and_grad(lambda adapted: objective(KEY, at(adapted), volumes)))(adapted)
    assert all_finite((loss, slope)) and optax.tree.norm(slope) > 0


@pytest.fixture
def ways(monkeypatch):
    """`ways(function)`: its results with the views side by side and one after the other, each traced anew."""

    def both(function):
        results = []
        for large in (10**9, 0):
            monkeypatch.setattr(objectives, "LARGE", large)
            results.append(jax.device_get(function()))
        return results

    return both


@pytest.mark.parametrize("space", [(16, 16), pytest.param((16, 20), marks=pytest.mark.slow)])
def test_views_one_after_the_other_give_the_same_teacher_also_mapped(ways, space):
    model, task, source, _ = toy()
    at = bind(model, source, stats.image())
    adapted = partition(source.params, norm_affine)[0]
    images = pictures(2, 1, *space, 3)

    def run_it():
        one = jax.jit(lambda images: teacher(task, at(adapted), images))(images[1])
        return one, jax.jit(jax.vmap(lambda images: teacher(task, at(adapted), images)))(images)

    at_once, by_turns = ways(run_it)
    np.testing.assert_allclose(by_turns[0], at_once[0], atol=1e-5)
    np.testing.assert_allclose(by_turns[1], at_once[1], atol=1e-5)
    np.testing.assert_allclose(by_turns[1][1], by_turns[0], atol=1e-5)


@pytest.mark.slow
def test_views_one_after_the_other_give_the_same_gradient_in_streams_over_devices(ways):
    model, task, source, space = toy()

    def init(source, images):
        return copy(partition(source.params, norm_affine)[0])

    def step(key, source, adapted, images):
        at = bind(model, source, stats.image())
        loss, slope = jax.value_and_grad(lambda adapted: consistency(task)(key, at(adapted), images))(adapted)
        adapted = jax.tree.map(lambda a, b: a - b, adapted, slope)
        return adapted, Output(at(adapted)(images)["segmentation"], {"loss": loss})

    method = Method(init, step, None, None)

    def run_it():
        streams = run.Streams(method, source, task, places=4, mesh=run.device_mesh(2))
        images = np.asarray(pictures(4, 1, *space, 3))
        return streams.step(KEY, schedule([1] * 4, 4)[0], streams.begin(images), images)

    at_once, by_turns = ways(run_it)
    for got, expected in zip(jax.tree.leaves(by_turns), jax.tree.leaves(at_once)):
        np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)


def test_the_teacher_has_no_gradient():
    at, adapted = network()
    images = pictures(1, 16, 16, 3)
    total = jax.grad(lambda adapted: jnp.sum(teacher(TASKS["sigmoid"], at(adapted), images)))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.jit(total)(adapted)))


@pytest.mark.parametrize("activation", TASKS)
def test_consistency_is_the_cross_entropy_of_the_rescaled_styled_image(activation):
    task, images = TASKS[activation], views.rescale(pictures(2, 6, 6, 3))

    def style(key, images):
        return 5 * images**2 - 1

    def forward(images):  # blind to the geometry: each pixel's logits are its own grey values
        return {"segmentation": 4 * images[..., : task.classes] - 2}

    target = (sigmoid if activation == "sigmoid" else softmax)(forward(images)["segmentation"])
    logits = forward(views.rescale(style(KEY, images)))["segmentation"]
    if activation == "sigmoid":
        q = sigmoid(logits)
        expected = -(target * np.log(q) + (1 - target) * np.log(1 - q)).mean()
    else:
        expected = -(target * np.log(softmax(logits))).sum(-1).mean()
    np.testing.assert_allclose(consistency(task, style=style)(KEY, forward, images), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["reconstruction", "denoising"])
def test_restoring_objectives_compare_the_head_with_the_clean_image(name):
    images, answer = pictures(2, 5, 6, 3), 4 * pictures(2, 5, 6, 3, seed=1) - 2
    got = OBJECTIVES[name](TASKS["sigmoid"])(KEY, saying(name, answer), images)
    np.testing.assert_allclose(got, ((sigmoid(answer) - np.asarray(images)) ** 2).mean(), rtol=1e-5)


def test_denoising_shows_the_noisy_image():
    images = pictures(2, 5, 6, 3)
    forward = saying("denoising", lambda shown: shown)
    fixed = denoising(TASKS["sigmoid"], noise=lambda key, x: x + 0.25)(KEY, forward, images)
    np.testing.assert_allclose(fixed, ((sigmoid(images + 0.25) - np.asarray(images)) ** 2).mean(), rtol=1e-5)
    drawn = denoising(TASKS["sigmoid"])(KEY, forward, images)
    noisy = views.gaussian_noise(0.1)(KEY, images)
    np.testing.assert_allclose(drawn, ((sigmoid(noisy) - np.asarray(images)) ** 2).mean(), rtol=1e-5)


@pytest.mark.parametrize("space", [(16, 16), (15, 17), (3, 6), (5, 4, 7)])
def test_super_resolution_sees_half_the_size_and_is_cropped_to_the_whole(space):
    images, half = pictures(2, *space, 3), tuple(-(-n // 2) for n in space)
    answer = 4 * pictures(2, *(2 * n for n in half), 3, seed=1) - 2

    def answering(shown):
        np.testing.assert_allclose(shown, resize_aligned(images, half))
        return answer

    got = super_resolution(TASKS["sigmoid"])(KEY, saying("super_resolution", answering), images)
    inside = answer[(slice(None), *(slice(n) for n in space))]
    np.testing.assert_allclose(got, ((sigmoid(inside) - np.asarray(images)) ** 2).mean(), rtol=1e-5)


@pytest.mark.parametrize("space", [(15, 17), (13, 9)])
def test_super_resolution_of_odd_sizes_through_the_network(space):
    at, adapted = network()
    objective = super_resolution(TASKS["sigmoid"])
    loss = jax.jit(jax.value_and_grad(lambda adapted: objective(KEY, at(adapted), pictures(1, *space, 3))))(adapted)
    assert all_finite(loss)


def six_pixels(images):
    """Logits that show how an image lies: its first six values."""
    return images.reshape(images.shape[0], -1)[:, :6]


def rotation_loss(labels, images):
    turned = [six_pixels(TURNS[label].apply(image[None]))[0] for label, image in zip(labels, images)]
    return -np.mean([np.log(softmax(logits))[label] for logits, label in zip(turned, labels)])


@pytest.mark.parametrize("shape", [(2, 5, 8, 3), (2, 8, 5, 3), (1, 2, 4, 6, 1), (2, 6, 6, 3)])
def test_rotation_has_all_six_labels_in_one_compiled_program(shape):
    images, forward = pictures(*shape), saying("rotation", six_pixels)

    @jax.jit
    def loss(labels):
        return rotation(TASKS["sigmoid"], draw=lambda key, count: labels)(KEY, forward, images)

    for label in range(6):
        labels = np.full(shape[0], label)
        np.testing.assert_allclose(loss(jnp.asarray(labels, jnp.int32)), rotation_loss(labels, images), rtol=1e-5)


def test_square_images_turn_each_on_its_own_and_others_as_their_first():
    labels = np.array([1, 4, 5, 0])
    for space, turned in {(6, 6): labels, (5, 8): np.full(4, 1)}.items():
        images = pictures(4, *space, 3)
        objective = rotation(TASKS["sigmoid"], draw=lambda key, count: jnp.asarray(labels, jnp.int32))
        got = objective(KEY, saying("rotation", six_pixels), images)
        np.testing.assert_allclose(got, rotation_loss(turned, images), rtol=1e-5)


def views_of(quarter_turns):
    return [view for view in TURNS if quarter_turns or view.name not in ("rotate_90", "rotate_270")]


@pytest.mark.parametrize(
    ("space", "quarter_turns"),
    [((2, 2), True), ((2, 2, 2), True), ((2, 2), False), ((3, 4), False), ((2, 3, 4), False)],
)
def test_the_drawn_views_are_all_of_the_task_and_depend_on_the_key(space, quarter_turns):
    task, image, seen = (TASKS if quarter_turns else WITHOUT_QUARTERS)["sigmoid"], pictures(1, *space, 3), []
    images = jnp.broadcast_to(image, (99, *space, 3))
    forward = saying("rotation", lambda shown: seen.append(np.asarray(six_pixels(shown))) or six_pixels(shown))
    for seed in (0, 0, 1):
        rotation(task)(jax.random.key(seed), forward, images)
    expected = np.concatenate([six_pixels(view.apply(image)) for view in views_of(quarter_turns)])
    np.testing.assert_array_equal(np.unique(seen[0], axis=0), np.unique(expected, axis=0))
    assert len(np.unique(expected, axis=0)) == (6 if quarter_turns else 4)
    assert np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[0], seen[2])


@pytest.mark.parametrize("space", [(3, 4), (2, 3, 4)])
def test_images_that_are_not_square_are_drawn_in_all_six_views(space):
    image = pictures(1, *space, 3)
    loss = jax.jit(lambda key: rotation(TASKS["sigmoid"])(key, saying("rotation", six_pixels), image))
    losses = np.array([loss(jax.random.key(seed)) for seed in range(60)])
    for label in range(6):
        assert np.isclose(losses, rotation_loss([label], image), rtol=1e-5).any()


@pytest.mark.parametrize("label", [0, 1, 3, 5])
def test_without_quarter_turns_the_labels_are_the_same(label):
    images = pictures(2, 5, 8, 3)
    objective = rotation(WITHOUT_QUARTERS["sigmoid"], draw=lambda key, count: jnp.full(count, label, jnp.int32))
    got = objective(KEY, saying("rotation", six_pixels), images)
    np.testing.assert_allclose(got, rotation_loss([label] * 2, images), rtol=1e-5)
