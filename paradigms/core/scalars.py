"""Numbers that options are: fixed, traced by a sweep, or on a schedule; and what they may be."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from paradigms.core.errors import InputError

Scalar = float | jax.Array
Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]
Scheduled = Scalar | Schedule


def current(value: Scheduled, count: jax.typing.ArrayLike) -> Any:
    """What a number, or a schedule of `count`, is at `count`."""
    return value(count) if callable(value) else value


def is_zero(value: Scalar) -> bool:
    """Whether `value` is known to be 0; a traced one is not."""
    return not isinstance(value, jax.core.Tracer) and float(value) == 0


def check_range(
    name: str,
    value: Any,
    least: float,
    *,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raises InputError for a number that does not fit; a traced one or a schedule passes."""
    if callable(value):
        return
    if np.ndim(value) != 0:
        raise InputError(f"{name} must be one number, not an array of shape {np.shape(value)}")
    if isinstance(value, jax.core.Tracer):
        return
    number = float(value)
    fits = np.isfinite(number) and number >= least
    fits = fits and (above is None or number > above) and (below is None or number < below)
    if not fits:
        bounds = f"above {above}" if above is not None else f"at least {least}"
        bounds += f" and below {below}" if below is not None else ""
        raise InputError(f"{name} must be {bounds}, not {value}")


def check_steps(steps: int) -> None:
    """Raises InputError for what is no whole number of at least 1."""
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise InputError(f"steps must be a whole number of at least 1, not {steps}")
