"""The network, the six objectives and GraTa against the published reference code.

`goldens/grata_public.npz` was computed in float64 (PyTorch 2.13, CPU) with the released code of GraTa (MIT licence), on
the weights and images that `reference_inputs.py` makes: seed 11, `stream(11, 3, 1, 128, 128)`. Kept in full are every
loss, cosine, learning rate, gradient and adapted parameter; of image-like arrays every fourth row and column
(`[:, ::4, ::4]`). Arrays of more than 64 values are stored as float32. The names are the reference's:

- `eval/<head>` (running statistics) and `batch/<head>` (the image's own statistics), of images[0].
- `objective/<objective>/loss` and `/grad/<parameter>`: on images[0] at the initial weights, image statistics. A
  parameter that the objective does not reach has no entry.
- `grata/<auxiliary>-<pseudo>-<optimiser>-<base rate>/...`: three images in turn; `cosine`, `learning_rate`, `aux_loss`
  and `pseudo_loss` of each step, `last_logits` on images[2] and `params/<parameter>` after the third.
- `rotation`: the labels drawn, one a step.

Float64 agrees to 1e-6 relative (of an array's largest value). In float32 the stated tolerances are about five times
the largest errors measured on CPU. Losses and gradients keep the precision of the type, but Adam divides a gradient by
its own size, so a parameter whose gradient is rounding noise moves by the whole rate in a random direction: with Adam,
parameters are held to a share of the distance they moved, all taken as one vector.

Of GraTa the published setting is run by default, in float64, with each head and one objective that it does not take;
the others alone, the other combinations and those in float32 with -m slow.

The tests on images that are not square, and on batches, compose a step by hand from the network alone.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_inputs

from jaxtta import objectives, stats
from jaxtta.core import Task, bind, norm_affine, partition, paths
from jaxtta.methods.grata import grata
from jaxtta.models import HEADS, build
from jaxtta.torch_import import convert

GOLDENS = dict(np.load(Path(__file__).parent / "goldens" / "grata_public.npz"))
COMBINATIONS = sorted({name.split("/")[1] for name in GOLDENS if name.startswith("grata/")})
PUBLISHED = "ent-consis-adam-0.0001"  # the settings of the paper; the other combinations are run with -m slow
OBJECTIVES = ("ent", "consis", "recon", "denoise", "supres", "rotate")
HEAD_NAMES = dict(zip(HEADS, ("logits", "recon", "denoise", "supres", "rotate")))
OPTIMISERS = {
    "adam": lambda rate: unstrict(optax.adam(rate)),
    "adamw": lambda rate: unstrict(optax.adamw(rate, weight_decay=0.01)),
    "sgd": lambda rate: optax.sgd(rate, momentum=0.99, nesterov=True),
}
TASK = Task(2)
MODEL = build({"architecture": "resunet", "depth": 34, "width": 64, "channels": 3, "classes": 2, "heads": HEADS})


def unstrict(optimiser):
    """Optax's Adam raises a Python float to an integer count, which strict promotion, on in the tests, refuses."""

    def update(*arguments):
        with jax.numpy_dtype_promotion("standard"):
            return optimiser.update(*arguments)

    return optax.GradientTransformation(optimiser.init, update)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def reference():
    """The weights and the three images in float64, in NumPy: no array of JAX outlives its float64 context."""
    source = convert(reference_inputs.state_dict(11)).source
    stream = reference_inputs.stream(11, 3, 1, 128, 128)
    stream = {**stream, "noise": stream["images"] + 0.1 * stream["noise"], "rotation": GOLDENS["rotation"]}
    return source, stream


def as_type(tree, dtype):
    """The tree as JAX arrays, floating point in this dtype."""
    return jax.tree.map(lambda a: jnp.asarray(a, dtype if np.issubdtype(a.dtype, np.floating) else jnp.int32), tree)


def at_step(stream, step):
    return {name: values[step] for name, values in stream.items()}


def by_torch_name(tree):
    """Scales and shifts under the reference's names, independent of the importer's own table."""
    return {torch_name(path): np.asarray(leaf) for path, leaf in zip(paths(tree), jax.tree.leaves(tree))}


