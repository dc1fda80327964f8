"""One short run, and commands in processes of their own, shared by the tests of experiments."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import cli
from experiments.supervised import digits_mlp

ROOT = Path(__file__).parents[2]
SHORT = ("--steps", "40", "--evaluate-every", "20", "--seeds", "0", "1", "--width", "32")

# Python imports a module of this name as it starts; whatever wants the network then fails.
OFFLINE = """
import socket

def refuse(*arguments):
    raise OSError("this test runs without a network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs python with arguments, without a network, data sets or a terminal."""
    home = tmp_path_factory.mktemp("offline")
    (home / "sitecustomize.py").write_text(OFFLINE)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(home), str(ROOT)]),
        "PARADIGMS_DATA_DIR": str(home / "data"),
        "PARADIGMS_CACHE_DIR": str(home / "cache"),
    }

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


@pytest.fixture
def short() -> tuple[str, ...]:
    """The options of `finished`."""
    return SHORT


@pytest.fixture(scope="session")
def finished(python: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a short, uninterrupted run of digits_mlp; only to be read."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    done = python("-m", "experiments.supervised.digits_mlp", *SHORT, "--run-dir", directory)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line of an experiment in this process: `(status, stdout, stderr)`."""

    def run(*options: object, experiment: Any = digits_mlp) -> tuple[Any, str, str]:
        monkeypatch.setattr("sys.argv", ["experiment", *map(str, options)])
        status: Any = 0
        try:
            cli.run(experiment.main, experiment.Config)
        except SystemExit as leave:
            status = leave.code
        return status, *capsys.readouterr()

    return run
