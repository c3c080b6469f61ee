"""DomainAdaptor: the adaptive mixture, the transformation of the affines and the generalised entropy, by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import assert_trees_close, pictures, toy

from jaxtta import stats
from jaxtta.core import InputError, Moments, Task, norm_affine, partition
from jaxtta.methods.domain_adaptor import adaptive, domain_adaptor, generalised_entropy, transformed

KEY = jax.random.key(4)


def mixture_of(x, source):
    policy = adaptive()
    return policy.mix(policy.measure(x), source, policy.init(source))


def expected_share(x, mean, variance):
    def moments(y):
        return y.reshape(-1, y.shape[-1]).mean(0), y.reshape(-1, y.shape[-1]).std(0)

    def distance(a, b):
        return ((a[0] - b[0]) ** 2).mean() + ((a[1] - b[1]) ** 2).mean()

    source, batch = (mean, np.sqrt(variance)), moments(x)
    apart = distance(source, batch)
    each = [1 - apart / (apart + distance(source, moments(i)) + distance(batch, moments(i))) for i in x]
    return np.mean(each)


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (3, 4, 4, 4, 2), (1, 5, 6, 3)])
def test_the_share_of_the_source_follows_the_distances(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) + rng.normal(size=(shape[0], *[1] * (len(shape) - 2), shape[-1]))
    mean, variance = rng.normal(size=shape[-1]), rng.uniform(0.5, 2, shape[-1])
    share = expected_share(x, mean, variance)
    with jax.enable_x64(True):
        mixed, record = mixture_of(jnp.asarray(x), Moments(jnp.asarray(mean), jnp.asarray(variance), 1))
    np.testing.assert_allclose(record.share, share, rtol=1e-10)
    axes = tuple(range(len(shape) - 1))
    np.testing.assert_allclose(mixed.mean, share * mean + (1 - share) * x.mean(axes), rtol=1e-9)
    np.testing.assert_allclose(mixed.variance, share * variance + (1 - share) * x.var(axes), rtol=1e-9)
    if shape[0] == 1:
        np.testing.assert_allclose(share, 0.5)


def test_images_that_differ_more_than_the_domains_leave_the_share_to_the_source():
    images = jnp.stack([jnp.full((4, 4, 2), level) for level in (-5.0, 5.0)])
    source = Moments(jnp.zeros(2), jnp.full(2, 24.0), 1)
    assert mixture_of(images, source)[1].share > 0.9
    same = mixture_of(jnp.zeros((2, 4, 4, 2)), Moments(jnp.zeros(2), jnp.zeros(2), 1))
    assert same[1].share == 0.5


@pytest.mark.parametrize(("dimensions", "activation"), [(2, "sigmoid"), (3, "softmax")])
def test_transformed_affines_give_under_the_images_statistics_what_the_mixture_gives(dimensions, activation):
    model, _, variables, space = toy(dimensions, activation)
    images = pictures(2, *space, model.channels)
    outputs, memory = model.apply(variables._asdict(), images, stats=adaptive())
    params = transformed(variables.params, memory)
    assert jax.tree.structure(params) == jax.tree.structure(variables.params)
    got = model.apply({**variables._asdict(), "params": params}, images, stats=stats.image())[0]
    np.testing.assert_allclose(got["segmentation"], outputs["segmentation"], atol=1e-4)
    plain = model.apply(variables._asdict(), images, stats=stats.image())[0]
    assert not np.allclose(got["segmentation"], plain["segmentation"], atol=1e-2)


def test_the_generalised_entropy_of_both_tasks():
    rng = np.random.default_rng(2)
    z = rng.normal(size=(2, 4, 5, 3)) * 3

    def entropy(z):
        t = 2 * z.std(-1, ddof=1, keepdims=True)
        p = np.exp(z / t) / np.exp(z / t).sum(-1, keepdims=True)
        return -(p * np.log(p)).sum(-1) * t[..., 0] ** 2

    with jax.enable_x64(True):
        got = generalised_entropy(Task(3, "softmax"), jnp.asarray(z), 2.0)
        np.testing.assert_allclose(got, entropy(z).mean(), rtol=1e-10)
        got = generalised_entropy(Task(3), jnp.asarray(z), 2.0)
        pairs = np.stack([z, np.zeros_like(z)], -1)
        np.testing.assert_allclose(got, entropy(pairs).sum(-1).mean(), rtol=1e-10)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_certain_pixels_feel_the_generalised_entropy_and_equal_logits_nothing(activation):
    task = Task(2, activation)

    def slope(scale):
        logits = scale * jnp.asarray([[1.0, -1.0]])
        return np.asarray(jax.grad(lambda z: generalised_entropy(task, z, 2.0))(logits))

    np.testing.assert_allclose(slope(40.0), 40 * slope(1.0), rtol=1e-4)
    assert (np.abs(slope(40.0)) > 1).all()
    assert (slope(1.0) * np.array([[1, -1]]) < 0).all()  # descent makes a certain pixel more certain
    np.testing.assert_allclose(slope(0.0), 0)


def test_a_step_starts_from_the_source_each_time_and_descends():
    model, task, variables, space = toy()
    images = pictures(2, 1, *space, 3)
    method = domain_adaptor(model, task, optimiser=optax.sgd(1e-2))
    step, first = jax.jit(method.step), method.init(variables, images[0])
    after, _ = step(KEY, variables, first, images[0])
    fresh, later = step(KEY, variables, first, images[1]), step(KEY, variables, after, images[1])
    assert_trees_close(later, fresh)
    params = transformed(variables.params, model.apply(variables._asdict(), images[1], stats=adaptive())[1])

    @jax.jit
    @jax.value_and_grad
    def loss_and_slope(update):
        moved = optax.apply_updates(params, update)
        logits = model.apply({**variables._asdict(), "params": moved}, images[1], stats=stats.image())[0]
        return generalised_entropy(task, logits["segmentation"], 2.0)

    zero = jax.tree.map(jnp.zeros_like, params)
    loss, gradient = loss_and_slope(zero)
    expected = jax.tree.map(lambda g: -1e-2 * g, partition(gradient, norm_affine)[0])
    assert_trees_close(fresh[0].update, expected, atol=1e-5)
    np.testing.assert_allclose(fresh[1].info["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(fresh[1].info["source_share"], 0.5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_cannot_be_says_what_is_expected(temperature):
    model, task, _, _ = toy()
    with pytest.raises(InputError, match=f"temperature is {temperature!r}; expected a positive number"):
        domain_adaptor(model, task, temperature=temperature)
