"""The projection head, beside the perceptron that it almost is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nets

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (32, 2, 3))


@pytest.mark.parametrize("features", [(), (8,), (8, 7)])
@pytest.mark.parametrize("train", [False, True])
def test_it_is_a_perceptron_without_the_last_bias(features, train):
    net, mlp = nets.projector(features, 4), nets.mlp(features, 4, norm="batch")
    params, model_state = jax.jit(net.init)(KEY, X)
    last = params[f"Dense_{len(features)}"]
    assert all(set(layer) == {"kernel"} for name, layer in params.items() if "Dense" in name)
    with_bias = {**params, f"Dense_{len(features)}": {**last, "bias": jnp.zeros(4)}}

    @jax.jit
    def both():
        return (
            net.apply(params, model_state, X, train=train),
            mlp.apply(with_bias, model_state, X, train=train),
        )

    jax.tree.map(np.testing.assert_array_equal, *both())
    start, _ = jax.jit(mlp.init)(KEY, X)
    del start[f"Dense_{len(features)}"]["bias"]
    jax.tree.map(np.testing.assert_array_equal, params, start)


def test_the_last_norm_has_no_parameters_and_whitens_each_output():
    plain, net = nets.projector((8,), 4), nets.projector((8,), 4, final_norm=True)
    (bare, _), (params, model_state) = (jax.jit(each.init)(KEY, X) for each in (plain, net))
    assert jax.tree.map(jnp.shape, bare) == jax.tree.map(jnp.shape, params)
    y, after = jax.jit(lambda: net.apply(params, model_state, 100 * X, train=True))()
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(0), 1, atol=1e-4)
    # Running statistics, and their use.
    inner, _ = jax.jit(lambda: plain.apply(params, model_state, 100 * X, train=True))()
    stats = after["batch_stats"]["final_norm"]
    np.testing.assert_allclose(stats["mean"], 0.1 * inner.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * inner.var(0), rtol=1e-4)
    still, same = jax.jit(lambda: net.apply(params, after, X))()
    bare, _ = jax.jit(lambda: plain.apply(params, after, X))()
    expected = (bare - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(still, expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, same, after)


def test_in_bfloat16():
    net = nets.with_precision(nets.projector((8,), 4, final_norm=True), "bfloat16")

    def run():
        params, model_state = net.init(KEY, X)
        return net.apply(params, model_state, X, train=True), model_state

    (y, after), before = jax.eval_shape(run)
    assert (y.shape, y.dtype) == ((32, 4), jnp.float32) and after == before


@pytest.mark.parametrize(("features", "outputs"), [((0,), 2), ((4,), 0)])
def test_bad_widths_are_named_in_one_line(features, outputs):
    with pytest.raises(ValueError, match=r"^projector: widths \(.*\) must all be at least 1$"):
        nets.projector(features, outputs)
