"""An ensemble as one network, its members one by one, and predictions averaged over mirror images."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtta import checkpoint, stats
from jaxtta.core import InputError, Source, Task, paths
from jaxtta.data.preprocessing import Preprocessing
from jaxtta.methods import METHODS
from jaxtta.models import build
from jaxtta.models.ensemble import member_of
from jaxtta.models.layers import MOMENTS
from jaxtta.runs.options import build_method, method_of
from jaxtta.wrappers import mirrored, one_by_one

MEMBER = {"architecture": "unet", "features": (4, 6), "channels": 1, "classes": 3, "heads": ("segmentation",)}
TASK = Task(3, "softmax")
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 12, 1)), jnp.float32)
KEY = jax.random.key(3)


def ensemble(members=("fold_0", "fold_1"), mirrors=(), **changed):
    """An ensemble of small networks and its random variables."""
    config = {"architecture": "ensemble", "classes": 3, "member": {**MEMBER, **changed}}
    model = build({**config, "members": list(members), "mirrors": list(mirrors)})
    return model, model.init(jax.random.key(1))


def logits_of(model, source, images, policy=None):
    """What a network says."""
    return model.apply(source._asdict(), images, stats=policy or stats.source())[0]["segmentation"]


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_logits_of_members_are_averaged(norm):
    model, source = ensemble(norm=norm)
    each = [logits_of(model.members[name], member_of(source, name), IMAGES) for name in model.members]
    assert np.abs(each[0] - each[1]).max() > 0.1
    np.testing.assert_allclose(logits_of(model, source, IMAGES), (each[0] + each[1]) / 2, atol=1e-6)
    assert (model.norm, model.stride, model.dimensions) == (norm, 2, 2)


def test_other_maps_lie_side_by_side_and_a_function_of_the_deepest_sees_them_all():
    model, source = ensemble()
    heads, names = ("segmentation", "features", "pixels", MOMENTS), tuple(model.members)
    policy, seen = stats.image(), []
    found, memory = model.apply(source._asdict(), IMAGES, stats=policy, heads=heads)
    each = [model.members[n].apply(member_of(source, n)._asdict(), IMAGES, stats=policy, heads=heads)[0] for n in names]
    for head in ("features", "pixels"):
        np.testing.assert_allclose(found[head], np.concatenate([one[head] for one in each], -1), atol=1e-6)
    assert set(found[MOMENTS]) == set(names)
    assert set(memory) == set(names)

    def doubled(deepest):
        seen.append(deepest)
        return 2 * deepest

    changed = model.apply(source._asdict(), IMAGES, stats=policy, heads=heads, deepest=doubled)[0]
    assert len(seen) == 1 and seen[0].shape == found["features"].shape
    np.testing.assert_allclose(changed["features"], 2 * found["features"], rtol=1e-5)
    assert np.abs(changed["segmentation"] - found["segmentation"]).max() > 1e-3


def test_methods_with_a_memory_follow_every_member():
    model, source = ensemble()
    method = METHODS["dua"](model, TASK)
    state = method.init(source, IMAGES)
    after, output = method.step(KEY, source, state, IMAGES)
    before, now = (jax.tree_util.tree_flatten_with_path(one)[0] for one in (state, after))
    changed = {jax.tree_util.keystr(path) for (path, a), (_, b) in zip(before, now) if not np.array_equal(a, b)}
    assert all(any(name in path for path in changed) for name in model.members)
    assert np.all(np.isfinite(output.logits))


def test_together_is_one_update_of_the_mean_and_one_by_one_each_its_own():
    model, source = ensemble(norm="instance")
    options = {"optimiser": optax.sgd(0.1)}

    def tent(model, task):
        return METHODS["tent"](model, task, **options)

    together, apart = tent(model, TASK), one_by_one(tent, model, TASK)
    state, output = apart.step(KEY, source, apart.init(source, IMAGES), IMAGES)
    alone = []
    for name, member in model.members.items():
        method, own = tent(member, TASK), member_of(source, name)
        one, said = method.step(KEY, own, method.init(own, IMAGES), IMAGES)
        jax.tree.map(np.testing.assert_array_equal, one, state[name])
        alone.append(said)
    np.testing.assert_allclose(output.logits, sum(one.logits for one in alone) / 2, atol=1e-6)
    np.testing.assert_allclose(output.info["loss"], sum(one.info["loss"] for one in alone) / 2, rtol=1e-6)
    np.testing.assert_array_equal(apart.predict(source, state, IMAGES), output.logits)
    assert set(apart.adapted(state)) == {"fold_0", "fold_1"}
    joint, said = together.step(KEY, source, together.init(source, IMAGES), IMAGES)
    assert {path[0] for path in paths(together.adapted(joint))} == {"fold_0", "fold_1"}
    assert np.abs(said.logits - output.logits).max() > 1e-5


def test_a_network_that_is_no_ensemble_has_no_members_to_adapt():
    with pytest.raises(InputError, match="one network, no ensemble"):
        build_method("tent", build(MEMBER), TASK, {}, members="one_by_one")


@pytest.mark.parametrize("name", ["source", "tent", pytest.param("cotta", marks=pytest.mark.slow)])
def test_predictions_are_averaged_over_mirror_images_after_the_update(name):
    model, source = ensemble(("fold_0",), mirrors=(0, 1), norm="instance")
    plain = METHODS[name](model, TASK, **({} if name == "source" else {"optimiser": optax.sgd(0.1)}))
    over = mirrored(plain, (0, 1))
    state = plain.init(source, IMAGES)
    after, _ = plain.step(KEY, source, state, IMAGES)
    same, output = over.step(KEY, source, over.init(source, IMAGES), IMAGES)
    jax.tree.map(np.testing.assert_array_equal, after, same)
    turns = [(), (1,), (2,), (1, 2)]
    seen = [jnp.flip(plain.predict(source, after, jnp.flip(IMAGES, turn)), turn) for turn in turns]
    np.testing.assert_allclose(output.logits, sum(seen) / 4, atol=2e-5)
    np.testing.assert_allclose(over.predict(source, after, IMAGES), sum(seen) / 4, atol=2e-5)


def test_the_mirrors_of_a_model_are_those_of_its_methods():
    model, source = ensemble(mirrors=(1,), norm="instance")
    expected = (logits_of(model, source, IMAGES) + jnp.flip(logits_of(model, source, jnp.flip(IMAGES, 2)), 2)) / 2
    for method in (method_of("source", {})(model, TASK), build_method("source", model, TASK, {}, members="one_by_one")):
        _, output = method.step(KEY, source, method.init(source, IMAGES), IMAGES)
        np.testing.assert_allclose(output.logits, expected, atol=1e-6)
    method = METHODS["source"](model, TASK)
    assert mirrored(method, ()) is method


def test_a_checkpoint_of_an_ensemble_loads(tmp_path):
    model, source = ensemble(mirrors=(0,))
    checkpoint.save(tmp_path / "source", model, source, TASK, Preprocessing((8, 12), 1, (0, 1, 2)), provenance={})
    loaded = checkpoint.load(tmp_path / "source")
    assert loaded.model.mirrors == (0,) and set(loaded.model.members) == {"fold_0", "fold_1"}
    jax.tree.map(np.testing.assert_array_equal, Source(*loaded.source[:2]), Source(*source[:2]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"members": []}, "of the members (none)"),
        ({"members": ["a", "a"]}, "of the members a, a"),
        ({"mirrors": [2]}, "have the axes 0 to 1"),
        ({"more": 1}, "has the entries"),
        ({"member": {"architecture": "none"}}, "architecture is 'none'"),
    ],
)
def test_an_ensemble_that_makes_no_sense_is_refused(changed, said):
    config = {"architecture": "ensemble", "classes": 3, "member": MEMBER, "members": ["a", "b"], "mirrors": []}
    with pytest.raises(InputError) as error:
        build({**config, **changed})
    assert said in str(error.value)
