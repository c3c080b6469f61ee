"""Methods without an update: a statistics policy and its memory are all there is."""

from typing import Any, NamedTuple

from jaxtta import stats
from jaxtta.core import Array, Key, Method, Output, Source, copy


class FixedState(NamedTuple):
    """The memory of the statistics policy, one per norm layer."""

    memory: Any


def without_update(model, policy: stats.Policy) -> Method:
    """A method that predicts with the source's parameters under a statistics policy."""

    def init(source: Source, images: Array) -> FixedState:
        return FixedState(copy(stats.initial_memory(policy, source.batch_stats)))

    def apply(source: Source, state: FixedState, images: Array):
        variables = {**source._asdict(), "memory": state.memory}
        outputs, memory = model.apply(variables, images, stats=policy)
        return outputs["segmentation"], memory

    def step(key: Key, source: Source, state: FixedState, images: Array):
        logits, memory = apply(source, state, images)
        return FixedState(memory), Output(logits, {})

    def predict(source: Source, state: FixedState, images: Array) -> Array:
        return apply(source, state, images)[0]

    return Method(init, step, predict)
