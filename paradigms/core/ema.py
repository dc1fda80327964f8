"""The exponential moving average of a tree: teachers, target networks, averaged weights."""

from typing import Any

import jax
import jax.numpy as jnp

from paradigms.core.errors import InputError
from paradigms.core.state import PyTree


def ema(average: PyTree, value: PyTree, decay: float | jax.Array) -> PyTree:
    """`decay * average + (1 - decay) * value`, leaf by leaf, without a bias correction.

    Start the average at a first value (a copy of the initial weights), not at zero, and call this
    after the optimiser's step. Batch statistics are a tree like any other: pass them to have them
    averaged, or leave them out.

    Args:
      average: the tree so far. The result keeps its dtypes; hold it in float32, since in bfloat16
        a decay above .996 changes nothing. Sums are formed in float32 (float64 for float64).
      value: a tree of the same structure and shapes. Its integers, booleans and PRNG keys are not
        averaged but copied.
      decay: scalar in [0, 1], the share of `average`; may be traced.

    Raises:
      InputError: the trees do not match, or the decay lies outside [0, 1].
    """
    if not isinstance(decay, jax.core.Tracer) and not 0 <= float(decay) <= 1:
        raise InputError(f"the decay of an average must lie in [0, 1], not {decay}")
    ours: Any = jax.tree.structure(average)
    theirs: Any = jax.tree.structure(value)
    if ours != theirs:
        raise InputError(f"an average of {ours} cannot take in {theirs}")

    def step(path: tuple[Any, ...], old: jax.Array, new: jax.Array) -> jax.Array:
        old, new = jnp.asarray(old), jnp.asarray(new)
        if old.shape != new.shape:
            raise InputError(
                f"the average of '{jax.tree_util.keystr(path, simple=True, separator='/')}' has "
                f"shape {old.shape} and cannot take in {new.shape}"
            )
        if not jnp.issubdtype(old.dtype, jnp.inexact):
            return new
        wide = jnp.promote_types(old.dtype, jnp.float32)
        share = jnp.asarray(decay, jnp.float32)
        mixed = share * old.astype(wide) + (1 - share) * new.astype(wide)
        return mixed.astype(old.dtype)

    return jax.tree_util.tree_map_with_path(step, average, value)


def slow_copy(params: PyTree, model_state: PyTree) -> dict[str, PyTree]:
    """A net's own copy, `{"params": ..., "model_state": ...}`, to start an entry of `target`."""
    # A copy, because one buffer under two names cannot be donated.
    return jax.tree.map(jnp.copy, {"params": params, "model_state": model_state})


def follow(
    teacher: dict[str, PyTree], params: PyTree, model_state: PyTree, decay: float | jax.Array
) -> dict[str, PyTree]:
    """The teacher after the optimiser's step.

    Its weights are `decay * teacher + (1 - decay) * params`. Its batch statistics are those of its
    own pass, for they belong to what its own weights make of the data.

    Args:
      teacher: as before the step.
      params: the student's, after the step.
      model_state: of the teacher's pass.
      decay: in [0, 1].
    """
    return {"params": ema(teacher["params"], params, decay), "model_state": model_state}
