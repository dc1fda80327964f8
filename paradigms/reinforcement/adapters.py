"""Environments of other libraries, made to fit the contract."""

import difflib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from paradigms.core.errors import InputError, MissingExtraError
from paradigms.core.state import PyTree
from paradigms.reinforcement.environment import Box, Discrete, Environment, batched

# Of all games of pgx, whose list does not tell how many play them.
_PGX_ALONE = (
    "2048",
    "minatar-asterix",
    "minatar-breakout",
    "minatar-freeway",
    "minatar-seaquest",
    "minatar-space_invaders",
)


def from_gymnax(name: str, **settings: Any) -> Environment:
    """An environment of gymnax 1.0.1 or newer.

    Args:
      name: for instance "CartPole-v1" or "Breakout-MinAtar".
      **settings: values of its parameters other than the usual, for instance
        `max_steps_in_episode=200`.

    Raises:
      InputError: unknown name or setting, or a gymnax that merges the two ends of an episode.
      MissingExtraError: gymnax is not installed.
    """
    try:
        import gymnax
    except ImportError as error:
        raise MissingExtraError("gymnax", "rl", f"the environment {name}") from error
    if not hasattr(gymnax.environments.environment.Environment, "is_truncated"):
        raise InputError(
            "gymnax below 1.0.1 cannot tell a time limit from an end: "
            "run `pip install 'paradigms[rl]'`"
        )
    check_known("gymnax environment", name, gymnax.registered_envs)
    environment, params = gymnax.make(name)
    if unknown := sorted(set(settings) - set(vars(params))):
        raise InputError(f"{name} has no setting '{unknown[0]}', only {sorted(vars(params))}")
    params = params.replace(**settings)

    def reset(key: jax.Array) -> tuple[PyTree, jax.Array]:
        obs, world = environment.reset_env(key, params)
        return world, obs

    def step(
        key: jax.Array, world: PyTree, action: jax.Array
    ) -> tuple[PyTree, jax.Array, jax.Array, jax.Array, jax.Array]:
        obs, world, reward, terminated, _ = environment.step_env(key, world, action, params)
        return world, obs, reward, terminated, environment.is_truncated(world, params)

    return batched(reset, step, _actions_of(name, environment.action_space(params)))


def from_pgx(name: str) -> Environment:
    """A game of pgx 2.6 or newer that is played alone.

    A game ends where pgx says so: none of these is ever truncated, and the time limit of
    "minatar-freeway" counts as its end. An action that is not legal, such as a move of "2048" that
    moves nothing, ends the game with reward -1 by the rules of pgx. Agents are not told which
    actions are legal: they have to learn it. In MinAtar all are.

    Args:
      name: "2048" or, for instance, "minatar-breakout".

    Raises:
      InputError: unknown name, or a game of several players.
      MissingExtraError: pgx is not installed.
    """
    try:
        import pgx
    except ImportError as error:
        raise MissingExtraError("pgx", "rl", f"the game {name}") from error
    if name not in pgx.available_envs():
        check_known("pgx game", name, _PGX_ALONE)
    game = pgx.make(name)
    if game.num_players > 1:
        raise InputError(
            f"{name} is a game of {game.num_players} players, and an agent plays alone: "
            f"choose from {', '.join(_PGX_ALONE)}"
        )

    def reset(key: jax.Array) -> tuple[PyTree, jax.Array]:
        world = game.init(key)
        return world, world.observation

    def step(
        key: jax.Array, world: PyTree, action: jax.Array
    ) -> tuple[PyTree, jax.Array, jax.Array, jax.Array, jax.Array]:
        world = game.step(world, action, key)
        return world, world.observation, world.rewards[0], world.terminated, world.truncated

    # Traced alone: `game.num_actions` would play a game to find it.
    legal = jax.eval_shape(game.init, jax.random.key(0)).legal_action_mask
    return batched(reset, step, Discrete(len(legal)))


def _actions_of(name: str, space: Any) -> Discrete | Box:
    if hasattr(space, "n"):
        return Discrete(int(space.n))
    shape = tuple(space.shape)
    low, high = (np.broadcast_to(np.float32(bound), shape) for bound in (space.low, space.high))
    if len(shape) != 1:
        raise InputError(f"{name} takes actions of shape {shape}: expected one dimension")
    return Box(low, high)


def check_known(kind: str, name: str, known: Sequence[str]) -> None:
    """Raises `InputError` for a name that is not known, with those that are like it."""
    if name not in known:
        near = difflib.get_close_matches(name, known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
        raise InputError(f"unknown {kind} '{name}': {hint}")
