"""Heads and torsos for reinforcement learning: sizes, initialisation and hand-computed outputs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax import lax

import nets
from nets import heads
from nets.heads import NoisyDense

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 4))
ATARI = (84, 84, 4)


def start(net, *inputs):
    """The params at KEY; these nets have no other state."""
    params, state = jax.jit(net.init)(KEY, *inputs)
    assert state == {}
    return params


def count(net, *shapes):
    inputs = [jnp.zeros((1, *shape)) for shape in shapes]
    return nets.count_parameters(jax.eval_shape(net.init, KEY, *inputs)[0])


def dense(*widths):
    """The parameters of dense layers from one width to the next."""
    return sum(p * q + q for p, q in zip(widths, widths[1:], strict=False))


MINATAR, NATURE = dense(9 * 6, 16) + dense(8 * 8 * 16, 128), 1_684_128


@pytest.mark.parametrize(
    "net, shapes, expected",
    [
        (nets.actor_critic((64, 64), 2), [(4,)], dense(4, 64, 64, 2) + dense(4, 64, 64, 1)),
        (nets.actor_critic((64, 64), 2, shared=True), [(4,)], dense(4, 64, 64) + dense(64, 3)),
        (
            nets.actor_critic((8,), 3, continuous=True),
            [(4,)],
            dense(4, 8, 3) + dense(4, 8, 1) + 3,
        ),
        (nets.q_network((120, 84), 2), [(2, 2)], dense(4, 120, 84, 2)),
        (nets.q_network((), 3), [(4,)], dense(4, 3)),
        (
            nets.q_network((9, 8), 3, duelling=True),
            [(4,)],
            dense(4, 9) + dense(9, 8, 3) + dense(9, 8, 1),
        ),
        (nets.q_network((), 3, duelling=True), [(4,)], dense(4, 3) + dense(4, 1)),
        (nets.q_network((8,), 3, atoms=51), [(4,)], dense(4, 8, 3 * 51)),
        (
            nets.q_network((8,), 3, duelling=True, atoms=51, noisy=True),
            [(4,)],
            2 * (dense(4, 8, 3 * 51) + dense(4, 8, 51)),
        ),
        (nets.squashed_gaussian((8,), 3), [(4,)], dense(4, 8) + 2 * dense(8, 3)),
        (nets.deterministic_actor((8,), 3), [(4,)], dense(4, 8, 3)),
        (nets.critic((8,)), [(4,), (3,)], dense(7, 8, 1)),
        (nets.minatar_cnn(), [(10, 10, 6)], MINATAR),
        # Three convolutions, a map of 7 x 7 x 64, and 512 units (Mnih et al. 2015).
        (
            nets.nature_cnn(),
            [ATARI],
            dense(8 * 8 * 4, 32) + dense(4 * 4 * 32, 64) + dense(9 * 64, 64) + dense(3136, 512),
        ),
        (nets.nature_cnn(), [ATARI], NATURE),
        (
            nets.chain(torso=nets.minatar_cnn(), head=nets.q_network((), 3)),
            [(10, 10, 6)],
            MINATAR + dense(128, 3),
        ),
        (
            nets.chain(torso=nets.nature_cnn(), head=nets.actor_critic((), 6, shared=True)),
            [ATARI],
            NATURE + dense(512, 7),
        ),
    ],
)
def test_counts_by_hand(net, shapes, expected):
    assert count(net, *shapes) == expected


SMALL = {
    "actor_critic": (nets.actor_critic((8,), 3), [(4,)], ((3,), ())),
    "continuous": (
        nets.actor_critic((8,), 3, shared=True, continuous=True),
        [(4,)],
        (((3,), (3,)), ()),
    ),
    "q": (nets.q_network((8,), 3), [(2, 2)], (3,)),
    "rainbow": (nets.q_network((8,), 3, duelling=True, atoms=5, noisy=True), [(4,)], (3, 5)),
    "squashed_gaussian": (nets.squashed_gaussian((8,), 3), [(4,)], ((3,), (3,))),
    "deterministic_actor": (nets.deterministic_actor((8,), 3), [(4,)], (3,)),
    "critic": (nets.critic((8,)), [(4,), (3,)], ()),
    "minatar": (nets.minatar_cnn(), [(10, 10, 4)], (128,)),
    "nature": (nets.nature_cnn(), [ATARI], (512,)),
    "chained": (
        nets.chain(torso=nets.minatar_cnn(), head=nets.actor_critic((), 3)),
        [(10, 10, 4)],
        ((3,), ()),
    ),
}


@pytest.mark.parametrize(
    "policy, dtype", [("float32", jnp.float32), ("float32", jnp.bool), ("bfloat16", jnp.uint8)]
)
@pytest.mark.parametrize("name", SMALL)
def test_shapes_and_dtypes(name, policy, dtype):
    net, shapes, expected = SMALL[name]
    net = nets.with_precision(net, policy)
    obs, *action = [jnp.zeros((2, *shape)) for shape in shapes]
    inputs = (obs.astype(dtype), *action)

    def both():
        params, state = net.init(KEY, *inputs)
        return [
            params,
            net.apply(params, state, *inputs)[0],
            net.apply(params, state, *inputs, key=KEY, train=True)[0],
        ]

    params, *outputs = jax.eval_shape(both)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    for output in outputs:
        shapes = jax.tree.map(lambda leaf: leaf.shape[1:], output)
        assert shapes == expected
        assert all(
            (leaf.shape[0], leaf.dtype) == (2, jnp.float32) for leaf in jax.tree.leaves(output)
        )


def test_half_precision_is_half_whatever_the_input():
    net = nets.with_precision(nets.q_network((8,), 3), "bfloat16")
    for dtype in (jnp.float32, jnp.uint8, jnp.bool):
        x = X.astype(dtype)
        program = str(jax.make_jaxpr(net.apply)(start(net, x), {}, x))
        products = [line for line in program.splitlines() if "dot_general" in line]
        assert products and all("bf16" in line for line in products)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_has_a_gradient(name):
    net, shapes, _ = SMALL[name]
    shapes = [(36, 36, 4) if shape == ATARI else shape for shape in shapes]
    inputs = [jax.random.normal(KEY, (3, *shape)) for shape in shapes]
    params, state = jax.jit(net.init)(KEY, *inputs)

    @jax.jit
    def gradient(params):
        def loss(params):
            outputs = jax.tree.leaves(net.apply(params, state, *inputs, key=KEY, train=True)[0])
            return sum((output - 1.5).sum() ** 2 + (output**3).sum() for output in outputs)

        return jax.grad(loss)(params)

    for path, leaf in jax.tree.leaves_with_path(gradient(params)):
        assert np.isfinite(leaf).all() and (leaf != 0).any(), path


def test_integer_inputs_count_as_numbers():
    net = nets.actor_critic((8,), 3)
    x = np.arange(20, dtype=np.uint8).reshape(5, 4) * 12
    params, apply = start(net, x), jax.jit(net.apply)
    expected = apply(params, {}, jnp.asarray(x, jnp.float32))[0]
    jax.tree.map(np.testing.assert_array_equal, apply(params, {}, x)[0], expected)
    divided = nets.preprocess(net, lambda x: x / 255)
    expected = apply(params, {}, jnp.asarray(x, jnp.float32) / 255)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        divided.apply(params, {}, x)[0],
        expected,
    )


def assert_orthogonal(kernel, gain):
    w = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
    product = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    np.testing.assert_allclose(product, gain**2 * np.eye(len(product)), atol=1e-5 * gain)


@pytest.mark.parametrize("shared", [True, False])
def test_actor_critic_is_orthogonal_with_its_gains(shared):
    params = start(nets.actor_critic((16, 12), 3, shared=shared), X)
    gains = {"policy": 0.01, "value": 1.0}
    assert set(params) == {*gains} | ({"hidden"} if shared else {"hidden_policy", "hidden_value"})
    for name, layers in params.items():
        for layer in [layers] if name in gains else [layers["Dense_0"], layers["Dense_1"]]:
            assert_orthogonal(layer["kernel"], gains.get(name, np.sqrt(2)))
            np.testing.assert_array_equal(layer["bias"], 0)


def test_torsos_are_orthogonal():
    for net, shape in ((nets.minatar_cnn(), (1, 10, 10, 4)), (nets.nature_cnn(), (1, 36, 36, 4))):
        for layer in start(net, jnp.zeros(shape)).values():
            assert_orthogonal(layer["kernel"], np.sqrt(2))
            np.testing.assert_array_equal(layer["bias"], 0)


@pytest.mark.parametrize(
    "net, inputs",
    [
        (nets.q_network((60, 50), 40, duelling=True), (X,)),
        (nets.squashed_gaussian((60, 50), 40), (X,)),
        (nets.deterministic_actor((60, 50), 40), (X,)),
        (nets.critic((60, 50)), (X, X)),
    ],
)
def test_value_nets_and_squashed_actors_are_uniform_by_fan_in(net, inputs):
    for path, leaf in jax.tree.leaves_with_path(start(net, *inputs)):
        if path[-1].key == "bias":
            np.testing.assert_array_equal(leaf, 0)
        else:
            scaled = np.ravel(leaf) * np.sqrt(leaf.shape[0])
            assert scipy.stats.kstest(scaled, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3, path


@pytest.mark.parametrize("actions", [2, 6, 18])
def test_the_first_policy_is_all_but_uniform(actions):
    net = nets.actor_critic((64, 64), actions)
    x = 10 * jax.random.normal(KEY, (200, 4))
    logits = np.asarray(net.apply(start(net, x), {}, x)[0][0], np.float64)
    assert np.ptp(logits, -1).min() > 0
    entropy = scipy.stats.entropy(np.exp(logits), axis=-1)
    np.testing.assert_allclose(entropy, np.log(actions), atol=1e-3)


@pytest.mark.parametrize("shared", [True, False])
def test_actor_critic_by_hand(shared):
    net = nets.actor_critic((2,), 2, shared=shared, continuous=True)
    hidden = {"Dense_0": {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.array([0.5, 0.0])}}
    other = {"Dense_0": {"kernel": jnp.array([[2.0, 0.0]]), "bias": jnp.array([0.0, 1.0])}}
    params = {
        "policy": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.array([0.1, 0.2])},
        "value": {"kernel": jnp.array([[5.0], [6.0]]), "bias": jnp.array([-1.0])},
        "log_std": jnp.array([-0.3, 0.4]),
        **({"hidden": hidden} if shared else {"hidden_policy": hidden, "hidden_value": other}),
    }
    (mean, log_std), value = net.apply(params, {}, jnp.array([[1.0], [-2.0]]))[0]
    up, down = np.tanh([1.5, -1.0]), np.tanh([-1.5, 2.0])
    weights = np.array([[1, 2], [3, 4]])
    np.testing.assert_allclose(mean, [up @ weights + [0.1, 0.2], down @ weights + [0.1, 0.2]], 1e-5)
    np.testing.assert_allclose(log_std, np.float32([[-0.3, 0.4]] * 2))
    if not shared:
        up, down = np.tanh([2.0, 1.0]), np.tanh([-4.0, 1.0])
    np.testing.assert_allclose(value, np.array([up, down]) @ [5, 6] - 1, rtol=1e-5)


def test_log_std_starts_at_zero_whatever_the_state():
    net = nets.actor_critic((8,), 3, continuous=True)
    params = start(net, X)
    np.testing.assert_array_equal(params["log_std"], np.zeros(3))
    (_, log_std), _ = net.apply(params, {}, X)[0]
    np.testing.assert_array_equal(log_std, np.zeros((5, 3)))


def test_unshared_outputs_share_nothing():
    net = nets.actor_critic((8,), 3)
    params = start(net, X)
    gradient = jax.grad(lambda p: net.apply(p, {}, X)[0][1].sum())(params)
    for name, layers in gradient.items():
        for leaf in jax.tree.leaves(layers):
            assert (leaf != 0).any() == (name in ("value", "hidden_value"))


@pytest.mark.parametrize("atoms", [None, 2])
def test_duelling_by_hand_and_blind_to_a_constant_advantage(atoms):
    net = nets.q_network((), 3, duelling=True, atoms=atoms)
    n = atoms or 1
    advantage = np.arange(1.0, 3 * n + 1) ** 2
    value = np.arange(10.0, 10 + n)
    params = {
        "advantage": {"kernel": jnp.zeros((4, 3 * n)), "bias": jnp.float32(advantage)},
        "value": {"kernel": jnp.zeros((4, n)), "bias": jnp.float32(value)},
    }
    q = net.apply(params, {}, X)[0]
    table = advantage.reshape(3, n)
    expected = value + table - table.mean(0)
    np.testing.assert_allclose(q, [expected if atoms else expected[:, 0]] * 5, atol=1e-5)
    params["advantage"]["bias"] += 7.0
    np.testing.assert_allclose(net.apply(params, {}, X)[0], q, atol=1e-5)
    params["value"]["bias"] += 7.0
    np.testing.assert_allclose(net.apply(params, {}, X)[0], q + 7, atol=1e-5)


def test_q_network_by_hand():
    net = nets.q_network((2,), 2)
    params = {
        "hidden_0": {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.array([0.5, 0.0])},
        "q": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.array([0.0, -1.0])},
    }
    # Hidden (1.5, 0) for 1 and (0, 2) for -2.
    q = net.apply(params, {}, jnp.array([[1.0], [-2.0]]))[0]
    np.testing.assert_allclose(q, [[1.5, 2.0], [6.0, 7.0]])


def test_each_action_has_its_own_run_of_atoms():
    net = nets.q_network((), 3, atoms=4)
    params = {"q": {"kernel": jnp.zeros((4, 12)), "bias": jnp.arange(12.0)}}
    np.testing.assert_array_equal(net.apply(params, {}, X)[0][0], np.arange(12).reshape(3, 4))


def test_noise_differs_by_key_and_layer_and_rests_in_evaluation():
    net = nets.q_network((8,), 3, noisy=True)
    params, apply = start(net, X), jax.jit(net.apply, static_argnames="train")
    drawn = [apply(params, {}, X, key=jax.random.key(i), train=True)[0] for i in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.allclose(drawn[0], drawn[2], atol=1e-3)
    still = apply(params, {}, X)[0]
    np.testing.assert_array_equal(still, apply(params, {}, X, key=KEY)[0])
    # The mean weights are those of a net without noise.
    means = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if path[-1].key.endswith("sigma") else leaf, params
    )
    np.testing.assert_array_equal(apply(means, {}, X, key=KEY, train=True)[0], still)
    plain = {
        name: {part: layer[part] for part in ("kernel", "bias")} for name, layer in params.items()
    }
    quiet = nets.q_network((8,), 3).apply(plain, {}, X)[0]
    np.testing.assert_allclose(quiet, still, rtol=1e-5)
    with pytest.raises(ValueError, match="call apply with key=..., train=True"):
        net.apply(params, {}, X, train=True)


@pytest.mark.parametrize("options, sigma", [({}, 0.5), ({"sigma": 0.1}, 0.1)])
def test_noisy_layers_start_as_in_the_paper(options, sigma):
    params = start(nets.q_network((64,), 50, noisy=True, **options), X)
    for name, p in (("hidden_0", 4), ("q", 64)):
        layer = params[name]
        for part in ("kernel_sigma", "bias_sigma"):
            np.testing.assert_allclose(layer[part], sigma / np.sqrt(p), rtol=1e-6)
        for part in ("kernel", "bias"):
            scaled = np.ravel(layer[part]) * np.sqrt(p)
            assert scipy.stats.kstest(scaled, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3


def noisy_layer():
    """A noisy layer of two outputs, its params, and `(inputs, key) -> outputs` in training."""
    net = nets.from_linen(NoisyDense(2))
    params = jax.jit(lambda key: net.init(key, jnp.ones((1, 3)))[0])(KEY)
    return params, jax.jit(lambda x, key: net.apply(params, {}, x, key=key, train=True)[0])


def test_noise_has_the_variance_of_the_factors():
    # f(e)^2 = |e| has mean sqrt(2/pi), so the kernel's noise has variance sigma^2 2/pi and the
    # bias's sigma^2 sqrt(2/pi). They are uncorrelated, for f(e_in) has mean 0, and x = (1, 2, 0)
    # gives Var y = sigma^2 ((1 + 4) 2/pi + sqrt(2/pi)).
    params, apply = noisy_layer()
    x, draws = jnp.array([[1.0, 2.0, 0.0]] * 2), 20_000
    y = jax.vmap(apply, (None, 0))(x, jax.random.split(KEY, draws))
    y = np.asarray(y, np.float64)
    np.testing.assert_array_equal(y[:, 0], y[:, 1])  # one draw for the whole batch
    y = y[:, 0] - (x[0] @ params["kernel"] + params["bias"])
    assert (abs(y.mean(0)) < 4 * y.std(0) / np.sqrt(draws)).all()
    variance = 0.25 / 3 * (5 * 2 / np.pi + np.sqrt(2 / np.pi))
    np.testing.assert_allclose(y.var(0), variance, rtol=0.08)


def test_noise_is_an_outer_product_of_signed_roots():
    params, apply = noisy_layer()
    sigma = 0.5 / np.sqrt(3)

    def factors(key):
        """f(e_in) f(e_out)^T and f(e_out), from what the layer does to 0 and to unit vectors."""
        y = apply(jnp.concatenate([jnp.eye(3), jnp.zeros((1, 3))]), key)
        return (y[:3] - y[3] - params["kernel"]) / sigma, (y[3] - params["bias"]) / sigma

    product, outward = jax.vmap(factors)(jax.random.split(KEY, 2000))
    product, outward = np.asarray(product, np.float64), np.asarray(outward, np.float64)
    inward = product[:, :, 0] / outward[:, :1]
    np.testing.assert_allclose(
        product, inward[:, :, None] * outward[:, None, :], atol=1e-4 * abs(inward).max()
    )
    for factor in (*inward.T, *outward.T):
        # Undoing f gives the standard normal numbers back.
        normal = np.sign(factor) * factor**2
        assert scipy.stats.kstest(normal, "norm").pvalue > 1e-3


def test_squashed_gaussian_bounds_log_std_and_keeps_its_gradient():
    net = nets.squashed_gaussian((), 1)
    layer = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
    params = {"hidden": {}, "mean": layer, "log_std": layer}
    x = jnp.array([[-50.0], [0.0], [0.5], [50.0]])
    mean, log_std = net.apply(params, {}, x)[0]
    np.testing.assert_array_equal(mean, x)
    expected = [[-5], [-1.5], [-1.5 + 3.5 * np.tanh(0.5)], [2]]
    np.testing.assert_allclose(log_std, expected, atol=1e-5)
    slope = jax.grad(lambda x: net.apply(params, {}, x)[0][1].sum())(jnp.array([[3.0]]))
    np.testing.assert_allclose(slope, 3.5 / np.cosh(3.0) ** 2, rtol=1e-3)


def test_deterministic_actor_and_critic_by_hand():
    hidden = {"Dense_0": {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.array([0.5, 0.0])}}
    out = {"kernel": jnp.array([[1.0], [2.0]]), "bias": jnp.array([-1.0])}
    x = jnp.array([[1.0], [-2.0]])
    action = nets.deterministic_actor((2,), 1).apply({"hidden": hidden, "action": out}, {}, x)[0]
    np.testing.assert_allclose(action, np.tanh([[0.5], [3.0]]), rtol=1e-6)
    # Observation first, action second: relu(obs - action) and relu(action).
    hidden = {"Dense_0": {"kernel": jnp.array([[1.0, 0.0], [-1.0, 1.0]]), "bias": jnp.zeros(2)}}
    q = nets.critic((2,)).apply({"hidden": hidden, "value": out}, {}, x, jnp.array([[0.5], [3.0]]))
    np.testing.assert_allclose(q[0], [0.5 + 1 - 1, 0 + 6 - 1])


def convolutions(size, stride):
    """The convolution of the torsos and XLA's own, with inputs for them."""
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    functions = [
        lambda x, k, f=f: f(x, k, (stride, stride), "VALID", **layout)
        for f in (heads._convolve, lax.conv_general_dilated)
    ]
    x = jax.random.normal(KEY, (2, 9, 11, 3))
    return functions, (x, jax.random.normal(jax.random.key(1), (size, size, 3, 5)))


