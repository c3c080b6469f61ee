"""Statistics policies against NumPy and against what PyTorch keeps; their memory through a whole network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import assert_trees_close, equations, pictures, random_source, toy

from jaxtta import stats
from jaxtta.core import Moments
from jaxtta.models import build
from jaxtta.models.layers import EPSILON, Norm

POLICIES = {
    "source": stats.source(),
    "image": stats.image(),
    "blend": stats.blend(0.3),
    "progressive": stats.progressive(2.0),
    "running": stats.running(0.2),
}


def moments(seed, count=48):
    rng = np.random.default_rng(seed)
    return Moments(
        jnp.asarray(rng.normal(size=5), jnp.float32), jnp.asarray(rng.uniform(0.5, 2, 5), jnp.float32), count
    )


IMAGES, SOURCE = [moments(1), moments(2), moments(3)], moments(0, count=1)


def shares(name):
    """The image's share of the moments at each of three images."""
    growing = [np.sqrt(n) / (np.sqrt(n) + 2.0) for n in (1, 2, 3)]
    return {"source": [0, 0, 0], "image": [1, 1, 1], "blend": [0.3] * 3, "progressive": growing, "running": [1, 1, 1]}[
        name
    ]


@pytest.mark.parametrize("name", POLICIES)
def test_the_moments_along_a_stream_are_the_stated_mixture(name):
    policy = POLICIES[name]
    memory = policy.init(SOURCE)
    for image, share in zip(IMAGES, shares(name)):
        mixed, memory = policy.mix(image, SOURCE, memory)
        for field in ("mean", "variance"):
            expected = share * np.asarray(getattr(image, field)) + (1 - share) * np.asarray(getattr(SOURCE, field))
            np.testing.assert_allclose(getattr(mixed, field), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["source", "image", "blend"])
def test_policies_without_a_past_have_an_empty_memory(name):
    memory = POLICIES[name].init(SOURCE)
    assert jax.tree.leaves(memory) == []
    assert POLICIES[name].mix(IMAGES[0], SOURCE, memory)[1] == memory


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_ends_of_a_blend_are_source_and_image(weight):
    mixed, _ = stats.blend(weight).mix(IMAGES[0], SOURCE, ())
    assert_trees_close(mixed[:2], (IMAGES[0] if weight else SOURCE)[:2])


def test_progressive_counts_its_images_and_repeats_the_last_without_counting():
    policy, still = stats.progressive(2.0), stats.progressive(2.0, counts=False)
    memory = policy.init(SOURCE)
    mixed, untouched = still.mix(IMAGES[0], SOURCE, memory)
    assert_trees_close(mixed[:2], SOURCE[:2])
    assert untouched == 0
    for image in IMAGES:
        mixed, memory = policy.mix(image, SOURCE, memory)
        again, after = still.mix(image, SOURCE, memory)
        assert_trees_close(again, mixed)
        assert after == memory
    assert memory == 3


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (2, 3, 3, 3, 4), (1, 1, 1, 3)])
def test_running_moments_are_kept_as_pytorch_keeps_them(momentum, shape):
    """`running ← (1 − m) · running + m · batch` with the unbiased variance; the layer divides by the biased."""
    norm = Norm(stats.running(momentum))
    mean, variance = np.zeros(shape[-1]), np.ones(shape[-1])
    variables = norm.init(jax.random.key(0), jnp.zeros(shape, jnp.float32))
    for seed in range(3):
        images = pictures(*shape, seed=seed)
        normalised, memory = norm.apply(variables, images, mutable=["memory"])
        variables = {**variables, **memory}
        flat = np.asarray(images, np.float64).reshape(-1, shape[-1])
        unbiased = flat.var(0) * len(flat) / max(len(flat) - 1, 1)
        mean, variance = (
            (1 - momentum) * mean + momentum * flat.mean(0),
            (1 - momentum) * variance + momentum * unbiased,
        )
        expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + EPSILON)
        np.testing.assert_allclose(np.asarray(normalised).reshape(flat.shape), expected, atol=1e-5)
    kept = variables["memory"]["memory"]
    np.testing.assert_allclose(kept.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(kept.variance, variance, rtol=1e-5)


def test_the_variance_is_two_pass():
    """In float32, mean of squares minus square of mean is worth nothing at mean / deviation = 1e4."""
    images = np.random.default_rng(0).normal(1e4, 1.0, (2, 16, 16, 3)).astype(np.float32)
    norm = Norm(stats.running(1.0))
    variables = norm.init(jax.random.key(0), jnp.zeros_like(images))
    normalised, changed = norm.apply(variables, images, mutable=["memory"])
    flat = images.astype(np.float64).reshape(-1, 3)
    np.testing.assert_allclose(changed["memory"]["memory"].variance, flat.var(0, ddof=1), rtol=1e-4)
    expected = ((flat - flat.mean(0)) / np.sqrt(flat.var(0) + EPSILON)).reshape(images.shape)
    np.testing.assert_allclose(normalised, expected, atol=5e-3)  # what float32 resolves at 1e4


def plain(scale, shift, x, axes):
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + EPSILON) * scale.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)


