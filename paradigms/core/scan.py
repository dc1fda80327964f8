"""Loops inside a program, written out where XLA would run them slowly."""

from collections.abc import Callable
from typing import Any

import jax


def loops_are_slow(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether XLA would run `function` much slower inside a loop than written out.

    On the CPU backend a convolution inside a loop loses its threaded library kernel and takes many
    times as long (google/jax issue 12868). Everything else is as fast, and compiles once.
    """
    if jax.default_backend() != "cpu":
        return False
    # The printed program shows convolutions at any depth of nested calls.
    return "conv_general_dilated" in str(jax.make_jaxpr(function)(*arguments))


def loop(
    body: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any,
    n: int,
    unroll: bool | None = None,
) -> tuple[Any, Any]:
    """`jax.lax.scan` of n rounds, written out where loops are slow.

    Args:
      body: `(carry, x) -> (carry, y)`.
      carry: any tree.
      xs: arrays `[n, ...]`, or None.
      n: at least 1.
      unroll: whether to write it out; None to ask `loops_are_slow`.

    Returns:
      The last carry, and what `body` gave, stacked `[n, ...]`.
    """
    first = jax.tree.map(lambda leaf: leaf[0], xs)
    if n == 1:  # scan would make a loop even of this
        carry, y = body(carry, first)
        return carry, jax.tree.map(lambda leaf: leaf[None], y)
    if unroll is None:
        unroll = loops_are_slow(body, carry, first)
    return jax.lax.scan(body, carry, xs, length=n, unroll=n if unroll else 1)
