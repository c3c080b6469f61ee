"""The supervised losses against plain NumPy, their gradients, and their behaviour at the edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxtta.core import InputError, Task
from jaxtta.losses import cross_entropy, dice_and_cross_entropy, dice_loss

SIGMOID = Task(2, "sigmoid")
SOFTMAX = Task(3, "softmax")
LOSSES = [dice_loss, cross_entropy, dice_and_cross_entropy]
TASKS = pytest.mark.parametrize("task", [SIGMOID, SOFTMAX], ids=["sigmoid", "softmax"])
SPACES = pytest.mark.parametrize("space", [(6, 5), (3, 4, 5)], ids=["2d", "3d"])


def data(task, space=(6, 5), batch=2, seed=0):
    """Float64 logits and the boolean channels of a random label map."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(task.labels, size=(batch, *space))
    return rng.normal(scale=2, size=(batch, *space, task.classes)), task.channels(labels)


def probabilities(task, logits):
    if task.activation == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def numpy_dice(task, logits, target, smooth=1.0):
    """The mean over the classes that are scored, each over batch and space."""
    scored = range(task.classes) if task.activation == "sigmoid" else range(1, task.classes)
    losses = []
    for k in scored:
        p, t = probabilities(task, logits)[..., k].ravel(), target[..., k].ravel().astype(float)
        losses.append(1 - (2 * p @ t + smooth) / (p.sum() + t.sum() + smooth))
    return np.mean(losses)


def numpy_cross_entropy(task, logits, target):
    p = probabilities(task, logits)
    if task.activation == "sigmoid":
        return -np.mean(np.where(target, np.log(p), np.log(1 - p)))
    return -np.mean(np.log(p[target]))


@TASKS
@SPACES
def test_equal_numpy(task, space):
    logits, target = data(task, space)
    with jax.enable_x64(True):
        dice = dice_loss(task, jnp.asarray(logits), jnp.asarray(target))
        entropy = cross_entropy(task, jnp.asarray(logits), jnp.asarray(target))
        both = dice_and_cross_entropy(task, jnp.asarray(logits), jnp.asarray(target))
    np.testing.assert_allclose(dice, numpy_dice(task, logits, target), rtol=1e-12)
    np.testing.assert_allclose(entropy, numpy_cross_entropy(task, logits, target), rtol=1e-12)
    np.testing.assert_allclose(both, dice + entropy, rtol=1e-12)


def test_soft_targets():
    logits, _ = data(SIGMOID)
    target = np.random.default_rng(1).uniform(size=logits.shape)
    p = probabilities(SIGMOID, logits)
    with jax.enable_x64(True):
        dice = dice_loss(SIGMOID, jnp.asarray(logits), jnp.asarray(target))
        entropy = cross_entropy(SIGMOID, jnp.asarray(logits), jnp.asarray(target))
    np.testing.assert_allclose(dice, numpy_dice(SIGMOID, logits, target), rtol=1e-12)
    np.testing.assert_allclose(entropy, -np.mean(target * np.log(p) + (1 - target) * np.log(1 - p)), rtol=1e-12)


@pytest.mark.parametrize("smooth", [1e-6, 1.0, 10.0])
def test_smoothing(smooth):
    logits, target = data(SIGMOID)
    with jax.enable_x64(True):
        dice = dice_loss(SIGMOID, jnp.asarray(logits), jnp.asarray(target), smooth=smooth)
        both = dice_and_cross_entropy(SIGMOID, jnp.asarray(logits), jnp.asarray(target), smooth=smooth)
    expected = numpy_dice(SIGMOID, logits, target, smooth)
    np.testing.assert_allclose(dice, expected, rtol=1e-12)
    np.testing.assert_allclose(both, expected + numpy_cross_entropy(SIGMOID, logits, target), rtol=1e-12)


def test_the_releases_dice_is_one_coefficient_over_everything():
    logits, target = data(SIGMOID)
    target[..., 1] &= target[..., 0] & (np.arange(5) < 2)
    p, t = probabilities(SIGMOID, logits), target.astype(float)
    expected = 1 - (2 * np.sum(p * t) + 1) / (p.sum() + t.sum() + 1)
    with jax.enable_x64(True):
        pooled = dice_loss(SIGMOID, jnp.asarray(logits), jnp.asarray(target), per_class=False)
        both = dice_and_cross_entropy(SIGMOID, jnp.asarray(logits), jnp.asarray(target), per_class=False)
    np.testing.assert_allclose(pooled, expected, rtol=1e-12)
    np.testing.assert_allclose(both, expected + numpy_cross_entropy(SIGMOID, logits, target), rtol=1e-12)
    assert abs(expected - numpy_dice(SIGMOID, logits, target)) > 0.01


