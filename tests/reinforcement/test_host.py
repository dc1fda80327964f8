"""Worlds on the host, against the same ones on the device and against what really happened."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import worlds

import nets
from paradigms.core.errors import InputError, MissingExtraError
from paradigms.core.learner import Learner
from paradigms.core.loop import Every, fit
from paradigms.core.metrics import Mean
from paradigms.core.state import TrainState
from paradigms.core.transforms import repeated, seeded
from paradigms.reinforcement import (
    Agent,
    Box,
    Discrete,
    dqn,
    from_gymnax,
    interact,
    play,
    ppo,
    uniform_replay,
)
from paradigms.reinforcement.host import (
    from_atari,
    from_gymnasium,
    from_vector,
    hosted,
    on_host,
    play_on_host,
)

gymnasium = pytest.importorskip("gymnasium", reason="the extra `rl` is not installed")
KEY = jax.random.key(0)


def witness(actions=Discrete, kind=Discrete):
    """Takes the action that it carries: 0, 1, 2, ... within an episode; remembers what it saw."""

    def init(key, example):
        memory = {**example, "steps": example["reward"], "noise": example["reward"]}
        return TrainState.create(key, {"w": jnp.zeros(())}, memory=memory)

    def act(state, obs, carry, key, explore):
        action = carry if explore else jnp.zeros_like(carry)
        steps = jnp.full(len(obs), 1.0 * state.world["steps"])
        return action, {"steps": steps, "noise": jax.random.normal(key, (len(obs),))}, carry + 1

    def update(state, trajectory):
        metrics = {"loss": Mean.of(trajectory["reward"])}
        return state.replace(step=state.step + 1, memory=trajectory), metrics

    learner = Learner(init, update, lambda state, batch, key: {})
    return Agent(learner, act, kind, carry=lambda n: jnp.zeros(n, jnp.int32))


def start(learner, keys=KEY):
    return jax.jit(learner.init)(keys, ())


def train(host, updates, state=None, record=None):
    state = start(host.learner) if state is None else state
    callbacks = [] if record is None else [Every(1, record)]
    return fit(
        repeated(host.learner, 1), state, host.source, steps=updates, callbacks=callbacks
    ).state


def numbers(tree):
    def number(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(number, tree)


def assert_same(first, second):
    """Equal to the last bit."""
    jax.tree.map(np.testing.assert_array_equal, numbers(first), numbers(second))


# The device and the host ------------------------------------------------------------------------


def proximal():
    net = nets.actor_critic((8,), 2)
    return ppo(net, optax.adam(0.01), epochs=2, minibatches=2)


def replaying():
    return dqn(
        nets.q_network((8,), 2),
        optax.adam(0.01),
        uniform_replay(64),
        # The steps of the schedule are those of the world, also in the middle of a trajectory.
        epsilon=lambda steps: 1 / (1 + 0.1 * steps),
        batch_size=8,
        warm_up=16,
        train_every=8,
        target_every=24,
    )


def pole():
    """CartPole seen in steps of 1/1024: XLA rounds by what it fuses, and programs may differ."""
    env = from_gymnax("CartPole-v1", max_steps_in_episode=11)

    def seen(obs):
        return jnp.round(obs * 1024) / 1024

    def reset(key, n):
        world, obs = env.reset(key, n)
        return world, seen(obs)

    def step(key, world, action):
        world, timestep = env.step(key, world, action)
        return world, timestep._replace(obs=seen(timestep.obs), final_obs=seen(timestep.final_obs))

    return env._replace(reset=reset, step=step)


@pytest.mark.parametrize("make", [proximal, replaying])
def test_a_pole_on_the_host_is_that_on_the_device(make):
    # Some fall, and the others are cut short.
    agent, env, sizes = make(), pole(), {"num_envs": 2, "num_steps": 8}
    ours, theirs = [], []

    def run(learner, source, metrics):
        record = Every(1, lambda step, means, state: metrics.append(means))
        learner = repeated(learner, 1)
        return fit(learner, start(learner), source, steps=5, callbacks=[record]).state

    host = hosted(agent, on_host(env), **sizes)
    found = run(host.learner, host.source, ours)
    expected = run(interact(agent, env, **sizes), lambda *_: (), theirs)
    world = {name: expected.world[name] for name in ("steps", "return", "length")}
    assert_same(found, expected.replace(world=world))
    assert_same(ours, theirs)
    assert sum(means["episode/length"].count for means in ours) > 4


def wanderer():
    """Goes right as often as its parameter says, greedily half as often."""

    def act(state, obs, carry, key, explore):
        often = state.params if explore else state.params / 2
        return jax.random.bernoulli(key, often, (len(obs),)).astype(jnp.int32), {}, carry

    return Agent(Learner(None, None, None), act, Discrete)


def scattered():
    """A chain that starts anywhere."""

    def reset(key, n):
        place = jax.random.randint(key, (n,), 0, 3)
        return place, jax.nn.one_hot(place, 3)

    return worlds.chain(3)._replace(reset=reset)


@pytest.mark.parametrize("explore", [False, True])
def test_evaluation_is_that_of_the_device(explore):
    agent, env = wanderer(), scattered()
    state = TrainState.create(KEY, jnp.float32(0.9))
    expected = play(agent, env, state, KEY, 4, 12, explore=explore)
    found = play_on_host(agent, on_host(env), state, KEY, 4, 12, explore=explore)
    assert_same(found, expected)
    assert len(set(found[1])) > 1 and found[2].any()
    assert [each.dtype for each in found] == [np.float32, np.float32, bool]
    # Of several runs, each plays as alone.
    still = state.replace(params=jnp.float32(0))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), still, state)
    returns, lengths, finished = play_on_host(
        agent, on_host(env), both, KEY, 4, 12, explore=explore
    )
    assert_same((returns[1], lengths[1], finished[1]), found)
    assert not finished[0].any() and (lengths[0] == 12).all() and not returns[0].any()


def test_several_runs_have_worlds_of_their_own():
    env = from_gymnasium(Diary)
    keys = jax.random.split(KEY, 2)
    host = hosted(witness(), env, num_envs=2, num_steps=4)
    both = seeded(host.learner, data_axis=0)
    states = jax.vmap(host.learner.init, (0, None))(keys, ())
    together = fit(repeated(both, 1), states, host.source, steps=3).state
    for i in range(2):
        alone = hosted(witness(), env, num_envs=2, num_steps=4)
        expected = train(alone, 3, start(alone.learner, keys[i]))
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], together), expected)
    assert (together.memory["noise"][0] != together.memory["noise"][1]).all()


# What happened ----------------------------------------------------------------------------------


class Diary(gymnasium.Env):
    """Observes (seed, number of the episode, step within it); ends in every way in turn.

    Episodes 0, 3, ... are terminated after 2 steps, episodes 1, 4, ... truncated after 3, and
    episodes 2, 5, ... are both, after 1. The reward is the action.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Discrete(4, start=5)

    def __init__(self, first=0):
        self.seed, self.episode = None, first - 1

    def reset(self, *, seed=None, options=None):
        self.seed = self.seed if seed is None else seed
        self.episode, self.time = self.episode + 1, 0
        return self.page(), {}

    def page(self):
        return np.array([self.seed, self.episode, self.time], np.float64)

    def step(self, action):
        assert self.action_space.contains(action)
        self.time += 1
        kind = self.episode % 3
        over = self.time == (2, 3, 1)[kind]
        return self.page(), float(action - 5), over and kind != 1, over and kind != 0, {}


