"""`interact` and `play`, with an agent that does as it is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds

from paradigms.core.errors import InputError
from paradigms.core.learner import Learner
from paradigms.core.metrics import Mean
from paradigms.core.state import TrainState
from paradigms.core.transforms import repeated, seeded
from paradigms.reinforcement import Agent, Box, Discrete, interact, play


def follower(action=1, actions=Discrete):
    """Always takes one action, greedily one more, and keeps the last trajectory in its memory."""

    def init(key, example):
        keys = {**example, "count": example["reward"]}
        return TrainState.create(key, {"w": jax.random.normal(key)}, memory=keys)

    def act(state, obs, carry, key, explore):
        chosen = jnp.full(len(obs), action + (not explore), jnp.int32)
        return chosen, {"count": 1.0 * carry} if explore else {}, carry + 1

    def update(state, trajectory):
        metrics = {"loss": Mean.of(trajectory["reward"])}
        return state.replace(step=state.step + 1, memory=trajectory), metrics

    learner = Learner(init, update, lambda state, batch, key: {})
    return Agent(learner, act, actions, carry=lambda n: jnp.zeros(n, jnp.int32))


def run(learner, updates, seed=0):
    state = jax.jit(learner.init)(jax.random.key(seed), ())
    update, reported = jax.jit(learner.update), []
    for _ in range(updates):
        state, metrics = update(state, ())
        reported.append(jax.device_get(metrics))
    return state, reported


def test_a_trajectory_is_what_happened():
    learner = interact(follower(), worlds.clock(3), num_envs=2, num_steps=5)
    state, _ = run(learner, 2)
    seen = jax.device_get(state.memory)
    # Steps 5 to 9 of episodes of three: the clock goes on where the first trajectory stopped.
    for env in range(2):
        np.testing.assert_array_equal(seen["obs"][:, env, 0], [2, 0, 1, 2, 0])
        np.testing.assert_array_equal(seen["final_obs"][:, env, 0], [3, 1, 2, 3, 1])
        np.testing.assert_array_equal(seen["terminated"][:, env], [1, 0, 0, 1, 0])
        # What the agent carries begins anew with every episode.
        np.testing.assert_array_equal(seen["count"][:, env], [2, 0, 1, 2, 0])
    assert not seen["truncated"].any()
    assert (seen["action"] == 1).all() and (seen["reward"] == 1).all()
    assert seen["obs"].shape == (5, 2, 1)
    assert state.world["steps"] == 20 and state.step == 2


def test_episodes_are_counted_across_updates():
    learner = interact(follower(), worlds.clock(3), num_envs=2, num_steps=5)
    _, reported = run(learner, 3)
    ended = [int(metrics["episode/return"].count) for metrics in reported]
    assert ended == [2, 4, 4]  # after steps 3, then 6 and 9, then 12 and 15, in both environments
    for metrics in reported:
        assert metrics["episode/return"].value() == 3 and metrics["episode/length"].value() == 3


def test_a_time_limit_shows_what_it_cut_off():
    learner = interact(follower(0), worlds.truncation_probe(Discrete(2)), num_envs=1, num_steps=6)
    state, _ = run(learner, 1)
    seen = jax.device_get(state.memory)
    in_b = [0, 1, 1, 1, 1, 0]
    np.testing.assert_array_equal(seen["obs"][:, 0], np.eye(2)[in_b])
    np.testing.assert_array_equal(seen["final_obs"][:, 0], np.eye(2)[[1] * 6])
    np.testing.assert_array_equal(seen["reward"][:, 0], [-10, 1, 1, 1, 1, -10])
    np.testing.assert_array_equal(seen["truncated"][:, 0], [0, 0, 0, 0, 1, 0])
    assert not seen["terminated"].any()


def test_evaluation_plays_whole_episodes_greedily():
    learner = interact(follower(0), worlds.clock(3), num_envs=2, num_steps=5, episodes=4)
    state, _ = run(learner, 1)
    metrics = jax.jit(learner.evaluate)(state, (), jax.random.key(0))
    assert metrics["return"].value() == 3 and metrics["return"].count == 4
    assert metrics["length"].value() == 3 and metrics["unfinished"].value() == 0
    # Explored, the action and with it the reward is 0.
    returns, lengths, finished = play(
        follower(0), worlds.clock(3), state, jax.random.key(0), 2, explore=True
    )
    assert (returns == 0).all() and (lengths == 3).all() and finished.all()


def test_an_evaluation_that_has_no_end_gives_up():
    _, lengths, finished = play(
        follower(-2), worlds.chain(3), run_state(), jax.random.key(0), 2, max_steps=7
    )
    assert not finished.any() and (lengths == 7).all()


def run_state():
    return TrainState.create(jax.random.key(0), {})


def test_runs_are_those_of_single_seeds():
    learner = interact(follower(), worlds.clock(3), num_envs=2, num_steps=5)
    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    both = seeded(learner, method="map")
    state = jax.jit(both.init)(keys, ())
    state, _ = jax.jit(repeated(both, 3).update)(state, ())
    for seed in range(2):
        alone, _ = run(learner, 3, seed)
        jax.tree.map(
            lambda many, one: np.testing.assert_array_equal(many[seed], one),  # noqa: B023
            (state.params, state.memory, state.world),
            (alone.params, alone.memory, alone.world),
        )


def test_other_actions_are_refused():
    with pytest.raises(InputError, match="takes Discrete actions and the agent gives Box"):
        interact(follower(actions=Box), worlds.clock(3), num_envs=1, num_steps=1)
    with pytest.raises(InputError, match="takes Box actions and the agent gives Discrete"):
        interact(follower(), worlds.bandit(), num_envs=1, num_steps=1)


@pytest.mark.parametrize("name", ["num_envs", "num_steps", "episodes"])
def test_numbers_below_one_are_refused(name):
    numbers = {"num_envs": 1, "num_steps": 1, name: 0}
    with pytest.raises(InputError, match=rf"interact\({name}=0\): expected at least 1"):
        interact(follower(), worlds.clock(3), **numbers)
