"""Deterministic policy gradients: TD3, and DDPG, which it grew from."""

import jax
import jax.numpy as jnp
import optax

from nets.net import Net, ensemble
from paradigms.core.ema import ema
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, descend_net
from paradigms.core.metrics import Mean
from paradigms.core.scalars import Scalar, Scheduled, current
from paradigms.core.state import PyTree, TrainState
from paradigms.reinforcement.actor_critic import (
    answer,
    create,
    critic_step,
    every,
    pessimistic_target,
    uniform_before,
    weights_of,
)
from paradigms.reinforcement.agent import Agent
from paradigms.reinforcement.environment import Box
from paradigms.reinforcement.off_policy import practise
from paradigms.reinforcement.policies import check_bounds, rescale
from paradigms.reinforcement.replay import Replay


def td3(
    actor: Net,
    critic: Net,
    actor_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
    replay: Replay,
    *,
    actions: Box,
    exploration: Scheduled = 0.1,
    discount: Scalar = 0.99,
    decay: Scalar = 0.995,
    batch_size: int = 256,
    warm_up: int = 25_000,
    train_every: int = 1,
    critics: int = 2,
    policy_every: int = 2,
    target_noise: Scalar = 0.2,
    noise_clip: Scalar = 0.5,
) -> Agent:
    """Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, algorithm 1).

    Critics are trained towards `r + discount * min Q'(s', a')`, where `a'` is the target actor's
    action with clipped noise; every second time the actor climbs the first critic and the target
    nets follow. All of it in actions scaled to [-1, 1]; noise is in these units.

    Args:
      actor: `obs[B, ...] -> action[B, D]` in [-1, 1].
      critic: `(obs[B, ...], action[B, D]) -> q[B]`; `critics` of them are made.
      actor_optimizer: of the actor.
      critic_optimizer: of all critics.
      replay: where transitions are kept. The bias of a prioritised one is corrected in full.
      actions: of the environment, with finite bounds.
      exploration: standard deviation of the noise on actions, or a schedule of environment steps.
      discount: gamma.
      decay: of the target nets, which are moving averages; 1 - tau.
      batch_size: transitions of one gradient update.
      warm_up: environment steps before the first gradient update, with uniform actions.
      train_every: environment steps to a gradient update; see `practise`.
      critics: how many.
      policy_every: gradient updates of the critics to one of the actor and the target nets.
      target_noise: standard deviation of the noise on the target actor's actions.
      noise_clip: its bound.

    Returns:
      An agent that reports `loss/critic`, `loss/actor`, the mean `q` of the transitions, the
      absolute `error`, and the norms of `descend` of both nets.

    Raises:
      InputError: infinite action bounds, or a number that `practise` or `ensemble` refuses.
    """
    check_bounds(actions.low, actions.high)
    if policy_every < 1:
        raise InputError(f"td3(policy_every={policy_every}): expected at least 1")
    twins = ensemble(critic, critics)
    networks = {"actor": actor, "critic": twins}
    optimizers = {"actor": actor_optimizer, "critic": critic_optimizer}

    def init(key: jax.Array, example: Batch) -> TrainState:
        state = create(key, example, networks, optimizers)
        # A copy, because one buffer under two names cannot be donated.
        target = jax.tree.map(jnp.copy, {name: weights_of(state, name) for name in networks})
        return state.replace(target=target, memory=replay.init(example))

    def act(
        state: TrainState, obs: jax.Array, carry: PyTree, key: jax.Array, explore: bool
    ) -> tuple[jax.Array, dict[str, jax.Array], PyTree]:
        action, _ = actor.apply(state.params["actor"], state.model_state["actor"], obs)
        if explore:
            noise_key, random_key = jax.random.split(key)
            scale = current(exploration, state.world["steps"])
            noise = scale * jax.random.normal(noise_key, action.shape)
            action = jnp.clip(action + noise, -1, 1)
            action = uniform_before(warm_up, state, random_key, action)
        return rescale(action, actions.low, actions.high), {}, carry

    def target_of(state: TrainState, batch: Batch, key: jax.Array) -> jax.Array:
        action = answer(actor, state.target["actor"], batch["next_obs"])
        noise = target_noise * jax.random.normal(key, action.shape)
        action = jnp.clip(action + jnp.clip(noise, -noise_clip, noise_clip), -1, 1)
        q_next = answer(twins, state.target["critic"], batch["next_obs"], action)
        return pessimistic_target(batch["reward"], batch["discount"], q_next)

    def actor_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        critic_weights = weights_of(state, "critic")

        def loss_of(params: PyTree) -> tuple[jax.Array, tuple[jax.Array, PyTree]]:
            action, model_state = actor.apply(
                params, state.model_state["actor"], batch["obs"], key=key, train=True
            )
            loss = -answer(twins, critic_weights, batch["obs"], action)[0].mean()
            return loss, (loss, model_state)

        state, loss, norms = descend_net(state, "actor", loss_of, actor_optimizer)
        online = {name: weights_of(state, name) for name in networks}
        state = state.replace(target=ema(state.target, online, decay))
        return state, {"loss/actor": Mean.of(loss), **norms}

    def learn(
        state: TrainState, batch: Batch, key: jax.Array, number: jax.Array
    ) -> tuple[TrainState, Metrics, jax.Array]:
        target_key, critic_key, actor_key = jax.random.split(key, 3)
        target = target_of(state, batch, target_key)
        state, of_critics, error = critic_step(
            state, twins, critic_optimizer, actions, batch, target, critic_key
        )
        state, of_actor = every(
            policy_every, number, lambda state: actor_step(state, batch, actor_key), state
        )
        return state, {**of_critics, **of_actor}, error

    update = practise(
        learn,
        replay,
        discount=discount,
        batch_size=batch_size,
        warm_up=warm_up,
        train_every=train_every,
    )
    return Agent(Learner(init, update, evaluate=lambda state, batch, key: {}), act, actions)
