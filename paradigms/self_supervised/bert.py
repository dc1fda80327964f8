"""The masked language model: tokens are hidden and predicted from what is around them."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, minimise
from paradigms.core.metrics import Mean
from paradigms.core.state import PyTree, TrainState
from paradigms.self_supervised.gpt import cross_entropy


def bert(
    net: Net,
    optimizer: optax.GradientTransformation,
    *,
    vocab_size: int,
    mask_token: int,
    special_tokens: Iterable[int] = (),
    pad_token: int | None = None,
    rate: float = 0.15,
) -> Learner:
    """Learns to fill in hidden tokens (Devlin et al. 2019, arXiv:1810.04805, section 3.1).

    Task 1 of the paper, without the next-sentence task, and with other tokens hidden at every
    update (Liu et al. 2019, RoBERTa, arXiv:1907.11692, section 4.1). `masked_tokens` says which;
    the loss is the mean cross entropy in nats over the chosen tokens of the whole batch.

    A batch has `tokens` int `[B, T]` and optionally `mask` `[B]`, the weight of each sequence. Call
    `data.tokens.check_tokens` on the text first: here nothing is known of its values.

    Args:
      net: from tokens `[B, T]` and `valid` bool `[B, T]`, false at padding, to logits `[B, T, V]`.
      optimizer: applied to the gradient of the loss.
      vocab_size: number of tokens, V.
      mask_token: id of what stands for a hidden token.
      special_tokens: ids of tokens that are never hidden nor put in another's place; the mask token
        and the padding are such by themselves.
      pad_token: id of padding; None where nothing is padded.
      rate: probability of a token to be chosen, in (0, 1).

    Returns:
      A learner. `update` reports `loss` and `accuracy`, both over the chosen tokens, and norms;
      `evaluate` hides tokens by its key and reports the same. Both count chosen tokens.

    Raises:
      InputError: a rate outside (0, 1), an id outside the vocabulary, no ordinary token, or shapes
        that do not fit.
    """
    special = {mask_token, *special_tokens} | (set() if pad_token is None else {pad_token})
    _check_options(vocab_size, mask_token, special, rate)

    def valid(batch: Batch) -> jax.Array:
        tokens = batch["tokens"]
        return jnp.ones(tokens.shape, bool) if pad_token is None else tokens != pad_token

    def hide(key: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return masked_tokens(
            key,
            batch["tokens"],
            vocab_size=vocab_size,
            mask_token=mask_token,
            special_tokens=special,
            rate=rate,
        )

    def measure(logits: jax.Array, chosen: jax.Array, batch: Batch) -> Metrics:
        tokens = batch["tokens"]
        losses = cross_entropy(logits, tokens)
        weight = chosen * jnp.asarray(batch.get("mask", 1.0), jnp.float32).reshape(-1, 1)
        return {
            "loss": Mean.of(losses, weight),
            "accuracy": Mean.of(logits.argmax(-1) == tokens, weight),
        }

    def init(key: jax.Array, example: Batch) -> tuple[PyTree, PyTree]:
        return net.init(key, example["tokens"], valid(example))

    def loss_of(params: PyTree, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        inputs, chosen = hide(state.rng("mask"), batch)
        logits, model_state = net.apply(
            params, state.model_state, inputs, valid(batch), key=state.rng("net"), train=True
        )
        metrics = measure(logits, chosen, batch)
        return metrics["loss"].value(), (metrics, model_state)

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        inputs, chosen = hide(key, batch)
        logits, _ = net.apply(state.params, state.model_state, inputs, valid(batch), key=key)
        return measure(logits, chosen, batch)

    return minimise(loss_of, optimizer, init=init, evaluate=evaluate)


def masked_tokens(
    key: jax.Array,
    tokens: jax.Array,
    *,
    vocab_size: int,
    mask_token: int,
    special_tokens: Iterable[int] = (),
    rate: float = 0.15,
) -> tuple[jax.Array, jax.Array]:
    """Hides tokens (Devlin et al. 2019, appendix A.1).

    Each token that is not special is chosen with probability `rate`, independently of the others,
    so that the number of chosen ones varies, where the paper's code fixes it to 15 % of a sequence.
    Of the chosen, 80 % become the mask token, 10 % an ordinary token drawn uniformly, possibly the
    same again, and 10 % stay. The paper's code draws among special tokens too, RoBERTa's does not.

    Args:
      key: of the draw.
      tokens: int `[B, T]`, or of any shape.
      vocab_size: ids lie in `[0, vocab_size)`.
      mask_token: what most of the chosen become; itself special.
      special_tokens: ids that are never chosen and never drawn.
      rate: in (0, 1).

    Returns:
      `(inputs, chosen)`, of the shape of `tokens`: what the net gets, and bool, what it is asked.

    Raises:
      InputError: as of `bert`.
    """
    special = {mask_token, *special_tokens}
    ordinary = _check_options(vocab_size, mask_token, special, rate)
    choice_key, kind_key, word_key = jax.random.split(key, 3)
    eligible = jnp.isin(tokens, np.setdiff1d(np.arange(vocab_size), ordinary), invert=True)
    chosen = jax.random.bernoulli(choice_key, rate, tokens.shape) & eligible
    kind = jax.random.uniform(kind_key, tokens.shape)
    words = jnp.asarray(ordinary, tokens.dtype)
    word = words[jax.random.randint(word_key, tokens.shape, 0, len(ordinary))]
    hidden = jnp.where(kind < 0.8, jnp.asarray(mask_token, tokens.dtype), word)
    return jnp.where(chosen & (kind < 0.9), hidden, tokens), chosen


def _check_options(
    vocab_size: int, mask_token: int, special_tokens: set[int], rate: float
) -> np.ndarray:
    """The ids of the ordinary tokens, where the options are in order."""
    if not 0 < rate < 1:
        raise InputError(f"rate={rate}: expected the share of tokens to hide, in (0, 1)")
    outside = {token for token in special_tokens if not 0 <= token < vocab_size}
    if outside:
        raise InputError(
            f"special tokens {sorted(outside)} (mask_token={mask_token}) are outside the "
            f"vocabulary: expected 0 to {vocab_size - 1}"
        )
    ordinary = np.setdiff1d(np.arange(vocab_size), sorted(special_tokens))
    if not len(ordinary):
        raise InputError(f"all {vocab_size} tokens are special: there is none to hide")
    return ordinary