@pytest.mark.parametrize(
    ("kind", "axes"), [("batch", (0, 1, 2)), pytest.param("instance", (1, 2), marks=pytest.mark.slow)]
)
def test_first_and_second_derivatives_are_those_of_the_plain_formula(kind, axes):
    norm = Norm(stats.image(), kind)
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (2, 3, 4, 2), jnp.float64) + 3
        weights = jax.random.normal(jax.random.key(1), x.shape, jnp.float64)
        variables = norm.init(jax.random.key(2), x)
        moved = jnp.asarray([0.5, 2.0]), jnp.asarray([0.3, -1.0])

        def ours(scale, shift, x):
            own = {**variables, "params": {"scale": scale, "bias": shift}}
            return jnp.vdot(weights, norm.apply(own, x, mutable=["memory"])[0] ** 2)

        def expected(scale, shift, x):
            return jnp.vdot(weights, plain(scale, shift, x, axes) ** 2)

        for derivative in (jax.grad, jax.hessian):
            got, wanted = (derivative(f, (0, 1, 2))(*moved, x) for f in (ours, expected))
            assert_trees_close(got, wanted, rtol=1e-10, atol=1e-10)


def sums(program, *arguments, size):
    """How many sums over at least so many numbers a program takes."""
    found = equations(jax.make_jaxpr(program)(*arguments).jaxpr)
    return sum(each.primitive.name == "reduce_sum" and each.invars[0].aval.size >= size for each in found)


@pytest.mark.parametrize("kind", ["batch", "instance", "group"])
def test_a_norm_takes_two_sums_over_its_map_and_its_gradient_two_more(kind):
    norm, x = Norm(stats.image(), kind, groups=2), pictures(2, 8, 8, 4)
    variables = norm.init(jax.random.key(0), x)

    def loss(params, x):
        return norm.apply({**variables, "params": params}, x, mutable=["memory"])[0].ravel()[0]

    assert sums(loss, variables["params"], x, size=x.size) == 2
    assert sums(jax.grad(loss, (0, 1)), variables["params"], x, size=x.size) == 4


@pytest.mark.parametrize("name", POLICIES)
def test_the_network_carries_the_memory_of_every_layer(name):
    model, _, source, space = toy()
    policy, images = POLICIES[name], pictures(2, *space, 3)
    fresh = stats.initial_memory(policy, source.batch_stats)
    variables = source._asdict()
    first = model.apply(variables, images, stats=policy)
    assert_trees_close(first, model.apply({**variables, "memory": fresh}, images, stats=policy))
    second = model.apply({**variables, "memory": first[1]}, images, stats=policy)
    touched = model.apply({**variables, "memory": fresh}, images, stats=policy, heads=model.heads)[1]
    assert jax.tree.structure(touched) == jax.tree.structure(fresh)
    if name == "progressive":
        counts = [np.unique([float(leaf) for leaf in jax.tree.leaves(memory)]) for _, memory in (first, second)]
        assert counts[1].max() == 2 and counts[0].max() == 1
        assert not np.allclose(first[0]["segmentation"], second[0]["segmentation"])
    if name == "running":
        kept = stats.remembered(touched, source.batch_stats)
        assert jax.tree.structure(kept) == jax.tree.structure(source.batch_stats)


def test_layers_of_heads_that_are_not_asked_for_keep_their_memory():
    heads = ("segmentation", "reconstruction")
    model = build({"architecture": "unet", "classes": 2, "features": (4, 4, 8), "heads": heads})
    source, policy = random_source(model), stats.running(0.5)
    fresh = stats.initial_memory(policy, source.batch_stats)
    _, memory = model.apply({**source._asdict(), "memory": fresh}, pictures(1, 16, 16, 3), stats=policy)
    assert_trees_close(memory["reconstruction"], fresh["reconstruction"])
    assert not np.allclose(memory["encoder1"]["norm1"]["memory"].mean, fresh["encoder1"]["norm1"]["memory"].mean)
