"""The gradient of a loss over a batch, taken at once or in parts that need less memory."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from paradigms.core.errors import InputError
from paradigms.core.mesh import constrain_batch
from paradigms.core.metrics import Mean, Means, add
from paradigms.core.scan import loop
from paradigms.core.state import PyTree, TrainState

Loss = Callable[[PyTree, TrainState, Any], tuple[jax.Array, tuple[dict[str, Mean], PyTree]]]
"""`(params, state, batch) -> (loss, (metrics, model_state))`, differentiated in `params`."""

Gradient = tuple[PyTree, dict[str, Mean], PyTree]
"""Gradients, metrics and the new model state."""


class _Division(NamedTuple):
    parts: int
    unroll: bool | None
    used: list[bool]


_division: ContextVar[_Division | None] = ContextVar("division", default=None)


@contextlib.contextmanager
def in_parts(parts: int, unroll: bool | None = None) -> Iterator[list[bool]]:
    """Whatever is traced within takes its `gradient` of so many parts of a batch in turn.

    What was traced before stays as it was: JAX knows a function again, whatever it is traced in.

    Args:
      parts: of equal size.
      unroll: see `scan.loop`.

    Yields:
      An entry for each `gradient` since: none where a learner goes a way of its own.
    """
    division = _Division(parts, unroll, [])
    before = _division.set(division)
    try:
        yield division.used
    finally:
        _division.reset(before)


def gradient(loss: Loss, state: TrainState, batch: Any) -> Gradient:
    """The gradient of a mean over the examples of a batch, at `state.params`.

    Within `in_parts` it is the mean of the gradients of the parts, each with the weight of its
    `metrics["loss"].count`: that of the undivided batch where the loss is that mean, whatever a
    `mask` hides. Sums are float32 at least. Each part has random numbers of its own; batch
    statistics pass from one to the next, and metrics are of all parts.

    Raises:
      InputError: the batch does not divide.
    """
    division = _division.get()
    if division is None:
        grads, (metrics, model_state) = jax.grad(loss, has_aux=True)(state.params, state, batch)
        return grads, metrics, model_state
    division.used.append(True)
    parts = division.parts
    divided = jax.tree.map(lambda leaf: _divide(leaf, parts), batch)

    def of_part(index: Any, model_state: PyTree, part: Any) -> Gradient:
        # A key of its own, lest every part should be augmented and masked alike.
        key = jax.random.fold_in(state.key, index)
        inside = state.replace(key=key, model_state=model_state)
        part = constrain_batch(part)
        grads, (metrics, after) = jax.grad(loss, has_aux=True)(state.params, inside, part)
        weight = metrics["loss"].count
        return jax.tree.map(lambda leaf: leaf * weight, grads), metrics, after

    def body(sums: Gradient, numbered: tuple[jax.Array, Any]) -> tuple[Gradient, None]:
        grads, metrics, model_state = sums
        more, measured, model_state = of_part(numbered[0], model_state, numbered[1])
        return (jax.tree.map(jnp.add, grads, more), add(metrics, measured), model_state), None

    first = jax.tree.map(lambda leaf: leaf[0], divided)
    shapes = jax.eval_shape(of_part, 0, state.model_state, first)
    zeros: tuple[PyTree, Means] = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:2])
    start, numbered = (*zeros, state.model_state), (jnp.arange(parts), divided)
    (sums, metrics, model_state), _ = loop(body, start, numbered, parts, division.unroll)
    count = metrics["loss"].count
    share = 1 / jnp.where(count > 0, count, 1.0)
    grads = jax.tree.map(lambda s, leaf: (s * share).astype(leaf.dtype), sums, state.params)
    return grads, metrics, model_state


def _divide(leaf: jax.Array, parts: int) -> jax.Array:
    """`[B, ...]` to `[parts, B / parts, ...]`, every so many rows to a part.

    On a mesh each device has rows of every part then, and no part lies on some devices alone.
    """
    rows = len(leaf) if jnp.ndim(leaf) else 1
    if rows < parts or rows % parts:
        raise InputError(
            f"a batch of {rows} does not divide into {parts} parts: "
            "choose a divisor, or another batch size"
        )
    return jnp.swapaxes(leaf.reshape(-1, parts, *leaf.shape[1:]), 0, 1)
