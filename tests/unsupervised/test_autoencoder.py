import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nets
from nets.net import Net
from paradigms.core import optimizers
from paradigms.core.errors import InputError
from paradigms.core.loop import evaluator
from paradigms.core.metrics import derive
from paradigms.core.transforms import repeated, swept
from paradigms.unsupervised import autoencoder, masking_noise, subspace_distance

# The code is the input plus a parameter, the output the code times another: so the gradient of a
# step can be worked out by hand.
SHIFT = Net(
    lambda key, x: ({"shift": jnp.zeros(x.shape)}, {}),
    lambda params, model_state, x, **_: (params["shift"] + x, model_state),
)
SCALE = Net(
    lambda key, x: ({"scale": jnp.full(x.shape, 2.0)}, {}),
    lambda params, model_state, x, **_: (params["scale"] * x, model_state),
)
SGD = optimizers.sgd(1.0)
X = np.float32([[0.5, -1.0], [0.25, -0.5], [1.0, 2.0]])


def step(batch, **options):
    """Gradients of shift and scale, and the metrics, of one update."""
    learner = autoencoder(SHIFT, SCALE, SGD, input_name="x", **options)
    start = jax.jit(learner.init)(jax.random.key(0), batch)
    state, metrics = jax.jit(learner.update)(start, batch)
    gradient = jax.tree.map(lambda old, new: np.asarray(old - new), start.params, state.params)
    return gradient["encoder"]["shift"], gradient["decoder"]["scale"], derive(metrics)


