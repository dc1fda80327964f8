"""A learner beside the same in PyTorch, in one process; what these benchmarks share.

Rounds of all modes are interleaved, so that a drift of the machine's speed meets all alike. Each
figure is the median over rounds, with the quartiles, of milliseconds per update without
compilation; `speedup` is the median over rounds of the ratio of a PyTorch mode to ours in the same
round. Both use as many threads. PyTorch is optional and not among the dependencies.
"""

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import training
from paradigms.core.errors import InputError
from paradigms.core.learner import Learner
from paradigms.core.loop import fit
from paradigms.core.record import environment
from paradigms.core.transforms import repeated

Round = Callable[[], float]
"""One round: the seconds that its updates took."""


@dataclass(frozen=True)
class Options:
    """Options of a benchmark beside PyTorch."""

    updates: int = 1000
    """In one round of each mode."""
    rounds: int = 7
    """Interleaved rounds, after one that is not counted."""


def our_round(learner: Learner, data: Mapping[str, np.ndarray], updates: int) -> Round:
    """`fit` on resident data, with as many updates to a dispatch as experiments take.

    Args:
      learner: takes the whole data set.
      data: on the device.
      updates: of a round.
    """
    resident = jax.tree.map(jnp.asarray, dict(data))
    start = jax.jit(learner.init)
    state = start(jax.random.key(0), resident)
    n = training.updates_per_call(learner, state, resident, updates, steps=updates)
    fused = repeated(learner, n)

    def run() -> float:
        state = jax.block_until_ready(start(jax.random.key(0), resident))
        return fit(fused, state, lambda *_: resident, steps=updates, steps_per_call=n).train_seconds

    return run


def compare(
    learner: Learner,
    data: Mapping[str, np.ndarray],
    torch_round: Callable[..., Round],
    config: Options,
    output: Path,
    **details: Any,
) -> None:
    """Measures, writes the figures and prints them.

    Args:
      learner: ours; takes the whole data set.
      data: one array, by name.
      torch_round: makes a round of PyTorch's, `(array, updates, compiled=...)`.
      config: how much to measure.
      output: where the figures go.
      **details: what else to write, as JSON values.

    Raises:
      InputError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError("PyTorch is not installed: run `pip install torch`") from error
    torch.set_num_threads(os.cpu_count() or 1)
    cache = tempfile.TemporaryDirectory()  # `fit` compiles at every call; with a cache, once
    jax.config.update("jax_compilation_cache_dir", cache.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    (array,) = data.values()
    rounds = {
        "paradigms": our_round(learner, data, config.updates),
        "torch_eager": torch_round(array, config.updates, compiled=False),
        "torch_compiled": torch_round(array, config.updates, compiled=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in rounds}
    for round_number in range(config.rounds + 1):
        for name, run in rounds.items():
            elapsed = run()
            if round_number:
                seconds[name].append(elapsed)
    ours = np.asarray(seconds["paradigms"])
    results: dict[str, Any] = {**details, "rounds": config.rounds, "modes": {}}
    for name, values in seconds.items():
        low, middle, high = np.quantile(
            np.asarray(values) / config.updates * 1e3, (0.25, 0.5, 0.75)
        )
        speedup = float(np.median(np.asarray(values) / ours))
        results["modes"][name] = {
            "milliseconds_per_update": float(middle),
            "quartiles": [float(low), float(high)],
            "speedup": speedup,
        }
        print(f"{name:15} {middle:7.3f} ms  [{low:.3f}, {high:.3f}]  ours is {speedup:.2f}x")
    results["torch"] = torch.__version__
    module = Path(sys.argv[0]).stem
    results["command"] = shlex.join(
        ["python", "-m", f"experiments.benchmarks.{module}", *sys.argv[1:]]
    )
    results["environment"] = environment()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n")
