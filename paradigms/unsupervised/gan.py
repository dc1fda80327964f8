"""Generative adversarial networks: non-saturating, hinge, Wasserstein with gradient penalty."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from nets.net import Net
from paradigms.core.ema import ema
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, descend_net
from paradigms.core.mesh import constrain_batch
from paradigms.core.metrics import Mean, add
from paradigms.core.scalars import Scalar
from paradigms.core.state import PyTree, TrainState, fold_name
from paradigms.data.augment import Augmentation


def non_saturating_critic_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """`-log D(x) - log(1 - D(G(z)))` (Goodfellow et al. 2014, arXiv:1406.2661, equation 1).

    Args:
      real: logits of D on examples `[B]`.
      fake: logits of D on as many samples.

    Returns:
      float32 `[B]`, nats; 2 ln 2 where D = 1/2 everywhere.
    """
    chex.assert_equal_shape((real, fake))
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def non_saturating_generator_loss(fake: jax.Array) -> jax.Array:
    """`-log D(G(z))` (Goodfellow et al. 2014, section 3): float32 `[B]`, nats; ln 2 at D = 1/2."""
    return jax.nn.softplus(-fake.astype(jnp.float32))


def hinge_critic_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """`max(0, 1 - f(x)) + max(0, 1 + f(G(z)))` (Lim and Ye 2017, arXiv:1705.02894).

    As in Miyato et al. 2018 (arXiv:1802.05957), equation 16. Shapes as in
    `non_saturating_critic_loss`; 2 where the critic says 0 of everything.
    """
    chex.assert_equal_shape((real, fake))
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    return jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)


def wasserstein_critic_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """`f(G(z)) - f(x)` (Arjovsky et al. 2017, arXiv:1701.07875, algorithm 1).

    Its negative estimates the distance. Shapes as in `non_saturating_critic_loss`.
    """
    chex.assert_equal_shape((real, fake))
    return fake.astype(jnp.float32) - real.astype(jnp.float32)


def wasserstein_generator_loss(fake: jax.Array) -> jax.Array:
    """`-f(G(z))`, the generator's part of the Wasserstein and of the hinge loss: float32 `[B]`."""
    return -fake.astype(jnp.float32)


def gradient_norm_penalty(
    critic: Callable[[jax.Array], jax.Array], real: jax.Array, fake: jax.Array, key: jax.Array
) -> jax.Array:
    """`(|df/dx| - 1)^2` between examples and samples.

    Gulrajani et al. 2017, arXiv:1704.00028, equation 3 and algorithm 1: the gradient is that with
    respect to the input, its norm is over all axes but the first, and each pair has its own place
    on the line from one to the other. For f = w.x it is `(|w| - 1)^2`.

    Args:
      critic: `x[B, ...] -> [B]`, each output of its own row only, hence without batch norm.
      real: examples, floating `[B, ...]`.
      fake: samples of the same shape.
      key: of the places.

    Returns:
      float32 `[B]`. Where the gradient is zero the penalty is 1 and has the gradient zero.
    """
    chex.assert_equal_shape((real, fake))
    share = jax.random.uniform(key, (len(real),) + (1,) * (real.ndim - 1))
    between = share * real + (1 - share) * fake
    slope = jax.grad(lambda x: critic(x).sum())(between).astype(jnp.float32)
    squared = jnp.square(slope).reshape(len(slope), -1).sum(-1)
    # The square root has an infinite slope at 0, which times 0 would be NaN.
    length = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
    return jnp.square(length - 1)


_LOSSES = {
    "non_saturating": (non_saturating_critic_loss, non_saturating_generator_loss),
    "hinge": (hinge_critic_loss, wasserstein_generator_loss),
    "wasserstein": (wasserstein_critic_loss, wasserstein_generator_loss),
}


