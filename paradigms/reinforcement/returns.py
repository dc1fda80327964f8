"""Returns and advantages: what an episode was worth, seen from each of its steps.

Free functions over time-major arrays `[T, ...]` with any batch shape behind `T`. Row `t` tells of
the transition from `obs_tm1` to `obs_t`, with rlax's names for time:

- `r_t`: the reward of the transition.
- `v_tm1`: the value of the observation before it.
- `v_t`: the value of `final_obs`, the observation after it and *before* any auto-reset. It differs
  from row `t + 1` of `v_tm1` where an episode ends, and there alone.
- `terminated`, `truncated`: bool. No value follows a terminated step; after a truncated step, or
  the last row of the array, the world goes on unseen, so `v_t` stands for all that follows. Where
  both are set, terminated counts. No reward reaches back across either.

All results are float32. Nothing here stops a gradient: a caller who uses a result as a target
applies `jax.lax.stop_gradient`. Discounts and the like may be traced, as under a sweep. Every
function raises `InputError`, when it is traced, for arrays whose shapes differ (they would
broadcast without a word), for flags that are not bool and for hyperparameters that are not scalars.
"""

import jax
import jax.numpy as jnp

from paradigms.core.errors import InputError

Scalar = float | jax.Array


def discounted_returns(
    r_t: jax.Array, discount_t: jax.Array, bootstrap: float | jax.Array = 0.0
) -> jax.Array:
    """`G_t = r_t + discount_t * G_{t+1}`, with `G_T = bootstrap` (Sutton & Barto 2018, eq. 3.9).

    Args:
      r_t: `[T, ...]` rewards.
      discount_t: `[T, ...]`, 0 where nothing reaches back from the next row.
      bootstrap: `[...]` or a scalar, the value after the last row.

    Returns:
      float32 `[T, ...]`, in the unit of the rewards.
    """
    name = "discounted_returns"
    _check_rows(name, r_t=r_t, discount_t=discount_t)
    batch = jnp.shape(r_t)[1:]
    if jnp.shape(bootstrap) not in ((), batch):
        raise InputError(
            f"{name}: bootstrap has shape {jnp.shape(bootstrap)}: expected a scalar or {batch}, "
            "one value for each column of r_t"
        )

    def step(g_t: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reward, discount = row
        g_tm1 = reward + discount * g_t
        return g_tm1, g_tm1

    last = jnp.broadcast_to(_float32(bootstrap), batch)
    return jax.lax.scan(step, last, (_float32(r_t), _float32(discount_t)), reverse=True)[1]


def gae(
    r_t: jax.Array,
    v_tm1: jax.Array,
    v_t: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    discount: Scalar,
    trace: Scalar,
) -> jax.Array:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 11 and 16).

    `A_t = delta_t + discount * trace * A_{t+1}`, with
    `delta_t = r_t + discount * (1 - terminated) * v_t - v_tm1` and no `A_{t+1}` after an end of
    either kind. `trace` 0 gives `delta`, `trace` 1 the discounted return minus `v_tm1`.

    Args:
      r_t, v_tm1, v_t: `[T, ...]` rewards and values.
      terminated, truncated: bool `[T, ...]`.
      discount: scalar, gamma.
      trace: scalar in [0, 1], lambda.

    Returns:
      float32 `[T, ...]` advantages. The value targets of PPO are `advantages + v_tm1`.
    """
    name = "gae"
    _check_rows(name, r_t=r_t, v_tm1=v_tm1, v_t=v_t, terminated=terminated, truncated=truncated)
    _check_scalars(name, discount=discount, trace=trace)
    r_t, v_tm1, v_t = _float32(r_t), _float32(v_tm1), _float32(v_t)
    delta = r_t + discount * jnp.where(terminated, 0.0, v_t) - v_tm1
    ended = jnp.logical_or(terminated, truncated)
    return discounted_returns(delta, jnp.where(ended, 0.0, discount * trace))


def lambda_returns(
    r_t: jax.Array,
    v_t: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    discount: Scalar,
    trace: Scalar,
) -> jax.Array:
    """Lambda returns (Sutton & Barto 2018, eq. 12.18, in their recursive form).

    `G_t = r_t + discount * (1 - terminated) * ((1 - trace) * v_t + trace * G_{t+1})`, where
    `G_{t+1}` is `v_t` after a truncated or the last step. `trace` 0 gives the one-step target,
    `trace` 1 the discounted return. They are `gae + v_tm1` for the same values.

    Args:
      r_t, v_t: `[T, ...]` rewards and values.
      terminated, truncated: bool `[T, ...]`.
      discount: scalar, gamma.
      trace: scalar in [0, 1], lambda.

    Returns:
      float32 `[T, ...]` targets for `v_tm1`.
    """
    name = "lambda_returns"
    _check_rows(name, r_t=r_t, v_t=v_t, terminated=terminated, truncated=truncated)
    _check_scalars(name, discount=discount, trace=trace)
    bootstrap = jnp.where(terminated, 0.0, _float32(v_t))
    ended = jnp.logical_or(terminated, truncated)
    # The share of G_{t+1}; what it leaves falls to v_t.
    share = jnp.where(ended, 0.0, trace)
    reward = _float32(r_t) + discount * (1 - share) * bootstrap
    return discounted_returns(reward, discount * share, bootstrap[-1])


def n_step_returns(
    r_t: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    v_t: jax.Array,
    discount: Scalar,
    n: int,
) -> jax.Array:
    """n-step returns (Sutton & Barto 2018, eq. 7.1).

    The sum of `discount**i * r_{t+i}` over `i < k`, plus `discount**k` times `v_t` of the last row
    summed (nothing, if that terminated). `k` is `n`, or fewer where the episode or the array ends
    before.

    Args:
      r_t: `[T, ...]` rewards.
      terminated, truncated: bool `[T, ...]`.
      v_t: `[T, ...]` values.
      discount: scalar, gamma.
      n: the most rewards to sum, at least 1; not traced.

    Returns:
      float32 `[T, ...]` targets for `v_tm1`.
    """
    name = "n_step_returns"
    _check_rows(name, r_t=r_t, v_t=v_t, terminated=terminated, truncated=truncated)
    _check_scalars(name, discount=discount)
    if not isinstance(n, int) or n < 1:
        raise InputError(f"{name}: n is {n}: expected a Python int of at least 1")
    r_t = _float32(r_t)
    bootstrap = jnp.where(terminated, 0.0, _float32(v_t))
    ended = jnp.logical_or(terminated, truncated).at[-1].set(True)

    def one_more(_: jax.Array, following: jax.Array) -> jax.Array:
        # What rolls over the end of the array lands on a row that ends, and is not used.
        return r_t + discount * jnp.where(ended, bootstrap, jnp.roll(following, -1, axis=0))

    return jax.lax.fori_loop(1, min(n, len(r_t)), one_more, r_t + discount * bootstrap)


def vtrace(
    r_t: jax.Array,
    v_tm1: jax.Array,
    v_t: jax.Array,
    ratio: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    discount: Scalar,
    trace: Scalar = 1.0,
    *,
    rho_bar: Scalar = 1.0,
    c_bar: Scalar = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """V-trace: targets and advantages from another policy's actions (Espeholt et al. 2018).

    With `rho = min(rho_bar, ratio)` and `c = trace * min(c_bar, ratio)`, eq. 1 and remark 1 read
    `target_t - v_tm1 = delta_t + discount * c * (target_{t+1} - v_t)`, where
    `delta_t = rho * (r_t + discount * (1 - terminated) * v_t - v_tm1)` and the last term is absent
    after an end of either kind. Section 4.2 has the policy-gradient advantage
    `rho * (r_t + discount * (1 - terminated) * target_{t+1} - v_tm1)`, where `target_{t+1}` is
    `v_t` after a truncated or the last step. With all ratios 1 the targets are `lambda_returns`;
    the advantages, which have no lambda of their own, are `gae` for `trace` 1 only.

    Args:
      r_t, v_tm1, v_t: `[T, ...]` rewards and values.
      ratio: `[T, ...]`, probability of the action under the policy that learns, divided by that
        under the policy that acted.
      terminated, truncated: bool `[T, ...]`.
      discount: scalar, gamma.
      trace: scalar in [0, 1], lambda (remark 2).
      rho_bar: scalar, bounds the ratio in `delta`: it decides which policy's value is learnt.
      c_bar: scalar, at most `rho_bar`, bounds the ratio in the trace: it decides how fast.

    Returns:
      `(targets, advantages)`, both float32 `[T, ...]`; `targets` are for `v_tm1`.
    """
    name = "vtrace"
    _check_rows(
        name, r_t=r_t, v_tm1=v_tm1, v_t=v_t, ratio=ratio, terminated=terminated, truncated=truncated
    )
    _check_scalars(name, discount=discount, trace=trace, rho_bar=rho_bar, c_bar=c_bar)
    r_t, v_tm1, v_t, ratio = _float32(r_t), _float32(v_tm1), _float32(v_t), _float32(ratio)
    rho = jnp.minimum(rho_bar, ratio)
    c = trace * jnp.minimum(c_bar, ratio)
    delta = rho * (r_t + discount * jnp.where(terminated, 0.0, v_t) - v_tm1)
    ended = jnp.logical_or(terminated, truncated)
    targets = v_tm1 + discounted_returns(delta, jnp.where(ended, 0.0, discount * c))
    following = jnp.where(truncated, v_t, jnp.concatenate([targets[1:], v_t[-1:]]))
    advantages = rho * (r_t + discount * jnp.where(terminated, 0.0, following) - v_tm1)
    return targets, advantages


def _float32(array: float | jax.Array) -> jax.Array:
    return jnp.asarray(array, jnp.float32)


def _check_rows(function: str, *, r_t: jax.Array, **arrays: jax.Array) -> None:
    shape = jnp.shape(r_t)
    if not shape or shape[0] == 0:
        raise InputError(f"{function}: r_t has shape {shape}: expected [T, ...] with T at least 1")
    for name, array in arrays.items():
        if jnp.shape(array) != shape:
            raise InputError(
                f"{function}: {name} has shape {jnp.shape(array)} and r_t {shape}: "
                "give both the same shape [T, ...]"
            )
        if name in ("terminated", "truncated") and array.dtype != jnp.bool_:
            raise InputError(
                f"{function}: {name} is {array.dtype}: expected bool; check the order of the "
                "arguments, or convert it with .astype(bool)"
            )


def _check_scalars(function: str, **scalars: Scalar) -> None:
    for name, scalar in scalars.items():
        if jnp.shape(scalar) != ():
            raise InputError(
                f"{function}: {name} has shape {jnp.shape(scalar)}: expected a scalar; "
                "for several values map over it with jax.vmap"
            )
