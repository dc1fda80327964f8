"""What every experiment does around its learner: devices, seeds, run directory, resuming, report."""

import contextlib
import math
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli
from nets.net import Net
from paradigms.core import metrics as metrics_lib
from paradigms.core.checkpoint import Checkpoints
from paradigms.core.learner import Learner, Metrics
from paradigms.core.loop import Every, evaluator, fit
from paradigms.core.mesh import make_mesh, parse_mesh, replicate, shard_state
from paradigms.core.metrics import Mean, Means
from paradigms.core.progress import Progress
from paradigms.core.record import Run, draw_curves, environment, state_sha256_per_run, summarise
from paradigms.core.state import PyTree, TrainState
from paradigms.core.transforms import loops_are_slow, repeated, resident, seeded

Arrays = Mapping[str, np.ndarray]

# Long enough for the cost of a dispatch to vanish, short enough for a lively progress bar.
_UPDATES_PER_CALL = 100


def _live_weights(state: TrainState) -> dict[str, PyTree]:
    return {"params": state.params, "model_state": state.model_state}


class Task(NamedTuple):
    """What an experiment trains and how it is judged.

    Attributes:
      net: what `experiments.load` gives back; takes raw inputs.
      learner: one run.
      train: arrays `[N, ...]` to draw minibatches from.
      batch_size: of the global minibatch.
      validation: held-out arrays, looked at during training; None to go without.
      test: held-out arrays, read once, after the last update.
      derive: from summed means to the numbers to report.
      headline: the metric to show while training, and the one that `smoke` must improve.
      input_name: the entry of a batch that goes into the net.
      weights: which weights evaluation uses, as `{"params": ..., "model_state": ...}`.
      pictures: draws into a directory from the test metrics of the first run.
    """

    net: Net
    learner: Learner
    train: Arrays
    batch_size: int
    validation: Arrays | None
    test: Arrays
    derive: Callable[[Means], dict[str, float]] = metrics_lib.derive
    headline: str = "accuracy"
    input_name: str = "image"
    weights: Callable[[TrainState], dict[str, PyTree]] = _live_weights
    pictures: Callable[[Path, Means], None] | None = None


def train(main: Callable[..., Any], config: cli.Options, task: Task) -> dict[str, Any]:
    """Trains one run per seed and writes the run directory; resumes where it stopped.

    Returns:
      The summary, as in `summary.json`.
    """
    name = cli.name_of(main)
    directory = cli.default_run_dir(name, config)
    settings = {"experiment": name, **cli.to_json(config)}
    with Run.open(directory, settings, ignored=cli.FREE) as run:
        if run.finished:
            print(f"{directory} is finished: summary.json has the result, --run-dir starts another")
            return run.summary()
        mesh = make_mesh(config.mesh) if parse_mesh(config.mesh) else None
        with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
            return _train(run, config, task, mesh)


def _train(run: Run, config: cli.Options, task: Task, mesh: Any) -> dict[str, Any]:
    learner = seeded(resident(task.learner, task.batch_size))
    data = jax.tree.map(jnp.asarray, dict(task.train))
    keys = jax.vmap(jax.random.key)(jnp.asarray(config.seeds, jnp.uint32))
    state = jax.jit(learner.init)(keys, data)
    if mesh is not None:
        data, state = replicate(data, mesh), shard_state(state, mesh)

    checkpoints = Checkpoints(run.directory / "checkpoints")
    step = checkpoints.latest() or 0
    if step:
        state = checkpoints.restore(state, step)
        print(f"resuming {run.directory} at step {step}", file=sys.stderr)
    run.rewind(step or -1)

    n = _updates_per_call(config, learner, state, data)
    evaluate_test = evaluator(learner, task.test, batch_size=500)
    evaluate_validation = (
        evaluator(learner, task.validation, batch_size=500)
        if task.validation is not None
        else None
    )
    evaluation_key = jax.random.key(0)

    with Progress(config.steps, step) as progress:

        def evaluate(step: int, metrics: Metrics, state: TrainState) -> None:
            values = {f"train/{k}": v for k, v in _per_run(metrics, metrics_lib.derive).items()}
            if evaluate_validation is not None:
                held_out = _per_run(evaluate_validation(state, evaluation_key), task.derive)
                values |= {f"validation/{k}": v for k, v in held_out.items()}
            run.log(step, values)
            shown = [f"validation/{task.headline}", f"train/{task.headline}", "train/loss"]
            progress.report(step, {k: float(np.mean(values[k])) for k in shown if k in values})
            checkpoints.save(step, state)

        if step == 0:
            evaluate(0, {}, state)
        fitted = fit(
            repeated(learner, n),
            state,
            lambda step, n: data,
            steps=config.steps,
            steps_per_call=n,
            callbacks=[
                Every(n, lambda step, metrics, state: progress.advance(step)),
                Every(config.evaluate_every, evaluate),
            ],
            last_good=lambda: _last_good(checkpoints),
        )
    test = evaluate_test(fitted.state, evaluation_key)
    _save_net(run.directory, task, fitted.state)
    if task.pictures is not None:
        task.pictures(run.directory, _run_of(test, 0))
    draw_curves(run.read_metrics(), run.directory / "curves.png")
    final = _per_run(test, task.derive)
    summary = {
        "metrics": summarise({f"test/{name}": values for name, values in final.items()}),
        "before": {} if step else _before(run),
        "runs": [
            {
                "seed": seed,
                "hparams": {},
                "metrics": {f"test/{name}": values[i] for name, values in final.items()},
                "state_sha256": digest,
            }
            for i, (seed, digest) in enumerate(
                zip(config.seeds, state_sha256_per_run(fitted.state, len(config.seeds)), strict=True)
            )
        ],
        "input": {
            "shape": list(task.train[task.input_name].shape[1:]),
            "dtype": str(task.train[task.input_name].dtype),
        },
        "steps": config.steps,
        "examples": config.steps * task.batch_size,
        "parameters": sum(
            leaf.size for leaf in jax.tree.leaves(task.weights(fitted.state)["params"])
        )
        // len(config.seeds),
        "speed": {
            "steps_this_session": fitted.steps,
            "steps_per_second": fitted.steps / max(fitted.train_seconds, 1e-9),
            "train_seconds": fitted.train_seconds,
            "compile_seconds": fitted.compile_seconds,
            "updates_per_call": n,
            "flops_per_step_and_device": fitted.flops_per_step,
        },
        "command": shlex.join(["python", "-m", *_module_and_arguments()]),
        "environment": environment(),
    }
    run.finish(summary)
    _show(run.directory, summary)
    return summary