def test_a_trajectory_is_what_happened():
    env = from_gymnasium(Diary)
    assert env.actions == Discrete(4)
    assert env.observation == jax.ShapeDtypeStruct((3,), jnp.float32)
    reported, seen = [], []

    def record(step, metrics, state):
        reported.append(metrics)
        seen.append(jax.device_get(state.memory))

    state = train(hosted(witness(), env, num_envs=2, num_steps=5), 2, record=record)
    seeds = seen[0]["obs"][0, :, 0]
    assert seeds[1] == seeds[0] + 1
    whole = {name: np.concatenate([each[name] for each in seen]) for name in seen[0]}
    for i in range(2):
        assert (whole["obs"][:, i, 0] == seeds[i]).all()
        # The second update goes on in the middle of the third episode of the three kinds.
        np.testing.assert_array_equal(whole["obs"][:, i, 1], [0, 0, 1, 1, 1, 2, 3, 3, 4, 4])
        np.testing.assert_array_equal(whole["obs"][:, i, 2], [0, 1, 0, 1, 2, 0, 0, 1, 0, 1])
        np.testing.assert_array_equal(whole["terminated"][:, i], [0, 1, 0, 0, 0, 1, 0, 1, 0, 0])
        np.testing.assert_array_equal(whole["truncated"][:, i], [0, 0, 0, 0, 1, 1, 0, 0, 0, 0])
        # The agent's carry, which it plays, begins anew with every episode.
        np.testing.assert_array_equal(whole["action"][:, i], whole["obs"][:, i, 2])
    # A transition never leads from one episode to the next.
    np.testing.assert_array_equal(whole["final_obs"], whole["obs"] + [0, 0, 1])
    np.testing.assert_array_equal(whole["reward"], whole["action"])
    assert whole["reward"].dtype == np.float32 and whole["action"].dtype == np.int32
    np.testing.assert_array_equal(whole["steps"][:, 0], np.arange(0, 20, 2))
    assert state.world["steps"] == 20
    totals = [
        (float(m["episode/return"].total), float(m["episode/return"].count)) for m in reported
    ]
    # Returns 1 and 3 in each environment, then 0 and 1; the lengths likewise.
    assert totals == [(8, 4), (2, 4)]
    assert [float(m["episode/length"].total) for m in reported] == [10, 6]
    np.testing.assert_array_equal(state.world["return"], [1, 1])
    np.testing.assert_array_equal(state.world["length"], [2, 2])


