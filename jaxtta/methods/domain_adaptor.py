"""DomainAdaptor: source and image statistics mixed by their distances, and an entropy that certain pixels feel too."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtta import stats
from jaxtta.core import Array, InputError, Key, Method, Moments, Output, Source, Task, bind, norm_affine, partition
from jaxtta.models import require_batch_norm
from jaxtta.models.layers import EPSILON
from jaxtta.objectives import entropies


class DomainAdaptorState(NamedTuple):
    """What the last image's step added to the affines of every norm (None elsewhere)."""

    update: Any


class Images(NamedTuple):
    """Moments of a batch, and the mean and deviation of each of its images, `[batch, channels]`."""

    mean: Array
    variance: Array
    count: int
    means: Array
    deviations: Array


class Mixture(NamedTuple):
    """What a layer mixed: the batch's moments, those it normalised with, and the source's share."""

    image: Moments
    mixed: Moments
    share: Array


def domain_adaptor(
    model, task: Task, *, temperature: float = 2.0, optimiser: optax.GradientTransformation = optax.sgd(1e-3)
) -> Method:
    """AdaMixBN and one step on the generalised entropy, from the source anew for each image.

        d(a, b) = mean_c (μ_a − μ_b)² + mean_c (σ_a − σ_b)²,  s source, t batch, i one image of it
        λ = mean_i (1 − d(s, t) / (d(s, t) + d(s, i) + d(t, i))),  m = λ s + (1 − λ) t  of means and of variances
        γ' = γ σ_t / σ_m,  β' = β + γ (μ_t − μ_m) / σ_m
        (γ', β') ← optimiser step on mean T² H(softmax(z / T)),  T = temperature · deviation of z over the classes

    With γ', β' the network gives under the batch's own statistics what γ, β give under the mixed ones. T has no
    gradient; as it grows with the logits, certain pixels count as others do. A single image has λ = ½.

    Adapts: scale and shift of every batch norm; the state only holds what was added, for `predict`.
    Predicts: after the update.
    Differs from the reference code: a sigmoid task takes each channel as the two classes (z, 0), and sums the entropies
        (our choice). Of two classes the loss comes to −z², whatever the temperature: it makes certain what is certain.
        A layer that whitens is not mixed but takes the statistics of the batch. The distance d and the optimiser are
        the release's.

    Args:
        model: a `jaxtta.models.Model` with batch norm.
        task: what is segmented.
        temperature: T in deviations of the logits, above 0.
        optimiser: any optax transformation; each image begins with its first step.

    Returns:
        A method whose info holds `loss`, `gradient_norm` and `source_share`, the mean of λ over the layers.

    Raises:
        InputError: temperature is not a positive number; the network has instance or group norm, which always takes the
            statistics of the image.

    Reference:
        Zhang, Qi, Shi, Gao, "DomainAdaptor: A Novel Approach to Test-time Adaptation", ICCV 2023.
    """
    require_batch_norm(model, "domain_adaptor")
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature is {temperature!r}; expected a positive number, as in 2.0")

    def init(source: Source, images: Array) -> DomainAdaptorState:
        return DomainAdaptorState(jax.tree.map(jnp.zeros_like, partition(source.params, norm_affine)[0]))

    def mixed(source: Source, images: Array) -> tuple[Source, Array]:
        memory = model.apply(source._asdict(), images, stats=adaptive())[1]
        found = jax.tree.leaves(memory, is_leaf=lambda node: isinstance(node, Mixture))
        return source._replace(params=transformed(source.params, memory)), jnp.mean(jnp.stack([m.share for m in found]))

    def predicted(source: Source, update: Any, images: Array) -> Array:
        affines = optax.apply_updates(partition(source.params, norm_affine)[0], update)
        return bind(model, source, stats.image())(affines)(images)["segmentation"]

    def step(key: Key, source: Source, state: DomainAdaptorState, images: Array):
        start, share = mixed(source, images)
        affines, at = partition(start.params, norm_affine)[0], bind(model, start, stats.image())
        loss, gradient = jax.value_and_grad(
            lambda affines: generalised_entropy(task, at(affines)(images)["segmentation"], temperature)
        )(affines)
        update = optimiser.update(gradient, optimiser.init(affines), affines)[0]
        info = {"loss": loss, "gradient_norm": optax.tree.norm(gradient), "source_share": share}
        return DomainAdaptorState(update), Output(predicted(start, update, images), info)

    def predict(source: Source, state: DomainAdaptorState, images: Array) -> Array:
        return predicted(mixed(source, images)[0], state.update, images)

    return Method(init, step, predict, lambda state: state.update)


def _of_images(x: Array) -> Images:
    means, variances, _ = jax.vmap(lambda image: stats.measured(image[None]))(x)
    return Images(*stats.measured(x), means, jnp.sqrt(variances))


def adaptive() -> stats.Policy:
    """The mixed moments of AdaMixBN; what it mixed goes where a memory would."""

    def mix(image: Images, source: Moments, memory: tuple):
        if not isinstance(image, Images):
            return image, ()
        spread = jnp.sqrt(source.variance), jnp.sqrt(image.variance)

        def distance(means: tuple[Array, Array], deviations: tuple[Array, Array]) -> Array:
            return sum(jnp.mean(jnp.square(a - b), axis=-1) for a, b in (means, deviations))

        apart = distance((source.mean, image.mean), spread)
        of_each = distance((source.mean[None], image.means), (spread[0][None], image.deviations))
        within = distance((image.mean[None], image.means), (spread[1][None], image.deviations))
        total = apart + of_each + within
        share = jnp.mean(jnp.where(total > 0, 1 - apart / jnp.where(total > 0, total, 1), 0.5))
        mean = share * source.mean + (1 - share) * image.mean
        moments = Moments(mean, share * source.variance + (1 - share) * image.variance, image.count)
        return moments, Mixture(Moments(*image[:3]), moments, share)

    return stats.Policy(lambda source: (), mix, _of_images)


def transformed(params: Any, memory: Any) -> Any:
    """The parameters with γ', β' in every layer that mixed.

    Raises:
        InputError: such a layer lacks one of them.
    """
    if isinstance(memory.get("memory"), Mixture):
        if not {"scale", "bias"} <= params.keys():
            raise InputError(
                "domain_adaptor changes scale and bias of every batch norm, but the source model has one without them; "
                "choose alpha_bn or another method"
            )
        (image, mixed, _) = memory["memory"]
        factor = params["scale"] * jax.lax.rsqrt(mixed.variance + EPSILON)
        shift = params["bias"] + factor * (image.mean - mixed.mean)
        return {**params, "scale": factor * jnp.sqrt(image.variance + EPSILON), "bias": shift}
    layers = {name: part for name, part in memory.items() if isinstance(part, dict)}
    return params | {name: transformed(params.get(name, {}), part) for name, part in layers.items()}


def generalised_entropy(task: Task, logits: Array, temperature: float) -> Array:
    """The mean over pixels of `T² H(softmax(z / T))`, T without a gradient; of logits `[..., classes]`."""
    if task.activation == "sigmoid":
        logits = jnp.stack([logits, jnp.zeros_like(logits)], axis=-1)
    deviation = temperature * jnp.std(jax.lax.stop_gradient(logits), axis=-1, keepdims=True, ddof=1)
    deviation = jnp.where(deviation > 0, deviation, 1)
    likely = jax.nn.log_softmax(logits / deviation, axis=-1)
    scaled = entropies(likely) * jnp.square(deviation[..., 0])
    return jnp.mean(jnp.sum(scaled, axis=-1) if task.activation == "sigmoid" else scaled)
