"""What every experiment does around its learner: devices, seeds, run directory, report."""

import contextlib
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli, trackers
from nets.net import Net
from paradigms.core import metrics as metrics_lib
from paradigms.core.checkpoint import Checkpoints
from paradigms.core.errors import InputError, NonFiniteError, Stopped
from paradigms.core.learner import Learner, Metrics
from paradigms.core.loop import Every, LiveSource, Sums, evaluator, fit, jit_is_on, step_of
from paradigms.core.mesh import make_mesh, parse_mesh, replicate, shard_state
from paradigms.core.metrics import Mean, Means
from paradigms.core.pictures import draw_curves
from paradigms.core.progress import Progress
from paradigms.core.record import Run, environment, state_sha256_per_run, summarise, write_whole
from paradigms.core.signals import StopRequest
from paradigms.core.state import PyTree, TrainState, fold_name
from paradigms.core.transforms import (
    guarded,
    loops_are_slow,
    repeated,
    resident,
    run_data,
    seeded,
)

Arrays = Mapping[str, np.ndarray]

Judge = Callable[[TrainState, jax.Array], Metrics]
"""`(state, key) -> metrics` of all runs, which are the first axis of the state and the metrics."""

_PENDING = "pending.json"

# Long enough for the cost of a dispatch to vanish, short enough for a lively progress bar.
_UPDATES_PER_CALL = 100
# To copy so much takes a tenth of the time of a small update, 4 steps and a gradient of MinAtar.
_BYTES_PER_UPDATE = 2**17
_UNROLLED_UPDATES_PER_CALL = 4
_ENOUGH_TO_UNROLL = 200


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

    def judge(data: Arrays) -> Callable[[], Judge]:
        return lambda: evaluator(seeded(learner), data, batch_size=500)

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


def train(
    main: Callable[..., Any], config: cli.Options, task: Task, part: str = ""
) -> dict[str, Any]:
    """Trains one run per seed and writes the run directory; resumes where it stopped.

    Args:
      main: the experiment's; its file gives the name.
      config: its options.
      task: what to train.
      part: sub-directory, for an experiment that trains several times.

    Returns:
      The summary, as in `summary.json`.
    """
    trackers.check(config)
    started = environment()  # before hours pass in which the source may change
    with StopRequest() as stop, open_run(main, config, part) as run:
        if run.finished:
            return run.summary()
        mesh = make_mesh(config.mesh) if parse_mesh(config.mesh) else None
        started["device_count"] = 1 if mesh is None else mesh.size
        with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
            return _train(run, config, task, mesh, started, stop)


def directory_of(main: Callable[..., Any], config: cli.Options) -> Path:
    """`--run-dir`, or runs/NAME with the options that are not the usual ones behind it."""
    return config.run_dir or Path("runs") / (cli.name_of(main) + cli.variation(config))


def open_run(main: Callable[..., Any], config: cli.Options, part: str = "") -> Run:
    """Opens the run directory, says so if it is finished already."""
    directory = directory_of(main, config) / part
    settings = {"experiment": cli.name_of(main), **cli.to_json(config)}
    run = Run.open(directory, settings, ignored=cli.FREE)
    if run.finished:
        print(f"{directory} is finished: summary.json has the result, --run-dir starts another")
    return run


