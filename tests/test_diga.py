"""DIGA: the mixed statistics, the prototypes and their fusion with the classifier, by hand in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sure import dice, sure
from toys import all_finite, assert_trees_close, pictures, random_source, toy

from jaxtta import stats
from jaxtta.core import InputError
from jaxtta.methods.diga import diga
from jaxtta.models import build
from jaxtta.models.heads import PIXELS

KEY = jax.random.key(3)


def network(dimensions, activation, share=0.2, confident=10.0):
    """A toy whose classifier is sure of some pixels, its images, and its outputs with `share` of their statistics."""
    model, task, source, space = toy(dimensions, activation)
    last = jax.tree.map(lambda leaf: leaf * confident, source.params["segmentation"])
    source = source._replace(params={**source.params, "segmentation": last})
    images = pictures(3, 2, *space, model.channels)

    def outputs(image):
        heads = ("segmentation", PIXELS)
        got, _ = model.apply(source._asdict(), image, stats=stats.blend(share), heads=heads)
        return np.float64(got["segmentation"]), np.float64(got[PIXELS])

    return model, task, source, images, outputs


def along(method, source, images):
    state, step, history = method.init(source, images[0]), jax.jit(method.step), []
    for image in images:
        state, output = step(KEY, source, state, image)
        history.append((state, output))
    return history


def choices(task, probabilities):
    """Each decision's probabilities: all classes, or off and on for each channel."""
    if task.activation == "softmax":
        return [probabilities]
    return [np.stack([1 - p, p], -1) for p in np.moveaxis(probabilities, -1, 0)]


def by_distance(features, prototypes, p):
    """Each class by the distance to its prototype, None where it has none; the classifier's `p` where none has any."""
    if all(q is None for q in prototypes):
        return p
    distances = [
        np.full(p.shape[:-1], np.inf) if q is None else np.linalg.norm(features - q, axis=-1) for q in prototypes
    ]
    weights = np.exp(-np.stack(distances, -1))
    return weights / weights.sum(-1, keepdims=True)


def expected(task, streams, outputs, confidence=0.9):
    """The fused probabilities of the classes and the history after each image, decision by decision."""
    kept, told = {}, []
    for images in streams:
        logits, features = outputs(images)
        fused = []
        for d, p in enumerate(choices(task, np.float64(task.probabilities(jnp.asarray(logits, jnp.float32))))):
            mine = [features[(p[..., k] >= confidence) & (p.argmax(-1) == k)] for k in range(p.shape[-1])]
            own = [pixels.mean(0) if len(pixels) else None for pixels in mine]
            for k, q in enumerate(own):
                if q is not None:
                    kept[d, k] = 0.9 * kept[d, k] + 0.1 * q if (d, k) in kept else q
            of_stream = by_distance(features, [kept.get((d, k)) for k in range(p.shape[-1])], p)
            fused.append(0.2 * p + 0.8 * (0.8 * of_stream + 0.2 * by_distance(features, own, p)))
        told.append((fused, dict(kept)))
    return told


@pytest.mark.parametrize(
    ("dimensions", "activation", "sure"),
    [
        pytest.param(2, "sigmoid", 0.9, marks=pytest.mark.slow),
        (2, "softmax", 0.5),
        (2, "softmax", 0.2),
        pytest.param(3, "softmax", 0.5, marks=pytest.mark.slow),
    ],
)
def test_prototypes_and_prediction_are_those_of_the_definition(dimensions, activation, sure):
    model, task, source, images, outputs = network(dimensions, activation)
    history = along(diga(model, task) if sure == 0.9 else diga(model, task, confidence=sure), source, images)
    for (state, output), (fused, kept) in zip(history, expected(task, images, outputs, confidence=sure)):
        got = np.float64(task.probabilities(output.logits))
        np.testing.assert_allclose(
            got, fused[0] if activation == "softmax" else np.stack([p[..., 1] for p in fused], -1), atol=2e-4
        )
        for d in range(state.known.shape[0]):
            for k in range(state.known.shape[1]):
                assert bool(state.known[d, k]) == ((d, k) in kept)
                np.testing.assert_allclose(state.prototypes[d, k], kept.get((d, k), 0), atol=1e-3)
    assert any(np.any(state.known) for state, _ in history), "no pixel was sure enough: the test would see nothing"
    assert 0 < history[0][1].info["confident"] <= 1