@pytest.mark.parametrize("size, stride", [(3, 1), (4, 2), (5, 4)])
def test_patches_are_the_convolution_of_xla(size, stride):
    functions, inputs = convolutions(size, stride)

    def loss(function, x, kernel):
        y = function(x, kernel)
        return (y**2).sum(), y

    (mine, y), (reference, expected) = (
        jax.jit(jax.grad(partial(loss, function), (0, 1), has_aux=True))(*inputs)
        for function in functions
    )
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    for gradient, wanted in zip(mine, reference, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("backend, product", [("cpu", True), ("gpu", False), ("tpu", False)])
def test_only_the_cpu_convolves_by_patches(backend, product, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    (mine, _), inputs = convolutions(3, 1)
    program = str(jax.make_jaxpr(mine)(*inputs))
    assert ("conv_general_dilated" not in program) == product


def test_minatar_torso_by_hand():
    # One filter picks the lower right corner of its window in channel 1; one unit sums its map.
    net = nets.minatar_cnn()
    x = jax.random.normal(KEY, (2, 5, 6, 2))
    params = jax.tree.map(jnp.zeros_like, start(net, x))
    params["Conv_0"]["kernel"] = params["Conv_0"]["kernel"].at[2, 2, 1, 3].set(1.0)
    places = jnp.arange(3 * 4 * 16) % 16 == 3
    # Unit 8 is below zero, and cut off.
    signs = jnp.array([1.0, -1.0])
    params["Dense_0"]["kernel"] = params["Dense_0"]["kernel"].at[places, 7:9].set(signs)
    y = net.apply(params, {}, x)[0]
    np.testing.assert_allclose(y[:, 7], np.maximum(x[:, 2:, 2:, 1], 0).sum((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(np.delete(y, 7, 1), 0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nets.actor_critic((4,), 0), r"actor_critic: widths \(4, 0\) must all be"),
        (lambda: nets.actor_critic((4,), 2, activation="rely"), "unknown activation 'rely'"),
        (lambda: nets.q_network((0,), 2), r"q_network: widths \(0, 2\) must all be at least 1"),
        (lambda: nets.q_network((4,), 2, atoms=1), "1 atoms make no distribution: choose at least"),
        (lambda: nets.q_network((4,), 2, noisy=True, sigma=-0.5), "sigma=-0.5 is the size of nois"),
        (lambda: nets.q_network((4,), 2, activation="rely"), "unknown activation 'rely'"),
        (lambda: nets.squashed_gaussian((4,), 0), r"squashed_gaussian: widths \(4, 0\)"),
        (lambda: nets.deterministic_actor((-1,), 2), r"deterministic_actor: widths \(-1, 2\)"),
        (lambda: nets.critic((0,)), r"critic: widths \(0, 1\) must all be at least 1"),
        (
            lambda: nets.nature_cnn().init(KEY, jnp.zeros((2, 84, 35, 4))),
            r"images of shape \(2, 84, 35, 4\) do not fit .* H and W at least 36",
        ),
        (
            lambda: nets.minatar_cnn().init(KEY, jnp.zeros((10, 10, 4))),
            r"images of shape \(10, 10, 4\) do not fit .* expected \[B, H, W, C\] .* at least 3",
        ),
    ],
)
def test_bad_options_are_named_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
