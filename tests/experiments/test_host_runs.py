"""A run in worlds on the host resumes with new episodes, and its summary says so."""

import json
import shutil

import pytest

import nets
from experiments import agents
from experiments.reinforcement import ppo_atari
from paradigms.reinforcement import from_gymnasium

pytest.importorskip("gymnasium", reason="the extra `rl` is not installed")


def train(directory):
    config = ppo_atari.Config(
        seeds=(0,),
        steps=4,
        evaluate_every=2,
        num_envs=2,
        num_steps=4,
        epochs=1,
        minibatches=1,
        episodes=2,
        max_frames=80,
        run_dir=directory,
    )
    net = nets.actor_critic((8,), 2)
    agents.train_on_host(ppo_atari.main, config, net, agents.ppo(config, net))
    return json.loads((directory / "summary.json").read_text())


def test_the_summary_says_where_worlds_began_anew(tmp_path, monkeypatch):
    # A pole stands for the game.
    monkeypatch.setattr(agents, "from_atari", lambda *_, **__: from_gymnasium("CartPole-v1"))
    whole = train(tmp_path)
    # As if it had been killed after the checkpoint of step 2.
    (tmp_path / "summary.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    halved = train(tmp_path)
    assert [run["worlds_begun_anew_at"] for run in (whole, halved)] == [None, 2]
    # It did the rest of the updates, in episodes that the whole run had not seen.
    assert [run["speed"]["steps_this_session"] for run in (whole, halved)] == [4, 2]
    assert halved["runs"][0]["state_sha256"] != whole["runs"][0]["state_sha256"]