def test_the_source_has_four_fifths_of_the_statistics():
    model, task, source, images, outputs = network(2, "sigmoid", share=0.2)
    [(_, output)] = along(diga(model, task, classifier=1.0), source, images[:1])
    np.testing.assert_allclose(output.logits, outputs(images[0])[0], atol=1e-3)


def test_where_no_pixel_is_sure_the_classifier_stays_alone():
    model, task, source, images, outputs = network(2, "sigmoid", confident=0.01)
    [(state, output)] = along(diga(model, task, classifier=0.3), source, images[:1])
    assert not np.any(state.known) and output.info["confident"] == 0
    np.testing.assert_allclose(output.logits, outputs(images[0])[0], atol=1e-5)


def test_a_class_that_an_image_lacks_keeps_its_prototype():
    model, task, source, images, _ = network(2, "softmax")
    nothing = jnp.zeros_like(images[0])
    (first, _), (second, _) = along(diga(model, task, confidence=0.5), source, [images[0], nothing])
    gone = np.asarray(first.known) & (np.abs(first.prototypes - second.prototypes).max(-1) == 0)
    assert all_finite(second) and np.array_equal(second.known | first.known, second.known) and np.any(gone)


def test_predict_repeats_the_step_with_the_prototypes_that_it_left():
    model, task, source, images, _ = network(2, "sigmoid")
    method = diga(model, task)
    (state, output), _ = along(method, source, images[:2])
    assert_trees_close(method.predict(source, state, images[0]), output.logits, atol=1e-4)


@pytest.mark.parametrize("name", ["statistics", "history", "classifier", "confidence", "momentum"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_says_what_is_expected(name, value):
    model, task, _, _ = toy()
    with pytest.raises(InputError, match=f"{name} is {value!r}; expected a share"):
        diga(model, task, **{name: value})


@pytest.mark.slow
def test_prototypes_alone_agree_with_the_classifier_of_a_sure_source_and_follow_the_stream(optimised):
    """Cosines, or shares the wrong way round, lose this agreement or this pace."""
    model, task, source, images, labels = sure()
    mean, states = {}, {}
    for classifier in (0.0, 0.2, 1.0):
        history = along(diga(model, task, classifier=classifier), source, images)
        mean[classifier] = np.mean([dice(task, output.logits, mask) for (_, output), mask in zip(history, labels)])
        states[classifier] = [state.prototypes for state, _ in history]
    assert mean[0.0] > mean[1.0] - 1 and mean[0.2] > mean[1.0]
    assert not np.allclose(mean[0.2], mean[1.0], atol=0.1), "the prototypes change nothing"
    # An image shifts the stream's prototypes by a tenth of what it differs from them: from one to the next by little,
    # over the stream by as much as images differ.
    steps = [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in zip(states[0.2], states[0.2][1:])]
    assert min(steps) > 0.005 and max(steps) < 0.05


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_networks_without_batch_norm_are_refused(norm):
    model, task, _, _ = toy(2, norm=norm)
    with pytest.raises(InputError, match=f"diga .* {norm} norm"):
        diga(model, task)


@pytest.mark.parametrize(
    ("config", "space"),
    [
        ({"architecture": "unet", "classes": 2, "features": (4, 8, 8)}, (9, 14)),
        ({"architecture": "unet", "classes": 3, "features": (4, 8), "channels": 1, "dimensions": 3}, (5, 6, 7)),
        ({"architecture": "resunet", "classes": 2, "depth": 18, "width": 4}, (33, 40)),
    ],
)
def test_the_classifier_is_a_one_by_one_convolution_of_the_pixels(config, space):
    model = build(config)
    source = random_source(model)
    image = pictures(1, *space, model.channels)
    heads = ("segmentation", PIXELS)
    outputs = jax.jit(lambda: model.apply(source._asdict(), image, stats=stats.source(), heads=heads)[0])()
    outputs, last = jax.tree.map(np.asarray, (outputs, source.params["segmentation"]))
    expected = outputs[PIXELS] @ last["kernel"].reshape(-1, config["classes"]) + last["bias"]
    np.testing.assert_allclose(outputs["segmentation"], expected, atol=1e-4)
