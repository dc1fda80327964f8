"""The exponential moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigms.core.ema import ema, follow
from paradigms.core.errors import InputError


def test_a_hundred_steps_from_zero_towards_one():
    average = {"w": jnp.zeros(3)}
    for _ in range(100):
        average = ema(average, {"w": jnp.ones(3)}, 0.99)
    np.testing.assert_allclose(average["w"], 1 - 0.99**100, rtol=1e-5)
    np.testing.assert_allclose(average["w"], 0.63397, atol=1e-5)


@pytest.mark.parametrize(("decay", "expected"), [(0.0, 0.3), (1.0, 0.1)])
def test_the_ends_are_exact(decay, expected):
    # `old + (1 - decay) * (new - old)` would miss the new value by a rounding.
    result = ema(jnp.float32(0.1), jnp.float32(0.3), decay)
    assert result == jnp.float32(expected)


def test_what_is_not_a_float_is_copied():
    old = {"count": jnp.int32(3), "on": jnp.array(False), "key": jax.random.key(0)}
    new = {"count": jnp.int32(9), "on": jnp.array(True), "key": jax.random.key(1)}
    result = ema(old, new, 0.5)
    assert result["count"] == 9 and result["count"].dtype == jnp.int32
    assert result["on"] and result["key"] == jax.random.key(1)


def test_the_dtype_of_the_average_is_kept_and_sums_are_float32():
    old, new = jnp.ones(2), jnp.full(2, 2.0, jnp.bfloat16)
    result = ema(old, new, 0.999)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, 1.001, rtol=1e-6)  # bfloat16 would give 1
    assert ema(new, old, 0.5).dtype == jnp.bfloat16


def test_a_traced_decay_keeps_shapes_dtypes_and_weak_types():
    average = {"w": jnp.zeros(2), "n": jnp.int32(0)}
    mapped = jax.vmap(lambda decay: ema(average, {"w": jnp.ones(2), "n": jnp.int32(1)}, decay))
    np.testing.assert_allclose(mapped(jnp.array([0.0, 0.25]))["w"][:, 0], [1.0, 0.75])
    spec = jax.eval_shape(lambda tree: ema(tree, tree, 0.9), average)
    assert jax.tree.map(_signature, spec) == jax.tree.map(_signature, jax.eval_shape(dict, average))


def _signature(leaf):
    return leaf.shape, leaf.dtype, leaf.weak_type


@pytest.mark.parametrize(
    ("value", "decay", "words"),
    [
        ({"w": jnp.ones(2)}, 1.5, "decay"),
        ({"w": jnp.ones(2)}, -0.1, "decay"),
        ({"w": jnp.ones(2)}, float("nan"), "decay"),
        ({"v": jnp.ones(2)}, 0.9, "cannot take in"),
        ({"w": jnp.ones(1)}, 0.9, "'w' has shape"),  # would broadcast
    ],
)
def test_bad_input_is_one_line(value, decay, words):
    with pytest.raises(InputError, match=words) as caught:
        ema({"w": jnp.ones(2)}, value, decay)
    assert "\n" not in str(caught.value)


def test_a_teacher_follows_weights_and_keeps_the_statistics_of_its_own_pass():
    teacher = {"params": {"w": jnp.array([1.0, 2.0])}, "model_state": {"mean": jnp.array(5.0)}}
    after = follow(teacher, {"w": jnp.array([3.0, 0.0])}, {"mean": jnp.array(7.0)}, 0.75)
    np.testing.assert_allclose(after["params"]["w"], [1.5, 1.5])
    assert after["model_state"]["mean"] == 7
