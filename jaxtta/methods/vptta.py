"""VPTTA: a prompt for each image in the low frequencies of its spectrum; the network stays as it is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtta import stats
from jaxtta.core import Array, InputError, Key, Method, Moments, Output, Source, Task
from jaxtta.methods import neighbours as banks
from jaxtta.models import require_batch_norm

TEMPERATURE = 0.2  # of the softmax over the nearest neighbours' cosines


class VpttaState(NamedTuple):
    """The last prompt `[*block, channels]`, the optimiser's state, the bank's keys and prompts
    `[entries, *block, channels]`, and how many images were seen, of which the bank holds the last ones.
    """

    prompt: Array
    optimiser: Any
    keys: Array
    prompts: Array
    seen: Array


def vptta(
    model,
    task: Task,
    *,
    alpha: float = 0.01,
    bank: int = 40,
    neighbours: int = 16,
    warm_up: float = 5.0,
    extra_entry: bool = False,
    off_centre: bool = False,
    optimiser: optax.GradientTransformation = optax.adam(0.05, 0.9, 0.99),
) -> Method:
    """A factor for each low frequency of the image, trained so that the image's statistics come near the source's.

        x̃ = Re F⁻¹(p ⊙ F(x)),  p = 1 but for the prompt's block around frequency zero, F over the spatial axes
        μ̂, σ̂² = (1 − λ) · source + λ · image,  λ = 1 / (√n / warm_up + 1),  n images seen, this one included
        loss = mean over norm layers of ( mean |μ̂ − μ(x̃)| + mean |σ̂ − σ(x̃)| ),  no gradient through μ̂ and σ̂

    Every layer normalises with μ̂ and σ̂², variances unbiased. A prompt starts from the weighted mean of those of the
    nearest images in the bank, by the cosine c of the amplitudes |F(x)| in the block, weights softmax(c / 0.2), or
    from ones as long as the bank holds fewer than `neighbours`. One optimiser step trains it; then it enters the bank.

    Adapts: the prompt, `max(1, int(size · alpha))` factors along each spatial axis, for each channel.
    Predicts: after the update. `predict` takes its image for the last one seen, so that it repeats the step's
        prediction; a state that has seen none predicts with the image's own statistics.
    Differs from the reference code: that shifts the spectrum over the channels too, so that its factors stand in
        another order of channels, and takes one image at a time. A batch, which is normalised as one, has one prompt
        and one entry in the bank, with the mean amplitudes, and counts once. An image that comes again is another
        entry. Frequency zero is the middle of an odd block. Repeated on an image (`repeat`), the whole step is, not
        the optimiser's alone.

    Args:
        model: a `jaxtta.models.Model` with batch norm.
        task: what is segmented.
        alpha: the block's share of each spatial axis, above 0 and up to 1.
        bank: entries of the bank; a new one replaces the oldest.
        neighbours: entries that a prompt starts from, at most as many as the bank holds.
        warm_up: the larger, the longer the image's statistics count, which have the larger share until n = warm_up².
        extra_entry: one entry more than `bank`, as in the reference code.
        off_centre: the block begins at `(size − block) // 2` of the shifted spectrum, as in the reference code: an odd
            block of an even size then reaches one frequency further down than up, and a block of 1 misses frequency 0.
        optimiser: any optax transformation; its state goes on from image to image.

    Returns:
        A method whose info holds `loss` and `gradient_norm`, of the prompt that the image starts from.

    Raises:
        InputError: a number out of its range; the network has instance or group norm, which always takes the
            statistics of the image.

    Reference:
        Chen, Pan, Ye, Lu, Xia, "Each Test Image Deserves A Specific Prompt: Continual Test-Time Adaptation for 2D
        Medical Image Segmentation", CVPR 2024.
    """
    require_batch_norm(model, "vptta")
    for name, value in (("extra_entry", extra_entry), ("off_centre", off_centre)):
        if not isinstance(value, bool):
            raise InputError(f"{name} is {value!r}; expected True or False")
    if not 0 < alpha <= 1:
        raise InputError(f"alpha is {alpha!r}; expected a share of the spectrum, above 0 and up to 1, as in 0.01")
    if not 0 < warm_up < float("inf"):
        raise InputError(f"warm_up is {warm_up!r}; expected a positive number, as in 5.0")
    banks.check_bank(bank, neighbours, extra=extra_entry)
    entries = bank + extra_entry

    def block_of(images: Array) -> tuple[slice, ...]:
        """Where the prompt stands in the shifted spectrum, along each spatial axis."""
        sizes = [(space, max(1, int(space * alpha))) for space in images.shape[1:-1]]
        starts = [(space - size) // 2 if off_centre else space // 2 - size // 2 for space, size in sizes]
        return tuple(slice(start, start + size) for start, (_, size) in zip(starts, sizes))

    def init(source: Source, images: Array) -> VpttaState:
        shape = (*(part.stop - part.start for part in block_of(images)), images.shape[-1])
        prompt = jnp.ones(shape, images.dtype)
        return VpttaState(prompt, optimiser.init(prompt), *banks.empty((prompt, prompt), entries), jnp.int32(0))

    def apply(source: Source, images: Array, prompt: Array, seen: Array):
        """Logits of the prompted image, and the gap of each norm layer that they come through."""
        prompted = _prompted(images, prompt, block_of(images))
        outputs, gaps = model.apply(source._asdict(), prompted, stats=_matching(seen, warm_up))
        return outputs["segmentation"], gaps

    def step(key: Key, source: Source, state: VpttaState, images: Array):
        amplitude, seen = _amplitude(images, block_of(images)), state.seen + 1
        start = _recalled(state, amplitude, neighbours)

        def loss_of(prompt: Array) -> Array:
            return jnp.mean(jnp.stack(jax.tree.leaves(apply(source, images, prompt, seen)[1])))

        loss, gradient = jax.value_and_grad(loss_of)(start)
        updates, opt = optimiser.update(gradient, state.optimiser, start)
        prompt = optax.apply_updates(start, updates)
        entered = banks.put((state.keys, state.prompts), (amplitude, prompt), state.seen)
        state = VpttaState(prompt, opt, *entered, seen)
        info = {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
        return state, Output(predict(source, state, images), info)

    def predict(source: Source, state: VpttaState, images: Array) -> Array:
        return apply(source, images, state.prompt, state.seen)[0]

    return Method(init, step, predict, lambda state: state.prompt)


def _spectrum(images: Array) -> tuple[Array, tuple[int, ...]]:
    """The spectrum of each image and channel, frequency zero in the middle, and the spatial axes."""
    axes = tuple(range(1, images.ndim - 1))
    return jnp.fft.fftshift(jnp.fft.fftn(images, axes=axes), axes), axes


def _prompted(images: Array, prompt: Array, block: tuple[slice, ...]) -> Array:
    spectrum, axes = _spectrum(images)
    around = [(part.start, size - part.stop) for part, size in zip(block, images.shape[1:-1])]
    factor = jnp.pad(prompt, [*around, (0, 0)], constant_values=1)[None].astype(spectrum.dtype)
    return jnp.fft.ifftn(jnp.fft.ifftshift(spectrum * factor, axes), axes=axes).real


def _amplitude(images: Array, block: tuple[slice, ...]) -> Array:
    return jnp.mean(jnp.abs(_spectrum(images)[0][(slice(None), *block)]), axis=0)


def _recalled(state: VpttaState, amplitude: Array, neighbours: int) -> Array:
    """The prompt to start from: out of the bank, or ones."""
    cosines, places = banks.nearest(state.keys, amplitude, banks.filled(state.keys, state.seen), neighbours)
    mean = banks.mean(state.prompts, places, jax.nn.softmax(cosines / TEMPERATURE))
    return jnp.where(state.seen >= neighbours, mean, jnp.ones_like(mean))


def _matching(seen: Array, warm_up: float) -> stats.Policy:
    """Normalises with the blend of source and image; the memory is how far the image's own moments are from it."""

    def mix(image: Moments, source: Moments, memory: Array):
        share = 1 / (jnp.sqrt(seen.astype(image.mean.dtype)) / warm_up + 1)
        image = image._replace(variance=image.variance * (image.count / max(image.count - 1, 1)))
        blended, _ = stats.blend(share).mix(image, source, ())
        blended = jax.lax.stop_gradient(blended)
        deviations = _deviation(blended.variance) - _deviation(image.variance)
        return blended, jnp.mean(jnp.abs(blended.mean - image.mean)) + jnp.mean(jnp.abs(deviations))

    return stats.Policy(lambda source: jnp.zeros((), source.mean.dtype), mix)


def _deviation(variance: Array) -> Array:
    """The root of variances, or of a covariance's diagonals; its gradient at 0 is 0."""
    variance = variance if variance.ndim == 1 else jnp.diagonal(variance, axis1=-2, axis2=-1)
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)
