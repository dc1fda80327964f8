"""VQ-VAE: an autoencoder whose latents are entries of a learned codebook."""

from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nets.net import Net
from paradigms.core import metrics as metrics_lib
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, advance
from paradigms.core.metrics import Mean, Means
from paradigms.core.scalars import Scalar
from paradigms.core.state import PyTree, TrainState, fold_name
from paradigms.data.augment import Augmentation
from paradigms.unsupervised.likelihoods import unit_interval

Codebook = Literal["ema", "gradient"]


def nearest_code(z: jax.Array, codebook: jax.Array) -> jax.Array:
    """The index of the code at the least Euclidean distance (equation 1); ties go to the lowest.

    Compares `||e||^2 - 2 z.e`: the missing `||z||^2` is the same for all codes, and adding it would
    only round away what tells two codes apart. The product is formed in full float32.

    Args:
      z: `[..., D]`.
      codebook: `[K, D]`.

    Returns:
      int32 `[...]`, in 0 to K - 1.
    """
    chex.assert_rank(codebook, 2)
    z, codebook = z.astype(jnp.float32), codebook.astype(jnp.float32)
    products = jnp.matmul(z, codebook.T, precision="highest")
    distances = jnp.square(codebook).sum(-1) - 2 * products
    return distances.argmin(-1).astype(jnp.int32)


def straight_through(z: jax.Array, quantised: jax.Array) -> jax.Array:
    """`quantised` exactly, whose gradient goes to `z` unchanged and nowhere else (section 3.2)."""
    chex.assert_equal_shape((z, quantised))
    return jax.lax.stop_gradient(quantised) + (z - jax.lax.stop_gradient(z))


def codebook_loss(z: jax.Array, quantised: jax.Array) -> jax.Array:
    """`(sg[z] - e)^2` averaged over all axes but the first, float32 `[B]`; moves the codes only."""
    return _squared_error(jax.lax.stop_gradient(z), quantised)


def commitment_loss(z: jax.Array, quantised: jax.Array) -> jax.Array:
    """`(z - sg[e])^2` averaged over all axes but the first, float32 `[B]`; moves `z` only."""
    return _squared_error(z, jax.lax.stop_gradient(quantised))


