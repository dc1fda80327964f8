"""Transformers over tokens: GPT, which reads from left to right, and BERT, which sees all."""

import math
from collections.abc import Callable
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from nets.dense import Dense
from nets.layers import activation_function, check_choice, check_rate
from nets.net import Net, from_linen
from nets.remat import call_block
from nets.transformer import Block, Initializer, Positions, check_heads, check_sizes, sinusoid

Array = jax.Array
# {"key": one array [B, context, H, D / H] per layer, "value": the same, "length": int32[]}
Cache = dict[str, Any]

EPSILON = 1e-5


class LanguageModel(nn.Module):
    """What GPT and BERT share: all but the head."""

    vocab_size: int
    layers: int
    heads: int
    width: int
    context: int
    dropout: float
    positions: Positions
    causal: bool
    bias: bool
    kernel_init: Initializer
    out_init: Initializer

    @nn.nowrap
    def read(
        self, tokens: Array, valid: Array | None, cache: Cache | None, train: bool
    ) -> tuple[Array, nn.Embed, Cache | None]:
        """Maps `tokens[B, T]` to `([B, T, D], the embedding, the cache moved on)`."""
        if tokens.ndim != 2 or tokens.shape[1] > self.context:
            raise ValueError(
                f"tokens of shape {tokens.shape}: expected [B, T], with a sequence no longer than "
                f"the context of {self.context}: cut it, or make the net with a longer context"
            )
        length = tokens.shape[1]
        embed = nn.Embed(
            self.vocab_size, self.width, embedding_init=self.kernel_init, name="tokens"
        )
        x = embed(tokens)
        past = jnp.int32(0) if cache is None else cache["length"]
        if self.positions == "learned":
            table = self.param("positions", self.kernel_init, (self.context, self.width))
            x = x + lax.dynamic_slice_in_dim(table, past, length)
        elif self.positions == "sinusoidal":
            # The paper's factor (section 3.4), without which the waves drown the tokens.
            waves = sinusoid(past + jnp.arange(length), self.width)
            x = math.sqrt(self.width) * x + waves.astype(x.dtype)
        if cache is not None:
            # Known only when it runs, so it cannot be refused; it must not pass for an answer.
            x = jnp.where(past + length <= self.context, x, jnp.nan)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        written = []
        for layer in range(self.layers):
            block = Block(
                self.heads,
                4 * self.width,
                dropout=self.dropout,
                causal=self.causal,
                rotary=self.positions == "rotary",
                bias=self.bias,
                epsilon=EPSILON,
                kernel_init=self.kernel_init,
                out_init=self.out_init,
                name=f"block_{layer}",
            )
            if cache is None:
                x = call_block(block, x, valid, train=train)
            else:
                own = (cache["key"][layer], cache["value"][layer], past)
                x, pair = block(x, valid, own, train)
                written.append(pair)
        x = nn.LayerNorm(epsilon=EPSILON, use_bias=self.bias, name="norm")(x)
        if cache is not None:
            keys, values = zip(*written, strict=True)
            cache = {"key": keys, "value": values, "length": past + length}
        return x, embed, cache


class GPT(LanguageModel):
    """The embedding is the output layer too."""

    @nn.compact
    def __call__(self, tokens: Array, cache: Cache | None = None, train: bool = False) -> Any:
        """Maps `tokens[B, T]` to logits `[B, T, V]`, or with a cache to `(logits, cache)`."""
        if cache is not None and cache["key"][0].shape[0] != tokens.shape[0]:
            raise ValueError(
                f"tokens of {tokens.shape[0]} sequences and a cache of "
                f"{cache['key'][0].shape[0]}: make it by cache({tokens.shape[0]})"
            )
        x, embed, cache = self.read(tokens, None, cache, train)
        logits = embed.attend(x)
        return logits if cache is None else (logits, cache)


class BERT(LanguageModel):
    """The head for masked tokens: dense, GELU, norm, the embedding again, and a bias."""

    @nn.compact
    def __call__(self, tokens: Array, valid: Array, train: bool = False) -> Array:
        """Maps `tokens[B, T]` and `valid[B, T]` to logits `[B, T, V]`."""
        if valid.shape != tokens.shape or valid.dtype != jnp.bool_:
            raise ValueError(
                f"valid is {valid.dtype} of shape {valid.shape}: expected bool of the shape of the "
                f"tokens, {tokens.shape}, False where there is padding"
            )
        x, embed, _ = self.read(tokens, valid, None, train)
        x = Dense(self.width, kernel_init=self.kernel_init, name="head")(x)
        x = nn.LayerNorm(epsilon=EPSILON, name="head_norm")(activation_function("gelu")(x))
        return embed.attend(x) + self.param("bias", nn.initializers.zeros, (self.vocab_size,))


