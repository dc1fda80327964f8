"""Recurrent PPO: sequences by hand, a rollout replayed, and worlds that need a memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import worlds

from nets.net import Net
from nets.recurrent import recurrent_actor_critic
from paradigms.core.errors import InputError
from paradigms.core.transforms import repeated, swept
from paradigms.reinforcement import Box, Discrete, interact, ppo
from paradigms.reinforcement.environment import batched
from paradigms.reinforcement.recurrent_ppo import recurrent_ppo, unroll


def train(agent, env, updates, *, num_envs=4, num_steps=16):
    learner = interact(agent, env, num_envs=num_envs, num_steps=num_steps)
    state = jax.jit(learner.init)(jax.random.key(0), ())
    return jax.jit(repeated(learner, updates).update)(state, ())


# Adds up what it observes; its state counts the steps that it was trained on.
ADDER = Net(
    lambda key, obs, carry: ({"scale": jnp.ones(())}, {"steps": jnp.zeros(())}),
    lambda params, model_state, obs, carry, key=None, train=False: (
        (carry + obs, params["scale"] * (carry + obs), carry + obs),
        {"steps": model_state["steps"] + train},
    ),
)


def test_sequences_by_hand():
    """The first starts from 10 and its episode ends with the second step; the other goes on."""
    obs = jnp.float32([[1, 1], [2, 2], [3, 3], [4, 4]])
    done = jnp.array([[False, False], [True, False], [False, False], [False, True]])
    carry, fresh = jnp.float32([10, 20]), jnp.float32([-5, -5])

    def values(obs, carry):
        (output, value), model_state = unroll(
            ADDER, {"scale": 2.0}, {"steps": 0.0}, obs, done, carry, fresh, train=True
        )
        return value, (output, model_state)

    jacobian = jax.jit(jax.jacobian(values, (0, 1), has_aux=True))
    (of_obs, of_carry), (output, model_state) = jacobian(obs, carry)
    np.testing.assert_array_equal(output, [[11, 21], [13, 23], [-2, 26], [2, 30]])
    assert model_state["steps"] == 4
    # Through time, back to the start of the episode, and not a step further.
    np.testing.assert_array_equal(of_obs[1, 0], [[2, 0], [2, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(of_obs[3, 0], [[0, 0], [0, 0], [2, 0], [2, 0]])
    np.testing.assert_array_equal(of_obs[3, 1], [[0, 2], [0, 2], [0, 2], [0, 2]])
    np.testing.assert_array_equal(of_carry[:, 0], [[2, 0], [2, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(of_carry[:, 1], [[0, 2]] * 4)


def noise():
    """Observes noise, and ends at random in either way."""

    def reset(key):
        return jnp.zeros(()), jax.random.normal(key, (3,))

    def step(key, world, action):
        ends = jax.random.bernoulli(key, 0.15, (2,))
        return world, jax.random.normal(key, (3,)), 1.0 * action, *ends

    return batched(reset, step, Discrete(2))


def numbers(shapes):
    """Arrays of these shapes, standard normal."""
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.float32(generator.normal(size=leaf.shape)), shapes)


def elman(inputs, width=8):
    """A tanh cell (Elman 1990), quick to compile, whose memory sways its policy."""
    shapes = {"x": (inputs, width), "h": (width, width), "policy": (width, 2), "value": (width,)}
    params = numbers({name: np.empty(shape) for name, shape in shapes.items()})

    def apply(params, model_state, obs, carry, **_):
        carry = jnp.tanh(obs @ params["x"] + carry @ params["h"] / 2)
        return (carry @ params["policy"] / 2, carry @ params["value"], carry), model_state

    return Net(lambda *_: (params, {}), apply), lambda n: jnp.zeros((n, width))


def test_a_replayed_rollout_is_the_rollout():
    """Over two rollouts, in which episodes end at other times in each environment."""
    net, carry_of = recurrent_actor_critic((), 2, width=4)
    params = numbers(jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 3)), carry_of(1))[0])
    net = net._replace(init=lambda *_: (params, {}))
    agent = recurrent_ppo(net, carry_of, optax.sgd(0.0))

    def keep(state, trajectory):
        return state.replace(step=state.step + 1, memory=trajectory), {}

    kept = agent._replace(learner=agent.learner._replace(update=keep))
    learner = interact(kept, noise(), num_envs=4, num_steps=8)
    state = jax.jit(learner.init)(jax.random.key(0), ())
    update, apply = jax.jit(learner.update), jax.jit(net.apply)
    replay = jax.jit(lambda *inputs: unroll(net, params, {}, *inputs, carry_of(4))[0])
    carry = carry_of(4)
    for _ in range(2):
        state, _ = update(state.replace(memory=()), ())
        seen = state.memory
        done = seen["terminated"] | seen["truncated"]
        assert done[:-1].any() and (done[:, :1] != done).any()
        start = jax.tree.map(lambda leaf: leaf[0], seen["carry"])
        logits, value = replay(seen["obs"], done, start)
        np.testing.assert_allclose(value, seen["value"], atol=1e-6)
        # The same step by step, forgetting by hand.
        for t in range(8):
            (expected, value, carry), _ = apply(params, {}, seen["obs"][t], carry)
            np.testing.assert_allclose(value, seen["value"][t], atol=1e-6)
            np.testing.assert_allclose(logits[t], expected, atol=1e-5)
            log_prob = np.asarray(jax.nn.log_softmax(expected))[range(4), seen["action"][t]]
            np.testing.assert_allclose(log_prob, seen["log_prob"][t], atol=1e-5)
            carry = jax.tree.map(lambda leaf: leaf * ~done[t, :, None], carry)  # noqa: B023
    assert np.ptp(logits[..., 0]) > 0.5  # or else the carry would not have mattered
    assert any(leaf.any() for leaf in start)  # the second rollout began within an episode


def test_a_policy_that_does_not_change_stays_the_one_that_acted():
    """In every epoch and minibatch, and while rollouts start in the middle of episodes."""
    agent = recurrent_ppo(*elman(3), optax.adam(0.0), epochs=2, minibatches=2)
    state, metrics = train(agent, noise(), 3, num_steps=8)
    np.testing.assert_allclose(metrics["kl"].total / metrics["kl"].count, 0, atol=1e-6)
    np.testing.assert_array_equal(metrics["clipped"].total, 0)
    assert (metrics["entropy"].total / metrics["entropy"].count < 0.69).all()
    # Two epochs over 4 environments of 8 steps, in two minibatches each.
    np.testing.assert_array_equal(metrics["entropy"].count, 2 * 4 * 8)
    assert state.opt_state[0].count == 3 * 2 * 2 and state.step == 3


def table(actions):
    """Logits, or a mean and a log standard deviation, and a value for each one-hot observation."""

    def init(key, obs):
        zeros = jnp.zeros((obs.shape[-1], 2))
        return {"first": zeros, "second": zeros, "value": zeros[:, 0]}, {}

    def apply(params, model_state, obs, **_):
        outputs = obs @ params["first"], obs @ params["second"]
        output = outputs[0] if actions is Discrete else outputs
        return (output, obs @ params["value"]), model_state

    return Net(init, apply)


def without_memory(net):
    """The net with a carry that it neither reads nor changes."""

    def apply(params, model_state, obs, carry, **options):
        (output, value), model_state = net.apply(params, model_state, obs, **options)
        return (output, value, carry), model_state

    return Net(lambda key, obs, carry: net.init(key, obs), apply)


@pytest.mark.parametrize(
    ("actions", "env"),
    [
        pytest.param(Discrete, worlds.chain(3), id="chain"),
        pytest.param(Box, worlds.bandit(), id="box", marks=pytest.mark.slow),
    ],
)
def test_without_a_memory_it_is_ppo(actions, env):
    net, optimizer = table(actions), optax.sgd(0.1)
    options = {"actions": actions, "epochs": 2, "minibatches": 1, "trace": 0.9}
    agent = recurrent_ppo(without_memory(net), jnp.zeros, optimizer, **options)
    state, metrics = train(agent, env, 3)
    expected, reported = train(ppo(net, optimizer, **options), env, 3)

    assert metrics.keys() == reported.keys()
    for name, mean in metrics.items():
        other = reported[name]
        np.testing.assert_array_equal(mean.count, other.count)
        mean, other = mean.total / mean.count, other.total / other.count
        np.testing.assert_allclose(mean, other, rtol=1e-5, atol=1e-6)
    for name, leaf in state.params.items():
        np.testing.assert_allclose(leaf, expected.params[name], atol=1e-6)


def test_values_see_beyond_a_time_limit_by_what_they_remember():
    """V(B) = 10 and V(A) = -1, told apart by the number of steps remembered and nothing else.

    So `final_obs` has the value of B only after the step to it, and before it is forgotten.
    """

    def apply(params, model_state, obs, carry, **_):
        logits = jnp.broadcast_to(params["logits"], (len(obs), 2))
        return (logits, params["value"][jnp.minimum(carry, 1)], carry + 1), model_state

    net = Net(lambda *_: ({"logits": jnp.zeros(2), "value": jnp.zeros(2)}, {}), apply)
    agent = recurrent_ppo(
        net,
        lambda n: jnp.zeros(n, jnp.int32),
        optax.sgd(0.5),
        discount=worlds.DISCOUNT,
        value_clip=None,
        value_weight=1.0,
        epochs=1,
        minibatches=1,
    )
    # 17 steps are no multiple of an episode's 5: rollouts start and stop anywhere.
    state, _ = train(agent, worlds.truncation_probe(Discrete(2)), 300, num_steps=17)
    np.testing.assert_allclose(state.params["value"], [-1, 10], rtol=0.01)


def recall(blanks):
    """Shows a bit, then nothing for `blanks` steps; the last action wins 1 if it is the bit."""

    def observe(bit, time):
        return (2.0 * bit - 1) * (time == 0) * jnp.ones(1)

    def reset(key):
        world = {"bit": jax.random.bernoulli(key).astype(jnp.int32), "time": jnp.int32(0)}
        return world, observe(**world)

    def step(key, world, action):
        world = {**world, "time": world["time"] + 1}
        ended = world["time"] > blanks
        reward = 1.0 * (ended & (action == world["bit"]))
        return world, observe(**world), reward, ended, jnp.zeros((), bool)

    return batched(reset, step, Discrete(2))


def test_a_memory_solves_what_nothing_else_can():
    """Two agents at once: what the second remembers is erased, and leaves it to guess."""

    def make(h):
        net, carry = elman(1)

        def apply(params, model_state, obs, memory, **options):
            memory = h["remembers"] * memory
            return net.apply(params, model_state, obs, memory, **options)

        agent = recurrent_ppo(net._replace(apply=apply), carry, optax.adam(0.02), minibatches=2)
        return interact(agent, recall(3), num_envs=16, num_steps=8)

    learner = swept(make, {"remembers": jnp.float32([1, 0])})
    state = jax.jit(learner.init)(jax.random.key(0), ())
    state, _ = jax.jit(repeated(learner, 40).update)(state, ())
    returns = jax.jit(learner.evaluate)(state, (), jax.random.key(1))["return"]
    assert returns.total[0] / returns.count[0] > 0.95
    assert 0.3 < returns.total[1] / returns.count[1] < 0.7


def test_mistakes():
    net, carry = recurrent_actor_critic((), 2, width=4)
    with pytest.raises(InputError, match=r"recurrent_ppo\(epochs=4, minibatches=0\): expected at"):
        recurrent_ppo(net, carry, optax.sgd(0.1), minibatches=0)
    agent = recurrent_ppo(net, carry, optax.sgd(0.1), minibatches=4)
    learner = interact(agent, worlds.chain(3), num_envs=6, num_steps=4)
    with pytest.raises(InputError, match="the 6 environments do not divide into them; change"):
        jax.eval_shape(learner.init, jax.random.key(0), ())
