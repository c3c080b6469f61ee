"""The released update in PyTorch, which the one in JAX is timed against, is the same update: from the same weights, on
the same images, with the same style.

In float64 they agree to rounding. In float32 the largest errors measured on CPU were 3e-5 of the cosine and of the
logits' largest value; losses and parameters stayed below 1e-6.
"""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_inputs

from jaxtta import objectives, style
from jaxtta.core import Task, norm_affine, partition
from jaxtta.methods.grata import grata
from jaxtta.style import Style
from jaxtta.torch_import import convert

torch = pytest.importorskip("torch")

from torch.utils import _python_dispatch as dispatch  # noqa: E402

from experiments.accelerator import released  # noqa: E402

TASK = Task(2)
# One number of every kind for three channels; the neutral ones too.
NUMBERS = Style(
    brightness=np.array([[1.3, 0.7, 1.0]]),
    contrast=np.array([[0.6, 1.0, 1.4]]),
    gamma=np.array([[1.0, 0.6, 1.7]]),
    noise=np.array([0.03]),
    blur=np.array([[0.0, 0.8, 1.4]]),
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """PyTorch's threads wait for one another at every small layer: on a busy machine longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(dtype="float32"):
    """A small network in PyTorch with weights of the goldens' kind."""
    made = released.ResUNet(18, 4)
    weights = {name: reference_inputs.tensor(name, tuple(v.shape), 11) for name, v in made.state_dict().items()}
    made.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()})
    return made.to(getattr(torch, dtype))


def converted(made):
    arrays = {name: value.numpy() for name, value in made.state_dict().items()}
    return convert(arrays, architecture="resunet18", allow_missing_heads=True)


def channels_first(images, dtype):
    return torch.from_numpy(np.moveaxis(images, -1, 1).astype(dtype))


def unstrict(optimiser):
    """Optax's Adam raises a Python float to an integer count, which strict promotion, on in the tests, refuses."""

    def update(*arguments):
        with jax.numpy_dtype_promotion("standard"):
            return optimiser.update(*arguments)

    return optax.GradientTransformation(optimiser.init, update)


def updates(made, images, normal, dtype):
    """What consecutive updates give, and the converted network after them, in PyTorch."""
    numbers = Style(*(torch.from_numpy(number.astype(dtype)) for number in NUMBERS))
    normal = channels_first(normal, dtype)
    update = released.Update(made, style=lambda x: released.strong_style(x, numbers, normal))
    outcomes = [update(channels_first(image[None], dtype)) for image in images]
    return outcomes, converted(made).source.params


def reference_updates(model, source, images, normal, dtype):
    """The same in JAX: outputs and adapted parameters."""
    source, images, normal, numbers = jax.tree.map(lambda a: jnp.asarray(a, dtype), (source, images, normal, NUMBERS))

    def styled(key, x):
        return style.apply_style(x, numbers, normal)

    pseudo = objectives.consistency(TASK, style=styled)
    method = grata(model, TASK, pseudo=pseudo, optimiser=unstrict(optax.adam(1e-4)))
    state, step, outputs = method.init(source, images[:1]), jax.jit(method.step), []
    for image in images:
        state, output = step(jax.random.key(0), source, state, image[None])
        outputs.append(output)
    return outputs, state.adapted


def error(result, expected):
    """The largest difference as a share of the largest value."""
    result, expected = np.asarray(result, np.float64), np.asarray(expected, np.float64)
    assert result.shape == expected.shape
    return np.max(np.abs(result - expected)) / np.max(np.abs(expected))


def as_vector(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize(
    "space, dtype, tolerance",
    [
        pytest.param((64, 64), "float64", 1e-9, marks=pytest.mark.slow),
        ((64, 96), "float64", 1e-9),
        pytest.param((64, 64), "float32", 1e-4, marks=pytest.mark.slow),
    ],
)
def test_two_updates_equal_those_in_jax(space, dtype, tolerance):
    images, normal = reference_inputs.images(2, *space, 3), np.random.default_rng(0).standard_normal((1, *space, 3))
    made = network(dtype)
    model, source = converted(made)
    source = jax.tree.map(np.copy, source)  # conversion shares memory with the network, which adapts in place
    with jax.enable_x64(dtype == "float64"):
        expected, adapted = jax.device_get(reference_updates(model, source, images, normal, dtype))
    outcomes, params = updates(made, images, normal, dtype)
    for got, output in zip(outcomes, expected, strict=True):
        assert {value.dtype for value in got} == {getattr(torch, dtype)}
        for name in ("auxiliary_loss", "pseudo_loss", "cosine", "rate_factor"):
            # The factor is the square of a small number: it has the error of the cosine, not a share of its own.
            assert abs(float(getattr(got, name)) - float(output.info[name])) < tolerance, name
        assert error(np.moveaxis(got.logits.numpy(), 1, -1), output.logits) < tolerance
    got, frozen = partition(params, norm_affine)
    jax.tree.map(np.testing.assert_array_equal, frozen, partition(source.params, norm_affine)[1])
    start = as_vector(partition(source.params, norm_affine)[0])
    got, expected = as_vector(got), as_vector(adapted)
    assert error(got, expected) < tolerance
    if dtype == "float64":  # the way they moved, not only where they are
        assert error(got - start, expected - start) < 1e-6


def test_the_state_dict_has_the_released_names_and_shapes():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in released.ResUNet(34, 64).state_dict().items()}
    others = ("recon", "denoise", "supres", "rotate", "res.fc.")
    assert shapes == {n: shape for n, shape in reference_inputs.shapes().items() if not n.startswith(others)}


