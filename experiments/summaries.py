"""What comes of a run: its numbers, `summary.json`, and the table at its end."""

import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import cli, hardware
from paradigms.core.intervals import summarise
from paradigms.core.loop import Fitted
from paradigms.core.metrics import Mean, Means
from paradigms.core.provenance import state_sha256_per_run
from paradigms.core.record import Run
from paradigms.core.state import TrainState


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


def speed(
    fitted: Fitted,
    *,
    examples: int,
    flops: float | None,
    devices: Sequence[jax.Device],
    energy: Mapping[str, Any],
) -> dict[str, Any]:
    """What the training cost, as JSON; of this session alone where a run was resumed.

    Args:
      fitted: its steps and seconds, which include evaluations.
      examples: that all runs together learn from in one update.
      flops: floating-point operations of all runs together in one update, where they are known.
      devices: on which it ran.
      energy: by `hardware.EnergyMeter`, from before the compilation to the last update.

    Returns:
      Besides the obvious, `host_wait_share`, the part of `train_seconds` in which no update was
      queued or running (see `HostWait`), and `utilisation`, the share of the devices' peak, both
      with evaluations in their time.
    """
    steps_per_second = fitted.steps / max(fitted.train_seconds, 1e-9)
    achieved = None if flops is None else flops * steps_per_second
    return {
        "steps_this_session": fitted.steps,
        "steps_per_second": steps_per_second,
        "examples_per_second": examples * steps_per_second,
        "train_seconds": fitted.train_seconds,
        "compile_seconds": fitted.compile_seconds,
        "host_wait_share": fitted.host_seconds / max(fitted.train_seconds, 1e-9),
        "utilisation": hardware.utilisation(achieved, devices),
        "peak_memory": hardware.peak_memory(hardware.local(devices)),
        "energy": dict(energy),
    }


def run_of(means: Means, run: int) -> dict[str, Mean]:
    """The means of one run, of which those of all have the runs on their first axis."""
    return {
        name: Mean(total=mean.total[run], count=mean.count[run]) for name, mean in means.items()
    }


def per_run(means: Means, derive: Callable[[Means], dict[str, float]]) -> dict[str, list[float]]:
    """Numbers by name, one for each run; the runs are the first axis of every mean."""
    if not means:
        return {}
    runs = len(next(iter(means.values())).count)
    derived = [derive(run_of(means, run)) for run in range(runs)]
    # What was not measured in every run (no episode may have ended in one) is left out.
    names = [name for name in derived[0] if all(name in values for values in derived)]
    return {name: [values[name] for values in derived] for name in names}


def before_training(run: Run) -> dict[str, list[float | None]]:
    """Held-out metrics of the untrained nets, so that a summary shows what was learnt."""
    return {
        name: _finite(curve.values[:, 0])
        for name, curve in run.read_metrics().items()
        if name.startswith("validation/") and curve.steps[0] == 0
    }


def area_under_curve(run: Run) -> dict[str, list[float | None]]:
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
            f"steps/s, {speed['host_wait_share']:.0%} of it without an update to do, "
            f"{speed['compile_seconds']:.1f} s of compilation",
            highlight=False,
        )
    pictures = ", ".join(sorted(path.name for path in directory.glob("*.[pg][ni][gf]")))
    console.print(f"{directory}: summary.json, metrics.csv, {pictures}", highlight=False)


def _shown(value: float | None) -> str:
    """A number of the summary, which has None for what is not finite."""
    return "not finite" if value is None else f"{value:.4f}"
