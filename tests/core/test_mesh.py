"""Meshes: how they are written, and that on eight devices they save work and memory."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from paradigms.core import mesh
from paradigms.core.errors import InputError


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (None, {}),
        ("", {}),
        (" ", {}),
        ("data=8", {"data": 8}),
        ("data=4, fsdp=2", {"data": 4, "fsdp": 2}),
        ("fsdp=2", {"fsdp": 2}),
        ("data=4,model=2", {"data": 4, "model": 2}),
    ],
)
def test_a_mesh_is_read(text, sizes):
    assert mesh.parse_mesh(text) == sizes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rows=2", "unknown axis 'rows'"),
        ("model=0", "'model' needs a whole number"),
        ("data=two", "whole number of at least 1, not 'two'"),
        ("data=0", "whole number"),
        ("data=-1", "whole number"),
        ("data=²", "whole number"),
        ("data", "whole number"),
        ("data=2,", "unknown axis ''"),
        ("data=2,data=2", "given twice"),
        ("data=1024", "needs 1024 devices and there are .*host_platform_device_count=1024"),
        ("data=32,fsdp=32", "needs 1024 devices"),
    ],
)
def test_a_bad_mesh_is_one_line(text, words):
    with pytest.raises(InputError, match=words) as caught:
        mesh.make_mesh(text)
    assert "\n" not in str(caught.value) and text in str(caught.value)


def test_without_a_mesh_nothing_is_constrained():
    batch = {"image": jnp.ones((3, 2)), "scale": jnp.ones(())}
    same = mesh.constrain_batch(batch)
    assert same["image"] is batch["image"]
    with jax.set_mesh(mesh.make_mesh("data=1")):
        assert mesh.constrain_batch(batch)["image"] is batch["image"]


def test_one_device_is_a_mesh_too():
    one = mesh.make_mesh()
    assert dict(one.shape) == {"data": 1}
    batch = mesh.shard_batch({"x": np.ones((3, 2), np.uint8)}, one)
    assert batch["x"].shape == (3, 2) and batch["x"].dtype == np.uint8
    shardings = mesh.state_shardings({"w": jnp.ones((256, 256))}, one)
    assert shardings["w"].is_fully_replicated


def test_a_rule_must_name_a_leaf_and_be_a_pattern():
    one = mesh.make_mesh("fsdp=1")
    state = {"w": jnp.ones((2, 2))}
    with pytest.raises(InputError, match="'kernel' is found in no path"):
        mesh.state_shardings(state, one, [("kernel", PartitionSpec("fsdp"))])
    with pytest.raises(InputError, match="regular expression"):
        mesh.state_shardings(state, one, [("(", PartitionSpec("fsdp"))])
    with pytest.raises(InputError, match=r"'w' of shape \(2, 2\).*no axis 'data'"):
        mesh.state_shardings(state, one, [("w", PartitionSpec("data"))])
    with pytest.raises(InputError, match="names 3 dimensions and there are 2"):
        mesh.state_shardings(state, one, [("w", PartitionSpec(None, None, "fsdp"))])


def test_one_process_joins_nobody(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    mesh.initialize_distributed()
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "auto"}, "cannot join process None of None at auto"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is"),
    ],
)
def test_joining_by_bad_variables_is_one_line(variables, words, monkeypatch):
    def initialize(coordinator, processes, index, **_):
        assert (coordinator, processes, index) == (None, None, None)
        assert "JAX_COORDINATOR_ADDRESS" not in os.environ  # jax would take "auto" for an address
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=words):
        mesh.initialize_distributed()


def test_joining_too_late_is_one_line():
    jax.devices()  # the backend is up, as it is whenever this is called too late
    with pytest.raises(InputError, match="cannot join process 0 of 1") as caught:
        mesh.initialize_distributed("localhost:1", 1, 0)
    assert "\n" not in str(caught.value)


def with_eight_devices(script):
    """Runs a script beside this file in a process that alone has eight devices."""
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(Path(__file__).with_name(script))],
        env={
            **os.environ,
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is what this costs
        },
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=1200,  # a guard against hanging: a busy machine takes its time
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_on_eight_devices():
    with_eight_devices("eight_devices.py")


@pytest.mark.slow
def test_a_learner_of_each_paradigm_agrees_on_every_mesh():
    with_eight_devices("strategies.py")


@pytest.mark.slow
def test_two_processes_share_a_mesh():
    """Runs `two_processes.py` twice, each with two of the four devices."""
    script = Path(__file__).with_name("two_processes.py")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2"
    both = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(script), address, str(index)],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=600)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