def _train(
    run: Run,
    config: cli.Options,
    task: Task,
    mesh: Any,
    started: dict[str, Any],
    stop: StopRequest,
) -> dict[str, Any]:
    _check_finite(task.data)
    if config.on_nonfinite == "skip":
        task = task._replace(learner=guarded(task.learner))
    fresh = seeded(task.learner, data_axis=task.data_axis)
    data = jax.tree.map(jnp.asarray, task.data)
    keys = jax.vmap(jax.random.key)(jnp.asarray(config.seeds, jnp.uint32))
    state = task.start(jax.jit(fresh.init)(keys, data))
    if mesh is not None:
        data, state = replicate(data, mesh), shard_state(state, mesh)

    checkpoints = Checkpoints(run.directory / "checkpoints")
    if checkpoints.steps():
        state = checkpoints.restore(state)
    step = step_of(state)
    if step:
        print(f"resuming {run.directory} at step {step}", file=sys.stderr)
    run.rewind(step or -1)

    interval = math.gcd(config.steps, config.evaluate_every, step)
    n = 1
    if task.source is None:
        n = updates_per_call(fresh, state, data, interval, config.steps)
    data_axis = task.data_axis if task.source is None else 0
    learner = seeded(repeated(task.learner, n), data_axis=data_axis, metrics_axis=1)
    evaluate_test = task.test()
    evaluate_validation = None if task.validation is None else task.validation()
    evaluation_key = jax.random.key(0)

    with (
        trackers.tracking(config, run.directory, step) as track,
        Progress(config.steps, step) as progress,
    ):

        def evaluate(step: int, metrics: Metrics, state: TrainState) -> None:
            values = {f"train/{k}": v for k, v in _per_run(metrics, task.derive).items()}
            if 1.0 in values.get("train/skipped", ()):
                raise NonFiniteError(
                    f"every update up to step {step} since the last evaluation was left out, for "
                    f"it gave NaN or infinity: {_last_good(checkpoints)}; lower the learning rate"
                )
            if evaluate_validation is not None:
                held_out = _per_run(evaluate_validation(state, evaluation_key), task.derive)
                values |= {f"validation/{k}": v for k, v in held_out.items()}
            run.log(step, values)
            track(step, values)
            shown = [f"validation/{task.headline}", f"train/{task.headline}", "train/loss"]
            progress.report(step, {k: float(np.mean(values[k])) for k in shown if k in values})
            checkpoints.save(step, state)

        if step == 0:
            evaluate(0, {}, state)
        fitted = fit(
            learner,
            state,
            task.source or (lambda step, n: data),
            steps=config.steps,
            steps_per_call=n,
            callbacks=[Every(config.evaluate_every, evaluate)],
            on_progress=progress.advance,
            last_good=lambda: _last_good(checkpoints),
            stop=lambda: bool(stop),
            pending=_read_pending(run, step),
        )
        if fitted.pending is not None:
            step += fitted.steps
            _write_pending(run, step, fitted.pending)
            if checkpoints.latest() != step:
                checkpoints.save(step, fitted.state)
            raise Stopped(
                f"{stop.received} at step {step} of {config.steps}: it is saved in "
                f"{run.directory}, and the same command goes on from there"
            )
    test = evaluate_test(fitted.state, evaluation_key)
    _save_net(run.directory, task, fitted.state)
    if task.pictures is not None:
        first = jax.tree.map(lambda leaf: leaf[0], fitted.state)
        task.pictures(run.directory, _run_of(test, 0), first)
    draw_curves(run.read_metrics(), run.directory / "curves.png")
    final = {f"test/{name}": values for name, values in _per_run(test, task.derive).items()}
    params = task.weights(fitted.state)["params"]
    return finish(
        run,
        config,
        final,
        started,
        state=fitted.state,
        before=_before(run),
        area_under_curve=_area_under_curve(run),
        input={"shape": list(task.example.shape), "dtype": str(task.example.dtype)},
        examples=config.steps * task.examples_per_update,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)) // len(config.seeds),
        speed={
            "steps_this_session": fitted.steps,
            "steps_per_second": fitted.steps / max(fitted.train_seconds, 1e-9),
            "train_seconds": fitted.train_seconds,
            "compile_seconds": fitted.compile_seconds,
            "updates_per_call": n,
            "flops_per_update": _flops(task, data),
        },
        **({} if task.source is None else {"worlds_begun_anew_at": step or None}),
    )


def finish(
    run: Run,
    config: cli.Options,
    final: Mapping[str, list[float]],
    started: Mapping[str, Any],
    *,
    state: TrainState | None = None,
    **details: Any,
) -> dict[str, Any]:
    """Writes `summary.json` and shows it.

    Args:
      run: the run directory.
      config: the experiment's options.
      final: by metric name, the value of each run, in the order of the seeds.
      started: `environment()` at the start of the process that finishes the run.
      state: the final state with the runs on the first axis, for its fingerprints.
      **details: what else to write, as JSON values.

    Returns:
      The summary.
    """
    seeds = config.seeds
    digests = [None] * len(seeds) if state is None else state_sha256_per_run(state, len(seeds))
    runs = [
        {
            "seed": seed,
            "hparams": {},
            "metrics": {name: values[i] for name, values in final.items()},
            "state_sha256": digests[i],
        }
        for i, seed in enumerate(seeds)
    ]
    summary = {
        "metrics": summarise(final),
        "runs": runs,
        "steps": config.steps,
        **details,
        "command": shlex.join(["python", "-m", *_module_and_arguments()]),
        "environment": dict(started),
    }
    run.finish(summary)
    _show(run.directory, summary)
    return summary


def _check_finite(data: Any) -> None:
    """Raises InputError for training data with NaN or infinity, before they spoil a run."""
    for path, array in jax.tree_util.tree_flatten_with_path(data)[0]:
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            wrong = int((~np.isfinite(array)).sum())
            raise InputError(
                f"training data{jax.tree_util.keystr(path)}: {wrong} of {array.size} values are "
                "NaN or infinite: remove or replace them"
            )


