"""What DDPG, TD3 and SAC share: an actor, several critics that pull at it, and slow copies.

They work in actions scaled to [-1, 1]; the environment and the replay memory have them in its own
units.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nets.net import Net
from paradigms.core.learner import Batch, Metrics, descend_net
from paradigms.core.metrics import Mean
from paradigms.core.state import PyTree, TrainState, fold_name
from paradigms.reinforcement.environment import Box
from paradigms.reinforcement.policies import unscale
from paradigms.reinforcement.replay import importance_weights


def pessimistic_target(reward: jax.Array, discount: jax.Array, q_next: jax.Array) -> jax.Array:
    """`r + discount * min q_next`, float32 `[B]` (Fujimoto et al. 2018, equation 10).

    An actor finds the errors of a critic; those that all critics make are fewer.

    Args:
      reward: `[B]`.
      discount: `[B]`, 0 after an end.
      q_next: `[M, B]`, what M target critics say of the next action.
    """
    return reward + discount * q_next.min(0)


def critic_loss(q: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """The squared errors of M critics, added up: a scalar, without a half.

    Args:
      q: `[M, B]`.
      target: `[B]`, through which no gradient flows.
      weight: `[B]`, as from `importance_weights`.
    """
    return (weight * jnp.square(jax.lax.stop_gradient(target) - q)).sum(0).mean()


def create(
    key: jax.Array,
    example: Batch,
    nets: dict[str, Net],
    optimizers: dict[str, optax.GradientTransformation],
) -> TrainState:
    """A fresh state with the nets "actor" and "critic".

    Args:
      key: of the run.
      example: a trajectory, arrays `[T, N, ...]`.
      nets: by name; the actor takes observations, the critic observations and actions.
      optimizers: with the same names.
    """
    inputs = {
        "actor": (example["obs"][0],),
        "critic": (example["obs"][0], example["action"][0]),
    }
    started = {name: net.init(fold_name(key, name), *inputs[name]) for name, net in nets.items()}
    params = {name: variables[0] for name, variables in started.items()}
    return TrainState.create(
        key,
        params,
        opt_state={name: optimizers[name].init(tree) for name, tree in params.items()},
        model_state={name: variables[1] for name, variables in started.items()},
    )


def weights_of(state: TrainState, name: str) -> dict[str, Any]:
    """Parameters and model state of one net, as `state.target` has them."""
    return {"params": state.params[name], "model_state": state.model_state[name]}


def answer(net: Net, weights: dict[str, Any], *inputs: jax.Array) -> Any:
    """What a net with these weights gives when it is not in training."""
    return net.apply(weights["params"], weights["model_state"], *inputs)[0]


def uniform_before(warm_up: int, state: TrainState, key: jax.Array, action: jax.Array) -> jax.Array:
    """`action`, or while the world has done fewer than `warm_up` steps a random one in [-1, 1]."""
    random = jax.random.uniform(key, action.shape, action.dtype, -1, 1)
    return jnp.where(state.world["steps"] < warm_up, random, action)


def critic_step(
    state: TrainState,
    critics: Net,
    optimizer: optax.GradientTransformation,
    actions: Box,
    batch: Batch,
    target: jax.Array,
    key: jax.Array,
) -> tuple[TrainState, Metrics, jax.Array]:
    """Moves all critics towards `target[B]` on a batch of `Replay.sample`.

    Returns:
      `(state, metrics, error[B])`, the error being the mean of the critics' absolute ones.
    """
    weight = importance_weights(batch["mass"], 1.0)
    action = unscale(batch["action"], actions.low, actions.high)
    model_state = state.model_state["critic"]

    def loss_of(params: PyTree) -> tuple[jax.Array, tuple[Any, PyTree]]:
        q, updated = critics.apply(params, model_state, batch["obs"], action, key=key, train=True)
        loss = critic_loss(q, target, weight)
        return loss, ((loss, q), updated)

    state, (loss, q), norms = descend_net(state, "critic", loss_of, optimizer)
    error = jnp.abs(target - q).mean(0)
    means = {"loss/critic": Mean.of(loss), "q": Mean.of(q), "error": Mean.of(error)}
    return state, {**means, **norms}, error


def every(
    interval: int,
    number: jax.Array,
    step: Callable[[TrainState], tuple[TrainState, Metrics]],
    state: TrainState,
) -> tuple[TrainState, Metrics]:
    """Calls `step` at the last of every `interval` gradient updates, counted by `number` from 0.

    Its metrics are absent at the others.
    """
    if interval == 1:
        return step(state)

    def wait(state: TrainState) -> tuple[TrainState, Metrics]:
        _, metrics = jax.eval_shape(step, state)
        return state, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metrics)

    return jax.lax.cond((number + 1) % interval == 0, step, wait, state)
