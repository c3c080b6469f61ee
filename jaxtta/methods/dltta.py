"""DLTTA: the more an image's prediction differs from those of images like it, the larger its learning rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtta import stats
from jaxtta.core import Array, InputError, Key, Method, Output, Select, Source, Task, bind, copy, norm_affine, partition
from jaxtta.methods import neighbours as banks
from jaxtta.methods.reliable import decisions
from jaxtta.models.heads import FEATURES
from jaxtta.objectives import pixel_entropy

SHARPNESS = 0.2  # the temperature of the cosines that neighbours are weighted by


class DlttaState(NamedTuple):
    """The adapted parameters (None elsewhere), the optimiser's state, and the bank's deepest maps
    `[bank, batch, *cells, channels]` and logits `[bank, batch, *space, classes]`, with how many ever entered it.
    """

    adapted: Any
    optimiser: Any
    features: Array
    logits: Array
    entered: Array


def dltta(
    model,
    task: Task,
    *,
    bank: int = 20,
    neighbours: int = 8,
    temperature: float = 4.0,
    exponential: bool = True,
    optimiser: optax.GradientTransformation = optax.adam(1e-3),
    select: Select = norm_affine,
) -> Method:
    """TENT with a learning rate for each image, from a memory of the images before it.

        q = probabilities of Σ_k softmax_k(cos(f, f_k) / 0.2) z_k, over the nearest f_k in the bank
        p = probabilities of z / temperature;  divergence = mean over pixels of KL(p‖q) + KL(q‖p)
        factor = exp(divergence), or divergence / 2;  θ ← θ + factor · optimiser(∇ H(θ; x))

    f is the whole deepest map as one vector, z the logits, H the entropy with the image's own statistics, which
    instance and group norm always have. What is compared is of before the update, what enters the bank of after it, the
    newest in the place of the oldest. Until more than `neighbours` images have entered the factor is 1.

    Adapts: scale and shift of every norm layer (`select`), of batch, instance and group norm alike. The bank is the
        larger part of the state: 20 images of 512 x 512 with 2 classes are 42 MB of logits, beside 10 MB of deepest
        maps of the released ResUNet-34, for each stream.
    Predicts: after the update.
    Differs from the reference code (read: the two methods in one repository, 2022): the memory, the temperature and the
        exponential, from 1 on, are those of its segmentation of OCT, which adapts other layers (ATTA's) with SGD. The
        loss, the norm affines, Adam at 1e-3 and the factor 1 of the start are those of its classification of
        histology, which has `bank=800, neighbours=4, temperature=2.0, exponential=False`, dot products for cosines,
        the plain mean of the neighbours, and compares nothing until the bank is full. In OCT's the weighted sum lost
        all but one term to a misspelt name, here it is summed; its rates begin with 0, 1e-3, 2e-3 and so on to 8e-3;
        its bank holds one more. Its results were not reproduced. Our choice: a sigmoid task takes the divergence of
        off and on, mean over channels, and a batch counts as one image.

    Args:
        model: a `jaxtta.models.Model`.
        task: what is segmented.
        bank: images that the bank holds.
        neighbours: images of the bank to compare with.
        temperature: what the image's own logits are divided by, above 0. At 1 the images of a sure source hardly
            differ, and the factor without the exponential is next to 0.
        exponential: whether the factor is exp(divergence), 1 or more, or half the divergence.
        optimiser: any optax transformation.
        select: which parameters adapt.

    Returns:
        A method whose info holds `loss`, `gradient_norm` and `rate_factor`.

    Raises:
        InputError: a number out of its range.

    Reference:
        Yang, Chen, Jiang, Liu, Cao, Heng, Dou, "DLTTA: Dynamic Learning Rate for Test-time Adaptation on Cross-domain
        Medical Images", IEEE Transactions on Medical Imaging 2022.
    """
    banks.check_bank(bank, neighbours)
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature is {temperature!r}; expected a positive number, as in 4.0")
    policy, heads = stats.image(), ("segmentation", FEATURES)

    def entropy(adapted: Any, source: Source, images: Array) -> tuple[Array, dict[str, Array]]:
        outputs = bind(model, source, policy)(adapted)(images, heads=heads)
        probabilities = task.probabilities(outputs["segmentation"])
        return jnp.mean(pixel_entropy(task, probabilities, full=True)), outputs

    def init(source: Source, images: Array) -> DlttaState:
        adapted = copy(partition(source.params, select)[0])
        _, outputs = jax.eval_shape(entropy, adapted, source, images)
        memory = banks.empty((outputs[FEATURES], outputs["segmentation"]), bank)
        return DlttaState(adapted, optimiser.init(adapted), *memory, jnp.zeros((), jnp.int32))

    def step(key: Key, source: Source, state: DlttaState, images: Array):
        gradient_of = jax.value_and_grad(entropy, has_aux=True)
        (loss, before), gradient = gradient_of(state.adapted, source, images)
        there = banks.filled(state.features, state.entered)
        cosines, places = banks.nearest(state.features, before[FEATURES], there, neighbours)
        expected = banks.mean(state.logits, places, jax.nn.softmax(cosines / SHARPNESS))
        divergence = _divergence(task, before["segmentation"] / temperature, expected)
        factor = jnp.exp(divergence) if exponential else divergence / 2
        factor = jnp.where(state.entered > neighbours, factor, jnp.ones_like(factor))
        updates, opt = optimiser.update(gradient, state.optimiser, state.adapted)
        updates = jax.tree.map(lambda update: factor.astype(update.dtype) * update, updates)
        adapted = optax.apply_updates(state.adapted, updates)
        after = bind(model, source, policy)(adapted)(images, heads=heads)
        memory = banks.put((state.features, state.logits), (after[FEATURES], after["segmentation"]), state.entered)
        state = DlttaState(adapted, opt, *memory, state.entered + 1)
        info = {"loss": loss, "gradient_norm": optax.tree.norm(gradient), "rate_factor": factor}
        return state, Output(after["segmentation"], info)

    def predict(source: Source, state: DlttaState, images: Array) -> Array:
        return bind(model, source, policy)(state.adapted)(images)["segmentation"]

    return Method(init, step, predict, lambda state: state.adapted)


def _divergence(task: Task, first: Array, second: Array) -> Array:
    """KL(p‖q) + KL(q‖p) of two predictions given as logits, in nats, mean over decisions."""
    one, other = decisions(task, first), decisions(task, second)
    return jnp.mean(jnp.sum((jnp.exp(one) - jnp.exp(other)) * (one - other), axis=-1))
