"""Rematerialisation: what a block computes is not kept for its gradient, but computed again."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import flax.linen as nn

from nets.net import Net, PyTree

_forgetting: ContextVar[list[str] | None] = ContextVar("forgetting", default=None)


@contextlib.contextmanager
def rematerialising() -> Iterator[list[str]]:
    """Whatever is traced within keeps the inputs of its blocks only (Chen et al. 2016).

    Chen et al. 2016 (arXiv:1604.06174): a net of n blocks needs the memory of n inputs and of one
    block, not of n blocks, for a forward pass more, a third of the time. Parameters, their names
    and what dropout draws stay as they are, and so do gradients but for rounding. What was traced
    before stays as it was.

    Yields:
      The names of the blocks that were traced since: empty where a net has none.
    """
    blocks: list[str] = []
    before = _forgetting.set(blocks)
    try:
        yield blocks
    finally:
        _forgetting.reset(before)


def rematerialised(net: Net) -> Net:
    """The net, keeping the inputs of its blocks alone for the backward pass.

    The blocks are those of transformers and residual networks; see `rematerialising`.

    Raises:
      ValueError: when it is traced, a net without blocks.
    """

    def apply(*args: Any, **options: Any) -> tuple[Any, PyTree]:
        with rematerialising() as blocks:
            outputs = net.apply(*args, **options)
        if not blocks:
            raise ValueError("this net has no blocks whose activations could be computed again")
        return outputs

    return Net(net.init, apply)


def call_block(block: nn.Module, *args: Any, **options: Any) -> Any:
    """Inside a compact module: `block(*args, **options)`, forgotten where that is asked for.

    Args:
      block: one of several of its kind.
      *args: trees of arrays, or None.
      **options: static.
    """
    blocks = _forgetting.get()
    if blocks is None or block.is_initializing():
        return block(*args, **options)
    blocks.append(block.name or type(block).__name__)
    return nn.remat(lambda block, *args: block(*args, **options))(block, *args)
