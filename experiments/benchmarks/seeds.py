"""What many seeds of one experiment cost: together, one after another, and in a process each.

The experiment is `supervised/digits_mlp`. As a user would see it, imports, compilation and pictures
included: one process with all the seeds, beside a process for each (`measured` of them, scaled to
all). And training alone, compiled: all seeds in one program, beside the program of one seed called
for each in turn, in rounds that take turns; `of_apart` is the median over rounds of their ratio.

  python -m experiments.benchmarks.seeds            ten minutes on two CPU cores
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.measuring import write
from experiments.supervised import digits_mlp
from paradigms import data
from paradigms.core import optimizers, schedules
from paradigms.core.learner import Learner
from paradigms.core.transforms import repeated, resident, seeded
from paradigms.data import augment
from paradigms.supervised import classifier


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    seeds: int = 32
    measured: int = 8
    """Processes of one seed that are run."""
    updates: int = 200
    """Of every seed, in one round of training alone."""
    rounds: int = 7
    """Interleaved rounds of training alone, after one that is not counted."""
    output: Path = Path("experiments/results/benchmarks/seeds.json")
    """Where the figures go."""


def seconds_of(seeds: Sequence[int]) -> float:
    """Wall time of the experiment with these seeds, as a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "experiments.supervised.digits_mlp"]
        command += ["--run-dir", scratch, "--seeds", *map(str, seeds)]
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - begin


def as_processes(config: Config) -> dict[str, float]:
    """Seconds of all seeds in one process and of a process for each, and their ratio."""
    together = seconds_of(range(config.seeds))
    apart = sum(seconds_of([seed]) for seed in range(config.measured))
    apart *= config.seeds / config.measured
    return {"together": together, "apart": apart, "saving": apart / together}


def trained() -> Learner:
    """The learner of the experiment."""
    usual = digits_mlp.Config()
    schedule = schedules.warmup_cosine(
        usual.learning_rate, usual.steps, warmup_steps=usual.steps // 20
    )
    learner = classifier(
        digits_mlp.network(usual),
        optimizers.adamw(schedule, weight_decay=usual.weight_decay),
        augment=augment.translate(usual.max_shift),
        label_smoothing=0.1,
    )
    return resident(learner, usual.batch_size)


def training_alone(config: Config) -> dict[str, float]:
    """Seconds of all seeds in one program and in turn, and the median ratio of a round."""
    digits = jax.tree.map(jnp.asarray, data.digits("train"))
    run = repeated(trained(), config.updates)
    runs = seeded(run, metrics_axis=1)
    keys = jax.random.split(jax.random.key(0), config.seeds)
    starts = jax.jit(runs.init)(keys, digits)
    one = jax.tree.map(lambda leaf: leaf[0], starts)
    together = jax.jit(runs.update).lower(starts, digits).compile()
    apart = jax.jit(run.update).lower(one, digits).compile()
    states = [jax.tree.map(lambda leaf, i=i: leaf[i], starts) for i in range(config.seeds)]
    seconds = []
    for _ in range(config.rounds + 1):
        begin = time.perf_counter()
        jax.block_until_ready(together(starts, digits))
        middle = time.perf_counter()
        for state in states:
            jax.block_until_ready(apart(state, digits))
        seconds.append((middle - begin, time.perf_counter() - middle))
    times = np.asarray(seconds[1:])
    return {
        "together": float(np.median(times[:, 0])),
        "apart": float(np.median(times[:, 1])),
        "of_apart": float(np.median(times[:, 0] / times[:, 1])),
    }


def main(config: Config, argv: Sequence[str]) -> None:
    """Measures, writes the figures and prints them."""
    results: dict[str, Any] = {"seeds": config.seeds, "measured": config.measured}
    results["training"] = training_alone(config)
    print("training", json.dumps(results["training"], indent=2), flush=True)
    results["processes"] = as_processes(config)
    print("processes", json.dumps(results["processes"], indent=2), flush=True)
    write(config.output, results, "benchmarks.seeds", argv)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__), sys.argv[1:])
