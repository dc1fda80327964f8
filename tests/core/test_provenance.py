"""Where a result came from, and fingerprints of states."""

import json
import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigms.core import provenance
from paradigms.core.provenance import environment, state_sha256, state_sha256_per_run


def make_state(key):
    return {
        "key": key,
        "more": jax.random.split(key, 2),
        "raw": jax.random.key_data(key),
        "w": jax.random.normal(key, (4, 3)),
        "half": jnp.ones((2, 2), jnp.bfloat16),
        "flag": jax.random.bernoulli(key),
        "none": jnp.zeros((0, 2)),
        "nested": ({}, (), [jnp.zeros((), jnp.int32)]),
    }


def test_every_part_of_an_array_counts_in_its_fingerprint():
    x = np.arange(6, dtype=np.int32)
    different = [
        {"x": x},
        {"y": x},
        {"x": x.astype(np.uint32)},
        {"x": x.reshape(2, 3)},
        {"x": x.reshape(3, 2)},
        {"x": np.where(x == 5, 4, x)},
        {"x": x[:3], "y": x[3:]},
        {"x": jax.random.key(1)},
        {"x": jax.random.key(2)},
        {"x": jax.random.key_data(jax.random.key(1))},
        {"x": jax.random.key(1, impl="rbg")},
        {"x": np.float32(0)},
        {"x": np.float32(-0.0)},
        {},
    ]
    assert len({state_sha256(state) for state in different}) == len(different)
    # The same bytes in another order in memory are the same array.
    assert state_sha256({"x": np.asfortranarray(x.reshape(2, 3))}) == state_sha256(different[3])
    assert state_sha256({"x": jnp.asarray(x)}) == state_sha256(different[0])


def test_fingerprint_does_not_see_where_a_state_lives():
    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    state = {"x": jnp.arange(2 * len(devices)), "key": jax.random.split(jax.random.key(0), 8)}
    whole = jax.device_put(state, jax.NamedSharding(mesh, jax.P()))
    split = {**whole, "x": jax.device_put(state["x"], jax.NamedSharding(mesh, jax.P("data")))}
    assert state_sha256(state) == state_sha256(whole) == state_sha256(split)


def test_fingerprint_of_a_stacked_run_is_that_of_the_run_alone():
    keys = jax.random.split(jax.random.key(0), 3)
    states = [make_state(key) for key in keys]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    assert state_sha256_per_run(stacked, 3) == [state_sha256(state) for state in states]


def test_environment_tells_versions_and_no_place(tmp_path):
    found = environment()
    assert found["jax"] == jax.__version__
    assert found["device_count"] == jax.device_count()
    assert found["commit"] is None or len(found["commit"]) == 40
    text = json.dumps(found, allow_nan=False)
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text and str(Path(provenance.__file__).parents[2]) not in text


def test_commit_is_that_of_the_source_and_dirty_when_code_differs(tmp_path, monkeypatch):
    file = tmp_path / "paradigms" / "core" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(file))

    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    def told():
        found = environment()
        return found["commit"] is not None, found["dirty"]

    assert told() == (False, None)
    git("init")
    git("commit", "--allow-empty", "-m", "a")
    # An installed copy inside somebody else's checkout is not of their commit.
    assert told() == (False, None)
    git("add", ".")
    git("commit", "-m", "b")
    assert told() == (True, False)
    (tmp_path / "notes.txt").write_text("")
    assert told() == (True, False)
    file.write_text("# changed\n")
    assert told() == (True, True)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen on Linux alone")
def test_cores_are_those_that_this_process_may_use():
    usable = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(usable)})
        assert provenance.cpu_count() == environment()["cpu_count"] == 1
    finally:
        os.sched_setaffinity(0, usable)
    assert provenance.cpu_count() == len(usable)
