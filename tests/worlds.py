"""Tiny worlds with exact answers."""

import jax
import jax.numpy as jnp
import numpy as np

from paradigms.reinforcement.environment import Box, Discrete, Environment, batched

DISCOUNT = 0.9


def truncation_probe(actions: Discrete | Box) -> Environment:
    """State A, of every reset, costs 10 and leads to B; B pays 1 and stays; cut off after 5 steps.

    Whatever the action. With discount 0.9, V(B) = 10 and V(A) = -1. Taken for an end, the time
    limit would make V(B) about 3; bootstrapped from the next episode's first observation, -10.
    """

    def observe(in_b: jax.Array) -> jax.Array:
        return jax.nn.one_hot(in_b, 2)

    def reset(key):
        world = {"in_b": jnp.zeros((), jnp.int32), "time": jnp.zeros((), jnp.int32)}
        return world, observe(world["in_b"])

    def step(key, world, action):
        reward = jnp.where(world["in_b"] == 1, 1.0, -10.0)
        time = world["time"] + 1
        world = {"in_b": jnp.ones((), jnp.int32), "time": time}
        return world, observe(world["in_b"]), reward, jnp.zeros((), bool), time >= 5

    return batched(reset, step, actions)


def chain(length: int) -> Environment:
    """Steps right from 0 to `length`, where an episode ends with reward 1; left goes back one.

    The best return is 1 after `length` steps, and Q(i, right) = discount^(length - 1 - i).
    """

    def reset(key):
        return jnp.zeros((), jnp.int32), jax.nn.one_hot(0, length)

    def step(key, place, action):
        place = jnp.clip(place + 2 * action - 1, 0, length)
        ended = place == length
        return place, jax.nn.one_hot(place, length), 1.0 * ended, ended, jnp.zeros((), bool)

    return batched(reset, step, Discrete(2))


def bandit(best: float = 0.3) -> Environment:
    """One state, one step: the reward of action a in [-1, 1] is -(a - best)^2."""

    def reset(key):
        return jnp.zeros(()), jnp.ones(1)

    def step(key, world, action):
        reward = -jnp.square(action[0] - best)
        return world, jnp.ones(1), reward, jnp.ones((), bool), jnp.zeros((), bool)

    return batched(reset, step, Box(np.float32([-1]), np.float32([1])))


def clock(period: int) -> Environment:
    """Observes the number of the step within its episode, which is terminated after `period`.

    The reward is the action, so that a return says which actions were really taken.
    """

    def reset(key):
        return jnp.zeros((), jnp.int32), jnp.zeros(1)

    def step(key, time, action):
        time = time + 1
        obs = time[None].astype(jnp.float32)
        return time, obs, 1.0 * action, time >= period, jnp.zeros((), bool)

    return batched(reset, step, Discrete(3))
