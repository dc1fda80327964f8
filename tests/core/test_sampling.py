"""The order of the data: a permutation, a new one each epoch, and none likelier than another."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from paradigms.core.errors import InputError
from paradigms.core.sampling import (
    batch_indices,
    common_length,
    cycled_indices,
    data_key,
    permute,
)

KEY = jax.random.key(0)

# With fixed keys a test fails for ever or never; one in ten thousand is suspicious enough.
SUSPICIOUS = 1e-4


@functools.partial(jax.jit, static_argnames="size")
def permutation(key, size):
    return permute(key, jnp.arange(size, dtype=jnp.int32), size)


@functools.partial(jax.jit, static_argnames=("size", "batch_size"))
def batches(key, steps, size, batch_size):
    return jax.vmap(lambda step: batch_indices(key, step, size, batch_size))(steps)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 97, 1000, 50_000])
def test_it_is_a_bijection(size):
    for seed in range(2):
        order = permutation(jax.random.key(seed), size)
        assert order.dtype == jnp.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_a_large_size_does_not_overflow():
    size = 2**31 - 1
    position = jnp.array([0, 1, 2, size - 2, size - 1], jnp.int32)
    index = np.asarray(permute(KEY, position, size))
    assert (index >= 0).all() and (index < size).all() and len(set(index.tolist())) == 5


@pytest.mark.parametrize(("size", "batch_size"), [(10, 3), (10, 10), (7, 1), (100, 33)])
def test_no_example_twice_in_an_epoch(size, batch_size):
    per_epoch = size // batch_size
    drawn = np.asarray(batches(KEY, jnp.arange(3 * per_epoch), size, batch_size))
    assert drawn.dtype == np.int32 and drawn.shape == (3 * per_epoch, batch_size)
    epochs = drawn.reshape(3, per_epoch * batch_size)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == per_epoch * batch_size
        assert epoch.min() >= 0 and epoch.max() < size


def test_all_epochs_and_seeds_differ():
    orders = {
        tuple(order.tolist())
        for seed in range(3)
        for order in np.asarray(batches(jax.random.key(seed), jnp.arange(50), 30, 30))
    }
    assert len(orders) == 150


def test_what_an_epoch_leaves_out_changes():
    epochs = np.asarray(batches(KEY, jnp.arange(300), 10, 3)).reshape(100, 9)
    left_out = [set(range(10)) - set(epoch.tolist()) for epoch in epochs]
    assert set.union(*left_out) == set(range(10))


def test_the_batch_depends_on_seed_and_step_alone():
    expected = np.asarray(batch_indices(KEY, jnp.int32(17), 100, 8))
    jitted = jax.jit(batch_indices, static_argnums=(2, 3))
    for step in (17, np.int32(17), np.int64(17), jnp.int32(17)):
        np.testing.assert_array_equal(batch_indices(KEY, step, 100, 8), expected)
    np.testing.assert_array_equal(jitted(KEY, 17, 100, 8), expected)
    keys = jnp.stack([jax.random.key(1), KEY])
    mapped = jax.vmap(lambda key, step: batch_indices(key, step, 100, 8))(keys, jnp.array([3, 17]))
    np.testing.assert_array_equal(mapped[1], expected)
    _, scanned = jax.lax.scan(
        lambda step, _: (step + 1, batch_indices(KEY, step, 100, 8)), jnp.int32(16), length=2
    )
    np.testing.assert_array_equal(scanned[1], expected)
    # Another order would be another experiment, and old runs could not resume.
    assert expected.tolist() == [84, 71, 11, 45, 6, 20, 81, 91]


def test_the_order_has_a_key_of_its_own():
    assert data_key(KEY) != KEY
    assert data_key(KEY) == data_key(jax.random.key(0))


def p_value(counts, expected):
    counts, expected = np.ravel(counts), np.ravel(expected)
    np.testing.assert_allclose(expected.sum(), counts.sum(), rtol=1e-6)
    return stats.chisquare(counts, expected).pvalue


@pytest.fixture(scope="module", params=["epochs of one run", "seeds"])
def many(request):
    """6,000 permutations of 10, as they follow on each other in training."""
    if request.param == "seeds":
        keys = jax.vmap(jax.random.key)(jnp.arange(6000))
        return np.asarray(jax.vmap(lambda key: permutation(key, 10))(keys))
    return np.asarray(batches(data_key(KEY), jnp.arange(6000), 10, 10))


def test_every_position_gets_every_example_equally_often(many):
    counts = np.stack([np.bincount(column, minlength=10) for column in many.T])
    # Rows and columns have fixed sums, which leaves 81 degrees of freedom of the 99.
    statistic = ((counts - 600) ** 2 / 600).sum()
    assert SUSPICIOUS < stats.chi2.sf(statistic, 81) < 1 - SUSPICIOUS


def test_neighbours_are_unrelated(many):
    for gap in (1, 2, 5):
        difference = (many[:, gap] - many[:, 0]) % 10
        counts = np.bincount(difference, minlength=10)
        assert counts[0] == 0
        assert p_value(counts[1:], np.full(9, 6000 / 9)) > SUSPICIOUS
    pairs = np.bincount(many[:, 0] * 10 + many[:, 1], minlength=100).reshape(10, 10)
    off_diagonal = pairs[~np.eye(10, dtype=bool)]
    assert p_value(off_diagonal, np.full(90, 6000 / 90)) > SUSPICIOUS


def test_fixed_points_are_as_frequent_as_chance_has_them(many):
    fixed = np.bincount((many == np.arange(10)).sum(1), minlength=11)
    derangements = [
        sum((-1) ** i * math.factorial(n) // math.factorial(i) for i in range(n + 1))
        for n in range(11)
    ]
    chance = np.array([math.comb(10, k) * derangements[10 - k] for k in range(11)])
    expected = 6000 * chance / math.factorial(10)
    assert p_value([*fixed[:4], fixed[4:].sum()], [*expected[:4], expected[4:].sum()]) > SUSPICIOUS


def test_successive_epochs_are_unrelated():
    """A position's example in one epoch says nothing about its example in the next."""
    drawn = np.asarray(batches(KEY, jnp.arange(6000), 10, 10))[:, 0]
    counts = np.bincount(drawn[:-1] * 10 + drawn[1:], minlength=100)
    assert p_value(counts, np.full(100, 5999 / 100)) > SUSPICIOUS


