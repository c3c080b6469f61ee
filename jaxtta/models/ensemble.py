"""Several networks of one architecture as one: their logits are averaged, as those of the folds of a cross validation.

The variables of an ensemble are those of its members under their names, `{"fold_0": ..., "fold_1": ...}`, so whatever
selects, adapts or stores parameters works on all members together: one loss, of the mean of their logits, and one
update. `jaxtta.wrappers.one_by_one` adapts each by itself instead.

A member may be alone. What is averaged at prediction beside members, mirror images, is said here too, since it is part
of what the trained networks predict; `jaxtta.wrappers.mirrored` does it, after the update, so that losses and their
gradients see the image once and as it is, and an update costs what it costs without.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxtta.core import Array, InputError, Key, Source, Tree
from jaxtta.models.heads import FEATURES, PIXELS
from jaxtta.models.layers import MOMENTS

ENSEMBLE = "ensemble"
SIDE_BY_SIDE = (FEATURES, PIXELS)  # maps that are no prediction: the members' channels, one after the other


def build_ensemble(config: dict[str, Any], build: Callable[[dict[str, Any]], Any]) -> Any:
    """A model of several.

    Args:
        config: `{"architecture": "ensemble", "members": [name, ...], "member": {...}, "mirrors": [axis, ...],
            "classes": number}`; `member` is the configuration that all members have, `mirrors` the axes of space along
            which a prediction is averaged over mirror images.
        build: makes a model of the members' configuration.

    Raises:
        InputError: no members, two of one name, other entries, or what `build` raises.
    """
    known = {"architecture", "members", "member", "mirrors", "classes"}
    if set(config) != known:
        raise InputError(
            f"an ensemble has the entries {', '.join(sorted(config))}; expected {', '.join(sorted(known))}"
        )
    names, member, mirrors = tuple(config["members"]), build(config["member"]), tuple(config["mirrors"])
    if not names or len(set(names)) < len(names):
        raise InputError(f"an ensemble of the members {', '.join(names) or '(none)'}; expected names that differ")
    if not set(mirrors) <= set(range(member.dimensions)):
        raise InputError(f"mirrors are {mirrors}; the members' images have the axes 0 to {member.dimensions - 1}")

    def apply(
        variables: Tree,
        images: Array,
        *,
        stats: Any,
        heads: tuple[str, ...] = ("segmentation",),
        deepest: Callable[[Array], Array] | None = None,
    ):
        own = {name: {part: tree.get(name, {}) for part, tree in variables.items()} for name in names}
        of_each = _split(
            deepest, lambda name: member.apply(own[name], images, stats=stats, heads=(FEATURES,))[0], names
        )
        seen = {
            name: member.apply(own[name], images, stats=stats, heads=heads, deepest=of_each[name]) for name in names
        }
        together = {}
        for head in seen[names[0]][0]:
            found = [seen[name][0][head] for name in names]
            if head == MOMENTS:
                together[head] = dict(zip(names, found))
            else:
                together[head] = jnp.concatenate(found, -1) if head in SIDE_BY_SIDE else sum(found) / len(found)
        return together, {name: memory for name, (_, memory) in seen.items() if memory}

    def init(key: Key) -> Source:
        sources = {name: member.init(jax.random.fold_in(key, number)) for number, name in enumerate(names)}
        kept = ({name: source[part] for name, source in sources.items() if source[part]} for part in (0, 1))
        return Source(*kept)

    return member._replace(apply=apply, init=init, config=config, mirrors=mirrors, members=dict.fromkeys(names, member))


def _split(
    deepest: Callable[[Array], Array] | None, features_of: Callable[[str], dict[str, Array]], names: tuple[str, ...]
) -> dict[str, Callable[[Array], Array] | None]:
    """A function of all members' deepest maps, side by side, as one function for each."""
    if deepest is None or len(names) == 1:
        return dict.fromkeys(names, deepest)
    parts = jnp.split(deepest(jnp.concatenate([features_of(name)[FEATURES] for name in names], -1)), len(names), -1)
    return {name: lambda _, part=part: part for name, part in zip(names, parts)}


def member_of(source: Source, name: str) -> Source:
    """The variables of one member."""
    return Source(source.params[name], source.batch_stats.get(name, {}))
