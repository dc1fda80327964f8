"""A process that is stuck ends and says where; one that moves, however slowly, is left alone."""

import os
import signal
import subprocess
import sys
import time

import pytest

from paradigms.core.watchdog import EXIT_STATUS

STUCK = """
import sys, threading, time
from pathlib import Path
from paradigms.core.watchdog import Watchdog

def waits_for_ever():
    time.sleep(60)

def waits_beside():
    time.sleep(60)

with Watchdog(0.3, Path(sys.argv[1])) as watchdog:
    watchdog.alive()
    threading.Thread(target=waits_beside, daemon=True).start()
    waits_for_ever()
"""

SLOW = """
import sys, time
from pathlib import Path
from paradigms.core.watchdog import Watchdog

with Watchdog(0.5, Path(sys.argv[1]), first=2.0) as watchdog:
    time.sleep(1.2)  # as in the compiler
    print("moves", flush=True)
    for _ in range(15):
        watchdog.alive()
        time.sleep(0.1)
with Watchdog(0, Path(sys.argv[1])):
    time.sleep(0.2)
time.sleep(0.8)  # it is over
"""


def run(script, report):
    return subprocess.run(
        [sys.executable, "-c", script, str(report)], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("folder", [".", "none"])
def test_who_is_stuck_is_ended_with_all_stacks(tmp_path, folder):
    report = tmp_path / folder / "stuck.txt"
    begin = time.perf_counter()
    done = run(STUCK, report)
    assert time.perf_counter() - begin < 30
    assert done.returncode == EXIT_STATUS == 76
    assert "in waits_for_ever" in done.stderr and "in waits_beside" in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("stuck: nothing was done for 0.3 s") and str(report) in line
    if folder == ".":
        stacks = report.read_text()
        assert "in waits_for_ever" in stacks and "in waits_beside" in stacks
    else:  # which does not exist: that keeps nothing from ending
        assert f"cannot write {report}: No such file or directory" in done.stderr


def test_who_moves_is_left_alone_and_so_is_a_long_compilation(tmp_path):
    done = run(SLOW, tmp_path / "stuck.txt")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "stuck.txt").exists()


def test_who_was_suspended_is_not_stuck(tmp_path):
    command = [sys.executable, "-c", SLOW, str(tmp_path / "stuck.txt")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "moves\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(process.pid, signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 0
