"""AC-Norm against the released layer, as one batch norm, and what it costs beside a convolution."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from toys import assert_trees_close, pictures, random_source, toy

from jaxtta import stats
from jaxtta.core import InputError, norm_affine, partition
from jaxtta.models.layers import EPSILON, Norm
from jaxtta.transfer.ac_norm import collaborated, collaboration, require_batch_norm, running

GOLDENS = np.load(Path(__file__).parent / "goldens" / "acnorm_public.npz")
CASES = [(space, temperature) for space in ("2d", "3d") for temperature in (1.0, 0.1)]


@pytest.fixture
def in_float64():
    with jax.enable_x64(True):
        yield


def golden(space, temperature):
    """The arrays of one case, channels last."""
    prefix = f"{space}/tem{temperature:g}/"
    arrays = {name.removeprefix(prefix): GOLDENS[name] for name in GOLDENS.files if name.startswith(prefix)}
    return {name: jnp.asarray(np.moveaxis(a, 1, -1) if a.ndim > 1 else a) for name, a in arrays.items()}


def affines(case, suffix=""):
    return {"scale": case[f"weight{suffix}"], "bias": case[f"bias{suffix}"]}


def layer(case, policy, temperature):
    """`(affines, images) -> (output, memory)` of the one norm layer, with AC-Norm's parameters."""
    moments = {"mean": case["running_mean"], "var": case["running_var"]}

    def apply(target, images):
        variables = {"params": collaborated(target, affines(case), temperature=temperature), "batch_stats": moments}
        return Norm(policy).apply(variables, images, mutable=["memory"])

    return apply


@pytest.mark.parametrize("space, temperature", CASES)
def test_outputs_gradients_and_running_statistics_are_the_releases(in_float64, space, temperature):
    case = golden(space, temperature)
    target, images = affines(case, "_target"), case["input"]
    close = {"rtol": 1e-9, "atol": 1e-9}
    inference = layer(case, stats.source(), temperature)(target, images)[0]
    np.testing.assert_allclose(inference, case["eval"], **close)
    training = layer(case, running(doubled=True), temperature)
    output, changed = training(target, images)
    np.testing.assert_allclose(output, case["train"], **close)
    memory = changed["memory"]["memory"]
    np.testing.assert_allclose(memory.mean, case["running_mean_after_one_train_call"], **close)
    np.testing.assert_allclose(memory.variance, case["running_var_after_one_train_call"], **close)
    gradient = jax.grad(lambda t, x: jnp.sum(training(t, x)[0] * case["cotangent"]), argnums=(0, 1))(target, images)
    np.testing.assert_allclose(gradient[0]["scale"], case["grad_weight_target"], **close)
    np.testing.assert_allclose(gradient[0]["bias"], case["grad_bias_target"], **close)
    np.testing.assert_allclose(gradient[1], case["grad_input"], **close)


def test_running_statistics_move_once_a_step_unless_told(in_float64):
    case = golden("2d", 1.0)
    once = layer(case, running(), 1.0)(affines(case), case["input"])[1]["memory"]["memory"]
    twice = layer(case, running(doubled=True), 1.0)(affines(case), case["input"])[1]["memory"]["memory"]
    batch = jnp.mean(case["input"], (0, 1, 2))
    np.testing.assert_allclose(once.mean, 0.9 * case["running_mean"] + 0.1 * batch, rtol=1e-12)
    np.testing.assert_allclose(twice.mean, 0.9 * once.mean + 0.1 * batch, rtol=1e-12)


@pytest.mark.parametrize("space", ["2d", "3d"])
def test_it_is_the_sum_of_two_batch_norms(in_float64, space):
    """Which is why it folds: the sum and the one norm differ by rounding alone."""
    case = golden(space, 1.0)
    target = affines(case, "_target")
    folded = np.asarray(layer(case, stats.source(), 1.0)(target, case["input"])[0])
    matrix = np.asarray(collaboration(*target.values(), *affines(case).values()))
    images, mean, variance, scale, shift = (
        np.asarray(case[k]) for k in ("input", "running_mean", "running_var", "weight_target", "bias_target")
    )
    normal = (images - mean) / np.sqrt(variance + EPSILON)
    first, second = normal * scale + shift, normal * (matrix @ scale) + matrix @ shift
    assert np.abs(first + second - folded).max() < 1e-12


def with_two_norms(source_params, params, batch_stats):
    """What the release does at each norm layer: the layer's own output and that of a second one with mixed affines."""

    def interceptor(call, arguments, keywords, context):
        # The second one is called from here too; it has no place in the network.
        norm = isinstance(context.module, Norm) and context.method_name == "__call__" and context.module.path
        if not norm:
            return call(*arguments, **keywords)
        own, theirs, moments = params, source_params, batch_stats
        for part in context.module.path:
            own, theirs, moments = own[part], theirs[part], moments[part]
        matrix = collaboration(own["scale"], own["bias"], theirs["scale"], theirs["bias"])
        mixed = {name: matrix @ own[name] for name in own}
        variables = {"params": mixed, "batch_stats": moments}
        second, _ = Norm(stats.source(), parent=None).apply(variables, *arguments, mutable=["memory"])
        return call(*arguments, **keywords) + second

    return nn.intercept_methods(interceptor)


