"""What living in a world through `interact` costs, beside loops fused by hand, in one process.

  ppo     CartPole-v1, 4 environments x 128 steps, 4 epochs, 4 minibatches, tanh 64x2
  dqn     CartPole-v1, 1 environment, a gradient step on 128 transitions every 10 steps, 120-84
  replay  one draw of 128 transitions and one write of 10 steps, with 10,000 to 1,000,000 slots
  evaluation_share
          of the time of `ppo_cartpole` and of `dqn_cartpole` what its evaluations take, at the most

The loops by hand do the same updates on the same networks with the same optimiser and nothing else:
no metrics, no episode returns, no schedule but the one there is. How it is measured is in
`measuring`. The first two have files of their own, as other systems have.

  python -m experiments.benchmarks.agents            some minutes on two CPU cores
  python -m experiments.benchmarks ppo dqn           the first two alone
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nets
from experiments import agents, speed
from experiments.benchmarks.measuring import Ready, System, interleaved, write
from experiments.reinforcement import dqn_cartpole, ppo_cartpole
from paradigms.core import optimizers, schedules
from paradigms.core.transforms import repeated
from paradigms.reinforcement import (
    Agent,
    Timestep,
    dqn,
    from_gymnax,
    interact,
    ppo,
    prioritised_replay,
    uniform_replay,
)

PPO_STEPS, DQN_STEPS = 512, 10
REPEATS = 10_000
SLOTS = (10_000, 100_000, 1_000_000)
Part = Literal["ppo", "dqn", "replay", "evaluation_share"]


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    parts: tuple[Part, ...] = ("ppo", "dqn", "replay", "evaluation_share")
    """What to measure."""
    rounds: int = 15
    """Interleaved rounds, after one that is not counted."""
    output: Path = speed.FOLDER
    """The folder where the figures go."""


def compiled(function: Callable[[Any], Any], start: Any) -> Ready:
    """Compiles without donation, so that every round starts from the same state."""
    begin = time.perf_counter()
    program = jax.jit(function).lower(start).compile()
    compile_seconds = time.perf_counter() - begin

    def run() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(program(start))
        return time.perf_counter() - begin

    return Ready(run, compile_seconds)


def timed(programs: Mapping[str, Ready], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of every program in rounds that take turns."""
    return interleaved({name: program.run for name, program in programs.items()}, rounds)


# Ours ---------------------------------------------------------------------------------------------


def ppo_optimizer() -> optax.GradientTransformation:
    """Adam with the rate annealed once for each of 976 updates of 16 minibatches."""
    annealed = schedules.held(schedules.warmup_linear(2.5e-4, 976), 16)
    return optimizers.adam(annealed, eps=1e-5, max_norm=0.5)


def our_ppo(updates: int) -> Ready:
    """The learner of `reinforcement/ppo_cartpole`."""
    agent = ppo(nets.actor_critic((64, 64), 2), ppo_optimizer())
    learner = interact(agent, from_gymnax("CartPole-v1"), num_envs=4, num_steps=128)
    fused = repeated(learner, updates)
    return compiled(lambda state: fused.update(state, ()), learner.init(jax.random.key(0), ()))


def our_dqn(updates: int) -> Ready:
    """The learner of `reinforcement/dqn_cartpole`, past its warm-up."""
    agent = dqn(
        nets.q_network((120, 84), 2),
        optimizers.adam(2.5e-4),
        uniform_replay(10_000),
        epsilon=optax.linear_schedule(1.0, 0.05, 250_000),
        warm_up=0,
        double=False,
    )
    learner = interact(agent, from_gymnax("CartPole-v1"), num_envs=1, num_steps=10)
    fused = repeated(learner, updates)
    return compiled(lambda state: fused.update(state, ()), learner.init(jax.random.key(0), ()))


# By hand ------------------------------------------------------------------------------------------


