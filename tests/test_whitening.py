"""Whitening: its matrices and their gradients, the norm layer that whitens, networks with it and without it again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from toys import all_finite, assert_trees_close, pictures, random_source

from jaxtta import run, stats
from jaxtta.core import InputError, Source, Task, paths
from jaxtta.encoders.whitening import folded, groups_for
from jaxtta.methods.tent import tent
from jaxtta.models import build
from jaxtta.models.heads import FEATURES
from jaxtta.models.layers import EPSILON, Norm
from jaxtta.models.whitening import covariance, whitened, whitening_matrix
from jaxtta.schedule import schedule

CONFIGS = {
    "unet": {"architecture": "unet", "classes": 2, "features": (4, 8)},
    "unet in 3-D": {"architecture": "unet", "classes": 3, "channels": 1, "dimensions": 3, "features": (4, 8)},
    "resunet 18": {"architecture": "resunet", "classes": 2, "depth": 18, "width": 2},
    "resunet 50": {"architecture": "resunet", "classes": 2, "depth": 50, "width": 2},
}
ALWAYS = (("unet", True), ("unet in 3-D", False), ("resunet 18", True))  # all with -m slow
SPACE = {"unet": (16, 16), "unet in 3-D": (8, 8, 8), "resunet 18": (64, 64), "resunet 50": (64, 64)}
LAST = {
    "unet": ("encoder2", "norm2"),
    "unet in 3-D": ("encoder2", "norm2"),
    "resunet 18": ("encoder", "stage4_block2", "norm2"),
    "resunet 50": ("encoder", "stage4_block3", "norm3"),
}
METHODS = ("exact", "newton_schulz")
POLICIES = {
    "source": stats.source(),
    "image": stats.image(),
    "blend": stats.blend(0.3),
    "progressive": stats.progressive(),
    "running": stats.running(),
}


def features(m, d, seed=0):
    """Correlated features with a mean, `[m, d]`, whose covariance has eigenvalues of about 0.3 to 3."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
    mixed = rng.standard_normal((m, d)) * np.linspace(0.6, 1.7, d) @ basis.T
    return jnp.asarray(mixed + rng.standard_normal(d), jnp.float32)


