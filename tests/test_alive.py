"""Whether methods are alive: on a source that is sure of its pixels each does something, and nothing that another does.

Random networks are unsure of everything, so that filters, averaging and recovery look well there that never fire, or
always do, on a trained one.
"""

import functools
import inspect
import itertools

import jax
import numpy as np
import optax
import pytest
from sure import dice, sure

from jaxtta import run
from jaxtta.core import copy, norm_affine, partition
from jaxtta.methods import METHODS
from jaxtta.methods.sar import sar

KEY = jax.random.key(0)
pytestmark = [pytest.mark.usefixtures("optimised"), pytest.mark.slow]


def along(method):
    """States and outputs over the stream, after each image."""
    _, _, source, images, _ = sure()
    with jax.numpy_dtype_promotion("standard"):  # of optax's Adam
        return [copy(pair) for pair in run.adapt(method, source, images, key=KEY)]


@functools.cache
def stream_of(name):
    """Those of a method as it is by default."""
    model, task, *_ = sure()
    return along(METHODS[name](model, task))


def told(name, key):
    return np.array([float(output.info[key]) for _, output in stream_of(name)])


def probabilities(name):
    return np.stack([np.asarray(sure().task.probabilities(output.logits)) for _, output in stream_of(name)])


def mean_dice(name):
    _, task, _, _, labels = sure()
    return np.mean([dice(task, output.logits, mask) for (_, output), mask in zip(stream_of(name), labels)])


def moved(name):
    """How far the adapted norm affines are from the source's at the end, of their length."""
    _, _, source, *_ = sure()
    start = partition(source.params, norm_affine)[0]
    state = stream_of(name)[-1][0]
    there = partition(METHODS[name](*sure()[:2]).adapted(state), norm_affine)[0]
    return float(optax.tree.norm(jax.tree.map(lambda a, b: a - b, there, start)) / optax.tree.norm(start))


@pytest.mark.parametrize("name", ["tent", "eata", "sar", "cotta"])
def test_a_method_that_learns_moves_what_it_learns_and_tells_itself_from_the_statistics(name):
    assert moved(name) > (1e-4 if name == "cotta" else 1e-3)  # Adam's steps of 1e-4 and of ten times that
    assert np.abs(probabilities(name)[-1] - probabilities("batch_statistics")[-1]).max() > 0.02
    assert told(name, "gradient_norm").min() > 1e-3


def test_tent_lowers_the_entropy_of_the_stream():
    """Held against the statistics alone, image by image."""

    def entropy(p):
        return -np.mean(p * np.log(p + 1e-7) + (1 - p) * np.log(1 - p + 1e-7), axis=(1, 2, 3, 4))

    assert (entropy(probabilities("tent")) < entropy(probabilities("batch_statistics"))).all()


def test_cotta_averages_the_pixels_that_the_source_is_unsure_of_and_profits():
    """By its rule for classification, with one decision an image, no image of this stream was averaged."""
    averaged = told("cotta", "averaged")
    assert averaged.min() > 0.001 and averaged.max() < 0.1
    assert told("cotta", "confidence").min() > 0.9
    assert mean_dice("cotta") > mean_dice("batch_statistics")


def test_eata_goes_on_keeping_some_of_what_is_reliable():
    """By the cosine of ten classes, as it stands, nothing would be kept of two after a few images."""
    kept, reliable = told("eata", "kept"), told("eata", "reliable")
    assert kept.min() > 0.01 and kept.mean() < 0.9 * reliable.mean() and reliable.min() > 0.8


def test_sar_returns_where_its_threshold_says_and_not_at_a_loss_that_is_usual():
    """0.2 nats, meant for 1000 classes, lie above all that is reliable between two: every image started anew."""
    assert told("sar", "returned").sum() == 0
    assert told("sar", "reliable").min() > 0.8
    model, task, *_ = sure()
    of_many = [bool(output.info["returned"]) for _, output in along(sar(model, task, reset=0.2 / np.log(2)))]
    assert sum(of_many) == len(of_many) - 1


def test_medbn_under_tents_update_is_neither_of_the_two():
    assert moved("medbn_tent") > 1e-3
    for other in ("medbn", "tent"):
        assert np.abs(probabilities("medbn_tent")[-1] - probabilities(other)[-1]).max() > 0.02


def test_no_method_is_another_unless_its_docstring_names_it():
    """Largest difference of two methods' probabilities over the stream."""
    pairs = itertools.combinations(METHODS, 2)
    apart = {pair: np.abs(probabilities(pair[0]) - probabilities(pair[1])).max() for pair in pairs}
    alike = [pair for pair, difference in apart.items() if difference < 1e-3]
    unexplained = [
        pair for pair in alike if not any(f"`{b}`" in inspect.getdoc(METHODS[a]) for a, b in (pair, pair[::-1]))
    ]
    assert not unexplained, {pair: float(apart[pair]) for pair in unexplained}