@TASKS
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient(task, loss):
    logits, target = data(task, space=(3, 2))
    with jax.enable_x64(True):
        check_grads(lambda x: loss(task, x, jnp.asarray(target)), (jnp.asarray(logits),), order=1, modes=["fwd", "rev"])


def test_gradient_of_the_cross_entropies():
    for task in (SIGMOID, SOFTMAX):
        logits, target = data(task)
        with jax.enable_x64(True):
            gradient = jax.grad(cross_entropy, argnums=1)(task, jnp.asarray(logits), jnp.asarray(target))
        count = logits.size if task is SIGMOID else logits[..., 0].size
        np.testing.assert_allclose(gradient, (probabilities(task, logits) - target) / count, atol=1e-14)


@TASKS
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [bool, np.float32, np.float64])
def test_dtype_is_the_logits(task, loss, dtype, kind):
    logits, target = data(task)
    with jax.enable_x64(True):
        logits, target = jnp.asarray(logits.astype(dtype)), jnp.asarray(target.astype(kind))
        value, gradient = jax.eval_shape(jax.value_and_grad(functools.partial(loss, task)), logits, target)
    assert value.shape == () and value.dtype == gradient.dtype == dtype


@TASKS
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [0.0, 1e4, 1e30])
def test_finite_at_large_logits(task, loss, scale):
    logits, target = data(task)
    logits = jnp.asarray(np.sign(logits) * scale, jnp.float32)
    value, gradient = jax.value_and_grad(loss, argnums=1)(task, logits, jnp.asarray(target))
    assert jnp.isfinite(value) and jnp.all(jnp.isfinite(gradient))


@TASKS
def test_right_and_wrong(task):
    _, target = data(task)
    certain = jnp.asarray(np.where(target, 60.0, -60.0), jnp.float32)
    target = jnp.asarray(target)
    for loss in LOSSES:
        np.testing.assert_allclose(loss(task, certain, target), 0, atol=1e-6)
    np.testing.assert_allclose(dice_loss(task, -certain, target, smooth=1e-6), 1, atol=1e-6)
    assert cross_entropy(task, -certain, target) >= 60


def test_confident_logits_keep_their_small_cross_entropy():
    """log(1 + e^-30) is 9e-14: a form that subtracts large numbers gives 0 in float32."""
    logits, target = jnp.full((1, 2, 2, 2), 30.0), jnp.ones((1, 2, 2, 2), bool)
    np.testing.assert_allclose(cross_entropy(SIGMOID, logits, target), np.log1p(np.exp(-30.0)), rtol=1e-5)


@TASKS
def test_an_absent_class_costs_nothing_and_keeps_a_finite_gradient(task):
    labels = np.zeros((2, 6, 5), int)
    target = task.channels(labels)
    logits = jnp.asarray(np.where(target, 200.0, -200.0), jnp.float32)
    value, gradient = jax.value_and_grad(dice_loss, argnums=1)(task, logits, jnp.asarray(target))
    np.testing.assert_allclose(value, 0, atol=1e-6)
    assert jnp.all(jnp.isfinite(gradient))


def test_the_background_is_not_in_the_dice():
    logits, target = data(SOFTMAX)
    others = target.copy()
    others[..., 0] = ~others[..., 0]
    arrays = [jnp.asarray(array) for array in (logits.astype(np.float32), target, others)]
    assert dice_loss(SOFTMAX, arrays[0], arrays[1]) == dice_loss(SOFTMAX, arrays[0], arrays[2])
    assert cross_entropy(SOFTMAX, arrays[0], arrays[1]) != cross_entropy(SOFTMAX, arrays[0], arrays[2])


@TASKS
@pytest.mark.parametrize("loss", LOSSES)
def test_jit_and_numpy_arrays(task, loss):
    logits, target = data(task)
    logits = logits.astype(np.float32)
    np.testing.assert_allclose(
        jax.jit(loss, static_argnums=0)(task, logits, target), loss(task, logits, target), rtol=1e-6
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "shapes", [((1, 4, 4, 2), (1, 4, 4, 1)), ((1, 4, 4, 3), (1, 4, 4, 3)), ((1, 4, 4, 2), (1, 4, 4))]
)
def test_refuses_other_shapes(loss, shapes):
    with pytest.raises(InputError, match=r"must both be \[batch, \*space, 2\]"):
        loss(SIGMOID, jnp.zeros(shapes[0]), jnp.zeros(shapes[1]))
