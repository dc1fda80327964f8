"""The train state: arrays only, and streams of random numbers that never meet."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigms.core.state import TrainState, fold_name


def at_step(step, seed=0):
    state = TrainState.create(jax.random.key(seed), {"w": jnp.ones(2)})
    return state.replace(step=jnp.int32(step))


def number(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_a_new_state_is_at_step_0():
    state = TrainState.create(jax.random.key(3), {"w": jnp.ones(2)}, memory={"queue": jnp.zeros(4)})
    assert state.step == 0 and state.step.dtype == jnp.int32 and state.step.shape == ()
    assert not state.step.weak_type
    assert state.key == jax.random.key(3)
    assert state.memory["queue"].shape == (4,)
    assert (state.opt_state, state.model_state, state.world, state.hparams) == ((), (), (), ())
    assert state.target == {}


def test_every_leaf_is_an_array():
    state = at_step(0)
    leaves = jax.tree.leaves(state)
    assert len(leaves) == 3 and all(isinstance(leaf, jax.Array) for leaf in leaves)
    with pytest.raises(AttributeError):
        state.step = 1  # frozen


def test_targets_are_not_shared_between_states():
    first, second = at_step(0), at_step(0)
    assert first.target is not second.target


def test_donating_a_state_leaves_the_callers_key():
    key = jax.random.key(0)
    state = TrainState.create(key, {"w": jnp.ones(2)})
    jax.jit(lambda state: state.replace(step=state.step + 1), donate_argnums=0)(state)
    assert state.key.is_deleted() and not key.is_deleted()


def test_a_stream_is_a_function_of_seed_step_and_name():
    keys = {
        number(at_step(step, seed).rng(name))
        for seed in range(3)
        for step in range(4)
        for name in ("augment", "net", "mix", "")
    }
    assert len(keys) == 3 * 4 * 4
    assert number(at_step(2).rng("net")) == number(at_step(2).rng("net"))
    assert number(jax.jit(lambda state: state.rng("net"))(at_step(2))) == number(
        at_step(2).rng("net")
    )


def test_a_stream_reads_nothing_but_seed_and_step():
    state = at_step(2)
    other = state.replace(params={"w": jnp.zeros(2)}, memory=jnp.ones(3), opt_state=jnp.ones(1))
    assert number(state.rng("net")) == number(other.rng("net"))


def test_streams_are_the_same_in_every_process():
    """Python's own `hash` of a name differs from process to process."""
    key = jax.random.key(0)
    assert number(fold_name(key, "data")) == number(jax.random.fold_in(key, zlib.crc32(b"data")))
    assert zlib.crc32(b"data") == 0xADF3F363
    expected = jax.random.fold_in(jax.random.fold_in(key, 5), zlib.crc32(b"net"))
    assert number(at_step(5).rng("net")) == number(expected)


def test_states_stack_into_runs():
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(lambda key: TrainState.create(key, jax.random.normal(key, (2,))))(keys)
    assert states.step.shape == states.key.shape == (3,)
    streams = jax.vmap(lambda state: state.rng("net"))(states)
    assert number(streams[1]) == number(TrainState.create(keys[1], jnp.ones(2)).rng("net"))
