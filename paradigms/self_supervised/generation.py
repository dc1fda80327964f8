"""Writing with a language model, one token after another."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.state import PyTree


def generate(
    net: Net,
    cache: Callable[[int], PyTree],
    params: PyTree,
    model_state: PyTree,
    prompt: jax.Array,
    length: int,
    key: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> jax.Array:
    """Continues texts, each token drawn from what the net says of those before it.

    The prompt is read at once; each token after it costs one step of one token, which finds the
    keys and values of the others in the cache. To be jitted by the caller, with the net, the cache,
    the length and the options fixed.

    Args:
      net: from tokens `[B, T]` and a cache to `(logits [B, T, V], cache)`, the cache grown by T.
      cache: `B -> cache`, empty.
      params: of the net.
      model_state: of the net.
      prompt: int `[B, P]`, at least one token.
      length: tokens to write, at least 1.
      key: of the draws.
      temperature: the logits are divided by it; at 0 the most probable token is always taken.
      top_k: draw among so many most probable tokens only; see `top_k_logits`.
      top_p: draw among the most probable tokens that together have this probability only, once
        `temperature` and `top_k` were applied; see `top_p_logits`.

    Returns:
      int `[B, P + length]` of the prompt's dtype: the prompt, and what was written.

    Raises:
      InputError: an option out of its range, or nothing to begin or to write.
      ValueError: the net's own, where prompt and text are longer than its context.
    """
    if prompt.ndim != 2 or prompt.shape[1] < 1 or length < 1:
        raise InputError(
            f"generate: prompt {list(prompt.shape)} and length={length}: expected a prompt [B, P] "
            "of at least one token, and at least one to write"
        )
    if not temperature >= 0:
        raise InputError(f"temperature={temperature}: expected a number of at least 0")
    batch, start = prompt.shape
    # How full a cache is shows only when it runs, too late to refuse. Asked by shapes alone, for
    # the whole text and without a cache, the net refuses one that is too long for it.
    whole = jax.ShapeDtypeStruct((batch, start + length - 1), prompt.dtype)
    jax.eval_shape(net.apply, params, model_state, whole)

    def draw(key: jax.Array, logits: jax.Array) -> jax.Array:
        logits = logits[:, -1].astype(jnp.float32)
        if temperature > 0:
            logits = logits / temperature
        if top_k is not None:
            logits = top_k_logits(logits, top_k)
        if top_p is not None:
            logits = top_p_logits(logits, top_p)
        if temperature == 0:
            return logits.argmax(-1).astype(prompt.dtype)
        return jax.random.categorical(key, logits).astype(prompt.dtype)

    def step(
        carry: tuple[PyTree, jax.Array], key: jax.Array
    ) -> tuple[tuple[PyTree, jax.Array], jax.Array]:
        past, token = carry
        (logits, past), _ = net.apply(params, model_state, token[:, None], past)
        token = draw(key, logits)
        return (past, token), token

    keys = jax.random.split(key, length)
    (logits, past), _ = net.apply(params, model_state, prompt, cache(batch))
    first = draw(keys[0], logits)
    _, others = jax.lax.scan(step, (past, first), keys[1:])
    return jnp.concatenate([prompt, first[:, None], others.T], axis=1)


def top_k_logits(logits: jax.Array, k: int) -> jax.Array:
    """Keeps the k largest logits (Fan et al. 2018, arXiv:1805.04833, section 5.4).

    Args:
      logits: `[..., V]`.
      k: how many to keep, from 1 to V; among equal ones those of the lower ids.

    Returns:
      `[..., V]`, the others minus infinity.

    Raises:
      InputError: `k` is outside 1 to V.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise InputError(f"top_k={k}: expected 1 to {logits.shape[-1]}, the size of the vocabulary")
    return jnp.where(_ranks(logits) < k, logits, -jnp.inf)


def top_p_logits(logits: jax.Array, p: float) -> jax.Array:
    """Keeps the nucleus (Holtzman et al. 2020, arXiv:1904.09751, equation 2).

    It is the smallest set of most probable tokens whose probability is at least p, so there is
    always one; among equally probable ones those of the lower ids come first.

    Args:
      logits: `[..., V]`.
      p: in (0, 1]; 1 keeps all.

    Returns:
      `[..., V]`, the others minus infinity.

    Raises:
      InputError: `p` is outside (0, 1].
    """
    if not 0 < p <= 1:
        raise InputError(f"top_p={p}: expected a probability in (0, 1]")
    if p == 1:  # whatever the sum below rounds to
        return logits
    ranks = _ranks(logits)
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    ordered = jnp.sort(probabilities, axis=-1, descending=True)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    kept = jnp.take_along_axis(before < p, ranks, axis=-1)
    return jnp.where(kept, logits, -jnp.inf)


def _ranks(logits: jax.Array) -> jax.Array:
    """The place of each logit among the others, from 0 for the largest, int `[..., V]`."""
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    return jnp.argsort(order, axis=-1)
