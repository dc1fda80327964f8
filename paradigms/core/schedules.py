"""Schedules: functions from the number of updates done, counted from 0, to a scalar."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from paradigms.core.errors import InputError
from paradigms.core.scalars import Scalar, Schedule, check_range, check_steps


def constant(value: Scalar) -> Schedule:
    """`value` at every step."""
    check_range("value", value, 0)
    return optax.constant_schedule(value)


def warmup_cosine(
    peak: Scalar,
    steps: int,
    *,
    warmup_steps: int = 0,
    end: Scalar = 0.0,
) -> Schedule:
    """Linear from 0 to `peak`, then half a cosine down to `end` (Loshchilov and Hutter, 2017).

    With a warm-up the very first update has rate 0 and changes nothing.

    Args:
      peak: the highest rate; may be traced.
      steps: updates in all, the warm-up among them; `end` is reached at this step and kept.
      warmup_steps: updates before `peak`.
      end: the last rate, itself and not a fraction.

    Raises:
      InputError: a rate below 0, or not `0 <= warmup_steps < steps`.
    """
    _check_warmup(peak, end, steps, warmup_steps)
    # optax's own composition of the two cannot take a traced peak.
    shape = optax.cosine_decay_schedule(1.0, steps - warmup_steps)
    return _warm_up(peak, warmup_steps, lambda step: end + (peak - end) * shape(step))


def warmup_linear(
    peak: Scalar,
    steps: int,
    *,
    warmup_steps: int = 0,
    end: Scalar = 0.0,
) -> Schedule:
    """Linear from 0 to `peak`, then linear down to `end`; arguments as for `warmup_cosine`."""
    _check_warmup(peak, end, steps, warmup_steps)
    return _warm_up(peak, warmup_steps, optax.linear_schedule(peak, end, steps - warmup_steps))


def one_cycle(
    peak: Scalar,
    steps: int,
    *,
    start: Scalar = 0.0,
    end: Scalar = 0.0,
    peak_at: float = 0.5,
) -> Schedule:
    """A triangle: linear from `start` up to `peak`, then linear down to `end` (Smith, 2017).

    airbench's is `one_cycle(peak, steps, start=.2 * peak, end=.07 * peak, peak_at=.23)`.

    Args:
      peak: the highest rate; may be traced, as may `start` and `end`.
      steps: updates in all; `end` is reached at this step and kept.
      start: the first rate.
      end: the last rate.
      peak_at: where the peak lies, as a fraction of `steps` in (0, 1), rounded to a step.

    Raises:
      InputError: a rate below 0, or no step left before or after the peak.
    """
    for name, value in (("peak", peak), ("start", start), ("end", end)):
        check_range(name, value, 0)
    check_steps(steps)
    top = round(peak_at * steps)
    if not 0 < top < steps:
        raise InputError(
            f"peak_at={peak_at} puts the peak at step {top} of {steps}; it must lie within"
        )
    return optax.join_schedules(
        [optax.linear_schedule(start, peak, top), optax.linear_schedule(peak, end, steps - top)],
        [top],
    )


def step_decay(
    value: Scalar, boundaries: tuple[int, ...] | list[int], factor: float = 0.1
) -> Schedule:
    """`value`, multiplied by `factor` from each boundary on.

    Args:
      value: the first rate; may be traced.
      boundaries: steps, increasing.
      factor: positive.

    Raises:
      InputError: a rate or factor out of range, or boundaries that do not increase.
    """
    check_range("value", value, 0)
    check_range("factor", factor, 0, above=0)
    steps = [0, *boundaries]
    if any(not isinstance(step, int | np.integer) for step in steps) or sorted(set(steps)) != steps:
        raise InputError(f"boundaries must be increasing steps above 0, not {list(boundaries)}")
    return optax.piecewise_constant_schedule(value, dict.fromkeys(boundaries, factor))


def ramp_up(value: Scalar, steps: int) -> Schedule:
    """`value * exp(-5 (1 - step / steps)^2)` up to `steps`, then `value` (Laine & Aila 2017).

    From 0.0067 to 1 times the value; for the weight of a loss that is of no use at first.
    """
    check_steps(steps)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        left = 1 - jnp.minimum(jnp.asarray(step, jnp.float32) / steps, 1.0)
        return value * jnp.exp(-5 * jnp.square(left))

    return schedule


def held(schedule: Schedule, steps: int) -> Schedule:
    """Each value of `schedule` for `steps` updates of the optimiser.

    For a learner that does several of them at once, such as PPO, whose published rates move on from
    one round of minibatches to the next.
    """
    if steps < 1:
        raise InputError(f"held(steps={steps}): expected at least 1")
    return lambda count: schedule(jnp.asarray(count) // steps)


def cosine_arc(value: Scalar, steps: int, arc: float = 7 / 16) -> Schedule:
    """`value * cos(arc * pi * step / steps)`; FixMatch's schedule by default.

    Sohn et al., 2020 (https://arxiv.org/abs/2001.07685), section 2.3: the rate ends at .195 of its
    start.

    Raises:
      InputError: a rate below 0, fewer than one step, or an arc outside (0, 1/2].
    """
    check_range("value", value, 0)
    check_range("arc", arc, 0, above=0, below=0.5 + 1e-9)
    check_steps(steps)
    return lambda step: value * jnp.cos(arc * jnp.pi * jnp.minimum(step / steps, 1.0))


def _warm_up(peak: Scalar, steps: int, then: Schedule) -> Schedule:
    if steps == 0:
        return then
    return optax.join_schedules([optax.linear_schedule(0.0, peak, steps), then], [steps])


def _check_warmup(peak: Scalar, end: Scalar, steps: int, warmup_steps: int) -> None:
    check_range("peak", peak, 0)
    check_range("end", end, 0)
    check_steps(steps)
    if not isinstance(warmup_steps, int | np.integer) or not 0 <= warmup_steps < steps:
        raise InputError(
            f"warmup_steps must be a whole number from 0 to steps - 1 = {steps - 1}, "
            f"not {warmup_steps}"
        )
