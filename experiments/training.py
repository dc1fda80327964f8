"""What every experiment does around its learner: devices, seeds, run directory, checkpoints."""

import contextlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli, hardware, processes, rollback, summaries, trackers
from experiments.summaries import per_run, run_of
from experiments.tasks import Task, check_finite
from nets.remat import rematerialising
from paradigms.core.checkpoint import Checkpoints
from paradigms.core.errors import InputError, NonFiniteError, Stopped
from paradigms.core.learner import Learner, Metrics
from paradigms.core.loop import Every, Fitted, Sums, fit, jit_is_on, step_of
from paradigms.core.mesh import make_mesh, parse_mesh, replicate, shard_state
from paradigms.core.pictures import draw_curves
from paradigms.core.profiling import Profile
from paradigms.core.progress import Progress
from paradigms.core.provenance import environment
from paradigms.core.record import Run, write_whole
from paradigms.core.scan import loops_are_slow
from paradigms.core.signals import StopRequest
from paradigms.core.state import TrainState
from paradigms.core.transforms import accumulated, guarded, repeated, run_data, seeded
from paradigms.core.watchdog import Watchdog

_PENDING = "pending.json"

# Seconds for all programs to be compiled, which one of a large net on many devices may take.
_FIRST_UPDATE = 1800.0