def test_a_resumed_run_starts_new_episodes():
    env = from_gymnasium(Diary)
    first = hosted(witness(), env, num_envs=2, num_steps=3)
    state = train(first, 1)
    begun = jax.device_get(state.memory["obs"])
    again = train(hosted(witness(), env, num_envs=2, num_steps=3), 2, state)
    resumed = jax.device_get(again.memory["obs"])
    np.testing.assert_array_equal(resumed[:, 0, 1:], begun[:, 0, 1:])
    assert (resumed[0, :, 0] != begun[0, :, 0]).all()  # with other seeds
    # The source that made the first trajectory starts over with a state at step 0.
    np.testing.assert_array_equal(train(first, 1).memory["obs"], begun)


def test_gymnasium_s_pole_is_stepped_as_it_is():
    env = from_gymnasium("CartPole-v1", max_episode_steps=12)
    world, obs = env.reset(KEY, 2)
    seed = int(jax.random.randint(KEY, (), 0, 2**30))
    ends = set()
    for i in range(2):
        single = gymnasium.make("CartPole-v1", max_episode_steps=12)
        np.testing.assert_array_equal(obs[i], single.reset(seed=seed + i)[0])
        for t in range(30):
            # One falls, the other balances until it is cut short.
            actions = np.array([1, t % 2], np.int32)
            if i == 0:
                world, timestep = env.step(KEY, world, actions)
                ends.add(("steps", timestep.obs.dtype.name))
                kept = kept + [timestep] if t else [timestep]  # noqa: F821
            final_obs, reward, terminated, truncated, _ = single.step(int(actions[i]))
            found = kept[t]
            np.testing.assert_array_equal(found.final_obs[i], final_obs)
            assert (found.reward[i], found.score[i]) == (reward, reward)
            assert (found.terminated[i], found.truncated[i]) == (terminated, truncated)
            if terminated or truncated:
                final_obs, _ = single.reset()
                ends.add((i, terminated, truncated))
            np.testing.assert_array_equal(found.obs[i], final_obs)
    assert ends == {("steps", "float32"), (0, True, False), (1, False, True)}


class Echo(Diary):
    """Pays the action, whatever it is."""

    action_space = gymnasium.spaces.Box(np.float32([-2, 0]), np.float32([2, 1]))

    def step(self, action):
        return self.page(), float(action @ [1, 10]), False, False, {}


