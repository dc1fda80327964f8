import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as reference

import nets
from nets.net import Net
from paradigms import data
from paradigms.core import optimizers
from paradigms.core.errors import InputError
from paradigms.core.loop import evaluator
from paradigms.core.transforms import repeated, resident
from paradigms.data import augment
from paradigms.supervised import classifier, cross_entropy, derive_classification

# The net gives back its input, so that a test chooses the logits.
IDENTITY = Net(lambda key, x: ({}, {}), lambda params, model_state, x, **_: (x, model_state))
# Logits are parameters here, so that the gradient of a step is that of the logits.
TABLE = Net(
    lambda key, x: ({"logits": jnp.zeros(x.shape)}, {}),
    lambda params, model_state, x, **_: (params["logits"] + x, model_state),
)
SGD = optimizers.sgd(1.0)


def draw(seed, size, classes):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(size, classes), scale=2).astype(np.float32)
    return logits, rng.integers(0, classes, size).astype(np.int32)


def softmax(logits):
    exp = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def gradient(learner, batch):
    """The gradient at the logits of a batch: what one step of rate 1 takes off."""
    state, metrics = learner.update(learner.init(jax.random.key(0), batch), batch)
    return -np.asarray(state.params["logits"]), metrics


def evaluated(logits, label, batch_size=16, **options):
    batch = {"image": logits, "label": label}
    learner = classifier(IDENTITY, SGD, **options)
    state = learner.init(jax.random.key(0), batch)
    means = evaluator(learner, batch, batch_size)(state, jax.random.key(1))
    return means, derive_classification(means)


def test_a_uniform_guess_among_ten_costs_ln_10():
    loss = cross_entropy(jnp.zeros((3, 10)), jnp.array([0, 4, 9]))
    np.testing.assert_allclose(loss, [2.302585] * 3, rtol=1e-6)


def test_a_known_probability_costs_its_negative_logarithm():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])) + 7.0
    loss = cross_entropy(logits, jnp.array([1, 2]))
    np.testing.assert_allclose(loss, [np.log(4), -np.log(0.8)], rtol=1e-5)


def test_smoothing_targets_91_and_1_per_cent_and_cannot_cost_less_than_its_entropy():
    label = jnp.array([3])

    def loss(logits):
        return cross_entropy(logits, label, label_smoothing=0.1).sum()

    target = np.full((1, 10), 0.01, np.float32)
    target[0, 3] = 0.91
    at_target = jnp.log(target)
    # The gradient of cross entropy is softmax minus target, so the target can be read off.
    np.testing.assert_allclose(0.1 - jax.grad(loss)(jnp.zeros((1, 10))), target, atol=1e-6)
    np.testing.assert_allclose(loss(at_target), 0.50029, atol=1e-5)
    np.testing.assert_allclose(jax.grad(loss)(at_target), 0, atol=1e-6)


def test_class_weights_multiply_each_term_of_the_sum():
    logits, weights = jnp.zeros((2, 2)), (1.0, 3.0)
    label = jnp.array([0, 1])
    loss = cross_entropy(logits, label, class_weights=weights)
    np.testing.assert_allclose(loss, [np.log(2), 3 * np.log(2)], rtol=1e-6)
    # Smoothing first: the target (.1, .9) weighs .1 * 1 + .9 * 3.
    smoothed = cross_entropy(logits, label, label_smoothing=0.2, class_weights=weights)
    np.testing.assert_allclose(smoothed[1], 2.8 * np.log(2), rtol=1e-6)


def test_half_precision_logits_are_summed_in_float32():
    loss = cross_entropy(jnp.zeros((1, 10), jnp.bfloat16), jnp.array([0]))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, 2.302585, rtol=1e-6)


