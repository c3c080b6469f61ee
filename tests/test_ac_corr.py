"""AC-Corr against the released score, and over the layers of a network."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import random_source, toy

from jaxtta.core import InputError, everything, matching, norm_affine
from jaxtta.models import build
from jaxtta.transfer.ac_corr import ac_corr
from jaxtta.transfer.ac_norm import collaboration

GOLDENS = np.load(Path(__file__).parent / "goldens" / "acnorm_public.npz")


def test_matrix_and_score_are_the_releases():
    with jax.enable_x64(True):
        names = ("weight_target", "bias_target", "weight", "bias")
        target_scale, target_shift, scale, shift = (jnp.asarray(GOLDENS[f"ac_corr/{name}"]) for name in names)
        matrix = collaboration(target_scale, target_shift, scale, shift)
        np.testing.assert_allclose(matrix, GOLDENS["ac_corr/matrix"], rtol=1e-9, atol=1e-12)
        params = {"norm": {"scale": target_scale, "bias": target_shift}}
        got = ac_corr(params, {"norm": {"scale": scale, "bias": shift}})
        np.testing.assert_allclose(got.mean, GOLDENS["ac_corr/value"], rtol=1e-9)
        np.testing.assert_allclose(got.per_channel, GOLDENS["ac_corr/value"] / 7, rtol=1e-9)


@pytest.mark.parametrize("dimensions", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_model_is_the_mean_of_its_layers(dimensions):
    made = toy(dimensions)
    source = random_source(made.model, seed=1).params
    got = ac_corr(made.source.params, source, select=everything)
    assert len(got.layers) == sum(path[-1].key == "scale" for path, _ in jax.tree_util.tree_leaves_with_path(source))
    own, theirs = (params["encoder2"]["norm1"] for params in (made.source.params, source))
    matrix = collaboration(own["scale"], own["bias"], theirs["scale"], theirs["bias"])
    assert float(got.layers["encoder2/norm1"]) == pytest.approx(float(matrix.sum()), rel=1e-6)
    assert got.channels["encoder2/norm1"] == 8 and got.channels["encoder1/norm2"] == 4
    assert float(got.mean) == pytest.approx(np.mean([float(v) for v in got.layers.values()]), rel=1e-6)
    each = [float(value) / got.channels[name] for name, value in got.layers.items()]
    assert float(got.per_channel) == pytest.approx(np.mean(each), rel=1e-6)
    assert all(0 < value <= 1 for value in each)


@pytest.mark.parametrize(
    "config, layer",
    [
        ({"architecture": "unet", "features": (4, 8), "channels": 3, "dimensions": 2}, "encoder2/norm2"),
        pytest.param(
            {"architecture": "resunet", "depth": 18, "width": 4, "channels": 3},
            "encoder/stage4_block2/norm2",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"architecture": "resunet", "depth": 50, "width": 4, "channels": 3},
            "encoder/stage4_block3/norm3",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_model_is_scored_by_the_deepest_layer_of_its_encoder(config, layer):
    model = build({**config, "classes": 2, "heads": ("segmentation",)})
    params, source = (random_source(model, seed=seed).params for seed in (0, 1))
    got, every = ac_corr(params, source), ac_corr(params, source, select=everything)
    assert list(got.layers) == [layer] and got.channels[layer] == max(every.channels.values())
    assert float(got.mean) == float(got.layers[layer]) == float(every.layers[layer])


def test_layers_are_chosen_by_a_selection():
    made = toy()
    source = random_source(made.model, seed=1).params
    chosen = ac_corr(made.source.params, source, select=matching("^encoder"))
    assert list(chosen.layers) == [f"encoder{i}/norm{j}" for i in (1, 2) for j in (1, 2)]
    whole = ac_corr(made.source.params, source, select=everything)
    assert ac_corr(made.source.params, source, select=norm_affine).layers.keys() == whole.layers.keys()
    with pytest.raises(InputError, match=r"none of the \d+ norm layers; they are: .*encoder1/norm1"):
        ac_corr(made.source.params, source, select=matching("nowhere"))


def test_it_grows_as_channels_go_astray():
    """A channel that has left its own source channel keeps those it is nearer to: more of its row is summed."""
    rng = np.random.default_rng(0)
    scale, shift = np.ones(32, np.float32), np.float32(rng.normal(size=32))
    source = {"norm": {"scale": jnp.asarray(scale), "bias": jnp.asarray(shift)}}
    near, far = (
        {"norm": {"scale": jnp.asarray(scale), "bias": jnp.asarray(shift + np.float32(d * rng.normal(size=32)))}}
        for d in (0.01, 1.0)
    )
    values = [float(ac_corr(params, source).mean) for params in (source, near, far)]
    assert values[0] < values[1] < values[2]
