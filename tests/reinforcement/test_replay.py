import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.extend.core import jaxprs_in_params

from paradigms.core.errors import InputError
from paradigms.reinforcement import replay as replays
from paradigms.reinforcement.replay import importance_weights

KEY = jax.random.key(0)
DISCOUNT = 0.9


def compiled(replay):
    """The same memory, a function at a time: much quicker than one operation at a time."""
    return replay._replace(
        init=jax.jit(replay.init),
        add=jax.jit(replay.add),
        size=jax.jit(replay.size),
        sample=jax.jit(replay.sample, static_argnums=2),
        update=jax.jit(replay.update),
    )


def uniform_replay(*args, **options):
    return compiled(replays.uniform_replay(*args, **options))


def prioritised_replay(*args, **options):
    return compiled(replays.prioritised_replay(*args, **options))


MAKERS = pytest.mark.parametrize("make", [uniform_replay, prioritised_replay])


class History:
    """Everything that happened, kept for ever: what a memory must agree with.

    An observation is (environment, episode, position), and an action is the number of its
    transition, `time * environments + environment`, so that every row tells where it came from.
    """

    def __init__(self, environments, ends=0.3):
        self.environments, self.ends = environments, ends
        self.draw = np.random.default_rng(environments)
        self.steps = []
        self.now = [(environment, 0, 0) for environment in range(environments)]

    def roll(self, length):
        """The next trajectory."""
        for _ in range(length):
            kind = self.draw.choice(3, self.environments, p=[1 - self.ends, *[self.ends / 2] * 2])
            after = [(environment, episode, at + 1) for environment, episode, at in self.now]
            self.steps.append(
                {
                    "obs": np.array(self.now, np.int32),
                    "action": len(self.steps) * self.environments
                    + np.arange(self.environments, dtype=np.int32),
                    "reward": self.draw.normal(size=self.environments).astype(np.float32),
                    "terminated": kind == 1,
                    "truncated": kind == 2,
                    "final_obs": np.array(after, np.int32),
                }
            )
            self.now = [
                (place[0], place[1] + 1, 0) if ended else place
                for place, ended in zip(after, kind > 0, strict=True)
            ]
        return jax.tree.map(lambda *rows: np.stack(rows), *self.steps[-length:])

    def starts(self, slots, n_step):
        """The transitions that a sample may start at."""
        times = range(max(0, len(self.steps) - slots), len(self.steps) - n_step + 1)
        return [t * self.environments + e for t in times for e in range(self.environments)]

    def transition(self, start, slots, n_step):
        """The sample that starts at transition `start`, by walking on from there."""
        time, environment = divmod(start, self.environments)
        reward, factor = 0.0, 1.0
        for step in self.steps[time : time + n_step]:
            reward += factor * step["reward"][environment]
            factor *= DISCOUNT
            if step["terminated"][environment]:
                factor = 0.0
            if step["terminated"][environment] or step["truncated"][environment]:
                break
        return {
            "obs": self.steps[time]["obs"][environment],
            "action": start,
            "reward": reward,
            "discount": factor,
            "next_obs": step["final_obs"][environment],
            "index": time % slots * self.environments + environment,
        }


@partial(jax.jit, static_argnums=(0, 2, 3))
def batches(replay, memory, count, batch_size):
    keys = jax.random.split(KEY, count)
    # A loop compiles in half the time that vmap takes.
    return jax.lax.map(lambda key: replay.sample(memory, key, batch_size, DISCOUNT), keys)


def draws(replay, memory, count, batch_size):
    """The rows of `count` batches, in numpy."""
    drawn = batches(replay, memory, count, batch_size)
    return {name: np.concatenate(np.asarray(rows)) for name, rows in drawn.items()}


def example(length=4, environments=2, **arrays):
    return {**History(environments).roll(length), **arrays}


# Eight transitions of one environment. What is drawn does not depend on alpha, only writing does.
EIGHT = prioritised_replay(8, alpha=0.5)


@jax.jit
def full(priorities, alpha):
    """A memory for `EIGHT` with these priorities."""
    replay, trajectory = replays.prioritised_replay(8, alpha=alpha), example(8, 1)
    memory = replay.add(replay.init(trajectory), trajectory)
    return replay.update(memory, jnp.arange(8), priorities)


def leaves(memory):
    return np.asarray(memory.tree[0]).ravel()


