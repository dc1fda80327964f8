"""Transformations of learners: from a learner to a learner, and nothing in between.

They compose. `seeded(repeated(resident(learner, 128), 100), metrics_axis=1)` trains several seeds,
each drawing its own minibatches from one data set on the device, a hundred updates to a dispatch.
Transformations that add an axis to the state (`seeded`, `swept`) go outside those that read the
state (`resident`, `windowed`, `averaged`, `lookahead`, `guarded`). `repeated` and `chunked` may go
inside of them or outside, with the same bits. Inside is the faster where runs take turns ("map"),
for a run's state is then copied once a dispatch and not once an update, which a replay memory makes
thirty times as slow; `metrics_axis=1` keeps the updates on the first axis of the metrics, as `fit`
expects.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from paradigms.core.ema import ema, slow_copy
from paradigms.core.errors import InputError
from paradigms.core.gradients import in_parts
from paradigms.core.learner import Batch, Learner, Metrics
from paradigms.core.mesh import constrain_batch
from paradigms.core.metrics import Mean
from paradigms.core.sampling import batch_indices, common_length, cycled_indices, data_key
from paradigms.core.scalars import Scheduled, current
from paradigms.core.scan import loop, loops_are_slow
from paradigms.core.state import PyTree, TrainState, fold_name

Method = Literal["vmap", "map", "unroll"]


def repeated(learner: Learner, n: int, *, unroll: bool | None = None) -> Learner:
    """`n` updates in one call, all with the same argument: resident data, or a simulated world.

    Args:
      learner: its `update` is called `n` times.
      n: number of updates, at least 1.
      unroll: whether the loop is written out. By default it is where loops are slow: see
        `loops_are_slow`.

    Returns:
      A learner whose metrics carry a leading axis `[n]`.
    """
    if n < 1:
        raise InputError(f"repeated(n={n}): expected at least one update per call")

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return loop(lambda state, _: learner.update(state, batch), state, None, n, unroll)

    return learner._replace(update=update)


def accumulated(learner: Learner, parts: int, *, unroll: bool | None = None) -> Learner:
    """Takes the gradient of a batch in parts, one after the other, for less memory.

    The update is that of the whole batch but for rounding, also where a `mask` leaves the parts
    uneven, with differences that this has in every library: what a learner draws (views, noise,
    dropout) it draws for each part anew, examples are mixed within a part, and batch norm sees the
    part alone and moves its running statistics once for each. See `gradients.gradient`.

    Args:
      learner: whose gradient is one of `minimise`, of a loss that is a mean over examples.
      parts: of equal size; 1 leaves the learner as it is.
      unroll: whether the loop is written out, as in `repeated`. It is where loops are slow, and
        then little memory is saved: XLA for CPUs keeps much of several parts.

    Raises:
      InputError: fewer than one part; when `update` is traced, a batch that does not divide, or a
        learner that takes its gradient in another way, since it compares examples, or keeps
        something of the whole batch besides (a teacher's statistics, a codebook, a queue), or has
        several nets or a world.
    """
    if parts < 1:
        raise InputError(f"accumulated(parts={parts}): expected at least one part")
    if parts == 1:
        return learner

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with in_parts(parts, unroll) as used:
            state, metrics = learner.update(state, batch)
        if not used:
            raise InputError(
                f"accumulated(parts={parts}): this learner does not take its gradient in parts, as "
                "those do whose loss is a mean over examples and all that they learn from"
            )
        return state, metrics

    return learner._replace(update=update)


def chunked(learner: Learner, *, unroll: bool | None = None) -> Learner:
    """One update for each of the batches stacked on the first axis `[n, B, ...]` of its argument.

    On a mesh each batch is divided over the data axes, so that each device computes its own share.
    `init` takes stacked batches too. `unroll` is as in `repeated`.
    """

    def init(key: jax.Array, batches: Batch) -> TrainState:
        return learner.init(key, jax.tree.map(lambda leaf: leaf[0], batches))

    def update(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        n = jax.tree.leaves(batches)[0].shape[0]
        batches = constrain_batch(batches, axis=1)
        return loop(lambda state, batch: learner.update(state, batch), state, batches, n, unroll)

    return learner._replace(init=init, update=update)


def resident(learner: Learner, batch_size: int | Mapping[str, int]) -> Learner:
    """Takes the whole data set, which lives on the device, and draws the minibatch inside jit.

    The data set is an argument, so it is stored once and never baked into an executable. Each batch
    also gets `index`, int32 `[batch_size]`, the rows it was drawn from. On a mesh the batch is
    divided over the data axes, so that each device computes its own share only.

    Args:
      learner: gets batches `[batch_size, ...]`.
      batch_size: size of the global batch. Where the data are several sets by name, as those with
        and without labels, one size for each: the batch has a part of each name, drawn in an order
        of its own, and a set smaller than its part is gone through several times in it.

    Returns:
      A learner whose batch is a dict of arrays `[N, ...]`, or of such dicts.

    Raises:
      InputError: the arrays differ in length, the batch is empty or larger than the data set, or
        the names of the sizes are not those of the sets.
    """

    def take(data: Mapping[str, jax.Array], index: jax.Array) -> Batch:
        batch = jax.tree.map(lambda leaf: leaf.at[index].get(mode="clip"), dict(data))
        return constrain_batch({**batch, "index": index})

    def draw(key: jax.Array, step: jax.Array, data: Mapping[str, Any]) -> Batch:
        key = data_key(key)
        if not isinstance(batch_size, Mapping):
            size = common_length(dict(data), "resident")
            return take(data, batch_indices(key, step, size, batch_size))
        if set(batch_size) != set(data):
            raise InputError(
                f"resident: batch sizes for {sorted(batch_size)} and data sets {sorted(data)}: "
                "expected one size for each set"
            )
        parts = {}
        for name, number in batch_size.items():
            size = common_length(dict(data[name]), f"resident: {name}")
            index = cycled_indices(fold_name(key, name), step, size, number)
            parts[name] = take(data[name], index)
        return parts

    return _drawing(learner, draw)


def windowed(learner: Learner, batch_size: int, length: int) -> Learner:
    """Takes one long stream, as of the tokens of a text, and draws windows of it inside jit.

    It is `resident` with the windows `[length + 1]` that begin at each of the first `N - length`
    places for rows: within an epoch no window comes twice, and the windows of step s are a function
    of (seed, s). The stream is stored once, and the windows are not. `index`, int32 `[batch_size]`,
    says where they begin. Evaluation takes windows: see `paradigms.data.tokens.windows`.

    Args:
      learner: gets batches `[batch_size, length + 1]`, for a language model `length` tokens and
        the one that follows each of them.
      batch_size: number of windows in the global batch.
      length: of a window, without its last token; at least 1.

    Returns:
      A learner whose batch is a dict of arrays `[N]`, `{"tokens": int[N]}`.

    Raises:
      InputError: the stream is empty or has no window of this length, the arrays differ in length,
        or the batch is empty or larger than the number of windows.
    """
    if length < 1:
        raise InputError(f"windowed(length={length}): expected at least 1")

    def draw(key: jax.Array, step: jax.Array, data: Mapping[str, jax.Array]) -> Batch:
        size = common_length(dict(data), "windowed")
        if size <= length:
            raise InputError(
                f"windowed: a window of {length} + 1 tokens does not fit a text of {size}: take a "
                "shorter window or a longer text"
            )
        index = batch_indices(data_key(key), step, size - length, batch_size)

        def cut(leaf: jax.Array) -> jax.Array:
            def window(start: jax.Array) -> jax.Array:
                return jax.lax.dynamic_slice_in_dim(leaf, start, length + 1)

            return jax.vmap(window)(index)

        return constrain_batch({**jax.tree.map(cut, dict(data)), "index": index})

    return _drawing(learner, draw)


def _drawing(
    learner: Learner, draw: Callable[[jax.Array, jax.Array, Mapping[str, jax.Array]], Batch]
) -> Learner:
    """Takes the whole data set; its batch is `draw(key, step, data)`."""

    def init(key: jax.Array, data: Mapping[str, jax.Array]) -> TrainState:
        return learner.init(key, draw(key, jnp.zeros((), jnp.int32), data))

    def update(state: TrainState, data: Mapping[str, jax.Array]) -> tuple[TrainState, Metrics]:
        return learner.update(state, draw(state.key, state.step, data))

    return learner._replace(init=init, update=update)


def seeded(
    learner: Learner,
    *,
    method: Method | None = None,
    data_axis: Any = None,
    metrics_axis: int = 0,
) -> Learner:
    """Independent runs, one for each key; run `i` is the run that `keys[i]` alone would give.

    Args:
      learner: the run.
      method: "vmap" runs them side by side, "map" one after another in a loop and bit-equal to
        separate runs, "unroll" likewise with the loop written out. By default the accelerator gets
        "vmap", and the CPU "map", or "unroll" where `loops_are_slow`: convolutions in a loop have a
        kernel of their own, whose sums some CPUs round in another way.
      data_axis: the axis of the batch that belongs to the runs, or None where they share it; as for
        `jax.vmap` also a tree of these, as `{"labelled": 0, "unlabelled": None}`.
      metrics_axis: the axis of the runs in what `update` reports: 1 behind the updates of
        `repeated` or `chunked`.

    Returns:
      A learner whose `init` takes keys `[S]`, whose state has `[S]` in front of every array, and
      whose metrics have it too.
    """

    def init(keys: jax.Array, example: Batch) -> TrainState:
        return _over_runs(learner.init, keys, example, "map", data_axis)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        state, metrics = _over_runs(learner.update, state, batch, method, data_axis)
        return state, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, metrics_axis), metrics)

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        def one(state: TrainState, batch: Batch) -> Metrics:
            return learner.evaluate(state, batch, key)

        return _over_runs(one, state, batch, method, data_axis)

    return Learner(init, update, evaluate)


def swept(
    make: Callable[[Mapping[str, jax.Array]], Learner],
    grid: Mapping[str, Any],
    *,
    method: Method | None = None,
) -> Learner:
    """One run for each point of a grid of hyperparameters, all from the same key.

    The values live in `state.hparams`, and `make` is called with them while `update` is traced: new
    values compile nothing, and a checkpoint holds them.

    Args:
      make: `hparams -> Learner`, given the scalars of one point.
      grid: for each name an array `[G]`; point `g` takes the `g`-th value of each.
      method: as in `seeded`.

    Returns:
      A learner whose state and metrics have an axis `[G]`.

    Raises:
      InputError: the grid is empty or its arrays differ in length.
    """
    points = {name: jnp.asarray(values) for name, values in grid.items()}
    shapes = {name: values.shape for name, values in points.items()}
    if len(set(shapes.values())) != 1 or any(len(s) != 1 or s[0] == 0 for s in shapes.values()):
        raise InputError(
            f"swept: expected one-dimensional arrays of one length, one value per run, got {shapes}"
        )

    def init(key: jax.Array, example: Batch) -> TrainState:
        def one(hparams: PyTree, example: Batch) -> TrainState:
            state = make(hparams).init(key, example)
            if jax.tree.leaves(state.hparams):
                raise InputError("swept: the learner is swept already; put both into one grid")
            return state.replace(hparams=hparams)

        return _over_runs(one, points, example, "map", None)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def one(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            return make(state.hparams).update(state, batch)

        return _over_runs(one, state, batch, method, None)

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        def one(state: TrainState, batch: Batch) -> Metrics:
            return make(state.hparams).evaluate(state, batch, key)

        return _over_runs(one, state, batch, method, None)

    return Learner(init, update, evaluate)


def averaged(
    learner: Learner,
    decay: float | jax.Array,
    *,
    model_state: Literal["average", "live"],
    beside: tuple[str, ...] = (),
) -> Learner:
    """Evaluates an exponential moving average of the weights, kept in `state.target["average"]`.

    The average starts at the initial weights and moves after each optimiser step:
    `average <- decay * average + (1 - decay) * params`.

    Args:
      learner: its `update` is followed by the average's, its `evaluate` sees the averaged weights.
      decay: in [0, 1).
      model_state: what evaluation takes for batch statistics, a choice that papers differ in:
        "average" averages them as the weights, "live" takes those of the current weights.
      beside: metrics of the current weights to report too, with "live/" before their names.
    """
    if model_state not in ("average", "live"):
        raise InputError(
            f"averaged(model_state={model_state!r}): expected 'average' (batch statistics are "
            "averaged with the weights) or 'live' (those of the current weights)"
        )

    def init(key: jax.Array, example: Batch) -> TrainState:
        return _with_copy(learner.init(key, example), "average")

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        state, metrics = learner.update(state, batch)
        average = ema(state.target["average"], _weights(state), decay)
        if model_state == "live":
            average["model_state"] = state.model_state
        return state.replace(target={**state.target, "average": average}), metrics

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        metrics = learner.evaluate(state.replace(**state.target["average"]), batch, key)
        if beside:
            live = learner.evaluate(state, batch, key)
            metrics = {**metrics, **{f"live/{name}": live[name] for name in beside}}
        return metrics

    return Learner(init, update, evaluate)


def lookahead(learner: Learner, decay: Scheduled = 0.5, *, period: int = 5) -> Learner:
    """Lookahead (Zhang et al. 2019, arXiv:1907.08610, algorithm 1), batch statistics included.

    Every `period` updates the slow weights move towards the fast ones,
    `slow <- decay * slow + (1 - decay) * fast`, and the fast ones start again from there.
    Evaluation sees the slow weights, kept in `state.target["lookahead"]`.

    Args:
      learner: the fast weights.
      decay: a number in [0, 1], or a schedule of the number of updates done.
      period: updates between two synchronisations.
    """
    if period < 1:
        raise InputError(f"lookahead(period={period}): expected at least 1")

    def init(key: jax.Array, example: Batch) -> TrainState:
        return _with_copy(learner.init(key, example), "lookahead")

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        state, metrics = learner.update(state, batch)
        slow, fast = state.target["lookahead"], _weights(state)
        now = state.step % period == 0
        moved = ema(slow, fast, current(decay, state.step))
        slow = jax.tree.map(lambda new, old: jnp.where(now, new, old), moved, slow)
        fast = jax.tree.map(lambda new, old: jnp.where(now, new, old), moved, fast)
        return state.replace(**fast, target={**state.target, "lookahead": slow}), metrics

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        return learner.evaluate(state.replace(**state.target["lookahead"]), batch, key)

    return Learner(init, update, evaluate)


def guarded(learner: Learner) -> Learner:
    """Leaves out an update that would give NaN or infinity: the state stays as it was, a step on.

    The next update draws what belongs to the next step, so that one bad batch does not end a run.
    What lies in `world` goes on, for no environment can be stepped back. Metrics of an update that
    was left out are absent, and `skipped` tells how many were. Choosing between two states copies
    them, which a large replay memory makes slow.
    """

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new, metrics = learner.update(state, batch)
        looked_at = (new.params, new.opt_state, new.model_state, metrics)
        fine = jnp.array(True)
        for leaf in jax.tree.leaves(looked_at):
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                fine &= jnp.isfinite(leaf).all()
        old = state.replace(step=new.step, world=new.world)
        absent = jax.tree.map(jnp.zeros_like, metrics)
        # Not `where`, which XLA would fuse with the update, to round in another way.
        new, metrics = jax.lax.cond(fine, lambda: (new, metrics), lambda: (old, absent))
        return new, {**metrics, "skipped": Mean.of(~fine)}

    return learner._replace(update=update)


def _over_runs(
    function: Callable[[Any, Batch], Any],
    runs: Any,
    batch: Batch,
    method: Method | None,
    data_axis: Any,
) -> Any:
    """Applies `function(run, batch)` to each run, stacked on the first axis of every leaf."""
    shape = jax.tree.leaves(runs)[0].shape
    if not shape:
        raise InputError(
            "seeded or swept: expected keys [S], as of jax.random.split(key, S), or a state made "
            "from them; got a single run"
        )
    leaves, form = jax.tree.flatten(batch)
    owned = [
        None if axis is None else jnp.moveaxis(leaf, axis, 0)
        for leaf, axis in zip(leaves, _axes(data_axis, batch), strict=True)
    ]
    given = common_length(owned, "seeded") if jax.tree.leaves(owned) else shape[0]
    if given != shape[0]:
        raise InputError(
            f"seeded(data_axis={data_axis}): the batch has data for {given} runs and there are "
            f"{shape[0]}"
        )

    def one(run_and_data: tuple[Any, list[jax.Array | None]]) -> Any:
        run, own = run_and_data
        parts = [leaf if mine is None else mine for leaf, mine in zip(leaves, own, strict=True)]
        return function(run, jax.tree.unflatten(form, parts))

    def alone(run_and_data: tuple[Any, list[jax.Array | None]]) -> Any:
        # XLA would fuse a run with the slicing around it, and then round in another way.
        barrier = jax.lax.optimization_barrier
        return barrier(one(barrier(run_and_data)))

    stacked = (runs, owned)
    if method is None:
        first = jax.tree.map(lambda leaf: leaf[0], stacked)
        if jax.default_backend() != "cpu":
            method = "vmap"
        else:
            method = "unroll" if loops_are_slow(one, first) else "map"
    if method == "vmap":
        return jax.vmap(one)(stacked)
    if method == "map":
        return jax.lax.map(alone, stacked)
    if method == "unroll":
        results = [alone(jax.tree.map(lambda leaf: leaf[i], stacked)) for i in range(shape[0])]  # noqa: B023
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
    raise InputError(f"method {method!r}: expected 'vmap', 'map', 'unroll' or None")


def run_data(data: Batch, data_axis: Any, run: int) -> Batch:
    """The data of one run, from what `seeded` with this `data_axis` gives to all."""
    leaves, form = jax.tree.flatten(data)
    own = [
        leaf if axis is None else jnp.take(leaf, run, axis)
        for leaf, axis in zip(leaves, _axes(data_axis, data), strict=True)
    ]
    return jax.tree.unflatten(form, own)


def _axes(data_axis: Any, batch: Batch) -> list[int | None]:
    """The axis of each leaf of the batch."""
    form: Any
    axes, form = jax.tree.flatten(data_axis, is_leaf=lambda axis: axis is None)
    parts = form.flatten_up_to(batch)
    return [axis for axis, part in zip(axes, parts, strict=True) for _ in jax.tree.leaves(part)]


def _weights(state: TrainState) -> dict[str, PyTree]:
    return {"params": state.params, "model_state": state.model_state}


def _with_copy(state: TrainState, name: str) -> TrainState:
    return state.replace(target={**state.target, name: slow_copy(**_weights(state))})