def test_actions_stay_within_their_box():
    env = from_gymnasium(Echo)
    np.testing.assert_array_equal(env.actions, [[-2, 0], [2, 1]])
    world, _ = env.reset(KEY, 2)
    _, timestep = env.step(KEY, world, np.float32([[1, 0.5], [-7, 7]]))
    assert timestep.reward.tolist() == [6, 8]


# Atari ------------------------------------------------------------------------------------------


def atari(**options):
    pytest.importorskip("ale_py", reason="the extra `atari` is not installed")
    return from_atari("breakout", threads=1, **options)


def test_atari_pictures_scores_and_ends():
    env = atari(max_frames=24)
    assert env.actions == Discrete(4)
    assert env.observation == jax.ShapeDtypeStruct((84, 84, 4), jnp.uint8)
    world, obs = env.reset(KEY, 2)
    for t in range(1, 8):
        before = obs
        world, timestep = env.step(KEY, world, np.array([0, 2], np.int32))
        obs = timestep.obs
        assert obs.shape == (2, 84, 84, 4) and obs.dtype == np.uint8
        # Three of the four pictures were there before, also those that the time limit cut off.
        np.testing.assert_array_equal(timestep.final_obs[..., :3], before[..., 1:])
        assert (timestep.truncated == (t == 6)).all() and not timestep.terminated.any()
        assert timestep.reward.dtype == timestep.score.dtype == np.float32
        if t == 6:
            assert not obs[..., :3].any()  # a new game has no past
        else:
            np.testing.assert_array_equal(obs, timestep.final_obs)


class Cabinet:
    """Stands for the vector environments of ale-py, with two games.

    The first loses a life at step 1, wins two at step 2 and is cut short at step 3, where it starts
    again with fewer; just then the second loses its first.
    """

    lives = ((2, 1, 3, 2), (2, 2, 2, 1))

    def __init__(self, n):
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (4, 2, 2), np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(3)
        self.n = n

    def close(self):
        pass

    def reset(self, seed):
        self.time = 0
        return self.pictures(), self.info()

    def pictures(self):
        obs = np.full((self.n, 4, 2, 2), 10 * self.time, np.uint8)
        obs[:, 3] += 1  # the newest picture
        return obs

    def info(self):
        return {"lives": np.array([lives[self.time] for lives in self.lives[: self.n]])}

    def step(self, action):
        self.time += 1
        info, over = self.info(), np.array([self.time == 3, False])[: self.n]
        if over.any():
            info["final_obs"] = self.pictures() + 100  # of those that are not over, anything
        reward = np.full(self.n, 7 * self.time)
        return self.pictures(), reward, np.zeros(self.n, bool), over, info


@pytest.mark.parametrize("life_is_episode", [False, True])
def test_a_lost_life_ends_an_episode_and_no_game(monkeypatch, life_is_episode):
    vector_env = pytest.importorskip("ale_py.vector_env", reason="the extra `atari` is not there")
    monkeypatch.setattr(vector_env, "AtariVectorEnv", lambda game, n, **_: Cabinet(n))
    env = from_atari("breakout", life_is_episode=life_is_episode)
    world, obs = env.reset(KEY, 2)
    np.testing.assert_array_equal(obs[0, 0, 0], [0, 0, 0, 1])
    steps = [env.step(KEY, world, np.zeros(2, np.int32))[1] for _ in range(3)]
    lost = [[life_is_episode, False], [False, False], [False, life_is_episode]]
    assert [step.terminated.tolist() for step in steps] == lost
    assert [step.truncated.tolist() for step in steps] == [[False] * 2, [False] * 2, [True, False]]
    for step, first in zip(steps, (10, 20, 130), strict=True):
        now = min(first, 30)
        assert step.obs[:, 0, 0, 0].tolist() == [now, now]
        assert step.final_obs[:, 0, 0, 0].tolist() == [first, now]
    assert [step.score.tolist() for step in steps] == [[7] * 2, [14] * 2, [21] * 2]
    assert all((step.reward == 1).all() for step in steps)


def test_atari_without_ale_py_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(MissingExtraError, match=r"ale-py.*pip install 'paradigms\[atari\]'"):
        from_atari("breakout")


# Mistakes ---------------------------------------------------------------------------------------


