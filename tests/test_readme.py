"""The code that the README shows runs as printed, apart from its length."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nets
from paradigms.core import optimizers

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_idea_in_one_screen(capsys):
    short = BLOCKS[0].replace("steps=1000", "steps=100").replace("100)", "50)")
    assert short != BLOCKS[0]
    exec(compile(short, "README.md", "exec"), {})
    accuracies = np.array(capsys.readouterr().out.strip("[]\n").split(), float)
    assert accuracies.shape == (5,)
    assert (accuracies > 0.6).all()  # a tenth of the length; chance is 0.1


def test_the_learner_to_copy_learns():
    scope: dict = {}
    (block,) = [block for block in BLOCKS if "def least_squares" in block]
    exec(compile(block, "README.md", "exec"), scope)
    learner = scope["least_squares"](nets.mlp((), 1), optimizers.sgd(0.1))
    x = jax.random.normal(jax.random.key(0), (64, 3))
    batch = {"x": x, "target": x @ jnp.array([[1.0], [-2.0], [0.5]]) + 3}
    state = learner.init(jax.random.key(1), batch)
    update = jax.jit(learner.update)
    for _ in range(200):
        state, _ = update(state, batch)
    assert learner.evaluate(state, batch, jax.random.key(2))["loss"].value() == pytest.approx(
        0, abs=1e-6
    )


def test_the_commands_name_experiments_that_exist():
    for name in re.findall(r"python -m (experiments\.\w+\.\w+)", README):
        assert (Path(__file__).parents[1] / (name.replace(".", "/") + ".py")).exists(), name
