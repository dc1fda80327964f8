"""What `python -m experiments.benchmarks` measures, by name."""

from collections.abc import Callable

from experiments.benchmarks import agents, cnn, fixmatch, gpt, mlp, resnet, saving, simclr, vae
from experiments.benchmarks.measuring import System

SYSTEMS: dict[str, Callable[[], System]] = {
    "mlp": mlp.system,
    "cnn": cnn.system,
    "resnet": resnet.system,
    "gpt": gpt.system,
    "vae": vae.system,
    "simclr": simclr.system,
    "fixmatch": fixmatch.system,
    "ppo": agents.ppo_system,
    "dqn": agents.dqn_system,
    "saving": saving.system,
}
