"""The train state that every learner of every paradigm shares."""

import zlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from paradigms.core import threefry

PyTree = Any

# Here, for whatever is learnt has a state, and draws its random numbers from it.
threefry.write_out()


def fold_name(key: jax.Array, name: str) -> jax.Array:
    """A key of its own for the stream called `name`, the same in every process and version."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


class TrainState(flax.struct.PyTreeNode):
    """All that a run is, as one pytree of arrays: never functions, never optimisers.

    Whatever can be done to a pytree (map, shard, donate, save, stack over seeds) can therefore be
    done to a run.

    Attributes:
      step: int32 scalar, the number of updates done.
      key: typed PRNG key, the seed of the run. It is never overwritten: see `rng`.
      params: what gradients are taken of; a dict of trees where there are several networks.
      opt_state: optax state, or a dict with the same names as `params`.
      model_state: network variables without gradients (batch statistics).
      target: slow copies by name, each `{"params": ..., "model_state": ...}`, and what a wrapper of
        the learner keeps beside it.
      memory: what outlives a batch: replay ring, queue, per-example statistics.
      world: environment states, normaliser statistics, recurrent carries.
      hparams: hyperparameters under a sweep, as arrays; `()` where nothing is swept.
    """

    step: jax.Array
    key: jax.Array
    params: PyTree
    opt_state: PyTree = ()
    model_state: PyTree = ()
    target: PyTree = flax.struct.field(default_factory=dict)
    memory: PyTree = ()
    world: PyTree = ()
    hparams: PyTree = ()

    @classmethod
    def create(cls, key: jax.Array, params: PyTree, **fields: PyTree) -> "TrainState":
        """A state at step 0, with a copy of `key`, so that donating the state leaves the key."""
        return cls(step=jnp.zeros((), jnp.int32), key=jnp.copy(key), params=params, **fields)

    def rng(self, name: str) -> jax.Array:
        """The key of stream `name` at this step: a function of (seed, step, name) alone.

        Randomness that is a function of the step needs nothing saved to be resumed, and two streams
        never share a key by accident.
        """
        return fold_name(jax.random.fold_in(self.key, self.step), name)
