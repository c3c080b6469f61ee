"""Networks: sizes, heads, norm layers, and the building blocks against loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.ndimage import map_coordinates
from toys import assert_trees_close, pictures, random_source, toy

from jaxtta import stats
from jaxtta.core import InputError, norm_affine, partition, paths
from jaxtta.models import ARCHITECTURES, HEADS, build
from jaxtta.models.heads import ImageHead
from jaxtta.models.layers import EPSILON, Double, Norm, convolution, convolved
from jaxtta.resize import resize_aligned

CONFIGS = {
    "resunet": {"architecture": "resunet", "classes": 2, "depth": 18, "width": 4, "heads": HEADS},
    "unet": {"architecture": "unet", "classes": 2, "features": (4, 8, 8), "heads": HEADS},
    "unet in 3-D": {
        "architecture": "unet",
        "classes": 3,
        "channels": 1,
        "dimensions": 3,
        "features": (4, 8),
        "heads": HEADS,
    },
}
DIVIDED = {"resunet": (32, 64), "unet": (12, 8), "unet in 3-D": (4, 6, 8)}
ODD = {"resunet": [(33, 47)], "unet": [(13, 9), (1, 7)], "unet in 3-D": [(5, 1, 7)]}


def variables_of(name):
    model = build(CONFIGS[name])
    return model, random_source(model)._asdict()


def shapes(config):
    return jax.eval_shape(build(config).init, jax.random.key(0))


def values(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("depth", [18, 50, *(pytest.param(n, marks=pytest.mark.slow) for n in (34, 101, 152))])
def test_every_depth_builds_and_segments(depth):
    model = build({"architecture": "resunet", "classes": 2, "depth": depth, "width": 4})
    source = jax.eval_shape(model.init, jax.random.key(0))
    blocks = {path[1] for path in paths(source.params["encoder"]) for path in [("", path[0])] if "block" in path[1]}
    per_block = 2 if depth < 50 else 3
    assert 2 + per_block * len(blocks) == depth  # the stem and the classifier that is not here
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    logits = jax.eval_shape(lambda v, x: model.apply(v, x, stats=stats.source())[0], source._asdict(), images)
    assert logits["segmentation"].shape == (2, 64, 96, 2)


def test_resunet34_is_the_size_of_the_released_network():
    config = {"architecture": "resunet", "classes": 2, "depth": 34}
    source = shapes({**config, "heads": HEADS})
    unused = 512 * 1000 + 1000  # the release carries the ImageNet classifier of its encoder, which nothing reads
    assert round((values(source.params) + unused) / 1e6, 2) == 23.27
    assert values(partition(source.params, norm_affine)[0]) == 22_016
    assert values(partition(shapes(config).params, norm_affine)[0]) == 19_136


def test_fresh_norms_change_nothing_and_fresh_kernels_are_random():
    source = build({"architecture": "unet", "classes": 2, "features": (4,)}).init(jax.random.key(0))
    starts = {"scale": 1, "bias": 0, "mean": 0, "var": 1}
    for tree in source:
        for path, leaf in zip(paths(tree), jax.tree.leaves(tree)):
            assert leaf.dtype == jnp.float32
            assert np.unique(leaf).size > 1 if path[-1] == "kernel" else (leaf == float(starts[path[-1]])).all()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("head", HEADS)
def test_only_the_heads_asked_for_touch_their_variables(name, head):
    model, variables = variables_of(name)
    others = set(HEADS) - {head}
    trunk = {"encoder"} | {key for key in variables["params"] if key.startswith("encoder")}
    kept = {"segmentation": lambda key: key not in others}.get(head, lambda key: key in trunk | {head})
    fewer = {part: {k: v for k, v in tree.items() if kept(k)} for part, tree in variables.items()}
    images = pictures(1, *DIVIDED[name], model.channels)
    shape = jax.eval_shape(lambda v: model.apply(v, images, stats=stats.image(), heads=(head,))[0], fewer)
    assert list(shape) == [head]


def test_batch_norm_is_what_a_network_without_a_choice_has():
    assert [variables_of(name)[0].norm for name in CONFIGS] == ["batch"] * len(CONFIGS)


def test_a_head_that_is_not_there_is_named_with_those_that_are():
    model = build({"architecture": "unet", "classes": 2, "heads": ("segmentation", "rotation")})
    with pytest.raises(InputError, match=r"no denoising head \(it has segmentation, rotation\)"):
        model.apply({}, pictures(1, 16, 16, 3), stats=stats.source(), heads=("segmentation", "denoising"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "resunet" else ()) for name in CONFIGS]
)
def test_a_size_that_divides_the_stride_is_not_padded(name):
    model, variables = variables_of(name)
    images = pictures(2, *DIVIDED[name], model.channels)
    options = {key: value for key, value in CONFIGS[name].items() if key != "architecture"}
    network = ARCHITECTURES[CONFIGS[name]["architecture"]](**options, policy=stats.image())

    @jax.jit  # of two equal halves one is computed: half the time, and no rounding between them
    def both(images):
        padded, _ = model.apply(variables, images, stats=stats.image(), heads=HEADS)
        return padded, network.apply(variables, images, heads=HEADS, mutable=["memory"])[0]

    got, bare = both(images)
    assert_trees_close(got, bare, atol=1e-6)
    space = images.shape[1:-1]
    expected = {head: (2, *space, model.channels) for head in ("reconstruction", "denoising")}
    expected |= {"segmentation": (2, *space, CONFIGS[name]["classes"]), "rotation": (2, 6)}
    expected["super_resolution"] = (2, *(2 * n for n in space), model.channels)
    assert {head: output.shape for head, output in got.items()} == expected


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in ODD.items() for size in sizes])
def test_any_size_is_padded_by_its_edge_and_cropped_back(name, size):
    model, variables = variables_of(name)
    images = pictures(1, *size, model.channels)
    padded = np.pad(images, [(0, 0), *((0, -n % model.stride) for n in size), (0, 0)], mode="edge")

    @jax.jit
    def both(images, padded):
        return [model.apply(variables, x, stats=stats.source(), heads=HEADS)[0] for x in (images, padded)]

    got, whole = both(images, jnp.asarray(padded))
    for head, output in got.items():
        times = {"super_resolution": 2, "rotation": 0}.get(head, 1)
        cut = (slice(None), *(slice(times * n) for n in size)) if times else slice(None)
        np.testing.assert_allclose(output, whole[head][cut], atol=1e-5)
    assert got["segmentation"].shape[1:-1] == size


@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_networks_without_batch_norm_have_affines_and_no_moments(norm, dimensions):
    model, _, source, _ = toy(dimensions, norm=norm)
    batch = toy(dimensions).source
    assert (model.norm, source.batch_stats) == (norm, {})
    assert paths(partition(source.params, norm_affine)[0]) == paths(partition(batch.params, norm_affine)[0])


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_without_batch_norm_an_image_is_segmented_the_same_whatever_stands_beside_it(norm):
    model, _, source, space = toy(norm=norm)
    images = pictures(3, *space, 3)

    @jax.jit
    def segment(images):
        policies = (stats.source(), stats.image(), stats.running())
        return [model.apply(source._asdict(), images, stats=policy)[0]["segmentation"] for policy in policies]

    for together, alone in zip(segment(images), segment(images[1:2])):
        np.testing.assert_allclose(together[1:2], alone, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5, 7, 8), (2, 3, 4, 5, 8)])
@pytest.mark.parametrize(
    ("kind", "groups"), [("batch", None), ("instance", 8), ("group", 4), ("group", 1), ("group", 5)]
)
def test_norms_equal_numpy(kind, groups, shape):
    norm = Norm(stats.image(), kind, **({"groups": groups} if kind == "group" else {}))
    images = pictures(*shape) * 3 + 1
    scale, shift = pictures(8, seed=1), pictures(8, seed=2)
    variables = norm.init(jax.random.key(0), images)
    variables = {**variables, "params": {"scale": scale, "bias": shift}}
    got, _ = norm.apply(variables, images, mutable=["memory"])
    x = np.asarray(images, np.float64)
    if kind == "batch":
        x, axes = x[..., None], tuple(range(x.ndim - 1))
    else:
        groups = {5: 4}.get(groups, groups)  # 5 does not divide 8 channels: the next lower divisor does
        x, axes = x.reshape(*shape[:-1], groups, 8 // groups), (*range(1, x.ndim - 1), x.ndim)
    x = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + EPSILON)
    expected = x.reshape(shape) * np.asarray(scale) + np.asarray(shift)
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "architecture is None; choose one of resunet, unet"),
        ({"architecture": "vit", "classes": 2}, "'vit'; choose one of resunet, unet"),
        ({"architecture": "resunet", "classes": 2, "depth": 35}, "depth is 35; choose one of 18, 34, 50, 101, 152"),
        ({"architecture": "resunet", "classes": 2, "norm": "group"}, "no option norm; its options are classes, "),
        ({"architecture": "unet", "classes": 2, "norm": "layer"}, "'layer'; choose one of batch, instance, group"),
        ({"architecture": "unet", "classes": 2, "dimensions": 4}, "dimensions is 4; choose one of 2, 3"),
        ({"architecture": "unet", "classes": 2, "heads": ("segmentation", "depth")}, "choose from segmentation, "),
        ({"architecture": "unet", "classes": 2, "heads": ("rotation",)}, "segmentation always among them"),
        ({"architecture": "unet"}, "classes"),
    ],
)
def test_a_configuration_that_cannot_be_lists_the_choices(config, message):
    with pytest.raises(InputError, match=message):
        build(config)


def test_a_configuration_read_from_json_builds_the_same():
    config = CONFIGS["unet"]
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    assert build(listed).config == build(config).config == config


@pytest.mark.parametrize(
    ("before", "after"),
    [((5, 7), (9, 4)), ((4, 4), (8, 8)), ((6, 3), (1, 5)), ((3, 4, 5), (5, 8, 2)), ((1, 4), (3, 7)), ((9,), (5,))],
)
def test_resizing_interpolates_between_aligned_corners(before, after):
    images = pictures(2, *before, 3)
    got = np.asarray(resize_aligned(images, after))
    grid = np.meshgrid(*[np.linspace(0, b - 1, a) if a > 1 else [0.0] for b, a in zip(before, after)], indexing="ij")
    for image, channel in itertools.product(range(2), range(3)):
        expected = map_coordinates(np.asarray(images[image, ..., channel], np.float64), grid, order=1, mode="nearest")
        np.testing.assert_allclose(got[image, ..., channel], expected, atol=1e-6)


@pytest.mark.parametrize("size", [(5, 7), (3, 4, 5)])
def test_resizing_to_the_same_size_or_of_a_constant_changes_nothing(size):
    images = pictures(2, *size, 3)
    np.testing.assert_array_equal(resize_aligned(images, size), images)
    doubled = resize_aligned(jnp.full_like(images, 0.3), tuple(2 * n for n in size))
    np.testing.assert_allclose(doubled, 0.3, rtol=1e-6)


@pytest.mark.parametrize("space", [(3, 4), (2, 3, 2)])
def test_double_writes_a_block_for_every_voxel(space):
    images, corners = pictures(2, *space, 3), (2,) * len(space)
    kernel, bias = pictures(*corners, 3, 5, seed=1), pictures(5, seed=2)
    got = Double(5).apply({"params": {"kernel": kernel, "bias": bias}}, images)
    expected = np.zeros((2, *(2 * n for n in space), 5))
    for index in np.ndindex(space):
        for corner in np.ndindex(corners):
            place = tuple(2 * i + a for i, a in zip(index, corner))
            expected[(slice(None), *place)] = np.asarray(images[(slice(None), *index)] @ kernel[corner] + bias[None])
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_pixel_shuffle_has_the_channel_outermost_and_the_last_axis_innermost(dimensions):
    """As PyTorch: `y[r·i + a, r·j + b, c] = x[i, j, c·r² + a·r + b]`."""
    head = ImageHead(1, 2, stats.source(), finer=True)
    features, count = pictures(1, *(2, 3, 2)[:dimensions], 8), 2 * 2**dimensions
    params = jax.eval_shape(head.init, jax.random.key(0), features)["params"]
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    params["output"]["bias"] = jnp.arange(count, dtype=jnp.float32)
    got = np.asarray(head.apply({"params": params}, features))[0]
    for place in np.ndindex(got.shape):
        *corner, channel = (*(p % 2 for p in place[:-1]), place[-1])
        assert got[place] == np.ravel_multi_index((channel, *corner), (2, *(2,) * dimensions))


class Convolved(nn.Module):
    """One convolution as a network."""

    size: int

    @nn.compact
    def __call__(self, x):
        return convolution(4, self.size, 3, bias=False, name="conv")(x)


@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("space", [(5, 7), (9, 9), (4, 3, 5), (6, 5, 4)])  # as a product, and as it is or by slices
def test_a_convolution_is_the_plain_one_however_it_is_computed(space, stride, dilation):
    dimensions, names = len(space), "DHW"[-len(space) :]
    x, kernel = pictures(2, *space, 3), pictures(*(3,) * dimensions, 3, 4, seed=1) - 0.5
    rest = {"rhs_dilation": (dilation,) * dimensions, "dimension_numbers": (f"N{names}C", f"{names}IO", f"N{names}C")}
    arguments = ((stride,) * dimensions, [(dilation, dilation + 1)] * dimensions)
    expected = jax.lax.conv_general_dilated(x, kernel, *arguments, **rest)
    np.testing.assert_allclose(convolved(x, kernel, *arguments, **rest), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3])
def test_a_convolution_slice_by_slice_is_the_plain_one(size):
    x, kernel = pictures(2, 5, 6, 7, 3), pictures(size, size, size, 3, 4, seed=1) - 0.5

    def plain(x, kernel):
        names, padding = ("NDHWC", "DHWIO", "NDHWC"), [(size // 2, size // 2)] * 3
        return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), padding, dimension_numbers=names)

    def ours(x, kernel):
        return Convolved(size).apply({"params": {"conv": {"kernel": kernel}}}, x)

    for function in (lambda f: f, lambda f: jax.grad(lambda *both: jnp.sum(jnp.sin(f(*both))), (0, 1))):
        got, expected = (jax.tree.leaves(jax.jit(function(f))(x, kernel)) for f in (ours, plain))
        for a, b in zip(got, expected):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