def torch_name(path):
    *modules, leaf = path
    leaf = {"scale": "weight", "bias": "bias"}[leaf]
    match modules:
        case ["encoder", "stem_norm"]:
            return f"res.bn1.{leaf}"
        case ["encoder", block, norm]:
            stage, number = block.removeprefix("stage").split("_block")
            norm = {"norm1": "bn1", "norm2": "bn2", "projection_norm": "downsample.1"}[norm]
            return f"res.layer{stage}.{int(number) - 1}.{norm}.{leaf}"
        case ["decoder5_norm"]:
            return f"bnout.{leaf}"
        case [decoder, "norm"]:
            return f"{decoder.replace('decoder', 'up')}.bn.{leaf}"
        case [head, block, "norm"]:
            return f"{HEAD_NAMES[head]}{block.removeprefix('block')}.bn.{leaf}"


def error(result, golden):
    """The largest difference as a share of the golden's largest value."""
    result, golden = np.asarray(result, np.float64), np.asarray(golden, np.float64)
    assert result.shape == golden.shape
    return np.max(np.abs(result - golden)) / np.max(np.abs(golden))


def objective(name, data, task=TASK):
    """An objective of the reference's name with a fixed style, noise and rotation."""
    return {
        "ent": lambda: objectives.entropy(task),
        "consis": lambda: objectives.consistency(task, style=lambda key, images: data["strong"]),
        "recon": lambda: objectives.reconstruction(task),
        "denoise": lambda: objectives.denoising(task, noise=lambda key, images: data["noise"]),
        "supres": lambda: objectives.super_resolution(task),
        "rotate": lambda: objectives.rotation(task, draw=lambda key, count: data["rotation"]),
    }[name]()


@functools.cache
def compiled_step(auxiliary, pseudo, optimiser):
    """One step of GraTa, compiled once for all base rates; what is drawn at random is an argument."""

    @jax.jit
    def step(source, state, data, rate):
        method = grata(
            MODEL,
            TASK,
            auxiliary=objective(auxiliary, data),
            pseudo=objective(pseudo, data),
            optimiser=OPTIMISERS[optimiser](rate),
        )
        return method.step(jax.random.key(0), source, state, data["images"])

    return step


def run_grata(reference, combination, dtype):
    """What three steps of a combination give and the adapted parameters, both under the reference's names."""
    source, stream = reference
    auxiliary, pseudo, optimiser, rate = combination.split("-", 3)
    source, stream, rate = as_type((source, stream, np.float64(rate)), dtype)
    step = compiled_step(auxiliary, pseudo, optimiser)
    state = grata(MODEL, TASK, optimiser=OPTIMISERS[optimiser](rate)).init(source, stream["images"][0])
    infos = []
    for i in range(3):
        state, output = step(source, state, at_step(stream, i), rate)
        infos.append(output.info)
    assert all(leaf.dtype in (dtype, jnp.int32) for leaf in jax.tree.leaves((state, output)))
    gathered = {name: np.array([info[name] for info in infos]) for name in infos[0]}
    result = {
        "cosine": gathered["cosine"],
        "learning_rate": gathered["rate_factor"] * float(rate),
        "aux_loss": gathered["auxiliary_loss"],
        "pseudo_loss": gathered["pseudo_loss"],
        "last_logits": output.logits[:, ::4, ::4],
    }
    return result, by_torch_name(state.adapted)


def run_objective(reference, name, dtype):
    """Loss and gradients, under the reference's names, of an objective on the first image."""
    source, stream = reference
    source, data = as_type((source, at_step(stream, 0)), dtype)

    @jax.jit
    def loss_and_gradient(source, data):
        def loss(adapted):
            forward = bind(MODEL, source, stats.image())(adapted)
            return objective(name, data)(jax.random.key(0), forward, data["images"])

        return jax.value_and_grad(loss)(partition(source.params, norm_affine)[0])

    loss, gradient = loss_and_gradient(source, data)
    return loss, by_torch_name(gradient)


def run_heads(reference, policy, dtype):
    source, stream = reference
    source, images = as_type((source, stream["images"][0]), dtype)
    return jax.jit(lambda source, x: MODEL.apply(source._asdict(), x, stats=policy, heads=HEADS)[0])(source, images)


