"""DUA: running statistics that follow the target with a momentum that decays."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxtta import stats, views
from jaxtta.core import Array, InputError, Key, Method, Output, Source, Task, copy
from jaxtta.models import require_batch_norm


class DuaState(NamedTuple):
    """The running statistics, a tree like the source's, and the part ρ of the momentum that decays."""

    batch_stats: Any
    decaying: Array


def dua(model, task: Task, *, momentum: float = 0.1, decay: float = 0.94, floor: float = 0.005) -> Method:
    """Dynamic unsupervised adaptation: one update of the running statistics an image, without a gradient.

        ρ_k = ρ_(k−1) · decay,  ρ_0 = momentum;  m_k = ρ_k + floor
        statistics_k = (1 − m_k) · statistics_(k−1) + m_k · statistics of the image's views,  statistics_0 the source's

    The views of the image, `views.possible`, form one batch; they are normalised with its statistics on the way, and
    its variance is kept unbiased, both as in training.

    Adapts: no parameter; the state is the statistics of every batch norm and ρ.
    Predicts: after the update, with the source's parameters and the running statistics.
    Differs from the paper: its views are random crops, flips and rotations; here (our choice) they are the flips and
        quarter turns that show possible anatomy, the same each time. Images that are not square do without quarter
        turns, which are of another shape. It stops adapting after some images; here every image updates. The released
        code makes 64 views, and reports the best of 80 updates by the labels of the test images, which is not done.

    Args:
        model: a `jaxtta.models.Model` with batch norm.
        task: what is segmented; without `quarter_turns` there are none.
        momentum: ρ before the first image, above 0; with the floor at most 1.
        decay: factor on ρ at each image, above 0 and up to 1.
        floor: what the momentum falls to, above 0.

    Returns:
        A method whose info holds `momentum`, m of this image.

    Raises:
        InputError: a number out of its range; the network has instance or group norm, which keeps no statistics.

    Reference:
        Mirza, Micorek, Possegger, Bischof, "The Norm Must Go On: Dynamic Unsupervised Domain Adaptation by
        Normalization", CVPR 2022.
    """
    require_batch_norm(model, "dua")
    if not (momentum > 0 and floor > 0 and momentum + floor <= 1):
        raise InputError(
            f"momentum is {momentum!r} and floor {floor!r}; expected positive numbers of at most 1 together"
        )
    if not 0 < decay <= 1:
        raise InputError(f"decay is {decay!r}; expected a factor above 0 and up to 1, as in 0.94")

    def init(source: Source, images: Array) -> DuaState:
        return DuaState(copy(source.batch_stats), jnp.full((), momentum, images.dtype))

    def step(key: Key, source: Source, state: DuaState, images: Array):
        decaying = state.decaying * decay
        policy = stats.running(decaying + floor)
        memory = stats.initial_memory(policy, state.batch_stats)
        variables = {"params": source.params, "batch_stats": state.batch_stats, "memory": memory}
        followed = model.apply(variables, augmented(task, images), stats=policy)[1]
        state = DuaState(stats.remembered(followed, state.batch_stats), decaying)
        return state, Output(predict(source, state, images), {"momentum": decaying + floor})

    def predict(source: Source, state: DuaState, images: Array) -> Array:
        variables = {"params": source.params, "batch_stats": state.batch_stats}
        return model.apply(variables, images, stats=stats.source())[0]["segmentation"]

    return Method(init, step, predict, lambda state: ())


def augmented(task: Task, images: Array) -> Array:
    """The views of the images that have their shape, one batch, the images themselves last."""
    square = images.shape[views.HEIGHT] == images.shape[views.WIDTH]
    shown = [view for view in views.possible(task, images.ndim - 2) if square or not view.swaps]
    return jnp.concatenate([view.apply(images) for view in shown])
