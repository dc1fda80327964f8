"""Replay memories: pure functions on arrays that live in `TrainState.memory`.

`N` environments write side by side into a ring of time steps: an array `[T, N, ...]` of a
trajectory is kept as `[slots, N, ...]` in its own dtype (uint8 frames stay uint8), and the capacity
is `slots * N` transitions. A transition is named by `index = slot * N + environment`.

A sample starts at a stored step and is as long as `n_step` allows. It never reads over the ring's
seam, where the newest step meets the oldest: the newest `n_step - 1` steps can be read, but none
starts there. A memory is written in place where its buffers are donated or carried by a loop, as
long as nothing selects between two versions of it (`lax.cond` becomes such a selection under vmap).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from paradigms.core.errors import InputError
from paradigms.reinforcement.agent import Trajectory

Memory = Any
Batch = dict[str, jax.Array]
Tree = tuple[jax.Array, ...]

# The constant of Schaul et al. 2016, section 3.3: an error of 0 is still revisited.
_EPSILON = 1e-6
# Of a node. A wide tree is shallow: on a CPU eight take a third of the time of two, at 100,000.
_CHILDREN = 8
_REQUIRED = ("obs", "action", "reward", "terminated", "truncated", "final_obs")


class Replay(NamedTuple):
    """A replay memory as functions; `uniform_replay` and `prioritised_replay` make one.

    Attributes:
      capacity: the number of transitions that it holds.
      init: `example -> memory`, empty. `example` is a trajectory, a dict of arrays `[T, N, ...]`
        or their `jax.ShapeDtypeStruct`: only names, shapes and dtypes matter.
      add: `(memory, trajectory) -> memory`, in place of the oldest steps once the ring is full. It
        stores the arrays that the example has. A trajectory must go on where the one before it
        stopped, unless `n_step` is 1.
      size: `memory -> int32 scalar`, how many transitions a sample can start at: `n_step - 1`
        steps of every environment fewer than are stored. While it is 0, `sample` gives rows of
        slot 0 with mass 0, for a learner to mask.
      sample: `(memory, key, batch_size, discount) -> batch`, drawn with replacement. `discount`
        may be traced. With `k <= n_step` the number of steps up to the end of the episode, if it
        is that near, the batch holds
          `reward` float32 `[B]`, the sum of `discount ** j * reward` over the k steps;
          `discount` float32 `[B]`, `discount ** k`, or 0 where the last step terminated;
          `next_obs` `[B, ...]`, `final_obs` of the last step;
          `index` int32 `[B]`, the first step's;
          `mass` float32 `[B]`, in proportion to which it was drawn, for `importance_weights`;
          and `obs`, `action` and whatever else was stored, as it was at the first step.
      update: `(memory, index[B], priority[B]) -> memory`, before the next `add`. A priority below 0
        leaves its transition's alone; does nothing to a uniform memory.

    All raise `InputError` when traced, before anything is computed: for a trajectory that lacks an
    array of the transition contract, differs from the example or has more steps than the ring has
    slots; for a capacity that N does not divide or that is below a batch; for `n_step` above the
    number of slots.
    """

    capacity: int
    init: Callable[[Trajectory], Memory]
    add: Callable[[Memory, Trajectory], Memory]
    size: Callable[[Memory], jax.Array]
    sample: Callable[[Memory, jax.Array, int, float | jax.Array], Batch]
    update: Callable[[Memory, jax.Array, jax.Array], Memory]


class Ring(NamedTuple):
    """Steps in the order in which they came, the oldest overwritten first.

    Attributes:
      data: a dict of arrays `[slots, N, ...]`.
      cursor: int32 scalar, the slot that is written next.
      written: int32 scalar, the number of slots that hold something.
    """

    data: Trajectory
    cursor: jax.Array
    written: jax.Array


class PrioritisedRing(NamedTuple):
    """A ring and the sum tree that it is drawn by.

    Attributes:
      ring: the steps.
      tree: levels float32 `[nodes, 8]`, the lowest first. There row `i` has the transitions
        `8 * i` to `8 * i + 7`, each `priority ** alpha`, or 0 where no sample may start; on every
        other level entry `[i, j]` is the sum of row `8 * i + j` below. The last has one row.
      largest: float32 scalar, the largest priority seen, at least 1.
    """

    ring: Ring
    tree: Tree
    largest: jax.Array


def uniform_replay(capacity: int, *, n_step: int = 1) -> Replay:
    """Every stored transition is as likely as any other (Mnih et al. 2015, "Human-level control").

    A sample costs O(batch) whatever the capacity.

    Args:
      capacity: number of transitions, a multiple of the number of environments.
      n_step: the longest return.
    """
    _check_options("uniform_replay", capacity, n_step)

    def init(example: Trajectory) -> Ring:
        return _empty(example, capacity, n_step)

    def size(ring: Ring) -> jax.Array:
        return _size(ring, n_step)

    def sample(ring: Ring, key: jax.Array, batch_size: int, discount: float | jax.Array) -> Batch:
        _check_batch(ring, batch_size)
        slots, environments = _lengths(ring.data)
        available = size(ring)
        place = jax.random.randint(key, (batch_size,), 0, jnp.maximum(available, 1))
        oldest = (ring.cursor - ring.written) % slots
        index = (oldest * environments + place) % (slots * environments)
        mass = jnp.full(batch_size, available > 0, jnp.float32)
        transitions = _transitions(ring, index, n_step, discount)
        return {**transitions, "index": index, "mass": mass}

    def update(ring: Ring, index: jax.Array, priority: jax.Array) -> Ring:
        del index, priority
        return ring

    return Replay(capacity, init, _write, size, sample, update)


def prioritised_replay(capacity: int, *, n_step: int = 1, alpha: float | jax.Array = 0.6) -> Replay:
    """Proportional prioritised replay (Schaul et al. 2016, arXiv:1511.05952, algorithm 1).

    `P(i) = p_i ** alpha / sum_j p_j ** alpha` (equation 1), where `p_i` is the priority given to
    `update`, usually the size of the temporal-difference error, plus 1e-6, and a new step has the
    largest priority seen. A batch is stratified: its b-th transition is drawn from the b-th of
    `batch_size` equal parts of the total mass (appendix B.2.1). All of it costs O(batch log
    capacity). Float32 resolves a probability to about 2 ** -24: a sixteenth of the average one
    among a million.

    `update` gives an index that turns up twice the larger of its priorities, and leaves those
    alone where no sample may start, or where the new priority is negative.

    Args:
      capacity: number of transitions, a multiple of the number of environments.
      n_step: the longest return.
      alpha: 0 draws uniformly, 1 in proportion to the priority. May be traced.
    """
    _check_options("prioritised_replay", capacity, n_step)

    def init(example: Trajectory) -> PrioritisedRing:
        rows = [-(-capacity // _CHILDREN)]
        while rows[-1] > 1:
            rows.append(-(-rows[-1] // _CHILDREN))
        return PrioritisedRing(
            ring=_empty(example, capacity, n_step),
            tree=tuple(jnp.zeros((n, _CHILDREN), jnp.float32) for n in rows),
            largest=jnp.ones((), jnp.float32),
        )

    def add(memory: PrioritisedRing, trajectory: Trajectory) -> PrioritisedRing:
        ring = _write(memory.ring, trajectory)
        slots, environments = _lengths(ring.data)
        length = len(trajectory["reward"])
        # The steps written now, and those before them that had too few steps behind them so far.
        age = jnp.arange(min(length + n_step - 1, slots))
        slot = (ring.cursor - 1 - age) % slots
        mass = jnp.where(_can_start(ring, age, n_step), memory.largest**alpha, 0.0)
        index = slot[:, None] * environments + jnp.arange(environments)
        tree = _assign(memory.tree, index.ravel(), jnp.repeat(mass, environments))
        return memory._replace(ring=ring, tree=tree)

    def size(memory: PrioritisedRing) -> jax.Array:
        return _size(memory.ring, n_step)

    def sample(
        memory: PrioritisedRing, key: jax.Array, batch_size: int, discount: float | jax.Array
    ) -> Batch:
        _check_batch(memory.ring, batch_size)
        index, mass = _descend(memory.tree, key, batch_size)
        transitions = _transitions(memory.ring, index, n_step, discount)
        return {**transitions, "index": index, "mass": mass}

    def update(memory: PrioritisedRing, index: jax.Array, priority: jax.Array) -> PrioritisedRing:
        chex.assert_rank([index, priority], 1)
        chex.assert_equal_shape([index, priority])
        slots, environments = _lengths(memory.ring.data)
        age = (memory.ring.cursor - 1 - index // environments) % slots
        # A batch drawn before there was anything to draw must leave no trace.
        valid = _can_start(memory.ring, age, n_step) & (priority >= 0)
        priority = jnp.where(valid, priority.astype(jnp.float32) + _EPSILON, 0.0)
        return memory._replace(
            tree=_assign(memory.tree, index, jnp.where(valid, priority**alpha, -1.0)),
            largest=jnp.maximum(memory.largest, priority.max()),
        )

    return Replay(capacity, init, add, size, sample, update)


def importance_weights(mass: jax.Array, beta: float | jax.Array) -> jax.Array:
    """Corrects for drawing unevenly: `(size * P) ** -beta` over its maximum in the batch.

    Schaul et al. 2016, section 3.4. Size and total mass cancel, which leaves
    `(min_j mass_j / mass_i) ** beta`.

    Args:
      mass: float32 `[B]`, as from `Replay.sample`.
      beta: 0 corrects nothing, 1 fully; annealed to 1 in the paper. May be traced.

    Returns:
      float32 `[B]` in [0, 1]: all 1 after uniform sampling, and 0 for `beta > 0` where there was
      nothing to draw.
    """
    chex.assert_rank(mass, 1)
    return (mass.min() / jnp.where(mass > 0, mass, 1.0)) ** beta


def _empty(example: Trajectory, capacity: int, n_step: int) -> Ring:
    if missing := [name for name in _REQUIRED if name not in example]:
        raise InputError(
            f"replay.init: the trajectory has {sorted(example)} and lacks {missing}: give every "
            "array of the transition contract, final_obs being what was seen before a reset"
        )
    length, environments = _lengths(example)
    slots, rest = divmod(capacity, environments)
    if rest:
        raise InputError(
            f"replay.init: a capacity of {capacity} transitions is not a multiple of "
            f"{environments} environments: choose {(slots + 1) * environments}"
        )
    if slots < max(length, n_step):
        raise InputError(
            f"replay.init: a capacity of {capacity} transitions is {slots} steps of "
            f"{environments} environments, below a trajectory of {length} or n_step={n_step}: "
            f"choose at least {max(length, n_step) * environments}"
        )
    data = {
        name: jnp.zeros((slots, *array.shape[1:]), _dtype(array)) for name, array in example.items()
    }
    # Two zeros: arrays that shared a buffer could not be donated.
    return Ring(data, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def _write(ring: Ring, trajectory: Trajectory) -> Ring:
    new = {name: trajectory[name] for name in ring.data if name in trajectory}
    if (given := _steps(new)) != (expected := _steps(ring.data)):
        raise InputError(
            f"replay.add: a step of the trajectory is {given} and the memory was made for "
            f"{expected}: give replay.init an example of what is added"
        )
    (slots, _), (length, _) = _lengths(ring.data), _lengths(new)
    if length > slots:
        raise InputError(
            f"replay.add: a trajectory of {length} steps does not fit {slots} slots: choose a "
            "larger capacity or shorter trajectories"
        )
    slot = (ring.cursor + jnp.arange(length)) % slots
    data = {
        name: stored.at[slot].set(new[name], unique_indices=True, mode="promise_in_bounds")
        for name, stored in ring.data.items()
    }
    return Ring(data, (ring.cursor + length) % slots, jnp.minimum(ring.written + length, slots))


def _can_start(ring: Ring, age: jax.Array, n_step: int) -> jax.Array:
    """Whether samples start at the slots written `age` steps before the newest."""
    return (age >= n_step - 1) & (age < ring.written)


def _size(ring: Ring, n_step: int) -> jax.Array:
    return jnp.maximum(ring.written - (n_step - 1), 0) * _lengths(ring.data)[1]


def _transitions(ring: Ring, index: jax.Array, n_step: int, discount: float | jax.Array) -> Batch:
    """The n-step transitions that start at `index[B]`; see `Replay.sample`."""
    slots, environments = _lengths(ring.data)
    slot, environment = jnp.divmod(index, environments)
    path = (slot[:, None] + jnp.arange(n_step)) % slots

    def along(name: str) -> jax.Array:
        return _take(ring.data[name], path, environment[:, None])

    terminated = along("terminated").astype(bool)
    going = ~(terminated | along("truncated").astype(bool))
    # Step j is used if no step before it ended the episode.
    used = jnp.cumprod(going, axis=1, dtype=jnp.int32)[:, :-1]
    used = jnp.concatenate([jnp.ones_like(index)[:, None], used], axis=1)
    last = used.sum(1) - 1
    powers = jnp.cumprod(jnp.full(n_step, discount, jnp.float32))
    before = jnp.concatenate([jnp.ones(1), powers[:-1]])
    ended = jnp.take_along_axis(terminated, last[:, None], axis=1)[:, 0]
    first = {
        name: _take(array, slot, environment)
        for name, array in ring.data.items()
        if name not in ("reward", "terminated", "truncated", "final_obs")
    }
    return {
        **first,
        "reward": jnp.where(used, before * along("reward"), 0.0).sum(1),
        "discount": jnp.where(ended, 0.0, powers[last]),
        "next_obs": _take(ring.data["final_obs"], (slot + last) % slots, environment),
    }


def _assign(tree: Tree, index: jax.Array, mass: jax.Array) -> Tree:
    """Sets leaves `index[B]` and adds their ancestors up again, which lets no rounding pile up.

    Where the mass is negative the leaf stays as it is.
    """
    leaves, *above = tree
    node, child = jnp.divmod(index, _CHILDREN)
    written = jnp.where(mass >= 0, node, len(leaves))  # a row beyond the last is not written
    # First zero, then the maximum: the same in whatever order a repeated index is written.
    level = leaves.at[written, child].set(0.0).at[written, child].max(mass)
    levels = [level]
    for parents in above:
        total = _take(level, node).sum(-1)
        node, child = jnp.divmod(node, _CHILDREN)
        level = parents.at[node, child].set(total)
        levels.append(level)
    return tuple(levels)


def _descend(tree: Tree, key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Draws leaves in proportion to their mass, one from each `1 / B` of the total.

    Returns:
      Their indices int32 `[B]` and masses float32 `[B]`; leaf 0 where there is no mass at all.
    """
    part = jnp.arange(batch_size) + jax.random.uniform(key, (batch_size,))
    rest = part / batch_size * tree[-1].sum()
    node, mass = jnp.zeros(batch_size, jnp.int32), rest
    for level in reversed(tree):
        masses = _take(level, node)
        sums = [masses[:, 0]]  # of the children so far; jnp.cumsum takes twice as long
        for i in range(1, _CHILDREN):
            sums.append(sums[-1] + masses[:, i])
        upto = jnp.stack(sums, axis=1)
        # Rounding can leave more to walk off than there is: a child of mass 0 is never entered.
        passed = (upto <= rest[:, None]) & (upto < upto[:, -1:])
        child = passed.sum(1, dtype=jnp.int32)
        rest = rest - jnp.where(passed, upto, 0.0).max(1)
        node = node * _CHILDREN + child
        # Taken from what was read already: were the tree read again, XLA could not tell that this
        # comes before the writing of new priorities, and would copy the tree.
        mass = jnp.take_along_axis(masses, child[:, None], axis=1)[:, 0]
    return node, mass


