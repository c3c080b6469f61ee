"""Methods without an update: a statistics policy and its memory are all there is."""

from typing import Any, NamedTuple

from jaxtta import stats
from jaxtta.core import Array, Key, Method, Output, Source, copy


class FixedState(NamedTuple):
    """The memory of the statistics policy, one per norm layer."""

    memory: Any


def without_update(model, policy: stats.Policy, *, afterwards: stats.Policy | None = None) -> Method:
    """A method that predicts with the source's parameters under a statistics policy.

    Args:
        model: a `jaxtta.models.Model`.
        policy: of a step, which carries the memory on.
        afterwards: of `predict`: the same moments from the memory that the step left, which then stays as it is; needed
            when the policy's moments depend on its memory.
    """

    def init(source: Source, images: Array) -> FixedState:
        return FixedState(copy(stats.initial_memory(policy, source.batch_stats)))

    def apply(policy: stats.Policy, source: Source, state: FixedState, images: Array):
        variables = {**source._asdict(), "memory": state.memory}
        outputs, memory = model.apply(variables, images, stats=policy)
        return outputs["segmentation"], memory

    def step(key: Key, source: Source, state: FixedState, images: Array):
        logits, memory = apply(policy, source, state, images)
        return FixedState(memory), Output(logits, {})

    def predict(source: Source, state: FixedState, images: Array) -> Array:
        return apply(afterwards or policy, source, state, images)[0]

    return Method(init, step, predict, lambda state: ())