@pytest.mark.parametrize("space", [(24, 40), (5, 3)])  # the second is narrower than the blur
def test_the_strong_style_equals_the_one_in_jax_for_drawn_numbers(space):
    rng = np.random.default_rng(0)
    images, normal = rng.random((8, *space, 3)), rng.standard_normal((8, *space, 3))
    torch.manual_seed(0)
    drawn = released.draw_style(channels_first(images, "float64"))
    result = released.strong_style(channels_first(images, "float64"), drawn, channels_first(normal, "float64"))
    with jax.enable_x64(True):
        expected = style.apply_style(
            jnp.asarray(images), Style(*(jnp.asarray(n.numpy()) for n in drawn)), jnp.asarray(normal)
        )
        np.testing.assert_allclose(np.moveaxis(result.numpy(), 1, -1), expected, rtol=1e-9, atol=1e-12)


def test_numbers_are_drawn_as_in_jax():
    count = 20_000
    torch.manual_seed(0)
    drawn = released.draw_style(torch.zeros(count, 3, 1, 1))
    expected = style.draw_style(jax.random.key(0), jnp.zeros((count, 1, 1, 3), jnp.float32))
    for name, number in expected._asdict().items():
        got, number = getattr(drawn, name).numpy().astype(np.float64), np.asarray(number, np.float64)
        np.testing.assert_allclose([got.min(), got.max()], [number.min(), number.max()], atol=2e-3, err_msg=name)
        neutral = 0.0 if name in ("noise", "blur") else 1.0
        for a, b in zip(measures(got, neutral), measures(number, neutral), strict=True):
            # Channels of an image share whether they change: the images are what is counted.
            assert a.shape == b.shape
            assert abs(a.mean() - b.mean()) <= 5 * np.sqrt((a.var() + b.var()) / count), name


def measures(numbers, neutral):
    """What is averaged of the numbers of one kind: themselves, their side of 1, and what they leave as it is."""
    unchanged = numbers == neutral
    return numbers, numbers < 1.0, unchanged, np.all(unchanged.reshape(len(numbers), -1), axis=1)


def test_a_constant_image_is_scaled_to_zeros():
    images = torch.stack([torch.full((3, 4, 4), 0.5), torch.linspace(-1.0, 3.0, 48).reshape(3, 4, 4)])
    constant, varied = released.rescale(images)
    assert not constant.any() and (varied.min(), varied.max()) == (0.0, 1.0)


def assert_alike(step, images, tolerance):
    """Three updates give what the plain program gives from the same weights, both without a style."""
    plain = released.Update(network().to(images.device), style=lambda x: x)
    for k in range(3):
        shown = images.roll(k, 3)
        got, expected = step(shown), plain(shown)
        for name, value in got._asdict().items():
            wanted = getattr(expected, name)
            assert value.dtype == wanted.dtype
            assert (value - wanted).norm() < tolerance * wanted.norm(), name


def photograph():
    return channels_first(reference_inputs.images(1, 64, 64, 3), "float32")


def prepared(**options):
    step = released.prepared(network(), photograph(), **options)
    step.style = lambda x: x
    return step


def test_no_operation_of_an_update_waits_for_the_device():
    class Recorded(dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            names.add(operation.overloadpacket.__name__)
            return operation(*args, **(kwargs or {}))

    names, update, images = set(), released.Update(network()), photograph()
    with Recorded():
        update(images)
    assert {"convolution", "rand", "_fused_adam_"} <= names
    # A value read by the host, a shape that depends on values, a tensor made on the host.
    assert not names & {"_local_scalar_dense", "nonzero", "lift_fresh"}


def test_channels_last_changes_nothing_but_rounding():
    assert_alike(prepared(channels_last=True), photograph(), 1e-3)


def test_in_bfloat16_losses_and_adapted_parameters_stay_float32():
    step, plain = prepared(bfloat16=True), prepared()
    got, expected = step(photograph()), plain(photograph())
    assert {value.dtype for value in (*got, *step.adapted)} == {torch.float32}
    for name in ("auxiliary_loss", "pseudo_loss"):  # measured: 3e-4
        assert abs(getattr(got, name) / getattr(expected, name) - 1) < 2e-3
    assert (got.logits - expected.logits).norm() > 1e-3 * expected.logits.norm()  # it does compute in bfloat16


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
# What torch's compiler imports uses it.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_compiled_network_updates_alike():
    assert_alike(prepared(mode="default", channels_last=True), photograph(), 1e-3)


@pytest.mark.gpu
def test_a_captured_update_starts_from_the_same_state(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    images = photograph().cuda()
    update = released.Update(network().cuda(), style=lambda x: x)
    assert_alike(released.captured(update, images), images, 5e-3)
