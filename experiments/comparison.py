"""Runs beside each other, and a published result beside a run of its own command."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import catalogue
from experiments.report import print_table
from paradigms.core.errors import InputError
from paradigms.core.pictures import draw_comparison
from paradigms.core.record import read_config, read_metrics, read_summary


def compare(run_dirs: Sequence[Path], picture: Path) -> None:
    """Prints the final metrics of several runs, mean and 95 % interval, and draws their curves.

    Args:
      run_dirs: at least two run directories. Those that have not finished have curves only.
      picture: where the curves go.

    Raises:
      InputError: fewer than two, one that is no run directory, or no metric in common.
    """
    if len(set(map(Path.resolve, run_dirs))) < max(2, len(run_dirs)):
        raise InputError("compare: expected two run directories or more, and each of them once")
    for directory in run_dirs:
        read_config(directory)
    common = os.path.commonpath([directory.resolve().parent for directory in run_dirs])
    labels = [os.path.relpath(directory.resolve(), common) for directory in run_dirs]
    finals = [_final(directory) for directory in run_dirs]
    names = sorted(set().union(*finals))
    print_table(
        ("metric", *labels),
        [(name, *(_shown(final.get(name)) for final in finals)) for name in names],
    )
    curves = [read_metrics(directory) for directory in run_dirs]
    draw_comparison(dict(zip(labels, curves, strict=True)), picture)
    print(picture)


def reproduce(name: str, options: Sequence[str], run_dir: Path | None = None) -> int:
    """Runs the command of a published result and tells whether it comes out again.

    It agrees if ours of now lies in the interval of the published one. A result of a single run has
    none: it has to be the same to the last digit.

    Args:
      name: of the result, a folder in `experiments/results`.
      options: for the experiment, behind those that were recorded.
      run_dir: where the run goes, by default runs/reproduced/NAME; with the same one, it resumes.

    Returns:
      The exit status: 0 if it agrees, 1 if it does not, that of the experiment if it failed.

    Raises:
      InputError: there is no such result, or its command is none of an experiment.
    """
    claim = _published(name)
    directory = run_dir or Path("runs") / "reproduced" / name
    command = ["-m", *_recorded(claim), "--run-dir", str(directory), *options]
    print(shlex.join(["python", *command]), flush=True)
    status = subprocess.run([sys.executable, *command]).returncode
    if status:
        return status
    assert claim.summary is not None and claim.ours is not None
    again = claim._replace(summary=read_summary(directory))
    assert again.summary is not None and again.ours is not None
    (was, interval), (now, _) = claim.ours, again.ours
    low, high = interval or (was, was)
    agrees = low <= now <= high
    ends = [_ends(one.summary) for one in (claim, again)]
    same = sum(ends[0].get(seed) == digest for seed, digest in ends[1].items())
    around = f"{low:.6g} to {high:.6g}" if interval else "one run"
    print(
        f"{claim.metric}: {now:.6g}, published {was:.6g} ({around}): "
        f"{'agrees' if agrees else 'does not agree'}"
    )
    if ends[1]:
        print(f"{same} of {len(ends[1])} runs ended in the same bits")
    return 0 if agrees else 1


def _final(directory: Path) -> dict[str, Any]:
    try:
        return read_summary(directory)["metrics"]
    except InputError:  # it goes on, or was broken off
        return {}


def _shown(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return ""
    if metric["mean"] is None:
        return "not finite"
    if metric["interval"] is None:
        return f"{metric['mean']:.4g}"
    low, high = metric["interval"]
    return f"{metric['mean']:.4g} ({low:.4g} to {high:.4g})"


def _published(name: str) -> catalogue.Claim:
    results = {claim.result: claim for claim in catalogue.all_claims() if claim.summary}
    if name not in results:
        raise InputError(f"there is no published result {name!r}: choose {', '.join(results)}")
    return results[name]


def _recorded(claim: catalogue.Claim) -> list[str]:
    """Module and options of the command that gave the result, which must be of its experiment."""
    assert claim.summary is not None
    words = shlex.split(claim.summary["command"])
    module = f"experiments.{claim.experiment.replace('/', '.')}"
    if words[:3] != ["python", "-m", module]:
        raise InputError(
            f"the command of {claim.result} is {claim.summary['command']!r}: expected one that "
            f"begins with python -m {module}"
        )
    return words[2:]


def _ends(summary: dict[str, Any] | None) -> dict[int, str | None]:
    """The fingerprint of the final state of each seed; an experiment in parts has none."""
    runs = summary["runs"] if summary else []
    return {run["seed"]: run["state_sha256"] for run in runs if run["state_sha256"]}