def golden_part(prefix):
    return {name.removeprefix(prefix): value for name, value in GOLDENS.items() if name.startswith(prefix)}


def check_heads(reference, statistics, dtype, tolerance):
    outputs = run_heads(reference, {"eval": stats.source(), "batch": stats.image()}[statistics], dtype)
    golden = golden_part(f"{statistics}/")
    assert golden
    for head, name in HEAD_NAMES.items():
        if name in golden:
            result = outputs[head]
            assert result.dtype == dtype
            assert error(result[:, ::4, ::4] if result.ndim == 4 else result, golden[name]) < tolerance, head


@pytest.mark.parametrize("statistics", ["batch", pytest.param("eval", marks=pytest.mark.slow)])
def test_every_head(reference, statistics, float64, optimised):
    check_heads(reference, statistics, jnp.float64, 1e-6)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "rotate" else pytest.mark.slow) for name in OBJECTIVES]
)
def test_every_objective_and_its_gradient(reference, name, float64, optimised):
    loss, gradient = run_objective(reference, name, jnp.float64)
    golden = golden_part(f"objective/{name}/")
    assert loss.dtype == jnp.float64
    assert error(loss, golden["loss"]) < 1e-6
    reached = {parameter for parameter in gradient if f"grad/{parameter}" in golden}
    assert len(reached) == len(golden) - 1
    for parameter, value in gradient.items():
        if parameter in reached:
            assert error(value, golden[f"grad/{parameter}"]) < 1e-6, parameter
        else:
            np.testing.assert_array_equal(value, 0.0, parameter)


@pytest.mark.parametrize(
    "combination", [pytest.param(c, marks=() if c == PUBLISHED else pytest.mark.slow) for c in COMBINATIONS]
)
def test_three_steps_of_grata(reference, combination, float64, optimised):
    result, adapted = run_grata(reference, combination, jnp.float64)
    golden = golden_part(f"grata/{combination}/")
    assert len(golden) == len(result) + len(adapted)
    for name, value in result.items():
        assert error(value, golden[name]) < 1e-6, name
    for name, value in adapted.items():
        assert error(value, golden[f"params/{name}"]) < 1e-6, name


def as_vector(tree, names):
    return np.concatenate([np.asarray(tree[name], np.float64) for name in names])


@pytest.mark.parametrize("statistics, tolerance", [pytest.param("eval", 1e-5, marks=pytest.mark.slow), ("batch", 2e-3)])
def test_every_head_in_float32(reference, statistics, tolerance):
    """Measured: 1.6e-6 with running statistics, 2.7e-4 with those of the image (16 values a channel at the deepest)."""
    check_heads(reference, statistics, jnp.float32, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["consis", "supres"])
def test_objectives_in_float32(reference, name):
    """Measured: losses to 1.2e-5, gradients as one vector to 2.8 % (a ReLU at zero switches whole paths on or off)."""
    loss, gradient = run_objective(reference, name, jnp.float32)
    golden = golden_part(f"objective/{name}/")
    assert error(loss, golden["loss"]) < 1e-4
    reached = [parameter for parameter in gradient if f"grad/{parameter}" in golden]
    expected = as_vector(golden_part(f"objective/{name}/grad/"), reached)
    assert np.linalg.norm(as_vector(gradient, reached) - expected) < 0.1 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "combination, cosine, rate, logits",
    [("ent-consis-adam-0.0001", 0.02, 0.06, 1e-3), ("ent-consis-sgd-0.001", 0.005, 0.02, 2e-4)],
)
def test_three_steps_of_grata_in_float32(reference, combination, cosine, rate, logits):
    """Measured: Adam cosine 0.0042, rate 1.2 %, logits 2.0e-4; SGD 7.3e-4, 0.3 %, 2.2e-5; losses 2.3e-6 with both."""
    result, adapted = run_grata(reference, combination, jnp.float32)
    golden = golden_part(f"grata/{combination}/")
    assert np.max(np.abs(result["cosine"] - golden["cosine"])) < cosine
    assert error(result["learning_rate"], golden["learning_rate"]) < rate
    assert error(result["aux_loss"], golden["aux_loss"]) < 1e-5
    assert error(result["pseudo_loss"], golden["pseudo_loss"]) < 1e-5
    assert error(result["last_logits"], golden["last_logits"]) < logits
    names = sorted(adapted)
    got, expected = as_vector(adapted, names), as_vector(golden_part(f"grata/{combination}/params/"), names)
    if "sgd" in combination:  # SGD moves them by 1e-6 or so: a few roundings of numbers near 1
        assert np.max(np.abs(got - expected)) < 2e-6
    else:  # measured 15 % of the way
        start = as_vector(by_torch_name(partition(reference[0].params, norm_affine)[0]), names)
        assert np.linalg.norm(got - expected) < 0.5 * np.linalg.norm(expected - start)


