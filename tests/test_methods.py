"""What methods promise beyond the protocol: what they adapt, progressive batch norm, networks without batch norm."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import all_finite, assert_trees_close, info_of, pictures, random_source, toy

from jaxtta import stats
from jaxtta.core import InputError, Task, norm_affine, partition
from jaxtta.methods import METHODS
from jaxtta.methods.alpha_batch_norm import alpha_bn
from jaxtta.methods.batch_statistics import batch_statistics
from jaxtta.methods.grata import grata
from jaxtta.methods.progressive_batch_norm import progressive_bn
from jaxtta.methods.source import source
from jaxtta.methods.tent import tent
from jaxtta.models import build
from jaxtta.models.heads import HEADS
from jaxtta.wrappers import episodic, guarded, predicting_before, repeat

KEY = jax.random.key(2)
OTHER_NORMS = [(dimensions, norm) for dimensions in (2, 3) for norm in ("instance", "group")]
BOTH_WAYS = [(2, "instance"), (3, "group")]
# Ways to hold something for every layer that is passed through: moments along the stream, a prompt, gradients.
REMEMBERING = ("progressive_bn", "vptta", "grata")
LONG = ("memo", "rotta", "cotta", "eata", "calibrated", "dltta")  # what compiles for long: with -m slow


# Values of the toy network that each adapts: 64 are its affines, 4929 all it has, 3 a prompt of one frequency.
ADAPTED = {
    "source": 0,
    "batch_statistics": 0,
    "alpha_bn": 0,
    "progressive_bn": 0,
    "medbn": 0,
    "medbn_tent": 64,
    "intent": 0,
    "dua": 0,
    "tent": 64,
    "eata": 64,
    "sar": 64,
    "memo": 4929,
    "vptta": 3,
    "diga": 0,
    "domain_adaptor": 64,
    "sictta": 0,
    "dltta": 64,
    "cotta": 4929,
    "rotta": 64,
    "grata": 64,
}


def along(method, variables, images):
    """The states and outputs of a method along a stream."""
    state, step, history = method.init(variables, images[0]), jax.jit(method.step), []
    for image in images:
        state, output = step(KEY, variables, state, image)
        history.append((state, output))
    return history


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_adapts_is_a_part_of_its_state(name):
    model, task, variables, space = toy()
    method = METHODS[name](model, task)
    state = jax.eval_shape(method.init, variables, pictures(1, *space, 3))
    adapted = jax.tree.leaves(method.adapted(state))
    assert {*map(id, adapted)} <= {*map(id, jax.tree.leaves(state))}
    assert adapted or "optimiser" not in inspect.signature(METHODS[name]).parameters
    assert sum(leaf.size for leaf in adapted) == ADAPTED.get(name, sum(leaf.size for leaf in adapted))
    wrapped = guarded(repeat(episodic(predicting_before(method)), 2))
    assert wrapped.adapted is method.adapted


@pytest.mark.parametrize("name", METHODS)
def test_the_docstring_names_what_the_info_of_a_step_holds(name):
    returns = inspect.getdoc(METHODS[name]).partition("\nReturns:\n")[2].partition("\n\n")[0]
    assert set(re.findall("`([a-z_]+)`", returns)) == info_of(name)


@pytest.mark.parametrize(  # of a U-Net all do in test_protocol.py
    "name", [pytest.param(name, marks=() if name in REMEMBERING else pytest.mark.slow) for name in METHODS]
)
def test_a_method_leaves_heads_alone_that_it_does_not_ask_for(name):
    """A ResUNet's other heads have norm layers of their own, which segmentation does not pass through."""
    task = Task(2)
    model = build({"architecture": "resunet", "classes": 2, "depth": 18, "width": 4, "channels": 3, "heads": HEADS})
    takes_optimiser = "optimiser" in inspect.signature(METHODS[name]).parameters
    options = {"optimiser": optax.sgd(1e-2)} if takes_optimiser else {}
    method, variables = METHODS[name](model, task, **options), random_source(model)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    state = jax.eval_shape(method.init, variables, images)
    after, output = jax.eval_shape(method.step, KEY, variables, state, images)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert output.logits.shape == (1, 32, 32, 2)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_progressive_bn_blends_with_the_share_of_the_images_seen(tau):
    model, task, variables, space = toy()
    images = pictures(3, 1, *space, 3)
    for n, (_, output) in enumerate(along(progressive_bn(model, task, tau=tau), variables, images), start=1):
        policy = stats.blend(np.sqrt(n) / (np.sqrt(n) + tau))
        expected = model.apply(variables._asdict(), images[n - 1], stats=policy)[0]["segmentation"]
        np.testing.assert_allclose(output.logits, expected, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_alpha_bn_blends_with_a_fixed_share(alpha):
    model, task, variables, space = toy()
    images = pictures(2, 1, *space, 3)
    for image, (_, output) in zip(images, along(alpha_bn(model, task, alpha=alpha), variables, images)):
        expected = model.apply(variables._asdict(), image, stats=stats.blend(alpha))[0]["segmentation"]
        np.testing.assert_allclose(output.logits, expected, atol=1e-5)
    image_alone = model.apply(variables._asdict(), images[0], stats=stats.image())[0]["segmentation"]
    source_alone = model.apply(variables._asdict(), images[0], stats=stats.source())[0]["segmentation"]
    [(_, output)] = along(alpha_bn(model, task, alpha=alpha), variables, images[:1])
    assert np.allclose(output.logits, image_alone, atol=1e-5) == (alpha == 1)
    assert not np.allclose(output.logits, source_alone, atol=1e-3)


@pytest.mark.parametrize("alpha", [0.0, 1.5, float("nan")])
def test_an_alpha_that_is_no_share_says_what_is_expected(alpha):
    model, task, _, _ = toy()
    with pytest.raises(InputError, match=f"alpha is {alpha!r}; expected the image's share"):
        alpha_bn(model, task, alpha=alpha)


def test_progressive_bn_that_has_seen_nothing_predicts_as_the_source():
    model, task, variables, space = toy()
    image = pictures(1, *space, 3)
    methods = progressive_bn(model, task), source(model, task)
    got, expected = (method.predict(variables, method.init(variables, image), image) for method in methods)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_guarded_progressive_bn_does_not_count_a_broken_image():
    model, task, variables, space = toy()
    images = pictures(3, 1, *space, 3)
    broken = images.at[1, 0, 2, 3].set(jnp.nan)
    (first, _), (passed, output), (last, final) = along(guarded(progressive_bn(model, task)), variables, broken)
    assert output.info["skipped"] == 1 and all_finite(output)
    assert_trees_close(passed, first)
    second = along(progressive_bn(model, task), variables, images[::2])[-1]
    assert_trees_close((last, final.logits), (second[0], second[1].logits), atol=1e-6)


def test_episodic_progressive_bn_takes_every_image_for_the_first():
    model, task, variables, space = toy()
    images = pictures(2, 1, *space, 3)
    method = progressive_bn(model, task)
    *_, (state, output) = along(episodic(method), variables, images)
    assert_trees_close((state, output), along(method, variables, images[1:])[0], atol=1e-6)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan"), float("inf")])
def test_a_tau_that_cannot_be_says_what_is_expected(tau):
    model, task, _, _ = toy()
    with pytest.raises(InputError, match=f"tau is {tau!r}; expected a positive number"):
        progressive_bn(model, task, tau=tau)


@pytest.mark.parametrize("factory", [batch_statistics, alpha_bn, progressive_bn])
@pytest.mark.parametrize(("dimensions", "norm"), OTHER_NORMS)
def test_methods_of_batch_statistics_refuse_networks_without_batch_norm(factory, dimensions, norm):
    model, task, _, _ = toy(dimensions, norm=norm)
    with pytest.raises(InputError) as error:
        factory(model, task)
    assert all(
        word in str(error.value)
        for word in (factory.__name__, f"{norm} norm", "image itself", "source", "tent", "grata")
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("factory", [tent, pytest.param(grata, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("dimensions", "norm"),
    [pytest.param(*kind, marks=() if kind in BOTH_WAYS else pytest.mark.slow) for kind in OTHER_NORMS],
)
def test_every_affine_of_other_norms_adapts(factory, dimensions, norm):
    model, task, variables, space = toy(dimensions, "softmax" if dimensions == 3 else "sigmoid", norm)
    images = pictures(2, 1, *space, model.channels)
    history = along(factory(model, task, optimiser=optax.sgd(1e-1)), variables, images)
    assert all_finite(history)
    before, after = partition(variables.params, norm_affine)[0], history[-1][0].adapted
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
    for part in ("encoder1", "encoder2", "decoder1"):  # the layers of the other heads are not reached
        assert all(jax.tree.leaves(moved[part])), part
    unchanged = model.apply(variables._asdict(), images[-1], stats=stats.source())[0]["segmentation"]
    assert not np.allclose(history[-1][1].logits, unchanged, atol=1e-4)


# Random networks are unsure: what filters pixels by certainty takes them all, and what averages only then does always.
TAKING_ALL = {"eata": {"margin": 1.0, "similarity": 10.0}, "sar": {"margin": 1.0}, "cotta": {"threshold": 1.0}}


@pytest.mark.parametrize("norm", ["instance", pytest.param("group", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in METHODS if name != "source"],
)
def test_without_batch_norm_a_method_refuses_or_does_something(name, norm):
    model, task, variables, space = toy(norm=norm)
    optimiser = {"optimiser": optax.sgd(1.0)} if "optimiser" in inspect.signature(METHODS[name]).parameters else {}
    try:
        method = METHODS[name](model, task, **optimiser, **TAKING_ALL.get(name, {}))
    except InputError as error:
        assert f"{norm} norm" in str(error)
        return
    assert all(word in inspect.getdoc(METHODS[name]).lower() for word in ("instance", "group"))
    images = pictures(2, 1, *space, 3)
    [_, (_, output)] = along(method, variables, images)
    unchanged = model.apply(variables._asdict(), images[-1], stats=stats.source())[0]["segmentation"]
    assert all_finite(output) and not np.allclose(output.logits, unchanged, rtol=0, atol=1e-6)


def test_the_source_model_without_batch_norm_is_its_network():
    model, task, variables, space = toy(norm="instance")
    image = pictures(1, *space, 3)
    [(_, output)] = along(source(model, task), variables, [image])
    expected = model.apply(variables._asdict(), image, stats=stats.image())[0]["segmentation"]
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)