@MAKERS
@pytest.mark.parametrize(
    ("slots", "environments", "length", "n_step"),
    [(7, 3, 3, 1), (5, 2, 5, 5), (8, 1, 1, 3)],
)
def test_samples_are_what_happened_over_many_wraps(make, slots, environments, length, n_step):
    replay, history = make(slots * environments, n_step=n_step), History(environments)
    memory = replay.init(example(length, environments))
    for _ in range(6 * slots // length + 2):
        memory = replay.add(memory, history.roll(length))
        starts = history.starts(slots, n_step)
        assert replay.size(memory) == len(starts)
        batch = draws(replay, memory, 30, slots * environments)
        if not starts:
            assert (batch["index"] == 0).all() and (batch["mass"] == 0).all()
            continue
        # All that may be drawn, and nothing else.
        assert set(batch["action"]) == set(starts)
        assert (batch["mass"] == 1).all()
        # An end only ever joins the episode that began.
        np.testing.assert_array_equal(batch["obs"][:, :2], batch["next_obs"][:, :2])
        table = [history.transition(start, slots, n_step) for start in batch["action"]]
        for name in table[0]:
            expected = np.stack([row[name] for row in table])
            np.testing.assert_allclose(batch[name], expected, rtol=1e-5, atol=1e-6)


@MAKERS
def test_returns_and_true_lengths_by_hand(make):
    time = np.arange(8)[:, None]
    trajectory = {
        "obs": time,
        "action": time,
        "reward": np.float32(2) ** time,
        "terminated": time == 2,
        "truncated": time == 5,
        "final_obs": 100 + time,
    }
    replay = make(8, n_step=3)
    memory = replay.add(replay.init(trajectory), trajectory)
    batch = replay.sample(memory, KEY, 8, 0.5)
    for key in range(1, 10):
        more = replay.sample(memory, jax.random.key(key), 8, 0.5)
        batch = {name: np.concatenate([batch[name], more[name]]) for name in batch}
    table = {
        0: (1 + 1 + 1, 0, 102),
        1: (2 + 2, 0, 102),
        2: (4, 0, 102),
        3: (8 + 8 + 8, 0.125, 105),
        4: (16 + 16, 0.25, 105),
        5: (32, 0.5, 105),
        # 6 and 7 have too little behind them.
    }
    assert set(batch["obs"]) == set(table)
    for obs, *row in zip(
        *(batch[x] for x in ("obs", "reward", "discount", "next_obs")), strict=True
    ):
        assert tuple(row) == table[obs]


def test_uniform_over_the_valid_starts():
    slots, environments, n_step = 9, 2, 3
    replay = uniform_replay(slots * environments, n_step=n_step)
    for lengths in ([5], [9, 9, 4]):
        memory, history = replay.init(example(1, environments)), History(environments)
        for length in lengths:
            memory = replay.add(memory, history.roll(length))
        _, counts = np.unique(draws(replay, memory, 500, 16)["action"], return_counts=True)
        assert len(counts) == len(history.starts(slots, n_step))
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


PRIORITIES = np.array([0.1, 3.0, 0.5, 1.0, 7.0, 0.02, 2.0, 0.3])


def test_drawn_in_proportion_to_the_power_of_the_priority():
    for alpha in (0.0, 0.6, 1.0):
        # Batches of one, for strata would make the counts more even than independent draws.
        index = draws(EIGHT, full(PRIORITIES, alpha), 20_000, 1)["index"]
        expected = 20_000 * PRIORITIES**alpha / (PRIORITIES**alpha).sum()
        assert scipy.stats.chisquare(np.bincount(index, minlength=8), expected).pvalue > 1e-3


def test_every_draw_comes_from_its_own_stratum():
    index = draws(EIGHT, full(PRIORITIES, 1.0), 200, 8)["index"].reshape(200, 8)
    bounds = np.cumsum([0, *PRIORITIES]) / PRIORITIES.sum()
    stratum = np.arange(8) / 8
    assert (bounds[index] <= stratum + 1 / 8 + 1e-5).all()
    assert (bounds[index + 1] >= stratum - 1e-5).all()


def test_mass_is_only_where_a_sample_may_start():
    slots, environments, n_step = 6, 3, 3
    replay, history = prioritised_replay(18, n_step=n_step), History(3)
    memory = replay.init(example(1, environments))
    for turn, length in enumerate([1, 1, 1, 1, 1, 5, 6, 5, 1, 1, 5, 1]):
        memory = replay.add(memory, history.roll(length))
        starts = history.starts(slots, n_step)
        allowed = np.isin(np.arange(24), [start % 18 for start in starts])
        np.testing.assert_array_equal(leaves(memory) > 0, allowed)
        # Whatever priorities come, none wakes a transition that must sleep.
        memory = replay.update(memory, jnp.arange(18), jnp.full(18, 1.0 + turn))
        np.testing.assert_array_equal(leaves(memory) > 0, allowed)


def test_rounding_never_walks_off_the_last_mass(monkeypatch):
    # Transition 3 is the last that has any mass, and the draw is the largest there could be.
    memory = full(np.ones(8), 1.0)._replace(tree=(jnp.array([[1.0] * 4 + [0.0] * 4]),))
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.ones(shape))
    sample = prioritised_replay(8).sample
    np.testing.assert_array_equal(sample(memory, KEY, 2, 1.0)["index"], [2, 3])