SMALL = build({"architecture": "unet", "classes": 2, "features": (4, 8), "heads": HEADS})


def small_source():
    """A small U-Net in float64; drawn with NumPy, which needs no compilation."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        if leaf.ndim == 1:
            return jnp.asarray(0.5 + rng.random(leaf.shape))
        return jnp.asarray(rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1])))

    return jax.tree.map(draw, jax.eval_shape(SMALL.init, jax.random.key(0)))


def small_data(batch, height, width, labels):
    rng = np.random.default_rng(1)
    images, strong, noise = rng.random((3, batch, height, width, 3))
    least, most = (edge(images, axis=(1, 2, 3), keepdims=True) for edge in (np.min, np.max))
    images = (images - least) / (most - least)  # as networks are given them
    data = {"images": images, "strong": 3 * strong - 1, "noise": images + 0.1 * noise, "rotation": np.array(labels)}
    return as_type(data, jnp.float64)


def swapped(images):
    return jnp.swapaxes(images, 1, 2)


def mirrored(images):
    return images[:, :, ::-1]


def upside_down(images):
    return images[:, ::-1]


# The views in the order of the labels and what maps each back, in the words of the specification.
VIEWS = (
    (mirrored, mirrored),
    (upside_down, upside_down),
    (lambda x: swapped(mirrored(x)), lambda x: mirrored(swapped(x))),
    (lambda x: mirrored(upside_down(x)), lambda x: mirrored(upside_down(x))),
    (lambda x: mirrored(swapped(x)), lambda x: swapped(mirrored(x))),
    (lambda x: x, lambda x: x),
)


def hand_loss(name, network, data):
    """The six losses as the specification writes them; `network(images, head)` gives one head's logits."""
    images = data["images"]
    restore = {"recon": "reconstruction", "denoise": "denoising", "supres": "super_resolution"}
    if name == "ent":
        p = 1 / (1 + jnp.exp(-network(images, "segmentation")))
        return jnp.mean(-p[..., 0] * jnp.log(p[..., 0] + 1e-6) - p[..., 1] * jnp.log(p[..., 1] + 1e-6))
    if name == "consis":
        views = [back(1 / (1 + jnp.exp(-network(view(images), "segmentation")))) for view, back in VIEWS]
        target = jax.lax.stop_gradient(sum(views) / 6)
        low, high = (f(data["strong"], (1, 2, 3), keepdims=True) for f in (jnp.min, jnp.max))
        p = 1 / (1 + jnp.exp(-network((data["strong"] - low) / (high - low), "segmentation")))
        return jnp.mean(-target * jnp.log(p) - (1 - target) * jnp.log(1 - p))
    if name == "rotate":
        batch, height, width, _ = images.shape
        labels = [int(label) for label in np.asarray(data["rotation"])]
        labels = labels if height == width else labels[:1] * batch
        turned = jnp.concatenate([VIEWS[label][0](images[i : i + 1]) for i, label in enumerate(labels)])
        p = jnp.exp(network(turned, "rotation"))
        return sum(-jnp.log(p[i, label] / p[i].sum()) for i, label in enumerate(labels)) / batch
    shown = {"recon": images, "denoise": data["noise"], "supres": halved(images)}[name]
    restored = 1 / (1 + jnp.exp(-network(shown, restore[name])))[:, : images.shape[1], : images.shape[2]]
    return jnp.mean((restored - images) ** 2)


