"""What a step of contrastive pre-training costs, against two passes through its encoder and one back.

Views, projector, queue, losses, optimiser and moving average come on top of these. Key pass, query pass with its
gradient, and full step are timed in turn, round after round in one process; the ratio is that of the medians.

    python -m experiments.pretraining_cost --size 64 --batch 64

Hardware: any; written for 2 CPU cores. Run time there: one minute. Expected: a ratio of at most 1.15; 0.96 to 1.00 of
MoCo and 0.90 with local loss and decorrelation were measured.
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from experiments.tables import printed
from experiments.timing import in_turn, medians
from jaxtta import run, stats
from jaxtta.core import Array, Tree, encoder_of
from jaxtta.encoders.moco import moco_learner, pooled
from jaxtta.encoders.whitening import groups_for
from jaxtta.models import Model, build
from jaxtta.models.heads import FEATURES


def ratio(model: Model, *, size: int, batch: int, queue: int, local: float, rounds: int) -> dict[str, float]:
    """Medians of the seconds of key pass, gradient and step, and what the step is of the sum of the others."""
    policy, source = stats.running(), encoder_of(model.init(jax.random.key(1)))
    weights = source.params, source.batch_stats
    images = jax.random.uniform(jax.random.key(2), (batch, size, size, model.channels))

    def embedded(params: Tree, batch_stats: Tree, images: Array) -> Array:
        variables = {"params": params, "batch_stats": batch_stats}
        return pooled(model.apply(variables, images, stats=policy, heads=(FEATURES,))[0][FEATURES])

    def loss(params: Tree, batch_stats: Tree, images: Array) -> Array:
        return jnp.mean(jnp.square(embedded(params, batch_stats, images)))

    passing, gradient = run.compiled_function(embedded), run.compiled_function(jax.grad(loss))
    learner = moco_learner(model, optax.sgd(0.03, 0.9), size=(size, size), queue=queue, local=local)
    init, step = run.compiled_learner(learner)
    key, state = jax.random.key(0), init(jax.random.key(0), {"image": images})

    def stepped():
        nonlocal state
        state, info = step(key, state, {"image": images})
        return state, info

    calls = {"key pass": lambda: passing(*weights, images), "gradient": lambda: gradient(*weights, images)}
    median = medians(in_turn({**calls, "step": stepped}, rounds=rounds))
    return {**median, "step / both": median["step"] / (median["key pass"] + median["gradient"])}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table; `arguments` are those of the command line when None."""
    parser = argparse.ArgumentParser("python -m experiments.pretraining_cost", description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=64, help="height and width of the slices (64)")
    parser.add_argument("--batch", type=int, default=64, help="slices a step (64)")
    parser.add_argument("--features", type=int, nargs="+", default=[16, 32, 64, 128], help="of the U-Net's encoder")
    parser.add_argument("--queue", type=int, default=1024, help="keys in the queue (1024)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds after one that is not counted (7)")
    options = parser.parse_args(arguments)

    features, size, batch = tuple(options.features), options.size, options.batch
    groups = groups_for(features[-1], batch * (size // 2 ** (len(features) - 1)) ** 2)
    rows = []
    for arm, local, whitening in (("moco", 0.0, 0), ("local, decorrelated", 0.5, groups)):
        model = build(
            {"architecture": "unet", "classes": 1, "channels": 1, "features": features, "whitening": whitening}
        )
        timed = ratio(model, size=size, batch=batch, queue=options.queue, local=local, rounds=options.rounds)
        rows.append({"arm": arm, **timed})
    name = f"A step of pre-training, in seconds: U-Net {features}, {batch} x {size} x {size}, {jax.devices()[0]}"
    print(printed(name, rows, [f"Medians of {options.rounds} rounds"]))


if __name__ == "__main__":
    main()
