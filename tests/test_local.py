"""The local loss: its value where it is known, its gradient, and the released one that has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads
from toys import pictures, toy

from jaxtta import stats
from jaxtta.core import InputError
from jaxtta.encoders.local import descriptors, local_loss, normalised, require_regions
from jaxtta.models.heads import FEATURES

TEMPERATURE = 0.2


def maps(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def orthonormal(side=6):
    """A map whose nine regions are nine orthonormal vectors."""
    index = np.kron(np.arange(9).reshape(3, 3), np.ones((side // 3, side // 3), int))
    return jnp.asarray(np.eye(9, dtype=np.float32)[index])[None]


@pytest.mark.parametrize("height, width", [(3, 3), (8, 8), (7, 12), (11, 5)])
def test_descriptors_are_normalised_means_of_nine_squares_evenly_spread(height, width):
    features = maps(2, height, width, 4)
    side, expected = min(height, width) // 3, []
    for i in range(3):
        for j in range(3):
            top, left = i * (height - side) // 2, j * (width - side) // 2
            mean = np.asarray(features)[:, top : top + side, left : left + side].mean((1, 2))
            expected.append(mean / np.linalg.norm(mean, axis=-1, keepdims=True))
    np.testing.assert_allclose(descriptors(features), np.stack(expected, axis=1), atol=1e-6)


def test_regions_that_are_all_alike_cost_log_nine():
    constant = jnp.full((2, 6, 6, 4), 0.3)
    assert local_loss(constant, constant, temperature=TEMPERATURE) == pytest.approx(np.log(9), abs=1e-6)
    zeros = jnp.zeros_like(constant)
    value, gradient = jax.value_and_grad(local_loss)(zeros, zeros, temperature=TEMPERATURE)
    assert value == pytest.approx(np.log(9), abs=1e-6)
    assert jnp.isfinite(gradient).all()


def test_orthonormal_regions_cost_next_to_nothing():
    features = orthonormal()
    assert local_loss(features, features, temperature=0.05) < 1e-6
    expected = np.log(1 + 8 * np.exp(-1 / TEMPERATURE))
    assert local_loss(features, features, temperature=TEMPERATURE) == pytest.approx(expected, rel=1e-5)
    # Regions that moved are told from one another, but not matched.
    assert local_loss(features, jnp.roll(features, 2, axis=1), temperature=TEMPERATURE) > 4


def test_the_loss_is_a_cross_entropy_within_each_map():
    query, key = maps(3, 7, 9, 5), maps(3, 7, 9, 5, seed=1)
    u, v = (np.asarray(descriptors(part), np.float64) for part in (query, key))
    scores = np.exp(np.einsum("bic,bjc->bij", u, v) / TEMPERATURE)
    expected = -np.log(np.einsum("bii->bi", scores) / scores.sum(-1)).mean()
    assert local_loss(query, key, temperature=TEMPERATURE) == pytest.approx(expected, rel=1e-5)
    alone = [local_loss(query[i : i + 1], key[i : i + 1], temperature=TEMPERATURE) for i in range(3)]
    assert np.mean(alone) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_is_right_and_reaches_the_query_alone():
    query, key = maps(2, 6, 7, 3), maps(2, 6, 7, 3, seed=1)
    to_query, to_key = jax.grad(local_loss, (0, 1))(query, key, temperature=TEMPERATURE)
    assert jnp.abs(to_query).max() > 1e-3 and not to_key.any()
    with jax.enable_x64(True):
        key = jnp.asarray(np.asarray(key, np.float64))
        query = jnp.asarray(np.asarray(query, np.float64))
        check_grads(lambda q: local_loss(q, key, temperature=TEMPERATURE), (query,), order=1, modes=["rev"])


def test_the_loss_trains_the_network_and_the_released_one_does_not():
    """The released loss takes its regions from the max-pooled input, so no parameter can change it."""
    model, _, source, space = toy()
    images, other = pictures(2, *space, 3), pictures(2, *space, 3, seed=1)

    def features(params, images):
        variables = {"params": params, "batch_stats": source.batch_stats}
        return model.apply(variables, images, stats=stats.image(), heads=(FEATURES,))[0][FEATURES]

    def ours(params):
        return local_loss(features(params, images), features(params, other), temperature=TEMPERATURE)

    def released(params):
        del params
        pooled = (nn.max_pool(part, (2, 2), (2, 2)) for part in (images, other))
        return local_loss(*pooled, temperature=TEMPERATURE)

    def largest(loss):
        value, gradient = jax.value_and_grad(loss)(source.params)
        assert jnp.isfinite(value)
        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))

    assert largest(ours) > 1e-3
    assert largest(released) == 0


def test_vectors_are_made_of_length_one_or_stay_zero():
    vectors = jnp.concatenate([maps(3, 4), jnp.zeros((1, 4))])
    lengths = np.linalg.norm(normalised(vectors), axis=-1)
    np.testing.assert_allclose(lengths, [1, 1, 1, 0], atol=1e-6)
    assert jnp.isfinite(jax.grad(lambda x: jnp.sum(normalised(x)))(vectors)).all()


def test_maps_without_regions_are_refused_with_the_size_that_has_them():
    with pytest.raises(InputError, match=r"which is 2 x 3 for images of 64 x 96 at stride 32; .* at least 65 x 65"):
        require_regions((64, 96), stride=32)
    require_regions((65, 65), stride=32)
    with pytest.raises(InputError, match="at least 3 x 3"):
        local_loss(maps(1, 2, 6, 4), maps(1, 2, 6, 4), temperature=TEMPERATURE)