def updates_per_call(
    learner: Learner, state: TrainState, data: Any, interval: int, steps: int
) -> int:
    """How many updates to fuse into one dispatch, a divisor of `interval`.

    Fusing saves dispatches. Where loops are slow the updates are written out, which the compiler
    takes its time for, so that there are few of them (benchmarks/execution.py has the figures), and
    one alone where `steps`, of the whole run, are too few to win that time back. Runs that take
    turns copy their state once a dispatch, so that a large replay memory asks for more.
    """
    if not jit_is_on():
        return 1
    slow = loops_are_slow(learner.update, state, data)
    bytes_of_a_run = sum(leaf.nbytes // len(leaf) for leaf in jax.tree.leaves(state.memory))
    most = max(_UPDATES_PER_CALL, min(bytes_of_a_run // _BYTES_PER_UPDATE, 1000))
    if slow:
        most = _UNROLLED_UPDATES_PER_CALL if steps >= _ENOUGH_TO_UNROLL else 1
    return max(n for n in range(1, most + 1) if interval % n == 0)


def _flops(task: Task, data: Any) -> float | None:
    """XLA's count of floating-point operations in one update of one run, before optimisation.

    XLA counts the body of a loop once. So the compiled program of a whole session would not do, and
    of an update that loops through a world there is no count.
    """
    if not jax.tree.leaves(data):
        return None
    data = run_data(data, task.data_axis, 0)
    state = jax.eval_shape(task.learner.init, jax.random.key(0), data)
    cost = jax.jit(task.learner.update).lower(state, data).cost_analysis()
    return None if cost is None else cost.get("flops")


def _run_of(means: Means, run: int) -> dict[str, Mean]:
    return {
        name: Mean(total=mean.total[run], count=mean.count[run]) for name, mean in means.items()
    }


def _per_run(means: Means, derive: Callable[[Means], dict[str, float]]) -> dict[str, list[float]]:
    """Numbers by name, one for each run; the runs are the first axis of every mean."""
    if not means:
        return {}
    runs = len(next(iter(means.values())).count)
    derived = [derive(_run_of(means, run)) for run in range(runs)]
    # What was not measured in every run (no episode may have ended in one) is left out.
    names = [name for name in derived[0] if all(name in values for values in derived)]
    return {name: [values[name] for values in derived] for name in names}


def _last_good(checkpoints: Checkpoints) -> str:
    latest = checkpoints.latest()
    if latest is None:
        return "no checkpoint was kept"
    return f"the last good checkpoint is step {latest} in {checkpoints.directory}"


def _write_pending(run: Run, step: int, sums: Sums) -> None:
    """Keeps the metrics that no evaluation has reported yet, beside the checkpoint of `step`.

    Written first: a checkpoint without them would report less than was trained.
    """
    text = json.dumps({"step": step, "sums": [each.tolist() for each in sums]}, allow_nan=False)
    write_whole(run.directory / _PENDING, lambda file: file.write_text(text))


def _read_pending(run: Run, step: int) -> Sums | None:
    """What `_write_pending` kept of `step`; None where the checkpoint is another's."""
    try:
        kept = json.loads((run.directory / _PENDING).read_text())
    except FileNotFoundError:
        return None
    if kept["step"] != step:
        return None
    return [np.asarray(each, np.float32) for each in kept["sums"]]


def _save_net(directory: Path, task: Task, state: TrainState) -> None:
    """Keeps the weights that evaluation used, for `experiments.load`."""
    Checkpoints(directory / "net", keep=1).save(step_of(state), task.weights(state))


def _before(run: Run) -> dict[str, list[float | None]]:
    """Held-out metrics of the untrained nets, so that a summary shows what was learnt."""
    return {
        name: _finite(curve.values[:, 0])
        for name, curve in run.read_metrics().items()
        if name.startswith("validation/") and curve.steps[0] == 0
    }


def _area_under_curve(run: Run) -> dict[str, list[float | None]]:
    """Held-out metrics averaged over the training, so that a summary shows how soon it was learnt.

    By the trapezoidal rule over the evaluations, divided by the steps; of each run.
    """
    return {
        name: _finite(np.trapezoid(curve.values, curve.steps) / np.ptp(curve.steps))
        for name, curve in run.read_metrics().items()
        if name.startswith("validation/") and len(curve.steps) > 1
    }


def _finite(values: np.ndarray) -> list[float | None]:
    """Numbers that JSON knows."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _module_and_arguments() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name if spec is not None else Path(sys.argv[0]).stem
    return [module.removesuffix(".__main__"), *sys.argv[1:]]


def _show(directory: Path, summary: Mapping[str, Any]) -> None:
    """Ends with a table of the test metrics and where the pictures are."""
    from rich.console import Console
    from rich.table import Table

    seeds = " ".join(str(run["seed"]) for run in summary["runs"])
    table = Table()
    table.add_column("metric", no_wrap=True)
    table.add_column("mean", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    table.add_column(f"seeds {seeds}")
    for name, metric in summary["metrics"].items():
        interval = metric["interval"]
        table.add_row(
            name,
            _shown(metric["mean"]),
            "" if interval is None else f"{_shown(interval[0])} to {_shown(interval[1])}",
            " ".join(map(_shown, metric["values"])),
        )
    console = Console()
    console.print(table)
    if "speed" in summary:
        speed = summary["speed"]
        console.print(
            f"{speed['train_seconds']:.1f} s of training at {speed['steps_per_second']:.3g} "
            f"steps/s, {speed['compile_seconds']:.1f} s of compilation",
            highlight=False,
        )
    pictures = ", ".join(sorted(path.name for path in directory.glob("*.[pg][ni][gf]")))
    console.print(f"{directory}: summary.json, metrics.csv, {pictures}", highlight=False)


def _shown(value: float | None) -> str:
    """A number of the summary, which has None for what is not finite."""
    return "not finite" if value is None else f"{value:.4f}"
