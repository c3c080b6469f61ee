"""Networks of one's own: Flax modules do under every method what jaxtta's network with the same weights does."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from folders import SIZE, dataset, record, table
from own_networks import LinenPair, LinenUNet, jaxttas, linen_variables, nnx_network
from toys import assert_trees_close, pictures

import jaxtta
from jaxtta import checkpoint, stats
from jaxtta.calibration import arms
from jaxtta.core import InputError, Task
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.methods import METHODS
from jaxtta.models import FEATURES, MOMENTS, PIXELS, build
from jaxtta.workflows import calibrate

KEY = jax.random.key(3)
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
# Statistics mixed, followed, and measured otherwise; gradients; a deepest map replaced; pixels; moments of layers.
ALWAYS = ("diga", "tent")


@functools.cache
def own(kind, norm="batch"):
    """A module of linen or nnx as a model, and jaxtta's own network: `((model, source), (model, source))`."""
    model, _, source = jaxttas(norm)
    if kind == "linen":
        theirs = jaxtta.from_linen(LinenUNet(norm=norm), linen_variables(source))
    else:
        theirs = jaxtta.from_nnx(nnx_network(source, norm))
    return (theirs[0], theirs[1]._replace(calibration=source.calibration)), (model, source)


def applied(model, source, images, policy, **options):
    return model.apply(source._asdict(), images, stats=policy, **options)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in ALWAYS else pytest.mark.slow) for n in METHODS])
def test_every_method_does_what_it_does_to_jaxttas_own_network(kind, name):
    images, told = pictures(2, 1, 15, 18, 3), []  # sizes that are padded
    takes_optimiser = "optimiser" in inspect.signature(METHODS[name]).parameters
    for model, source in own(kind):
        method = METHODS[name](model, Task(2), **({"optimiser": optax.sgd(1e-2)} if takes_optimiser else {}))
        state, step, said = method.init(source, images[0]), jax.jit(method.step), []
        for image in images:
            state, output = step(KEY, source, state, image)
            said.append((output, method.predict(source, state, image)))
        told.append(said)
    assert_trees_close(*told, **CLOSE)


@pytest.mark.parametrize(("kind", "norm"), [("linen", "instance"), ("linen", "group"), ("nnx", "group")])
def test_other_norms_are_as_they_are_and_say_which_they_are(kind, norm):
    model, source = own(kind, norm)[0]
    assert model.norm == norm and source.batch_stats == {}
    for policy in (stats.source(), stats.image()):
        outputs = [applied(*one, pictures(2, 16, 16, 3), policy)[0] for one in own(kind, norm)]
        assert_trees_close(*outputs, **CLOSE)
    with pytest.raises(InputError, match=f"alpha_bn.*{norm} norm"):
        METHODS["alpha_bn"](model, Task(2))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_maps_and_moments_are_found_by_structure(kind):
    heads = ("segmentation", FEATURES, PIXELS, MOMENTS)
    model = own(kind)[0][0]
    assert (model.stride, model.norm, model.heads) == (2, "batch", ("segmentation",))
    for deepest in (None, lambda x: 2 * x):
        outputs = [
            applied(*one, pictures(1, 11, 16, 3), stats.blend(0.3), heads=heads, deepest=deepest) for one in own(kind)
        ]
        assert_trees_close(*outputs, **CLOSE)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_memory_is_carried_on_for_every_layer(kind):
    (model, source), _ = own(kind)
    policy = stats.running(0.1)
    memory = stats.initial_memory(policy, source.batch_stats)
    _, after = model.apply({**source._asdict(), "memory": memory}, pictures(1, 16, 16, 3), stats=policy)
    assert jax.tree.structure(after) == jax.tree.structure(memory)
    assert not any(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(memory)) if np.ndim(a))


def test_a_module_without_variables_draws_its_own():
    model, nothing = jaxtta.from_linen(LinenUNet(), None)
    assert nothing is None
    _, source = own("linen")[0]
    assert jax.tree.map(jnp.shape, jax.eval_shape(model.init, KEY)[:2]) == jax.tree.map(jnp.shape, source[:2])


def run_through(tmp_path, model, source, *, classes=2):
    """The source as a checkpoint, and what Python's commands are given in its place."""
    preprocessing = Preprocessing(SIZE, 3, "fundus")
    checkpoint.save(tmp_path / "source", model, source, Task(classes), preprocessing, provenance={"made": "in a test"})
    return checkpoint.load(tmp_path / "source", model=model)


