"""Several processes are one run: the same result, one directory, and one end."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from paradigms.core.record import read_metrics

ROOT = Path(__file__).parents[2]
TINY = ("--steps", "20", "--evaluate-every", "10", "--seeds", "0", "1", "--width", "16")
SECONDS = 300  # a guard against hanging: a busy machine takes its time


def start(directory, *options, count=1, devices=1):
    """Starts the processes of one run of digits_mlp on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": flags}
    joining = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    command = [sys.executable, "-W", "error", "-m", "experiments.supervised.digits_mlp"]
    return [
        subprocess.Popen(
            [*command, "--run-dir", str(directory), *options],
            cwd=ROOT,
            env={
                **os.environ,
                **quick,
                **({**joining, "JAX_PROCESS_ID": str(index)} if count > 1 else {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


@contextlib.contextmanager
def ended(started):
    """Whatever happens, no process is left behind."""
    try:
        yield
    finally:
        for process in started:
            process.kill()
            with contextlib.suppress(ValueError):  # it has been listened to already
                process.communicate()


def finish(started):
    """Waits for all; their exit statuses and what they said, `(stdout, stderr)`."""
    with ended(started):
        said = [process.communicate(timeout=SECONDS) for process in started]
    return [process.returncode for process in started], said


def run(*arguments, **options):
    statuses, said = finish(start(*arguments, **options))
    assert set(statuses) == {0}, said
    return said


def outcome(directory):
    summary = json.loads((directory / "summary.json").read_text())
    return [each["state_sha256"] for each in summary["runs"]], read_metrics(directory)


def files(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with two devices, which ends as two processes with one each are to end."""
    directory = tmp_path_factory.mktemp("alone") / "run"
    run(directory, *TINY, "--mesh", "data=2", devices=2)
    return directory


def said_by_jax(line):
    return line.startswith(("[Gloo]", "W", "E"))


@pytest.mark.slow
def test_two_processes_lose_one_and_end_as_one_process_does(alone, tmp_path):
    directory = tmp_path / "run"
    options = (*TINY, "--mesh", "data=2")
    started = start(directory, *options, count=2)
    with ended(started):
        while not (directory / "checkpoints" / "10").is_dir():
            assert all(process.poll() is None for process in started)
            time.sleep(0.05)
        started[1].kill()
        killed = time.monotonic()
        _, stderr = started[0].communicate(timeout=SECONDS)
    assert time.monotonic() - killed < 30
    if started[0].returncode == 75:  # or it was quick enough to be through
        line = stderr.strip().splitlines()[-1]
        assert line.startswith("stopped: process 0 has lost another one of the run"), stderr
        assert "Traceback" not in stderr
    (first, second) = run(directory, *options, count=2)
    assert "resuming" in first[1] and "test/accuracy" in first[0]
    assert not [line for line in "".join(second).splitlines() if not said_by_jax(line)]
    digests, metrics = outcome(directory)
    expected_digests, expected = outcome(alone)
    assert digests == expected_digests
    for name, curve in expected.items():
        np.testing.assert_array_equal(metrics[name].steps, curve.steps)
        np.testing.assert_allclose(metrics[name].values, curve.values, rtol=1e-6, err_msg=name)
    assert files(directory) == files(alone)


@pytest.mark.slow
def test_four_processes_are_asked_to_stop_by_one_of_them_and_go_on(alone, tmp_path):
    directory = tmp_path / "run"
    options = (*TINY, "--mesh", "data=2,model=2")
    started = start(directory, *options, count=4)
    with ended(started):
        while not (directory / "checkpoints" / "0").is_dir():
            assert all(process.poll() is None for process in started)
            time.sleep(0.05)
        started[2].terminate()
        said = [process.communicate(timeout=SECONDS) for process in started]
    # Where they agree to stop is theirs to choose, and may lie behind the end.
    assert {process.returncode for process in started} in ({75}, {0}), said
    if started[0].returncode == 75:
        assert "stopped: SIGTERM at step" in said[0][1]
        run(directory, *options, count=4)
    _, metrics = outcome(directory)
    _, expected = outcome(alone)
    # The layers are divided here, which adds up in another order.
    for name in ("train/loss", "validation/accuracy"):
        np.testing.assert_allclose(
            metrics[name].values[:, 0], expected[name].values[:, 0], rtol=1e-4, err_msg=name
        )
    # What was not reported yet when it stopped stays, as in a run of one process.
    assert set(files(directory)) - {"pending.json"} == set(files(alone))


@pytest.mark.slow
def test_two_processes_go_on_from_a_copy_of_their_directory(alone, tmp_path):
    directory, bucket = tmp_path / "run", tmp_path / "bucket"
    options = (*TINY, "--mesh", "data=2", "--mirror", f"file://{bucket}")
    started = start(directory, *options, count=2)
    with ended(started):
        while not (directory / "checkpoints" / "10").is_dir():
            assert all(process.poll() is None for process in started)
            time.sleep(0.05)
        started[1].terminate()
        said = [process.communicate(timeout=SECONDS) for process in started]
    assert {process.returncode for process in started} in ({75}, {0}), said
    shutil.rmtree(directory)  # as a machine that is taken away takes its disk along
    first, second = run(directory, *options, count=2)
    assert f"{directory} was fetched from file://{bucket}" in first[1]
    assert "fetched" not in second[1]
    assert outcome(directory)[0] == outcome(alone)[0]
    assert set(files(directory)) - {"pending.json"} == set(files(alone))
    (bucket / "config.json").unlink()
    statuses, said = finish(start(directory, *options, count=2))
    assert statuses == [2, 2], said
    assert "is no copy of a run" in said[0][1] and "process 0 cannot use --mirror" in said[1][1]


@pytest.mark.slow
def test_a_mistake_is_told_by_all_processes_and_none_waits(tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    statuses, said = finish(start(tmp_path, *TINY, "--mesh", "data=2", count=2))
    assert statuses == [2, 2], said
    assert "thesis.txt" in said[0][1] and "process 0 cannot use" in said[1][1]