@pytest.mark.parametrize("dimensions", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_network_folds_exactly(in_float64, dimensions):
    made = toy(dimensions)
    source, other = (
        jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), random_source(made.model, seed)) for seed in (1, 2)
    )
    images = jnp.asarray(np.random.default_rng(0).random((2, *made.space, made.model.channels)))

    def logits(params):
        variables = {"params": params, "batch_stats": source.batch_stats}
        return made.model.apply(variables, images, stats=stats.source())[0]["segmentation"]

    with with_two_norms(source.params, other.params, source.batch_stats):
        two = logits(other.params)
    folded = logits(collaborated(other.params, source.params))
    assert float(jnp.abs(two - folded).max()) < 1e-12 * float(jnp.abs(two).max())
    assert float(jnp.abs(two - logits(other.params)).max()) > 1e-3


def test_the_matrix_keeps_what_is_at_least_the_diagonal():
    scale, shift = jnp.asarray([1.0, -2.0, 0.5]), jnp.asarray([0.1, 0.4, -0.3])
    source_scale, source_shift = jnp.asarray([1.0, 1.0, 1.0]), jnp.asarray([0.3, 0.15, -0.6])
    matrix = np.asarray(collaboration(scale, shift, source_scale, source_shift))
    distance = np.abs(np.array([0.1, 0.2, -0.6])[:, None] - np.array([0.3, 0.15, -0.6])[None])
    whole = np.exp(-distance) / np.exp(-distance).sum(1, keepdims=True)
    kept = distance <= np.diagonal(distance)[:, None] + 1e-4
    np.testing.assert_allclose(matrix, np.where(kept, whole, 0), atol=1e-5)
    assert matrix.astype(bool).tolist() == [[True, True, False], [False, True, False], [False, False, True]]


def test_it_is_finite_where_affines_are_zero():
    nothing = {"norm": {"scale": jnp.zeros(4), "bias": jnp.zeros(4)}}
    ones = {"norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}
    assert_trees_close(collaborated(nothing, nothing), nothing)
    # All channels alike: each takes a quarter of each.
    assert_trees_close(collaborated(ones, ones), {"norm": {"scale": jnp.full(4, 2.0), "bias": jnp.zeros(4)}})


@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_norm_layer_of_a_network_is_changed_and_nothing_else(dimensions):
    made = toy(dimensions)
    source = random_source(made.model, seed=1).params
    got = collaborated(made.source.params, source)
    assert jax.tree.structure(got) == jax.tree.structure(made.source.params)
    norms, others = partition(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), got, made.source.params), norm_affine)
    assert all(jax.tree.leaves(norms)) and not any(jax.tree.leaves(others))
    # Of the source only its affines are looked at.
    assert_trees_close(collaborated(made.source.params, partition(source, norm_affine)[0]), got)


def test_no_gradient_flows_through_the_matrix_or_to_the_source():
    made = toy()
    norms, _ = partition(made.source.params, norm_affine)
    source = partition(random_source(made.model, seed=1).params, norm_affine)[0]

    def total(own, theirs):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(collaborated(own, theirs)))

    own, theirs = jax.grad(total, argnums=(0, 1))(norms, source)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(theirs))
    matrix = collaboration(*(t["encoder1"]["norm1"][k] for t in (norms, source) for k in ("scale", "bias")))
    np.testing.assert_allclose(own["encoder1"]["norm1"]["scale"], 1 + matrix.sum(0), rtol=1e-6)


def test_networks_without_batch_norm_are_refused():
    require_batch_norm(toy().model, "source")
    for norm in ("instance", "group"):
        with pytest.raises(InputError, match=rf"here/source: .*{norm} norm.*`norm` batch"):
            require_batch_norm(toy(norm=norm).model, "here/source")


# The maps that networks of these widths have, at a 512 x 512 image: the resolution halves as the width doubles.
MAPS = {64: 128, 128: 64, 256: 32, 512: 16, 1024: 16, 2048: 16}


def beside(channels, size):
    """The mixing of a layer's affines and the 3 x 3 convolution before it, both with their gradients, compiled."""

    def mixed(own, theirs):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(collaborated(own, theirs)))

    def convolved(kernel, images):
        y = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(jnp.square(y))

    rng = np.random.default_rng(0)
    own, theirs = ({k: np.float32(rng.normal(size=channels)) for k in ("scale", "bias")} for _ in range(2))
    kernel = np.float32(rng.normal(size=(3, 3, channels, channels)))
    images = np.asarray(pictures(1, size, size, channels))
    calls = [(mixed, 0, (own, theirs)), (convolved, (0, 1), (kernel, images))]
    return [(jax.jit(jax.value_and_grad(f, argnums=n)).lower(*given).compile(), given) for f, n, given in calls]


def operations(program):
    cost = program.cost_analysis()
    return cost["flops"] + cost.get("transcendentals", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [64, 512, 2048])
def test_the_matrix_costs_less_than_the_convolution_beside_it(channels, optimised):
    """On a map as small as 4 x 4, one image."""
    mixed, convolved = (operations(program) for program, _ in beside(channels, 4))
    assert 0 < mixed < convolved


def seconds(program, given):
    given = jax.device_put(given)
    jax.block_until_ready(program(*given))
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(program(*given))
        taken.append(time.perf_counter() - began)
    return min(taken)


@pytest.mark.slow
@pytest.mark.parametrize("channels", MAPS)
def test_the_matrix_takes_less_time_than_the_convolution_beside_it(channels):
    mixed, convolved = (seconds(*one) for one in beside(channels, MAPS[channels]))
    print(f"{channels} channels: {1e3 * mixed:.3f} ms beside {1e3 * convolved:.3f} ms")
    assert mixed < convolved
