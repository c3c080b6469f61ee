"""`jaxtta pretrain`: an encoder from unlabelled images by contrast, MoCo v2 with local features and decorrelation."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtta import checkpoint, run
from jaxtta.core import InputError, Learner, Task
from jaxtta.data.cases import Case
from jaxtta.data.kinds import Kind, to_dict
from jaxtta.encoders import moco, spectrum
from jaxtta.encoders.whitening import folded, groups_for
from jaxtta.models import Model, build, features
from jaxtta.plans import Pretraining
from jaxtta.plans.encoders import DEPTH
from jaxtta.runs import fitting, inputs, loop
from jaxtta.runs.folder import RunFolder, in_folder
from jaxtta.runs.unlabelled import Windows
from jaxtta.workflows.train import encoder_for

NOTHING = Task(1, "sigmoid", ("nothing",))  # what an encoder segments: a checkpoint's place for it is not empty
RECIPE = (
    "crop_size", "epochs", "batch", "learning_rate", "queue", "momentum", "temperature", "local", "whiten",
    "independent", "keep_constant", "seed",
)  # fmt: skip
COLUMNS = ("loss", "global", "local", "alignment", "queue_alignment", "effective_rank")
KEPT_ASIDE = 0.1  # of the files, for the spectrum
WEIGHT_DECAY, SGD_MOMENTUM = 1e-4, 0.9


def pretrain(plan: Pretraining) -> dict[str, Any]:
    """Pre-trains an encoder; returns the content of `run.json`."""
    return _pretrain(plan, inputs.preprocessing_for(plan, mask_values=(0, 1)))


@in_folder
def _pretrain(plan: Pretraining, folder: RunFolder, preprocessing: Kind) -> dict[str, Any]:
    _check_numbers(plan)
    mesh = None if plan.devices is None else run.device_mesh(plan.devices)
    model = _model(plan, preprocessing.channels)
    begun = None if plan.encoder is None else checkpoint.load(plan.encoder, kind="encoder")
    found = inputs.find_all(list(plan.images), [], preprocessing, root=plan.root)
    cases = [case._replace(mask=None) for case in found]
    checked = inputs.check_cases(cases, preprocessing, NOTHING, skip_bad=plan.skip_bad, quiet=plan.quiet)
    aside = _aside(plan, list(checked.cases))
    if not plan.keep_constant:
        _check_varied(preprocessing, checked.cases, aside)
    learner_of = functools.partial(
        moco.moco_learner, model, size=plan.crop_size or plan.size, queue=plan.queue, momentum=plan.momentum,
        temperature=plan.temperature, local=plan.local, shared=not plan.independent,
        encoder=begun and encoder_for(build({**model.config, "whitening": 0}), begun, plan.encoder),
    )  # fmt: skip
    # A step is traced, so that what does not fit is said before a run begins.
    traced = learner_of(optax.sgd(0.0))
    batch = {"image": jax.ShapeDtypeStruct((plan.batch, *plan.size, model.channels), jnp.float32)}
    state = jax.eval_shape(traced.init, jax.random.key(0), batch)
    jax.eval_shape(traced.step, jax.random.key(0), state, batch)
    recipe = {name: getattr(plan, name) for name in RECIPE}
    identity = {
        "model": model.config,
        "preprocessing": to_dict(preprocessing),
        **recipe,
        "encoder": None if begun is None else begun.manifest["sha256"],
        **checked.identity(),
        "kept_aside": [f"{case.domain}/{case.name}" for case in aside],
    }
    told = {"images": [str(path) for path in plan.images], "bad": checked.bad, "devices": plan.devices or 1}
    reads = [*([] if begun is None else [plan.encoder]), *checked.files]
    if not folder.begin(identity, reads, scratch=[fitting.PREPARED], **told):
        return folder.record
    windows = Windows(folder.out / fitting.PREPARED, checked.cases, preprocessing, NOTHING, quiet=plan.quiet)
    kept, shown = _places(plan, windows, aside)
    steps, first = loop.steps_of(shown, plan.batch), {"image": windows.images[np.resize(shown, plan.batch)]}
    schedule = optax.cosine_decay_schedule(plan.learning_rate, steps * plan.epochs)
    sgd = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(schedule, SGD_MOMENTUM))
    init, step = run.compiled_learner(learner_of(sgd), mesh=mesh)

    def export(state: moco.MocoState, log: list[dict]) -> None:
        network, source, groups = model, moco.encoder_source(state), model.config.get("whitening", 0)
        if groups:
            config, source = folded(model, jax.device_get(source))
            network = build(config)
        provenance = {"command": "pretrain", "recipe": recipe, "whitening": groups, "images": told["images"]}
        provenance["encoder"] = None if begun is None else str(plan.encoder)
        provenance |= {"step": int(state.step), "result": log[-1] if log else None}
        checkpoint.save(folder.out / "last", network, source, NOTHING, preprocessing, provenance=provenance)

    def draw(epoch: int, place: int, window: int) -> dict[str, np.ndarray]:
        return {"image": windows.images[window]}

    state, log = loop.fit(
        Learner(lambda key, _: init(key, first), step), loop.shuffled(draw, shown, plan.batch, seed=[plan.seed, 2]),
        folder, epochs=plan.epochs, steps=steps, seed=plan.seed, label="pre-training", quiet=plan.quiet,
        columns=COLUMNS, score=lambda state, epoch: {"learning_rate": float(schedule(epoch * steps - 1))},
        write=lambda state, log: None if plan.quiet else loop.show(log[-1]), export=export,
    )  # fmt: skip
    ranks = _spectrum(plan, model, state, (windows.images[place] for place in kept))
    counts = {"trained_on": len(shown), "constant": int((~windows.varied).sum()), "embeddings": len(kept)}
    return folder.finish(last=log[-1], windows=counts, spectrum=ranks)


def describe(record: dict[str, Any]) -> str:
    """What came of a run, in a few lines."""
    last, counts = record["last"], record["windows"]
    parts = " ".join(f"{name} {last[name]:.4g}" for name in ("loss", "global", "local") if name in last)
    lines = [f"epoch {last['epoch']}: {parts}, on {counts['trained_on']} images"]
    for name, told in record["spectrum"].items():
        rank = spectrum.spoken(told["effective_rank"], embeddings=counts["embeddings"])
        if counts["embeddings"] >= spectrum.FEWEST:
            rank += (
                f" of {told['width']}, {told['dimensions']} dimensions not collapsed, on {counts['embeddings']} images "
                "kept aside"
            )
        lines.append(f"{name}: effective rank {rank}")
    return "\n".join(lines)


def _check_numbers(plan: Pretraining) -> None:
    fitting.check_pace(plan.epochs, plan.batch, plan.learning_rate)
    for name, size in {"size": plan.size, "crop_size": plan.crop_size or plan.size}.items():
        if len(size) != 2:
            raise InputError(f"`{name}` is {'x'.join(map(str, size))}; pre-training takes slices: give HEIGHTxWIDTH")
    if not 0 <= plan.momentum < 1:
        raise InputError(f"momentum is {plan.momentum}; expected a number from 0 to below 1, as in 0.999")
    if not 0 < plan.temperature < float("inf"):
        raise InputError(f"temperature is {plan.temperature}; expected a positive number, as in 0.2")
    if not 0 <= plan.local < float("inf"):
        raise InputError(f"the weight of the local loss is {plan.local}; expected 0 (without) or a positive number")
    moco.require_multiple(plan.queue, plan.batch)
    if plan.devices is not None and plan.batch % plan.devices:
        raise InputError(f"a batch of {plan.batch} cannot be split over {plan.devices} devices; give a multiple")


def _model(plan: Pretraining, channels: int) -> Model:
    """The network whose encoder is trained, whitened when the plan says so."""
    config = ({"depth": DEPTH} if plan.architecture == "resunet" else {}) | plan.network()
    config |= {"classes": NOTHING.classes, "channels": channels, "heads": ("segmentation",)}
    model = build(config)
    if not plan.whiten:
        return model
    if model.norm != "batch":
        raise InputError(f"`whiten` takes the place of batch norm, the network has {model.norm} norm; leave it out")
    shape = (plan.batch, *(plan.crop_size or plan.size), model.channels)
    source, images = jax.eval_shape(model.init, jax.random.key(0)), jax.ShapeDtypeStruct(shape, jnp.float32)
    *outer, channels = jax.eval_shape(functools.partial(features, model), source, images).shape
    return build({**config, "whitening": groups_for(channels, math.prod(outer))})


def _aside(plan: Pretraining, cases: list[Case]) -> list[Case]:
    """The files whose images nothing is trained on, drawn by the seed."""
    if len(cases) < 2:
        raise InputError(f"{cases[0].image} is the only file; one of ten is kept aside: give two or more")
    order = np.random.default_rng([plan.seed, 1]).permutation(len(cases))
    return [cases[i] for i in sorted(order[: max(1, round(KEPT_ASIDE * len(cases)))])]


def _places(plan: Pretraining, windows: Windows, aside: list[Case]) -> tuple[np.ndarray, np.ndarray]:
    """The windows that are kept aside, and those to train on."""
    useful, held = windows.varied | plan.keep_constant, np.zeros(len(windows), bool)
    for case in aside:
        held[list(windows.places[case])] = True
    return np.flatnonzero(useful & held), np.flatnonzero(useful & ~held)


def _check_varied(preprocessing: Kind, cases: dict[Case, int], aside: list[Case]) -> None:
    """Raises InputError when of the images kept aside, or of the others, all are constant and left out."""
    for part in (aside, [case for case in cases if case not in aside]):
        samples = (preprocessing.open(case, NOTHING) for case in part)
        if not any(np.ptp(sample.inputs(step)) for sample in samples for step in range(sample.steps)):
            which, some = "kept aside" if part is aside else "to train on", f"{part[0].image} and {len(part) - 1} more"
            raise InputError(
                f"{some} {which}: every image or slice is constant, there is nothing to see; check `intensity`, or "
                "give other images"
            )


def _spectrum(plan: Pretraining, model: Model, state: Any, images: Iterator[np.ndarray]) -> dict[str, dict[str, Any]]:
    """Writes the spectrum of encoder and projector on images; what to say of each."""
    program = run.compiled_function(functools.partial(moco.embed, model))
    source, projector = moco.encoder_source(state), state.params["projector"]
    embeddings = spectrum.in_batches(lambda batch: program(source, projector, batch), images, plan.batch)
    values = dict(zip(("encoder", "projector"), map(spectrum.singular_values, embeddings)))
    spectrum.write(plan.out, {plan.out.resolve().name: values})
    return {part: spectrum.summary(array) for part, array in values.items()}