def test_the_squared_loss_by_hand():
    # The output is 2 x, so the error is x itself.
    shift, scale, metrics = step({"x": X})
    assert metrics["loss"] == pytest.approx((1.25 + 0.3125 + 5) / 3)
    assert metrics["squared_error"] == pytest.approx((1.25 + 0.3125 + 5) / 6)
    assert metrics["code_l1"] == pytest.approx((1.5 + 0.75 + 3) / 3)
    np.testing.assert_allclose(shift, 2 * X * 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(scale, 2 * X * X / 3, rtol=1e-6)


def test_the_cross_entropy_by_hand():
    x = np.float32([[0.0, 0.0, 1.0]])
    logits = 2 * x
    p = 1 / (1 + np.exp(-logits))
    shift, _, metrics = step({"x": x}, loss="bernoulli")
    assert metrics["loss"] == pytest.approx(2 * np.log(2) + np.log1p(np.exp(-2)))
    assert metrics["squared_error"] == pytest.approx(((p - x) ** 2).mean())
    np.testing.assert_allclose(shift, 2 * (p - x), rtol=1e-6)


def test_the_sparsity_penalty_pulls_the_code_to_zero_and_leaves_the_decoder_alone():
    plain_shift, plain_scale, plain = step({"x": X})
    shift, scale, metrics = step({"x": X}, sparsity=0.3)
    assert metrics["loss"] == pytest.approx(plain["loss"] + 0.3 * plain["code_l1"])
    assert metrics["code_l1"] == pytest.approx(plain["code_l1"])
    np.testing.assert_allclose(shift - plain_shift, 0.3 * np.sign(X) / 3, atol=1e-6)
    np.testing.assert_array_equal(scale, plain_scale)


def test_only_the_encoder_sees_the_corruption():
    seen = []

    def augment(key, x):
        seen.append(key)
        return x + 1

    def corrupt(key, x):
        seen.append(key)
        return 3 * x

    shift, _, metrics = step({"x": X}, augment=augment, corrupt=corrupt)
    # The output is 6 (x + 1) and the target x + 1.
    assert metrics["loss"] == pytest.approx(np.square(5 * (X + 1)).sum() / 3)
    np.testing.assert_allclose(shift, 2 * 5 * (X + 1) * 2 / 3, rtol=1e-5)
    assert len(seen) == 2 and seen[0] is not seen[1]


def test_evaluation_neither_augments_nor_corrupts_and_counts_every_example_once():
    def explode(key, x):
        raise AssertionError("evaluation must not change its input")

    x = np.random.default_rng(0).normal(size=(13, 2)).astype(np.float32)
    # A decoder that is the same for every example, whatever the size of the batch.
    double = Net(lambda key, x: ({}, {}), lambda params, state, x, **_: (2 * x, state))
    learner = autoencoder(
        double, double, SGD, augment=explode, corrupt=explode, sparsity=0.5, input_name="x"
    )
    state = learner.init(jax.random.key(0), {"x": x[:1]})
    values = derive(evaluator(learner, {"x": x}, 5)(state, jax.random.key(1)))
    assert values["squared_error"] == pytest.approx(np.square(3 * x).mean())
    assert values["code_l1"] == pytest.approx(np.abs(2 * x).sum(1).mean())
    assert values["loss"] == pytest.approx(2 * values["squared_error"] + 0.5 * values["code_l1"])


def test_bytes_are_divided_by_255_after_the_augmentation():
    image = np.uint8([[0, 255]])

    def invert(key, x):
        assert x.dtype == jnp.uint8
        return 255 - x

    _, _, metrics = step({"x": image}, augment=invert)
    assert metrics["squared_error"] == pytest.approx(0.5)
    assert metrics["code_l1"] == pytest.approx(1)


def test_masked_examples_neither_count_nor_get_a_gradient():
    mask = np.float32([1, 1, 0])
    shift, scale, metrics = step({"x": X, "mask": mask}, sparsity=0.3)
    short_shift, short_scale, short = step({"x": X[:2]}, sparsity=0.3)
    assert (shift[2] == 0).all() and (scale[2] == 0).all()
    np.testing.assert_allclose(shift[:2], short_shift, rtol=1e-6)
    np.testing.assert_allclose(scale[:2], short_scale, rtol=1e-6)
    for name in ("loss", "squared_error", "code_l1"):
        assert metrics[name] == pytest.approx(short[name])


def test_both_nets_train_with_keys_of_their_own_and_evaluate_without():
    calls = []

    def recording(name):
        def apply(params, model_state, x, key=None, train=False):
            calls.append((name, key, train))
            return x * params, model_state + 1 if train else model_state

        return Net(lambda key, x: (jax.random.normal(key), jnp.zeros(())), apply)

    learner = autoencoder(recording("encoder"), recording("decoder"), SGD, input_name="x")
    start = learner.init(jax.random.key(0), {"x": X})
    assert start.params["encoder"] != start.params["decoder"]
    calls.clear()
    state, _ = learner.update(start, {"x": X})
    assert [(name, train) for name, _, train in calls] == [("encoder", True), ("decoder", True)]
    assert calls[0][1] != calls[1][1]
    assert state.model_state == {"encoder": 1, "decoder": 1}
    calls.clear()
    learner.evaluate(state, {"x": X}, jax.random.key(1))
    assert [(name, train) for name, _, train in calls] == [("encoder", False), ("decoder", False)]


def test_a_sweep_over_sparsity_is_the_runs_apart(compilations):
    def make(hparams):
        return autoencoder(
            nets.mlp((), 3),
            nets.mlp((), 2),
            optimizers.sgd(hparams["learning_rate"]),
            sparsity=hparams["sparsity"],
            input_name="x",
        )

    grid = {"sparsity": np.float32([0.0, 0.1, 1.0]), "learning_rate": np.float32([0.1, 0.01, 0.1])}
    learner, batch = swept(make, grid), {"x": jnp.asarray(X)}
    start = jax.jit(learner.init)(jax.random.key(0), batch)
    update = jax.jit(learner.update)
    state, metrics = update(start, batch)
    values = np.asarray(metrics["loss"].value())
    other = {**start.hparams, "sparsity": jax.device_put(np.float32([0.3, 0.2, 0.1]))}
    compilations.clear()
    update(start.replace(hparams=other), batch)
    assert not compilations
    for i in range(3):
        alone = make({name: float(points[i]) for name, points in grid.items()})
        apart, reported = alone.update(alone.init(jax.random.key(0), batch), batch)
        assert values[i] == pytest.approx(float(reported["loss"].value()), rel=1e-5)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6),
            state.params,
            apart.params,
        )


