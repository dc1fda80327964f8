"""Long runs neither grow nor compile again: ten thousand updates of a learner of each paradigm."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
import pytest

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 10_000, 500
# Of all updates: the first evaluations compile, fill what is kept, and open files.
WARM = 0.3
MOST_GROWTH = 0.02
# Small, so that none takes much longer than the others.
OPTIONS = {
    "supervised.digits_mlp": (),
    "unsupervised.vae_digits": ("--importance-samples", "10"),
    "self_supervised.simclr_digits": ("--batch-size", "16", "--width", "32", "--hidden", "32"),
    "semi_supervised.fixmatch_digits": ("--batch-size", "8", "--ratio", "2"),
    "reinforcement.ppo_cartpole": (),
}


class Seen(NamedTuple):
    """What a process was like while it trained."""

    step: int
    bytes: int
    compilations: int


def watched(command: list[str], directory: Path, log: Path) -> list[Seen]:
    """Runs a command and looks at it twice a second until its last update."""
    environment = {**os.environ, "JAX_LOG_COMPILES": "1", "PYTHONPATH": str(ROOT)}
    seen = []
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process,
    ):
        of_process = psutil.Process(process.pid)
        while process.poll() is None:
            if 0 < (step := logged(directory)) < STEPS:
                compilations = log.read_text().count("Finished XLA compilation")
                seen.append(Seen(step, of_process.memory_info().rss, compilations))
            time.sleep(0.5)
    assert process.returncode == 0, log.read_text()[-2000:]
    return seen


def logged(directory: Path) -> int:
    """The last update in the metrics of a run, or of its first part; 0 where there is none yet."""
    for metrics in (directory / "metrics.csv", directory / "few_labels" / "metrics.csv"):
        if metrics.exists():
            with metrics.open() as lines:
                rows = [row for row in csv.reader(lines) if len(row) == 4]
            return int(rows[-1][1]) if len(rows) > 1 else 0
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_a_long_run_neither_grows_nor_compiles_again(tmp_path, name):
    command = [sys.executable, "-m", f"experiments.{name}", "--seeds", "0", "--steps", str(STEPS)]
    command += ["--evaluate-every", str(EVERY), *OPTIONS[name], "--run-dir", str(tmp_path)]
    seen = watched(command, tmp_path, tmp_path.with_suffix(".log"))
    warm = [one for one in seen if one.step >= WARM * STEPS]
    assert warm[0].compilations > 0  # they are counted
    assert warm[-1].compilations == warm[0].compilations
    third = len(warm) // 3
    first, last = (median(one.bytes for one in part) for part in (warm[:third], warm[-third:]))
    assert last < first * (1 + MOST_GROWTH), f"{first / 2**20:.1f} to {last / 2**20:.1f} MiB"