def test_every_permutation_of_four_comes_equally_often():
    keys = jax.vmap(jax.random.key)(jnp.arange(12_000))
    orders = np.asarray(jax.vmap(lambda key: permutation(key, 4))(keys))
    counts = np.bincount(orders @ np.array([64, 16, 4, 1]), minlength=256)
    assert (counts > 0).sum() == 24
    assert p_value(counts[counts > 0], np.full(24, 500.0)) > SUSPICIOUS


def test_a_long_permutation_mixes_near_and_far():
    """Of 1,000 examples: where halves, neighbours and residues of the first 100 positions go."""
    keys = jax.vmap(jax.random.key)(jnp.arange(200))
    orders = np.asarray(jax.vmap(lambda key: permutation(key, 1000))(keys))
    gaps = np.diff(orders, axis=1)[:, ::2] % 1000  # every second, so that none shares an example
    assert p_value(np.bincount((gaps.ravel() - 1) // 111, minlength=9), np.full(9, 1e5 / 9)) > (
        SUSPICIOUS
    )
    # How many of the first half land in the first half: hypergeometric.
    stayed = (orders[:, :500] < 500).sum(1)
    expected = stats.hypergeom(1000, 500, 500)
    z = (stayed.mean() - 250) / (expected.std() / np.sqrt(200))
    assert abs(z) < 4
    assert 0.7 < stayed.std() / expected.std() < 1.3


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_a_batch_must_fit_the_set(batch_size):
    with pytest.raises(InputError, match=f"batch size {batch_size} .* 10 examples.*from 1 to 10"):
        batch_indices(KEY, 0, 10, batch_size)


def test_a_set_has_one_length():
    tree = {"labelled": {"x": np.zeros((3, 2)), "y": jnp.zeros(3)}}
    assert common_length(tree, "here") == 3
    for bad, words in (
        ({"x": np.zeros(3), "y": np.zeros(4)}, "here: .*'x': 3, 'y': 4"),
        ({"x": np.zeros(3), "y": 1.0}, "'y': None"),
        ({"x": np.zeros((0, 2))}, "'x': 0"),
        ({}, "lengths {}"),
    ):
        with pytest.raises(InputError, match=words):
            common_length(bad, "here")


def test_a_set_smaller_than_the_batch_is_gone_through_in_turn():
    draw = jax.jit(lambda step: cycled_indices(KEY, step, 5, 13))
    drawn = np.stack([draw(step) for step in range(40)])
    assert drawn.shape == (40, 13) and drawn.dtype == np.int32
    for row in drawn:
        for start in (0, 5):
            np.testing.assert_array_equal(np.sort(row[start : start + 5]), np.arange(5))
        assert len(set(row[10:])) == 3
    # Permutations change within a batch and from one to the next.
    rounds = {tuple(row[start : start + 5]) for row in drawn for start in (0, 5)}
    assert len(rounds) > 40
    # Who comes once more is everyone in turn.
    counts = np.bincount(drawn[:, 10:].ravel(), minlength=5)
    assert stats.chisquare(counts).pvalue > SUSPICIOUS


def test_a_larger_set_is_drawn_as_ever():
    for step in (0, 3, 7):
        np.testing.assert_array_equal(
            cycled_indices(KEY, step, 20, 6), batch_indices(KEY, step, 20, 6)
        )
