"""What learning from a replay memory is, whatever is learnt: when, from which transitions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from paradigms.core import metrics as metrics_lib
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Metrics
from paradigms.core.mesh import constrain_batch
from paradigms.core.state import TrainState
from paradigms.reinforcement.agent import Trajectory
from paradigms.reinforcement.replay import Replay

Learn = Callable[
    [TrainState, Batch, jax.Array, jax.Array], tuple[TrainState, Metrics, jax.Array | None]
]
"""`(state, batch, key, number) -> (state, metrics, priority)`: one gradient update on a batch that
`Replay.sample` gave. `number`, int32, is how many there have been before this one, those that the
warm-up left out included. `priority` is for `Replay.update`, `[B]`, or None."""


def practise(
    learn: Learn,
    replay: Replay,
    *,
    discount: float | jax.Array,
    batch_size: int,
    warm_up: int,
    train_every: int,
) -> Callable[[TrainState, Trajectory], tuple[TrainState, Metrics]]:
    """The update of an agent that learns from what it remembers.

    It stores the trajectory in `state.memory` and then calls `learn` once for every `train_every`
    environment steps that the trajectory has taken the world past, whatever the number of
    environments, once the warm-up is over. Where there is nothing to learn no time is spent on it,
    unless runs are trained side by side by vmap, which computes and drops it.

    Args:
      learn: may change everything in the state but its `memory`.
      replay: where transitions are kept.
      discount: of rewards, gamma.
      batch_size: transitions of one gradient update. On a mesh they are divided over the data axes.
      warm_up: environment steps before the first gradient update.
      train_every: environment steps to a gradient update. Below `T * N` an update of the learner
        has several; above it some have none.

    Returns:
      `(state, trajectory) -> (state, metrics)`.

    Raises:
      InputError: an interval below 1, or a warm-up or batch beyond the capacity of the memory.
    """
    if train_every < 1:
        raise InputError(f"train_every={train_every}: expected at least 1 environment step")
    if max(warm_up, batch_size) > replay.capacity:
        raise InputError(
            f"warm_up={warm_up}, batch_size={batch_size}: more than the replay memory's capacity "
            f"of {replay.capacity}; choose a larger one"
        )

    def one(state: TrainState, xs: tuple[jax.Array, ...]) -> tuple[TrainState, Metrics]:
        key, number, fires = xs
        draw_key, learn_key = jax.random.split(key)
        batch = constrain_batch(replay.sample(state.memory, draw_key, batch_size, discount))
        # The memory stays out of the choice, which would copy it.
        memory, rest = state.memory, state.replace(memory=())
        learnt = (rest, batch, learn_key, number)
        _, *reported = jax.eval_shape(learn, *learnt)

        def skip(state: TrainState, *_: Any) -> tuple[TrainState, Metrics, jax.Array | None]:
            metrics, priority = reported
            return state, optax.tree.zeros_like(metrics), optax.tree.full_like(priority, -1)

        rest, metrics, priority = jax.lax.cond(fires, learn, skip, *learnt)
        if priority is not None:
            memory = replay.update(memory, batch["index"], priority)
        return rest.replace(memory=memory), metrics

    def update(state: TrainState, trajectory: Trajectory) -> tuple[TrainState, Metrics]:
        steps = trajectory["reward"].size
        after = state.world["steps"]
        first, end = (after - steps) // train_every, after // train_every
        state = state.replace(memory=replay.add(state.memory, trajectory))

        most = -(-steps // train_every)
        number = first + jnp.arange(most)
        ready = (after >= warm_up) & (replay.size(state.memory) > 0)
        keys = jax.random.split(state.rng("learn"), most)
        state, metrics = jax.lax.scan(one, state, (keys, number, (number < end) & ready))
        return state.replace(step=state.step + 1), metrics_lib.collapse(metrics)

    return update