def test_new_steps_get_the_largest_priority_seen_and_are_drawn():
    memory = full(np.array([0.5, 4.0, 0.25, 1.0, 0.5, 0.5, 0.5, 0.5]), 0.5)
    assert memory.largest == pytest.approx(4)
    # It stays the largest seen after it is no longer there.
    memory = EIGHT.update(memory, jnp.arange(8), jnp.full(8, 0.01))
    assert memory.largest == pytest.approx(4)
    memory = EIGHT.add(memory, example(3, 1))
    np.testing.assert_allclose(leaves(memory)[:3], 2, rtol=1e-6)
    # Each of the three covers a whole stratum, so no batch goes without it.
    index = draws(EIGHT, memory, 200, 8)["index"].reshape(200, 8)
    assert all({0, 1, 2} <= set(batch) for batch in index)


def test_a_priority_of_zero_is_drawn_again():
    memory = full(np.zeros(8), 1.0)
    np.testing.assert_allclose(leaves(memory), 1e-6)
    assert set(draws(EIGHT, memory, 200, 8)["index"]) == set(range(8))


def test_a_repeated_index_keeps_the_larger_priority():
    memory = full(np.full(8, 9.0), 0.5)
    index = np.array([1, 4, 1, 2, 4, 1])
    priority = np.array([0.25, 1.0, 4.0, 9.0, 0.01, 1.0])
    for order in np.random.default_rng(0).permuted(np.tile(np.arange(6), (5, 1)), axis=1):
        updated = EIGHT.update(memory, index[order], priority[order])
        np.testing.assert_allclose(leaves(updated), [3, 2, 3, 3, 1, 3, 3, 3], rtol=1e-4)
        assert updated.tree[-1].sum() == pytest.approx(21, rel=1e-4)


def test_a_negative_priority_leaves_that_of_the_memory_alone():
    memory = full(PRIORITIES, 1.0)
    np.testing.assert_array_equal(
        EIGHT.update(memory, jnp.arange(8), jnp.full(8, -1.0)).tree[0], memory.tree[0]
    )
    updated = EIGHT.update(memory, jnp.array([1, 4, 7, 4]), jnp.array([-1.0, 2.0, -1.0, -1.0]))
    masses = PRIORITIES.copy()
    masses[4] = 2.0**0.5
    np.testing.assert_allclose(leaves(updated)[[4]], masses[4], rtol=1e-4)
    np.testing.assert_array_equal(np.delete(leaves(updated), 4), np.delete(leaves(memory), 4))
    assert updated.tree[-1].sum() == pytest.approx(masses.sum(), rel=1e-4)
    assert updated.largest == memory.largest


def test_every_node_is_the_sum_of_its_children_after_many_writes():
    replay = prioritised_replay(600, n_step=2)
    trajectory = jax.tree.map(jnp.asarray, example(2, 6))

    @jax.jit
    def run(memory):
        def turn(memory, key):
            index_key, priority_key = jax.random.split(key)
            memory = replay.add(memory, trajectory)
            index = jax.random.randint(index_key, (100,), 0, 600)
            priority = jnp.exp(4 * jax.random.normal(priority_key, (100,)))
            return replay.update(memory, index, priority), None

        return jax.lax.scan(turn, memory, jax.random.split(KEY, 1000))[0]

    memory = run(replay.init(trajectory))
    assert [len(level) for level in memory.tree] == [75, 10, 2, 1]
    assert (leaves(memory) > 0).sum() == replay.size(memory) == 594
    for below, above in itertools.pairwise(memory.tree):
        sums, beyond = np.split(np.ravel(above), [len(below)])
        np.testing.assert_allclose(sums, below.sum(1), rtol=1e-6)
        assert not beyond.any()


