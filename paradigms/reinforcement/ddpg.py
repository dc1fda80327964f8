"""Deep deterministic policy gradient."""

import optax

from nets.net import Net
from paradigms.core.scalars import Scalar, Scheduled
from paradigms.reinforcement.agent import Agent
from paradigms.reinforcement.environment import Box
from paradigms.reinforcement.replay import Replay
from paradigms.reinforcement.td3 import td3


def ddpg(
    actor: Net,
    critic: Net,
    actor_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
    replay: Replay,
    *,
    actions: Box,
    exploration: Scheduled = 0.1,
    discount: Scalar = 0.99,
    decay: Scalar = 0.995,
    batch_size: int = 256,
    warm_up: int = 25_000,
    train_every: int = 1,
) -> Agent:
    """Deep deterministic policy gradient (Lillicrap et al. 2016, algorithm 1).

    The critic is trained towards `r + discount * Q'(s', mu'(s'))` and the actor climbs it, after
    every step; target nets follow both. It is `td3` without its three remedies: one critic, no
    delay, no noise on the target's actions. Noise on actions is normal and independent, in place of
    the paper's Ornstein-Uhlenbeck process, as in Fujimoto et al. 2018.

    Args, returned metrics and errors are those of `td3`.
    """
    return td3(
        actor,
        critic,
        actor_optimizer,
        critic_optimizer,
        replay,
        actions=actions,
        exploration=exploration,
        discount=discount,
        decay=decay,
        batch_size=batch_size,
        warm_up=warm_up,
        train_every=train_every,
        critics=1,
        policy_every=1,
        target_noise=0.0,
    )