def gpt(
    vocab_size: int,
    *,
    layers: int,
    heads: int,
    width: int,
    context: int,
    dropout: float = 0.0,
    positions: Positions = "learned",
    bias: bool = False,
) -> tuple[Net, Callable[[int], Cache]]:
    """A decoder-only language model (Radford et al. 2019, "GPT-2"), with its empty cache.

    Pre-norm blocks with an MLP of 4 * width and GELU (exact, where GPT-2 approximates it by tanh),
    a last norm, and the embedding again as the output layer. Norms have epsilon 1e-5. Embeddings
    and kernels start as N(0, .02), but those that end a residual branch as N(0, .02 / sqrt(2 L));
    biases at zero. The first loss is therefore near ln V.

    Args:
      vocab_size: number of tokens V.
      layers: number of blocks L.
      heads: of attention H.
      width: of a token D; a multiple of `heads`.
      context: the most tokens of a sequence.
      dropout: rate after the embedding and at the end of each residual branch, not on attention
        weights.
      positions: "learned"; "sinusoidal" (Vaswani et al. 2017), where embeddings are multiplied by
        sqrt(D); or "rotary" (Su et al. 2021), turned into queries and keys.
      bias: of the dense layers and norms of the blocks, and of the last norm.

    Returns:
      `(net, cache)`. The net maps `tokens int[B, T]` to `logits[B, T, V]`, where those at t depend
      on the tokens up to t alone. `cache(B)` holds keys and values of no tokens yet; given tokens
      and a cache, the net gives `(logits[B, T, V], cache)` for T new tokens that go on where the
      cache stopped. Tokens past the context give logits of NaN.

    Raises:
      ValueError: a size below 1, a width that does not split, unknown positions, a rate outside
        [0, 1); when it is traced, a sequence longer than the context or a cache of another batch.
    """
    _check("gpt", vocab_size, layers, heads, width, context, dropout, positions)

    def cache(batch: int) -> Cache:
        def empty() -> tuple[Array, ...]:
            # Arrays of their own, because one buffer under two names cannot be donated.
            shape = (batch, context, heads, width // heads)
            return tuple(jnp.zeros(shape) for _ in range(layers))

        return {"key": empty(), "value": empty(), "length": jnp.zeros((), jnp.int32)}

    module = GPT(
        vocab_size,
        layers,
        heads,
        width,
        context,
        dropout,
        positions,
        causal=True,
        bias=bias,
        kernel_init=nn.initializers.normal(0.02),
        out_init=nn.initializers.normal(0.02 / math.sqrt(2 * layers)),
    )
    return from_linen(module), cache


def bert(
    vocab_size: int,
    *,
    layers: int,
    heads: int,
    width: int,
    context: int,
    dropout: float = 0.1,
    positions: Positions = "learned",
) -> Net:
    """A bidirectional encoder with the head for masked tokens (Devlin et al. 2019, "BERT").

    The blocks are pre-norm, with a last norm, where the paper's are post-norm: they train without
    its long warm-up. There are no segments, for there is no second sentence. The head is dense,
    GELU, norm, then the embedding again with a bias for each token. The MLPs are 4 * width wide,
    GELU is exact, norms have epsilon 1e-5. Embeddings and kernels start as N(0, .02) truncated at
    two standard deviations, biases at zero: the first loss is near ln V.

    Args:
      vocab_size: number of tokens V, special ones included.
      layers: number of blocks.
      heads: of attention.
      width: of a token; a multiple of `heads`.
      context: the most tokens of a sequence.
      dropout: rate after the embedding and at the end of each residual branch, not on attention
        weights.
      positions: as in `gpt`.

    Returns:
      A net of `tokens int[B, T]` and `valid bool[B, T]`, which is False for padding, to
      `logits[B, T, V]`. No token sees padding; the logits at the padding mean nothing.

    Raises:
      ValueError: as `gpt`; when it is traced, a sequence longer than the context or `valid` of
        another shape or dtype.
    """
    _check("bert", vocab_size, layers, heads, width, context, dropout, positions)
    init = nn.initializers.truncated_normal(0.02)
    module = BERT(
        vocab_size,
        layers,
        heads,
        width,
        context,
        dropout,
        positions,
        causal=False,
        bias=True,
        kernel_init=init,
        out_init=init,
    )
    return from_linen(module)


def _check(
    function: str,
    vocab_size: int,
    layers: int,
    heads: int,
    width: int,
    context: int,
    dropout: float,
    positions: Positions,
) -> None:
    sizes = {"vocab_size": vocab_size, "layers": layers, "heads": heads, "width": width}
    check_sizes(function, **sizes, context=context)
    check_heads("width", width, heads)
    check_rate("dropout", dropout)
    check_choice("positions", positions, get_args(Positions))
    paired = {"learned": 2, "sinusoidal": width, "rotary": width // heads}[positions]
    if paired % 2:
        raise ValueError(
            f"{function}: {positions} positions go by pairs of features, and there are {paired}: "
            "choose an even width" + (" per head" if positions == "rotary" else "")
        )