def cartpole() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`reset` and `step` of one pole that begins anew where an episode ends."""
    import gymnax

    env, params = gymnax.make("CartPole-v1")

    def reset(key: jax.Array) -> Any:
        obs, world = env.reset_env(key, params)
        return obs, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), world)

    def step(key: jax.Array, world: Any, action: jax.Array) -> Any:
        step_key, reset_key = jax.random.split(key)
        last_obs, moved, reward, terminated, _ = env.step_env(step_key, world, action, params)
        truncated = env.is_truncated(moved, params)
        done = terminated | truncated
        obs, world = jax.tree.map(
            lambda new, old: jnp.where(done, new, old), reset(reset_key), (last_obs, moved)
        )
        return obs, world, reward, terminated, truncated, last_obs

    return reset, step


def hand_ppo(updates: int) -> Ready:
    """PPO as one function, without a line that it could do without."""
    reset, step = cartpole()
    net, optimizer = nets.actor_critic((64, 64), 2), ppo_optimizer()
    discount, trace = 0.99, 0.95

    def apply(params: Any, obs: jax.Array) -> Any:
        return net.apply(params, {}, obs)[0]

    def loss_of(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        logits, value = apply(params, batch["obs"])
        log_probs = jax.nn.log_softmax(logits)
        log_prob = jnp.take_along_axis(log_probs, batch["action"][:, None], -1)[:, 0]
        advantage = batch["advantage"]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        ratio = jnp.exp(log_prob - batch["log_prob"])
        policy = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage).mean()
        near = batch["value"] + jnp.clip(value - batch["value"], -0.2, 0.2)
        target = batch["advantage"] + batch["value"]
        errors = jnp.maximum(jnp.square(value - target), jnp.square(near - target))
        entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
        return -policy + 0.5 * errors.mean() / 2 - 0.01 * entropy

    def update(carry: Any, _: None) -> tuple[Any, None]:
        params, opt_state, obs, world, key = carry
        key, rollout_key, shuffle_key = jax.random.split(key, 3)

        def act(carry: Any, keys: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
            obs, world = carry
            act_key, step_key = keys
            logits, value = apply(params, obs)
            action = jax.random.categorical(act_key, logits)
            log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], -1)[:, 0]
            new_obs, world, reward, terminated, truncated, last_obs = jax.vmap(step)(
                jax.random.split(step_key, 4), world, action
            )
            seen = {
                "obs": obs,
                "action": action,
                "log_prob": log_prob,
                "value": value,
                "reward": reward,
                "terminated": terminated,
                "truncated": truncated,
                "last_obs": last_obs,
            }
            return (new_obs, world), seen

        keys = jax.random.split(rollout_key, (128, 2))
        (obs, world), seen = jax.lax.scan(act, (obs, world), keys)
        next_value = apply(params, seen["last_obs"].reshape(512, 4))[1].reshape(128, 4)
        going_on = discount * ~seen["terminated"]
        delta = seen["reward"] + going_on * next_value - seen["value"]
        decay = trace * going_on * ~seen["truncated"]

        def back(advantage: Any, xs: Any) -> tuple[Any, jax.Array]:
            advantage = xs[0] + xs[1] * advantage
            return advantage, advantage

        advantage = jax.lax.scan(back, jnp.zeros(4), (delta, decay), reverse=True)[1]
        names = ("obs", "action", "log_prob", "value")
        examples = {**{name: seen[name] for name in names}, "advantage": advantage}
        examples = {name: array.reshape(512, *array.shape[2:]) for name, array in examples.items()}

        def descend(carry: Any, index: jax.Array) -> tuple[Any, None]:
            params, opt_state = carry
            batch = jax.tree.map(lambda leaf: leaf[index], examples)
            grads = jax.grad(loss_of)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        keys = jax.random.split(shuffle_key, 4)
        index = jax.vmap(lambda key: jax.random.permutation(key, 512))(keys).reshape(16, 128)
        (params, opt_state), _ = jax.lax.scan(descend, (params, opt_state), index)
        return (params, opt_state, obs, world, key), None

    def start(key: jax.Array) -> Any:
        obs, world = jax.vmap(reset)(jax.random.split(key, 4))
        params, _ = net.init(key, obs)
        return params, optimizer.init(params), obs, world, key

    return compiled(
        lambda carry: jax.lax.scan(update, carry, None, length=updates)[0],
        start(jax.random.key(0)),
    )


def hand_dqn(updates: int) -> Ready:
    """DQN as one function, without a line that it could do without."""
    reset, step = cartpole()
    net, optimizer = nets.q_network((120, 84), 2), optimizers.adam(2.5e-4)
    epsilon = optax.linear_schedule(1.0, 0.05, 250_000)
    slots, batch_size = 10_000, 128

    def values(params: Any, obs: jax.Array) -> jax.Array:
        return net.apply(params, {}, obs)[0]

    def update(carry: Any, _: None) -> tuple[Any, None]:
        params, target, opt_state, ring, count, obs, world, key = carry
        key, rollout_key, draw_key = jax.random.split(key, 3)

        def act(carry: Any, xs: Any) -> tuple[Any, dict[str, jax.Array]]:
            obs, world = carry
            (random_key, choice_key, step_key), count = xs
            greedy = values(params, obs[None])[0].argmax()
            random = jax.random.randint(choice_key, (), 0, 2)
            explores = jax.random.uniform(random_key) < epsilon(count)
            action = jnp.where(explores, random, greedy)
            new_obs, world, reward, terminated, _, last_obs = step(step_key, world, action)
            seen = {
                "obs": obs,
                "action": action,
                "reward": reward,
                "terminated": terminated,
                "last_obs": last_obs,
            }
            return (new_obs, world), seen

        keys = jax.random.split(rollout_key, (10, 3))
        (obs, world), seen = jax.lax.scan(act, (obs, world), (keys, count + jnp.arange(10)))
        ring = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, count % slots, 0),
            ring,
            seen,
        )
        count += 10
        index = jax.random.randint(draw_key, (batch_size,), 0, jnp.minimum(count, slots))
        batch = jax.tree.map(lambda leaf: leaf[index], ring)
        bootstrap = values(target, batch["last_obs"]).max(-1)
        aim = batch["reward"] + 0.99 * ~batch["terminated"] * bootstrap

        def loss_of(params: Any) -> jax.Array:
            q = values(params, batch["obs"])[jnp.arange(batch_size), batch["action"]]
            return jnp.square(aim - q).mean()

        updates, opt_state = optimizer.update(jax.grad(loss_of)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        target = jax.tree.map(
            lambda new, old: jnp.where(count % 500 == 0, new, old), params, target
        )
        return (params, target, opt_state, ring, count, obs, world, key), None

    def start(key: jax.Array) -> Any:
        obs, world = reset(key)
        params, _ = net.init(key, obs[None])
        ring = {
            "obs": jnp.zeros((slots, 4)),
            "action": jnp.zeros(slots, jnp.int32),
            "reward": jnp.zeros(slots),
            "terminated": jnp.zeros(slots, bool),
            "last_obs": jnp.zeros((slots, 4)),
        }
        target = jax.tree.map(jnp.copy, params)
        return params, target, optimizer.init(params), ring, jnp.int32(0), obs, world, key

    return compiled(
        lambda carry: jax.lax.scan(update, carry, None, length=updates)[0],
        start(jax.random.key(0)),
    )


# Replay -------------------------------------------------------------------------------------------


def replay_programs() -> dict[str, Ready]:
    """Many writes and draws in a loop, where the memory is changed in place."""
    example = {
        "obs": jnp.zeros((10, 1, 4)),
        "action": jnp.zeros((10, 1), jnp.int32),
        "reward": jnp.ones((10, 1)),
        "terminated": jnp.zeros((10, 1), bool),
        "truncated": jnp.zeros((10, 1), bool),
        "final_obs": jnp.zeros((10, 1, 4)),
    }
    programs = {}
    for kind, make in {"uniform": uniform_replay, "prioritised": prioritised_replay}.items():
        for slots in SLOTS:
            replay = make(slots)

            def many(key: jax.Array, replay: Any = replay) -> jax.Array:
                def one(memory: Any, key: jax.Array) -> tuple[Any, jax.Array]:
                    memory = replay.add(memory, example)
                    batch = replay.sample(memory, key, 128, 0.99)
                    memory = replay.update(memory, batch["index"], batch["reward"])
                    return memory, batch["next_obs"].sum()

                # So many that making the memory, once, does not count.
                keys = jax.random.split(key, REPEATS)
                return jax.lax.scan(one, replay.init(example), keys)[1].sum()

            programs[f"{kind}_{slots}"] = compiled(many, jax.random.key(0))
    return programs


# Evaluation ---------------------------------------------------------------------------------------


def evaluation_programs(experiment: ModuleType, make: Callable[..., Agent]) -> dict[str, Ready]:
    """The updates from one evaluation to the next, and one evaluation of the longest kind."""
    config = experiment.Config()
    agent, env = make(config, experiment.network(config)), from_gymnax("CartPole-v1")

    def unending(key: jax.Array, world: Any, action: jax.Array) -> tuple[Any, Timestep]:
        world, timestep = env.step(key, world, action)
        no = jnp.zeros_like(timestep.terminated)
        return world, timestep._replace(terminated=no, truncated=no)

    sizes = {"num_envs": config.num_envs, "num_steps": config.num_steps}
    learner = interact(agent, env, **sizes)
    updates = repeated(learner, config.evaluate_every)
    # An untrained agent is judged at once: it falls. A good one plays 500 steps in each episode.
    judged = interact(agent, env._replace(step=unending), **sizes, max_episode_steps=500)
    start = learner.init(jax.random.key(0), ())
    return {
        "updates": compiled(lambda state: updates.update(state, ()), start),
        "evaluation": compiled(lambda state: judged.evaluate(state, (), state.key), start),
    }


# ----------------------------------------------------------------------------------------------


def evaluation_shares(rounds: int) -> dict[str, Any]:
    """Seconds between two evaluations and of one, and its share of both together."""
    shares = {}
    for experiment, make in ((ppo_cartpole, agents.ppo), (dqn_cartpole, agents.dqn)):
        seconds = timed(evaluation_programs(experiment, make), rounds)
        updates, evaluation = seconds["updates"], seconds["evaluation"]
        shares[experiment.__name__.rpartition(".")[2]] = {
            "updates_seconds": float(np.median(updates)),
            "evaluation_seconds": float(np.median(evaluation)),
            "share": float(np.median(evaluation / (updates + evaluation))),
        }
    return shares


def replay_costs(rounds: int) -> dict[str, Any]:
    """Microseconds of a write of 10 steps and a draw of 128, by kind and number of slots."""
    seconds = timed(replay_programs(), rounds)
    return {
        name: {"microseconds": float(np.median(values) / REPEATS * 1e6)}
        for name, values in seconds.items()
    }


def steps_per_second(steps: int) -> Callable[[Mapping[str, np.ndarray]], dict[str, Any]]:
    """Speeds in the unit of reinforcement learning, of updates of so many environment steps."""

    def derive(seconds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {
            name: {"environment_steps_per_second": float(np.median(steps / values))}
            for name, values in seconds.items()
        }

    return derive


def ppo_system() -> System:
    """To be measured."""
    return System(
        ours={"paradigms": our_ppo},
        bare={"hand": hand_ppo},
        updates=100,
        derive=steps_per_second(PPO_STEPS),
    )


def dqn_system() -> System:
    """To be measured."""
    return System(
        ours={"paradigms": our_dqn},
        bare={"hand": hand_dqn},
        updates=2000,
        derive=steps_per_second(DQN_STEPS),
    )


def main(config: Config, argv: Sequence[str]) -> None:
    """Measures, writes the figures and prints them."""
    from experiments.benchmarks import __main__ as command

    systems = tuple(part for part in config.parts if part in ("ppo", "dqn"))
    if systems:
        command.run(command.Config(systems, peers=True, rounds=config.rounds, output=config.output))
    results: dict[str, Any] = {}
    if "replay" in config.parts:
        results["replay"] = replay_costs(config.rounds)
    if "evaluation_share" in config.parts:
        results["evaluation_share"] = evaluation_shares(config.rounds)
    if results:
        print(json.dumps(results, indent=2))
        path = config.output / "agents.json"
        write(path, {"rounds": config.rounds, **results}, "benchmarks.agents", argv)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__), sys.argv[1:])
