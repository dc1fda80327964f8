"""Nets that compute their blocks again: the same function and gradient, and less to keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nets

IMAGES = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
TOKENS = jax.random.randint(jax.random.key(0), (2, 16), 0, 9)
SIZES = {"layers": 2, "heads": 2, "width": 16, "context": 16, "dropout": 0.2}
KEPT = jnp.tile(jnp.arange(8), (2, 1))

NETS = {
    "vit": (nets.vit(4, 16, 2, 2, 32, 5, dropout=0.2, stochastic_depth=0.2), (IMAGES,)),
    "gpt": (nets.gpt(9, **SIZES)[0], (TOKENS,)),
    "bert": (nets.bert(9, **SIZES), (TOKENS, jnp.ones(TOKENS.shape, bool))),
    "mae_encoder": (nets.mae_encoder(4, 16, 2, 2, 32), (IMAGES, KEPT)),
    "resnet": (nets.resnet_cifar(8), (IMAGES,)),
    "wide_resnet": (nets.wide_resnet(10, 1, dropout=0.2), (IMAGES,)),
}


def loss_of(net, model_state, inputs):
    def loss(params):
        output, new = net.apply(params, model_state, *inputs, key=jax.random.key(2), train=True)
        return jnp.square(output).mean(), new

    return loss


def bytes_kept(loss, params):
    """What the gradient needs of the loss, but for the parameters, which are there in any case."""
    saved = jax.eval_shape(lambda params: jax.vjp(loss, params, has_aux=True)[1], params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(saved))
    return size - 4 * nets.count_parameters(params)


@pytest.mark.parametrize("name", NETS)
def test_less_is_kept(name):
    net, inputs = NETS[name]
    forgetful = nets.rematerialised(net)
    shapes = jax.eval_shape(net.init, jax.random.key(1), *inputs)
    assert jax.eval_shape(forgetful.init, jax.random.key(1), *inputs) == shapes
    params, model_state = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    size, less = (
        bytes_kept(loss_of(each, model_state, inputs), params) for each in (net, forgetful)
    )
    assert less < 0.5 * size


@pytest.mark.parametrize(
    "name", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vit", "resnet"))]
)
def test_gradients_and_what_is_drawn_are_the_same(name):
    net, inputs = NETS[name]
    params, model_state = net.init(jax.random.key(1), *inputs)
    found = [
        jax.jit(jax.grad(loss_of(each, model_state, inputs), has_aux=True))(params)
        for each in (net, nets.rematerialised(net))
    ]
    for first, second in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(second, first, rtol=1e-4, atol=1e-6)


def test_a_net_without_blocks_is_refused():
    net = nets.rematerialised(nets.mlp((4,), 2))
    params, model_state = net.init(jax.random.key(0), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="no blocks"):
        net.apply(params, model_state, jnp.ones((1, 3)))


def test_only_what_is_traced_within_forgets():
    net, inputs = NETS["vit"]
    params, model_state = net.init(jax.random.key(1), *inputs)
    before = bytes_kept(loss_of(net, model_state, inputs), params)
    with nets.rematerialising() as blocks:
        assert not blocks
        within = bytes_kept(loss_of(net, model_state, inputs), params)
    assert set(blocks) == {"EncoderBlock_0", "EncoderBlock_1"}
    assert within < before == bytes_kept(loss_of(net, model_state, inputs), params)