@pytest.mark.parametrize("kind", ["linen", pytest.param("nnx", marks=pytest.mark.slow)])
def test_a_checkpoint_is_loaded_with_its_network_and_adapted(tmp_path, kind):
    model, source = own(kind)[0]
    loaded = run_through(tmp_path, model, source._replace(calibration={}))
    assert loaded.model is model and loaded.manifest["model"]["architecture"] == kind
    assert_trees_close(loaded.source[:2], jax.tree.map(np.asarray, source[:2]))
    data = dataset(tmp_path / "data", 2)
    out = tmp_path / "result"
    told = {"images": data / "images", "masks": data / "masks", "out": out, "quiet": True}
    jaxtta.adapt(source=loaded, method="tent", settings={"optimiser": "sgd", "learning_rate": "1e-3"}, **told)
    assert record(out)["status"] == "finished" and record(out)["source"] == str(tmp_path / "source")
    assert len(table(out)) == 2
    with pytest.raises(InputError) as caught:
        jaxtta.adapt(source=tmp_path / "source", **{**told, "out": tmp_path / "other"})
    said = str(caught.value)
    assert "\n" not in said and "jaxtta.checkpoint.load(path, model=model)" in said and f"from_{kind}" in said
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_network_of_ones_own_is_calibrated_and_then_chosen_for(tmp_path, optimised, monkeypatch):
    monkeypatch.setattr(calibrate, "POOR", -1.0)  # the weights are random
    monkeypatch.setattr(arms, "ARMS", {name: arms.ARMS[name] for name in ("source", "flips", "statistics_0.25")})
    model, source = own("linen")[0]
    loaded = run_through(tmp_path, model, source._replace(calibration={}))
    data = dataset(tmp_path / "data", 8)
    told = {"images": data / "images", "masks": data / "masks", "quiet": True}
    jaxtta.calibrate(source=loaded, out=tmp_path / "calibrated", draws=1, **told)
    again = checkpoint.load(tmp_path / "calibrated", model=model)
    assert again.source.calibration.keys() == {"gate", "home"}
    jaxtta.adapt(source=again, out=tmp_path / "result", **told)
    assert record(tmp_path / "result")["method"] == "calibrated" and len(table(tmp_path / "result")) == 8


@pytest.mark.slow
def test_a_network_of_ones_own_is_fine_tuned(tmp_path, optimised):
    model, source = own("linen")[0]
    loaded = run_through(tmp_path, model, source._replace(calibration={}))
    data = dataset(tmp_path / "data", 3)
    told = {
        "images": data / "images",
        "masks": data / "masks",
        "batch": 2,
        "epochs": 1,
        "optimiser": "sgd",
        "quiet": True,
    }
    jaxtta.finetune(source=loaded, out=tmp_path / "tuned", **told)
    again = checkpoint.load(tmp_path / "tuned" / "best", model=model)
    assert not np.array_equal(
        again.source.params["encoder1"]["norm1"]["scale"], source.params["encoder1"]["norm1"]["scale"]
    )


def test_another_network_than_was_saved_is_refused(tmp_path):
    model, source = own("linen")[0]
    run_through(tmp_path, model, source)
    for other, words in ((own("nnx")[0][0], "architecture linen"), (own("linen", "instance")[0][0], "variables")):
        with pytest.raises(checkpoint.CheckpointError, match=words):
            checkpoint.load(tmp_path / "source", model=other)
    with pytest.raises(InputError, match=r"LinenUNet is a network of one's own \(linen\), which cannot be built"):
        build(model.config)
    ours = build(own("nnx")[1][0].config)
    checkpoint.save(tmp_path / "ours", *own("nnx")[1], Task(2), Preprocessing(SIZE), provenance={})
    assert checkpoint.load(tmp_path / "ours", model=ours).model is ours
    with pytest.raises(InputError, match="returns 2 channels, the task has 3 classes"):
        run_through(tmp_path, model, source, classes=3)


