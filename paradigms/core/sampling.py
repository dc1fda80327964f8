"""Which examples make up batch number `step`: one order for resident and for streamed data.

The batch is computed from (seed, step), so that resuming needs no iterator, and the order of the
samples depends neither on the mesh nor on the number of processes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradigms.core.errors import InputError
from paradigms.core.state import PyTree, fold_name

# Each round moves an index with probability one half; the tests look at single positions, at
# neighbouring pairs and at fixed points, and cannot tell half as many rounds from a uniform draw.
_ROUNDS = 32


def data_key(key: jax.Array) -> jax.Array:
    """The key that orders the data of the run whose seed is `key` (`TrainState.key`)."""
    return fold_name(key, "data")


def permute(key: jax.Array, position: jax.Array, size: int) -> jax.Array:
    """Looks up a pseudo-random permutation of `range(size)` without building it.

    The swap-or-not shuffle (Hoang, Morris and Rogaway, "An enciphering scheme based on a card
    shuffle", CRYPTO 2012): in each round an index either stays or swaps with its mirror image
    `(k - x) mod size`, and a hash that both of them share decides. It is a bijection for every size
    and costs O(batch) where sorting random numbers costs O(size log size) a step.

    Args:
      key: typed PRNG key that names the permutation.
      position: int32 array, each in `[0, size)`.
      size: length of the permutation, below 2**31.

    Returns:
      int32 array of the shape of `position`.
    """
    offsets, salts = jax.random.bits(key, (2, _ROUNDS), jnp.uint32)
    offsets = offsets % jnp.uint32(size)

    def swap_or_not(round_index: jax.Array, index: jax.Array) -> jax.Array:
        mirror = (offsets[round_index] + jnp.uint32(size) - index) % jnp.uint32(size)
        swap = _mix(jnp.maximum(index, mirror) ^ salts[round_index]) >> 31
        return jnp.where(swap == 1, mirror, index)

    # Four rounds to a turn of the loop: all in one kernel they take a second to compile.
    index = position.astype(jnp.uint32)
    index = jax.lax.fori_loop(0, _ROUNDS, swap_or_not, index, unroll=4)
    return index.astype(jnp.int32)


def batch_indices(key: jax.Array, step: jax.Array, size: int, batch_size: int) -> jax.Array:
    """The examples of batch number `step`, without replacement within an epoch.

    Batches are full: the `size % batch_size` examples at the end of an epoch's permutation are left
    out of it, and each epoch has a permutation of its own.

    Args:
      key: typed PRNG key, see `data_key`.
      step: int32 scalar, counted from 0 over all epochs.
      size: number of examples.
      batch_size: number of examples in the global batch.

    Returns:
      int32 `[batch_size]`, distinct indices in `[0, size)`.

    Raises:
      InputError: the batch is empty or larger than the data set.
    """
    if not 1 <= batch_size <= size:
        raise InputError(
            f"batch size {batch_size} does not fit a data set of {size} examples: "
            f"choose a batch size from 1 to {size}"
        )
    steps_per_epoch = size // batch_size
    epoch, batch = jnp.divmod(jnp.asarray(step, jnp.int32), steps_per_epoch)
    position = batch * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    return permute(jax.random.fold_in(key, epoch), position, size)


def cycled_indices(key: jax.Array, step: jax.Array, size: int, batch_size: int) -> jax.Array:
    """`batch_indices` for a data set that may be smaller than the batch.

    Such a batch holds whole permutations of the set, and the first part of another.

    Args:
      key: as for `batch_indices`.
      step: likewise.
      size: number of examples.
      batch_size: number of examples in the global batch, larger or smaller.

    Returns:
      int32 `[batch_size]`, indices in `[0, size)`; none comes two times more often than another.

    Raises:
      InputError: the batch is empty.
    """
    if batch_size <= size:
        return batch_indices(key, step, size, batch_size)
    rounds = -(-batch_size // size)
    first = jnp.asarray(step, jnp.int32) * rounds
    index = [batch_indices(key, first + i, size, size) for i in range(rounds)]
    return jnp.concatenate(index)[:batch_size]


def common_length(data: PyTree, where: str) -> int:
    """The number of examples in a data set, a tree of arrays `[N, ...]`.

    Args:
      data: the arrays.
      where: who asks, for the message.

    Raises:
      InputError: there is no example, or the arrays do not have equally many.
    """

    def length(leaf: Any) -> int | None:
        return np.shape(leaf)[0] if np.ndim(leaf) else None

    lengths = {
        jax.tree_util.keystr(path, simple=True, separator="/"): length(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(data)
    }
    size = min((n or 0 for n in lengths.values()), default=0)
    if size < 1 or set(lengths.values()) != {size}:
        raise InputError(
            f"{where}: expected arrays of one length, one row per example, got lengths {lengths}"
        )
    return size


def _mix(x: jax.Array) -> jax.Array:
    """A 32-bit finaliser (constants of MurmurHash3): every input bit reaches the top bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
