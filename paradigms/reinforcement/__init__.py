"""Reinforcement learning: an agent acts in a world, and learns from what comes of it."""

from paradigms.reinforcement.agent import Agent, interact, play
from paradigms.reinforcement.dqn import categorical_target, dqn, q_target
from paradigms.reinforcement.environment import (
    Box,
    Discrete,
    Environment,
    Timestep,
    batched,
    from_gymnax,
)
from paradigms.reinforcement.ppo import clipped_surrogate, ppo, value_loss
from paradigms.reinforcement.replay import prioritised_replay, uniform_replay

__all__ = [
    "Agent",
    "Box",
    "Discrete",
    "Environment",
    "Timestep",
    "batched",
    "categorical_target",
    "clipped_surrogate",
    "dqn",
    "from_gymnax",
    "interact",
    "play",
    "ppo",
    "prioritised_replay",
    "q_target",
    "uniform_replay",
    "value_loss",
]