def test_a_function_has_no_norms_that_can_be_reached(tmp_path):
    _, source = own("linen")[0]
    module = LinenUNet()

    def network(params, images):
        return module.apply({"params": params, "batch_stats": source.batch_stats}, images, train=False)

    model, made = jaxtta.from_function(network, source.params)
    assert (model.norm, model.stride, made.batch_stats) == ("none", 2, {})
    images = pictures(1, 13, 16, 3)
    theirs = applied(model, made, images, stats.image())[0]["segmentation"]
    assert_trees_close(theirs, applied(*own("linen")[0], images, stats.source())[0]["segmentation"], **CLOSE)
    refused = {}
    for name in METHODS:
        try:
            method = METHODS[name](model, Task(2))
            jax.eval_shape(method.init, made, images)
        except InputError as error:
            assert "\n" not in str(error)
            refused[name] = str(error)
    of_statistics = {"batch_statistics", "alpha_bn", "progressive_bn", "medbn", "medbn_tent", "intent", "dua"}
    assert set(refused) == of_statistics | {"vptta", "diga", "domain_adaptor", "sictta", "dltta"}


class Headless(linen.Module):
    """Returns what a test says."""

    returned: str

    @linen.compact
    def __call__(self, x):
        y = linen.Conv(2, (3, 3))(x)
        half = linen.max_pool(y, (2, 2), (2, 2))
        return {"half": half, "both": (y, y), "supervised": {"out": y, "aux": half}, "pooled": y.mean((1, 2))}[
            self.returned
        ]


def refusal(module, *, variables=None, **options):
    with pytest.raises(InputError) as caught:
        jaxtta.from_linen(module, variables, **options)
    assert "\n" not in str(caught.value), caught.value
    return str(caught.value)


def test_the_logits_are_the_one_array_of_the_images_size():
    model, _ = jaxtta.from_linen(Headless("supervised"), None)
    assert (model.config["classes"], model.stride, model.norm) == (2, 1, "none")
    assert "expected logits [batch, " in refusal(Headless("half")) and "expected logits" in refusal(Headless("pooled"))
    assert "choose the logits, as in `call=" in refusal(Headless("both"))
    model, _ = jaxtta.from_linen(Headless("both"), None, call=lambda module, images: module(images)[1])
    assert model.config["classes"] == 2


def test_what_a_network_does_not_take_is_told_in_one_line():
    variables = linen_variables(own("linen")[1][1])
    assert "channels" in refusal(LinenUNet(), variables=variables, channels=1)
    assert "dimensions is 4" in refusal(LinenUNet(), variables=variables, dimensions=4)
    assert "no collection 'params'" in refusal(LinenUNet(), variables=variables["params"])
    assert "collections losses" in refusal(LinenUNet(), variables={**variables, "losses": {}})
    more = {**variables, "batch_stats": {**variables["batch_stats"], "own": {"mean": np.zeros(3), "var": np.ones(3)}}}
    assert "own/mean" in refusal(LinenUNet(), variables=more)
    with pytest.raises(InputError, match="nested dictionar"):
        jaxtta.from_function(lambda params, images: images, [np.zeros(3)])


@pytest.mark.parametrize("lifted", [linen.remat, linen.jit])
def test_layers_inside_a_transformation_of_flax(lifted):
    """What is computed again in the gradient is reached as any other layer; what is compiled by itself may not be."""
    module, variables = LinenUNet(pair=lifted(LinenPair)), linen_variables(own("linen")[1][1])
    if lifted is linen.jit:
        assert "nn.jit" in refusal(module, variables=variables)
        return
    model, source = jaxtta.from_linen(module, variables)
    assert_as_jaxttas(model, source)


@pytest.mark.parametrize("lifted", [nnx.remat, nnx.jit])
def test_layers_inside_a_transformation_of_nnx(lifted):
    assert_as_jaxttas(*jaxtta.from_nnx(nnx_network(own("linen")[1][1], lifted=lifted)))


def assert_as_jaxttas(*theirs):
    """Logits, maps, what is kept of each layer and slopes are those of jaxtta's own network."""
    outputs, slopes, image = [], [], pictures(1, 16, 16, 3)
    for model, source in (theirs, own("linen")[1]):
        heads = ("segmentation", FEATURES, PIXELS)

        def squares(encoder, model=model, source=source):
            params = {**source.params, "encoder1": encoder}
            outputs, _ = applied(model, source._replace(params=params), image, stats.image())
            return jnp.mean(jnp.square(outputs["segmentation"]))

        asked = functools.partial(applied, model, policy=stats.running(0.1), heads=heads)
        outputs.append(jax.jit(asked)(source, images=image))
        slopes.append(jax.jit(jax.grad(squares))(source.params["encoder1"]))
    assert_trees_close(*outputs, **CLOSE)
    assert_trees_close(*slopes, rtol=1e-3, atol=1e-5)