def ema_codebook(
    counts: jax.Array,
    sums: jax.Array,
    batch_counts: jax.Array,
    batch_sums: jax.Array,
    decay: Scalar,
    epsilon: float = 1e-5,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes as moving averages of the encoder outputs nearest to them (appendix A.1).

    `N <- decay * N + (1 - decay) * n`, `m <- decay * m + (1 - decay) * sum z` (equations 6 and 7),
    and `e = m / N'` (equation 8) with the counts smoothed as Laplace's rule does,
    `N' = (N + epsilon) / (sum N + K * epsilon) * sum N`, so that no code is divided by zero.

    Args:
      counts: N, `[K]`.
      sums: m, `[K, D]`.
      batch_counts: n, how many outputs of this batch chose each code, `[K]`.
      batch_sums: their sums, `[K, D]`.
      decay: gamma, in [0, 1).
      epsilon: of the smoothing.

    Returns:
      `(codebook[K, D], counts, sums)`; a codebook of zeros as long as nothing has been counted.
    """
    # With one product in each, and not two, XLA has one way only to contract them where it forms
    # them anew for the codes: a run then has the same bits by itself and beside others.
    counts = counts + (1 - decay) * (batch_counts - counts)
    sums = sums + (1 - decay) * (batch_sums - sums)
    total = counts.sum()
    smoothed = (counts + epsilon) / (total + len(counts) * epsilon) * total
    return sums / jnp.where(total > 0, smoothed, 1.0)[:, None], counts, sums


def perplexity(counts: jax.typing.ArrayLike) -> jax.Array:
    """How many codes are in use: exp of the entropy of `counts[K] / sum`, in 1 to K."""
    counts = jnp.asarray(counts, jnp.float32)
    share = counts / jnp.maximum(counts.sum(), 1e-30)
    return jnp.exp(-jax.scipy.special.xlogy(share, share).sum())


def vq_vae(
    encoder: Net,
    decoder: Net,
    optimizer: optax.GradientTransformation,
    *,
    codes: int = 512,
    commitment: Scalar = 0.25,
    codebook: Codebook = "ema",
    decay: Scalar = 0.99,
    revive_every: int = 400,
    variance: Scalar = 1.0,
    augment: Augmentation | None = None,
    input_name: str = "image",
) -> Learner:
    """Vector-quantised autoencoder (van den Oord et al. 2017, arXiv:1711.00937, equation 3).

    Minimises `(x - x')^2 / variance + (sg[z] - e)^2 + commitment * (z - sg[e])^2`, every term an
    average over its dimensions and over the examples, where e is the code nearest to z, and the
    decoder's gradient is copied to the encoder. With `codebook="ema"` the second term is left out
    and the codes are moving averages. It is a point estimate: no term is in nats.

    Codes that no output of the last `revive_every` updates chose are dead. When such a window is
    over they are put on different random encoder outputs of the batch at hand, before it is
    quantised. At the first update that holds for every code, so this is also how the codebook
    begins: the scale of an untrained encoder is unknown, and codes drawn without regard to it
    would nearly all be dead. A code that learns by gradient rests in the update that revives it;
    one that is an average starts again with count 1.

    A batch has `image` `[B, ...]`, uint8 or float in [0, 1] (or another input, see `input_name`),
    and optionally `mask` `[B]`, the weight of each example. Masked examples choose no code and
    revive none.

    Args:
      encoder: image `[B, H, W, C]`, float32 in [0, 1] -> z `[B, h, w, D]`.
      decoder: z `[B, h, w, D]` -> reconstruction of the shape of the image.
      optimizer: of encoder, decoder and, if it learns by gradient, codebook.
      codes: K, the size of the codebook.
      commitment: beta, at least 0.
      codebook: "ema", kept in `state.memory["codebook"]` with its counts and sums, for they are
        statistics of batches and no copy of a net; or "gradient", `state.params["codebook"]`.
      decay: of the moving averages, in [0, 1); without a meaning for "gradient".
      revive_every: updates in a window; take those of an epoch.
      variance: of the data in [0, 1], which the authors' code divides the squared error by.
      augment: `(key, image) -> image`, at training only; its result is what is reconstructed.
      input_name: the entry of the batch that goes into the encoder.

    Returns:
      A learner. `update` reports `loss`, `reconstruction` (squared error per dimension of the image
      in [0, 1]), `commitment` and `codebook` (equal in value, but not in gradient), `perplexity`
      of the batch's codes, norms, after the first window `dead_codes` (how many were dead at the
      end of the last one) and, when a window is over, `revived`. `evaluate` reports `loss`,
      `reconstruction`, `commitment` and `codes`, the ingredient of `derive_vq_vae`.

    Raises:
      InputError: an option out of its range; and, when traced, an encoder that gives no
        `[B, h, w, D]`, a decoder that does not give the image's shape, more codes than a training
        batch has encoder outputs, or images that are neither uint8 nor floating.
    """
    for name, value, holds, expected in (
        ("codes", codes, codes >= 1, "at least 1"),
        ("commitment", commitment, (commitment >= 0) & (commitment < np.inf), "at least 0"),
        ("codebook", codebook, codebook in ("ema", "gradient"), "'ema' or 'gradient'"),
        ("decay", decay, (decay >= 0) & (decay < 1), "a number in [0, 1)"),
        ("revive_every", revive_every, revive_every >= 1, "at least 1 update"),
        ("variance", variance, (variance > 0) & (variance < np.inf), "a positive number"),
    ):
        if not isinstance(holds, jax.core.Tracer) and not holds:
            raise InputError(f"vq_vae({name}={value!r}): expected {expected}")
    learned = codebook == "gradient"

    def init(key: jax.Array, example: Batch) -> TrainState:
        image = unit_interval(example[input_name])
        of_encoder, encoder_state = encoder.init(fold_name(key, "encoder"), image)
        z, _ = jax.eval_shape(encoder.apply, of_encoder, encoder_state, image)
        _check_encoded(z, image)
        of_decoder, decoder_state = decoder.init(fold_name(key, "decoder"), jnp.zeros(z.shape))
        params = {"encoder": of_encoder, "decoder": of_decoder}
        # The first update puts the codes on encoder outputs.
        book = jnp.zeros((codes, z.shape[-1]))
        memory = {"used": jnp.zeros(codes, bool), "dead": jnp.zeros((), jnp.int32)}
        if learned:
            params["codebook"] = book
        else:
            memory |= {"codebook": book, "counts": jnp.zeros(codes), "sums": jnp.zeros(book.shape)}
        return TrainState.create(
            key,
            params,
            opt_state=optimizer.init(params),
            model_state={"encoder": encoder_state, "decoder": decoder_state},
            memory=memory,
        )

    def encode(
        params: PyTree, state: TrainState, image: jax.Array, key: jax.Array, train: bool
    ) -> tuple[jax.Array, PyTree]:
        z, model_state = encoder.apply(
            params["encoder"], state.model_state["encoder"], image, key=key, train=train
        )
        _check_encoded(z, image)
        return z.astype(jnp.float32), model_state

    def losses_of(
        params: PyTree,
        state: TrainState,
        image: jax.Array,
        z: jax.Array,
        quantised: jax.Array,
        key: jax.Array,
        train: bool,
    ) -> tuple[dict[str, jax.Array], PyTree]:
        """What is reported of each example, `[B]`, and the decoder's model state."""
        reconstruction, model_state = decoder.apply(
            params["decoder"],
            state.model_state["decoder"],
            straight_through(z, quantised),
            key=key,
            train=train,
        )
        if reconstruction.shape != image.shape:
            raise InputError(
                f"vq_vae: the decoder gives {reconstruction.shape} for images {image.shape}: "
                "expected equal shapes"
            )
        losses = {
            "reconstruction": _squared_error(image, reconstruction),
            "codebook": codebook_loss(z, quantised),
            "commitment": commitment_loss(z, quantised),
        }
        loss = losses["reconstruction"] / variance + commitment * losses["commitment"]
        return {"loss": loss + losses["codebook"] if learned else loss, **losses}, model_state

    def loss_of(params: PyTree, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        image, mask = batch[input_name], batch.get("mask")
        if augment is not None:
            image = augment(state.rng("augment"), image)
        image = unit_interval(image)
        z, encoder_state = encode(params, state, image, state.rng("encoder"), True)
        outputs = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1])
        weights = _output_weights(mask, z)
        if codes > len(outputs):
            raise InputError(
                f"vq_vae(codes={codes}): more codes than the {len(outputs)} encoder outputs "
                f"{z.shape[:-1]} of a batch: take fewer codes or a larger batch"
            )
        # At the first update no code has been used.
        dead = ~state.memory["used"] & (state.step % revive_every == 0)
        seeds, drawn = _draw(state.rng("revive"), outputs, weights, codes)
        revived = dead & drawn
        book = params["codebook"] if learned else state.memory["codebook"]
        book = jnp.where(revived[:, None], seeds, book)
        chosen = jax.nn.one_hot(nearest_code(outputs, book), codes)
        # A product in place of indexing: its gradient, and the sums below, then have the same bits
        # in every run, as scattered additions on a GPU do not.
        quantised = jnp.matmul(chosen, book, precision="highest").reshape(z.shape)
        losses, decoder_state = losses_of(
            params, state, image, z, quantised, state.rng("decoder"), True
        )
        metrics = {name: Mean.of(values, mask) for name, values in losses.items()}
        counts = (chosen * weights[:, None]).sum(0)
        sums = jnp.matmul(chosen.T, outputs * weights[:, None], precision="highest")
        metrics["perplexity"] = Mean.of(perplexity(counts), counts.sum() > 0)
        model_state = {"encoder": encoder_state, "decoder": decoder_state}
        statistics = (book, revived, counts, sums)
        return metrics["loss"].value(), ((metrics, statistics), model_state)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        old, step = state.memory, state.step
        state, (metrics, statistics), norms = advance(
            state, lambda params: loss_of(params, state, batch), optimizer
        )
        book, revived, counts, sums = statistics
        params, begins = state.params, step % revive_every == 0
        memory = {
            "used": (old["used"] & ~begins) | (counts > 0),
            "dead": jnp.where(begins, (~old["used"]).sum(), old["dead"]).astype(jnp.int32),
        }
        if learned:
            moved = jnp.where(revived[:, None], book, params["codebook"])
            params = {**params, "codebook": moved}
        else:
            memory["codebook"], memory["counts"], memory["sums"] = ema_codebook(
                jnp.where(revived, 1.0, old["counts"]),
                jnp.where(revived[:, None], book, old["sums"]),
                counts,
                sums,
                decay,
            )
        metrics["dead_codes"] = Mean.of(memory["dead"], step >= revive_every)
        metrics["revived"] = Mean.of(revived.sum(), begins & (step > 0))
        return state.replace(params=params, memory=memory), {**metrics, **norms}

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        image, mask = unit_interval(batch[input_name]), batch.get("mask")
        z, _ = encode(state.params, state, image, fold_name(key, "encoder"), False)
        book = state.params["codebook"] if learned else state.memory["codebook"]
        index = nearest_code(z, book)
        losses, _ = losses_of(
            state.params, state, image, z, book[index], fold_name(key, "decoder"), False
        )
        counts = _output_weights(mask, z) @ jax.nn.one_hot(index.reshape(-1), codes)
        return {
            **{name: Mean.of(values, mask) for name, values in losses.items()},
            "codes": Mean(total=counts, count=jnp.full(codes, counts.sum())),
        }

    return Learner(init, update, evaluate)


