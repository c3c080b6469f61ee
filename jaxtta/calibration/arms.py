"""Arms: the predictions that one network can make of an image, to choose between.

An arm is the mean of parts. A part is a prediction with a share of the image's own statistics, over some of the image's
views, after a step on the entropy or none. Norms of each image alone have no statistics to mix: views and steps remain.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtta import stats, views
from jaxtta.core import Array, Source, Task, bind, norm_affine, partition
from jaxtta.objectives import entropy, over_views

SOURCE = "source"
STEP = 5e-3


class Part(NamedTuple):
    """One prediction.

    Attributes:
        share: of the image's own statistics, from 0 to 1; the rest are the source's.
        flips: whether it is the mean over the image and its flips, half turns among them.
        turns: whether quarter turns are among them too, where they show possible anatomy.
        step: of the norms' scales and shifts, each by so much against the sign of the gradient of the entropy of the
            prediction (the first step of Adam at that rate); 0 is none.
    """

    share: float = 0.0
    flips: bool = False
    turns: bool = False
    step: float = 0.0


SHARES = (0.1, 0.25, 0.5, 1.0)
_FLIPS = Part(flips=True)
_MIXED = {share: Part(share, flips=True) for share in SHARES}
_STEPPED, _MIXED_AND_STEPPED = (Part(share, flips=True, step=STEP) for share in (0.0, 0.1))
ARMS: dict[str, tuple[Part, ...]] = {
    SOURCE: (Part(),),
    "flips": (_FLIPS,),
    "turns": (Part(flips=True, turns=True),),
    "step": (_STEPPED,),
    "step_turns": (Part(flips=True, turns=True, step=STEP),),
    **{f"statistics_{share:g}": (part,) for share, part in _MIXED.items()},
    "statistics_0.1_step": (_MIXED_AND_STEPPED,),
    "statistics_1_step": (Part(1.0, flips=True, step=STEP),),
    "mean_low": (_FLIPS, _MIXED[0.1], _MIXED[0.25]),
    "mean": (_FLIPS, *_MIXED.values()),
    "mean_high": (_MIXED[0.25], _MIXED[0.5], _MIXED[1.0]),
    "mean_low_step": (_STEPPED, _MIXED_AND_STEPPED),
    "mean_step": (_STEPPED, *_MIXED.values()),
}
"""Every arm by its name, the source first."""

PROBES: tuple[tuple[Part, ...], ...] = ((_FLIPS,), (Part(1.0),))
"""Predictions that every image is asked for beside the source's, because what they say of it tells arms apart."""


def possible(model: Any, task: Task) -> dict[str, tuple[Part, ...]]:
    """The arms of a network: without batch norm those that mix no statistics, without quarter turns none of these."""
    return {
        name: parts for name, parts in ARMS.items()
        if (model.norm == "batch" or not any(part.share for part in parts))
        and (task.quarter_turns or not any(part.turns for part in parts))
    }  # fmt: skip


def probes(model: Any) -> tuple[tuple[Part, ...], ...]:
    """The probes of a network: in the place of the image's statistics, where there are none to mix, the step."""
    return PROBES if model.norm == "batch" else ((_FLIPS,), (_STEPPED,))


class Predictions(NamedTuple):
    """What a network says of images in every way that it is asked to, each computed once.

    Attributes:
        model: the network.
        source: its variables.
        task: what is segmented.
        images: `[batch, *space, channels]`.
        known: of each part, filled as it is asked for.
        stepped: scales and shifts after each step, as well.
    """

    model: Any
    source: Source
    task: Task
    images: Array
    known: dict[Part, Array]
    stepped: dict[tuple[float, float], Any]

    def apart(self) -> "Predictions":
        """The same, of which what is asked for is not known to others: in a branch of a program."""
        return self._replace(known=dict(self.known), stepped=dict(self.stepped))

    def of(self, parts: Sequence[Part]) -> Array:
        """Probabilities of an arm, `[batch, *space, classes]`."""
        return sum(self._of(part) for part in parts) / len(parts)

    def _of(self, part: Part) -> Array:
        if part not in self.known:
            at = bind(self.model, self.source, stats.blend(part.share) if part.share else stats.source())
            forward = at(self._stepped(at, part))
            if part.turns:  # two views more than the flips, which other arms ask for
                every = views.possible(self.task, self.images.ndim - 2)
                quarter = sum(turn.swaps for turn in every) / len(every)
                flips, turned = self._of(part._replace(turns=False)), self._mean(forward, swaps=True)
                self.known[part] = (1 - quarter) * flips + quarter * turned
            elif part.flips:
                self.known[part] = self._mean(forward, swaps=False)
            else:
                self.known[part] = self.task.probabilities(forward(self.images)["segmentation"])
        return self.known[part]

    def _mean(self, forward: Callable, *, swaps: bool) -> Array:
        """The mean over the quarter turns, or over all other views."""
        turns = [turn for turn in views.possible(self.task, self.images.ndim - 2) if turn.swaps == swaps]
        seen = over_views(self.task, forward, self.images, turns=turns)
        return sum(seen.values()) / len(seen)

    def _stepped(self, at: Callable, part: Part):
        key, start = (part.share, part.step), partition(self.source.params, norm_affine)[0]
        if not part.step:
            return start
        if key not in self.stepped:
            objective = entropy(self.task, full=True)
            slope = jax.grad(lambda adapted: objective(None, at(adapted), self.images))(start)
            self.stepped[key] = jax.tree.map(lambda value, along: value - part.step * jnp.sign(along), start, slope)
        return self.stepped[key]


def predictions(model: Any, source: Source, task: Task, images: Array, plain: Array) -> Predictions:
    """Predictions of which the source's, `plain`, is known."""
    return Predictions(model, source, task, images, {Part(): plain}, {})
