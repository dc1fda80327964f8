"""Generator and critic of DCGAN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nets.dcgan import dcgan_critic, dcgan_generator
from nets.net import count_parameters

KEY = jax.random.key(0)


def shapes(net, *inputs):
    return jax.eval_shape(net.init, KEY, *inputs)


def kernels(params):
    """The kernels by the names of their layers."""
    return {name: layer["kernel"] for name, layer in params.items() if "kernel" in layer}


@pytest.mark.parametrize(
    ("shape", "generator_parameters", "critic_parameters"),
    [
        # 100 -> 7x7x128 -> 14x14x64 -> 28x28x1: kernels, batch norms (2 each), the last bias.
        (
            (28, 28, 1),
            100 * 49 * 128 + 16 * 128 * 64 + 16 * 64 + 1 + 2 * (128 + 64),
            16 * 64 + 64 + 16 * 64 * 128 + 2 * 128 + 49 * 128 + 1,
        ),
        # 100 -> 4x4x256 -> 8x8x128 -> 16x16x64 -> 32x32x3.
        (
            (32, 32, 3),
            100 * 16 * 256 + 16 * (256 * 128 + 128 * 64 + 64 * 3) + 3 + 2 * (256 + 128 + 64),
            16 * (3 * 64 + 64 * 128 + 128 * 256) + 64 + 2 * (128 + 256) + 16 * 256 + 1,
        ),
    ],
)
def test_sizes_by_hand(shape, generator_parameters, critic_parameters):
    z, x = jnp.zeros((5, 100)), jnp.zeros((5, *shape))
    generator, critic = dcgan_generator(shape), dcgan_critic(shape)
    params, model_state = shapes(generator, z)
    assert count_parameters(params) == generator_parameters
    assert jax.eval_shape(generator.apply, params, model_state, z)[0].shape == (5, *shape)
    params, model_state = shapes(critic, x)
    assert count_parameters(params) == critic_parameters
    assert jax.eval_shape(critic.apply, params, model_state, x)[0].shape == (5,)


def test_sizes_with_dense_layers_by_hand():
    z, x = jnp.zeros((5, 74)), jnp.zeros((5, 28, 28, 1))
    # 74 -> 1024 -> 7x7x128 -> 14x14x64 -> 28x28x1, and back to 1024 -> 1.
    params, _ = shapes(dcgan_generator(hidden=1024), z)
    dense = 74 * 1024 + 1024 * 49 * 128 + 2 * (1024 + 128)
    assert count_parameters(params) == dense + 16 * (128 * 64 + 64) + 1 + 2 * 64
    params, _ = shapes(dcgan_critic(hidden=1024), x)
    dense = 49 * 128 * 1024 + 2 * (128 + 1024) + 1024 + 1
    assert count_parameters(params) == 16 * (64 + 64 * 128) + 64 + dense


def test_the_dense_layers_by_hand():
    x, z = jax.random.normal(KEY, (6, 8, 8, 1)), jax.random.normal(KEY, (6, 3))

    def centred(x):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)

    critic = dcgan_critic((8, 8, 1), width=2, hidden=5)
    params, model_state = critic.init(KEY, x)
    maps = jax.lax.conv_general_dilated(
        x,
        params["Conv_0"]["kernel"],
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    first, last = (params[name]["kernel"] for name in ("Dense_0", "Dense_1"))
    hidden = centred(np.where(maps > 0, maps, 0.2 * maps).reshape(6, -1) @ first)
    expected = np.where(hidden > 0, hidden, 0.2 * hidden) @ last[:, 0]
    found, _ = critic.apply(params, model_state, x, train=True)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert "bias" not in params["Dense_0"]  # batch norm has one
    params, _ = shapes(dcgan_critic((8, 8, 1), width=2, hidden=5, norm=None), x)
    assert "bias" in params["Dense_0"]

    # The generator's other layers see the dense one's output alone: without it, given that output.
    generator, plain = (dcgan_generator((8, 8, 1), width=2, hidden=n) for n in (5, 0))
    params, model_state = generator.init(KEY, z)
    hidden = np.maximum(centred(np.asarray(z @ params["Dense_0"]["kernel"])), 0)
    renamed = {"Dense_0": "Dense_1", "BatchNorm_0": "BatchNorm_1"}
    of_plain, statistics = plain.init(KEY, hidden)
    rest = {name: params[renamed.get(name, name)] for name in of_plain}
    np.testing.assert_allclose(
        generator.apply(params, model_state, z, train=True)[0],
        plain.apply(rest, statistics, hidden, train=True)[0],
        rtol=1e-3,
        atol=1e-5,
    )


@pytest.mark.parametrize("side", [8, 14, 16, 64])
def test_other_sides(side):
    z, x = jnp.zeros((2, 3)), jnp.zeros((2, side, side, 2))
    for net, given, shape in (
        (dcgan_generator((side, side, 2), width=2), z, x.shape),
        (dcgan_critic((side, side, 2), width=2), x, (2,)),
    ):
        assert jax.eval_shape(net.apply, *shapes(net, given), given)[0].shape == shape


def test_kernels_start_small_and_samples_in_range():
    generator, critic = (make((16, 16, 1), width=8) for make in (dcgan_generator, dcgan_critic))
    z = jax.random.normal(KEY, (4, 20))
    params, model_state = jax.jit(generator.init)(KEY, z)
    x, _ = jax.jit(generator.apply)(params, model_state, 1e3 * z)
    assert np.abs(x).max() <= 1
    assert x.min() < -0.5 and x.max() > 0.5
    for tree in (params, jax.jit(critic.init)(KEY, x)[0]):
        for name, kernel in kernels(tree).items():
            assert float(kernel.std()) == pytest.approx(0.02, rel=0.2), name
            assert abs(float(kernel.mean())) < 0.2 * 0.02 + 4 * 0.02 / np.sqrt(kernel.size), name


def test_the_critic_is_leaky_and_its_first_layer_has_no_norm():
    critic = dcgan_critic((8, 8, 1), width=2, norm="batch")  # one convolution: no norm at all
    x = jax.random.normal(KEY, (3, 8, 8, 1))
    params, model_state = critic.init(KEY, x)
    assert model_state == {}
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel, bias = (np.asarray(params["Conv_0"][name]) for name in ("kernel", "bias"))
    maps = np.zeros((3, 4, 4, 2))
    for i, j in np.ndindex(4, 4):
        window = padded[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
        maps[:, i, j] = np.einsum("bhwc,hwco->bo", window, kernel) + bias
    leaky = np.where(maps > 0, maps, 0.2 * maps).reshape(3, -1)
    expected = leaky @ np.asarray(params["Dense_0"]["kernel"])[:, 0] + params["Dense_0"]["bias"]
    np.testing.assert_allclose(critic.apply(params, model_state, x)[0], expected, rtol=1e-4)


def test_the_generators_last_layer_by_hand():
    # The transposed convolution is the transpose of the critic's: <conv(x), y> = <x, conv^T(y)>.
    generator = dcgan_generator((8, 8, 1), width=2)
    z = jax.random.normal(KEY, (3, 5))
    params, model_state = generator.init(KEY, z)
    hidden = np.asarray(z @ params["Dense_0"]["kernel"]).reshape(3, 4, 4, 2)
    hidden = np.maximum(hidden / np.sqrt(1 + 1e-5), 0)  # batch norm before any training
    kernel = np.asarray(params["ConvTranspose_0"]["kernel"])
    image = np.zeros((3, 10, 10, 1))
    for i, j in np.ndindex(4, 4):
        # Flax turns no kernel: its transposed convolution correlates the dilated map.
        spot = np.einsum("bc,hwco->bhwo", hidden[:, i, j], kernel[::-1, ::-1])
        image[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += spot
    expected = np.tanh(image[:, 1:-1, 1:-1])
    np.testing.assert_allclose(
        generator.apply(params, model_state, z)[0], expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("norm", ["batch", "layer", None])
def test_only_batch_norm_mixes_examples(norm):
    critic = dcgan_critic((16, 16, 1), width=2, norm=norm)
    x = jax.random.normal(KEY, (4, 16, 16, 1))
    params, model_state = critic.init(KEY, x)
    other = x.at[1:].multiply(3.0)
    first, second = (critic.apply(params, model_state, x, train=True)[0][0] for x in (x, other))
    assert bool(jnp.isclose(first, second, rtol=1e-5)) == (norm != "batch")


def test_layer_norm_is_over_places_and_channels():
    critic = dcgan_critic((16, 16, 1), width=2, norm="layer")
    x = 100 * jax.random.normal(KEY, (2, 16, 16, 1))
    params, model_state = jax.jit(critic.init)(KEY, x)
    assert model_state == {}
    layout = ("NHWC", "HWIO", "NHWC")

    def convolve(x, layer):
        kernel = layer["kernel"]
        y = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=layout)
        return np.asarray(y + layer["bias"])

    def leaky(x):
        return np.where(x > 0, x, 0.2 * x)

    maps = convolve(leaky(convolve(x, params["Conv_0"])), params["Conv_1"])
    mean, variance = (f(axis=(1, 2, 3), keepdims=True) for f in (maps.mean, maps.var))
    normalised = leaky((maps - mean) / np.sqrt(variance + 1e-5))
    assert params["LayerNorm_0"]["scale"].shape == (4,)
    expected = normalised.reshape(2, -1) @ np.asarray(params["Dense_0"]["kernel"])[:, 0]
    np.testing.assert_allclose(critic.apply(params, {}, x)[0], expected, rtol=1e-3, atol=1e-5)


def test_statistics_move_in_training_only():
    z, x = jax.random.normal(KEY, (4, 3)), jax.random.normal(KEY, (4, 16, 16, 1))
    for net, given in (
        (dcgan_generator((16, 16, 1), width=2), z),
        (dcgan_critic((16, 16, 1), width=2), x),
        (dcgan_critic((16, 16, 1), width=2, norm=None, spectral=True), x),
    ):
        params, model_state = net.init(KEY, given)
        _, rested = net.apply(params, model_state, given)
        _, moved = net.apply(params, model_state, given, train=True)
        assert jax.tree.structure(moved) == jax.tree.structure(model_state)
        before, still, after = map(jax.tree.leaves, (model_state, rested, moved))
        assert before
        for old, same, new in zip(before, still, after, strict=True):
            np.testing.assert_array_equal(old, same)
            # Scalars are estimates of singular values, 1 after kernels were divided by them.
            assert old.size == 1 or (old != new).any()


def test_spectral_kernels_have_singular_value_one():
    x = jax.random.normal(KEY, (3, 16, 16, 1))
    critic = dcgan_critic((16, 16, 1), width=2, norm=None, spectral=True)
    params, model_state = critic.init(KEY, x)
    params = jax.tree.map(lambda leaf: leaf + 0.01, params)  # biases too
    train = jax.jit(lambda model_state: critic.apply(params, model_state, x, train=True)[1])
    for _ in range(60):
        model_state = train(model_state)
    normalised = {}
    for name, layer in params.items():
        matrix = np.asarray(layer["kernel"]).reshape(-1, layer["kernel"].shape[-1])
        largest = np.linalg.svd(matrix, compute_uv=False)[0]
        normalised[name] = {"kernel": layer["kernel"] / largest, "bias": layer["bias"]}
    assert len(normalised) == 3  # two convolutions and the output
    # The same net without the option, given kernels whose largest singular value is 1.
    plain = dcgan_critic((16, 16, 1), width=2, norm=None)
    expected, _ = plain.apply(normalised, {}, x)
    np.testing.assert_allclose(critic.apply(params, model_state, x)[0], expected, rtol=1e-4)


def test_a_spectral_critic_does_not_see_the_scale_of_its_kernels():
    x = jax.random.normal(KEY, (3, 8, 8, 1))
    critic = dcgan_critic((8, 8, 1), width=2, norm=None, spectral=True)
    params, model_state = critic.init(KEY, x)

    def score(scale):
        scaled = jax.tree.map(lambda leaf: scale * leaf, params)  # biases are zero
        return critic.apply(scaled, model_state, x)[0].sum()

    # The gradient flows through the singular value, so none is left along the kernels themselves.
    value, slope = jax.value_and_grad(score)(1.0)
    assert abs(float(slope)) < 1e-4 * max(abs(float(value)), 1)
    assert float(score(7.0)) == pytest.approx(float(value), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dcgan_generator((30, 30, 1)), "images of 30x30: expected a square of side 4"),
        (lambda: dcgan_generator((28, 32, 1)), "images of 28x32: expected a square"),
        (lambda: dcgan_critic((7, 7, 1)), "dcgan_critic: images of 7x7"),
        (lambda: dcgan_critic((4, 4, 1)), "dcgan_critic: images of 4x4"),
        (lambda: dcgan_critic((0, 0, 1)), "dcgan_critic: images of 0x0"),
        (lambda: dcgan_critic((28, 28, 0)), "0 channels and width 64 must be at least 1"),
        (lambda: dcgan_generator(width=0), "1 channels and width 0 must be at least 1"),
        (lambda: dcgan_generator(hidden=-1), "dcgan_generator: hidden=-1: expected 0"),
        (lambda: dcgan_critic(hidden=-1), "dcgan_critic: hidden=-1: expected 0"),
        (
            lambda: dcgan_critic(norm="group"),
            "unknown norm 'group': choose one of 'batch', 'layer'",
        ),
    ],
)
def test_bad_options_are_one_clear_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