def halved(images):
    """Half the size, rounded up, linear with aligned corners."""
    for axis in (1, 2):
        count = images.shape[axis]
        places = np.linspace(0, count - 1, (count + 1) // 2)
        matrix = np.stack([np.interp(places, np.arange(count), row) for row in np.eye(count)], axis=1)
        images = jnp.moveaxis(jnp.tensordot(matrix, images, (1, axis)), 0, axis)
    return images


def hand_step(auxiliary, pseudo, source, data, rate):
    """One step of GraTa with plain gradient descent, differentiating every parameter and moving scales and shifts."""

    def network(params):
        variables = {"params": params, "batch_stats": source.batch_stats}
        return lambda images, head: SMALL.apply(variables, images, stats=stats.image(), heads=(head,))[0][head]

    def gradient(name, params):
        loss, tree = jax.value_and_grad(lambda params: hand_loss(name, network(params), data))(params)
        return loss, jax.tree_util.tree_map_with_path(
            lambda path, g: g if "norm" in path[-2].key else jnp.zeros_like(g), tree
        )

    def flat(tree):
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    auxiliary_loss, ahead = gradient(auxiliary, source.params)
    pseudo_loss, back = gradient(pseudo, jax.tree.map(lambda p, g: p - g, source.params, ahead))
    norms = jnp.sqrt(jnp.sum(flat(ahead) ** 2)), jnp.sqrt(jnp.sum(flat(back) ** 2))
    cosine = jnp.sum(flat(ahead) * flat(back)) / (norms[0] * norms[1] + 1e-12)
    factor = (1 + cosine) ** 2 / 4
    params = jax.tree.map(lambda p, g: p - rate * factor * g, source.params, back)
    info = (auxiliary_loss, pseudo_loss, cosine, factor, *norms)
    names = ("auxiliary_loss", "pseudo_loss", "cosine", "rate_factor", "auxiliary_norm", "pseudo_norm")
    return params, network(params)(data["images"], "segmentation"), dict(zip(names, info))


def small_step(auxiliary, pseudo, source, data, rate):
    method = grata(
        SMALL, TASK, auxiliary=objective(auxiliary, data), pseudo=objective(pseudo, data), optimiser=optax.sgd(rate)
    )
    state = method.init(source, data["images"])
    return jax.jit(method.step)(jax.random.key(0), source, state, data["images"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "space, auxiliary, pseudo",
    [
        ((24, 40), "ent", "consis"),
        pytest.param((24, 40), "rotate", "supres", marks=pytest.mark.slow),
        pytest.param((23, 18), "denoise", "supres", marks=pytest.mark.slow),
        pytest.param((24, 24), "recon", "rotate", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_batch_of_any_shape_equals_a_step_composed_by_hand(space, auxiliary, pseudo, float64):
    source, data = small_source(), small_data(2, *space, labels=(2, 1))
    state, output = small_step(auxiliary, pseudo, source, data, 0.5)
    params, logits, info = jax.jit(lambda source: hand_step(auxiliary, pseudo, source, data, 0.5))(source)
    assert output.info.keys() == info.keys()
    for name, value in info.items():
        np.testing.assert_allclose(output.info[name], value, rtol=1e-9, err_msg=name)
    assert output.logits.shape == (2, *space, 2)
    np.testing.assert_allclose(output.logits, logits, rtol=1e-9, atol=1e-10)
    adapted, _ = partition(params, norm_affine)
    for got, expected in zip(jax.tree.leaves(state.adapted), jax.tree.leaves(adapted), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_an_image_twice_adapts_as_the_image_once(float64):
    source, once = small_source(), small_data(1, 16, 24, labels=(4,))
    twice = {name: jnp.concatenate([value, value]) for name, value in once.items()}
    first, single = small_step("rotate", "consis", source, once, 0.5)
    second, double = small_step("rotate", "consis", source, twice, 0.5)
    for name, value in single.info.items():
        np.testing.assert_allclose(double.info[name], value, rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(double.logits, jnp.concatenate([single.logits] * 2), rtol=1e-9, atol=1e-10)
    for got, expected in zip(jax.tree.leaves(second.adapted), jax.tree.leaves(first.adapted), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