def test_importance_weights_by_hand():
    # Probabilities of 1/2, 1/4, 1/8 and 1/8, hence (4 P) ** -1 of 1/2, 1, 2 and 2.
    weights = jax.jit(importance_weights)
    np.testing.assert_allclose(weights(jnp.array([4.0, 2, 1, 1]), 1.0), [0.25, 0.5, 1, 1])
    np.testing.assert_allclose(weights(jnp.array([4.0, 2, 2]), 1.0), [0.5, 1, 1])
    np.testing.assert_allclose(weights(jnp.array([4.0, 2, 1, 1]), 0.5), [0.5, 0.5**0.5, 1, 1])
    np.testing.assert_allclose(weights(jnp.array([4.0, 1]), 0.0), [1, 1])
    np.testing.assert_allclose(weights(jnp.array([3.0, 3, 3]), 0.7), [1, 1, 1])
    np.testing.assert_allclose(weights(jnp.zeros(3), 0.7), [0, 0, 0])
    # And from what is drawn, by the formula.
    batch = draws(EIGHT, full(PRIORITIES, 0.6), 1, 8)
    probability = PRIORITIES**0.6 / (PRIORITIES**0.6).sum()
    expected = (8 * probability[batch["index"]]) ** -0.4
    np.testing.assert_allclose(weights(batch["mass"], 0.4), expected / expected.max(), rtol=1e-4)


@MAKERS
def test_an_empty_memory_gives_slot_zero_and_forgets_what_is_learned_from_it(make):
    replay = make(8, n_step=2)
    memory = replay.init(example())
    batch = replay.sample(memory, KEY, 8, DISCOUNT)
    assert replay.size(memory) == 0
    assert all((rows == 0).all() for name, rows in batch.items() if name != "discount")
    after = replay.update(memory, batch["index"], jnp.full(8, 100.0))
    jax.tree.map(np.testing.assert_array_equal, after, memory)


@MAKERS
def test_dtypes_stay_and_only_the_arrays_of_the_example_are_stored(make):
    given = example(log_prob=np.zeros((4, 2), np.float16))
    # NumPy's float64 becomes float32, as it does on the device.
    given |= {name: np.arange(48, dtype=np.uint8).reshape(4, 2, 6) for name in ("obs", "final_obs")}
    given |= {"reward": given["reward"].astype(np.float64)}
    replay = make(8)
    memory = replay.init(given)
    after = jax.jit(replay.add)(memory, {**given, "value": np.zeros((4, 2))})
    forms = [
        jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype), leaf.weak_type), tree)
        for tree in (memory, after, replay.update(after, jnp.arange(3), jnp.ones(3)))
    ]
    assert forms[0] == forms[1] == forms[2]
    batch = replay.sample(after, KEY, 5, DISCOUNT)
    dtypes = {name: str(rows.dtype) for name, rows in batch.items()}
    assert dtypes == {
        "obs": "uint8",
        "action": "int32",
        "log_prob": "float16",
        "reward": "float32",
        "discount": "float32",
        "next_obs": "uint8",
        "index": "int32",
        "mass": "float32",
    }
    time, environment = np.divmod(batch["index"], 2)
    np.testing.assert_array_equal(batch["obs"], given["obs"][time, environment])


def learn(replay):
    """A turn of a learner: add, draw, set the priorities."""

    def turn(memory, trajectory, key, discount, beta):
        memory = replay.add(memory, trajectory)
        batch = replay.sample(memory, key, 4, discount)
        weight = importance_weights(batch["mass"], beta)
        memory = replay.update(memory, batch["index"], jnp.abs(weight * batch["reward"]))
        return memory, {**batch, "weight": weight}

    return turn