def test_gymnasium_missing_or_too_old_says_what_to_install(monkeypatch):
    with monkeypatch.context() as patch:
        patch.delattr(gymnasium.vector, "AutoresetMode")
        with pytest.raises(InputError, match=r"below 1.1 .*pip install 'paradigms\[rl\]'"):
            from_gymnasium("CartPole-v1")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtraError, match=r"gymnasium.*pip install 'paradigms\[rl\]'"):
        from_gymnasium("CartPole-v1")


def test_unknown_names_are_named():
    with pytest.raises(InputError, match="unknown Gymnasium environment 'CartPol-v1': did you mea"):
        from_gymnasium("CartPol-v1")
    pytest.importorskip("ale_py", reason="the extra `atari` is not installed")
    with pytest.raises(InputError, match="unknown Atari game 'brekout': did you mean breakout"):
        from_atari("brekout")
    with pytest.raises(InputError, match="unknown Atari game 'qqq': known are adventure, "):
        from_atari("qqq")


def test_what_cannot_be_made_is_told():
    with pytest.raises(InputError, match="CartPole-v1 cannot be made: .*gravity"):
        from_gymnasium("CartPole-v1", gravity=1)


def test_environments_that_hide_the_last_observation_are_refused():
    def vector(n):
        return gymnasium.vector.SyncVectorEnv([Diary] * n)  # as Gymnasium does by itself

    with pytest.raises(InputError, match="NEXT_STEP, .*make it with AutoresetMode.SAME_STEP"):
        from_vector(vector)

    class Forgetful(Cabinet):
        def step(self, action):
            return *super().step(action)[:-1], {}

    env = from_vector(Forgetful)
    world, _ = env.reset(KEY, 1)
    for _ in range(2):
        env.step(KEY, world, np.zeros(1, np.int32))
    with pytest.raises(InputError, match="did not give its final_obs"):
        env.step(KEY, world, np.zeros(1, np.int32))


@pytest.mark.parametrize(
    ("attribute", "space", "words"),
    [
        ("observation_space", gymnasium.spaces.Discrete(3), "wrap it in .*FlattenObservation"),
        ("action_space", gymnasium.spaces.MultiBinary(3), "expected Discrete, or a Box of one"),
        ("action_space", gymnasium.spaces.Box(0, 1, (2, 2)), "expected Discrete, or a Box of one"),
    ],
)
def test_other_spaces_are_refused(attribute, space, words):
    with pytest.raises(InputError, match=words):
        from_gymnasium(type("Other", (Diary,), {attribute: space}))


def test_what_does_not_fit_together_is_refused():
    env = on_host(worlds.clock(3))
    with pytest.raises(InputError, match="takes Discrete actions and the agent gives Box"):
        hosted(witness(kind=Box), env, num_envs=1, num_steps=1)
    with pytest.raises(InputError, match=r"hosted\(num_steps=0\): expected at least 1"):
        hosted(witness(), env, num_envs=1, num_steps=0)
    with pytest.raises(InputError, match="hosted got an Environment: use interact"):
        hosted(witness(), worlds.clock(3), num_envs=1, num_steps=1)
    with pytest.raises(InputError, match="a HostEnvironment cannot be: use hosted"):
        interact(witness(), env, num_envs=1, num_steps=1)
    with pytest.raises(InputError, match="statistics of an environment are kept by interact"):
        on_host(worlds.clock(3)._replace(frozen=lambda world: worlds.clock(3)))


def test_several_updates_in_a_call_are_refused():
    host = hosted(witness(), on_host(worlds.clock(3)), num_envs=1, num_steps=2)
    with pytest.raises(InputError, match="steps_per_call=2: .* choose 1"):
        fit(repeated(host.learner, 2), start(host.learner), host.source, steps=4, steps_per_call=2)


def test_a_reward_that_is_no_number_is_told():
    def step(key, world, action):
        _, timestep = clock.step(key, world, action)
        return world, timestep._replace(reward=np.full(1, np.nan, np.float32))

    clock = on_host(worlds.clock(3))
    host = hosted(witness(), clock._replace(step=step), num_envs=1, num_steps=2)
    with pytest.raises(InputError, match="a reward that is NaN or infinite before update 1"):
        train(host, 1)