def symmetric(eigenvalues, seed=0):
    """A random symmetric matrix of these eigenvalues, float64."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2))
    return basis * np.asarray(eigenvalues) @ basis.T


def whitening_layer(groups=1, policy=POLICIES["image"]):
    return Norm(policy, "whitening", groups)


def at(tree, path):
    return functools.reduce(lambda node, key: node[key], path, tree)


def network(name, groups=2, dtype=None):
    """A whitening network with random variables: the covariance positive definite and far from the identity."""
    model = build({**CONFIGS[name], "whitening": groups})
    params, batch_stats, _ = random_source(model)
    layer = at(batch_stats, LAST[name])
    factor = np.random.default_rng(1).standard_normal(layer["var"].shape)
    layer["var"] = factor @ factor.swapaxes(-1, -2) / factor.shape[-1] + 0.1 * np.eye(factor.shape[-1])
    cast = functools.partial(jnp.asarray, dtype=dtype or jnp.float32)
    return model, jax.tree.map(cast, Source(params, batch_stats))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("groups", [1, 4])
def test_the_covariance_of_whitened_features_is_the_identity(method, groups):
    x = features(512, 64)
    centred = x - x.mean(0)[None]
    matrix = whitening_matrix(covariance(centred, groups=groups), method=method)
    got = covariance(whitened(centred, matrix), groups=groups)
    np.testing.assert_allclose(got, np.broadcast_to(np.eye(64 // groups), got.shape), atol=1e-4)
    np.testing.assert_allclose(matrix, matrix.swapaxes(-1, -2), atol=1e-5)  # ZCA: the symmetric one of all that whiten


def test_the_matrix_is_the_inverse_square_root():
    with jax.enable_x64(True):
        sigma = jnp.asarray(np.stack([symmetric([1e-3, 0.5, 0.5, 7]), symmetric([2, 2, 2, 2])]))
        matrix = whitening_matrix(sigma, epsilon=1e-2)
        regular = sigma + 1e-2 * np.eye(4)[None]
        np.testing.assert_allclose(matrix @ regular @ matrix, np.broadcast_to(np.eye(4), (2, 4, 4)), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("values", [(0.2, 0.5, 1, 3), (0.5, 0.5, 2, 2), (1, 1, 1, 1), (1e-3, 1e-3, 1e-3, 1)])
def test_the_gradient_is_that_of_finite_differences(method, values):
    """Distinct and repeated eigenvalues, large and near none. (Differences at 0 itself would leave the covariances; the
    next test is of batches that have it.)
    """
    with jax.enable_x64(True):
        sigma = jnp.asarray(np.stack([symmetric(values), symmetric((0.3, 0.6, 1.1, 2.5), seed=1)]))
        matrix = functools.partial(whitening_matrix, method=method, epsilon=0.1)
        check_grads(matrix, (sigma,), order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("m", [24, 4])
def test_the_gradient_of_the_layer_is_that_of_finite_differences(m):
    """With as many values as a full rank needs, and with fewer."""
    with jax.enable_x64(True):
        x = jnp.asarray(features(m, 6), jnp.float64).reshape(2, m // 2, 6)
        scale, shift = jnp.linspace(0.5, 1.5, 6), jnp.linspace(-1, 1, 6)
        layer = whitening_layer(2)
        moments = layer.init(jax.random.key(0), x)["batch_stats"]

        def output(x, scale, shift):
            variables = {"params": {"scale": scale, "bias": shift}, "batch_stats": moments}
            return jnp.sin(layer.apply(variables, x, mutable=["memory"])[0])

        check_grads(output, (x, scale, shift), order=1, modes=["rev"], atol=1e-5, rtol=1e-5, eps=1e-7)


def gradients(method, x):
    """Whitened features and the gradient of a nonlinear loss with respect to the features."""

    def loss(x):
        centred = x - x.mean(0)[None]
        white = whitened(centred, whitening_matrix(covariance(centred), method=method))
        return jnp.mean(jnp.sin(3 * white)), white

    return jax.jit(jax.grad(loss, has_aux=True))(x)


@pytest.mark.parametrize("method", METHODS)
def test_constant_and_rank_deficient_batches_are_finite(method):
    x = features(256, 32)
    batches = {
        "constant": jnp.full_like(x, 0.7),
        "zero": jnp.zeros_like(x),
        "one value": x[:1],
        "fewer values than channels": x[:8],
        "equal channels": jnp.concatenate([x[:, :16], x[:, :16]], axis=1),
        "dead channels": x * (jnp.arange(32) < 20).astype(x.dtype)[None],
        "large and of rank 8": 1e3 * x[:, :8] @ features(8, 32, seed=1),
    }
    for name, batch in batches.items():
        gradient, white = gradients(method, batch)
        assert all_finite((gradient, white)), name
        if name in ("constant", "zero", "one value"):
            np.testing.assert_allclose(white, 0, atol=1e-3, err_msg=name)  # the mean's rounding error, times 316


@pytest.mark.slow
@pytest.mark.parametrize(("method", "tolerance"), [("exact", 1e-4), ("newton_schulz", 5e-3)])
def test_float32_is_stable_for_2048_channels(method, tolerance):
    """The weakest directions, 3e-5 of the trace, fall short of unit variance after 15 iterations."""
    x = np.random.default_rng(0).standard_normal((4096, 2048), dtype=np.float32) * np.linspace(0.6, 1.7, 2048)
    gradient, white = gradients(method, jnp.asarray(x, jnp.float32))
    assert all_finite((gradient, white)) and np.any(gradient)
    np.testing.assert_allclose(np.asarray(white).T @ np.asarray(white) / 4096, np.eye(2048), atol=tolerance)


def relative(a, b):
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.mark.parametrize(("least", "tolerance"), [(1e-1, 1e-5), (1e-2, 1e-5), (1e-3, 1e-4)])
def test_newton_schulz_agrees_with_the_exact_matrix(least, tolerance):
    """To 1e-5 of its norm in float32 for condition numbers to 100, to 1e-4 for 1000; and so do the gradients."""
    sigma = jnp.asarray(symmetric(np.geomspace(least, 1, 64)), jnp.float32)
    weight = jnp.asarray(np.random.default_rng(2).standard_normal((64, 64)), jnp.float32)
    pairs = []
    for method in METHODS:
        matrix, pull = jax.vjp(functools.partial(whitening_matrix, method=method), sigma)
        pairs.append((matrix, pull(weight)[0]))
    for got, expected in zip(*reversed(pairs)):
        assert relative(got, expected) < tolerance


def test_newton_schulz_lifts_a_weak_direction_by_1_5_an_iteration_at_most():
    """What it does not reach stays below unit variance, and does not diverge."""
    sigma = jnp.diag(jnp.asarray([1, 1e-3, 1e-6, 0], jnp.float32))
    diagonal = jnp.diagonal(whitening_matrix(sigma, method="newton_schulz", epsilon=1e-9))
    np.testing.assert_allclose(diagonal[:2], [1, 1e-3**-0.5], rtol=1e-4)
    assert diagonal[2] < 1e-6**-0.5 and abs(diagonal[3] - 1.5**15) < 1


def test_a_method_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(InputError, match="'pca'; choose one of exact, newton_schulz"):
        whitening_matrix(jnp.eye(2), method="pca")


@pytest.mark.parametrize("shape", [(4, 5, 7, 6), (3, 3, 4, 5, 6)])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_layer_equals_numpy_with_every_policy(policy, groups, shape):
    layer, n = whitening_layer(groups, POLICIES[policy]), 6 // groups
    images = pictures(*shape) * 3 + 1
    variables = layer.init(jax.random.key(0), images)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.broadcast_to(np.eye(n), (groups, n, n)))
    scale, shift, source_mean = pictures(6, seed=1), pictures(6, seed=2), pictures(6, seed=3)
    source_covariance = np.stack([symmetric(np.linspace(0.5, 2, n), seed=g) for g in range(groups)])
    moments = {"mean": source_mean, "var": jnp.asarray(source_covariance, jnp.float32)}
    given = {"params": {"scale": scale, "bias": shift}, "batch_stats": moments}
    got, changed = layer.apply(given, images, mutable=["memory"])

    x = np.asarray(images, np.float64).reshape(-1, 6)
    mean, count = x.mean(0), len(x)
    parts = (x - mean).reshape(count, groups, n)
    own = np.einsum("mgi,mgj->gij", parts, parts) / count
    share = {"source": 0, "image": 1, "blend": 0.3, "progressive": 0.5, "running": 1}[policy]
    mixed_mean = share * mean + (1 - share) * np.asarray(source_mean)
    values, vectors = np.linalg.eigh(share * own + (1 - share) * source_covariance + EPSILON * np.eye(n))
    matrix = np.einsum("gia,ga,gja->gij", vectors, values**-0.5, vectors)
    white = np.einsum("gij,mgj->mgi", matrix, (x - mixed_mean).reshape(count, groups, n)).reshape(shape)
    np.testing.assert_allclose(got, white * np.asarray(scale) + np.asarray(shift), atol=2e-5)
    if policy == "running":
        kept = changed["memory"]["memory"]
        np.testing.assert_allclose(kept.mean, 0.9 * np.asarray(source_mean) + 0.1 * mean, rtol=1e-5)
        expected = 0.9 * source_covariance + 0.1 * own * count / (count - 1)
        np.testing.assert_allclose(kept.variance, expected, atol=1e-6)


def test_bfloat16_images_are_whitened_in_float32():
    images = features(64, 8).reshape(2, 32, 8)
    layer = whitening_layer()
    variables = layer.init(jax.random.key(0), images)
    got = layer.apply(variables, images.astype(jnp.bfloat16), mutable=["memory"])[0]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), layer.apply(variables, images, mutable=["memory"])[0], atol=0.1)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_norm_of_the_encoder_whitens_and_no_other_variable_changes(name):
    plain = jax.eval_shape(build(CONFIGS[name]).init, jax.random.key(0))
    model = build({**CONFIGS[name], "whitening": 2})
    white = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.structure(white) == jax.tree.structure(plain)
    place = (*LAST[name], "var")
    different = [
        (path, a.shape, b.shape)
        for path, a, b in zip(paths(plain.batch_stats), *map(jax.tree.leaves, (plain.batch_stats, white.batch_stats)))
        if a.shape != b.shape
    ]
    channels = at(plain.batch_stats, place).shape[0]
    assert different == [(place, (channels,), (2, channels // 2, channels // 2))]
    images = jax.ShapeDtypeStruct((2, *SPACE[name], model.channels), jnp.float32)
    variables = white._asdict()
    deepest = jax.eval_shape(lambda v, x: model.apply(v, x, stats=stats.image(), heads=(FEATURES,)), variables, images)
    assert deepest[0][FEATURES].shape[-1] == channels


def test_a_fresh_covariance_is_the_identity():
    source = build({**CONFIGS["unet"], "whitening": 2}).init(jax.random.key(0))
    np.testing.assert_array_equal(at(source.batch_stats, LAST["unet"])["var"], np.broadcast_to(np.eye(4), (2, 4, 4)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"whitening": 3}, "whitening is 3 groups of the encoder's 8 last channels; .* 0 .* one of 1, 2, 4, 8"),
        ("unet", {"whitening": -2}, "whitening is -2 groups"),
        ("unet", {"whitening": 2.0}, "whitening is 2.0 groups"),
        ("unet", {"whitening": 2, "norm": "instance"}, "whitening needs batch norm, but norm is 'instance'"),
        ("resunet 18", {"whitening": 5}, "5 groups of the encoder's 16 last channels"),
        ("resunet 50", {"whitening": 128}, "128 groups of the encoder's 64 last channels"),
    ],
)
def test_groups_that_cannot_be_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        build({**CONFIGS[name], **options})


@pytest.mark.parametrize("policy", POLICIES)
def test_a_whitening_network_carries_the_memory_of_every_policy(policy):
    model, source = network("unet")
    images = pictures(2, *SPACE["unet"], 3)
    variables = {**source._asdict(), "memory": stats.initial_memory(POLICIES[policy], source.batch_stats)}
    outputs, memory = model.apply(variables, images, stats=POLICIES[policy])
    assert all_finite(outputs)
    expected = variables["memory"]
    assert jax.tree.map(jnp.shape, memory) == jax.tree.map(jnp.shape, expected)
    if policy == "running":
        after = stats.remembered(memory, source.batch_stats)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, source.batch_stats)


@pytest.mark.parametrize(
    ("name", "encoder_alone"),
    [
        pytest.param(name, alone, marks=() if (name, alone) in ALWAYS else pytest.mark.slow)
        for name in CONFIGS
        for alone in (False, True)
    ],
)
def test_a_folded_network_is_an_ordinary_one_with_the_same_outputs(name, encoder_alone):
    with jax.enable_x64(True):
        model, source = network(name, dtype=jnp.float64)
        heads = (FEATURES,) if encoder_alone else (FEATURES, "segmentation")
        if encoder_alone:
            source = Source(*({k: v for k, v in tree.items() if k.startswith("encoder")} for tree in source))
        before = jax.tree.map(np.asarray, source)
        config, plain = folded(model, source)
        assert config == build(CONFIGS[name]).config
        images = jnp.asarray(pictures(2, *SPACE[name], model.channels), jnp.float64)
        got, expected = (
            jax.jit(lambda v, x, m=m: m.apply(v, x, stats=stats.source(), heads=heads)[0])(v._asdict(), images)
            for m, v in ((build(config), plain), (model, source))
        )
        assert_trees_close(got, expected, atol=1e-10)
        assert float(jnp.max(expected[FEATURES])) > 0.1
        assert_trees_close(source, before)
        fresh = jax.eval_shape(build(config).init, jax.random.key(0))
        kept = Source(*({k: v for k, v in tree.items() if k in ours} for tree, ours in zip(fresh, plain)))
        assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, kept)


def test_a_folded_network_is_as_exact_as_its_dtype():
    model, source = network("unet")
    config, plain = folded(model, source)
    images = pictures(2, *SPACE["unet"], 3)
    got, expected = (
        m.apply(v._asdict(), images, stats=stats.source())[0] for m, v in ((build(config), plain), (model, source))
    )
    assert_trees_close(got, expected, atol=1e-5)


def test_a_network_that_does_not_whiten_is_folded_to_itself():
    model = build(CONFIGS["unet"])
    source = random_source(model)
    config, plain = folded(model, source)
    assert config == model.config
    assert_trees_close(plain, source._replace(calibration={}))


def test_a_batch_over_four_devices_is_whitened_as_a_whole():
    model, source = network("unet")
    # Images of different brightness: statistics of a part would be others.
    images = pictures(4, *SPACE["unet"], 3) * jnp.linspace(0.2, 1, 4)[:, None, None, None]

    def train(params, batch_stats, images):
        def loss(params):
            variables = {"params": params, "batch_stats": batch_stats}
            outputs, memory = model.apply(variables, images, stats=stats.running(), heads=(FEATURES, "segmentation"))
            return sum(jnp.mean(jnp.sin(x)) for x in outputs.values()), stats.remembered(memory, batch_stats)

        return jax.value_and_grad(loss, has_aux=True)(params)

    mesh = run.device_mesh(4)
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("device"))
    sharded = jax.jit(train, in_shardings=(everywhere, everywhere, split), out_shardings=everywhere)
    got = sharded(*source[:2], images)
    assert len(jax.tree.leaves(got)[0].sharding.device_set) == 4
    assert_trees_close(jax.device_get(got), jax.device_get(jax.jit(train)(*source[:2], images)), atol=1e-5, rtol=1e-4)


def test_streams_over_devices_adapt_a_whitening_network_as_one_does():
    model, source = network("unet")
    task, (init, step) = Task(2), run.compiled(tent(model, Task(2), optimiser=optax.sgd(1e-2)))
    images, key = pictures(4, 1, *SPACE["unet"], 3), jax.random.key(3)
    streams = run.Streams(tent(model, task, optimiser=optax.sgd(1e-2)), source, task, places=4, mesh=run.device_mesh(4))
    tick = schedule([1] * 4, 4)[0]
    _, (probabilities, _) = streams.step(key, tick, streams.begin(np.asarray(images)), np.asarray(images))
    for stream in range(4):
        folded_key = jax.random.fold_in(key, jnp.uint32(stream))
        _, output = step(folded_key, jnp.uint32(0), source, init(source, images[stream]), images[stream])
        np.testing.assert_allclose(probabilities[stream], task.probabilities(output.logits), atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "count", "groups"),
    [(2048, 7744, 1), (2048, 4096, 1), (2048, 4095, 2), (2048, 256, 16), (96, 38, 6), (96, 37, 6), (96, 35, 6)]
    + [(96, 27, 8), (7, 13, 7), (8, 1, 8), (5, 2, 5)],
)
def test_groups_have_two_values_for_every_channel(channels, count, groups):
    assert groups_for(channels, count) == groups
    assert channels % groups == 0 and (count >= 2 * channels / groups or groups == channels)