def _take(array: jax.Array, *index: jax.Array) -> jax.Array:
    return array.at[index].get(mode="promise_in_bounds")


def _lengths(trajectory: Trajectory) -> tuple[int, int]:
    """The first two axes, which all arrays share: time (or slots) and environments."""
    axes = {array.shape[:2] for array in trajectory.values()}
    if len(axes) != 1 or len(min(axes)) != 2 or 0 in min(axes):
        raise InputError(
            f"replay: the arrays of a trajectory begin with the axes {sorted(axes)}: give arrays "
            "[T, N, ...] with the same T and N, at least 1"
        )
    length, environments = axes.pop()
    return length, environments


def _steps(trajectory: Trajectory) -> dict[str, str]:
    """Dtype and shape `[N, ...]` of one step of each array."""
    return {name: f"{_dtype(array)}{list(array.shape[1:])}" for name, array in trajectory.items()}


def _dtype(array: jax.Array) -> Any:
    """As the device has it: NumPy's float64 is float32 there."""
    return jax.dtypes.canonicalize_dtype(array.dtype)


def _check_options(name: str, capacity: int, n_step: int) -> None:
    if not 1 <= capacity < 2**30:
        raise InputError(f"{name}: capacity is {capacity}; give 1 to 2**30 - 1 transitions")
    if n_step < 1:
        raise InputError(f"{name}: n_step is {n_step}; give at least 1 step")


def _check_batch(ring: Ring, batch_size: int) -> None:
    slots, environments = _lengths(ring.data)
    capacity = slots * environments
    if not 1 <= batch_size <= capacity:
        raise InputError(
            f"replay.sample: a batch of {batch_size} does not fit a capacity of {capacity} "
            f"transitions: choose a batch from 1 to {capacity} or a larger capacity"
        )