# Long enough for the cost of a dispatch to vanish, short enough for a lively progress bar.
_UPDATES_PER_CALL = 100
# To copy so much takes a tenth of the time of a small update, 4 steps and a gradient of MinAtar.
_BYTES_PER_UPDATE = 2**17
_UNROLLED_UPDATES_PER_CALL = 4
_ENOUGH_TO_UNROLL = 200


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

    Raises:
      Stopped: the process was asked to stop.
    """
    trackers.check(config)
    started = environment()  # before hours pass in which the source may change
    with processes.stop_request() as stop, open_run(main, config, part) as run:
        if run.finished:
            return run.summary()
        mesh = make_mesh(config.mesh) if parse_mesh(config.mesh) or processes.several() else None
        started["device_count"] = 1 if mesh is None else mesh.size
        with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
            kept = directory_of(main, config) / part
            summary = _train(run, kept, config, task, mesh, started, stop)
        # Asked when there was no update left to stop before: no other part may begin.
        if stop.received is not None:
            raise Stopped(
                f"{stop.received} as {run.directory} was finished: if anything comes after it, "
                "the same command goes on with that"
            )
        return summary


def directory_of(main: Callable[..., Any], config: cli.Options) -> Path:
    """`--run-dir`, or runs/NAME with the options that are not the usual ones behind it."""
    return config.run_dir or Path("runs") / (cli.name_of(main) + cli.variation(config))


def open_run(main: Callable[..., Any], config: cli.Options, part: str = "") -> Run:
    """Opens the run directory, says so if it is finished already."""
    directory = directory_of(main, config) / part
    settings = {"experiment": cli.name_of(main), **cli.to_json(config)}
    run = processes.open_run(directory, settings, ignored=cli.FREE)
    if run.finished:
        print(f"{directory} is finished: summary.json has the result, --run-dir starts another")
    return run


def _train(
    run: Run,
    kept: Path,
    config: cli.Options,
    task: Task,
    mesh: Any,
    started: dict[str, Any],
    stop: StopRequest,
) -> dict[str, Any]:
    check_finite(task.data)
    if config.on_nonfinite == "skip":
        task = task._replace(learner=guarded(task.learner))
    undivided = task
    task = task._replace(learner=accumulated(task.learner, config.accumulate))
    fresh = seeded(task.learner, data_axis=task.data_axis)
    data = jax.tree.map(jnp.asarray, task.data)
    keys = jax.vmap(jax.random.key)(jnp.asarray(config.seeds, jnp.uint32))
    init = jax.jit(fresh.init)
    if mesh is not None:
        data = replicate(data, mesh)

    def start() -> TrainState:
        state = task.start(init(keys, data))
        if mesh is not None:
            return shard_state(state, mesh)
        # Bound to its device, as `fit` returns it: else what evaluates it is compiled twice.
        return jax.device_put(state, jax.local_devices()[0])

    state = start()
    _check_memory_options(config, task, data)
    if config.spike and task.source is None:
        rollback.check_reported(jax.eval_shape(fresh.update, state, data)[1])
    checkpoints = Checkpoints(
        kept / "checkpoints",
        config.keep,
        every=config.keep_every,
        best=config.keep_best,
        background=True,
    )
    processes.check_same(checkpoints)
    rollbacks = rollback.Rollbacks(run, config, checkpoints, start, state.key)
    if checkpoints.steps():
        state = checkpoints.restore(state)
        rollbacks.resumes(state)
    step = step_of(state)
    if step:
        print(f"resuming {run.directory} at step {step}", file=sys.stderr)
    run.rewind(step or -1)
    devices = jax.devices()[:1] if mesh is None else list(mesh.devices.flat)

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
        _profile(config, run, step) as profile,
        Watchdog(config.watchdog, run.directory / "stuck.txt", first=_FIRST_UPDATE) as watchdog,
        rematerialising() if config.remat else contextlib.nullcontext(),
        checkpoints,
    ):

        def advance(step: int) -> None:
            progress.advance(step)
            watchdog.alive()

        def score(values: dict[str, list[float]]) -> float | None:
            """By which the best checkpoint is kept: the mean over the runs."""
            found = values.get(f"validation/{task.headline}")
            return None if found is None else float(np.mean(found))

        def evaluate(step: int, metrics: Metrics, state: TrainState) -> None:
            values = {f"train/{k}": v for k, v in per_run(metrics, task.derive).items()}
            if 1.0 in values.get("train/skipped", ()):
                raise NonFiniteError(
                    f"every update up to step {step} since the last evaluation was left out, for "
                    f"it gave NaN or infinity: {_last_good(checkpoints)}; lower the learning rate"
                )
            if config.spike and metrics:
                rollback.check_loss(config, run, step, values, _last_good(checkpoints))
            if evaluate_validation is not None:
                held_out = per_run(evaluate_validation(state, evaluation_key), task.derive)
                values |= {f"validation/{k}": v for k, v in held_out.items()}
            run.log(step, values)
            track(step, values)
            shown = [f"validation/{task.headline}", f"train/{task.headline}", "train/loss"]
            progress.report(step, {k: float(np.mean(values[k])) for k in shown if k in values})
            checkpoints.save(step, state, score(values))

        if step == 0:
            evaluate(0, {}, state)
        energy = hardware.EnergyMeter(hardware.local(devices))
        pending = _read_pending(run, step)
        while True:
            try:
                fitted = fit(
                    learner,
                    state,
                    task.source or (lambda step, n: data),
                    steps=config.steps,
                    steps_per_call=n,
                    callbacks=[Every(config.evaluate_every, evaluate)],
                    on_progress=advance,
                    last_good=lambda: _last_good(checkpoints),
                    stop=lambda: bool(stop),
                    pending=pending,
                    profile=profile,
                )
                break
            except NonFiniteError as error:
                if config.on_nonfinite != "rollback":
                    raise
                state, pending = rollbacks.back(error), None
                step = step_of(state)
        joules = energy.read()
        if fitted.pending is not None:
            _keep_to_go_on(run, config, checkpoints, fitted)
            raise Stopped(
                f"{stop.received} at step {step_of(fitted.state)} of {config.steps}: it is saved "
                f"in {run.directory}, and the same command goes on from there"
            )
    flops = _flops(undivided, data)
    speed = summaries.speed(
        fitted,
        examples=task.examples_per_update * len(config.seeds),
        flops=None if flops is None else flops * len(config.seeds),
        devices=devices,
        energy=joules,
    )
    return _finish(
        run,
        kept,
        config,
        task,
        started,
        fitted.state,
        evaluate_test(fitted.state, evaluation_key),
        rollbacks=rollbacks.log(),
        speed={**speed, "updates_per_call": n, "flops_per_update": flops},
        **({} if task.source is None else {"worlds_begun_anew_at": step or None}),
    )


def _finish(
    run: Run,
    kept: Path,
    config: cli.Options,
    task: Task,
    started: dict[str, Any],
    state: TrainState,
    test: Metrics,
    **details: Any,
) -> dict[str, Any]:
    """Keeps the nets, draws, and writes the summary, of the final state and its test metrics."""
    _save_net(kept, task, state)
    state = processes.gathered(state)
    if task.pictures is not None:
        first = jax.tree.map(lambda leaf: leaf[0], state)
        task.pictures(run.directory, run_of(test, 0), first)
    draw_curves(run.read_metrics(), run.directory / "curves.png")
    final = {f"test/{name}": values for name, values in per_run(test, task.derive).items()}
    params = task.weights(state)["params"]
    return summaries.finish(
        run,
        config,
        final,
        started,
        state=state,
        before=summaries.before_training(run),
        area_under_curve=summaries.area_under_curve(run),
        input={"shape": list(task.example.shape), "dtype": str(task.example.dtype)},
        examples=config.steps * task.examples_per_update,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)) // len(config.seeds),
        **details,
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


def _check_memory_options(config: cli.Options, task: Task, data: Any) -> None:
    """Raises InputError where `--accumulate` is not possible, or `--remat` would change nothing."""
    if config.accumulate == 1 and not config.remat:
        return
    if config.accumulate > 1 and task.source is not None:
        raise InputError("--accumulate: the batches of this experiment come from a world")
    with rematerialising() as blocks:
        if task.source is None:
            one = run_data(data, task.data_axis, 0)
            state = jax.eval_shape(task.learner.init, jax.random.key(0), one)
            # A function of its own, lest `_flops` should find it traced.
            jax.eval_shape(lambda *args: task.learner.update(*args), state, one)
    if config.remat and not blocks:
        raise InputError("--remat: the nets of this experiment have no blocks to compute again")


def _flops(task: Task, data: Any) -> float | None:
    """XLA's count of floating-point operations in one update of one run, before optimisation.

    XLA counts the body of a loop once. So neither the compiled program of a whole session would do
    nor an update in parts, and of one that loops through a world there is no count.
    """
    if not jax.tree.leaves(data):
        return None
    data = run_data(data, task.data_axis, 0)
    state = jax.eval_shape(task.learner.init, jax.random.key(0), data)
    cost = jax.jit(task.learner.update).lower(state, data).cost_analysis()
    return None if cost is None else cost.get("flops")


def _profile(
    config: cli.Options, run: Run, step: int
) -> contextlib.AbstractContextManager[Profile | None]:
    """What `--profile` asks for, if these updates are still to be done."""
    updates = cli.profiled_updates(config)
    if updates is None:
        return contextlib.nullcontext()
    if step >= updates[1]:
        print(f"--profile {config.profile}: these updates were done before", file=sys.stderr)
    return Profile(*updates, run.directory / "profile")


def _last_good(checkpoints: Checkpoints) -> str:
    latest = checkpoints.latest()
    if latest is None:
        return "no checkpoint was kept"
    return f"the last good checkpoint is step {latest} in {checkpoints.directory}"


def _keep_to_go_on(run: Run, config: cli.Options, checkpoints: Checkpoints, fitted: Fitted) -> None:
    """Saves what a run that was stopped early goes on from."""
    step = step_of(fitted.state)
    _write_pending(run, step, fitted.pending or [])
    if step % config.evaluate_every:  # or the evaluation has saved it
        if config.on_nonfinite == "rollback":  # which takes the checkpoint of that evaluation
            checkpoints.keep = len(checkpoints.steps()) + 1
        checkpoints.save(step, fitted.state)


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
