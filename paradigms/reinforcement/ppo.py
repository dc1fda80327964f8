"""Proximal policy optimisation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nets.net import Net
from paradigms.core import metrics as metrics_lib
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, descend, norm
from paradigms.core.mesh import constrain_batch
from paradigms.core.metrics import Mean
from paradigms.core.scalars import Scalar, Scheduled, current
from paradigms.core.state import PyTree, TrainState
from paradigms.reinforcement.agent import Agent
from paradigms.reinforcement.environment import Box, Discrete
from paradigms.reinforcement.policies import Categorical, Gaussian
from paradigms.reinforcement.returns import gae

Measured = dict[str, jax.Array]
"""What a minibatch measured, arrays of any shape, of which the means are reported. They are added
up once, after the last minibatch: sums in every one of them are what a small net on a CPU feels."""

Loss = Callable[[PyTree, TrainState, Batch], tuple[jax.Array, tuple[Measured, PyTree]]]
"""`(params, state, batch) -> (loss, (measured, model_state))`, differentiated in `params`."""


def clipped_surrogate(
    log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array, clip: Scalar
) -> jax.Array:
    """The loss of the policy, `-min(r A, clip(r, 1 - e, 1 + e) A)` with `r = p / p_old`, `[B]`.

    Schulman et al. 2017 (arXiv:1707.06347), eq. 7, negated. Beyond the clip, on the side to which
    the advantage pushes, the gradient is zero.
    """
    ratio = jnp.exp(log_prob - old_log_prob)
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def value_loss(
    value: jax.Array, old_value: jax.Array, target: jax.Array, clip: Scalar | None = None
) -> jax.Array:
    """Half the squared error, `[B]`; with `clip` the worse of it and that of a clipped value.

    The clipped value moves from `old_value` by at most `clip` (Huang et al. 2022, detail 9).
    """
    loss = jnp.square(value - target)
    if clip is not None:
        near = old_value + jnp.clip(value - old_value, -clip, clip)
        loss = jnp.maximum(loss, jnp.square(near - target))
    return loss / 2


def ppo_loss(
    policy: Categorical | Gaussian,
    value: jax.Array,
    batch: Batch,
    *,
    clip: Scalar,
    value_clip: Scalar | None,
    value_weight: Scalar,
    entropy_weight: Scalar,
) -> tuple[jax.Array, Measured]:
    """What PPO minimises over a minibatch (Schulman et al. 2017, eq. 9, negated), and its report.

    Args:
      policy: at each of the minibatch's observations, axes `[...]`.
      value: `[...]`, likewise.
      batch: of the rollout `action[..., D]` or `[...]`, `log_prob[...]` and `value[...]`, with the
        `advantage[...]`, which is normalised here, and the value's `target[...]`.
      clip, value_clip, value_weight, entropy_weight: as in `ppo`, but numbers only.

    Returns:
      The scalar loss and what is told of it, `[...]` but for the loss itself.
    """
    log_prob, entropy = policy.log_prob(batch["action"]), policy.entropy()
    policy_losses = clipped_surrogate(
        log_prob, batch["log_prob"], _normalised(batch["advantage"]), clip
    )
    value_losses = value_loss(value, batch["value"], batch["target"], value_clip)
    loss = (
        policy_losses.mean() + value_weight * value_losses.mean() - entropy_weight * entropy.mean()
    )
    log_ratio = log_prob - batch["log_prob"]
    ratio = jnp.exp(log_ratio)
    measured = {
        "loss": loss,
        "loss/policy": policy_losses,
        "loss/value": value_losses,
        "entropy": entropy,
        "kl": ratio - 1 - log_ratio,
        "clipped": jnp.abs(ratio - 1) > clip,
    }
    return loss, measured


def with_advantages(
    trajectory: Batch, final_value: jax.Array, discount: Scalar, trace: Scalar
) -> Batch:
    """What the loss needs of a trajectory, arrays `[T, N, ...]`.

    Args:
      trajectory: with `log_prob` and `value` of every step, `[T, N]`.
      final_value: `[T, N]`, the values of `final_obs`.
      discount, trace: gamma and lambda.
    """
    advantage = gae(
        trajectory["reward"],
        trajectory["value"],
        final_value,
        trajectory["terminated"],
        trajectory["truncated"],
        discount,
        trace,
    )
    return {
        **{name: trajectory[name] for name in ("obs", "action", "log_prob", "value")},
        "advantage": advantage,
        "target": advantage + trajectory["value"],
    }


def in_minibatches(
    state: TrainState,
    examples: Batch,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    epochs: int,
    minibatches: int,
) -> tuple[TrainState, Metrics]:
    """Descends the loss on minibatches; every epoch shuffles the examples anew.

    Args:
      state: where to start; its `step` does not move.
      examples: arrays `[M, ...]`, where M divides into the minibatches. On a mesh each minibatch is
        divided over the data axes.
      loss: of one minibatch.
      optimizer: of the parameters.
      epochs: passes over the examples.
      minibatches: in one pass.

    Returns:
      The state, and the means over the minibatches. Of the norms of `descend` that of the gradient
      is of the last one, and that of the update is of all of them together.
    """

    def one(
        state: TrainState, xs: tuple[jax.Array, jax.Array]
    ) -> tuple[TrainState, tuple[Measured, Mean]]:
        index, last = xs
        batch = constrain_batch(jax.tree.map(lambda leaf: leaf[index], examples))
        grads, (measured, model_state) = jax.grad(loss, has_aux=True)(state.params, state, batch)
        params, opt_state, norms = descend(
            optimizer, grads, state.opt_state, state.params, when=last
        )
        state = state.replace(params=params, opt_state=opt_state, model_state=model_state)
        return state, (measured, norms["norm/gradient"])

    before = state.params
    size = len(jax.tree.leaves(examples)[0])
    keys = jax.random.split(state.rng("shuffle"), epochs)
    index = jax.vmap(lambda key: jax.random.permutation(key, size))(keys)
    steps = epochs * minibatches
    last = jnp.arange(steps) == steps - 1
    state, (measured, gradient) = jax.lax.scan(one, state, (index.reshape(steps, -1), last))
    change = jax.tree.map(jnp.subtract, state.params, before)
    return state, {
        **{name: Mean.of(values) for name, values in measured.items()},
        **metrics_lib.collapse({"norm/gradient": gradient}),
        "norm/parameter": Mean.of(norm(before)),
        "norm/update": Mean.of(norm(change)),
    }


def ppo(
    net: Net,
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
    """PPO with a clipped objective and generalised advantages (Schulman et al. 2017, 2016).

    With the details that matter (Huang et al. 2022): advantages are normalised in each minibatch,
    every epoch shuffles anew, a time limit is bootstrapped from the value of what it cut off, and
    probabilities are of the actions as drawn, before an environment clips them.

    Args:
      net: `obs[B, ...] -> (output, value[B])`, where `output` is logits `[B, A]` or, for `Box`
        actions, the mean and log standard deviation of a Gaussian, each `[B, D]`.
      optimizer: its schedules count minibatches, `epochs * minibatches` to an update.
      actions: the kind of actions.
      discount: of rewards, gamma.
      trace: lambda of the advantages; 0 is one step, 1 is the whole return.
      clip: epsilon of the objective. Like `entropy_weight`, a number or a schedule of updates.
      value_clip: how far a value may move in an update; None not to limit it.
      value_weight: of the value's loss.
      entropy_weight: of the entropy, which is added to the objective.
      epochs: passes over each trajectory.
      minibatches: updates in one pass; they divide `T * N`.

    Returns:
      An agent that reports the three losses, `entropy`, the divergence `kl` from the old policy
      (Schulman's estimator `r - 1 - log r`), `clipped`, the fraction of ratios beyond the clip, and
      the norms of `in_minibatches`.

    Raises:
      InputError: fewer than one epoch or minibatch, or minibatches that do not divide `T * N`.
    """
    if epochs < 1 or minibatches < 1:
        raise InputError(f"ppo(epochs={epochs}, minibatches={minibatches}): expected at least 1")

    def init(key: jax.Array, example: Batch) -> TrainState:
        size = example["reward"].size
        if size % minibatches:
            raise InputError(
                f"ppo(minibatches={minibatches}): the {size} steps of an update do not divide into "
                "them; change num_steps, num_envs or minibatches"
            )
        params, model_state = net.init(key, example["obs"][0])
        return TrainState.create(
            key, params, opt_state=optimizer.init(params), model_state=model_state
        )

    def act(
        state: TrainState, obs: jax.Array, carry: PyTree, key: jax.Array, explore: bool
    ) -> tuple[jax.Array, dict[str, jax.Array], PyTree]:
        (output, _), _ = net.apply(state.params, state.model_state, obs)
        policy = policy_of(output, actions)
        return policy.sample(key) if explore else policy.mode(), {}, carry

    def loss_of(
        params: PyTree, state: TrainState, batch: Batch
    ) -> tuple[jax.Array, tuple[Measured, PyTree]]:
        (output, value), model_state = net.apply(
            params, state.model_state, batch["obs"], key=state.rng("net"), train=True
        )
        loss, measured = ppo_loss(
            policy_of(output, actions),
            value,
            batch,
            clip=current(clip, state.step),
            value_clip=value_clip,
            value_weight=value_weight,
            entropy_weight=current(entropy_weight, state.step),
        )
        return loss, (measured, model_state)

    def update(state: TrainState, trajectory: Batch) -> tuple[TrainState, Metrics]:
        # All steps at once, which costs less than the value of every step while acting.
        steps = jax.vmap(net.apply, (None, None, 0))
        (output, value), _ = steps(state.params, state.model_state, trajectory["obs"])
        (_, final_value), _ = steps(state.params, state.model_state, trajectory["final_obs"])
        log_prob = policy_of(output, actions).log_prob(trajectory["action"])
        trajectory = {**trajectory, "log_prob": log_prob, "value": value}
        examples = with_advantages(trajectory, final_value, discount, trace)
        # To an update a step is an example, whenever and wherever it was made.
        examples = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), examples)
        state, metrics = in_minibatches(state, examples, loss_of, optimizer, epochs, minibatches)
        return state.replace(step=state.step + 1), metrics

    return Agent(Learner(init, update, evaluate=lambda state, batch, key: {}), act, actions)


def policy_of(output: Any, actions: type[Discrete] | type[Box]) -> Categorical | Gaussian:
    """The policy that a net's output stands for: logits, or a mean and a log standard deviation."""
    return Categorical(output) if actions is Discrete else Gaussian(*output)


def _normalised(advantage: jax.Array) -> jax.Array:
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8)
