"""What an experiment trains and how it is judged."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nets.net import Net
from paradigms.core import metrics as metrics_lib
from paradigms.core.errors import InputError
from paradigms.core.learner import Learner, Metrics
from paradigms.core.loop import LiveSource, evaluator
from paradigms.core.metrics import Means
from paradigms.core.state import PyTree, TrainState, fold_name
from paradigms.core.transforms import resident, seeded

Arrays = Mapping[str, np.ndarray]

Judge = Callable[[TrainState, jax.Array], Metrics]
"""`(state, key) -> metrics` of all runs, which are the first axis of the state and the metrics."""


def _live_weights(state: TrainState) -> dict[str, PyTree]:
    return {"params": state.params, "model_state": state.model_state}


class Task(NamedTuple):
    """What an experiment trains and how it is judged; `labelled` and `living` make the usual ones.

    Attributes:
      net: what `experiments.load` gives back; takes raw inputs.
      learner: one run.
      data: what its `update` takes, as numpy arrays.
      examples_per_update: examples, or environment steps, that a run learns from in one update.
      example: shape, without the batch, and dtype of what goes into the net.
      validation: makes the judge that is asked during training; None to go without.
      test: makes the judge that is asked once, after the last update.
      derive: from summed means, of training and of evaluation, to the numbers to report.
      headline: the metric to show while training, and the one that `smoke` must improve.
      weights: which weights evaluation uses, as `{"params": ..., "model_state": ...}`.
      pictures: draws into a directory from the test metrics and the final state of the first run.
      start: changes the fresh state, of all runs, before the first update (pretrained weights).
      data_axis: 0 where every run has training data of its own, stacked; None where they share it;
        or a tree of these.
      source: what makes the batches of all runs, one update after the other, in place of `data`;
        a world on the host, whose episodes begin anew where a run resumes.
    """

    net: Net
    learner: Learner
    data: Any
    examples_per_update: int
    example: jax.ShapeDtypeStruct
    validation: Callable[[], Judge] | None
    test: Callable[[], Judge]
    derive: Callable[[Means], dict[str, float]] = metrics_lib.derive
    headline: str = "accuracy"
    weights: Callable[[TrainState], dict[str, PyTree]] = _live_weights
    pictures: Callable[[Path, Means, TrainState], None] | None = None
    start: Callable[[TrainState], TrainState] = lambda state: state
    data_axis: Any = None
    source: LiveSource | None = None


def labelled(
    net: Net,
    learner: Learner,
    *,
    train: Mapping[str, Any],
    batch_size: int | Mapping[str, int],
    validation: Arrays | None,
    test: Arrays,
    input_name: str = "image",
    **options: Any,
) -> Task:
    """Learning from a data set: minibatches are drawn from it, and others are kept to judge by.

    Args:
      net: see `Task`.
      learner: takes a minibatch.
      train: arrays `[N, ...]` to draw minibatches from, or several such sets by name.
      batch_size: of the global minibatch, or of its part of each set.
      validation: held-out arrays, looked at during training; None to go without.
      test: held-out arrays, read once, after the last update.
      input_name: the entry of a batch that goes into the net.
      **options: other fields of `Task`.
    """
    image = test[input_name]
    judged, size = seeded(learner), judged_at_once(validation or test, test)

    def judge(data: Arrays) -> Callable[[], Judge]:
        return lambda: evaluator(judged, data, batch_size=size)

    return Task(
        net=net,
        learner=resident(learner, batch_size),
        data=dict(train),
        examples_per_update=sum(jax.tree.leaves(batch_size)),
        example=jax.ShapeDtypeStruct(image.shape[1:], image.dtype),
        validation=None if validation is None else judge(validation),
        test=judge(test),
        **options,
    )


def judged_at_once(*held_out: Arrays) -> int:
    """Examples in a batch to judge by: of one shape for all sets, so that it compiles once."""
    return min(500, max(100, min(len(next(iter(data.values()))) for data in held_out)))


def living(
    net: Net,
    learner: Learner,
    observation: jax.ShapeDtypeStruct,
    steps: int,
    judge: Judge | None = None,
    **options: Any,
) -> Task:
    """Learning in a world, and judged by whole greedy episodes in worlds of other seeds.

    Args:
      net: see `Task`.
      learner: made by `interact` or `hosted`.
      observation: shape and dtype of one.
      steps: environment steps of a run in one update, `num_envs * num_steps`.
      judge: plays the episodes; by default the learner's `evaluate`.
      **options: other fields of `Task`.
    """

    play = jax.jit(seeded(learner).evaluate)

    def in_its_world(state: TrainState, key: jax.Array) -> Metrics:
        return play(state, (), key)

    judges = judge or in_its_world

    def by(name: str) -> Callable[[], Judge]:
        return lambda: lambda state, key: jax.device_get(judges(state, fold_name(key, name)))

    return Task(
        net=net,
        learner=learner,
        data=(),
        examples_per_update=steps,
        example=observation,
        validation=by("validation"),
        test=by("test"),
        headline="return",
        **options,
    )


def check_finite(data: Any) -> None:
    """Raises InputError for training data with NaN or infinity, before they spoil a run."""
    for path, array in jax.tree_util.tree_flatten_with_path(data)[0]:
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            wrong = int((~np.isfinite(array)).sum())
            raise InputError(
                f"training data{jax.tree_util.keystr(path)}: {wrong} of {array.size} values are "
                "NaN or infinite: remove or replace them"
            )
