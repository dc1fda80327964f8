"""VQ-VAE: each term by hand, who gets which gradient, and codes that live, die and come back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nets.net import Net
from paradigms.core import transforms
from paradigms.core.errors import InputError
from paradigms.core.learner import Learner
from paradigms.core.loop import evaluator
from paradigms.core.metrics import Mean, derive
from paradigms.unsupervised.vq_vae import (
    codebook_loss,
    commitment_loss,
    derive_vq_vae,
    ema_codebook,
    nearest_code,
    perplexity,
    straight_through,
    vq_vae,
)

KEY = jax.random.key(0)
# Pixels times one number: what a step changes in it is the sum of all gradients.
SCALE = Net(
    lambda key, x: ({"scale": jnp.ones(())}, {}),
    lambda params, model_state, x, **_: (params["scale"] * x, model_state),
)
STILL = optax.sgd(0.0)


def learner_of(optimizer=STILL, codes=2, revive_every=100, **options):
    options = {"codes": codes, "revive_every": revive_every, **options}
    return jitted(vq_vae(SCALE, SCALE, optimizer, **options))


def jitted(learner):
    return Learner(*map(jax.jit, learner))


def started(learner, image, codebook, scales=(1.0, 1.0)):
    """A state after the first update, with this codebook and these scales of encoder, decoder."""
    state = learner.init(KEY, {"image": image})
    codebook = jnp.asarray(codebook, jnp.float32)
    encoder, decoder = ({"scale": jnp.float32(scale)} for scale in scales)
    params, memory = {**state.params, "encoder": encoder, "decoder": decoder}, state.memory
    if "codebook" in params:
        params = {**params, "codebook": codebook}
    else:
        counts = jnp.arange(1.0, len(codebook) + 1)
        sums = codebook * counts[:, None]
        memory = {**memory, "codebook": codebook, "counts": counts, "sums": sums}
    return state.replace(step=state.step + 1, params=params, memory=memory)


def images(seed, *shape):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def test_nearest_code_by_hand():
    codebook = jnp.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 0.0]])
    z = jnp.array([[[1.0, 0.5], [3.0, 1.0]], [[1.0, 3.5], [2.0, 0.0]]])
    index = nearest_code(z, codebook)
    assert index.dtype == jnp.int32
    # (3, 1) is nearest to two equal codes, (2, 0) half way between two: the lowest index.
    np.testing.assert_array_equal(index, [[0, 1], [2, 0]])


def test_nearest_code_is_that_of_a_search():
    rng = np.random.default_rng(0)
    # A long code is nearest rarely: its own length must count.
    codebook = rng.normal(size=(7, 3)) * rng.uniform(0.2, 3, size=(7, 1))
    z = rng.normal(size=(4, 5, 3)) * 2
    wanted = np.square(z[..., None, :] - codebook).sum(-1).argmin(-1)
    np.testing.assert_array_equal(nearest_code(jnp.float32(z), jnp.float32(codebook)), wanted)


def test_straight_through_gives_the_code_exactly_and_its_gradient_to_z():
    z, quantised = jnp.array([[1e6, 0.3]]), jnp.array([[0.1, 0.7]])
    np.testing.assert_array_equal(straight_through(z, quantised), quantised)
    weight = jnp.array([[3.0, -5.0]])
    to_z, to_code = jax.grad(lambda *pair: (straight_through(*pair) * weight).sum(), (0, 1))(
        z, quantised
    )
    np.testing.assert_array_equal(to_z, weight)
    np.testing.assert_array_equal(to_code, 0 * weight)


def test_codebook_and_commitment_loss_by_hand_and_whom_they_move():
    z = jnp.array([[[[1.0, 2.0]]], [[[0.0, -1.0]]]])
    quantised = jnp.array([[[[0.0, 4.0]]], [[[0.5, -1.0]]]])
    both = 2 * (z - quantised) / 2
    for loss, of_z, of_code in ((codebook_loss, 0.0, -1.0), (commitment_loss, 1.0, 0.0)):
        np.testing.assert_array_equal(loss(z, quantised), [2.5, 0.125])
        grads = jax.grad(lambda *pair, loss=loss: loss(*pair).sum(), (0, 1))(z, quantised)
        np.testing.assert_array_equal(grads[0], of_z * both)
        np.testing.assert_array_equal(grads[1], of_code * both)
        half = loss(z.astype(jnp.bfloat16), quantised.astype(jnp.bfloat16))
        assert half.dtype == jnp.float32


@pytest.mark.parametrize(
    ("counts", "value"),
    [([5, 5, 5, 5], 4), ([0, 7, 0], 1), ([3, 1], 4 / 3**0.75), ([2, 0, 2], 2), ([0, 0], 1)],
)
def test_perplexity_by_hand(counts, value):
    assert float(perplexity(jnp.float32(counts))) == pytest.approx(value, rel=1e-6)


def test_ema_codebook_by_hand():
    # N = (.9 * 10 + .1 * 10, .9 * 20) = (10, 18); smoothed with epsilon 1: 28/30 of (11, 19).
    codebook, counts, sums = ema_codebook(
        *map(jnp.float32, ([10, 20], [[10], [40]], [10, 0], [[30], [0]])), 0.9, epsilon=1.0
    )
    np.testing.assert_allclose(counts, [10, 18], rtol=1e-6)
    np.testing.assert_allclose(sums, [[12], [36]], rtol=1e-6)
    wanted = [[12 / (11 * 28 / 30)], [36 / (19 * 28 / 30)]]
    np.testing.assert_allclose(codebook, wanted, rtol=1e-6)
    nothing = ema_codebook(jnp.zeros(2), jnp.zeros((2, 1)), jnp.zeros(2), jnp.zeros((2, 1)), 0.9)
    for array in nothing:
        np.testing.assert_array_equal(array, jnp.zeros(array.shape))


def test_ema_codebook_follows_numpy_over_several_batches():
    decay, book = 0.7, np.float64([[0.1, 0.2], [0.8, 0.9], [0.9, 0.1]])
    learner = learner_of(codes=3, decay=decay, augment=lambda key, x: x * 0.5)
    state = started(learner, images(0, 4, 1, 3, 2), book)
    counts = np.float64([1, 2, 3])
    sums = book * counts[:, None]
    for step in range(4):
        # Few batches have the same number of outputs with each code, and one has none.
        image = images(step, 4, 1, 3, 2) * np.float32([1.0, 1.0 if step == 2 else 0.3])
        state, metrics = jax.jit(learner.update)(state, {"image": image})
        z = 0.5 * image.astype(np.float64).reshape(-1, 2)
        index = np.square(z[:, None] - book).sum(-1).argmin(-1)
        chosen = np.eye(3)[index]
        error = np.square(z - book[index]).mean()
        share = chosen.mean(0)[chosen.any(0)]
        counts = decay * counts + (1 - decay) * chosen.sum(0)
        sums = decay * sums + (1 - decay) * chosen.T @ z
        smoothed = (counts + 1e-5) / (counts.sum() + 3e-5) * counts.sum()
        book = sums / smoothed[:, None]
        for name, wanted in {"counts": counts, "sums": sums, "codebook": book}.items():
            np.testing.assert_allclose(state.memory[name], wanted, rtol=1e-5, err_msg=name)
        values = derive(metrics)
        # The decoder gives back the code, so that all three errors are one.
        for name in ("reconstruction", "commitment", "codebook"):
            assert values[name] == pytest.approx(error, rel=1e-4), name
        assert values["loss"] == pytest.approx(1.25 * error, rel=1e-4)
        assert values["perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))


@pytest.mark.parametrize(("codebook", "step"), [("ema", 1), ("gradient", 1), ("gradient", 0)])
def test_every_gradient_is_that_of_numpy(codebook, step):
    a, b, beta, variance = 0.9, 1.3, 0.6, 0.2
    x, book = images(0, 3, 1, 2, 2), images(1, 2, 2)
    learner = learner_of(optax.sgd(1.0), codebook=codebook, commitment=beta, variance=variance)
    state = started(learner, x, book, (a, b)).replace(step=jnp.int32(step))
    after, metrics = jax.jit(learner.update)(state, {"image": x})
    if step == 0:
        # The codes were put on outputs first, and to lie there gives the encoder nothing.
        book = np.asarray(after.params["codebook"])
    z = a * x.reshape(-1, 2).astype(np.float64)
    chosen = np.eye(2)[np.square(z[:, None] - book).sum(-1).argmin(-1)]
    assert chosen.any(0).all()
    e, pixels = chosen @ book, x.reshape(-1, 2)
    of_input = 2 * b * (b * e - pixels) / z.size / variance
    wanted = {
        "encoder": (of_input * pixels).sum() + beta * (2 * (z - e) / z.size * pixels).sum(),
        "decoder": (2 * e * (b * e - pixels)).sum() / z.size / variance,
    }
    for name, gradient in wanted.items():
        moved = state.params[name]["scale"] - after.params[name]["scale"]
        assert float(moved) == pytest.approx(gradient, rel=1e-4), name
    loss = np.square(b * e - pixels).mean() / variance + beta * np.square(z - e).mean()
    if codebook == "gradient":
        loss += np.square(z - e).mean()
    assert derive(metrics)["loss"] == pytest.approx(loss, rel=1e-5)
    if step == 0:
        return
    assert derive(jax.jit(learner.evaluate)(state, {"image": x}, KEY))["loss"] == pytest.approx(
        loss, 1e-5
    )
    if codebook == "gradient":
        # That of the codebook loss alone, though the reconstruction depends on the codes.
        np.testing.assert_allclose(
            state.params["codebook"] - after.params["codebook"],
            chosen.T @ (2 * (e - z)) / z.size,
            rtol=1e-4,
            atol=1e-7,
        )


def test_reconstruction_gives_the_codebook_exactly_none():
    book, decoder = jnp.float32(images(0, 3, 2)), jnp.float32(images(1, 2, 2))
    z = jnp.float32(images(2, 4, 2))

    def reconstruction(z, book, latents=None):
        quantised = book[nearest_code(z, book)]
        latents = straight_through(z, quantised) if latents is None else latents
        return jnp.square(latents @ decoder - 1).sum()

    of_z, of_book = jax.grad(reconstruction, (0, 1))(z, book)
    np.testing.assert_array_equal(of_book, jnp.zeros((3, 2)))
    of_input = jax.grad(lambda latents: reconstruction(z, book, latents))(
        book[nearest_code(z, book)]
    )
    np.testing.assert_array_equal(of_z, of_input)
    assert np.abs(of_z).min() > 0


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_the_first_update_puts_each_code_on_an_output_of_its_own(codebook):
    image = images(0, 3, 1, 2, 2)
    learner = learner_of(codes=6, codebook=codebook)
    start = learner.init(KEY, {"image": image})
    assert np.isfinite(
        list(derive_vq_vae(jax.jit(learner.evaluate)(start, {"image": image}, KEY)).values())
    ).all()
    state, metrics = jax.jit(learner.update)(start, {"image": image})
    place = state.params if codebook == "gradient" else state.memory
    distance = np.abs(np.asarray(place["codebook"])[:, None] - image.reshape(-1, 2)).max(-1)
    assert (np.sort(distance, 1)[:, 0] < 1e-4).all()
    assert sorted(distance.argmin(1)) == list(range(6))
    values = derive(metrics)
    assert values["perplexity"] == pytest.approx(6, rel=1e-5)
    assert values["reconstruction"] == pytest.approx(0, abs=1e-8)
    # No window is over yet.
    assert not {"dead_codes", "revived"} & set(values)
    # Another seed draws other outputs for the codes.
    other, _ = jax.jit(learner.update)(
        learner.init(jax.random.key(1), {"image": image}), {"image": image}
    )
    place = other.params if codebook == "gradient" else other.memory
    assert (np.abs(np.asarray(place["codebook"])[:, None] - image.reshape(-1, 2)).max(-1).argmin(1)
            != distance.argmin(1)).any()  # fmt: skip


def pixels_at(*values):
    """Images of one pixel with two channels, near (v, v)."""
    spread = 0.001 * np.arange(len(values))
    return np.float32(np.array(values)[:, None] + spread[:, None] * [1, -1]).reshape(-1, 1, 1, 2)


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_a_dead_code_comes_back_after_a_window_on_an_output_of_that_batch(codebook):
    learner = learner_of(codes=4, codebook=codebook, revive_every=4, decay=0.9)
    # Codes 0 and 1 are used in every batch, code 2 only in the first of the window, code 3 never.
    start = started(learner, pixels_at(0, 0, 0, 0), [[0, 0], [1, 1], [0.5, 0.5], [9, 9]])
    state, seen = start, []
    for step in range(1, 10):
        third = 0.5 if step == 1 else 0.1 + 0.01 * step
        image = pixels_at(0, 1, third, 0.05)
        assert int(state.step) == step
        state, metrics = jax.jit(learner.update)(state, {"image": image})
        place = state.params if codebook == "gradient" else state.memory
        seen.append((image.reshape(-1, 2), np.asarray(place["codebook"]), derive(metrics)))

    for _, book, values in seen[:3]:
        np.testing.assert_allclose(book[3], [9, 9], rtol=1e-3)
        np.testing.assert_allclose(book[2], [0.5, 0.5], rtol=1e-3)
        assert not {"dead_codes", "revived"} & set(values)
    # The update at step 4 begins with the window of steps 0 to 3 behind it.
    batch, book, values = seen[3]
    assert values["dead_codes"] == 1 and values["revived"] == 1
    np.testing.assert_allclose(book[2], [0.5, 0.5], rtol=1e-3)
    assert (np.abs(batch - book[3]).max(-1) < 1e-4).any()
    for _, book, values in seen[4:7]:
        assert values["dead_codes"] == 1 and "revived" not in values
        np.testing.assert_allclose(book[2], [0.5, 0.5], rtol=1e-3)
    # In the next window nobody used code 2.
    batch, book, values = seen[7]
    assert values["dead_codes"] == values["revived"] >= 1
    assert (np.abs(batch - book[2]).max(-1) < 0.05).any()
    if codebook == "gradient":
        assert (np.abs(batch - book[2]).max(-1) == 0).any()


def test_a_revived_average_starts_again_with_count_one():
    learner = learner_of(codes=2, revive_every=4, decay=0.75)
    image = pixels_at(0.1, 0.5)
    state = started(learner, image, [[0.1, 0.1], [9, 9]])
    state = state.replace(
        step=jnp.int32(4),
        memory={**state.memory, "used": jnp.array([True, False]), "counts": jnp.array([8.0, 5.0])},
    )
    after, _ = jax.jit(learner.update)(state, {"image": image})
    # Code 0 was used: 0.75 * 8 and a quarter of its outputs. Code 1 begins at 1, and where it is
    # equal to code 0 gets no output.
    revived_on = int(np.abs(image.reshape(-1, 2) - after.memory["codebook"][1]).max(-1).argmin())
    outputs = {0: (2, 0), 1: (1, 1)}[revived_on]
    lone = image.reshape(-1, 2)[revived_on]
    if revived_on == 1:
        np.testing.assert_allclose(after.memory["codebook"][1], lone, rtol=1e-4)
    np.testing.assert_allclose(
        after.memory["counts"], [0.75 * 8 + 0.25 * outputs[0], 0.75 + 0.25 * outputs[1]], rtol=1e-6
    )
    # Within a window the number of the last one stands.
    memory = {**state.memory, "dead": jnp.int32(7)}
    _, metrics = jax.jit(learner.update)(
        state.replace(step=jnp.int32(5), memory=memory), {"image": image}
    )
    assert derive(metrics)["dead_codes"] == 7


def test_averages_find_the_means_of_the_clusters():
    rng = np.random.default_rng(0)
    centres = np.float32([[0.2, 0.2], [0.8, 0.2], [0.2, 0.8], [0.8, 0.8]])
    points = centres[:, None] + rng.normal(size=(4, 32, 2)).astype(np.float32) * 0.03
    image = points.reshape(-1, 1, 1, 2)
    learner = learner_of(codes=4, revive_every=5, decay=0.9)
    # Any start with a code for each cluster will do.
    start = started(learner, image, 0.5 * centres + 0.25)
    many = jax.jit(transforms.repeated(learner, 100).update)
    state, metrics = many(start, {"image": image})
    np.testing.assert_allclose(state.memory["codebook"], points.mean(1), atol=1e-4)
    np.testing.assert_allclose(state.memory["counts"], 32, rtol=1e-3)
    assert float(metrics["revived"].total.sum()) == 0
    values = derive_vq_vae(evaluator(learner, {"image": image}, 64)(state, KEY))
    assert values["perplexity"] == pytest.approx(4, rel=1e-4)
    assert values["dead_codes"] == 0
    within = np.square(points - points.mean(1, keepdims=True)).mean()
    assert values["reconstruction"] == pytest.approx(within, rel=1e-3)


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_masked_images_neither_count_nor_move_a_code(codebook):
    learner = learner_of(optax.sgd(1.0), codebook=codebook, codes=3)
    book = [[0.2, 0.2], [0.8, 0.8], [0.99, 0.99]]
    kept, spoilt = images(0, 3, 1, 2, 2) * 0.8, np.ones((2, 1, 2, 2), np.float32)
    state = started(learner, kept, book)
    batch = {"image": np.concatenate([kept, spoilt]), "mask": np.float32([1, 1, 1, 0, 0])}
    masked, metrics = jax.jit(learner.update)(state, batch)
    short, wanted = jax.jit(learner.update)(state, {"image": kept})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (masked.params, masked.memory, derive(metrics)),
        (short.params, short.memory, derive(wanted)),
    )
    np.testing.assert_array_equal(masked.memory["used"], [True, True, False])
    evaluated = jax.jit(learner.evaluate)(state, batch, KEY)
    values, wanted = (
        derive_vq_vae(evaluated),
        derive_vq_vae(jax.jit(learner.evaluate)(state, {"image": kept}, KEY)),
    )
    assert values == pytest.approx(wanted, rel=1e-5)
    assert float(evaluated["codes"].total.sum()) == float(evaluated["codes"].count[0]) == 6


def test_codes_begin_on_images_that_count_only():
    learner = learner_of(codes=4)
    image = pixels_at(0.1, 0.3, 1.0, 1.0, 1.0)
    batch = {"image": image, "mask": np.float32([1, 1, 0, 0, 0])}
    state, metrics = jax.jit(learner.update)(learner.init(KEY, batch), batch)
    book = np.asarray(state.memory["codebook"])
    # Two outputs for four codes: the others wait where they are.
    assert (book.max(-1) < 0.5).all()
    assert (book.max(-1) > 0.05).sum() == 2
    np.testing.assert_array_equal(state.memory["used"], book.max(-1) > 0.05)
    assert derive(metrics)["perplexity"] == pytest.approx(2, rel=1e-5)
    nobody = {"image": image, "mask": np.zeros(5, np.float32)}
    state, metrics = jax.jit(learner.update)(learner.init(KEY, nobody), nobody)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.memory)))
    assert "perplexity" not in derive(metrics)


def test_evaluation_counts_codes_over_the_whole_set():
    learner = learner_of(codes=3)
    image = pixels_at(0.1, 0.1, 0.1, 0.9)
    state = started(learner, image, [[0.1, 0.1], [5, 5], [0.9, 0.9]])

    def explode(key, x):
        raise AssertionError("evaluation must not augment")

    means = evaluator(learner_of(codes=3, augment=explode), {"image": image}, 3)(state, KEY)
    np.testing.assert_array_equal(means["codes"].total, [3, 0, 1])
    values = derive_vq_vae(means)
    # Not 1, the mean of the batches.
    assert values["perplexity"] == pytest.approx(4 / 3**0.75)
    assert values["dead_codes"] == 1
    assert set(values) >= {"loss", "reconstruction", "commitment"}
    assert derive_vq_vae({"loss": Mean.of(2.0)}) == {"loss": 2.0}


def test_bytes_are_divided_by_255():
    image = np.random.default_rng(0).integers(0, 256, (3, 1, 2, 2), np.uint8)
    learner = learner_of(optax.sgd(0.1))
    state = started(learner, image, [[0.2, 0.2], [0.8, 0.8]])
    results = [
        (
            jax.jit(learner.update)(state, {"image": x}),
            jax.jit(learner.evaluate)(state, {"image": x}, KEY),
        )
        for x in (image, image.astype(np.float32) / 255)
    ]
    (a, b) = ((jax.tree.leaves((u[0].params, u[1], e))) for u, e in results)
    for mine, wanted in zip(a, b, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-6)


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_a_sweep_is_its_runs(codebook):
    def make(h):
        return learner_of(
            optax.sgd(h["learning_rate"]),
            codebook=codebook,
            commitment=h["commitment"],
            decay=h["decay"],
            revive_every=2,
        )

    grid = {
        "learning_rate": jnp.array([0.1, 0.5]),
        "commitment": jnp.array([0.25, 2.0]),
        "decay": jnp.array([0.9, 0.5]),
    }
    batch = {"image": images(0, 3, 1, 2, 2)}
    together = transforms.repeated(transforms.swept(make, grid), 3)
    states, metrics = jax.jit(together.update)(together.init(KEY, batch), batch)
    for point in range(2):
        apart = transforms.repeated(make({k: float(v[point]) for k, v in grid.items()}), 3)
        state, wanted = jax.jit(apart.update)(apart.init(KEY, batch), batch)
        for a, b in zip(
            jax.tree.leaves((states.params, states.memory)),
            jax.tree.leaves((state.params, state.memory)),
            strict=True,
        ):
            np.testing.assert_allclose(a[point], b, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(metrics["loss"].total[:, point], wanted["loss"].total, rtol=1e-4)
    assert (
        np.abs(states.params["encoder"]["scale"][0] - states.params["encoder"]["scale"][1]) > 1e-4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": 0}, r"codes=0\): expected at least 1"),
        ({"commitment": -0.1}, r"commitment=-0.1\): expected at least 0"),
        ({"commitment": float("nan")}, "commitment=nan"),
        ({"decay": 1.0}, r"decay=1.0\): expected a number in \[0, 1\)"),
        ({"decay": -0.1}, r"decay=-0.1\): expected a number in \[0, 1\)"),
        ({"revive_every": 0}, r"revive_every=0\): expected at least 1 update"),
        ({"variance": 0.0}, r"variance=0.0\): expected a positive number"),
        ({"codebook": "kmeans"}, r"codebook='kmeans'\): expected 'ema' or 'gradient'"),
    ],
)
def test_bad_options_are_one_clear_line(options, message):
    with pytest.raises(InputError, match=message) as caught:
        learner_of(**options)
    assert "\n" not in str(caught.value)


def test_a_codebook_larger_than_the_data_is_refused():
    batch = {"image": images(0, 2, 1, 2, 2)}
    fits, larger = learner_of(codes=4), learner_of(codes=5)
    fits.update(fits.init(KEY, batch), batch)
    with pytest.raises(InputError, match=r"codes=5\): more codes than the 4 encoder outputs"):
        larger.update(larger.init(KEY, batch), batch)


@pytest.mark.parametrize("shape", [(2, 4), (2, 2, 2, 0), (1, 2, 2, 2)])
def test_encoders_that_give_no_map_are_refused(shape):
    odd = SCALE._replace(apply=lambda params, model_state, x, **_: (jnp.zeros(shape), model_state))
    batch = {"image": images(0, 2, 1, 2, 2)}
    learner = jitted(vq_vae(odd, SCALE, STILL, codes=1))
    state = learner_of(codes=1).init(KEY, batch)
    for use in (
        lambda: learner.init(KEY, batch),
        lambda: learner.update(state, batch),
        lambda: learner.evaluate(state, batch, KEY),
    ):
        with pytest.raises(InputError, match=r"the encoder gives \(.*expected \[B, h, w, D\]"):
            use()


def test_decoders_that_give_another_shape_are_refused():
    odd = SCALE._replace(apply=lambda params, model_state, x, **_: (x[:, :, :1], model_state))
    batch = {"image": images(0, 2, 1, 2, 2)}
    learner = jitted(vq_vae(SCALE, odd, STILL, codes=1))
    state = learner_of(codes=1).init(KEY, batch)
    for use in (lambda: learner.update(state, batch), lambda: learner.evaluate(state, batch, KEY)):
        with pytest.raises(InputError, match=r"the decoder gives .* for images .* equal shapes"):
            use()
