"""PPO: its losses by hand, and values that it must find."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import worlds

import nets
from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.transforms import repeated
from paradigms.reinforcement import Box, Discrete, clipped_surrogate, interact, ppo, value_loss

# Logits and a value for each state of a world whose observations are one-hot.
TABLE = Net(
    lambda key, obs: (
        {"logits": jnp.zeros((obs.shape[-1], 2)), "value": jnp.zeros(obs.shape[-1])},
        {},
    ),
    lambda params, model_state, obs, **_: (
        (obs @ params["logits"], obs @ params["value"]),
        model_state,
    ),
)


def train(agent, env, updates, *, num_envs=4, num_steps=16, seed=0):
    learner = interact(agent, env, num_envs=num_envs, num_steps=num_steps)
    state = jax.jit(learner.init)(jax.random.key(seed), ())
    return learner, *jax.jit(repeated(learner, updates).update)(state, ())


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # has gained enough
        (0.5, 2.0, -1.0, -1.0),  # has lost: back
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_the_surrogate_by_hand(ratio, advantage, loss, slope):
    """At clip 0.2; d loss / d log p = ratio * d loss / d ratio."""

    def of(log_prob):
        return clipped_surrogate(log_prob, jnp.float32(-1), jnp.float32(advantage), 0.2)

    value, gradient = jax.value_and_grad(of)(jnp.log(jnp.float32(ratio)) - 1)
    np.testing.assert_allclose([value, gradient], [loss, slope], rtol=1e-5, atol=1e-7)


def test_the_value_loss_by_hand():
    old, target = jnp.float32([0, 0, 0]), jnp.float32([1, 1, -1])
    value = jnp.float32([0.1, 0.5, 0.5])
    np.testing.assert_allclose(value_loss(value, old, target), [0.405, 0.125, 1.125], rtol=1e-6)
    # Clipped at 0.2: the second value counts as 0.2, which is worse; the third stays as bad.
    clipped = value_loss(value, old, target, 0.2)
    np.testing.assert_allclose(clipped, [0.405, 0.32, 1.125], rtol=1e-6)


def test_values_see_beyond_a_time_limit():
    """V(B) = 10 and V(A) = -1; about 3 where a limit is taken for an end."""
    agent = ppo(
        TABLE,
        optax.sgd(0.5),
        discount=worlds.DISCOUNT,
        value_clip=None,
        value_weight=1.0,
        epochs=1,
        minibatches=1,
    )
    env = worlds.truncation_probe(Discrete(2))
    _, state, _ = train(agent, env, 300, num_steps=17)
    np.testing.assert_allclose(state.params["value"], [-1, 10], rtol=0.01)


def test_it_learns_the_way_to_the_end_of_a_chain():
    agent = ppo(TABLE, optax.adam(0.05), discount=0.9, entropy_weight=0.0)
    learner, state, metrics = train(agent, worlds.chain(4), 60)
    evaluated = learner.evaluate(state, (), jax.random.key(9))
    assert evaluated["return"].value() == 1 and evaluated["length"].value() == 4
    lengths = metrics["episode/length"]
    assert lengths.total[-1] / lengths.count[-1] < 4.5 < lengths.total[0] / lengths.count[0]


def test_continuous_actions_find_the_best_of_a_bandit():
    net = nets.actor_critic((8,), 1, continuous=True)
    falling = optax.linear_schedule(0.01, 0.0, 60 * 16)
    agent = ppo(net, optax.adam(falling), actions=Box, entropy_weight=0.0)
    _, state, _ = train(agent, worlds.bandit(0.3), 60, num_envs=16)
    action, _, _ = agent.act(state, jnp.ones((1, 1)), (), jax.random.key(0), explore=False)
    np.testing.assert_allclose(action, 0.3, atol=0.02)


def one_update(scale=1.0, **options):
    """One PPO update of one minibatch on the chain, with rewards scaled."""
    env = worlds.chain(3)

    def step(key, world, action):
        world, timestep = env.step(key, world, action)
        return world, timestep._replace(reward=scale * timestep.reward)

    agent = ppo(TABLE, optax.sgd(1.0), epochs=1, minibatches=1, value_weight=0.0, **options)
    _, state, metrics = train(agent, env._replace(step=step), 1)
    return state.params, metrics


def test_advantages_are_normalised():
    small, _ = one_update(entropy_weight=0.0)
    large, _ = one_update(1000.0, entropy_weight=0.0)
    assert jnp.abs(small["logits"]).max() > 1e-3
    np.testing.assert_allclose(small["logits"], large["logits"], rtol=1e-4)
    np.testing.assert_array_equal(small["value"], 0)  # its weight is 0


def test_entropy_is_raised():
    """At its top, uniform logits, the entropy has no gradient; from elsewhere it is climbed."""
    skewed = Net(
        lambda key, obs: ({"logits": jnp.tile(jnp.float32([1, -1]), (obs.shape[-1], 1))}, {}),
        lambda params, model_state, obs, **_: (
            (obs @ params["logits"], jnp.zeros(len(obs))),
            model_state,
        ),
    )
    agent = ppo(skewed, optax.sgd(1.0), entropy_weight=1.0, epochs=1, minibatches=1, clip=0.0)
    _, state, metrics = train(agent, worlds.chain(2), 1)
    gap = state.params["logits"][0, 0] - state.params["logits"][0, 1]
    assert metrics["entropy"].value() == pytest.approx(0.365, abs=1e-3)  # of (0.881, 0.119)
    assert gap < 2


def test_the_first_minibatch_meets_the_policy_that_acted():
    _, metrics = one_update()
    np.testing.assert_allclose(metrics["kl"].value(), 0, atol=1e-6)
    np.testing.assert_allclose(metrics["clipped"].value(), 0)
    np.testing.assert_allclose(metrics["entropy"].value(), np.log(2), rtol=1e-5)
    # Later too, when the actions are no longer all as likely.
    agent = ppo(TABLE, optax.sgd(1.0), epochs=1, minibatches=1)
    _, state, metrics = train(agent, worlds.chain(3), 4)
    assert jnp.ptp(state.params["logits"], axis=1).max() > 0.1
    np.testing.assert_allclose(metrics["kl"].total / metrics["kl"].count, 0, atol=1e-6)


def test_every_epoch_sees_every_step_once():
    """The optimiser counts minibatches; the metrics count steps."""
    agent = ppo(TABLE, optax.adam(1e-3), epochs=3, minibatches=4)
    _, state, metrics = train(agent, worlds.chain(3), 2)
    assert state.opt_state[0].count == 2 * 3 * 4 and state.step == 2
    np.testing.assert_array_equal(metrics["entropy"].count, 3 * 4 * 16)


def test_the_gradient_norm_is_of_the_last_minibatch():
    def keep(grads, last, params=None):
        del last, params
        return jax.tree.map(lambda leaf: -0.5 * leaf, grads), grads

    keeping = optax.GradientTransformation(optax.tree.zeros_like, keep)
    agent = ppo(TABLE, keeping, epochs=2, minibatches=4)
    learner, state, _ = train(agent, worlds.chain(3), 1)
    state, metrics = jax.jit(learner.update)(state, ())
    assert metrics["norm/gradient"].count == 1
    np.testing.assert_allclose(
        metrics["norm/gradient"].total, optax.tree.norm(state.opt_state), rtol=1e-5
    )


def test_norms_are_of_the_whole_update():
    """Several minibatches that pull together move further than one of them."""
    agent = ppo(TABLE, optax.sgd(0.1), epochs=3, minibatches=4, value_weight=5.0)
    learner, first, _ = train(agent, worlds.chain(3), 1)
    second, metrics = jax.jit(learner.update)(first, ())
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, second.params, first.params))
    before = optax.tree.norm(first.params)
    np.testing.assert_allclose(metrics["norm/update"].value(), moved, rtol=1e-5)
    np.testing.assert_allclose(metrics["norm/parameter"].value(), before, rtol=1e-5)
    assert before > 0 and moved > 0.1 * metrics["norm/gradient"].value()


def test_schedules_count_updates():
    """Not minibatches: off during the first update, on in the second."""

    def logits(entropy_weight, updates):
        agent = ppo(TABLE, optax.sgd(0.1), entropy_weight=entropy_weight, epochs=2, minibatches=2)
        return train(agent, worlds.chain(3), updates)[1].params["logits"]

    def late(step):
        return jnp.where(step == 0, 0.0, 10.0)

    np.testing.assert_array_equal(logits(late, 1), logits(lambda step: 0.0 * step, 1))
    assert jnp.abs(logits(late, 2) - logits(lambda step: 0.0 * step, 2)).max() > 1e-3


def test_mistakes():
    with pytest.raises(InputError, match=r"ppo\(epochs=0, minibatches=4\): expected at least 1"):
        ppo(TABLE, optax.sgd(0.1), epochs=0)
    learner = interact(
        ppo(TABLE, optax.sgd(0.1), minibatches=3), worlds.chain(3), num_envs=2, num_steps=4
    )
    with pytest.raises(InputError, match="the 8 steps of an update do not divide"):
        jax.eval_shape(learner.init, jax.random.key(0), ())