def _updates_per_call(config: cli.Options, learner: Learner, state: TrainState, data: Any) -> int:
    """How many updates to fuse into one dispatch.

    Loops of convolutions are slow on the CPU backend, and there a dispatch costs little beside
    them; everywhere else fusing saves the dispatch (benchmarks/execution.py has the figures).
    """
    if config.debug or loops_are_slow(learner.update, state, data):
        return 1
    intervals = math.gcd(config.steps, config.evaluate_every)
    return max(n for n in range(1, _UPDATES_PER_CALL + 1) if intervals % n == 0)


def _run_of(means: Means, run: int) -> dict[str, Mean]:
    return {
        name: Mean(total=mean.total[run], count=mean.count[run]) for name, mean in means.items()
    }


def _per_run(
    means: Means, derive: Callable[[Means], dict[str, float]]
) -> dict[str, list[float]]:
    """Numbers by name, one for each run; the runs are the first axis of every mean."""
    if not means:
        return {}
    runs = len(next(iter(means.values())).count)
    derived = [derive(_run_of(means, run)) for run in range(runs)]
    return {name: [values[name] for values in derived] for name in derived[0]}


def _last_good(checkpoints: Checkpoints) -> str:
    latest = checkpoints.latest()
    if latest is None:
        return "no checkpoint was kept"
    return f"the last good checkpoint is step {latest} in {checkpoints.directory}"


def _save_net(directory: Path, task: Task, state: TrainState) -> None:
    """Keeps the weights that evaluation used, for `experiments.load`."""
    Checkpoints(directory / "net", keep=1).save(int(state.step[0]), task.weights(state))


def _before(run: Run) -> dict[str, list[float]]:
    """Held-out metrics of the untrained nets, so that a summary shows what was learnt."""
    return {
        name: [float(value) for value in curve.values[:, 0]]
        for name, curve in run.read_metrics().items()
        if name.startswith("validation/") and curve.steps[0] == 0
    }


def _module_and_arguments() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name if spec is not None else Path(sys.argv[0]).stem
    return [module.removesuffix(".__main__"), *sys.argv[1:]]


def _show(directory: Path, summary: Mapping[str, Any]) -> None:
    """Ends with a table of the test metrics and where the pictures are."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "mean", "95 % interval", *[f"seed {r['seed']}" for r in summary["runs"]])
    for name, metric in summary["metrics"].items():
        interval = metric["interval"]
        table.add_row(
            name,
            f"{metric['mean']:.4f}",
            "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}",
            *[f"{value:.4f}" for value in metric["values"]],
        )
    console = Console()
    console.print(table)
    pictures = ", ".join(sorted(path.name for path in directory.glob("*.png")))
    speed = summary["speed"]
    console.print(
        f"{speed['train_seconds']:.1f} s of training at {speed['steps_per_second']:.3g} steps/s, "
        f"{speed['compile_seconds']:.1f} s of compilation; {directory} has summary.json, "
        f"metrics.csv, checkpoints, {pictures}",
        highlight=False,
    )
