"""Proximal policy optimisation of a policy that remembers."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics
from paradigms.core.scalars import Scalar, Scheduled, current
from paradigms.core.state import PyTree, TrainState
from paradigms.reinforcement.agent import Agent
from paradigms.reinforcement.environment import Box, Discrete, choose
from paradigms.reinforcement.ppo import (
    Measured,
    in_minibatches,
    policy_of,
    ppo_loss,
    with_advantages,
)


def unroll(
    net: Net,
    params: PyTree,
    model_state: PyTree,
    obs: jax.Array,
    done: jax.Array,
    carry: PyTree,
    fresh: PyTree,
    **options: Any,
) -> tuple[tuple[Any, jax.Array], PyTree]:
    """Applies a recurrent net along sequences, and forgets where an episode ends.

    Args:
      net: `(obs[B, ...], carry) -> (output, value[B], carry)`.
      params, model_state: its own.
      obs: `[T, B, ...]`.
      done: bool `[T, B]`, the step ended an episode, so the next one starts from `fresh`.
      carry: what the net remembers before the first step, arrays `[B, ...]`.
      fresh: what it remembers at the start of an episode, likewise.
      **options: `key` and `train` as in `Net.apply`, the same at every step: dropout keeps its
        units throughout a sequence (Gal & Ghahramani 2016).

    Returns:
      `((output[T, B, ...], value[T, B]), model_state)`.
    """

    def one(memory: PyTree, row: tuple[jax.Array, jax.Array]) -> tuple[PyTree, Any]:
        carry, model_state = memory
        obs, done = row
        (output, value, carry), model_state = net.apply(params, model_state, obs, carry, **options)
        return (choose(done, fresh, carry), model_state), (output, value)

    (_, model_state), outputs = jax.lax.scan(one, (carry, model_state), (obs, done))
    return outputs, model_state


def recurrent_ppo(
    net: Net,
    carry: Callable[[int], PyTree],
    optimizer: optax.GradientTransformation,
    *,
    actions: type[Discrete] | type[Box] = Discrete,
    discount: Scalar = 0.99,
    trace: Scalar = 0.95,
    clip: Scheduled = 0.2,
    value_clip: Scalar | None = 0.2,
    value_weight: Scalar = 0.5,
    entropy_weight: Scheduled = 0.01,
    epochs: int = 4,
    minibatches: int = 4,
) -> Agent:
    """`ppo` with a net that carries a memory from step to step of an episode.

    As in Huang et al. 2022 (LSTM details 2 to 5): the memory is empty at the start of an episode,
    both in the rollout and where the update replays it; minibatches are whole sequences, of T steps
    of some environments; and gradients flow through all the T steps, but not past the start of an
    episode. A sequence starts with the memory of the rollout, which is data: no gradient reaches
    further back. The value of `final_obs` is that of a net which remembers the episode up to it.

    The trajectory holds the memory before every step, `T * N` of them.

    Args:
      net: `(obs[B, ...], carry) -> (output, value[B], carry)`, with `output` as in `ppo`.
      carry: `(n) -> carry`, what the net remembers at the start of an episode, arrays `[n, ...]`;
        `recurrent_actor_critic` gives both.
      optimizer: its schedules count minibatches, `epochs * minibatches` to an update.
      actions, discount, trace, clip, value_clip, value_weight, entropy_weight: as in `ppo`.
      epochs: passes over each trajectory; each shuffles the environments anew.
      minibatches: updates in one pass; they divide N.

    Returns:
      An agent that reports what `ppo` does.

    Raises:
      InputError: fewer than one epoch or minibatch, or minibatches that do not divide N.
    """
    if epochs < 1 or minibatches < 1:
        raise InputError(
            f"recurrent_ppo(epochs={epochs}, minibatches={minibatches}): expected at least 1"
        )

    def init(key: jax.Array, example: Batch) -> TrainState:
        obs = example["obs"][0]
        if len(obs) % minibatches:
            raise InputError(
                f"recurrent_ppo(minibatches={minibatches}): the {len(obs)} environments do not "
                "divide into them; change num_envs or minibatches"
            )
        params, model_state = net.init(key, obs, carry(len(obs)))
        return TrainState.create(
            key, params, opt_state=optimizer.init(params), model_state=model_state
        )

    def act(
        state: TrainState, obs: jax.Array, memory: PyTree, key: jax.Array, explore: bool
    ) -> tuple[jax.Array, dict[str, Any], PyTree]:
        (output, value, after), _ = net.apply(state.params, state.model_state, obs, memory)
        policy = policy_of(output, actions)
        if not explore:
            return policy.mode(), {}, after
        action = policy.sample(key)
        extras = {"log_prob": policy.log_prob(action), "value": value, "carry": memory}
        return action, extras, after

    def loss_of(
        params: PyTree, state: TrainState, batch: Batch
    ) -> tuple[jax.Array, tuple[Measured, PyTree]]:
        steps = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), batch["steps"])
        (output, value), model_state = unroll(
            net,
            params,
            state.model_state,
            steps["obs"],
            steps["done"],
            batch["carry"],
            carry(steps["done"].shape[1]),
            key=state.rng("net"),
            train=True,
        )
        loss, measured = ppo_loss(
            policy_of(output, actions),
            value,
            steps,
            clip=current(clip, state.step),
            value_clip=value_clip,
            value_weight=value_weight,
            entropy_weight=current(entropy_weight, state.step),
        )
        return loss, (measured, model_state)

    def update(state: TrainState, trajectory: Batch) -> tuple[TrainState, Metrics]:
        apply = jax.vmap(net.apply, (None, None, 0, 0))
        weights = state.params, state.model_state
        # What was remembered after each step, before the end of an episode made it forgotten.
        (_, _, after), _ = apply(*weights, trajectory["obs"], trajectory["carry"])
        (_, final_value, _), _ = apply(*weights, trajectory["final_obs"], after)
        steps = {
            **with_advantages(trajectory, final_value, discount, trace),
            "done": trajectory["terminated"] | trajectory["truncated"],
        }
        # An example is an environment: its memory before the first step, and all of its steps.
        examples = {
            "steps": jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), steps),
            "carry": jax.tree.map(lambda leaf: leaf[0], trajectory["carry"]),
        }
        state, metrics = in_minibatches(state, examples, loss_of, optimizer, epochs, minibatches)
        return state.replace(step=state.step + 1), metrics

    return Agent(Learner(init, update, evaluate=lambda state, batch, key: {}), act, actions, carry)
