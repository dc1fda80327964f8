"""Soft actor-critic."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from nets.net import Net, ensemble
from paradigms.core.ema import ema
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, descend_net
from paradigms.core.metrics import Mean
from paradigms.core.scalars import Scalar
from paradigms.core.state import PyTree, TrainState
from paradigms.reinforcement.actor_critic import (
    answer,
    create,
    critic_step,
    pessimistic_target,
    uniform_before,
    weights_of,
)
from paradigms.reinforcement.agent import Agent
from paradigms.reinforcement.environment import Box
from paradigms.reinforcement.off_policy import practise
from paradigms.reinforcement.policies import TanhGaussian, check_bounds, rescale
from paradigms.reinforcement.replay import Replay


def temperature_loss(log_temperature: jax.Array, entropy: Scalar, target: Scalar) -> jax.Array:
    """`alpha * (entropy - target)`, whose gradient raises alpha where entropy is below its target.

    Haarnoja et al. 2018 (arXiv:1812.05905), equation 18, as a function of log alpha, which keeps
    alpha positive. `entropy` is a constant.
    """
    return jnp.exp(log_temperature) * (jax.lax.stop_gradient(entropy) - target)


def sac(
    actor: Net,
    critic: Net,
    actor_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
    replay: Replay,
    *,
    actions: Box,
    temperature: Scalar = 1.0,
    temperature_optimizer: optax.GradientTransformation | None = None,
    target_entropy: Scalar | None = None,
    discount: Scalar = 0.99,
    decay: Scalar = 0.995,
    batch_size: int = 256,
    warm_up: int = 10_000,
    train_every: int = 1,
    critics: int = 2,
) -> Agent:
    """Soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905, algorithm 1).

    The actor maximises return plus `temperature` times entropy. Critics are trained towards
    `r + discount * (min Q'(s', a') - temperature * log p(a'|s'))` with the actor's own draw `a'`
    (equations 5 to 7), the actor descends `temperature * log p(a|s) - min Q(s, a)` (equation 9),
    and the temperature, if it is learnt, keeps the entropy at its target (equation 18). All of it
    in actions scaled to [-1, 1]; entropies are in nats and in these units. Acts greedily by the
    tanh of the mean.

    Args:
      actor: `obs[B, ...] -> (mean[B, D], log_std[B, D])` of a Gaussian below the tanh.
      critic: `(obs[B, ...], action[B, D]) -> q[B]`; `critics` of them are made.
      actor_optimizer: of the actor.
      critic_optimizer: of all critics.
      replay: where transitions are kept. The bias of a prioritised one is corrected in full.
      actions: of the environment, with finite bounds.
      temperature: alpha; where it is learnt, its first value, above 0.
      temperature_optimizer: of log alpha; None keeps the temperature as it is.
      target_entropy: what the learnt temperature aims at; by default -D.
      discount: gamma.
      decay: of the target critics, which are moving averages; 1 - tau.
      batch_size: transitions of one gradient update.
      warm_up: environment steps before the first gradient update, with uniform actions.
      train_every: environment steps to a gradient update; see `practise`.
      critics: how many.

    Returns:
      An agent that reports `loss/critic`, `loss/actor`, the mean `q` of the transitions, the
      absolute `error`, `entropy`, `temperature`, and the norms of `descend` of every net.

    Raises:
      InputError: infinite action bounds, or a number that `practise` or `ensemble` refuses.
    """
    check_bounds(actions.low, actions.high)
    if temperature_optimizer is not None and _not_positive(temperature):
        raise InputError(
            f"sac(temperature={temperature}): a temperature that is learnt starts above 0"
        )
    twins = ensemble(critic, critics)
    networks = {"actor": actor, "critic": twins}
    optimizers = {"actor": actor_optimizer, "critic": critic_optimizer}
    aim = -float(actions.size) if target_entropy is None else target_entropy

    def init(key: jax.Array, example: Batch) -> TrainState:
        state = create(key, example, networks, optimizers)
        # A copy, because one buffer under two names cannot be donated.
        target = {"critic": jax.tree.map(jnp.copy, weights_of(state, "critic"))}
        state = state.replace(target=target, memory=replay.init(example))
        if temperature_optimizer is None:
            return state
        log_alpha = jnp.log(jnp.asarray(temperature, jnp.float32))
        return state.replace(
            params={**state.params, "temperature": log_alpha},
            opt_state={**state.opt_state, "temperature": temperature_optimizer.init(log_alpha)},
            model_state={**state.model_state, "temperature": {}},
        )

    def act(
        state: TrainState, obs: jax.Array, carry: PyTree, key: jax.Array, explore: bool
    ) -> tuple[jax.Array, dict[str, jax.Array], PyTree]:
        policy = TanhGaussian(*answer(actor, weights_of(state, "actor"), obs))
        action = policy.mode()
        if explore:
            draw_key, random_key = jax.random.split(key)
            action = uniform_before(warm_up, state, random_key, policy.sample(draw_key))
        return rescale(action, actions.low, actions.high), {}, carry

    def alpha_of(state: TrainState) -> Scalar:
        if temperature_optimizer is None:
            return temperature
        return jnp.exp(state.params["temperature"])

    def target_of(state: TrainState, batch: Batch, key: jax.Array) -> jax.Array:
        policy = TanhGaussian(*answer(actor, weights_of(state, "actor"), batch["next_obs"]))
        action, log_prob = policy.sample_and_log_prob(key)
        q_next = answer(twins, state.target["critic"], batch["next_obs"], action)
        soft_q = q_next - alpha_of(state) * log_prob
        return pessimistic_target(batch["reward"], batch["discount"], soft_q)

    def actor_step(
        state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, jax.Array, Metrics]:
        draw_key, net_key = jax.random.split(key)
        critic_weights, model_state = weights_of(state, "critic"), state.model_state["actor"]
        alpha = alpha_of(state)

        def loss_of(params: PyTree) -> tuple[jax.Array, tuple[Any, PyTree]]:
            output, updated = actor.apply(
                params, model_state, batch["obs"], key=net_key, train=True
            )
            action, log_prob = TanhGaussian(*output).sample_and_log_prob(draw_key)
            q = answer(twins, critic_weights, batch["obs"], action).min(0)
            loss = (alpha * log_prob - q).mean()
            return loss, ((loss, -log_prob.mean()), updated)

        state, (loss, entropy), norms = descend_net(state, "actor", loss_of, actor_optimizer)
        means = {"loss/actor": Mean.of(loss), "entropy": Mean.of(entropy)}
        return state, entropy, {**means, **norms}

    def learn(
        state: TrainState, batch: Batch, key: jax.Array, number: jax.Array
    ) -> tuple[TrainState, Metrics, jax.Array]:
        del number
        target_key, critic_key, actor_key = jax.random.split(key, 3)
        target = target_of(state, batch, target_key)
        state, of_critics, error = critic_step(
            state, twins, critic_optimizer, actions, batch, target, critic_key
        )
        state, entropy, of_actor = actor_step(state, batch, actor_key)
        metrics = {**of_critics, **of_actor, "temperature": Mean.of(alpha_of(state))}
        if temperature_optimizer is not None:

            def loss_of(log_alpha: PyTree) -> tuple[jax.Array, tuple[None, PyTree]]:
                return temperature_loss(log_alpha, entropy, aim), (None, {})

            state, _, norms = descend_net(state, "temperature", loss_of, temperature_optimizer)
            metrics |= norms
        slow = ema(state.target["critic"], weights_of(state, "critic"), decay)
        return state.replace(target={"critic": slow}), metrics, error

    update = practise(
        learn,
        replay,
        discount=discount,
        batch_size=batch_size,
        warm_up=warm_up,
        train_every=train_every,
    )
    return Agent(Learner(init, update, evaluate=lambda state, batch, key: {}), act, actions)


def _not_positive(number: Scalar) -> bool:
    """Whether a number is known to be 0 or less; a traced one is not."""
    return not isinstance(number, jax.core.Tracer) and float(number) <= 0
