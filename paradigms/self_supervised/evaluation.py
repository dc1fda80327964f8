"""How good frozen features are: nearest neighbours, linear probes, and a probe that goes along.

All but `probed` are pure functions of features `[N, D]`, computed beforehand by a net in evaluation
mode; none of them sees the net. They choose nothing on test data: a probe that has something to
choose takes validation data, and whoever calls reads the test set, once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, descend, minimise, norm
from paradigms.core.metrics import Mean
from paradigms.core.optimizers import sgd
from paradigms.core.schedules import warmup_cosine
from paradigms.core.state import PyTree, TrainState
from paradigms.core.transforms import repeated, resident, swept
from paradigms.self_supervised.joint_embedding import unit_length

# Of batch norm without scale and bias, as the official code of MAE has it before its probe.
_EPSILON = 1e-6


def knn(
    bank: jax.Array,
    labels: jax.Array,
    queries: jax.Array,
    classes: int,
    *,
    k: int = 200,
    temperature: float = 0.1,
    chunk: int = 256,
) -> jax.Array:
    """Weighted nearest neighbours (Wu et al. 2018, arXiv:1805.01978, section 3.4).

    The `k` labelled features with the largest cosine similarity s to a query vote for their class,
    each with weight `exp(s / temperature)`. A change of k or temperature is another protocol: name
    both. In use are k=200 with .1 (the default) and k=20 with .07 (DINO, Caron et al. 2021,
    arXiv:2104.14294). Neighbours of raw pixels, by Euclidean distance and with equal weights, are
    scikit-learn's `KNeighborsClassifier`, and not this.

    Args:
      bank: features of the training set, `[N, D]`.
      labels: their classes, int `[N]`; a negative one marks an example without a label, which has
        no vote.
      queries: `[M, D]`.
      classes: number of classes, K; take it from the labels of the training set.
      k: neighbours.
      temperature: above 0.
      chunk: queries whose similarities `[chunk, N]` are in memory at once.

    Returns:
      float32 `[M, K]`, each class's share of the weights, which sum to 1. Predict the largest.

    Raises:
      InputError: shapes or options that do not fit, or fewer labelled features than `k`. Under jit,
        where labels cannot be counted, fewer neighbours vote.
    """
    labelled = _check_features("knn", bank, labels, classes)
    if queries.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise InputError(
            f"knn: queries {queries.shape} and bank {bank.shape}: expected [M, D] and [N, D]"
        )
    if not 1 <= k <= labelled:
        raise InputError(
            f"knn(k={k}): the bank has {labelled} labelled examples: choose k from 1 to {labelled}"
        )
    if not 0 < temperature < float("inf") or chunk < 1:
        raise InputError(
            f"knn(temperature={temperature}, chunk={chunk}): expected a temperature above 0 and a "
            "chunk of at least 1"
        )
    given = (jnp.asarray(array) for array in (bank, labels, queries))
    return _votes(*given, temperature, classes=classes, k=k, chunk=chunk)


@functools.partial(jax.jit, static_argnames=("classes", "k", "chunk"))
def _votes(
    bank: jax.Array,
    labels: jax.Array,
    queries: jax.Array,
    temperature: jax.Array,
    *,
    classes: int,
    k: int,
    chunk: int,
) -> jax.Array:
    """What `knn` returns; compiled once for each shape, whatever the features."""
    bank = unit_length(bank)

    def votes(query: jax.Array) -> jax.Array:
        similarity = jnp.matmul(bank, query, precision="highest")
        similarity, nearest = jax.lax.top_k(jnp.where(labels >= 0, similarity, -jnp.inf), k)
        # Divided by their sum, the weights stay finite at any temperature.
        weights = jax.nn.softmax(similarity / temperature)
        return jnp.zeros(classes).at[labels[nearest]].add(weights)

    return jax.lax.map(votes, unit_length(queries), batch_size=chunk)


class Probe(NamedTuple):
    """A linear classifier of features, `((x - mean) / scale) @ kernel + bias`.

    Attributes:
      mean: `[D]`, of the training features; 0 where they were not standardised.
      scale: `[D]`, their standard deviation; 1 where they were not standardised.
      kernel: `[D, K]`.
      bias: `[K]`.
    """

    mean: jax.Array
    scale: jax.Array
    kernel: jax.Array
    bias: jax.Array

    def logits(self, features: jax.Array) -> jax.Array:
        """float32 `[M, K]` of features `[M, D]`."""
        features = (jnp.asarray(features, jnp.float32) - self.mean) / self.scale
        return features @ self.kernel + self.bias


def linear_probe(
    key: jax.Array,
    train: Batch,
    validation: Batch,
    classes: int,
    *,
    learning_rates: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0),
    steps: int = 1000,
    batch_size: int = 256,
    momentum: float = 0.9,
    standardise: bool = True,
) -> tuple[Probe, jax.Array]:
    """A linear classifier by SGD, for each learning rate; the best on validation data is kept.

    All rates start from weights of 0, see the same minibatches and fall to 0 by a cosine, without
    weight decay. They train side by side, and nothing is trained again.

    Args:
      key: orders the minibatches.
      train: `{"feature": [N, D], "label": int [N]}`, features of a net in evaluation mode; rows
        with a negative label do not count.
      validation: likewise; the rate is chosen by its accuracy, of equals the first.
      classes: number of classes, K.
      learning_rates: the grid; one at its end asks for a wider one.
      steps: updates.
      batch_size: at most N.
      momentum: in [0, 1).
      standardise: subtract the mean of the training features and divide by their standard
        deviation. MAE's probe (He et al. 2022, arXiv:2111.06377, appendix A.1) needs it, and has
        it as batch norm without scale and bias; here the statistics are those of all training
        features, and not of a minibatch.

    Returns:
      The probe, and the accuracy on validation data of each rate, `[G]`.

    Raises:
      InputError: shapes that do not fit, or an option out of its range.
    """
    for name, data in (("train", train), ("validation", validation)):
        _check_features(f"linear_probe({name})", data["feature"], data["label"], classes)
    mean, scale = _statistics(train["feature"], standardise)

    def scaled(data: Batch) -> Batch:
        feature = (jnp.asarray(data["feature"], jnp.float32) - mean) / scale
        return {"feature": feature, "label": jnp.asarray(data["label"])}

    best, accuracy = _sweep(
        key,
        scaled(train),
        scaled(validation),
        jnp.asarray(learning_rates, jnp.float32),
        classes=classes,
        steps=steps,
        batch_size=batch_size,
        momentum=momentum,
    )
    return Probe(mean, scale, best["kernel"], best["bias"]), accuracy


@functools.partial(jax.jit, static_argnames=("classes", "steps", "batch_size", "momentum"))
def _sweep(
    key: jax.Array,
    train: Batch,
    validation: Batch,
    learning_rates: jax.Array,
    *,
    classes: int,
    steps: int,
    batch_size: int,
    momentum: float,
) -> tuple[PyTree, jax.Array]:
    """The best parameters for `linear_probe`; compiled once for each shape, whatever the data."""

    def make(hparams: Any) -> Learner:
        schedule = warmup_cosine(hparams["learning_rate"], steps)
        return resident(_linear(classes, sgd(schedule, momentum)), batch_size)

    # Side by side they are one multiplication of matrices, which is the best on a CPU as well.
    sweep = swept(make, {"learning_rate": learning_rates}, method="vmap")
    state, _ = repeated(sweep, steps).update(sweep.init(key, train), train)
    accuracy = sweep.evaluate(state, validation, key)["accuracy"].value()
    return jax.tree.map(lambda leaf: leaf[accuracy.argmax()], state.params), accuracy


def logistic_probe(
    features: jax.Array,
    labels: jax.Array,
    classes: int,
    *,
    c: float = 1.0,
    standardise: bool = True,
    steps: int = 500,
    tolerance: float = 1e-5,
) -> Probe:
    """A linear classifier by L-BFGS to convergence, for few labels or a CPU.

    It minimises `mean_i cross_entropy_i + |kernel|^2 / (2 c N)`, whose minimum is that of
    scikit-learn's `LogisticRegression(C=c)`; the bias is not penalised. Nothing is random.

    Args:
      features: `[N, D]`, of a net in evaluation mode.
      labels: int `[N]`; rows with a negative one do not count, in N neither.
      classes: number of classes, K.
      c: inverse strength of the penalty, above 0.
      standardise: as in `linear_probe`.
      steps: of L-BFGS, at most.
      tolerance: it stops where the gradient's norm is at most this.

    Raises:
      InputError: shapes that do not fit, or an option out of its range.
    """
    _check_features("logistic_probe", features, labels, classes)
    if not c > 0 or steps < 1:
        raise InputError(f"logistic_probe(c={c}, steps={steps}): expected c > 0 and steps >= 1")
    mean, scale = _statistics(features, standardise)
    batch = {
        "feature": (jnp.asarray(features, jnp.float32) - mean) / scale,
        "label": jnp.asarray(labels),
    }
    params = _regress(batch, c, tolerance, steps, classes=classes)
    return Probe(mean, scale, params["kernel"], params["bias"])


@functools.partial(jax.jit, static_argnames="classes")
def _regress(
    batch: Batch, c: jax.Array, tolerance: jax.Array, steps: jax.Array, *, classes: int
) -> PyTree:
    """The minimum for `logistic_probe`; compiled once for each shape, whatever the draw."""
    solver = optax.lbfgs()

    def objective(params: PyTree) -> jax.Array:
        loss = _probe_metrics(params, batch)["loss"]
        return loss.value() + jnp.square(params["kernel"]).sum() / (2 * c * loss.count)

    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(
            grad, state, params, value=value, grad=grad, value_fn=objective
        )
        return optax.apply_updates(params, updates), state

    def unfinished(carry: tuple[PyTree, PyTree]) -> jax.Array:
        count, gradient = (optax.tree.get(carry[1], name) for name in ("count", "grad"))
        return (count == 0) | ((count < steps) & (norm(gradient) > tolerance))

    params = _zeros(batch["feature"], classes)
    return jax.lax.while_loop(unfinished, step, (params, solver.init(params)))[0]


def probed(
    learner: Learner,
    features: Callable[[TrainState, Batch], jax.Array],
    classes: int,
    optimizer: optax.GradientTransformation,
) -> Learner:
    """Trains a linear classifier of the learner's features along with it, to watch them grow.

    The learner's own numbers are the same, to the last bit, with and without: the probe's loss has
    no gradient in it, and the probe lies in `state.target["probe"]`, the one place that every
    learner leaves to those who wrap it. `params`, `opt_state` and `model_state` stay what they
    were, so that pictures, saved nets and other transformations find them where they look.

    Args:
      learner: whatever learns the features.
      features: `(state, batch) -> [B, D]`, of a net in evaluation mode; costs one more forward
        pass. `update` takes them before the learner's step, as its loss is.
      classes: number of classes, K.
      optimizer: of the probe, whose weights start at 0.

    Returns:
      A learner whose batches also have `label` int `[B]`, negative where there is none. `update`
      and `evaluate` also report `probe/loss` (cross entropy in nats) and `probe/accuracy`.

    Raises:
      InputError: a batch without labels, or features that are not `[B, D]`.
    """

    def inputs(state: TrainState, batch: Batch) -> Batch:
        if "label" not in batch:
            raise InputError("probed: the batch has no 'label': expected int [B], -1 for unknown")
        # Apart from the learner's own pass, which XLA would else fuse with it and round otherwise.
        state, batch = jax.lax.optimization_barrier((state, batch))
        feature = jax.lax.stop_gradient(features(state, batch))
        _check_features("probed", feature, batch["label"], classes)
        return {**batch, "feature": feature}

    def init(key: jax.Array, example: Batch) -> TrainState:
        state = learner.init(key, example)
        form = jax.eval_shape(inputs, state, example)["feature"]
        params = _zeros(form, classes)
        probe = {"params": params, "opt_state": optimizer.init(params)}
        return state.replace(target={**state.target, "probe": probe})

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        probe = state.target["probe"]
        grads, seen = jax.grad(_probe_loss, has_aux=True)(probe["params"], inputs(state, batch))
        params, opt_state, _ = descend(optimizer, grads, probe["opt_state"], probe["params"])
        probe = {"params": params, "opt_state": opt_state}
        state, metrics = learner.update(state, batch)
        return state.replace(target={**state.target, "probe": probe}), {**metrics, **_named(seen)}

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        seen = _probe_metrics(state.target["probe"]["params"], inputs(state, batch))
        return {**learner.evaluate(state, batch, key), **_named(seen)}

    return Learner(init, update, evaluate)


def _named(metrics: Metrics) -> Metrics:
    return {f"probe/{name}": mean for name, mean in metrics.items()}


def _linear(classes: int, optimizer: optax.GradientTransformation) -> Learner:
    """Softmax regression; the classifier of `paradigms.supervised` is not for import here."""

    def loss(params: PyTree, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        value, metrics = _probe_loss(params, batch)
        return value, (metrics, {})

    return minimise(
        loss,
        optimizer,
        init=lambda key, example: (_zeros(example["feature"], classes), {}),
        evaluate=lambda state, batch, key: _probe_metrics(state.params, batch),
    )


def _zeros(feature: Any, classes: int) -> PyTree:
    # The loss is convex: where it starts decides nothing.
    return {"kernel": jnp.zeros((feature.shape[1], classes)), "bias": jnp.zeros(classes)}


def _probe_loss(params: PyTree, batch: Batch) -> tuple[jax.Array, Metrics]:
    metrics = _probe_metrics(params, batch)
    return metrics["loss"].value(), metrics


def _probe_metrics(params: PyTree, batch: Batch) -> Metrics:
    """Cross entropy and accuracy, over the labelled examples that count."""
    logits = batch["feature"].astype(jnp.float32) @ params["kernel"] + params["bias"]
    label = batch["label"]
    weight = jnp.asarray(batch.get("mask", 1.0), jnp.float32) * (label >= 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(label, 0))
    return {
        "loss": Mean.of(losses, weight),
        "accuracy": Mean.of(logits.argmax(-1) == label, weight),
    }


def _statistics(features: jax.Array, standardise: bool) -> tuple[jax.Array, jax.Array]:
    """Mean and scale `[D]` to standardise by, or 0 and 1."""
    features = jnp.asarray(features, jnp.float32)
    if not standardise:
        return jnp.zeros(features.shape[1]), jnp.ones(features.shape[1])
    return features.mean(0), jnp.sqrt(features.var(0) + _EPSILON)


def _check_features(name: str, features: jax.Array, labels: jax.Array, classes: int) -> int:
    """The number of labelled rows, or of all where the labels are traced."""
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise InputError(
            f"{name}: features {features.shape} and labels {labels.shape}: expected [N, D] and [N]"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(f"{name}: labels have dtype {labels.dtype}: expected integers")
    if isinstance(labels, jax.core.Tracer):
        return len(labels)
    known = np.asarray(labels)
    if known.size and known.max() >= classes:
        raise InputError(
            f"{name}: label {known.max()} with {classes} classes: expected 0 to {classes - 1}"
        )
    return int((known >= 0).sum())
