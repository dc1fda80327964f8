"""`--remat`: the same learning, and no work that changes nothing."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import nets
from experiments import cli, tasks, training
from experiments.supervised import digits_mlp
from nets.remat import call_block
from paradigms.core import optimizers
from paradigms.core.errors import InputError
from paradigms.supervised import classifier

DATA = {
    "image": np.asarray(jax.random.normal(jax.random.key(1), (16, 4))),
    "label": np.arange(16) % 4,
}


class Blocks(nn.Module):
    """Two blocks that draw, each a dense layer with dropout."""

    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(2):
            x = call_block(nn.Dense(4), nn.tanh(x))
            x = nn.Dropout(0.2, deterministic=not train)(x)
        return x


def train(directory, net, remat):
    learner = classifier(net, optimizers.adam(0.01))
    task = tasks.labelled(net, learner, train=DATA, batch_size=8, validation=None, test=DATA)
    options = cli.Options((0,), 4, 4, run_dir=directory, remat=remat)
    return training.train(digits_mlp.main, options, task)


def test_a_run_learns_the_same(tmp_path, monkeypatch):
    again, remat = [], nn.remat
    monkeypatch.setattr(nn, "remat", lambda function: again.append(function) or remat(function))
    monkeypatch.setattr(training, "_check_memory_options", lambda *_: None)  # which traces them too
    net = nets.from_linen(Blocks())
    plain = train(tmp_path / "plain", net, remat=False)
    assert not again
    forgetful = train(tmp_path / "forgetful", net, remat=True)
    assert again
    loss = [each["metrics"]["test/loss"]["mean"] for each in (plain, forgetful)]
    np.testing.assert_allclose(*loss, rtol=1e-5)
    # A model's operations are its own: utilisation is not raised by doing them twice.
    flops = [each["speed"]["flops_per_update"] for each in (plain, forgetful)]
    assert flops[0] == flops[1] > 0


def test_nets_without_blocks_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="--remat: the nets of this experiment have no blocks"):
        train(tmp_path, nets.mlp((4,), 4), remat=True)
    assert not (tmp_path / "metrics.csv").exists()
