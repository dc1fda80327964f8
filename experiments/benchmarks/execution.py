"""What each way of executing a learner costs, side by side in one process.

For three networks (MLP, CNN, ResNet-20; batches of 128) the same updates run as

  bare      a hand-written loop over one jitted update with its batch drawn inside
  step      `fit`, one update to a dispatch
  scanned   `fit`, n updates to a dispatch in a loop
  unrolled  `fit`, a few updates to a dispatch, written out
  chunked   `fit`, n stacked batches to a dispatch, brought from the host
  default   `fit` with as many updates to a dispatch as the experiments take on this backend

How it is measured is in `measuring`. `over_bare` is the median over rounds of the ratio to the bare
loop of the same round, minus one. The benchmarks beside PyTorch measure the modes that are of use.

  python -m experiments.benchmarks.execution            all, about 20 minutes on two CPU cores
  python -m experiments.benchmarks.execution --nets mlp
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import nets
from experiments import training
from experiments.benchmarks.measuring import interleaved, kept_programs, spread, write
from nets.net import Net
from paradigms.core import optimizers
from paradigms.core.learner import Learner
from paradigms.core.loop import fit
from paradigms.core.scan import loops_are_slow
from paradigms.core.transforms import chunked, repeated, resident
from paradigms.supervised import classifier

BATCH_SIZE = 128
EXAMPLES = 2048


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    nets: tuple[Literal["mlp", "cnn", "resnet20"], ...] = ("mlp", "cnn", "resnet20")
    """What to measure."""
    scanned: bool = True
    """Whether to measure loops of convolutions too, which take minutes on a CPU."""
    rounds: int = 7
    """Interleaved rounds, after one that is not counted."""
    output: Path = Path("experiments/results/benchmarks/execution.json")
    """Where the figures go."""


@dataclass(frozen=True)
class Case:
    """A network with the number of updates of a round, and of a dispatch where they are fused.

    Written out, a long loop takes minutes to compile, so fewer are.
    """

    net: Net
    shape: tuple[int, ...]
    updates: int
    fused: int
    unrolled: int


CASES = {
    "mlp": Case(nets.mlp((256, 256), 10), (28, 28, 1), updates=1600, fused=50, unrolled=8),
    "cnn": Case(
        nets.cnn(10, features=(32, 64), dense=(128,), norm="batch"),
        (28, 28, 1),
        16,
        fused=4,
        unrolled=4,
    ),
    "resnet20": Case(nets.resnet_cifar(20), (32, 32, 3), 4, fused=2, unrolled=4),
}


def measure(case: Case, rounds: int, scanned: bool) -> dict[str, Any]:
    """Milliseconds per update of every mode, without compilation."""
    random = np.random.default_rng(0)
    data = {
        "image": random.normal(size=(EXAMPLES, *case.shape)).astype(np.float32),
        "label": random.integers(0, 10, EXAMPLES).astype(np.int32),
    }
    on_device = jax.tree.map(jnp.asarray, data)
    learner = classifier(case.net, optimizers.sgd(0.01, 0.9))
    drawn = resident(learner, BATCH_SIZE)
    init = jax.jit(drawn.init)

    def start() -> Any:
        return jax.block_until_ready(init(jax.random.key(0), on_device))

    def run_bare() -> float:
        state = start()
        # Compiled anew as `fit` does: the first run of any executable takes some milliseconds more.
        jitted = jax.jit(lambda state, data: drawn.update(state, data), donate_argnums=0)
        bare = jitted.lower(state, on_device).compile()
        begin = time.perf_counter()
        for _ in range(case.updates):
            state, _ = bare(state, on_device)
        jax.block_until_ready(state)
        return time.perf_counter() - begin

    def run_fit(fused: Learner, n: int, source: Callable[[int, int], Any]) -> Callable[[], float]:
        return lambda: (
            fit(fused, start(), source, steps=case.updates, steps_per_call=n).train_seconds
        )

    def stacked(step: int, n: int) -> dict[str, np.ndarray]:
        rows = np.arange(step * BATCH_SIZE, (step + n) * BATCH_SIZE) % EXAMPLES
        return {
            name: array[rows].reshape(n, BATCH_SIZE, *array.shape[1:])
            for name, array in data.items()
        }

    def whole(step: int, n: int) -> Any:
        return on_device

    n, few = case.fused, case.unrolled
    chosen = training.updates_per_call(drawn, start(), on_device, case.updates, steps=1000)
    modes = {
        "bare": run_bare,
        "step": run_fit(repeated(drawn, 1), 1, whole),
        "scanned": run_fit(repeated(drawn, n, unroll=False), n, whole),
        "unrolled": run_fit(repeated(drawn, few, unroll=True), few, whole),
        "chunked": run_fit(chunked(learner), n, stacked),
        "default": run_fit(repeated(drawn, chosen), chosen, whole),
    }
    if loops_are_slow(drawn.update, start(), on_device) and not scanned:
        del modes["scanned"]
    seconds = interleaved(modes, rounds)
    figures = {
        name: {
            **spread(values, case.updates),
            "over_bare": float(np.median(values / seconds["bare"])) - 1,
        }
        for name, values in seconds.items()
    }
    return {
        "updates_per_dispatch": {"fused": n, "unrolled": few, "default": chosen},
        "modes": figures,
    }


def main(config: Config, argv: Sequence[str]) -> None:
    """Measures, writes the figures and prints them."""
    results: dict[str, Any] = {"batch_size": BATCH_SIZE, "rounds": config.rounds, "nets": {}}
    for name in config.nets:
        with kept_programs():
            results["nets"][name] = measure(CASES[name], config.rounds, config.scanned)
        for mode, figures in results["nets"][name]["modes"].items():
            low, high = figures["quartiles"]
            print(
                f"{name:9} {mode:9} {figures['milliseconds_per_update']:9.3f} ms  "
                f"[{low:.3f}, {high:.3f}]  {figures['over_bare']:+.1%} over bare",
                flush=True,
            )
        best = min(m["milliseconds_per_update"] for m in results["nets"][name]["modes"].values())
        default = results["nets"][name]["modes"]["default"]["milliseconds_per_update"]
        results["nets"][name]["default_over_best"] = default / best - 1
        print(f"{name:9} default is {default / best - 1:+.1%} over the best mode", flush=True)
    write(config.output, results, "benchmarks.execution", argv)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__), sys.argv[1:])