@MAKERS
def test_memories_side_by_side_are_memories_apart(make):
    replay, history = make(10, n_step=3), History(2)
    apart, together = jax.jit(learn(replay)), jax.jit(jax.vmap(learn(replay), (0, None, 0, 0, 0)))
    singles = [replay.init(example(2))] * 3
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles)
    discounts, betas = jnp.array([0.0, 0.5, 0.9]), jnp.array([0.0, 0.4, 1.0])
    for turn in range(5):
        trajectory, keys = history.roll(2), jax.random.split(jax.random.key(turn), 3)
        stacked, batches = together(stacked, trajectory, keys, discounts, betas)
        for i in range(3):
            result = apart(singles[i], trajectory, keys[i], discounts[i], betas[i])
            singles[i] = result[0]
            jax.tree.map(
                lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6),
                (stacked, batches),
                result,
            )


def test_alpha_may_be_swept():
    def mass(alpha):
        replay = replays.prioritised_replay(8, alpha=alpha)
        return replay.add(full(np.full(8, 4.0), alpha), example(1, 1)).tree[0][0]

    swept = jax.jit(jax.vmap(mass))(jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(swept, np.tile([[1], [2], [4]], 8), rtol=1e-5)


def intermediates(jaxpr):
    """Sizes of all that a computation makes, inside of loops and calls too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from intermediates(inner)


@pytest.mark.parametrize("make, growth", [(uniform_replay, 1), (prioritised_replay, 7 / 5)])
def test_a_sample_costs_as_much_as_the_tree_is_deep_whatever_the_capacity(make, growth):
    def cost(capacity):
        replay = make(capacity, n_step=3)
        memory = jax.eval_shape(replay.init, example())
        jaxpr = jax.make_jaxpr(lambda memory: replay.sample(memory, KEY, 32, DISCOUNT))(memory)
        return sorted(intermediates(jaxpr.jaxpr))

    assert max(cost(1_000_000)) < 1000
    assert sum(cost(1_000_000)) <= growth * sum(cost(10_000))


@MAKERS
@pytest.mark.parametrize("runs", [None, 3])
def test_a_donated_memory_is_written_in_place(make, runs):
    replay = make(20_000, n_step=3)
    turn = learn(replay)

    def turns(memory, trajectory, key):
        def one(memory, key):
            return turn(memory, trajectory, key, DISCOUNT, 0.4)

        return jax.lax.scan(one, memory, jax.random.split(key, 2))

    memory = jax.eval_shape(replay.init, example())
    if runs:
        turns = jax.vmap(turns, (0, None, None))
        memory = jax.tree.map(lambda x: jax.ShapeDtypeStruct((runs, *x.shape), x.dtype), memory)
    compiled = jax.jit(turns, donate_argnums=0).lower(memory, example(), KEY).compile()
    held = compiled.memory_analysis()
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(memory))
    assert held.alias_size_in_bytes == total
    assert held.temp_size_in_bytes < 20_000 * (runs or 1)


def started():
    replay = replays.uniform_replay(20)
    return replay, jax.eval_shape(replay.init, example())


def without(name):
    return {key: array for key, array in example().items() if key != name}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: uniform_replay(0), "uniform_replay: capacity is 0"),
        (lambda: prioritised_replay(2**31), "2**30 - 1 transitions"),
        (lambda: prioritised_replay(20, n_step=0), "prioritised_replay: n_step is 0"),
        (lambda: uniform_replay(9).init(example()), "choose 10"),
        (lambda: uniform_replay(6).init(example()), "a trajectory of 4"),
        (lambda: uniform_replay(8, n_step=5).init(example()), "n_step=5: choose at least 10"),
        (lambda: uniform_replay(8).init(without("final_obs")), "lacks ['final_obs']"),
        (lambda: uniform_replay(8).init(example(reward=np.zeros((4, 3)))), "[(4, 2), (4, 3)]"),
        (lambda: uniform_replay(8).init(example(reward=np.zeros(4))), "[(4,), (4, 2)]"),
        (lambda: started()[0].add(started()[1], example(11)), "11 steps does not fit 10 slots"),
        (lambda: started()[0].add(started()[1], without("action")), "the memory was made for"),
        (lambda: started()[0].add(started()[1], example(environments=1)), "int32[1, 3]"),
        (lambda: started()[0].add(started()[1], example(obs=np.ones((4, 2, 3)))), "float32[2, 3]"),
        (lambda: started()[0].sample(started()[1], KEY, 21, 1.0), "from 1 to 20"),
        (lambda: started()[0].sample(started()[1], KEY, 0, 1.0), "a batch of 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
