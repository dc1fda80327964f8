"""Traces hold the dispatches that were asked for, and waiting is told from work."""

import gzip
import json
import time

import jax
import jax.numpy as jnp
import optax
import pytest

from paradigms.core import loop
from paradigms.core.learner import minimise
from paradigms.core.loop import Every, fit
from paradigms.core.metrics import Mean
from paradigms.core.profiling import HostWait, Profile
from paradigms.core.transforms import repeated


def learner(work=1):
    """Some products of matrices, of which `work` tells how many."""

    def loss(params, state, batch):
        start = jnp.full((300, 300), 1e-3)
        x = jax.lax.fori_loop(0, work, lambda _, x: jnp.tanh(x @ x + params), start)
        mean = Mean.of(x)
        return mean.value(), ({"loss": mean}, {})

    return minimise(
        loss,
        optax.sgd(1e-3),
        init=lambda key, batch: (jnp.zeros(300), {}),
        evaluate=lambda state, batch, key: {},
    )


def fitted(n, steps, work=1, source=lambda step, n: (), **options):
    fused = repeated(learner(work), n)
    state = jax.jit(fused.init)(jax.random.key(0), ())
    return fit(fused, state, source, steps=steps, steps_per_call=n, **options)


def traced(directory):
    """The first steps of the dispatches in each trace."""
    found = []
    # Not the other file: reading that with `jax.profiler.ProfileData` of jax 0.11 ends the process.
    for path in sorted(directory.rglob("*.trace.json.gz")):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        updates = [event for event in events if event.get("name") == "update"]
        updates.sort(key=lambda event: event["ts"])
        found.append([int(event["args"]["step_num"]) for event in updates])
    return found


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(4, 8, [4, 6]), (5, 6, [4]), (5, 7, [4, 6]), (0, 1, [0]), (9, 12, [8, 10])],
)
def test_a_trace_covers_the_whole_dispatches_with_its_updates(tmp_path, first, last, expected):
    with Profile(first, last, tmp_path) as profile:
        fitted(2, 12, profile=profile)
        assert traced(tmp_path) == [expected]  # and had ended before the context did


def test_a_loop_that_is_broken_off_ends_its_trace(tmp_path):
    def interrupt(step, metrics, state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Profile(2, 12, tmp_path) as profile:
        fitted(2, 12, profile=profile, callbacks=[Every(6, interrupt)])
    assert traced(tmp_path) == [[2, 4]]
    with Profile(0, 2, tmp_path / "again") as profile:  # jax allows one at a time
        fitted(2, 4, profile=profile)
    assert traced(tmp_path / "again") == [[0]]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


def test_waiting_is_counted_from_a_fetch_to_the_next_dispatch():
    clock = Clock()
    wait = HostWait(clock)
    clock.passes(1)
    wait.dispatches(last_is_ready=True)
    assert wait.seconds == 1
    clock.passes(10)
    wait.fetched()
    clock.passes(2)  # a callback
    wait.dispatches(last_is_ready=True)
    assert wait.seconds == 3
    clock.passes(4)  # the source, while the device works
    wait.dispatches(last_is_ready=False)
    assert wait.seconds == 3
    clock.passes(16)
    wait.fetched()
    clock.passes(5)  # the last callback
    wait.fetched()  # nothing new
    wait.ends()
    assert wait.seconds == 8


def test_a_source_slower_than_the_device_keeps_it_waiting_for_the_difference():
    clock = Clock()
    wait = HostWait(clock)
    for _ in range(2):  # two seconds of work, with and without a line before it
        wait.dispatches(last_is_ready=True)
        clock.passes(2)
        wait.fetched()
    wait.dispatches(last_is_ready=True)
    for _ in range(3):
        clock.passes(7)
        wait.dispatches(last_is_ready=True)
    assert wait.seconds == 3 * (7 - 2)


def test_fit_tells_waiting_from_work(monkeypatch):
    def late(step, n):
        time.sleep(0.05)
        return ()

    monkeypatch.setattr(loop, "_SECONDS_BETWEEN_FETCHES", 0.1)  # so that a short run times some
    waiting = fitted(1, 10, source=late)
    assert 0.5 < waiting.host_seconds / waiting.train_seconds <= 1
    # A callback is waited for from the first to the last moment.
    slow = fitted(2, 4, callbacks=[Every(2, lambda *_: time.sleep(0.1))])
    assert 0.2 < slow.host_seconds < slow.train_seconds
    working = fitted(1, 8, work=60)
    assert working.host_seconds / working.train_seconds < 0.3
