"""What the learners from few labels share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from semi_supervised.linear import BATCH, KEY, LABEL, TRUTH, U, X, gradient, linear

import nets
from paradigms.core.errors import InputError
from paradigms.core.metrics import Mean
from paradigms.data import augment
from paradigms.semi_supervised import (
    derive_pseudo_labels,
    fixmatch,
    flexmatch,
    mean_teacher,
    mixmatch,
    pi_model,
    pseudo_label,
    vat,
)
from paradigms.semi_supervised.streams import pseudo_label_metrics, together

SGD = optax.sgd(1.0)
INDEX = {"unlabelled": {**BATCH["unlabelled"], "index": np.arange(6)}}


def noisy(key, x):
    return x + 0.1 * jax.random.normal(key, x.shape)


LEARNERS = {
    "pseudo_label": lambda net: pseudo_label(net, SGD, input_name="x"),
    "pi_model": lambda net: pi_model(net, SGD, weight=1.0, augment=noisy, input_name="x"),
    "mean_teacher": lambda net: mean_teacher(net, SGD, weight=1.0, augment=noisy, input_name="x"),
    "vat": lambda net: vat(net, SGD, epsilon=1.0, input_name="x"),
    "mixmatch": lambda net: mixmatch(net, SGD, noisy, input_name="x"),
    "fixmatch": lambda net: fixmatch(net, SGD, noisy, noisy, threshold=0.4, input_name="x"),
    "flexmatch": lambda net: flexmatch(
        net, SGD, noisy, noisy, examples=6, threshold=0.4, input_name="x"
    ),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_hidden_labels_are_measured_and_never_learnt(name):
    learner = LEARNERS[name](linear())
    batch = {**BATCH, **INDEX}
    other = {**batch, "unlabelled": {**batch["unlabelled"], "label": (TRUTH + 1) % 3}}
    update = jax.jit(learner.update)
    state = learner.init(KEY, batch)
    (after, metrics), (same, others) = update(state, batch), update(state, other)
    kept = [(s.params, s.target, s.memory) for s in (after, same)]
    jax.tree.map(np.testing.assert_array_equal, *kept)
    if "pseudo/accuracy" in metrics:
        assert metrics["pseudo/accuracy"].value() != others["pseudo/accuracy"].value()


@pytest.mark.parametrize("name", LEARNERS)
def test_unlabelled_examples_change_what_is_learnt(name):
    learner = LEARNERS[name](linear())
    batch = {**BATCH, **INDEX}
    moved = {**batch, "unlabelled": {**batch["unlabelled"], "x": U + 1}}
    first, _, metrics = gradient(learner, batch)
    second, _, _ = gradient(learner, moved)
    assert metrics["loss/unlabelled"].value() > 0
    assert not np.allclose(first["w"], second["w"], atol=1e-4)


@pytest.mark.parametrize("name", LEARNERS)
def test_parts_that_do_not_match_are_refused(name):
    learner = LEARNERS[name](linear())
    state = learner.init(KEY, {**BATCH, **INDEX})
    unlabelled = INDEX["unlabelled"]

    def update(batch):
        jax.eval_shape(learner.update, state, batch)

    with pytest.raises(InputError, match=r"a batch of \['unlabelled'\]: expected 'labelled' and"):
        update({"unlabelled": unlabelled})
    with pytest.raises(InputError, match=r"labelled inputs are float32\[4, 3\], unlabelled ones"):
        update({**BATCH, "unlabelled": {**unlabelled, "x": np.ones((6, 2), np.float32)}})
    with pytest.raises(InputError, match=r"label is float32\[4\] for 4 labelled inputs: expected"):
        update({"labelled": {"x": X, "label": np.ones(4, np.float32)}, "unlabelled": unlabelled})


def test_together_is_one_batch_for_batch_norm():
    net = nets.mlp((4,), 3, norm="batch")
    params, model_state = net.init(KEY, X)
    (first, second), after = together(net, params, model_state, (X, U), KEY)
    whole, expected = net.apply(params, model_state, np.concatenate([X, U]), key=KEY, train=True)
    np.testing.assert_allclose(np.concatenate([first, second]), whole, rtol=1e-6)
    assert first.shape == (4, 3) and second.shape == (6, 3)
    jax.tree.map(np.testing.assert_array_equal, after, expected)


def test_pseudo_label_metrics_count_what_is_accepted():
    label, accepted = jnp.array([0, 1, 1, 2, 1]), jnp.array([True, True, False, True, True])
    truth = {"label": jnp.array([0, 1, 1, 0, 2])}
    metrics = pseudo_label_metrics(label, accepted, 4, truth)
    assert metrics["pseudo/accepted"].value() == np.float32(0.8)
    assert metrics["pseudo/accuracy"].value() == 0.5
    histogram = metrics["pseudo/histogram"]
    np.testing.assert_allclose(histogram.total / histogram.count, [0.25, 0.5, 0.25, 0])
    values = derive_pseudo_labels(metrics)
    assert values["pseudo/rarest"] == 0 and values["pseudo/commonest"] == 0.5
    assert [values[f"pseudo/share[{k}]"] for k in range(4)] == [0.25, 0.5, 0.25, 0]
    assert "pseudo/accuracy" not in pseudo_label_metrics(label, accepted, 4, {})
    none = derive_pseudo_labels(pseudo_label_metrics(label, accepted & False, 4, truth))
    assert none == {"pseudo/accepted": 0.0}


def test_evaluation_is_the_classifiers_and_honours_the_mask():
    learner = pseudo_label(linear(), SGD, input_name="x")
    state = learner.init(KEY, BATCH)
    mask = np.array([1, 0, 1, 1], np.float32)
    metrics = learner.evaluate(state, {"x": X, "label": LABEL, "mask": mask}, KEY)
    hits = (X @ np.asarray(state.params["w"])).argmax(1) == LABEL
    np.testing.assert_allclose(metrics["accuracy"].value(), hits[mask > 0].mean())
    assert isinstance(metrics["confusion"], Mean)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: pseudo_label(net, SGD, threshold=1.2), r"pseudo_label\(threshold=1.2\): exp"),
        (
            lambda net: fixmatch(net, SGD, noisy, noisy, threshold=-0.1),
            r"fixmatch\(threshold=-0.1\): expected a confidence from 0 to 1",
        ),
        (
            lambda net: flexmatch(net, SGD, noisy, noisy, examples=0),
            r"flexmatch\(examples=0\): expected the size of the unlabelled set",
        ),
        (lambda net: mixmatch(net, SGD, noisy, views=0), r"mixmatch\(views=0\): expected at least"),
        (lambda net: mixmatch(net, SGD, noisy, alpha=0.0), r"mixmatch\(alpha=0.0\): expected a n"),
        (lambda net: mixmatch(net, SGD, noisy, temperature=-1.0), r"mixmatch\(temperature=-1.0\)"),
        (lambda net: vat(net, SGD, epsilon=-1.0), r"vat\(epsilon=-1.0\): expected a length above"),
        (lambda net: vat(net, SGD, epsilon=1.0, xi=0.0), r"vat\(xi=0.0\): expected a length above"),
        (lambda net: vat(net, SGD, epsilon=1.0, iterations=0), r"vat\(iterations=0\): expected at"),
    ],
)
def test_options_out_of_their_range(make, message):
    with pytest.raises(InputError, match=message):
        make(linear())


def test_images_travel_as_bytes():
    net = nets.preprocess(nets.mlp((), 3), augment.normalise((0.5,), (0.5,)))
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 1), np.uint8)
    batch = {"labelled": {"image": images, "label": LABEL}, "unlabelled": {"image": images}}
    for learner in (
        mixmatch(net, SGD, augment.flip()),
        vat(net, SGD, epsilon=0.5),
        fixmatch(net, SGD, augment.flip(), augment.flip(), threshold=0.1),
    ):
        state, metrics = learner.update(learner.init(KEY, batch), batch)
        assert jnp.isfinite(metrics["loss"].value())
        raw = learner.evaluate(state, {"image": images, "label": LABEL}, KEY)
        scaled = learner.evaluate(state, {"image": np.float32(images) / 255, "label": LABEL}, KEY)
        np.testing.assert_allclose(raw["loss"].value(), scaled["loss"].value(), rtol=1e-5)
