"""Nets with a memory, for worlds that do not show all that matters.

A recurrent net is a `Net` of one step: `(x[B, ...], carry) -> (output, value[B], carry)`. What it
remembers goes in and comes out, so whoever applies it decides where a memory begins.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from nets.heads import ActorCritic, Hidden
from nets.layers import Activation, activation_function, check_choice
from nets.net import Net, from_linen

Array = jax.Array
Cell = Literal["lstm", "gru"]

CELLS: dict[str, Any] = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}


class RecurrentActorCritic(nn.Module):
    """An embedding and a recurrent cell, and on what it gives out a policy and a value."""

    features: Sequence[int]
    num_outputs: int
    cell: Cell = "lstm"
    width: int = 128
    activation: Activation = "tanh"
    continuous: bool = False

    @nn.compact
    def __call__(self, x: Array, carry: Any, train: bool = False) -> tuple[Any, Array, Any]:
        """Maps `x[B, ...]` and a carry to `(logits, value, carry)`, or as `actor_critic` does."""
        x = x.reshape(x.shape[0], -1)
        init = nn.initializers.orthogonal(math.sqrt(2))
        x = Hidden(self.features, self.activation, init, name="embedding")(x)
        memory = CELLS[self.cell](
            self.width, kernel_init=nn.initializers.orthogonal(1.0), name="memory"
        )
        carry, x = memory(carry, x)
        heads = ActorCritic((), self.num_outputs, continuous=self.continuous, name="heads")
        output, value = heads(x)
        return output, value, carry


def recurrent_actor_critic(
    features: Sequence[int],
    num_outputs: int,
    *,
    cell: Cell = "lstm",
    width: int = 128,
    activation: Activation = "tanh",
    continuous: bool = False,
) -> tuple[Net, Callable[[int], Any]]:
    """Policy and value from one memory, for recurrent PPO, with the carry of an episode's start.

    An LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000) or a GRU (Cho
    et al. 2014, in the variant whose reset gate acts after the product). Kernels are orthogonal,
    with gain sqrt(2) in the embedding, 1 in each gate of the cell, 0.01 for the policy and 1 for
    the value, and biases are zero (Huang et al. 2022, "The 37 Implementation Details of Proximal
    Policy Optimization", details 2 and LSTM 1).

    Args:
      features: widths of the embedding's dense layers; empty feeds the cell what is observed.
      num_outputs: number of actions A, or of action coordinates D.
      cell: "lstm" or "gru".
      width: of the memory, W.
      activation: of the embedding, by name or as a function.
      continuous: as in `actor_critic`.

    Returns:
      `(net, carry)`. The net maps `x[B, ...]` and a carry to `(logits[B, A], value[B], carry)`, or
      to `((mean[B, D], log_std[B, D]), value[B], carry)`. `carry(n)` gives zeros, `[n, W]` for a
      GRU and two of them, `(cell, hidden)`, for an LSTM.

    Raises:
      ValueError: unknown cell or activation, or a width below 1.
    """
    check_choice("cell", cell, tuple(CELLS))
    activation_function(activation)
    widths = (*features, width, num_outputs)
    if min(widths) < 1:
        raise ValueError(f"recurrent_actor_critic: widths {widths} must all be at least 1")

    def carry(n: int) -> Any:
        # Two arrays, because one buffer under two names cannot be donated.
        zeros = [jnp.zeros((n, width)) for _ in range(2 if cell == "lstm" else 1)]
        return tuple(zeros) if cell == "lstm" else zeros[0]

    module = RecurrentActorCritic(tuple(features), num_outputs, cell, width, activation, continuous)
    return from_linen(module), carry
