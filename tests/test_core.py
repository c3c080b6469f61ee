"""Tasks, selections, and the partition of a tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import assert_trees_close, pictures, toy

from jaxtta import stats
from jaxtta.core import (
    InputError,
    Task,
    bind,
    combine,
    copy,
    everything,
    matching,
    norm_affine,
    partition,
    paths,
)

TREE = {
    "encoder": {"norm": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}, "conv": {"kernel": jnp.full((3, 2), 2.0)}},
    "head": {"bias": jnp.full(1, 3.0)},
}
NAMES = ["encoder/conv/kernel", "encoder/norm/bias", "encoder/norm/scale", "head/bias"]
SELECTIONS = {
    "norm affines": (norm_affine, NAMES[1:3]),
    "everything": (everything, NAMES),
    "a folder": (matching("^encoder/"), NAMES[:3]),
    "a regular expression": (matching("(kernel|scale)$"), [NAMES[0], NAMES[2]]),
}
LABELS = np.array([[0, 1, 2], [2, 0, 1]])


def joined(tree):
    return ["/".join(path) for path in paths(tree)]


def test_paths_are_in_the_order_of_the_leaves():
    assert joined(TREE) == NAMES


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_partition_holds_what_is_selected_and_combine_undoes_it(name):
    select, expected = SELECTIONS[name]
    chosen, others = partition(TREE, select)
    assert joined(chosen) == expected
    assert joined(others) == [name for name in NAMES if name not in expected]
    assert_trees_close(combine(chosen, others), TREE)
    assert_trees_close(combine(others, chosen), TREE)
    assert_trees_close(combine(chosen, TREE), TREE)


def test_an_empty_selection_says_what_there_is():
    with pytest.raises(InputError) as error:
        partition(TREE, matching("decoder"))
    assert all(name in str(error.value) for name in NAMES)
    assert "\n" not in str(error.value)


def test_a_copy_shares_no_buffer():
    made = copy(TREE)
    assert_trees_close(made, TREE)
    pairs = zip(jax.tree.leaves(made), jax.tree.leaves(TREE))
    assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in pairs)


def test_bind_puts_the_adapted_leaves_over_the_source():
    model, _, source, space = toy()
    images = pictures(1, *space, 3)
    at = bind(model, source, stats.source())
    adapted = jax.tree.map(lambda leaf: leaf + 1, partition(source.params, norm_affine)[0])
    changed = source._replace(params=combine(adapted, source.params))
    expected = model.apply(changed._asdict(), images, stats=stats.source(), heads=("rotation",))[0]
    assert_trees_close(at(adapted)(images, heads=("rotation",)), expected)
    assert list(at(adapted)(images)) == ["segmentation"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize(
    ("task", "values"),
    [
        (Task(2, "sigmoid"), {0: (0, 0), 1: (1, 0), 2: (1, 1)}),
        (Task(3, "softmax"), {0: (1, 0, 0), 1: (0, 1, 0), 2: (0, 0, 1)}),
    ],
)
def test_channels_of_a_label_map_and_back(array, dtype, task, values):
    channels = task.channels(array(LABELS.astype(dtype)))
    assert channels.shape == (*LABELS.shape, task.classes)
    assert channels.dtype == bool
    expected = np.array([[values[label] for label in row] for row in LABELS.tolist()], bool)
    np.testing.assert_array_equal(channels, expected)
    decoded = task.decode(np.asarray(channels, np.float32))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, LABELS)
    assert task.labels == 3


def test_decode_takes_the_innermost_channel_above_a_half_or_the_most_probable_class():
    np.testing.assert_array_equal(Task(2).decode(np.array([[0.5, 0.4], [0.6, 0.5], [0.2, 0.9]])), [0, 1, 2])
    softmax = Task(3, "softmax")
    np.testing.assert_array_equal(softmax.decode(np.array([[0.4, 0.3, 0.3], [0.3, 0.3, 0.4]])), [0, 2])


def test_probabilities_are_those_of_the_activation():
    logits = np.asarray(pictures(2, 5, 3)) * 6 - 3
    sigmoid = Task(3, "sigmoid").probabilities(jnp.asarray(logits))
    softmax = Task(3, "softmax").probabilities(jnp.asarray(logits))
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    np.testing.assert_allclose(softmax, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), rtol=1e-5)


def test_names_and_the_foreground():
    fundus = Task(2, "sigmoid", ("disc", "cup"))
    assert fundus.names[fundus.foreground] == ("disc", "cup")
    assert Task(2).names == ("class1", "class2")
    volume = Task(3, "softmax")
    assert volume.names == ("class0", "class1", "class2")
    assert volume.names[volume.foreground] == ("class1", "class2")
    assert hash(fundus) == hash(Task(2, "sigmoid", ("disc", "cup")))
    assert fundus.quarter_turns and fundus != Task(2, "sigmoid", ("disc", "cup"), quarter_turns=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, "tanh"), "'tanh'.*'sigmoid' or 'softmax'"),
        ((0, "sigmoid"), "at least 1 classes, got 0"),
        ((1, "softmax"), "at least 2 classes, got 1"),
        ((2, "sigmoid", ("disc",)), "2 classes need 2 names, got 1: disc"),
    ],
)
def test_a_task_that_cannot_be_says_why(arguments, message):
    with pytest.raises(InputError, match=message):
        Task(*arguments)
