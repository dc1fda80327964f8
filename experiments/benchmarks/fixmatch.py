"""What an update of FixMatch costs beside the passes that it must make, in one process.

  passes              one forward and backward pass over labelled, weak and strong views, which are
                      the images as they are, with the cross entropy of all, and the optimiser
  fixmatch            the update on the same images as views
  fixmatch_with_views the update with its flips, shifts, RandAugment and cutout

Rounds are interleaved, so that a drift of the machine's speed meets all alike; each figure is the
median over rounds of milliseconds per update, with the quartiles, and `of_passes` the median over
rounds of the time over that of `passes` in the same round. An update is one dispatch in all modes.

  python -m experiments.benchmarks.fixmatch                 some minutes on two CPU cores
  python -m experiments.benchmarks.fixmatch --size full     WRN-28-2, an accelerator
"""

import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import few_labels
from paradigms.core.classification import cross_entropy
from paradigms.core.learner import Learner, minimise
from paradigms.core.metrics import Mean
from paradigms.core.record import environment
from paradigms.data import augment
from paradigms.semi_supervised import fixmatch

BATCH_SIZE, RATIO = 64, 7


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    size: Literal["full", "small"] = "small"
    updates: int = 5
    """In one round of each mode."""
    rounds: int = 7
    """Interleaved rounds, after one that is not counted."""
    output: Path = Path("experiments/results/benchmarks/fixmatch.json")
    """Where the figures go."""


def passes(options: few_labels.Cifar) -> Learner:
    """A classifier of as many images as an update of FixMatch has views."""
    net = few_labels.cifar_net(options)

    def loss(params: Any, state: Any, batch: Any) -> tuple[jax.Array, Any]:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        image = jnp.concatenate([part["image"] for part in (labelled, unlabelled, unlabelled)])
        label = jnp.concatenate([part["label"] for part in (labelled, unlabelled, unlabelled)])
        logits, model_state = net.apply(
            params, state.model_state, image, key=state.rng("net"), train=True
        )
        mean = Mean.of(cross_entropy(logits, label))
        return mean.value(), ({"loss": mean}, model_state)

    return minimise(
        loss,
        few_labels.cifar_optimizer(options),
        init=lambda key, batch: net.init(key, batch["labelled"]["image"]),
        evaluate=lambda state, batch, key: {},
    )


def main(config: Config) -> None:
    """Measures all modes on the same images."""
    options = few_labels.Cifar(size=config.size)
    net, optimizer = few_labels.cifar_net(options), few_labels.cifar_optimizer(options)
    same = augment.identity
    learners = {
        "passes": passes(options),
        "fixmatch": fixmatch(net, optimizer, same, same),
        "fixmatch_with_views": fixmatch(net, optimizer, few_labels.weak(), few_labels.strong()),
    }
    generator = np.random.default_rng(0)

    def part(size: int) -> dict[str, jax.Array]:
        image = generator.integers(0, 256, (size, 32, 32, 3), np.uint8)
        return {
            "image": jnp.asarray(image),
            "label": jnp.asarray(generator.integers(0, 10, size, np.int32)),
        }

    batch = {"labelled": part(BATCH_SIZE), "unlabelled": part(RATIO * BATCH_SIZE)}
    start = {name: jax.jit(one.init)(jax.random.key(0), batch) for name, one in learners.items()}
    update = {name: jax.jit(one.update) for name, one in learners.items()}
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    for round_number in range(config.rounds + 1):
        for name, step in update.items():
            state = start[name]
            begin = time.perf_counter()
            for _ in range(config.updates):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
            if round_number:
                seconds[name].append(time.perf_counter() - begin)

    results: dict[str, Any] = {
        "size": config.size,
        "batch_size": BATCH_SIZE,
        "ratio": RATIO,
        "rounds": config.rounds,
        "modes": {},
    }
    bare = np.asarray(seconds["passes"])
    for name, values in seconds.items():
        each = np.asarray(values) / config.updates * 1e3
        low, middle, high = np.quantile(each, (0.25, 0.5, 0.75))
        ratio = float(np.median(np.asarray(values) / bare))
        results["modes"][name] = {
            "milliseconds_per_update": float(middle),
            "quartiles": [float(low), float(high)],
            "of_passes": ratio,
        }
        print(f"{name:20} {middle:9.2f} ms  [{low:.2f}, {high:.2f}]  {ratio:.2f} of the passes")
    results["command"] = shlex.join(
        ["python", "-m", "experiments.benchmarks.fixmatch", *sys.argv[1:]]
    )
    results["environment"] = environment()
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