def test_a_linear_autoencoder_finds_the_subspace_of_pca():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 6)) * np.sqrt([2.0, 1.5, 1.0, 0.3, 0.2, 0.1])
    x = (x @ np.linalg.qr(rng.normal(size=(6, 6)))[0] + 1).astype(np.float32)
    centred = x - x.mean(0)
    _, sizes, components = np.linalg.svd(centred, full_matrices=False)
    learner = autoencoder(
        nets.mlp((), 3), nets.mlp((), 6), optimizers.sgd(0.02, 0.9), input_name="x"
    )
    batch = {"x": jnp.asarray(x)}
    state = jax.jit(learner.init)(jax.random.key(0), batch)
    state, metrics = jax.jit(repeated(learner, 500).update)(state, batch)
    kernels = {name: net["Dense_0"]["kernel"] for name, net in state.params.items()}
    assert subspace_distance(kernels["decoder"].T, components[:3]) < 1e-3
    # At the minimum the encoder is the decoder's pseudo-inverse.
    assert subspace_distance(kernels["encoder"], components[:3]) < 1e-3
    assert subspace_distance(kernels["encoder"], components[1:4]) > 0.9
    least = (sizes[3:] ** 2).sum() / x.size
    assert float(metrics["squared_error"].value()[-1]) == pytest.approx(least, rel=1e-4)


def test_masking_noise_removes_values_at_its_rate():
    x = jnp.full((50, 40), 7, jnp.uint8)
    noisy = np.asarray(masking_noise(0.3)(jax.random.key(0), x))
    assert noisy.dtype == np.uint8 and set(np.unique(noisy)) == {0, 7}
    # Three standard deviations of 2,000 draws.
    assert abs((noisy == 0).mean() - 0.3) < 0.031
    assert len(np.unique(noisy, axis=0)) == 50
    np.testing.assert_array_equal(masking_noise(0.0)(jax.random.key(0), x), x)


def test_the_distance_of_subspaces_is_the_sine_of_their_angle():
    angle = 0.3
    first = np.eye(4)[:, :2]
    second = np.array([[1.0, 0], [0, np.cos(angle)], [0, np.sin(angle)], [0, 0]])
    assert subspace_distance(first, second) == pytest.approx(np.sin(angle))
    # Any basis of either gives the same, and so do components in rows.
    mixed = second @ np.array([[2.0, 1.0], [5.0, -3.0]])
    assert subspace_distance(first * 7, mixed) == pytest.approx(np.sin(angle))
    assert subspace_distance(first, mixed.T) == pytest.approx(np.sin(angle))
    assert subspace_distance(mixed, second) < 1e-12
    assert subspace_distance(first, np.eye(4)[:, 2:]) == pytest.approx(1)


def test_a_subspace_of_fewer_dimensions_is_at_distance_one():
    plane = np.eye(4)[:, :2]
    assert subspace_distance(plane[:, :1], plane) == pytest.approx(1)
    # Two columns that are all but one.
    assert subspace_distance(plane @ np.array([[1.0, 1.0], [0, 1e-9]]), plane) == pytest.approx(1)


def init(encoder, decoder, **options):
    learner = autoencoder(encoder, decoder, SGD, input_name="x", **options)
    return learner.init(jax.random.key(0), {"x": np.zeros((4, 2, 3), np.float32)})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: init(nets.mlp((), 2), nets.mlp((), 6)), "output (4, 6) and the data (4, 2, 3)"),
        (lambda: init(SHIFT, nets.mlp((), 6), loss="bernoulli"), "output (4, 6)"),
        (lambda: autoencoder(SHIFT, SCALE, SGD, loss="l1"), "autoencoder(loss='l1')"),
        (lambda: autoencoder(SHIFT, SCALE, SGD, sparsity=-0.1), "autoencoder(sparsity=-0.1)"),
        (lambda: autoencoder(SHIFT, SCALE, SGD, sparsity=float("nan")), "sparsity=nan"),
        (lambda: masking_noise(1.5), "masking_noise(1.5)"),
        (lambda: subspace_distance(np.ones((4, 2)), np.ones((3, 2))), "(4, 2) and components"),
        (lambda: subspace_distance(np.ones(4), np.ones((4, 1))), "expected [D, K]"),
        (lambda: subspace_distance(np.full((4, 1), np.nan), np.ones((4, 1))), "NaN"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_of_another_shape_than_the_decoder_gives_is_refused():
    fixed = Net(lambda key, x: ({}, {}), lambda params, state, x, **_: (jnp.zeros((4, 2)), state))
    learner = autoencoder(SHIFT, fixed, SGD, input_name="x")
    state = learner.init(jax.random.key(0), {"x": np.zeros((4, 2), np.float32)})
    for use in (lambda b: learner.update(state, b), lambda b: learner.evaluate(state, b, None)):
        with pytest.raises(InputError, match=r"output \(4, 2\) and the data \(1, 2\) differ"):
            use({"x": np.zeros((1, 2), np.float32)})