def gan(
    generator: Net,
    critic: Net,
    generator_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
    *,
    latent: int,
    loss: Literal["non_saturating", "hinge", "wasserstein"] = "non_saturating",
    gradient_penalty: Scalar = 0.0,
    critic_steps: int = 1,
    decay: Scalar | None = None,
    augment: Augmentation | None = None,
    input_name: str = "image",
) -> Learner:
    """Learns to draw samples that a critic cannot tell from the data.

    WGAN-GP is `loss="wasserstein", gradient_penalty=10.0, critic_steps=5` with a critic without
    batch norm (Gulrajani et al. 2017, algorithm 1).

    A batch has `image` `[N, ...]` (or another input, see `input_name`): uint8, which becomes
    floating in [-1, 1], or floating, which is taken as it is. An update is `critic_steps` steps of
    the critic and then one of the generator. The rows are divided into as many equal parts in their
    order, so each step of the critic sees its own B = N / critic_steps examples beside B fresh
    samples, and the generator's step draws B more. An optional `mask` `[N]` weighs the examples,
    each together with the sample in its row; the generator's step has no examples and no mask.

    The critic sees examples and samples in separate calls, each normalised by its own statistics.
    Running statistics move with their own net's steps only.

    Args:
      generator: `z[B, latent] -> [B, ...]`, samples of the (scaled) data's shape, from z ~ N(0, I).
      critic: `x[B, ...] -> [B]` or `[B, 1]`, a logit or a score that is high for data.
      generator_optimizer: of the generator.
      critic_optimizer: of the critic; it steps `critic_steps` times an update.
      latent: length of z.
      loss: which pair of losses above.
      gradient_penalty: weight of `gradient_norm_penalty` in the critic's loss; 0 leaves it out.
      critic_steps: steps of the critic to one of the generator.
      decay: of a moving average of the generator, in [0, 1), running statistics included, kept in
        `state.target["generator"]`; None for none. Evaluation sees the average.
      augment: `(key, image) -> image`, of the examples at training only, before they are scaled.
        Samples learn to look augmented, so let it be something that images do anyway.
      input_name: the entry of the batch to learn.

    Returns:
      A learner. `update` reports, averaged over the critic's steps, `loss/critic` (without
      penalty), `penalty` (without its weight), the mean score `critic/real` and `critic/fake`,
      `critic/accuracy` (by the sign of the score; not for "wasserstein") and `spread`; then
      `loss/generator` and the norms of `descend` of both nets. `evaluate` reports `loss` (the
      critic's, without penalty), `loss/generator` and the same of the rest. `spread` is the
      standard deviation of the samples over that of the examples, all entries taken together: near
      1 they vary as the data does, near 0 the generator has collapsed to one output.

    Raises:
      InputError: a number outside its range, an unknown loss, a batch that does not divide, data of
        another type, or nets whose outputs do not fit.
    """
    if latent < 1:
        raise InputError(f"gan(latent={latent}): expected at least 1")
    if loss not in _LOSSES:
        raise InputError(f"gan(loss={loss!r}): expected one of {', '.join(map(repr, _LOSSES))}")
    if critic_steps < 1:
        raise InputError(f"gan(critic_steps={critic_steps}): expected at least 1")
    swept = isinstance(gradient_penalty, jax.core.Tracer)
    if not swept and not gradient_penalty >= 0:
        raise InputError(f"gan(gradient_penalty={gradient_penalty}): expected 0 (none) or more")
    if not (decay is None or isinstance(decay, jax.core.Tracer) or 0 <= decay < 1):
        raise InputError(f"gan(decay={decay}): expected a number in [0, 1), or None")
    critic_loss, generator_loss = _LOSSES[loss]
    penalised = swept or gradient_penalty > 0

    def generate(
        weights: PyTree, shape: tuple[int, ...], key: jax.Array, train: bool = False
    ) -> tuple[jax.Array, PyTree]:
        z = constrain_batch(jax.random.normal(key, (shape[0], latent)))
        fake, model_state = generator.apply(
            weights["params"], weights["model_state"], z, key=fold_name(key, "net"), train=train
        )
        if fake.shape != shape:
            raise InputError(
                f"gan: the generator gives {fake.shape} and '{input_name}' is {shape}: expected "
                "samples of the data's shape"
            )
        return fake.astype(jnp.float32), model_state

    def judge(
        weights: PyTree, x: jax.Array, key: jax.Array, train: bool = False
    ) -> tuple[jax.Array, PyTree]:
        score, model_state = critic.apply(
            weights["params"], weights["model_state"], x, key=key, train=train
        )
        if score.shape not in ((len(x),), (len(x), 1)):
            raise InputError(
                f"gan: the critic gives {score.shape} for {len(x)} inputs: expected one number for "
                "each, [B] or [B, 1]"
            )
        return score.reshape(-1).astype(jnp.float32), model_state

    def report(
        real: jax.Array, fake: jax.Array, scores: tuple[jax.Array, jax.Array], mask: jax.Array
    ) -> Metrics:
        metrics = {
            "critic/real": Mean.of(scores[0], mask),
            "critic/fake": Mean.of(scores[1], mask),
            "spread": Mean(
                total=mask.sum() * _deviation(fake, mask), count=mask.sum() * _deviation(real, mask)
            ),
        }
        if loss != "wasserstein":
            hits = (jnp.float32(scores[0] > 0) + jnp.float32(scores[1] < 0)) / 2
            metrics["critic/accuracy"] = Mean.of(hits, mask)
        return metrics

    def init(key: jax.Array, example: Batch) -> TrainState:
        real = _scaled(example[input_name], input_name)
        started = {
            "generator": generator.init(fold_name(key, "generator"), jnp.zeros((1, latent))),
            "critic": critic.init(fold_name(key, "critic"), real),
        }
        params = {name: variables[0] for name, variables in started.items()}
        state = TrainState.create(
            key,
            params,
            opt_state={
                "generator": generator_optimizer.init(params["generator"]),
                "critic": critic_optimizer.init(params["critic"]),
            },
            model_state={name: variables[1] for name, variables in started.items()},
        )
        if decay is not None:
            # A copy, because one buffer under two names cannot be donated.
            average = jax.tree.map(jnp.copy, _weights_of(state, "generator"))
            state = state.replace(target={"generator": average})
        jax.eval_shape(evaluate, state, example, key)  # finds nets that do not fit
        return state

    def critic_step(state: TrainState, part: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        real, mask = part["real"], part["mask"]
        # Statistics of a generator that stands still are thrown away.
        fake, _ = generate(_weights_of(state, "generator"), real.shape, key, train=True)
        real_key, fake_key, penalty_key, place_key = jax.random.split(fold_name(key, "critic"), 4)

        def loss_of(params: PyTree) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
            def score(x: jax.Array, key: jax.Array, model_state: PyTree) -> Any:
                weights = {"params": params, "model_state": model_state}
                return judge(weights, x, key, train=True)

            on_real, model_state = score(real, real_key, state.model_state["critic"])
            on_fake, model_state = score(fake, fake_key, model_state)
            mean = Mean.of(critic_loss(on_real, on_fake), mask)
            metrics = {"loss/critic": mean, **report(real, fake, (on_real, on_fake), mask)}
            if not penalised:
                return mean.value(), (metrics, model_state)
            penalties = gradient_norm_penalty(
                lambda x: score(x, penalty_key, model_state)[0], real, fake, place_key
            )
            penalty = metrics["penalty"] = Mean.of(penalties, mask)
            return mean.value() + gradient_penalty * penalty.value(), (metrics, model_state)

        state, metrics, norms = descend_net(state, "critic", loss_of, critic_optimizer)
        return state, {**metrics, **norms}

    def generator_step(
        state: TrainState, shape: tuple[int, ...], key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        def loss_of(params: PyTree) -> tuple[jax.Array, tuple[Mean, PyTree]]:
            weights = {"params": params, "model_state": state.model_state["generator"]}
            fake, model_state = generate(weights, shape, key, train=True)
            score, _ = judge(
                _weights_of(state, "critic"), fake, fold_name(key, "critic"), train=True
            )
            mean = Mean.of(generator_loss(score))
            return mean.value(), (mean, model_state)

        state, mean, norms = descend_net(state, "generator", loss_of, generator_optimizer)
        return state, {"loss/generator": mean, **norms}

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        real = batch[input_name]
        if len(real) % critic_steps:
            raise InputError(
                f"gan: a batch of {len(real)} does not divide into critic_steps={critic_steps} "
                f"equal parts: take a multiple of {critic_steps}"
            )
        if augment is not None:
            real = augment(state.rng("augment"), real)
        mask = jnp.asarray(batch.get("mask", jnp.ones(len(real))), jnp.float32)
        parts = jax.tree.map(
            lambda leaf: leaf.reshape(critic_steps, -1, *leaf.shape[1:]),
            {"real": _scaled(real, input_name), "mask": mask},
        )
        parts = constrain_batch(parts, axis=1)
        metrics: Metrics = {}
        # Written out, for a convolution within a loop is slow on a CPU.
        for i in range(critic_steps):
            part = {name: leaf[i] for name, leaf in parts.items()}
            state, reported = critic_step(state, part, jax.random.fold_in(state.rng("critic"), i))
            metrics = add(metrics, reported)
        state, reported = generator_step(state, parts["real"].shape[1:], state.rng("generator"))
        if decay is not None:
            moved = ema(state.target["generator"], _weights_of(state, "generator"), decay)
            state = state.replace(target={**state.target, "generator": moved})
        return state.replace(step=state.step + 1), {**metrics, **reported}

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        real = _scaled(batch[input_name], input_name)
        mask = jnp.asarray(batch.get("mask", jnp.ones(len(real))), jnp.float32)
        fake, _ = generate(generator_weights(state), real.shape, key)
        on_real, _ = judge(_weights_of(state, "critic"), real, key)
        on_fake, _ = judge(_weights_of(state, "critic"), fake, key)
        return {
            "loss": Mean.of(critic_loss(on_real, on_fake), mask),
            "loss/generator": Mean.of(generator_loss(on_fake), mask),
            **report(real, fake, (on_real, on_fake), mask),
        }

    return Learner(init, update, evaluate)


def generator_weights(state: TrainState) -> dict[str, PyTree]:
    """`{"params": ..., "model_state": ...}` of the averaged generator, or of the only one."""
    return state.target.get("generator", _weights_of(state, "generator"))


def categorical_latents(categories: int) -> Callable[[jax.Array], jax.Array]:
    """Makes one choice among some of the first latents, for `nets.preprocess(generator, ...)`.

    Chen et al. 2016 (arXiv:1606.03657, section 7.2) draw a category of ten beside their noise for
    MNIST. From normal latents alone a continuous generator cannot draw classes without drawing what
    lies between them.

    Args:
      categories: how many there are, all as frequent; at least 2.

    Returns:
      `z[B, D] -> [B, D]`: of the first `categories` numbers the largest is chosen, and they become
      a vector with one entry above 0, where each has mean 0 and variance 1 over z ~ N(0, I).

    Raises:
      InputError: fewer than two; when called, more than there are latents.
    """
    if categories < 2:
        raise InputError(f"categorical_latents({categories}): expected at least 2 categories")

    def choose(z: jax.Array) -> jax.Array:
        if z.shape[-1] < categories:
            raise InputError(f"{categories} categories are more than {z.shape[-1]} latents")
        chosen = jax.nn.one_hot(z[..., :categories].argmax(-1), categories, dtype=z.dtype)
        chosen = (chosen * categories - 1) / (categories - 1) ** 0.5
        return jnp.concatenate([chosen, z[..., categories:]], -1)

    return choose


def sample(
    generator: Net,
    weights: PyTree,
    key: jax.Array,
    n: int,
    latent: int,
    *,
    batch_size: int = 1000,
) -> jax.Array:
    """Samples of a generator out of training, by its running statistics.

    Args:
      generator: as in `gan`.
      weights: of one run, as from `generator_weights`.
      key: of the latents; the same key gives the same samples whatever the batches.
      n: how many.
      latent: length of z.
      batch_size: how many at once.

    Returns:
      Floating `[n, ...]`, in [-1, 1] where the data were uint8 images.

    Raises:
      InputError: n, latent or the batch is below 1.
    """
    if min(n, latent, batch_size) < 1:
        raise InputError(
            f"sample(n={n}, latent={latent}, batch_size={batch_size}): expected at least 1 of each"
        )
    z = jax.random.normal(key, (n, latent))
    parts = [_draw(generator, weights, z[i : i + batch_size]) for i in range(0, n, batch_size)]
    return jnp.concatenate(parts)


@functools.partial(jax.jit, static_argnums=0)
def _draw(generator: Net, weights: PyTree, z: jax.Array) -> jax.Array:
    return generator.apply(weights["params"], weights["model_state"], z)[0]


def _weights_of(state: TrainState, name: str) -> dict[str, PyTree]:
    return {"params": state.params[name], "model_state": state.model_state[name]}


def _scaled(data: jax.Array, name: str) -> jax.Array:
    """Bytes as float32 in [-1, 1]; floating data as float32."""
    if data.dtype == jnp.uint8:
        return data / jnp.float32(127.5) - 1
    if not jnp.issubdtype(data.dtype, jnp.floating):
        raise InputError(f"gan: '{name}' is {data.dtype}: expected uint8 images or floating data")
    return jnp.asarray(data, jnp.float32)


def _deviation(x: jax.Array, weight: jax.Array) -> jax.Array:
    """The root of the variance of `x[B, ...]`, added up over all axes but the first."""
    x = jnp.where(weight[:, None] > 0, x.reshape(len(x), -1), 0.0)
    share = weight / jnp.where(weight.sum() > 0, weight.sum(), 1.0)
    return jnp.sqrt((share @ jnp.square(x - share @ x)).sum())