def test_one_hot_soft_labels_are_hard_labels():
    logits, label = draw(0, 6, 4)
    for options in ({}, {"label_smoothing": 0.1, "class_weights": (1.0, 2.0, 3.0, 4.0)}):
        learner = classifier(TABLE, SGD, **options)
        hard, hard_metrics = gradient(learner, {"image": logits, "label": jnp.array(label)})
        soft, soft_metrics = gradient(learner, {"image": logits, "label": jnp.eye(4)[label]})
        np.testing.assert_array_equal(hard, soft)
        assert hard_metrics["loss"].value() == soft_metrics["loss"].value()
        assert hard_metrics["accuracy"].value() == soft_metrics["accuracy"].value()


def test_gradient_is_that_of_the_weighted_mean():
    logits, label = draw(1, 8, 5)
    weights = np.array([1.0, 2.0, 0.5, 3.0, 1.0])
    mask = np.array([1, 1, 0, 1, 2, 1, 0, 1], np.float32)
    learner = classifier(TABLE, SGD, label_smoothing=0.1, class_weights=tuple(weights))
    ours, metrics = gradient(learner, {"image": logits, "label": label, "mask": mask})

    target = (0.9 * np.eye(5)[label] + 0.02) * weights
    p = softmax(logits)
    share = mask / (weights[label] * mask).sum()
    by_hand = (p * target.sum(-1, keepdims=True) - target) * share[:, None]
    np.testing.assert_allclose(ours, by_hand, atol=1e-6)
    loss = -(target * np.log(p)).sum(-1) @ share
    np.testing.assert_allclose(metrics["loss"].value(), loss, rtol=1e-5)


def test_gradient_agrees_with_finite_differences():
    logits, label = draw(2, 4, 3)

    def loss(logits):
        options = {"label_smoothing": 0.1, "class_weights": (1.0, 2.0, 3.0)}
        return float(cross_entropy(jnp.asarray(logits), jnp.asarray(label), **options).sum())

    exact = jax.grad(
        lambda x: cross_entropy(x, label, label_smoothing=0.1, class_weights=(1.0, 2.0, 3.0)).sum()
    )(logits)
    for row, column in np.ndindex(4, 3):
        nudge = np.zeros((4, 3), np.float32)
        nudge[row, column] = 1e-2
        slope = (loss(logits + nudge) - loss(logits - nudge)) / 2e-2
        np.testing.assert_allclose(exact[row, column], slope, atol=2e-3)


def test_equal_class_weights_change_nothing():
    logits, label = draw(3, 7, 4)
    batch = {"image": logits, "label": label}
    plain, _ = gradient(classifier(TABLE, SGD), batch)
    weighted, _ = gradient(classifier(TABLE, SGD, class_weights=(5.0,) * 4), batch)
    np.testing.assert_allclose(plain, weighted, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"class_weights": (1.0, 2.0, 3.0)}])
def test_masked_examples_neither_count_nor_get_a_gradient(options):
    logits, label = draw(4, 6, 3)
    logits[4:] = 1e4
    mask = np.array([1, 1, 1, 1, 0, 0], np.float32)
    learner = classifier(TABLE, SGD, **options)
    masked, with_mask = gradient(learner, {"image": logits, "label": label, "mask": mask})
    short, without = gradient(learner, {"image": logits[:4], "label": label[:4]})
    assert (masked[4:] == 0).all()
    np.testing.assert_allclose(masked[:4], short, atol=1e-7)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(with_mask[name].value(), without[name].value(), rtol=1e-6)
        assert with_mask[name].count == without[name].count


@pytest.mark.parametrize("options", [{}, {"class_weights": (1.0, 2.0, 3.0)}])
def test_a_label_out_of_range_stops_training_unless_it_is_masked(options):
    learner = classifier(TABLE, SGD, **options)
    logits, _ = draw(0, 4, 3)
    for wrong in (-1, 3):
        batch = {"image": logits, "label": np.int32([0, 1, 2, wrong])}
        _, metrics = gradient(learner, batch)
        assert np.isinf(metrics["loss"].value())
        masked, metrics = gradient(learner, {**batch, "mask": np.float32([1, 1, 1, 0])})
        alone, expected = gradient(learner, {name: rows[:3] for name, rows in batch.items()})
        np.testing.assert_allclose(masked[:3], alone, atol=1e-7)
        assert (masked[3] == 0).all()
        assert float(metrics["loss"].value()) == pytest.approx(float(expected["loss"].value()))


