"""Threefry, jax's generator, with its rounds written out on a CPU: the same bits, sooner.

On a CPU jax rolls the twenty rounds into a loop, whose every step XLA runs as kernels of their own
with all bits in memory in between. Written out, they are one: a normal draw of 128x20 takes two
fifths of the time, a dropout mask of 128x1,000 a third, the derivation of a key a sixth, all of a
small VAE's update a tenth less, and programs compile sooner (two x86 cores). Accelerators have the
rounds written out already.
"""

from typing import Any

import jax
import numpy as np
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir

_PARITY = np.uint32(0x1BD11BDA)
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry2x32(
    key1: jax.Array, key2: jax.Array, x1: jax.Array, x2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 of 20 rounds (Salmon et al. 2011, "Parallel random numbers", section 4.2).

    Args:
      key1: first word of the key, uint32.
      key2: second word of the key.
      x1: first word of the counter.
      x2: second word of the counter; the four shapes go together as in addition.

    Returns:
      Both words of the output, uint32.
    """
    keys = (key1, key2, key1 ^ key2 ^ _PARITY)
    x1, x2 = x1 + key1, x2 + key2
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x1 = x1 + x2
            x2 = (x2 << np.uint32(rotation)) | (x2 >> np.uint32(32 - rotation))
            x2 = x2 ^ x1
        x1 = x1 + keys[(group + 1) % 3]
        x2 = x2 + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x1, x2


def _apart(*words: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`threefry2x32` that does not fuse with what uses the bits, to be rounded in another way."""
    return jax.lax.optimization_barrier(threefry2x32(*words))


def write_out() -> None:
    """Makes all of jax's Threefry in this process, on a CPU, the one written out here."""
    rule: Any = mlir.lower_fun(_apart, multiple_results=True)
    mlir.register_lowering(threefry2x32_p, rule, platform="cpu")
