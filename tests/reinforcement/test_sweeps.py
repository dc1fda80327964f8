"""Many hyperparameters of an agent at once, in one compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import worlds

from nets.net import Net
from paradigms.core.transforms import repeated, swept
from paradigms.reinforcement import dqn, interact, ppo, uniform_replay

# For each state of a chain whose observations are one-hot: preferences and values.
TABLE = Net(
    lambda key, obs: ({"q": jnp.zeros((3, 2)), "v": jnp.zeros(3)}, {}),
    lambda params, model_state, obs, **_: ((obs @ params["q"], obs @ params["v"]), model_state),
)
Q_TABLE = TABLE._replace(apply=lambda *inputs, **_: (TABLE.apply(*inputs)[0][0], {}))


def ppo_of(h):
    return ppo(
        TABLE,
        optax.adam(h["learning_rate"], eps=h["eps"]),
        discount=h["discount"],
        trace=h["trace"],
        clip=h["clip"],
        entropy_weight=h["entropy_weight"],
        minibatches=2,
    )


def dqn_of(h):
    return dqn(
        Q_TABLE,
        optax.adam(h["learning_rate"], eps=h["eps"]),
        uniform_replay(64),
        epsilon=h["epsilon"],
        discount=h["discount"],
        warm_up=0,
        train_every=1,
        target_every=20,
        batch_size=16,
    )


POINTS = {
    ppo_of: {
        "learning_rate": (0.1, 0.01),
        "eps": (1e-5, 1e-1),
        "discount": (0.9, 0.5),
        "trace": (0.8, 0.2),
        "clip": (0.1, 0.3),
        "entropy_weight": (0.01, 0.1),
    },
    dqn_of: {
        "learning_rate": (0.1, 0.01),
        "eps": (1e-5, 1e-1),
        "discount": (0.9, 0.5),
        "epsilon": (1.0, 0.1),
    },
}


@pytest.mark.parametrize("agent_of", [ppo_of, pytest.param(dqn_of, marks=pytest.mark.slow)])
def test_a_sweep_over_everything_compiles_once(agent_of):
    """Each value is used: exchanged one at a time, it changes its run and gives that of its own."""

    def make(h):
        return interact(agent_of(h), worlds.chain(3), num_envs=2, num_steps=8)

    pairs = POINTS[agent_of]
    usual = {name: pair[0] for name, pair in pairs.items()}
    every = {name: pair[1] for name, pair in pairs.items()}
    traced = []

    @jax.jit
    def update(state, batch):
        traced.append(1)
        # A learner knows the names of its grid; the values come with the state.
        grid = {name: jnp.zeros(2) for name in pairs}
        return repeated(swept(make, grid), 3).update(state, batch)

    for changed, (_, other) in pairs.items():
        points = [usual, {**usual, changed: other}]
        learner = swept(make, {name: jnp.array([p[name] for p in points]) for name in pairs})
        state, _ = update(jax.jit(learner.init)(jax.random.key(0), ()), ())
        assert jnp.abs(state.params["q"][1] - state.params["q"][0]).max() > 1e-5, changed
    learner = swept(make, {name: jnp.array([usual[name], every[name]]) for name in pairs})
    state, _ = update(jax.jit(learner.init)(jax.random.key(0), ()), ())
    for i, point in enumerate((usual, every)):
        alone = make(point)
        expected = jax.jit(alone.init)(jax.random.key(0), ())
        expected, _ = jax.jit(repeated(alone, 3).update)(expected, ())
        np.testing.assert_allclose(state.params["q"][i], expected.params["q"], atol=1e-6)
    assert traced == [1]