def test_a_batch_of_masked_examples_alone_changes_nothing():
    logits, label = draw(5, 3, 3)
    for options in ({}, {"class_weights": (1.0, 2.0, 3.0)}):
        learner = classifier(TABLE, SGD, **options)
        nothing, _ = gradient(learner, {"image": logits, "label": label, "mask": np.zeros(3)})
        assert (nothing == 0).all()


@pytest.mark.parametrize("soft", [False, True])
def test_evaluation_agrees_with_scikit_learn(soft):
    logits, label = draw(6, 37, 10)  # batches of 16 leave 11 rows of padding
    given = np.eye(10, dtype=np.float32)[label] if soft else label
    means, values = evaluated(logits, given)
    p, everyone = softmax(logits), np.arange(10)
    predicted = logits.argmax(-1)
    assert values["accuracy"] == pytest.approx(reference.accuracy_score(label, predicted))
    assert values["loss"] == pytest.approx(reference.log_loss(label, p, labels=everyone), rel=1e-5)
    top5 = reference.top_k_accuracy_score(label, p, k=5, labels=everyone)
    assert values["top5"] == pytest.approx(top5)
    np.testing.assert_array_equal(
        means["confusion"].total, reference.confusion_matrix(label, predicted, labels=everyone)
    )


def test_calibration_error_agrees_with_its_definition():
    logits, label = draw(7, 203, 4)
    confidence = softmax(logits).max(-1)
    hits = logits.argmax(-1) == label
    error = 0.0
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs(hits[inside].mean() - confidence[inside].mean())
            error += inside.mean() * gap
    _, values = evaluated(logits, label, batch_size=50)
    assert values["calibration_error"] == pytest.approx(error, abs=1e-6)
    assert "top5" not in values


@pytest.mark.parametrize("hits, error", [([1, 1, 1, 0], 0.05), ([1, 1, 1, 1], 0.2)])
def test_calibration_error_of_one_bin_by_hand(hits, error):
    logits = np.tile(np.log(np.float32([0.8, 0.2])), (4, 1))  # four times 80 % sure
    _, values = evaluated(logits, 1 - np.int32(hits))
    assert values["calibration_error"] == pytest.approx(error, abs=1e-6)


def test_a_certain_guess_falls_into_the_last_bin():
    logits = np.float32([[100, 0, 0]])
    means, values = evaluated(logits, np.int32([0]))
    assert np.asarray(means["calibration/accuracy"].count)[-1] == 1
    assert values["calibration_error"] == 0


