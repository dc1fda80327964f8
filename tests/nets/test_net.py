"""The `Net` adapters and wrappers."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nets

KEY = jax.random.key(0)


class LinenExample(nn.Module):
    """Dense, batch norm, dropout, dense, dropout."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(8)(x))


class NNXExample(nnx.Module):
    """The same network."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)])
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.drop = nnx.List([nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)])

    def __call__(self, x):
        x = self.drop[0](self.norm(self.layers[0](x)))
        return self.drop[1](self.layers[1](x))


def both():
    """Both nets with the same parameters and state: `[(net, params, model_state), ...]`."""
    x = jnp.zeros((2, 4))
    linen, nnx_net = nets.from_linen(LinenExample()), nets.from_nnx(NNXExample)
    params, state = nnx_net.init(KEY, x)
    state = {"norm": {"mean": jnp.arange(8.0), "var": 1 + jnp.arange(8.0)}}
    same = {
        "Dense_0": params["layers"]["0"],
        "Dense_1": params["layers"]["1"],
        "BatchNorm_0": params["norm"],
    }
    shapes = jax.tree.map(jnp.shape, linen.init(KEY, x))
    assert shapes == jax.tree.map(
        jnp.shape, (same, {"batch_stats": {"BatchNorm_0": state["norm"]}})
    )
    return [
        (linen, same, {"batch_stats": {"BatchNorm_0": state["norm"]}}),
        (nnx_net, params, state),
    ]


def test_adapters_agree_in_evaluation():
    x = jax.random.normal(KEY, (5, 4))
    (linen, p1, s1), (other, p2, s2) = both()
    y1, y2 = linen.apply(p1, s1, x)[0], other.apply(p2, s2, x)[0]
    np.testing.assert_allclose(y1, y2, rtol=1e-6)


@pytest.mark.parametrize("which", [0, 1])
def test_adapter_contract(which):
    net, params, state = both()[which]
    x = jax.random.normal(KEY, (64, 4))
    assert jax.tree.leaves(params) and jax.tree.leaves(state)

    # Evaluation: the same objects back, and no key needed or heard.
    y, same = net.apply(params, state, x)
    assert same is state
    np.testing.assert_array_equal(y, net.apply(params, state, x, key=KEY)[0])

    # Training: a function of the key; the two dropouts draw different masks.
    train = jax.jit(lambda p, s, k: net.apply(p, s, x, key=k, train=True))
    (y1, new), (y2, _), (y3, _) = (train(params, state, jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(y1, y2)
    assert not np.array_equal(y1, y3)
    assert jax.tree.structure(new) == jax.tree.structure(state)

    # The running statistics are those of the first layer's output.
    first = params["layers"]["0"] if which else params["Dense_0"]
    hidden = x @ first["kernel"] + first["bias"]
    stats = new["norm"] if which else new["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(
        stats["mean"], 0.9 * jnp.arange(8.0) + 0.1 * hidden.mean(0), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        stats["var"], 0.9 * (1 + jnp.arange(8.0)) + 0.1 * hidden.var(0), rtol=1e-5
    )

    # Half of the outputs are dropped, and the gradient reaches every parameter.
    assert abs(float((y1 == 0).mean()) - 0.5) < 0.1
    grads = jax.grad(lambda p: (net.apply(p, state, x, key=KEY, train=True)[0] ** 2).sum())(params)
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("which", [0, 1])
def test_dropout_without_key_is_refused(which):
    net, params, state = both()[which]
    with pytest.raises(ValueError, match=r"^this net draws .* key=\.\.\., train=True"):
        jax.jit(lambda x: net.apply(params, state, x, train=True))(jnp.ones((2, 4)))


def test_nnx_dropout_layers_are_independent():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.a(x), self.b(x)

    (a, b), _ = nets.from_nnx(Two).apply({}, {}, jnp.ones(1000), key=KEY, train=True)
    assert 400 < int((a != b).sum()) < 600


@pytest.mark.parametrize("net", [nets.from_linen(LinenExample()), nets.from_nnx(NNXExample)])
def test_init_is_a_function_of_the_key_and_traces(net):
    x = jnp.ones((2, 4))
    eager, jitted, other = (
        net.init(KEY, x),
        jax.jit(net.init)(KEY, x),
        net.init(jax.random.key(1), x),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), eager, jitted)
    shapes = jax.eval_shape(net.init, KEY, x)
    assert jax.tree.map(jnp.shape, eager) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    differs = jax.tree.map(lambda a, b: not np.array_equal(a, b), eager[0], other[0])
    assert any(jax.tree.leaves(differs))


def test_net_without_state():
    net = nets.mlp((8,), 3)
    params, state = net.init(KEY, jnp.ones((2, 4)))
    assert state == {}
    assert net.apply(params, state, jnp.ones((2, 4)), train=True)[1] is state


def test_train_argument_by_another_name():
    class Other(nn.Module):
        @nn.compact
        def __call__(self, x, is_training=False):
            return x + is_training

    net = nets.from_linen(Other(), train_argument="is_training")
    assert float(net.apply({}, {}, jnp.zeros(()), train=True)[0]) == 1


def test_chain_composes_by_name():
    backbone, head = nets.mlp((8,), 6, norm="batch"), nets.mlp((), 3)
    net, x = nets.chain(backbone=backbone, head=head), jax.random.normal(KEY, (5, 4))
    params, state = jax.jit(net.init)(KEY, x)
    assert set(params) == set(state) == {"backbone", "head"} and state["head"] == {}
    hidden, new = backbone.apply(params["backbone"], state["backbone"], x, train=True)
    expected, _ = head.apply(params["head"], {}, hidden)
    output, updated = net.apply(params, state, x, train=True)
    np.testing.assert_array_equal(output, expected)
    jax.tree.map(np.testing.assert_array_equal, updated, {"backbone": new, "head": {}})
    assert net.apply(params, state, x)[1] is state


def test_chain_gives_each_part_its_own_key():
    part = nets.mlp((16,), 4, dropout=0.5)
    net = nets.chain(first=part, second=nets.mlp((16,), 4, dropout=0.5))
    params, _ = net.init(KEY, jnp.ones((1, 4)))
    kernels = [params[name]["Dense_0"]["kernel"] for name in ("first", "second")]
    assert not np.array_equal(*kernels)


def test_empty_chain_is_refused():
    with pytest.raises(ValueError, match="at least one net"):
        nets.chain()


def test_preprocess_sees_the_raw_input():
    inner = nets.mlp((), 2)
    net = nets.preprocess(inner, lambda image: (image / 255.0 - 0.5) / 0.25)
    image = jnp.array([[[0], [255]], [[51], [102]]], jnp.uint8)
    params, state = net.init(KEY, image)
    expected, _ = inner.apply(params, state, jnp.array([[-2.0, 2.0], [-1.2, -0.4]]))
    np.testing.assert_allclose(net.apply(params, state, image)[0], expected, rtol=1e-5, atol=1e-6)


def dot_dtypes(function, *inputs):
    """The operand dtypes of every product and convolution in the traced function."""
    found = set()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                found.update(str(operand.aval.dtype) for operand in equation.invars)
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
            ):
                if hasattr(inner, "eqns"):
                    visit(inner)
                elif hasattr(inner, "jaxpr"):
                    visit(inner.jaxpr)

    visit(jax.make_jaxpr(function)(*inputs).jaxpr)
    return found


def test_postprocess_changes_the_output_and_nothing_else():
    inner = nets.mlp((4,), 6, norm="batch", dropout=0.5)
    net = nets.postprocess(inner, lambda y: -y.reshape(-1, 2, 3))
    weights = net.init(KEY, jnp.ones((5, 3)))
    jax.tree.map(np.testing.assert_array_equal, weights, inner.init(KEY, jnp.ones((5, 3))))
    x = jax.random.normal(KEY, (5, 3))
    output, model_state = net.apply(*weights, x, key=KEY, train=True)
    expected, expected_state = inner.apply(*weights, x, key=KEY, train=True)
    np.testing.assert_array_equal(output, -expected.reshape(5, 2, 3))
    jax.tree.map(np.testing.assert_array_equal, model_state, expected_state)


@pytest.mark.parametrize("order", ["precision outside", "preprocess outside"])
def test_bfloat16_policy(order):
    inner = nets.cnn(3, features=(8,), norm="batch", dense=(8,))

    def scale(image):
        return image / 255.0

    if order == "precision outside":
        net = nets.with_precision(nets.preprocess(inner, scale), "bfloat16")
    else:
        net = nets.preprocess(nets.with_precision(inner, "bfloat16"), scale)
    image = jax.random.randint(KEY, (16, 6, 6, 1), 0, 256).astype(jnp.uint8)
    params, state = jax.jit(net.init)(KEY, image)

    def apply(params, state, net=net):
        return net.apply(params, state, image, train=True)

    output, new = jax.jit(apply)(params, state)
    plain = partial(apply, net=nets.preprocess(inner, scale))
    exact, exact_new = jax.jit(plain)(params, state)
    np.testing.assert_allclose(output, exact, atol=0.1)
    assert not np.array_equal(output, exact)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(exact_new), strict=True):
        np.testing.assert_allclose(a, b, atol=0.01)

    grads = jax.eval_shape(jax.grad(lambda p: apply(p, state)[0].sum()), params)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves((output, new, params, grads))}
    assert dtypes == {"float32"}
    assert dot_dtypes(apply, params, state) == {"bfloat16"}


def test_float32_policy_is_the_net_itself():
    net = nets.mlp((), 2)
    assert nets.with_precision(net, "float32") is net


def test_unknown_policy():
    with pytest.raises(ValueError, match="unknown precision 'float16': choose"):
        nets.with_precision(nets.mlp((), 2), "float16")


def test_count_parameters():
    params = {"kernel": jnp.zeros((3, 4)), "bias": jax.ShapeDtypeStruct((4,), jnp.float32)}
    assert nets.count_parameters(params) == 16
