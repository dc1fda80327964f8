"""The one training loop, and evaluation of a whole data set."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paradigms.core import metrics as metrics_lib
from paradigms.core.errors import InputError, NonFiniteError
from paradigms.core.learner import Batch, Learner, Metrics
from paradigms.core.mesh import batch_axes, shard_batch
from paradigms.core.metrics import Mean
from paradigms.core.profiling import HostWait, Profile
from paradigms.core.sampling import common_length
from paradigms.core.state import TrainState

Source = Callable[[int, int], Batch]
"""`(step, n) -> batch`: what `update` gets for the updates `step ... step + n - 1`."""


class LiveSource(NamedTuple):
    """A source that also sees the state, as a world in which the state acts.

    Attributes:
      draw: `(step, n, state) -> batch`, as in `Source`; `state` is the one to update.
    """

    draw: Callable[[int, int, TrainState], Batch]


Callback = Callable[[int, Metrics, TrainState], None]
"""`(step, metrics, state)`, the metrics added up since the callback's last call, on the host."""

# Metrics are fetched this often. Fetching after each dispatch would stall a fast device; fetching
# never would find a NaN too late.
_SECONDS_BETWEEN_FETCHES = 0.2


class Every(NamedTuple):
    """A callback and the number of updates between its calls; the last update calls it too."""

    steps: int
    callback: Callback


Sums = list[np.ndarray]
"""For each callback the metrics since its last call, added up and packed into one vector."""


class Fitted(NamedTuple):
    """What `fit` gives back.

    Attributes:
      state: the state after the last update.
      steps: updates done by this call.
      compile_seconds: time that the compiler took.
      train_seconds: time of the loop, callbacks included, without compilation.
      pending: where it was stopped early, what no callback has seen yet: to be handed to the call
        that goes on. None where all updates were done.
      host_seconds: how much of `train_seconds` passed without an update queued or running, for the
        source or the callbacks had the device wait: see `HostWait`.
    """

    state: TrainState
    steps: int
    compile_seconds: float
    train_seconds: float
    pending: Sums | None = None
    host_seconds: float = 0.0


