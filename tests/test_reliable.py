"""EATA, SAR and MEMO: which decisions count, what holds them to the source, and what returns to it."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import all_finite, assert_trees_close, pictures, toy

from jaxtta import stats, views
from jaxtta.core import InputError, Task, bind, everything, norm_affine, partition
from jaxtta.methods.eata import _averaged, _cosine, eata
from jaxtta.methods.memo import _augmented, memo
from jaxtta.methods.reliable import decisions, limit_of
from jaxtta.methods.sar import sar
from jaxtta.methods.tent import tent
from jaxtta.objectives import entropies

KEY = jax.random.key(4)
TASKS = [(2, "sigmoid"), (3, "softmax")]
SGD = optax.sgd(1e-2)


def along(method, variables, images):
    """The states and outputs of a method along a stream."""
    state, step, history = method.init(variables, images[0]), jax.jit(method.step), []
    for image in images:
        state, output = step(KEY, variables, state, image)
        history.append((state, output))
    return history


def affines(variables):
    return partition(variables.params, norm_affine)[0]


def choices(task, logits):
    """Probabilities of each decision `[..., decisions, choices]`, in NumPy and float64."""
    logits = np.asarray(logits, np.float64)
    if task.activation == "sigmoid":
        on = 1 / (1 + np.exp(-logits))
        return np.stack([1 - on, on], axis=-1)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return (exponentials / exponentials.sum(-1, keepdims=True))[..., None, :]


def entropy_of(task, logits):
    probabilities = choices(task, logits)
    return -np.sum(probabilities * np.log(probabilities), axis=-1)


def confident(dimensions, activation, factor=6.0):
    """A toy whose network is sure of some decisions, as trained ones are, and unsure of others."""
    model, task, variables, space = toy(dimensions, activation)
    params = {**variables.params}
    params["segmentation"] = jax.tree.map(lambda leaf: factor * leaf, params["segmentation"])
    return model, task, variables._replace(params=params), space


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_decision_is_a_pixel_or_a_channel_of_one(activation):
    task = Task(3, activation)
    logits = 4 * jax.random.normal(KEY, (2, 5, 4, 3))
    logs = decisions(task, logits)
    assert logs.shape == ((2, 5, 4, 3, 2) if activation == "sigmoid" else (2, 5, 4, 1, 3))
    np.testing.assert_allclose(jnp.exp(logs), choices(task, logits), atol=1e-6)
    np.testing.assert_allclose(entropies(logs), entropy_of(task, logits), atol=1e-5)
    assert limit_of(task, 0.4) == pytest.approx(0.4 * np.log(2 if activation == "sigmoid" else 3))
    assert all_finite(jax.grad(lambda x: jnp.sum(entropies(decisions(task, x))))(jnp.full((1, 1, 3), 1e4)))


@pytest.mark.parametrize("dimensions, activation", [TASKS[0], pytest.param(*TASKS[1], marks=pytest.mark.slow)])
def test_eata_learns_from_what_is_reliable_and_not_redundant(dimensions, activation):
    model, task, variables, space = confident(dimensions, activation)
    images = pictures(3, 1, *space, model.channels)
    count = 2 if activation == "sigmoid" else task.classes
    method = eata(model, task, optimiser=SGD, similarity=0.8 * count**0.5, anchor=0.0)
    state, limit = method.init(variables, images[0]), limit_of(task, 0.4)
    average = np.zeros(state.average.shape)

    @jax.jit
    def logits_of(adapted, image):
        return bind(model, variables, stats.image())(adapted)(image)["segmentation"]

    @jax.jit
    @jax.value_and_grad
    def by_hand(adapted, image, weights):
        return jnp.sum(weights * entropies(decisions(task, logits_of(adapted, image))))

    for image in images:
        logits = logits_of(state.adapted, image)
        entropy, p = entropy_of(task, logits), choices(task, logits)
        reliable, lengths = entropy < limit, np.linalg.norm(p, axis=-1) * np.linalg.norm(average, axis=-1)
        kept = reliable & (np.sum(p * average, axis=-1) / np.maximum(lengths, 1e-12) < 0.8)
        assert 0 < kept.sum() < kept.size and (not average.any() or kept.sum() < reliable.sum())
        for i in np.flatnonzero(kept.reshape(-1, kept.shape[-1]).any(axis=0)):  # each channel has its own
            mean = p[..., i, :][kept[..., i]].mean(axis=0)
            average[i] = 0.9 * average[i] + 0.1 * mean if average[i].any() else mean

        weights = jnp.asarray(np.where(kept, np.exp(limit - entropy), 0) / kept.sum(), jnp.float32)
        loss, gradient = by_hand(state.adapted, image, weights)
        expected = jax.tree.map(lambda a, g: a - 1e-2 * g, state.adapted, gradient)
        state, output = jax.jit(method.step)(KEY, variables, state, image)
        np.testing.assert_allclose(output.info["loss"], loss, rtol=1e-4)
        np.testing.assert_allclose(output.info["kept"], kept.mean(), atol=1e-6)
        np.testing.assert_allclose(output.info["reliable"], reliable.mean(), atol=1e-6)
        np.testing.assert_allclose(state.average, average, atol=1e-5)
        assert_trees_close(state.adapted, expected, atol=1e-5)


def test_a_decision_is_redundant_by_its_cosine_and_new_when_nothing_was_seen():
    average = jnp.asarray([[0.9, 0.1], [0.0, 0.0]])
    probabilities = jnp.asarray([[[0.99, 0.01], [0.99, 0.01]], [[0.01, 0.99], [0.5, 0.5]]])[None]
    cosines = _cosine(probabilities, average)[0]
    np.testing.assert_allclose(cosines[0, 0], 0.892 / np.hypot(0.9, 0.1) / np.hypot(0.99, 0.01), rtol=1e-5)
    assert cosines[0, 0] > 0.95 > cosines[1, 0] and (cosines[:, 1] == 0).all()
    kept = jnp.asarray([[False, True], [True, False]])[None]
    np.testing.assert_allclose(_averaged(average, probabilities, kept), [[0.811, 0.189], [0.99, 0.01]], atol=1e-6)
    np.testing.assert_allclose(_averaged(average, probabilities, jnp.zeros_like(kept)), average)


def test_eata_takes_its_fisher_matrix_from_the_first_images_at_the_source(monkeypatch):
    monkeypatch.setattr(sys.modules[eata.__module__], "FISHER_IMAGES", 2)
    model, task, variables, space = confident(2, "sigmoid")
    images = pictures(3, 1, *space, 3)

    @jax.jit
    @jax.grad
    def slope_of_surprise(adapted, image):
        logits = bind(model, variables, stats.image())(adapted)(image)["segmentation"]
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, jnp.asarray(logits > 0, logits.dtype)))

    squares = [jax.tree.map(jnp.square, slope_of_surprise(affines(variables), image)) for image in images]
    both = jax.tree.map(lambda a, b: (a + b) / 2, *squares[:2])
    history = along(eata(model, task, optimiser=SGD, anchor=2000.0), variables, images)
    for (state, _), expected in zip(history, (squares[0], both, both)):
        assert_trees_close(state.fisher, expected, atol=1e-8, rtol=1e-4)
    drift = jax.tree.map(lambda a, b: jnp.square(a - b), history[1][0].adapted, affines(variables))
    penalty = 2000 * sum(jnp.sum(f * d) for f, d in zip(jax.tree.leaves(both), jax.tree.leaves(drift)))
    assert history[0][1].info["penalty"] == 0 < penalty
    np.testing.assert_allclose(history[2][1].info["penalty"], penalty, rtol=1e-4)


def test_the_anchor_of_eata_keeps_it_near_the_source():
    model, task, variables, space = confident(2, "sigmoid")
    images = jnp.tile(pictures(1, *space, 3)[None], (8, 1, 1, 1, 1))

    def drift(anchor):
        method = eata(model, task, optimiser=optax.sgd(1e-1), anchor=anchor, similarity=10.0)
        adapted = along(method, variables, images)[-1][0].adapted
        return optax.tree.norm(jax.tree.map(jnp.subtract, adapted, affines(variables)))

    assert 0 < drift(20.0) < drift(0.0)


@pytest.mark.parametrize("factory", [eata, sar])
def test_an_image_without_reliable_decisions_changes_no_parameter(factory):
    model, task, variables, space = toy()
    images = pictures(2, 1, *space, 3)
    method = factory(model, task, margin=1e-6, optimiser=SGD)
    start = method.init(variables, images[0])
    for state, output in along(method, variables, images):
        assert output.info["reliable"] == 0 and all_finite(output)
        assert_trees_close(state[:2], start[:2])
        assert (state.average == 0).all()


@pytest.mark.parametrize("dimensions, activation", [pytest.param(*TASKS[0], marks=pytest.mark.slow), TASKS[1]])
def test_sar_descends_with_the_gradient_of_the_point_above(dimensions, activation):
    model, task, variables, space = confident(dimensions, activation)
    image, limit = pictures(1, *space, model.channels), limit_of(task, 0.4)

    @jax.jit
    def entropy_at(adapted):
        return entropies(decisions(task, bind(model, variables, stats.image())(adapted)(image)["segmentation"]))

    @jax.jit
    @jax.value_and_grad
    def descent(adapted, chosen):
        return jnp.sum(jnp.where(chosen, entropy_at(adapted), 0)) / jnp.sum(chosen.astype(jnp.float32))

    start = affines(variables)
    first = entropy_at(start) < limit
    loss, ahead = descent(start, first)
    above = jax.tree.map(lambda a, g: a + 0.05 * g / optax.tree.norm(ahead), start, ahead)
    chosen = first & (entropy_at(above) < limit)
    sharp_loss, gradient = descent(above, chosen)
    assert 0 < chosen.sum() < chosen.size and sharp_loss > loss * 0.9
    [(state, output)] = along(sar(model, task, optimiser=SGD), variables, [image])
    np.testing.assert_allclose(output.info["loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(output.info["sharp_loss"], sharp_loss, rtol=1e-4)
    np.testing.assert_allclose(output.info["reliable"], chosen.mean(), atol=1e-6)
    assert_trees_close(state.adapted, jax.tree.map(lambda a, g: a - 1e-2 * g, start, gradient), atol=1e-5)


def test_sar_returns_to_the_source_when_its_average_falls_below_the_reset():
    model, task, variables, space = confident(2, "sigmoid")
    images = pictures(4, 1, *space, 3)
    free = along(sar(model, task, optimiser=SGD, reset=0.0), variables, images)
    losses = [output.info["sharp_loss"] for _, output in free]
    averages = [output.info["average"] for _, output in free]
    for i in range(1, 4):
        np.testing.assert_allclose(averages[i], 0.9 * averages[i - 1] + 0.1 * losses[i], rtol=1e-5)
    assert not any(output.info["returned"] for _, output in free) and max(averages) < 0.2
    assert averages[0] == losses[0]
    returning = sar(model, task, optimiser=SGD, reset=0.29)  # of ln 2
    held = along(returning, variables, images)
    assert [output.info["returned"] for _, output in held] == [0, 1, 1, 1]
    for image, (state, output) in zip(images, held):
        [(alone, same)] = along(returning, variables, [image])
        assert_trees_close(state[:2], alone[:2], atol=1e-7)
        np.testing.assert_allclose(output.logits, same.logits, atol=1e-5)
    assert not np.allclose(free[-1][1].logits, held[-1][1].logits, atol=1e-5)


@pytest.mark.slow
def test_memo_minimises_the_entropy_of_the_mean_over_views_mapped_back():
    model, task, variables, space = toy(2, "sigmoid")
    image = pictures(1, *space, 3)
    shown = _augmented(KEY, task, image)
    assert [turn for turn, _ in shown] == list(views.possible(task, 2))
    at = bind(model, variables, stats.blend(1 / 17))

    def marginal_entropy(params):
        predictions = [turn.inverse(jax.nn.sigmoid(at(params)(x)["segmentation"])) for turn, x in shown]
        p = sum(predictions) / 6
        return jnp.mean(jnp.sum(-p * jnp.log(p) - (1 - p) * jnp.log(1 - p), axis=-1))

    loss, gradient = jax.jit(jax.value_and_grad(marginal_entropy))(variables.params)
    [(state, output)] = along(memo(model, task, optimiser=SGD), variables, [image])
    np.testing.assert_allclose(output.info["loss"], loss, rtol=1e-4)
    assert_trees_close(state.adapted, jax.tree.map(lambda a, g: a - 1e-2 * g, variables.params, gradient), atol=1e-5)
    expected = at(state.adapted)(image)["segmentation"]
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)


@pytest.mark.slow
def test_memo_takes_every_image_for_the_first():
    model, task, variables, space = toy()
    images = pictures(2, 1, *space, 3)
    method = memo(model, task, optimiser=optax.sgd(1e-2, 0.9), select=norm_affine)
    last, alone = along(method, variables, images)[-1], along(method, variables, images[1:])[-1]
    assert_trees_close(last, alone, atol=1e-6)


SHAPES = [(True, (8, 12)), (False, (8, 12)), (True, (4, 8, 12))]


@pytest.mark.parametrize("turns, shape", [pytest.param(*SHAPES[0], marks=pytest.mark.slow), *SHAPES[1:]])
def test_memo_maps_views_of_every_shape_back(turns, shape):
    model, _, variables, _ = toy(len(shape), "softmax")
    task = Task(3, "softmax", quarter_turns=turns)
    image = pictures(2, *shape, model.channels)
    views_shown = _augmented(KEY, task, image)
    assert len(views_shown) == len(views.possible(task, len(shape)))
    assert all(turn.inverse(x).shape == image.shape for turn, x in views_shown)
    method = memo(model, task)
    _, output = jax.eval_shape(method.step, KEY, variables, method.init(variables, image), image)
    assert output.logits.shape == (2, *shape, 3)


@pytest.mark.slow
@pytest.mark.parametrize("turns, shape", SHAPES)
def test_memo_learns_from_views_of_every_shape(turns, shape):
    model, _, variables, _ = toy(len(shape), "softmax")
    image = pictures(2, *shape, model.channels)
    [history] = along(memo(model, Task(3, "softmax", quarter_turns=turns)), variables, [image])
    assert all_finite(history)


@pytest.mark.parametrize("factory", [eata, sar, pytest.param(memo, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", [pytest.param("instance", marks=pytest.mark.slow), "group"])
def test_they_adapt_other_norms(factory, norm):
    model, task, variables, space = toy(2, "sigmoid", norm)
    margin = {} if factory is memo else {"margin": 1.0}  # a network with random weights is sure of nothing
    method = factory(model, task, optimiser=optax.sgd(1e-1), **margin)
    history = along(method, variables, pictures(2, 1, *space, 3))
    assert all_finite(history)
    start = partition(variables.params, everything if factory is memo else norm_affine)[0]
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), start, history[-1][0].adapted)
    assert any(jax.tree.leaves(moved["encoder1"]))


@pytest.mark.parametrize("factory", [eata, sar, memo])
def test_in_float64_they_stay_in_float64(factory):
    with jax.enable_x64(True):
        model, task, variables, space = toy()
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        image = jnp.asarray(pictures(1, *space, 3), jnp.float64)
        method = factory(model, task, optimiser=SGD)
        state, output = jax.eval_shape(method.step, KEY, variables, method.init(variables, image), image)
        leaves = [leaf for leaf in jax.tree.leaves((state, output)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        assert leaves and all(leaf.dtype == jnp.float64 for leaf in leaves)


@pytest.mark.parametrize(
    "factory, options",
    [
        (eata, {"margin": 0.0}),
        (sar, {"margin": 1.5}),
        (eata, {"similarity": 0.0}),
        (eata, {"anchor": -1.0}),
        (sar, {"radius": 0.0}),
        (sar, {"reset": float("nan")}),
    ],
)
def test_a_number_out_of_range_says_what_is_expected(factory, options):
    model, task, _, _ = toy()
    [(name, value)] = options.items()
    with pytest.raises(InputError, match=f"{name} is {value!r}; expected"):
        factory(model, task, **options)


def test_with_every_decision_and_no_ascent_sar_is_tent():
    model, task, variables, space = toy(3, "softmax")
    images = pictures(2, 1, *space, 1)
    plain = along(tent(model, task, optimiser=SGD), variables, images)
    wide = along(sar(model, task, margin=1.0, radius=1e-9, reset=0.0, optimiser=SGD), variables, images)
    assert_trees_close(wide[-1][0].adapted, plain[-1][0].adapted, atol=1e-5)
