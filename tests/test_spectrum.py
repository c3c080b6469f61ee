"""Singular values, effective rank and the count of dimensions, against embeddings whose spectrum is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtta.core import InputError
from jaxtta.encoders.spectrum import batch_effective_rank, dimensions_above, effective_rank, singular_values, spoken


def gaussian(images=64, dimensions=12, rank=None, seed=0):
    rng = np.random.default_rng(seed)
    rank = rank or dimensions
    return rng.standard_normal((images, rank)) @ rng.standard_normal((rank, dimensions))


def test_singular_values_are_those_of_the_covariance_of_rows_of_length_one():
    embeddings = gaussian()
    rows = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    expected = np.linalg.svd(np.cov(rows, rowvar=False, bias=True), compute_uv=False)
    np.testing.assert_allclose(singular_values(embeddings), expected, rtol=1e-12)
    scaled = embeddings * np.random.default_rng(1).uniform(0.1, 10, (len(embeddings), 1))
    np.testing.assert_allclose(singular_values(scaled), expected, rtol=1e-12)


@pytest.mark.parametrize("images, dimensions, rank", [(64, 12, 5), (6, 12, 12)])
def test_directions_without_variance_count_as_none(images, dimensions, rank):
    values = singular_values(gaussian(images, dimensions, rank))
    assert values.shape == (dimensions,) and (np.diff(values) <= 0).all() and (values >= 0).all()
    assert dimensions_above(values) == min(rank, images - 1)


def test_a_rank_of_few_embeddings_is_not_told():
    assert spoken(0.0, embeddings=1) == "not to be told from 1 images, 8 are needed"
    assert spoken(3.14159, embeddings=8) == "3.14"


def test_the_effective_rank_of_equal_values_is_their_number_and_of_none_zero():
    assert effective_rank(np.full(7, 0.3)) == pytest.approx(7)
    assert effective_rank(np.array([2.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(np.array([1.0, 1.0, 1e-12])) == pytest.approx(2, abs=1e-6)
    assert effective_rank(np.zeros(4)) == 0
    shares = np.array([0.5, 0.3, 0.2])
    assert effective_rank(5 * shares) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_dimensions_are_counted_against_the_largest():
    values = np.array([1.0, 2e-6, 5e-7])
    assert dimensions_above(values) == 2
    assert dimensions_above(1e-9 * values) == 2
    assert dimensions_above(values, share=0.1) == 1
    assert dimensions_above(np.zeros(3)) == 0


@pytest.mark.parametrize("images, dimensions, rank", [(32, 12, 12), (8, 40, 40), (32, 12, 3)])
def test_the_measure_inside_a_program_is_the_same(images, dimensions, rank):
    embeddings = gaussian(images, dimensions, rank)
    expected = effective_rank(singular_values(embeddings))
    got = jax.jit(batch_effective_rank)(jnp.asarray(embeddings, jnp.float32))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-3)
    with jax.enable_x64(True):
        np.testing.assert_allclose(batch_effective_rank(jnp.asarray(embeddings)), expected, rtol=1e-10)


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_equal_embeddings_have_none(value):
    embeddings = np.full((8, 5), value, np.float32)
    assert batch_effective_rank(jnp.asarray(embeddings)) == 0
    assert dimensions_above(np.round(singular_values(embeddings), 12)) == 0


@pytest.mark.parametrize(
    "embeddings, told",
    [
        (np.zeros(4), r"\[images, dimensions\], got \[4\]"),
        (np.zeros((0, 4)), r"got \[0, 4\]"),
        (np.array([[1.0, np.nan]]), "not finite"),
    ],
)
def test_what_is_no_set_of_embeddings_is_refused(embeddings, told):
    with pytest.raises(InputError, match=told):
        singular_values(embeddings)
