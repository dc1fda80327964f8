"""Means: that adding comes before dividing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigms.core import metrics
from paradigms.core.metrics import Mean


def test_batches_of_unequal_size_add_to_the_mean_over_examples():
    batches = [(1.0, 4), (1.0, 4), (6.0, 2)]
    total = {}
    for loss, size in batches:
        total = metrics.add(total, {"loss": Mean.of(jnp.full(size, loss))})
    assert metrics.derive(total) == {"loss": 2.0}  # averaging the averages would give 2.67
    assert total["loss"].count == 10


def test_a_mean_covers_every_entry():
    mean = Mean.of(jnp.arange(6).reshape(2, 3))
    assert (mean.total, mean.count) == (15, 6)
    assert mean.total.dtype == mean.count.dtype == jnp.float32
    assert Mean.of(3.0).value() == 3
    assert Mean.of(jnp.array([True, False])).value() == 0.5


def test_weights_are_weights():
    mean = Mean.of(jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 0.5, 0.0]))
    assert (mean.total, mean.count) == (2, 1.5)
    row = Mean.of(jnp.array([[1.0, 2.0], [3.0, 5.0]]), jnp.array([[True], [False]]))
    assert (row.total, row.count) == (3, 2)


def test_bfloat16_is_summed_in_float32():
    assert Mean.of(jnp.ones(1000, jnp.bfloat16)).total == 1000  # bfloat16 stops at 256


@pytest.mark.parametrize("rubbish", [np.nan, np.inf])
def test_what_has_no_weight_does_not_count(rubbish):
    values, mask = jnp.array([1.0, rubbish, 3.0]), jnp.array([1.0, 0.0, 1.0])
    assert Mean.of(values, mask).value() == 2
    gradient = jax.grad(lambda x: Mean.of(x, mask).value())(values)
    np.testing.assert_array_equal(gradient, [0.5, 0, 0.5])


def test_nothing_counted_is_absent_and_not_nan():
    nothing = Mean.of(jnp.ones(3), jnp.zeros(3))
    assert nothing.value() == 0
    assert jax.grad(lambda x: Mean.of(x, jnp.zeros(3)).value())(jnp.ones(3)).tolist() == [0, 0, 0]
    one = Mean.of(5.0)
    assert metrics.derive({"a": nothing, "b": one}) == {"b": 5.0}
    assert metrics.derive({"a": nothing + one}) == {"a": 5.0}
    assert metrics.derive({}) == {}


def test_adding_keeps_what_only_one_side_has():
    first, second = {"a": Mean.of(1.0)}, {"a": Mean.of(3.0), "b": Mean.of(7.0)}
    assert metrics.derive(metrics.add(first, second)) == {"a": 2.0, "b": 7.0}
    assert metrics.derive(metrics.add(second, first)) == {"a": 2.0, "b": 7.0}
    assert metrics.derive(first) == {"a": 1.0}


@pytest.mark.parametrize("axis", [0, 1])
def test_collapsing_is_adding(axis):
    total, count = np.arange(6.0).reshape(2, 3), np.array([[1, 2, 0], [3, 1, 1]])
    stacked = {"loss": Mean(jnp.float32(total), jnp.float32(count))}
    parts = [
        {"loss": Mean(total.take(i, axis), count.take(i, axis))} for i in range(total.shape[axis])
    ]
    added = {}
    for part in parts:
        added = metrics.add(added, part)
    collapsed = metrics.collapse(stacked, axis)["loss"]
    np.testing.assert_array_equal(collapsed.total, added["loss"].total)
    np.testing.assert_array_equal(collapsed.count, added["loss"].count)


def test_arrays_are_ingredients_and_not_numbers():
    confusion = Mean(total=jnp.ones((2, 2)), count=jnp.full((2, 2), 4.0))
    assert metrics.derive({"confusion": confusion, "loss": Mean.of(1.0)}) == {"loss": 1.0}
    np.testing.assert_array_equal((confusion + confusion).value(), np.full((2, 2), 0.25))


def test_a_mean_is_a_pytree():
    means = jax.vmap(lambda x: {"loss": Mean.of(x)})(jnp.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(means["loss"].value(), [0.5, 2.5, 4.5])
    _, stacked = jax.lax.scan(lambda carry, x: (carry, Mean.of(x)), None, jnp.arange(4.0))
    assert metrics.derive(metrics.collapse({"loss": stacked})) == {"loss": 1.5}