def fit(
    learner: Learner,
    state: TrainState,
    source: Source | LiveSource,
    *,
    steps: int,
    steps_per_call: int = 1,
    callbacks: Sequence[Every] = (),
    on_progress: Callable[[int], None] = lambda step: None,
    last_good: Callable[[], str] = lambda: "no checkpoint was kept",
    stop: Callable[[], bool] = lambda: False,
    pending: Sums | None = None,
    profile: Profile | None = None,
) -> Fitted:
    """Updates the state until it has done `steps` updates in all, or is asked to stop.

    Args:
      learner: made by `repeated` or `chunked`, so that a call does `steps_per_call` updates and
        its metrics have them on their first axis.
      state: where to start, at step 0 or restored. Its buffers are donated: use the returned state.
      source: gives what `learner.update` takes, and is asked once for each call.
      steps: total number of updates, those of earlier calls included.
      steps_per_call: updates in one dispatch.
      callbacks: called in order, each at multiples of its own interval and after the last update.
        A call waits for the device, so intervals should span many dispatches.
      on_progress: gets the number of updates done, a few times a second, without such a wait.
      last_good: describes where to go back to, for the message when training diverges.
      stop: asked before every dispatch whether to leave it at that.
      pending: `Fitted.pending` of the call that this one goes on from, so that callbacks get what
        they would have got had there been one call.
      profile: traces some of the dispatches.

    Returns:
      The final state with the time it took.

    Raises:
      InputError: an interval or the number of steps is not a multiple of `steps_per_call`.
      NonFiniteError: a metric became NaN or infinite, or what is learnt did so just before a
        callback, which would keep it for good.
    """
    start = step_of(state)
    _check_intervals(start, steps, steps_per_call, callbacks)
    if start >= steps:
        return Fitted(state, 0, 0.0, 0.0)
    if stop():
        return Fitted(state, 0, 0.0, 0.0, pending or [np.zeros((), np.float32) for _ in callbacks])

    def draw(step: int) -> Batch:
        if isinstance(source, LiveSource):
            return source.draw(step, steps_per_call, state)
        return source(step, steps_per_call)

    compile_start = time.perf_counter()
    batch = draw(start)
    layout: Metrics = {}

    def update_and_pack(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        # One array to fetch where there were a dozen: for a small net that is a tenth of the time.
        state, stacked = learner.update(state, batch)
        layout.update(jax.eval_shape(lambda: stacked))
        return state, jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(stacked)])

    update = update_and_pack
    if jit_is_on():
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        update = (
            jax.jit(update_and_pack, donate_argnums=0, out_shardings=(shardings, None))
            .lower(state, batch)
            .compile()
        )
    compile_seconds = time.perf_counter() - compile_start

    dispatched: list[tuple[int, Any]] = []
    gathered = list(pending or [np.zeros((), np.float32) for _ in callbacks])

    def fetch() -> None:
        """Brings finished metrics to the host, checks them, and adds them up for every callback."""
        fetched = jax.device_get(dispatched)
        if not np.isfinite([packed for _, packed in fetched]).all():
            for first_step, packed in fetched:
                _check_finite(first_step, _unpack(packed, layout), last_good)
        waited.fetched()
        # One dispatch after the other, so that the sums do not depend on when they were fetched.
        for _, packed in fetched:
            for i in range(len(callbacks)):
                gathered[i] = gathered[i] + packed
        dispatched.clear()

    train_start = last_fetch = time.perf_counter()
    waited = HostWait()
    for step in range(start, steps, steps_per_call):
        done = step + steps_per_call
        if profile is not None:
            profile.before(step, steps_per_call, state)
        waited.dispatches(not dispatched or dispatched[-1][1].is_ready())
        with jax.profiler.StepTraceAnnotation("update", step_num=step):
            state, packed = update(state, batch)
        dispatched.append((step, packed))
        if profile is not None:
            profile.after(done, state)
        if step == start:
            _check_first_call(step_of(state) - start, layout, steps_per_call)
        due = [i for i, (n, _) in enumerate(callbacks) if done % n == 0 or done == steps]
        if step == start or due or time.perf_counter() - last_fetch > _SECONDS_BETWEEN_FETCHES:
            fetch()
            on_progress(done)
            last_fetch = time.perf_counter()
        if due:
            _check_state(done, state, last_good)
        for i in due:
            metrics = metrics_lib.collapse(_unpack(gathered[i], layout))
            callbacks[i].callback(done, metrics, state)
            gathered[i] = np.zeros((), np.float32)
        if stop():
            break
        if done < steps:
            batch = draw(done)
    fetch()
    on_progress(done)
    jax.block_until_ready(state)
    waited.ends()
    train_seconds = time.perf_counter() - train_start
    left = gathered if done < steps else None
    return Fitted(state, done - start, compile_seconds, train_seconds, left, waited.seconds)


def jit_is_on() -> bool:
    """False where every operation runs on its own, to find a fault in one of them."""
    config: Any = jax.config  # of which not every version's types know all options
    return not config.jax_disable_jit


