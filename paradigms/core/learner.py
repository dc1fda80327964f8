"""`Learner`: what every algorithm is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from paradigms.core.gradients import Loss, gradient
from paradigms.core.mesh import parameters_are_divided
from paradigms.core.metrics import Mean
from paradigms.core.state import PyTree, TrainState

Batch = Any
Metrics = dict[str, Mean]

# Updates from one look at the norms to the next, for on a CPU they take a small net a sixth of its
# step (benchmarks/vae.py). A prime, lest it should keep time with another period and miss a net.
NORM_PERIOD = 11
_SMALL = 2**16  # numbers in a leaf


class Learner(NamedTuple):
    """A learning algorithm: three pure functions over one train state.

    It knows nothing of devices, seeds or files. Transformations (`paradigms.core.transforms`) take
    a learner and give one back, as optax's wrappers do with gradient transformations.

    Attributes:
      init: `(key, example) -> state`. `example` is a batch; only its shapes and dtypes matter.
      update: `(state, batch) -> (state, metrics)`, one optimisation step.
      evaluate: `(state, batch, key) -> metrics`, on held-out data; a batch's `mask` is honoured.
    """

    init: Callable[[jax.Array, Batch], TrainState]
    update: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    evaluate: Callable[[TrainState, Batch, jax.Array], Metrics]


def minimise(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    init: Callable[[jax.Array, Batch], tuple[PyTree, PyTree]],
    evaluate: Callable[[TrainState, Batch, jax.Array], Metrics],
    by_example: bool = True,
) -> Learner:
    """The learner that descends one loss by one optimiser, as most do.

    Args:
      loss: scalar loss, metrics to report and the new model state.
      optimizer: applied to the gradient.
      init: `(key, example) -> (params, model_state)`.
      evaluate: as in `Learner`.
      by_example: the loss is `metrics["loss"]`, a mean over examples, so that `accumulated` may
        take the batch in parts. Not so where examples are compared with one another.
    """

    def start(key: jax.Array, example: Batch) -> TrainState:
        params, model_state = init(key, example)
        return TrainState.create(
            key, params, opt_state=optimizer.init(params), model_state=model_state
        )

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if by_example:
            grads, metrics, model_state = gradient(loss, state, batch)
        else:
            grads, (metrics, model_state) = jax.grad(loss, has_aux=True)(state.params, state, batch)
        state, norms = _step(state, grads, model_state, optimizer)
        return state, {**metrics, **norms}

    return Learner(start, update, evaluate)


def descend(
    optimizer: optax.GradientTransformation,
    grads: PyTree,
    opt_state: PyTree,
    params: PyTree,
    name: str = "",
    *,
    when: bool | jax.Array = True,
) -> tuple[PyTree, PyTree, Metrics]:
    """One optimiser step, with the three norms that tell whether training is healthy.

    Args:
      optimizer: of these parameters.
      grads: of the loss.
      opt_state: the optimiser's.
      params: where the gradient was taken.
      name: of the net, where a learner has several; it ends the names of the norms.
      when: whether to measure the norms, which are absent otherwise. Learners do so in every
        `NORM_PERIOD`th update.

    Returns:
      `(params, opt_state, metrics)`; the metrics are the global norms of the gradient (before any
      clipping in the optimiser), the parameters (before the step) and of what they moved by.
    """
    updates, opt_state = optimizer.update(grads, opt_state, params)
    moved = optax.apply_updates(params, updates)

    def measure() -> dict[str, jax.Array]:
        # Not of `updates`, which need not be in memory otherwise: a tenth of a VAE's step.
        update = jax.tree.map(jnp.subtract, moved, params)
        return {"gradient": norm(grads), "parameter": norm(params), "update": norm(update)}

    if isinstance(when, jax.Array) and jax.default_backend() == "cpu":
        norms = jax.lax.cond(when, measure, lambda: optax.tree.zeros_like(jax.eval_shape(measure)))
    else:  # where to wait for a decision takes longer than the norms
        norms = measure()
    suffix = f"/{name}" if name else ""
    metrics = {
        f"norm/{kind}{suffix}": Mean.of(value, jnp.float32(when)) for kind, value in norms.items()
    }
    return moved, opt_state, metrics


def advance(
    state: TrainState,
    loss: Callable[[PyTree], tuple[jax.Array, tuple[Any, PyTree]]],
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Any, Metrics]:
    """One update of a learner whose parameters have one loss and one optimiser.

    Args:
      state: before the update.
      loss: of the parameters alone, `params -> (loss, (aux, model_state))`.
      optimizer: of all parameters.

    Returns:
      `(state, aux, metrics)`: the state with parameters and batch statistics moved, one step on,
      what `loss` had to tell, and the norms of `descend`.
    """
    grads, (aux, model_state) = jax.grad(loss, has_aux=True)(state.params)
    state, norms = _step(state, grads, model_state, optimizer)
    return state, aux, norms


def descend_net(
    state: TrainState,
    name: str,
    loss: Callable[[PyTree], tuple[jax.Array, tuple[Any, PyTree]]],
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Any, Metrics]:
    """One step of one net where a state has several, as dicts with the same names.

    Args:
      state: `params`, `opt_state` and `model_state` have the entry `name`.
      name: of the net.
      loss: of its parameters alone, `params -> (loss, (aux, model_state))`.
      optimizer: its own.

    Returns:
      `(state, aux, metrics)`: the state with the net moved, what `loss` had to tell, and the norms
      of `descend`, whose names end in the net's.
    """
    grads, (aux, model_state) = jax.grad(loss, has_aux=True)(state.params[name])
    when = state.step % NORM_PERIOD == 0
    params, opt_state, norms = descend(
        optimizer, grads, state.opt_state[name], state.params[name], name, when=when
    )
    state = state.replace(
        params={**state.params, name: params},
        opt_state={**state.opt_state, name: opt_state},
        model_state={**state.model_state, name: model_state},
    )
    return state, aux, norms


def _step(
    state: TrainState, grads: PyTree, model_state: PyTree, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Metrics]:
    """Moves all parameters at once, and the norms of `descend`."""
    when = state.step % NORM_PERIOD == 0
    params, opt_state, norms = descend(optimizer, grads, state.opt_state, state.params, when=when)
    state = state.replace(
        step=state.step + 1, params=params, opt_state=opt_state, model_state=model_state
    )
    return state, norms


def norm(tree: PyTree) -> jax.Array:
    """The global norm, a float32 scalar.

    Small leaves are put into one vector first: a sum for each of them takes a small net on a CPU a
    quarter of its step (benchmarks/agents.py). Not so where a mesh divides the parameters: to make
    vectors of them they would be gathered on every device.
    """
    if parameters_are_divided():
        squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
        return jnp.sqrt(sum(squares, start=jnp.zeros(())))
    leaves = [leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(tree)]
    vectors = [leaf for leaf in leaves if leaf.size >= _SMALL]
    if len(vectors) < len(leaves):
        vectors.append(jnp.concatenate([leaf for leaf in leaves if leaf.size < _SMALL]))
    squares = [jnp.vdot(vector, vector, precision="highest") for vector in vectors]
    return jnp.sqrt(sum(squares, start=jnp.zeros(())))
