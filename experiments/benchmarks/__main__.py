"""Measures how fast learners learn: how long an update takes, compiling, the way to a target.

Systems are mlp, cnn, resnet, gpt, vae, simclr, fixmatch, ppo, dqn and saving; each has a file of
figures.

  pip install torch                                   for --peers
  python -m experiments.benchmarks                    all of them, ours alone
  python -m experiments.benchmarks --peers            all of them, beside PyTorch
  python -m experiments.benchmarks vae gpt --peers    some of them

An hour and more on two CPU cores, which nothing else should use.
"""

import difflib
import gc
import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments import cli, report, speed
from experiments.benchmarks import alone
from experiments.benchmarks.measuring import System, measure, write
from experiments.benchmarks.systems import SYSTEMS
from paradigms.core.errors import InputError

HEADER = (
    *("", "system", "ms per update", "default over best", "beside", "ms per update", "ours", "aim"),
    *("compile s", "memory MiB", "s to target"),
)
_FEWEST_ROUNDS = 5  # that README's table may be made of
_MOST_OVER_BEST = 0.05


@dataclass(frozen=True)
class Config:
    """Options of the benchmarks."""

    systems: tyro.conf.Positional[tuple[str, ...]] = ()
    """What to measure, by default all."""
    peers: bool = False
    """Whether to measure PyTorch too."""
    updates: int | None = None
    """In one round of each mode, by default the system's own number."""
    rounds: int = 7
    """Interleaved rounds, after one that is not counted."""
    output: Path | None = None
    """The folder of the result files; by default runs/benchmarks, and with --peers that of the
    results which README shows."""

    @property
    def folder(self) -> Path:
        """Where the result files go."""
        return self.output or (speed.FOLDER if self.peers else Path("runs/benchmarks"))


def main(arguments: Sequence[str] = ()) -> None:
    """Does what the command line says, which goes behind `arguments`."""
    with cli.one_line_errors():
        run(cli.parse(Config, "benchmarks", __doc__, args=[*arguments, *sys.argv[1:]]))


def run(config: Config) -> None:
    """Measures the systems one after the other, writes a file of each and ends with a table.

    Raises:
      InputError: an unknown system, no round or update, PyTorch missing where it is wanted, or too
        few rounds for README.
    """
    systems = {name: SYSTEMS[known(name)]() for name in config.systems or SYSTEMS}
    check(config, systems)
    results = {}
    for name, system in systems.items():
        results[name] = figures(name, system, config)
        write(config.folder / f"{name}.json", results[name], "benchmarks", options(name, config))
        jax.clear_caches()
        gc.collect()
    report.print_table(HEADER, table(results))


def known(name: str) -> str:
    """The name, if there is a system of it; InputError otherwise."""
    if name in SYSTEMS:
        return name
    near = difflib.get_close_matches(name, SYSTEMS) or list(SYSTEMS)
    raise InputError(f"there is no benchmark {name!r}: try {', '.join(near)}")


def check(config: Config, systems: Mapping[str, System]) -> None:
    """Finds what is wrong before anything is measured."""
    if config.rounds < 1 or (config.updates is not None and config.updates < 1):
        raise InputError(
            f"--rounds {config.rounds} --updates {config.updates}: expected at least 1"
        )
    if config.folder == speed.FOLDER and config.rounds < _FEWEST_ROUNDS:
        raise InputError(
            f"--rounds {config.rounds}: README shows what at least {_FEWEST_ROUNDS} rounds have "
            "given: measure more, or choose another folder by --output"
        )
    if not config.peers or not any(system.peers for system in systems.values()):
        return
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            "--peers: PyTorch is not installed: run `pip install torch`, or leave --peers out"
        )
    if jax.default_backend() != "cpu":
        raise InputError(
            "--peers: PyTorch is measured on the CPU, and JAX would not be: set JAX_PLATFORMS=cpu"
        )


def figures(name: str, system: System, config: Config) -> dict[str, Any]:
    """All there is to write of one system."""
    updates = config.updates or system.updates
    results = {"system": name, **system.details()}
    results |= measure(system, updates, config.rounds, config.peers)
    for mode, found in results["modes"].items():
        found |= alone.in_a_process(name, mode, updates)
        low, high = found["quartiles"]
        print(
            f"{name:9} {mode:28} {found['milliseconds_per_update']:9.3f} ms  "
            f"[{low:.3f}, {high:.3f}]",
            flush=True,
        )
    if system.target is not None:
        results["target"] = system.target._asdict()
    if config.peers and system.peers:
        results["torch"] = importlib.metadata.version("torch")
    return results


def options(name: str, config: Config) -> list[str]:
    """The command line that measures one system as it was; the folder is left out."""
    changed = [] if config.updates is None else ["--updates", str(config.updates)]
    if config.rounds != Config.rounds:
        changed += ["--rounds", str(config.rounds)]
    return [name, *(["--peers"] if config.peers else []), *changed]


def table(results: Mapping[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each system, losses first.

    A loss is below its aim, or slower than its peer where there is no aim, or has a default that is
    more than a twentieth slower than the best of our ways.
    """
    rows = [_row(name, found) for name, found in results.items()]
    return sorted(rows, key=lambda row: row[0] != "loss")


def _row(name: str, results: dict[str, Any]) -> tuple[str, ...]:
    modes = results["modes"]
    ours = next(iter(modes))
    others = [mode for mode in modes if not mode.startswith("paradigms") and mode != ours]
    beside = min(others, key=lambda mode: modes[mode]["speedup"], default=None)
    (figure,) = [one for one in speed.SPEEDS if one.file == name]
    try:
        value = figure.value(results)
    except KeyError:  # the peers were not measured
        value = None
    lost = results["default_over_best"] > _MOST_OVER_BEST
    lost |= value is not None and figure.missed(value)
    return (
        "loss" if lost else "",
        name,
        _milliseconds(modes[ours]),
        f"{results['default_over_best']:+.1%}",
        beside or "",
        _milliseconds(modes[beside]) if beside else "",
        "" if value is None else f"{value:.2f} {figure.unit}",
        figure.wanted(),
        _beside("{:.1f}", modes, ours, beside, "compile_seconds"),
        _beside("{:.0f}", modes, ours, beside, "memory", "peak_mib"),
        _beside("{:.2f}", modes, ours, beside, "target", "median_seconds"),
    )


def _milliseconds(mode: Mapping[str, Any]) -> str:
    low, high = mode["quartiles"]
    return f"{mode['milliseconds_per_update']:.3g} [{low:.3g}, {high:.3g}]"


def _beside(shape: str, modes: Mapping[str, Any], ours: str, beside: str | None, *path: str) -> str:
    """One figure of ours, and in brackets that of the mode beside it."""

    def shown(mode: str) -> str:
        value = modes[mode]
        for name in path:
            value = (value or {}).get(name)
        return "" if value is None else shape.format(value)

    mine, other = shown(ours), shown(beside) if beside else ""
    return f"{mine} ({other})" if other else mine


if __name__ == "__main__":
    main()