def test_mixing_with_weight_one_is_the_clean_loss():
    image = np.random.default_rng(8).uniform(size=(4, 2, 2, 1)).astype(np.float32)
    batch = {"image": image, "label": np.int32([0, 1, 2, 2])}

    def step(mix):
        learner = classifier(nets.mlp((), 3), SGD, mix=mix)
        state, metrics = learner.update(learner.init(jax.random.key(0), batch), batch)
        return jax.tree.leaves(state.params), metrics["loss"].value()

    def mixed(share):
        backwards = jnp.arange(4)[::-1]
        return step(lambda key, image, label: augment.mix(image, label, backwards, share))

    clean, loss = step(None)
    for ours, theirs in zip(mixed(1.0)[0], clean, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert mixed(1.0)[1] == loss
    assert abs(mixed(0.5)[1] - loss) > 1e-3


def test_evaluation_is_neither_smoothed_weighted_augmented_nor_mixed():
    logits, label = draw(9, 20, 4)

    def explode(key, *arrays):
        raise AssertionError("evaluation must not call this")

    options = {
        "label_smoothing": 0.5,
        "class_weights": (1.0, 2.0, 3.0, 4.0),
        "augment": explode,
        "mix": explode,
    }
    _, plain = evaluated(logits, label)
    _, values = evaluated(logits, label, **options)
    assert values == plain


def test_training_draws_another_augmentation_at_every_update():
    seen = []

    def record(key, image):
        seen.append(jax.random.key_data(key).tolist())
        return image

    batch = {"image": np.zeros((2, 3), np.float32), "label": np.int32([0, 1])}
    learner = classifier(TABLE, SGD, augment=record)
    state = learner.init(jax.random.key(0), batch)
    for _ in range(3):
        state, _ = learner.update(state, batch)
    assert len(set(map(tuple, seen))) == 3


@pytest.mark.parametrize(
    ("options", "label", "expected"),
    [
        ({}, np.zeros(4, np.float32), "dtype float32: expected integers"),
        ({}, np.zeros((4, 1), np.int32), "label (4, 1) do not fit"),
        ({}, np.zeros(3, np.int32), "label (3,) do not fit"),
        ({}, np.zeros((4, 5), np.float32), "label (4, 5) do not fit"),
        ({"class_weights": (1.0, 2.0)}, np.zeros(4, np.int32), "2 class weights for 3 classes"),
        ({"class_weights": (1.0,)}, np.zeros(4, np.int32), "1 class weights for 3 classes"),
    ],
)
def test_labels_and_weights_that_do_not_fit_are_one_clear_line(options, label, expected):
    batch = {"image": np.zeros((4, 3), np.float32), "label": label}
    learner = classifier(TABLE, SGD, **options)
    state = learner.init(jax.random.key(0), batch)
    with pytest.raises(InputError) as raised:
        learner.update(state, batch)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_labels_of_an_evaluation_are_checked_too():
    batch = {"image": np.zeros((4, 3), np.float32), "label": np.zeros(4, np.float32)}
    learner = classifier(TABLE, SGD)
    state = learner.init(jax.random.key(0), batch)
    with pytest.raises(InputError, match="expected integers"):
        learner.evaluate(state, batch, jax.random.key(0))


def test_logits_that_are_no_matrix_are_refused():
    batch = {"image": np.zeros((4, 2, 3), np.float32), "label": np.zeros(4, np.int32)}
    learner = classifier(TABLE, SGD)
    with pytest.raises(InputError, match=r"expected logits \[B, K\]"):
        learner.update(learner.init(jax.random.key(0), batch), batch)


@pytest.mark.parametrize("smoothing", [1.0, -0.1, float("nan")])
def test_smoothing_lies_below_one(smoothing):
    with pytest.raises(InputError, match=r"label_smoothing=.*expected a number in \[0, 1\)"):
        classifier(IDENTITY, SGD, label_smoothing=smoothing)


def fitted(learner, arrays, steps, batch_size):
    learner = resident(learner, batch_size)
    state = jax.jit(learner.init)(jax.random.key(0), arrays)
    return jax.jit(repeated(learner, steps).update)(state, arrays)


def test_separable_classes_are_separated():
    rng = np.random.default_rng(10)
    label = np.arange(64, dtype=np.int32) % 2
    x = rng.normal(size=(64, 2)).astype(np.float32)
    x[:, 0] = np.where(label == 1, 1.0, -1.0) * (0.5 + np.abs(x[:, 0]))
    learner = classifier(nets.mlp((), 2), optimizers.sgd(0.5, 0.9), input_name="x")
    _, metrics = fitted(learner, {"x": jnp.asarray(x), "label": jnp.asarray(label)}, 100, 64)
    assert metrics["accuracy"].value()[-1] == 1
    assert metrics["loss"].value()[-1] < 0.05


def test_digits_are_learnt():
    train, test = data.digits("train"), data.digits("test")
    net = nets.preprocess(nets.mlp((64,), 10), augment.normalise((0.305,), (0.376,)))
    learner = classifier(net, optimizers.adam(3e-3))
    state, _ = fitted(learner, jax.tree.map(jnp.asarray, train), 400, 64)
    means = evaluator(learner, test, 500)(state, jax.random.key(0))
    assert derive_classification(means)["accuracy"] >= 0.96
