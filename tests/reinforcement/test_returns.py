"""Returns against hand-worked numbers, their definitions as sums, and where they must be zero."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigms.core.errors import InputError
from paradigms.reinforcement.returns import (
    discounted_returns,
    gae,
    lambda_returns,
    n_step_returns,
    vtrace,
)

DISCOUNT, TRACE = 0.9, 0.7
FLAGS = ("terminated", "truncated")


def rollout(seed=0, shape=(12, 2, 3), ends=0.2):
    """Random steps of episodes that end in every way; `v_t` is the next `v_tm1` but at the ends."""
    draw = np.random.default_rng(seed)
    terminated, truncated = draw.random((2, *shape)) < ends
    v_tm1, final = draw.normal(size=(2, *shape))
    v_t = np.where(terminated | truncated, final, np.roll(v_tm1, -1, axis=0))
    v_t[-1] = final[-1]
    arrays = {
        "r_t": draw.normal(size=shape),
        "v_tm1": v_tm1,
        "v_t": v_t,
        "ratio": draw.lognormal(size=shape),
    }
    arrays = {name: jnp.float32(array) for name, array in arrays.items()}
    return arrays | {"terminated": jnp.array(terminated), "truncated": jnp.array(truncated)}


def columns(steps):
    """Each column as float64 `[T]` arrays (flags as they are), with its place in the batch."""
    for place in np.ndindex(steps["r_t"].shape[1:]):
        column = {name: np.asarray(array)[:, *place] for name, array in steps.items()}
        yield place, {k: v if k in FLAGS else np.float64(v) for k, v in column.items()}


def take(steps, *names):
    return {name: steps[name] for name in (*names, *FLAGS)}


def run(name, steps, discount=DISCOUNT, trace=TRACE, **options):
    """The function called `name` on what it needs of `steps`."""
    match name:
        case "gae":
            return gae(**take(steps, "r_t", "v_tm1", "v_t"), discount=discount, trace=trace)
        case "lambda_returns":
            return lambda_returns(**take(steps, "r_t", "v_t"), discount=discount, trace=trace)
        case "n_step_returns":
            return n_step_returns(
                **take(steps, "r_t", "v_t"), discount=discount, **{"n": 3, **options}
            )
        case "vtrace":
            return vtrace(**steps, discount=discount, trace=trace, **options)


NAMES = ("gae", "lambda_returns", "n_step_returns", "vtrace")


def assert_close(result, expected, tolerance=1e-5):
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


# Known numbers.


def test_discounted_returns_by_hand():
    returns = discounted_returns(jnp.array([1.0, 0, 2, 5]), jnp.array([0.5, 0.5, 0.5, 0]), 7.0)
    np.testing.assert_array_equal(returns, [2.125, 2.25, 4.5, 5])
    returns = discounted_returns(jnp.ones((2, 2)), jnp.full((2, 2), 0.5), jnp.array([4.0, 8.0]))
    np.testing.assert_array_equal(returns, [[2.5, 3.5], [3, 5]])


@pytest.mark.parametrize(
    ("flag", "v_t", "expected"),
    [
        (None, (0.4, 0.3, 0.2), (2.4779859, 1.682069, 1.898)),
        ("truncated", (0.4, 0.6, 0.2), (1.078457, 0.194, 1.898)),
        ("terminated", (0.4, 0.6, 0.2), (0.5198, -0.4, 1.898)),
    ],
)
def test_gae_of_the_known_answers(flag, v_t, expected):
    flags = {name: jnp.array([False, name == flag, False]) for name in FLAGS}
    r_t, v_tm1, v_t = jnp.array([1.0, 0, 2]), jnp.array([0.5, 0.4, 0.3]), jnp.array(v_t)
    assert_close(gae(r_t, v_tm1, v_t, **flags, discount=0.99, trace=0.95), expected, 1e-6)


@pytest.mark.parametrize(
    ("options", "targets", "advantages"),
    [
        ({"rho_bar": 1.5}, (2.75, 2.5), (2.625, 1.5)),
        ({"rho_bar": 1.5, "trace": 0.5}, (2.375, 2.5), (2.625, 1.5)),
        ({"rho_bar": 1.5, "c_bar": 0.5}, (2.375, 2.5), (2.625, 1.5)),
        ({}, (2.25, 2.5), (1.75, 1.5)),
    ],
)
def test_vtrace_by_hand(options, targets, advantages):
    arrays = [jnp.array(row) for row in ((1.0, 2), (0.5, 1), (1.0, 4), (2.0, 0.5))]
    never = jnp.zeros(2, bool)
    result = vtrace(*arrays, never, never, 0.5, **options)
    assert_close(result, (targets, advantages), 1e-6)


def probe(length, v_a=-1.0, v_b=10.0):
    """A, of every reset, costs 10 and leads to B, which pays 1 and stays; cut after 5 steps."""
    in_a = np.arange(length) % 5 == 0
    steps = {
        "r_t": np.where(in_a, -10.0, 1.0),
        "v_tm1": np.where(in_a, v_a, v_b),
        "v_t": np.full(length, v_b),
        "ratio": np.linspace(0.2, 3, length),
    }
    steps = {name: jnp.float32(array) for name, array in steps.items()}
    truncated = jnp.arange(length) % 5 == 4
    return steps | {"terminated": jnp.zeros(length, bool), "truncated": truncated}


@pytest.mark.parametrize("length", [10, 13])
@pytest.mark.parametrize("trace", [0.0, TRACE, 1.0])
def test_true_values_of_the_truncation_probe_stay(length, trace):
    steps = probe(length)
    call = partial(run, steps=steps, trace=trace)
    targets, advantages = call("vtrace")
    for result in (targets, call("lambda_returns"), call("n_step_returns")):
        assert_close(result, steps["v_tm1"])
    for result in (advantages, call("gae")):
        assert_close(result, np.zeros(length))


def test_a_time_limit_taken_for_an_end_misjudges_the_probe_as_known():
    wrong = 1 / 0.325
    for trace, known in ((0.0, wrong), (1.0, 2.26225)):
        steps = probe(10, v_b=wrong)
        steps["terminated"] = steps.pop("truncated")
        steps["truncated"] = jnp.zeros(10, bool)
        in_b = np.arange(10) % 5 > 0
        assert_close(run("lambda_returns", steps, trace=trace)[in_b].mean(), known)
        n_step = run("n_step_returns", steps, n=1 if trace == 0 else 5)
        assert_close(n_step[in_b].mean(), known)


# The definitions, as forward sums in float64, one column and one row at a time.


def episode_rows(column, t, most=None):
    """The rows from `t` to the end of its episode or of the array, at most `most`."""
    rows = [t]
    while rows[-1] + 1 < len(column["r_t"]) and len(rows) != most:
        if column["terminated"][rows[-1]] or column["truncated"][rows[-1]]:
            break
        rows.append(rows[-1] + 1)
    return rows


def bootstrap(column, row):
    return 0.0 if column["terminated"][row] else column["v_t"][row]


def n_step_sum(column, t, n):
    rows = episode_rows(column, t, n)
    rewards = sum(DISCOUNT**i * column["r_t"][row] for i, row in enumerate(rows))
    return rewards + DISCOUNT ** len(rows) * bootstrap(column, rows[-1])


def lambda_sum(column, t, trace=TRACE):
    most = len(episode_rows(column, t))
    mixed = sum(trace ** (n - 1) * n_step_sum(column, t, n) for n in range(1, most))
    return (1 - trace) * mixed + trace ** (most - 1) * n_step_sum(column, t, most)


def td_error(column, row):
    return column["r_t"][row] + DISCOUNT * bootstrap(column, row) - column["v_tm1"][row]


def gae_sum(column, t):
    rows = enumerate(episode_rows(column, t))
    return sum((DISCOUNT * TRACE) ** i * td_error(column, row) for i, row in rows)


RHO_BAR, C_BAR = 1.7, 0.8


def vtrace_sum(column, t):
    target, factor = column["v_tm1"][t], 1.0
    for row in episode_rows(column, t):
        target += factor * min(RHO_BAR, column["ratio"][row]) * td_error(column, row)
        factor *= DISCOUNT * TRACE * min(C_BAR, column["ratio"][row])
    return target


def vtrace_advantage(column, t):
    if len(episode_rows(column, t)) > 1:
        following = vtrace_sum(column, t + 1)
    else:
        following = bootstrap(column, t)
    error = column["r_t"][t] + DISCOUNT * following - column["v_tm1"][t]
    return min(RHO_BAR, column["ratio"][t]) * error


def assert_is_the_sum(result, steps, definition):
    assert result.shape == steps["r_t"].shape
    for place, column in columns(steps):
        expected = [definition(column, t) for t in range(len(result))]
        assert_close(np.asarray(result)[:, *place], expected)


def test_the_rollout_ends_in_every_way():
    steps = rollout()
    terminated, truncated = np.asarray(steps["terminated"]), np.asarray(steps["truncated"])
    for kind in (terminated & ~truncated, truncated & ~terminated, terminated & truncated):
        assert kind[:-1].any()
    for kind in (terminated & ~truncated, truncated & ~terminated, ~terminated & ~truncated):
        assert kind[-1].any()


def test_discounted_returns_are_the_sum():
    draw = np.random.default_rng(1)
    reward, discount, last = draw.normal(size=(6, 3)), draw.random((6, 3)), draw.normal(size=3)
    expected = np.stack(
        [
            sum(discount[t:k].prod(0) * reward[k] for k in range(t, 6))
            + discount[t:].prod(0) * last
            for t in range(6)
        ]
    )
    assert_close(discounted_returns(*map(jnp.float32, (reward, discount, last))), expected)


def test_gae_is_the_sum():
    steps = rollout()
    assert_is_the_sum(run("gae", steps), steps, gae_sum)


def test_lambda_returns_are_the_mixture_of_n_step_returns():
    steps = rollout()
    assert_is_the_sum(run("lambda_returns", steps), steps, lambda_sum)


@pytest.mark.parametrize("n", [1, 2, 4, 12, 50])
def test_n_step_returns_are_the_sum(n):
    for steps in (rollout(), rollout(shape=(12,), ends=0.0)):
        assert_is_the_sum(run("n_step_returns", steps, n=n), steps, partial(n_step_sum, n=n))


def test_vtrace_is_the_sum():
    steps = rollout()
    targets, advantages = run("vtrace", steps, rho_bar=RHO_BAR, c_bar=C_BAR)
    assert_is_the_sum(targets, steps, vtrace_sum)
    assert_is_the_sum(advantages, steps, vtrace_advantage)


# Limits, and what is the same by two roads.


def test_without_a_trace_only_one_step_counts():
    steps = rollout()
    one_step = run("n_step_returns", steps, n=1)
    error = one_step - steps["v_tm1"]
    assert_close(run("lambda_returns", steps, trace=0.0), one_step, 1e-6)
    assert_close(run("gae", steps, trace=0.0), error, 1e-6)
    targets, _ = run("vtrace", steps, trace=0.0)
    assert_close(targets, steps["v_tm1"] + jnp.minimum(1, steps["ratio"]) * error, 1e-6)


def test_with_a_full_trace_the_whole_episode_counts():
    steps = rollout()
    ended = steps["terminated"] | steps["truncated"]
    ended = ended.at[-1].set(True)
    last = ended * DISCOUNT * jnp.where(steps["terminated"], 0.0, steps["v_t"])
    monte_carlo = discounted_returns(steps["r_t"] + last, DISCOUNT * ~ended)
    assert_close(run("lambda_returns", steps, trace=1.0), monte_carlo)
    assert_close(run("n_step_returns", steps, n=12), monte_carlo)
    assert_close(run("gae", steps, trace=1.0), monte_carlo - steps["v_tm1"])


@pytest.mark.parametrize("trace", [0.0, TRACE, 1.0])
def test_gae_and_on_policy_vtrace_are_lambda_returns(trace):
    steps = rollout()
    returns = run("lambda_returns", steps, trace=trace)
    assert_close(run("gae", steps, trace=trace) + steps["v_tm1"], returns)
    steps["ratio"] = jnp.ones_like(steps["ratio"])
    targets, advantages = run("vtrace", steps, trace=trace)
    assert_close(targets, returns)
    if trace == 1:
        assert_close(advantages, run("gae", steps, trace=trace))


def test_vtrace_learns_nothing_from_impossible_actions():
    steps = rollout()
    steps["ratio"] = jnp.zeros_like(steps["ratio"])
    targets, advantages = run("vtrace", steps)
    np.testing.assert_array_equal(targets, steps["v_tm1"])
    np.testing.assert_array_equal(advantages, jnp.zeros_like(advantages))


# What must not reach back.


@pytest.mark.parametrize("name", NAMES)
def test_nothing_reaches_back_over_an_end(name):
    steps = rollout(shape=(8,), ends=0.0)
    steps["terminated"] = steps["terminated"].at[2].set(True)
    steps["truncated"] = steps["truncated"].at[5].set(True)
    episode = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    t, s = np.mgrid[:8, :8]
    reached = (episode[t] == episode[s]) & (s >= t)

    def jacobians(argument):
        results = jax.jacrev(lambda array: run(name, {**steps, argument: array}))(steps[argument])
        return [np.asarray(jacobian) for jacobian in jax.tree.leaves(results)]

    for by_reward in jacobians("r_t"):
        np.testing.assert_array_equal(by_reward != 0, reached)
    for by_value in jacobians("v_t"):
        assert not by_value[~reached].any()
        assert not by_value[:, 2].any()  # nothing follows a terminated step
        assert by_value[5, 5] and by_value[7, 7]


@pytest.mark.parametrize("name", NAMES)
def test_the_value_after_a_terminated_step_may_be_anything(name):
    steps = rollout()
    spoilt = {**steps, "v_t": jnp.where(steps["terminated"], jnp.nan, steps["v_t"])}
    for result, expected in zip(
        *map(jax.tree.leaves, (run(name, spoilt), run(name, steps))), strict=True
    ):
        np.testing.assert_array_equal(result, expected)


# What JAX does to them.


@pytest.mark.parametrize("name", NAMES)
def test_columns_together_are_columns_apart(name):
    steps = rollout()
    together = run(name, steps)
    mapped = partial(jax.vmap, in_axes=-1, out_axes=-1)
    apart = jax.jit(mapped(mapped(partial(run, name))))(steps)
    for first, second in zip(*map(jax.tree.leaves, (together, apart)), strict=True):
        assert_close(first, second, 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_hyperparameters_may_be_swept(name):
    steps, grid = rollout(), {"discount": jnp.array([0.0, 0.5, 1.0]), "trace": jnp.array([1, 0, 1])}
    if name == "vtrace":
        grid |= {"rho_bar": jnp.array([1.0, 2.0, jnp.inf]), "c_bar": jnp.array([0.5, 1.0, 3.0])}
    swept = jax.jit(jax.vmap(lambda point: run(name, steps, **point)))(grid)
    for i in range(3):
        single = run(name, steps, **{key: float(values[i]) for key, values in grid.items()})
        for first, second in zip(*map(jax.tree.leaves, (swept, single)), strict=True):
            assert_close(first[i], second, 1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["int32", "bfloat16"])
def test_results_are_float32(name, dtype):
    steps = rollout()
    steps = {key: array if key in FLAGS else array.astype(dtype) for key, array in steps.items()}
    expected = run(name, {k: v if k in FLAGS else jnp.float32(v) for k, v in steps.items()})
    for result, exact in zip(*map(jax.tree.leaves, (run(name, steps), expected)), strict=True):
        assert result.dtype == jnp.float32 and not result.weak_type
        np.testing.assert_array_equal(result, exact)


# What is refused.


def bad(name, **changes):
    """A call on a rollout of which `changes` are made."""
    options = {key: changes.pop(key) for key in ("n", "discount", "trace") if key in changes}
    return lambda: run(name, {**rollout(), **changes}, **options)


SHORT = jnp.zeros((11, 2, 3))
# A missing last axis would broadcast.
FLAT = jnp.zeros((12, 1, 3), bool)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (bad("gae", v_tm1=SHORT), "gae: v_tm1 has shape (11, 2, 3) and r_t (12, 2, 3)"),
        (bad("gae", truncated=FLAT), "gae: truncated has shape (12, 1, 3)"),
        (bad("gae", trace=jnp.ones(3)), "gae: trace has shape (3,)"),
        (bad("lambda_returns", v_t=SHORT), "lambda_returns: v_t has shape"),
        (bad("lambda_returns", discount=jnp.ones(3)), "lambda_returns: discount has shape (3,)"),
        (bad("lambda_returns", truncated=jnp.zeros((12, 2, 3))), "truncated is float32"),
        (bad("n_step_returns", terminated=FLAT), "n_step_returns: terminated has shape"),
        (bad("n_step_returns", discount=jnp.ones(3)), "n_step_returns: discount has shape (3,)"),
        (bad("n_step_returns", n=0), "n is 0: expected"),
        (bad("n_step_returns", n=2.0), "n is 2.0: expected"),
        (lambda: jax.jit(lambda n: bad("n_step_returns", n=n)())(2), "expected a Python int"),
        (bad("vtrace", ratio=SHORT), "vtrace: ratio has shape"),
        (bad("vtrace", discount=jnp.ones(3)), "vtrace: discount has shape (3,)"),
        (lambda: run("vtrace", rollout(), c_bar=jnp.ones(3)), "vtrace: c_bar has shape (3,)"),
        (lambda: discounted_returns(jnp.ones(3), jnp.ones(2)), "discount_t has shape (2,)"),
        (lambda: discounted_returns(jnp.ones(3), jnp.ones(3), jnp.ones(3)), "bootstrap has shape"),
        (lambda: discounted_returns(jnp.ones(()), jnp.ones(())), "r_t has shape ()"),
        (lambda: discounted_returns(jnp.ones((0, 2)), jnp.ones((0, 2))), "T at least 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
