"""The update of a variational autoencoder on MNIST beside the same in PyTorch.

784-400-20, relu, batches of 128 bits, Adam, the loss of Kingma & Welling with the KL in closed
form: the network of PyTorch's own example. Same arrays, dtype and arithmetic of the optimiser, as
many threads; the minibatch is drawn inside of the timed loop by both. The modes are

  paradigms        `fit` on resident data with as many updates to a dispatch as experiments take
  torch_eager      PyTorch as it is written
  torch_compiled   the same with the loss, and so its gradient, through `torch.compile`

Adam is PyTorch's fused one in both.

Rounds of all modes are interleaved. Each figure is the median over rounds, with the quartiles, of
milliseconds per update without compilation; `speedup` is the median over rounds of the ratio of a
PyTorch mode to ours in the same round. PyTorch is optional and not among the dependencies.

  pip install torch
  python -m experiments.benchmarks.vae        three minutes on two CPU cores
"""

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nets
from experiments import training
from paradigms.core import optimizers
from paradigms.core.errors import InputError
from paradigms.core.loop import fit
from paradigms.core.record import environment
from paradigms.core.transforms import repeated, resident
from paradigms.unsupervised import vae

BATCH_SIZE, EXAMPLES = 128, 8192
PIXELS, HIDDEN, LATENT = 784, 400, 20
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    updates: int = 1000
    """In one round of each mode."""
    rounds: int = 7
    """Interleaved rounds, after one that is not counted."""
    output: Path = Path("experiments/results/benchmarks/vae.json")
    """Where the figures go."""


def paradigms_round(bits: np.ndarray, updates: int) -> Callable[[], float]:
    """Seconds of a round of ours."""
    learner = vae(
        nets.mlp((HIDDEN,), 2 * LATENT),
        nets.mlp((HIDDEN,), PIXELS),
        optimizers.adam(LEARNING_RATE),
        input_name="x",
    )
    drawn = resident(learner, BATCH_SIZE)
    data = {"x": jnp.asarray(bits)}
    start = jax.jit(drawn.init)
    state = start(jax.random.key(0), data)
    n = training.updates_per_call(drawn, state, data, updates, steps=updates)
    fused = repeated(drawn, n)

    def run() -> float:
        state = jax.block_until_ready(start(jax.random.key(0), data))
        return fit(fused, state, lambda *_: data, steps=updates, steps_per_call=n).train_seconds

    return run


def torch_round(bits: np.ndarray, updates: int, compiled: bool) -> Callable[[], float]:
    """Seconds of a round of PyTorch."""
    import torch
    from torch.nn import functional

    encoder = torch.nn.Sequential(
        torch.nn.Linear(PIXELS, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 2 * LATENT)
    )
    decoder = torch.nn.Sequential(
        torch.nn.Linear(LATENT, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, PIXELS)
    )
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, fused=True)
    data = torch.from_numpy(bits)

    def loss_of(x: Any) -> Any:
        mean, log_var = encoder(x).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        logits = decoder(z)
        cross_entropy = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = -0.5 * (1 + log_var - mean.pow(2) - log_var.exp()).sum()
        return (cross_entropy + kl) / len(x)

    if compiled:
        loss_of = torch.compile(loss_of)

    def run() -> float:
        begin = time.perf_counter()
        for i in range(updates):
            if i % (EXAMPLES // BATCH_SIZE) == 0:
                order = torch.randperm(EXAMPLES).split(BATCH_SIZE)
            optimizer.zero_grad()
            loss_of(data[order[i % len(order)]]).backward()
            optimizer.step()
        return time.perf_counter() - begin

    run()  # compiles
    return run


def main(config: Config, argv: Sequence[str]) -> None:
    """Measures, writes the figures and prints them."""
    try:
        import torch
    except ImportError as error:
        raise InputError("PyTorch is not installed: run `pip install torch`") from error
    torch.set_num_threads(os.cpu_count() or 1)
    cache = tempfile.TemporaryDirectory()  # `fit` compiles at every call; with a cache, once
    jax.config.update("jax_compilation_cache_dir", cache.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    ink = np.random.default_rng(0).random((EXAMPLES, PIXELS)) < 0.13
    bits = ink.astype(np.float32)
    modes = {
        "paradigms": paradigms_round(bits, config.updates),
        "torch_eager": torch_round(bits, config.updates, compiled=False),
        "torch_compiled": torch_round(bits, config.updates, compiled=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    for round_number in range(config.rounds + 1):
        for name, run in modes.items():
            elapsed = run()
            if round_number:
                seconds[name].append(elapsed)
    results: dict[str, Any] = {"batch_size": BATCH_SIZE, "rounds": config.rounds, "modes": {}}
    for name, values in seconds.items():
        low, middle, high = np.quantile(
            np.asarray(values) / config.updates * 1e3, (0.25, 0.5, 0.75)
        )
        speedup = float(np.median(np.asarray(values) / np.asarray(seconds["paradigms"])))
        results["modes"][name] = {
            "milliseconds_per_update": float(middle),
            "quartiles": [float(low), float(high)],
            "speedup": speedup,
        }
        print(f"{name:15} {middle:7.3f} ms  [{low:.3f}, {high:.3f}]  ours is {speedup:.2f}x")
    results["torch"] = torch.__version__
    results["command"] = shlex.join(["python", "-m", "experiments.benchmarks.vae", *argv])
    results["environment"] = environment()
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__), sys.argv[1:])
