"""What the benchmarks measured, read from their result files: the table of README.md."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.catalogue import RESULTS
from experiments.report import cores
from paradigms.core.errors import InputError

FOLDER = RESULTS / "benchmarks"


class Speed(NamedTuple):
    """One figure of a benchmark.

    Attributes:
      what: is measured.
      file: in `FOLDER`, without its suffix.
      unit: of the figure.
      value: finds the figure in the file.
      aim: that it is to reach; None where there is none.
      better: which figures are, "higher" or "lower".
    """

    what: str
    file: str
    unit: str
    value: Callable[[dict[str, Any]], float]
    aim: float | None = None
    better: str = "higher"

    def missed(self, value: float) -> bool:
        """Whether the figure falls short of the aim, or without an aim of the peer's speed."""
        aim = 1.0 if self.aim is None else self.aim
        return value < aim if self.better == "higher" else value > aim

    def wanted(self) -> str:
        """The aim in words; empty where there is none."""
        sign = "at least" if self.better == "higher" else "at most"
        return "" if self.aim is None else f"{sign} {self.aim:g}"


def _of_torch(results: dict[str, Any]) -> float:
    """PyTorch's time over ours, in the fastest of its modes, of which two are always asked for."""
    modes = results["modes"]
    peers = {"torch_eager", "torch_compiled", *(m for m in modes if m.startswith("torch_"))}
    return min(modes[mode]["speedup"] for mode in peers)


def _of_hand(results: dict[str, Any]) -> float:
    """The time of a loop by hand over ours."""
    return results["modes"]["hand"]["speedup"]


SPEEDS = (
    Speed("MLP, a step", "mlp", "of PyTorch's speed", _of_torch, 1.83),
    Speed("CNN on 28x28, a step", "cnn", "of PyTorch's speed", _of_torch, 0.44),
    Speed("ResNet-20, a step", "resnet", "of PyTorch's speed", _of_torch, 0.44),
    Speed("VAE on MNIST, a step", "vae", "of PyTorch's speed", _of_torch, 1.40),
    Speed("character GPT, a step", "gpt", "of PyTorch's speed", _of_torch, 1.22),
    Speed("SimCLR on CIFAR-10, a step", "simclr", "of PyTorch's speed", _of_torch),
    Speed("PPO on CartPole", "ppo", "of a bare loop's speed", _of_hand, 0.97),
    Speed("DQN on CartPole", "dqn", "of a bare loop's speed", _of_hand, 0.97),
    Speed(
        "evaluation in ppo_cartpole",
        "agents",
        "of a run's time",
        lambda results: results["evaluation_share"]["ppo_cartpole"]["share"],
        0.05,
        "lower",
    ),
    Speed(
        "evaluation in dqn_cartpole",
        "agents",
        "of a run's time",
        lambda results: results["evaluation_share"]["dqn_cartpole"]["share"],
        0.05,
        "lower",
    ),
    Speed(
        "saving a VAE every thousand updates",
        "saving",
        "of the time of training",
        lambda results: results["modes"]["saved"]["over_not_saved"],
        0.03,
        "lower",
    ),
    Speed(
        "FixMatch with its views, a step",
        "fixmatch",
        "of the time of its passes",
        lambda results: results["modes"]["fixmatch_with_views"]["of_passes"],
        1.1,
        "lower",
    ),
    Speed(
        "32 seeds of digits_mlp in one program",
        "seeds",
        "times less than 32 processes",
        lambda results: results["processes"]["saving"],
        4.0,
    ),
    Speed(
        "training 32 seeds of it in one program",
        "seeds",
        "of the time of 32 warm runs in turn",
        lambda results: results["training"]["of_apart"],
        1.0,
        "lower",
    ),
)


def markdown() -> str:
    """The table of what was measured: misses first.

    Raises:
      InputError: a result file lacks its figure.
    """
    missed: list[tuple[str, ...]] = []
    reached: list[tuple[str, ...]] = []
    for speed in SPEEDS:
        path = FOLDER / f"{speed.file}.json"
        if not path.exists():
            continue
        try:
            results = json.loads(path.read_text())
            value = speed.value(results)
            command, device = results["command"], cores(results["environment"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} is damaged: run the benchmark again") from error
        figure = f"{value:.2f} {speed.unit}"
        row = (speed.what, figure, speed.wanted(), device, f"`{command}`")
        (missed if speed.missed(value) else reached).append(row)
    header = ("what", "ours", "aim", "device", "command")
    rows = [header, ("-",) * len(header), *missed, *reached]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