def evaluator(
    learner: Learner, data: Mapping[str, Any], batch_size: int
) -> Callable[[TrainState, jax.Array], Metrics]:
    """Compiles the evaluation of a whole data set, which is kept on the device.

    The last batch is padded with copies of row 0 and a `mask` of zeros, so that every example
    counts once and there is one shape to compile, which sets that have it share for one learner. On
    a mesh each device keeps its share of every batch, whose size is rounded up to what divides.

    Args:
      learner: its `evaluate` must honour `mask`, float32 `[B]`.
      data: arrays `[N, ...]`; a `mask` among them weighs the examples.
      batch_size: examples in a batch.

    Returns:
      `(state, key) -> metrics`, summed over the set; batch `i` gets a key folded with `i`.

    Raises:
      InputError: there is no example, the arrays differ in length, or the batch is empty.
    """
    size = common_length(data, "evaluator")
    if batch_size < 1:
        raise InputError(f"evaluator(batch_size={batch_size}): expected at least 1")
    mesh = jax.sharding.get_mesh()
    shards = math.prod(mesh.shape[axis] for axis in batch_axes(mesh))
    batch_size = -(-min(batch_size, size) // shards) * shards
    batches = -(-size // batch_size)
    index = np.arange(batches * batch_size).reshape(batches, batch_size)
    rows = np.where(index < size, index, 0)

    def batch_of(i: int) -> Batch:
        batch = {name: jnp.asarray(np.asarray(array)[rows[i]]) for name, array in data.items()}
        batch["mask"] = jnp.asarray(index[i] < size, jnp.float32) * batch.get("mask", 1.0)
        return shard_batch(batch, mesh) if shards > 1 else batch

    kept = [batch_of(i) for i in range(batches)]
    one = jax.jit(learner.evaluate)

    def evaluate(state: TrainState, key: jax.Array) -> Metrics:
        total: Metrics = {}
        for i, batch in enumerate(kept):
            total = metrics_lib.add(total, one(state, batch, jax.random.fold_in(key, i)))
        return jax.device_get(total)

    return evaluate


def _unpack(packed: np.ndarray, layout: Metrics) -> Metrics:
    """The metrics that `fit` packed into one vector, as host arrays."""
    leaves, structure = jax.tree.flatten(layout)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = np.split(packed, ends[:-1])
    return jax.tree.unflatten(
        structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )


def step_of(state: TrainState) -> int:
    """The number of updates done; runs stacked in one state march in step."""
    return int(np.asarray(state.step).flat[0])


def _check_intervals(
    start: int, steps: int, steps_per_call: int, callbacks: Sequence[Every]
) -> None:
    if steps_per_call < 1:
        raise InputError(f"steps_per_call={steps_per_call}: expected at least 1")
    intervals = {"steps": steps}
    if start:
        intervals["the step to resume from"] = start
    intervals |= {f"the interval of callback {i}": n for i, (n, _) in enumerate(callbacks)}
    for name, interval in intervals.items():
        if interval % steps_per_call or interval < 1:
            raise InputError(
                f"{name} is {interval}: expected a positive multiple of steps_per_call, "
                f"{steps_per_call}"
            )


def _check_first_call(updates: int, stacked: Metrics, steps_per_call: int) -> None:
    axes = {mean.count.shape[:1] for mean in stacked.values()}
    if updates != steps_per_call or not axes <= {(steps_per_call,)}:
        raise InputError(
            f"one call of update did {updates} updates and gave metrics with first axes "
            f"{sorted(axes)}, but steps_per_call is {steps_per_call}: wrap the learner in "
            f"repeated(..., {steps_per_call}) or chunked, outermost"
        )


def _check_finite(first_step: int, stacked: Metrics, last_good: Callable[[], str]) -> None:
    found = []
    for name, mean in stacked.items():
        broken = np.argwhere(~np.isfinite(mean.total))
        if len(broken):
            found.append((int(broken[0][0]), name))
    if found:
        update, name = min(found)
        raise NonFiniteError(
            f"{name} is not finite at step {first_step + update + 1}: {last_good()}; lower the "
            "learning rate, clip the gradient (max_norm), or look with --debug",
            first_step,
            stacked,
        )


def _check_state(done: int, state: TrainState, last_good: Callable[[], str]) -> None:
    """Raises where an update's loss was finite and what it made of the parameters is not."""
    fine = np.asarray(_is_finite(state))
    if not fine.all():
        total = jnp.where(fine, 0.0, jnp.nan)[None]
        raise NonFiniteError(
            f"a parameter is not finite after step {done}: {last_good()}; lower the learning rate, "
            "clip the gradient (max_norm), or look with --debug",
            done - 1,
            {"a parameter": Mean(total=total, count=jnp.ones_like(total))},
        )


@jax.jit
def _is_finite(state: TrainState) -> jax.Array:
    """Whether all that an update learns is, for each run by itself; the shape is that of `step`."""
    learnt = jax.tree.leaves((state.params, state.opt_state, state.model_state))
    fine = jnp.ones(state.step.shape, bool)
    for leaf in learnt:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            fine &= jnp.isfinite(leaf).all(tuple(range(fine.ndim, leaf.ndim)))
    return fine
