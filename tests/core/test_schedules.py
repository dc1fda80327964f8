"""Schedules against known points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigms.core import schedules
from paradigms.core.errors import InputError


@pytest.mark.parametrize(
    ("schedule", "steps", "values"),
    [
        (
            schedules.warmup_cosine(1.0, 110, warmup_steps=10),
            [0, 5, 10, 60, 110, 500],
            [0, 0.5, 1, 0.5, 0, 0],
        ),
        (schedules.warmup_cosine(1.0, 100, end=0.2), [0, 50, 100, 200], [1, 0.6, 0.2, 0.2]),
        (
            schedules.warmup_linear(1.0, 110, warmup_steps=10, end=0.5),
            [0, 5, 10, 60, 110, 200],
            [0, 0.5, 1, 0.75, 0.5, 0.5],
        ),
        (schedules.step_decay(1.0, [3, 6], 0.1), [0, 2, 3, 5, 6, 9], [1, 1, 0.1, 0.1, 0.01, 0.01]),
        (
            schedules.one_cycle(2.0, 100, start=0.4, end=0.14, peak_at=0.23),
            [0, 23, 100, 150],
            [0.4, 2.0, 0.14, 0.14],
        ),
        (schedules.cosine_arc(1.0, 100), [0, 50, 100], [1, 0.77301, 0.19509]),
        (schedules.ramp_up(2.0, 100), [0, 50, 100, 900], [2 * 0.0067379, 2 * 0.2865048, 2, 2]),
        (schedules.constant(0.3), [0, 7], [0.3, 0.3]),
        # The rate of round k of K is 1 - k / K, whatever the updates of a round.
        (
            schedules.held(schedules.warmup_linear(1.0, 4), 3),
            [0, 2, 3, 8, 11, 12],
            [1, 1, 0.75, 0.5, 0.25, 0],
        ),
    ],
    ids=[
        "warmup_cosine",
        "end",
        "warmup_linear",
        "step_decay",
        "one_cycle",
        "cosine_arc",
        "ramp_up",
        "constant",
        "held",
    ],
)
def test_known_points(schedule, steps, values):
    np.testing.assert_allclose([schedule(step) for step in steps], values, atol=1e-5)
    many = jax.jit(jax.vmap(schedule))(jnp.array(steps))
    np.testing.assert_allclose(many, values, atol=1e-5)


def test_the_last_step_of_a_cosine():
    np.testing.assert_allclose(schedules.warmup_cosine(1.0, 100)(99), 2.467e-4, rtol=1e-3)


def test_the_triangle_is_interpolation_at_every_step():
    schedule = schedules.one_cycle(1.0, 200, start=0.2, end=0.07, peak_at=0.23)
    expected = np.interp(np.arange(201), [0, 46, 200], [0.2, 1, 0.07])
    np.testing.assert_allclose([schedule(step) for step in range(201)], expected, atol=1e-6)


def test_schedules_take_a_traced_peak():
    makes = [
        lambda peak: schedules.warmup_cosine(peak, 20, warmup_steps=4, end=0.1 * peak),
        lambda peak: schedules.warmup_linear(peak, 20, warmup_steps=4),
        lambda peak: schedules.one_cycle(peak, 20, start=0.2 * peak, end=0.07 * peak, peak_at=0.3),
        lambda peak: schedules.step_decay(peak, [5, 9]),
        lambda peak: schedules.cosine_arc(peak, 20),
        schedules.constant,
    ]
    for make in makes:
        traced = jax.jit(lambda peak, step, make=make: make(peak)(step))
        for step in (0, 3, 4, 9, 20):
            np.testing.assert_allclose(traced(0.5, step), make(0.5)(step), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: schedules.warmup_cosine(1.0, 10, warmup_steps=10),
            "warmup_steps .* steps - 1 = 9",
        ),
        (lambda: schedules.warmup_linear(1.0, 10, warmup_steps=-1), "warmup_steps"),
        (lambda: schedules.warmup_cosine(1.0, 0), "steps must be"),
        (lambda: schedules.warmup_cosine(-1.0, 10), "peak"),
        (lambda: schedules.one_cycle(1.0, 10, peak_at=1.0), "peak_at"),
        (lambda: schedules.one_cycle(1.0, 10, peak_at=0.01), "peak_at"),
        (lambda: schedules.step_decay(1.0, [6, 3]), "boundaries"),
        (lambda: schedules.step_decay(1.0, [3], 0.0), "factor"),
        (lambda: schedules.cosine_arc(1.0, 10, 0.7), "arc"),
        (lambda: schedules.constant(-1.0), "value"),
        (lambda: schedules.held(schedules.constant(1.0), 0), "held"),
        (lambda: schedules.ramp_up(1.0, 0), "steps"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
