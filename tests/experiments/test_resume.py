"""The same seed gives the same bits: again, alone, and after being killed."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

from paradigms.core.record import read_metrics

# Kills its own process when the checkpoint of a step is about to be saved, or has just been.
KILLED = """
import os, runpy, signal, sys
from paradigms.core.checkpoint import Checkpoints

when, step = sys.argv[1], int(sys.argv[2])
write = Checkpoints._write

def write_and_die(self, now, items, manifest):
    if when == "after" or now != step:
        write(self, now, items, manifest)
    if now == step:
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoints._write = write_and_die
sys.argv[1:] = sys.argv[3:]
runpy.run_module("experiments.supervised.digits_mlp", run_name="__main__", alter_sys=True)
"""


# Hangs when the checkpoint of step 20 is about to be written, as on a disk that does not answer.
STUCK = """
import runpy, sys, time
from paradigms.core.checkpoint import Checkpoints

write = Checkpoints._write

def write_for_ever(self, now, items, manifest):
    if now == 20:
        time.sleep(600)
    write(self, now, items, manifest)

Checkpoints._write = write_for_ever
runpy.run_module("experiments.supervised.digits_mlp", run_name="__main__", alter_sys=True)
"""

# Asks its own process to stop when there is no update left to do.
ASKED_WHILE_FINISHING = """
import os, runpy, signal
from experiments import training

draw = training.draw_curves

def draw_and_ask(*arguments):
    draw(*arguments)
    os.kill(os.getpid(), signal.SIGTERM)

training.draw_curves = draw_and_ask
runpy.run_module("experiments.supervised.digits_mlp", run_name="__main__", alter_sys=True)
"""

# Asks its own process to stop once so many updates are done, of five to a dispatch.
STOPPED = """
import os, runpy, signal, sys
from experiments import training
from paradigms.core import loop
from paradigms.core.progress import Progress

training._UPDATES_PER_CALL = 5
which, steps = signal.Signals[sys.argv[1]], [int(sys.argv[2])]
advance = Progress.advance

def advance_and_ask(self, now):
    advance(self, now)
    if steps == [now]:
        steps.clear()
        os.kill(os.getpid(), which)

Progress.advance = advance_and_ask
loop._SECONDS_BETWEEN_FETCHES = 0
sys.argv[1:] = sys.argv[3:]
runpy.run_module("experiments.supervised.digits_mlp", run_name="__main__", alter_sys=True)
"""

# A machine whose clock says 1970, on which everything that is there comes from its future.
SKEWED = """
import runpy, sys, time
time.time = lambda: 1000.0
time.time_ns = lambda: 1000 * 10**9
runpy.run_module("experiments.supervised.digits_mlp", run_name="__main__", alter_sys=True)
"""


def digests(directory):
    runs = json.loads((directory / "summary.json").read_text())["runs"]
    return [run["state_sha256"] for run in runs]


def test_a_killed_run_ends_as_one_that_was_not(python, short, finished, tmp_path):
    command = [*short, "--run-dir", tmp_path]
    # First when the metrics of a step are written and its checkpoint is not, then the reverse.
    for when, step, left in (("before", 20, ["0"]), ("after", 20, ["0", "20"])):
        killed = python("-c", KILLED, when, step, *command)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (tmp_path / "summary.json").exists()
        whole = [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
        assert sorted(whole) == left
    resumed = python("-m", "experiments.supervised.digits_mlp", *command)
    assert resumed.returncode == 0, resumed.stderr
    assert "at step 20" in resumed.stderr
    assert digests(tmp_path) == digests(finished)
    assert (tmp_path / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def test_a_run_that_is_asked_to_stop_saves_and_goes_on(python, short, finished, tmp_path):
    directory, whole = tmp_path / "run", tmp_path / "whole"
    command = [*short, "--run-dir", directory]
    for which, step in (("SIGTERM", 10), ("SIGINT", 35)):
        stopped = python("-c", STOPPED, which, step, *command)
        assert stopped.returncode == 75, stopped.stderr
        line = stopped.stderr.splitlines()[-1]
        assert line.startswith(f"stopped: {which} at step {step} of 40: it is saved in {directory}")
        assert (directory / "checkpoints" / str(step)).is_dir()
    resumed = python("-m", "experiments.supervised.digits_mlp", *command)
    assert resumed.returncode == 0, resumed.stderr
    assert "at step 35" in resumed.stderr
    assert digests(directory) == digests(finished)
    # The metrics of an interval that was stopped in are those of the whole interval, if as many
    # updates to a dispatch were added up.
    never = python("-c", STOPPED, "SIGTERM", -1, *short, "--run-dir", whole)
    assert never.returncode == 0, never.stderr
    assert (directory / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_a_request_while_the_run_is_finished_is_not_forgotten(python, short, tmp_path):
    """FixMatch's twin, for instance, was trained to its end before the process left."""
    command = [*short, "--run-dir", tmp_path]
    stopped = python("-c", ASKED_WHILE_FINISHING, *command)
    assert stopped.returncode == 75, stopped.stderr
    line = stopped.stderr.splitlines()[-1]
    assert line.startswith(f"stopped: SIGTERM as {tmp_path} was finished: if anything comes after")
    again = python("-m", "experiments.supervised.digits_mlp", *command)
    assert again.returncode == 0 and "is finished" in again.stdout


