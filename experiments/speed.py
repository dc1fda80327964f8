"""What the benchmarks measured, read from their result files: the table of README.md."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.catalogue import RESULTS
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


def _of_torch(results: dict[str, Any]) -> float:
    """PyTorch's time over ours, in its faster mode."""
    return min(results["modes"][mode]["speedup"] for mode in ("torch_eager", "torch_compiled"))


SPEEDS = (
    Speed("VAE on MNIST, a step", "vae", "of PyTorch's speed", _of_torch, 1.40),
    Speed("character GPT, a step", "gpt", "of PyTorch's speed", _of_torch, 1.22),
    Speed("SimCLR on CIFAR-10, a step", "simclr", "of PyTorch's speed", _of_torch),
    Speed(
        "PPO on CartPole",
        "agents",
        "of a bare loop's speed",
        lambda results: results["ppo"]["of_hand"],
        0.97,
    ),
    Speed(
        "DQN on CartPole",
        "agents",
        "of a bare loop's speed",
        lambda results: results["dqn"]["of_hand"],
        0.97,
    ),
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
        "FixMatch with its views, a step",
        "fixmatch",
        "of the time of its passes",
        lambda results: results["modes"]["fixmatch_with_views"]["of_passes"],
        1.1,
        "lower",
    ),
)


def markdown() -> str:
    """The table: misses first.

    Raises:
      InputError: a result file is missing or lacks its figure.
    """
    missed: list[tuple[str, ...]] = []
    reached: list[tuple[str, ...]] = []
    for speed in SPEEDS:
        path = FOLDER / f"{speed.file}.json"
        try:
            results = json.loads(path.read_text())
            value = speed.value(results)
            command, cpus = results["command"], results["environment"]["cpu_count"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} is missing or damaged: run the benchmark again") from error
        sign = "at least" if speed.better == "higher" else "at most"
        aim = "" if speed.aim is None else f"{sign} {speed.aim:g}"
        row = (speed.what, f"{value:.2f} {speed.unit}", aim, f"{cpus} CPU cores", f"`{command}`")
        (missed if speed.missed(value) else reached).append(row)
    header = ("what", "ours", "aim", "device", "command")
    rows = [header, ("-",) * len(header), *missed, *reached]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
