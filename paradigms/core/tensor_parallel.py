"""Tensor parallelism by path rules: what the mesh axis `model` divides of every parameter.

A dense layer whose outputs are divided ("by columns") and the next whose inputs are ("by rows")
need one all-reduce for both (Shoeybi et al. 2019, "Megatron-LM", section 3,
https://arxiv.org/abs/1909.08053): in a transformer query, key and value with the output of the
attention, and the two layers of the MLP; in a perceptron every layer with its neighbour. A table of
embeddings is divided by its vocabulary, a convolution by its output channels.

The rules go by the names that Flax and `nets/` give; what they say is where an array lies, never
what is computed, so that a name they do not know costs memory and no correctness.
"""

import re

COLUMNS, ROWS, WHOLE = -1, -2, 0

# The first that is found in a path decides. Dimensions count from the last, for seeds and ensembles
# put more in front.
_RULES = tuple(
    (re.compile(pattern), dimension)
    for pattern, dimension in (
        (r"(^|/)\w*[nN]orm(_\d+)?/(scale|bias)$", WHOLE),
        # The ends of a pair: attention's output, and every second layer of a perceptron or block.
        (r"(^|/)(SelfAttention_\d+/out|Dense_\d*[13579])/kernel$", ROWS),
        # Added after the sum over devices, hence by all of them.
        (r"(^|/)(SelfAttention_\d+/out|Dense_\d*[13579])/bias$", WHOLE),
        (r"(^|/)embedding$", ROWS),
        (r"(^|/)(kernel|bias)(_sigma)?$", COLUMNS),
    )
)


def dimension(path: str, shape: tuple[int, ...], devices: int) -> int | None:
    """Which dimension of an array the axis `model` divides.

    Args:
      path: of a parameter, or of a moment or an average of it, which ends in the same names, for
        instance "opt_state/0/mu/block_0/Dense_1/kernel".
      shape: of the array.
      devices: along the axis.

    Returns:
      The dimension, from 0; None where the array stays whole, also because it does not divide.
    """
    found = next((axis for pattern, axis in _RULES if pattern.search(path)), WHOLE)
    if devices == 1 or found == WHOLE or len(shape) < -found or shape[found] % devices:
        return None
    return len(shape) + found