def test_a_run_that_is_stuck_ends_with_its_checkpoint_as_it_was(python, short, tmp_path):
    stuck = python("-c", STUCK, *short, "--run-dir", tmp_path, "--watchdog", 3)
    assert stuck.returncode == 76, stuck.stderr
    assert stuck.stderr.splitlines()[-1].startswith("stuck: nothing was done for 3 s")
    assert "in write_for_ever" in (tmp_path / "stuck.txt").read_text()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0"]


def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(python, short, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    array = max(
        (tmp_path / "run" / "checkpoints" / "40").rglob("*"), key=lambda p: p.stat().st_size
    )
    array.write_bytes(bytes(array.stat().st_size))
    command = [*short, "--run-dir", tmp_path / "run"]
    resumed = python("-m", "experiments.supervised.digits_mlp", *command)
    assert resumed.returncode == 0, resumed.stderr
    assert "the checkpoint of step 40" in resumed.stderr and "is damaged" in resumed.stderr
    assert "at step 20" in resumed.stderr
    assert digests(tmp_path / "run") == digests(finished)
    rows = (tmp_path / "run" / "metrics.csv").read_bytes()
    assert rows == (finished / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_a_clock_that_is_wrong_changes_nothing(python, short, finished, tmp_path):
    command = [*short, "--run-dir", tmp_path]
    killed = python("-c", KILLED, "after", 20, *command)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # The older checkpoint is the younger by its date.
    for age, path in enumerate(sorted(tmp_path.rglob("*"), reverse=True)):
        os.utime(path, (4e9 + age, 4e9 + age))
    resumed = python("-c", SKEWED, *command)
    assert resumed.returncode == 0, resumed.stderr
    assert "at step 20" in resumed.stderr
    assert digests(tmp_path) == digests(finished)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert 0 < summary["speed"]["train_seconds"] < 600


@pytest.mark.slow
def test_each_run_is_the_run_of_its_seed_alone(python, short, finished, tmp_path):
    alone = short[:5] + ("1",) + short[7:]
    done = python("-m", "experiments.supervised.digits_mlp", *alone, "--run-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = digests(finished)
    assert digests(tmp_path) == [second] != [first]
    # What is only reported is summed in an order that the compiler may choose anew.
    together, single = read_metrics(finished), read_metrics(tmp_path)
    assert together.keys() == single.keys()
    for name, curve in single.items():
        np.testing.assert_allclose(curve.values[0], together[name].values[1], rtol=1e-6)


def test_a_finished_run_says_so_and_stays_as_it_is(python, short, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*.*")}
    again = python("-m", "experiments.supervised.digits_mlp", *short, "--run-dir", finished)
    assert again.returncode == 0
    assert "is finished" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in finished.glob("*.*")} == before


def test_the_summary_says_how_it_was_made(finished):
    summary = json.loads((finished / "summary.json").read_text())
    start = "python -m experiments.supervised.digits_mlp --steps 40 --evaluate-every 20"
    assert summary["command"].startswith(start)
    assert summary["steps"] == 40
    assert "worlds_begun_anew_at" not in summary  # which only worlds on the host do
    assert [run["seed"] for run in summary["runs"]] == [0, 1]
    assert set(summary["environment"]) >= {"jax", "commit", "device", "python"}
    values = [run["metrics"]["test/accuracy"] for run in summary["runs"]]
    assert summary["metrics"]["test/accuracy"]["values"] == values
    assert summary["metrics"]["test/accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    curve = read_metrics(finished)["validation/accuracy"]
    assert curve.steps.tolist() == [0, 20, 40]
    assert summary["before"]["validation/accuracy"] == curve.values[:, 0].tolist()
    area = curve.values @ [0.25, 0.5, 0.25]
    np.testing.assert_allclose(summary["area_under_curve"]["validation/accuracy"], area)
    speed = summary["speed"]
    assert speed["examples_per_second"] == pytest.approx(speed["steps_per_second"] * 2 * 128)
    assert 0 < speed["host_wait_share"] < 1
    assert speed["utilisation"] is None and speed["energy"]["joules"] is None  # of a CPU
    assert speed["peak_memory"]["of"] == "process" and speed["peak_memory"]["bytes"] > 2**24
    for picture in ("curves.png", "confusion.png"):
        assert (finished / picture).read_bytes().startswith(b"\x89PNG")
