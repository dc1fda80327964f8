"""The autoregressive language model: every token of a text is predicted from those before it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nets.net import Net
from paradigms.core import metrics as metrics_lib
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, minimise
from paradigms.core.metrics import Mean, Means
from paradigms.core.state import PyTree, TrainState


def gpt(net: Net, optimizer: optax.GradientTransformation) -> Learner:
    """Learns to predict the next token (Radford et al. 2019, GPT-2, equation 1).

    "Language Models are Unsupervised Multitask Learners": the probability of a text is the product
    of those of its tokens, each given the ones before it, and the loss is the mean over all of them
    of the negative logarithm, in nats.

    A batch has `tokens` int `[B, T + 1]`, windows of a text in which the last T are predicted from
    the first T, and optionally `mask` `[B]`, the weight of each window. Windows are full, so
    nothing is padded; `windowed` draws them from a text on the device, and `data.tokens.windows`
    cuts them for evaluation. Call `data.tokens.check_tokens` on the text first: here nothing is
    known of its values.

    Args:
      net: causal, from tokens `[B, T]` to logits `[B, T, V]`; those at t see no token after t.
      optimizer: applied to the gradient of the mean loss. That only matrices decay is its business:
        see `core.optimizers.kernels_only`, its default.

    Returns:
      A learner. `update` reports `loss` (nats per token), `accuracy` and norms; `evaluate` reports
      `loss` and `accuracy`, which count windows, all of them of one length. See `derive_language`.

    Raises:
      InputError: tokens that are no windows of two or more, or logits that do not fit them.
    """

    def measure(logits: jax.Array, batch: Batch) -> Metrics:
        target, mask = batch["tokens"][:, 1:], batch.get("mask")
        hits = logits.argmax(-1) == target
        return {
            "loss": Mean.of(cross_entropy(logits, target).mean(-1), mask),
            "accuracy": Mean.of(hits.astype(jnp.float32).mean(-1), mask),
        }

    def init(key: jax.Array, example: Batch) -> tuple[PyTree, PyTree]:
        return net.init(key, _inputs(example))

    def loss_of(params: PyTree, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        logits, model_state = net.apply(
            params, state.model_state, _inputs(batch), key=state.rng("net"), train=True
        )
        metrics = measure(logits, batch)
        return metrics["loss"].value(), (metrics, model_state)

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        logits, _ = net.apply(state.params, state.model_state, _inputs(batch), key=key)
        return measure(logits, batch)

    return minimise(loss_of, optimizer, init=init, evaluate=evaluate)


def cross_entropy(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Cross entropy in nats, one value per token.

    Args:
      logits: floating `[B, T, V]`; computed in float32 whatever the dtype.
      tokens: the true ones, int `[B, T]`.

    Returns:
      float32 `[B, T]`.

    Raises:
      InputError: the shapes do not fit.
    """
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        raise InputError(
            f"logits {logits.shape} and tokens {tokens.shape} do not fit: expected a net that "
            "gives [B, T, V] for tokens [B, T]"
        )
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), tokens)


def derive_language(means: Means) -> dict[str, float]:
    """`metrics.derive`, and two ways to say the loss: `perplexity` and `bits_per_token`.

    Perplexity is `exp(loss)`, per token; compare it only with that of the same tokens. With
    characters for tokens, the bits are bits per character.
    """
    values = metrics_lib.derive(means)
    if "loss" in values:
        # Beyond the largest float there is nothing to tell apart.
        values["perplexity"] = math.exp(min(values["loss"], 700.0))
        values["bits_per_token"] = values["loss"] / math.log(2)
    return values


def _inputs(batch: Batch) -> jax.Array:
    tokens = batch["tokens"]
    if tokens.ndim != 2 or tokens.shape[1] < 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise InputError(
            f"gpt: tokens are {tokens.dtype} {list(tokens.shape)}: expected integers [B, T + 1], "
            "windows of a text with the token that follows each of T"
        )
    return tokens[:, :-1]
