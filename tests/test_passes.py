"""Network passes are counted in the program: against what each method's definition says, and by hand."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import pictures, toy

from jaxtta import stats
from jaxtta.benchmarks.passes import passes
from jaxtta.core import Method, Output
from jaxtta.methods import METHODS
from jaxtta.methods.grata import grata
from jaxtta.methods.tent import tent

# Forward and backward passes of an image of a fundus photograph, five geometric views where there are views.
EXPECTED = {
    "source": (1, 0),
    "batch_statistics": (1, 0),
    "alpha_bn": (1, 0),
    "progressive_bn": (1, 0),
    "medbn": (1, 0),
    "medbn_tent": (2, 1),
    "intent": (7, 0),  # one to measure, six mixtures
    "dua": (7, 0),  # six views to measure, the prediction
    "tent": (2, 1),  # the loss, the prediction
    "eata": (3, 2),  # beside TENT's the Fisher information
    "sar": (3, 2),  # there and up
    "memo": (7, 6),  # six views, the prediction
    "vptta": (2, 1),
    "diga": (1, 0),
    "domain_adaptor": (3, 1),
    "sictta": (8, 0),  # the source, the deepest map alone, six images together
    "dltta": (2, 1),
    "cotta": (14, 1),  # the source, the student, and twice the teacher with its six views
    "rotta": (10, 4),  # four images of the bank, twice, beside the image
    "grata": (9, 2),  # six views of the teacher, student, entropy, prediction
}


def counted(factory, batch=1):
    model, task, source, space = toy()
    takes_optimiser = "optimiser" in inspect.signature(factory).parameters
    options = {"optimiser": optax.sgd(1e-2)} if takes_optimiser else {}
    return passes(lambda model: factory(model, task, **options), model, source, pictures(batch, *space, 3))


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_passes_are_those_of_its_definition(name):
    if name in EXPECTED:
        assert counted(METHODS[name]) == EXPECTED[name]
    else:
        assert counted(METHODS[name])[0] >= 1


@pytest.mark.parametrize("factory", [tent, grata])
def test_passes_are_counted_for_each_image_of_a_batch(factory):
    assert counted(factory, batch=3) == counted(factory)


def in_loops(model, task):
    """Two forward passes in a mapped loop, three images in a mapped one, one branch of two, a gradient in a scan."""

    def forward(source, images):
        return model.apply(source._asdict(), images, stats=stats.image())[0]["segmentation"]

    def step(key, source, state, images):
        total = jnp.sum(jax.lax.map(lambda scale: forward(source, scale * images), jnp.ones(2, images.dtype)))
        total += jnp.sum(jax.vmap(lambda scale: forward(source, scale * images))(jnp.ones(3, images.dtype)))
        branches = (lambda: 0 * total, lambda: jnp.sum(forward(source, images)))
        total += jax.lax.cond(total > 0, *branches)

        def turn(carry, _):
            return carry + jnp.sum(jax.grad(lambda x: jnp.sum(forward(source, x)))(images)), None

        total = jax.lax.scan(turn, total, None, length=4)[0]
        return state, Output(forward(source, images), {"total": total})

    init, predict = lambda source, images: (), lambda source, state, images: forward(source, images)
    return Method(init, step, predict, lambda state: ())


def test_loops_count_as_often_as_they_turn_and_of_branches_the_costliest():
    assert counted(in_loops) == (2 + 3 + 1 + 4 + 1, 4)


@pytest.mark.slow
def test_the_marks_change_no_value():
    """What is counted is what runs: marked, the outputs and gradients of the network stay what they are."""
    model, task, source, space = toy()
    images, seen = pictures(1, *space, 3), []

    def keeping(model):
        seen.append(model)
        return tent(model, task, optimiser=optax.sgd(1e-2))

    passes(keeping, model, source, images)

    def value(network):
        def loss(params):
            heads, _ = network.apply({"params": params, "batch_stats": source.batch_stats}, images, stats=stats.image())
            return jnp.sum(heads["segmentation"] ** 2)

        return jax.value_and_grad(loss)(source.params)

    for own, marked in zip(jax.tree.leaves(value(model)), jax.tree.leaves(value(seen[0]))):
        np.testing.assert_array_equal(own, marked)
