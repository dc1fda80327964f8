"""Reinforcement learning: an agent acts in a world, and learns from what comes of it."""

from paradigms.reinforcement.actor_critic import critic_loss, pessimistic_target
from paradigms.reinforcement.adapters import from_gymnax, from_pgx
from paradigms.reinforcement.agent import Agent, interact, judgement, play
from paradigms.reinforcement.ddpg import ddpg
from paradigms.reinforcement.dqn import categorical_target, dqn, q_target
from paradigms.reinforcement.environment import (
    Box,
    Discrete,
    Environment,
    Timestep,
    batched,
    check_environment,
)
from paradigms.reinforcement.host import (
    Hosted,
    HostEnvironment,
    from_atari,
    from_gymnasium,
    from_vector,
    hosted,
    on_host,
    play_on_host,
)
from paradigms.reinforcement.ppo import clipped_surrogate, ppo, value_loss
from paradigms.reinforcement.recurrent_ppo import recurrent_ppo, unroll
from paradigms.reinforcement.replay import prioritised_replay, uniform_replay
from paradigms.reinforcement.rollout import Episode, draw_rollout, image_of, record
from paradigms.reinforcement.sac import sac, temperature_loss
from paradigms.reinforcement.td3 import td3
from paradigms.reinforcement.wrappers import (
    cast_observations,
    clip_actions,
    clip_rewards,
    normalise_observations,
    normalise_rewards,
    repeat_actions,
    stack_frames,
    time_limit,
)

__all__ = [
    "Agent",
    "Box",
    "Discrete",
    "Environment",
    "Episode",
    "HostEnvironment",
    "Hosted",
    "Timestep",
    "batched",
    "cast_observations",
    "categorical_target",
    "check_environment",
    "clip_actions",
    "clip_rewards",
    "clipped_surrogate",
    "critic_loss",
    "ddpg",
    "dqn",
    "draw_rollout",
    "from_atari",
    "from_gymnasium",
    "from_gymnax",
    "from_pgx",
    "from_vector",
    "hosted",
    "image_of",
    "interact",
    "judgement",
    "normalise_observations",
    "normalise_rewards",
    "on_host",
    "pessimistic_target",
    "play",
    "play_on_host",
    "ppo",
    "prioritised_replay",
    "q_target",
    "record",
    "recurrent_ppo",
    "repeat_actions",
    "sac",
    "stack_frames",
    "td3",
    "temperature_loss",
    "time_limit",
    "uniform_replay",
    "unroll",
    "value_loss",
]