def derive_vq_vae(means: Means) -> dict[str, float]:
    """`metrics.derive`, and `perplexity` and `dead_codes` over all that was evaluated."""
    values = metrics_lib.derive(means)
    if "codes" in means and np.sum(means["codes"].count) > 0:
        counts = np.asarray(means["codes"].total)
        values["perplexity"] = float(perplexity(counts))
        values["dead_codes"] = float((counts == 0).sum())
    return values


def _squared_error(first: jax.Array, second: jax.Array) -> jax.Array:
    chex.assert_equal_shape((first, second))
    error = first.astype(jnp.float32) - second
    return jnp.square(error).reshape(len(error), -1).mean(-1)


def _output_weights(mask: jax.Array | None, z: jax.Array) -> jax.Array:
    """The weight of each of the encoder outputs `z[B, h, w, D]`, float32 `[B * h * w]`."""
    mask = jnp.ones(len(z)) if mask is None else jnp.asarray(mask, jnp.float32)
    return jnp.broadcast_to(mask[:, None, None], z.shape[:-1]).reshape(-1)


def _draw(
    key: jax.Array, outputs: jax.Array, weights: jax.Array, number: int
) -> tuple[jax.Array, jax.Array]:
    """Different random rows of `outputs[N, D]`: `[number, D]`, and which of them count."""
    order = jnp.where(weights > 0, jax.random.uniform(key, weights.shape), -1.0)
    best, rows = jax.lax.top_k(order, number)
    return outputs[rows], best >= 0


def _check_encoded(z: Any, image: jax.Array) -> None:
    if len(z.shape) != 4 or len(z) != len(image) or z.shape[-1] < 1:
        raise InputError(
            f"vq_vae: the encoder gives {z.shape} for images {image.shape}: expected "
            "[B, h, w, D] with D at least 1"
        )
