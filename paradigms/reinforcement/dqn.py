"""Deep Q-learning and the parts of Rainbow, each an option of its own."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from nets.net import Net
from paradigms.core.ema import slow_copy
from paradigms.core.errors import InputError
from paradigms.core.learner import NORM_PERIOD, Batch, Learner, Metrics, descend
from paradigms.core.metrics import Mean
from paradigms.core.scalars import Scalar, Scheduled, current
from paradigms.core.state import PyTree, TrainState
from paradigms.reinforcement.agent import Agent
from paradigms.reinforcement.environment import Discrete
from paradigms.reinforcement.off_policy import practise
from paradigms.reinforcement.replay import Replay, importance_weights


def q_target(
    reward: jax.Array,
    discount: jax.Array,
    q_next: jax.Array,
    q_chooser: jax.Array | None = None,
) -> jax.Array:
    """What `Q(s, a)` should be: `r + discount * q_next[argmax q_chooser]`, float32 `[B]`.

    Args:
      reward: `[B]`, of one step or, discounted, of several.
      discount: `[B]`, of what follows them; 0 after an end.
      q_next: `[B, A]`, the values of the next observation by the target net.
      q_chooser: `[B, A]`, those by which its action is chosen: the online net's in double Q
        learning (van Hasselt et al. 2016, equation 4), and by default `q_next`.
    """
    chosen = (q_next if q_chooser is None else q_chooser).argmax(-1)
    return reward + discount * _of_action(q_next, chosen)


def categorical_target(
    reward: jax.Array, discount: jax.Array, probabilities: jax.Array, support: jax.Array
) -> jax.Array:
    """The distribution of `r + discount * Z`, on the atoms of Z (Bellemare et al. 2017, eq. 7).

    The mass of each moved atom goes to the two nearest ones, in proportion to its nearness; what
    leaves the support stays at its ends.

    Args:
      reward: `[B]`.
      discount: `[B]`.
      probabilities: `[B, atoms]` of Z.
      support: `[atoms]`, evenly spaced and rising.

    Returns:
      float32 `[B, atoms]`, which sum to 1.
    """
    spacing = support[1] - support[0]
    moved = jnp.clip(
        reward[:, None] + discount[:, None] * support, support[0], support[-1]
    )  # [B, from]
    distance = jnp.abs(moved[:, :, None] - support) / spacing  # [B, from, to]
    share = jnp.clip(1 - distance, 0, 1)
    return (probabilities[:, :, None] * share).sum(1)


def dqn(
    net: Net,
    optimizer: optax.GradientTransformation,
    replay: Replay,
    *,
    epsilon: Scheduled = 0.05,
    discount: Scalar = 0.99,
    batch_size: int = 128,
    warm_up: int = 10_000,
    train_every: int = 10,
    target_every: int = 500,
    double: bool = True,
    loss: Literal["squared", "huber"] = "squared",
    support: tuple[float, float] | None = None,
    beta: Scheduled = 1.0,
    noisy: bool = False,
) -> Agent:
    """DQN (Mnih et al. 2015) on a replay memory; with all of its options, Rainbow.

    Rainbow (Hessel et al. 2018, arXiv:1710.02298) is a duelling, noisy, distributional `net`, a
    prioritised `replay` with n steps, `double`, `support` and `noisy`, and epsilon 0. Intervals and
    schedules count environment steps, whatever the number of environments.

    Args:
      net: `obs[B, ...] -> Q[B, A]`, or with `support` logits `[B, A, atoms]`.
      optimizer: of the net.
      replay: where transitions are kept; it sets the number of steps of a return.
      epsilon: how often a random action is taken, or a schedule of environment steps.
      discount: gamma.
      batch_size: transitions of one gradient update.
      warm_up: environment steps before the first gradient update.
      train_every: environment steps to a gradient update; see `practise`.
      target_every: environment steps after which the target net becomes a copy of the net.
      double: whether the net chooses the action that the target net values.
      loss: of the error, "squared" (no half) or "huber" (quadratic up to 1); not with `support`.
      support: the lowest and highest return of a distributional net (Bellemare et al. 2017), whose
        loss is the cross entropy.
      beta: exponent of the importance weights, or a schedule of environment steps; it matters for a
        prioritised replay only, whose priorities are absolute errors, or the cross entropy.
      noisy: whether the net's own noise explores (Fortunato et al. 2018): it is drawn with
        `train=True`, anew at every step, and in the loss for both nets.

    Returns:
      An agent that reports `loss`, the absolute `error`, the value `q` of the actions taken,
      `epsilon`, and the norms of `descend`.

    Raises:
      InputError: an interval below 1, a warm-up or a batch beyond the capacity of the replay, an
        unknown loss, or a support that does not rise.
    """
    if target_every < 1:
        raise InputError(f"dqn(target_every={target_every}): expected at least 1 environment step")
    if loss not in ("squared", "huber"):
        raise InputError(f"dqn(loss={loss!r}): expected 'squared' or 'huber'")
    if support is not None and not support[0] < support[1]:
        raise InputError(f"dqn(support={support}): expected two numbers, the lower one first")

    def atoms(logits: jax.Array) -> jax.Array:
        assert support is not None
        return jnp.linspace(*support, logits.shape[-1])

    def outputs(weights: PyTree, obs: jax.Array, key: jax.Array) -> tuple[jax.Array, PyTree]:
        return net.apply(weights["params"], weights["model_state"], obs, key=key, train=noisy)

    def values(output: jax.Array) -> jax.Array:
        """Q `[B, A]`."""
        return output if support is None else jax.nn.softmax(output) @ atoms(output)

    def init(key: jax.Array, example: Batch) -> TrainState:
        params, model_state = net.init(key, example["obs"][0])
        return TrainState.create(
            key,
            params,
            opt_state=optimizer.init(params),
            model_state=model_state,
            target={"q": slow_copy(params, model_state)},
            memory=replay.init(example),
        )

    def act(
        state: TrainState, obs: jax.Array, carry: PyTree, key: jax.Array, explore: bool
    ) -> tuple[jax.Array, dict[str, jax.Array], PyTree]:
        net_key, random_key = jax.random.split(key) if noisy else (None, key)
        output, _ = net.apply(
            state.params, state.model_state, obs, key=net_key, train=noisy and explore
        )
        greedy = values(output).argmax(-1).astype(jnp.int32)
        if not explore:
            return greedy, {}, carry
        chance, choice = jax.random.uniform(random_key, (2, *greedy.shape))
        random = (choice * output.shape[1]).astype(jnp.int32)
        explores = chance < current(epsilon, state.world["steps"])
        return jnp.where(explores, random, greedy), {}, carry

    def errors(
        params: PyTree, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, PyTree]]:
        """Losses `[B]`, what sets priorities `[B]`, and Q of the actions taken `[B]`."""
        online = {"params": params, "model_state": state.model_state}
        keys = jax.random.split(key, 3)
        output, model_state = outputs(online, batch["obs"], keys[0])
        next_target, _ = outputs(state.target["q"], batch["next_obs"], keys[1])
        chooser = None
        if double:
            chooser = values(outputs(online, batch["next_obs"], keys[2])[0])
        if support is None:
            q = _of_action(output, batch["action"])
            target = q_target(batch["reward"], batch["discount"], next_target, chooser)
            error = jax.lax.stop_gradient(target) - q
            losses = jnp.square(error) if loss == "squared" else optax.losses.huber_loss(error)
            return losses, (jnp.abs(error), q, model_state)
        best = (values(next_target) if chooser is None else chooser).argmax(-1)
        target = categorical_target(
            batch["reward"],
            batch["discount"],
            jax.nn.softmax(_of_action(next_target, best)),
            atoms(output),
        )
        logits = _of_action(output, batch["action"])
        losses = optax.losses.softmax_cross_entropy(logits, jax.lax.stop_gradient(target))
        return losses, (losses, _of_action(values(output), batch["action"]), model_state)

    def learn(
        state: TrainState, batch: Batch, key: jax.Array, number: jax.Array
    ) -> tuple[TrainState, Metrics, jax.Array]:
        weights = importance_weights(batch["mass"], current(beta, state.world["steps"]))

        def loss_of(params: PyTree) -> tuple[jax.Array, Any]:
            losses, others = errors(params, state, batch, key)
            return (weights * losses).mean(), (losses, *others)

        grads, (losses, error, q, model_state) = jax.grad(loss_of, has_aux=True)(state.params)
        when = number % NORM_PERIOD == 0
        params, opt_state, norms = descend(
            optimizer, grads, state.opt_state, state.params, when=when
        )
        state = state.replace(params=params, opt_state=opt_state, model_state=model_state)
        means = {"loss": Mean.of(losses), "error": Mean.of(error), "q": Mean.of(q)}
        return state, {**means, **norms}, error

    practised = practise(
        learn,
        replay,
        discount=discount,
        batch_size=batch_size,
        warm_up=warm_up,
        train_every=train_every,
    )

    def update(state: TrainState, trajectory: Batch) -> tuple[TrainState, Metrics]:
        after = state.world["steps"]
        before = after - trajectory["reward"].size
        state, metrics = practised(state, trajectory)
        renew = after // target_every > before // target_every
        online = {"params": state.params, "model_state": state.model_state}
        target = jax.tree.map(
            lambda new, old: jnp.where(renew, new, old), online, state.target["q"]
        )
        state = state.replace(target={**state.target, "q": target})
        return state, {**metrics, "epsilon": Mean.of(current(epsilon, after))}

    return Agent(Learner(init, update, evaluate=lambda state, batch, key: {}), act, Discrete)


def _of_action(table: jax.Array, action: jax.Array) -> jax.Array:
    """`table[b, action[b], ...]`, `[B, ...]`."""
    return table[jnp.arange(len(action)), action]
