"""The convolutional encoder and decoder: shapes, sizes by hand, scale of the signal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nets.autoencoder import ResidualBlocks, conv_decoder, conv_encoder
from nets.net import count_parameters

KEY = jax.random.key(0)


def shapes(net, *shape):
    """The output's shape and the number of parameters, without compute."""

    def run(x):
        params, model_state = net.init(KEY, x)
        assert model_state == {}
        return net.apply(params, model_state, x)[0], params

    output, params = jax.eval_shape(run, jnp.zeros(shape))
    return output.shape, count_parameters(params)


def residual(blocks, width):
    return blocks * (9 * width**2 + width + width**2 + width)


@pytest.mark.parametrize(("size", "channels", "small"), [(32, 3, 8), (28, 1, 7)])
@pytest.mark.parametrize(("width", "blocks"), [(256, 2), (6, 3), (5, 0)])
def test_shapes_and_parameters_by_hand(size, channels, small, width, blocks):
    down = (16 * channels * width + width) + (16 * width**2 + width)
    up = (16 * width**2 + width) + (16 * channels * width + channels)
    options = {"width": width, "blocks": blocks}
    images = (2, size, size, channels)
    middle = residual(blocks, width)

    assert shapes(conv_encoder(10, **options), *images) == (
        (2, small, small, 10),
        down + middle + (width * 10 + 10),
    )
    assert shapes(conv_encoder(10, output="vector", **options), *images) == (
        (2, 10),
        down + middle + (small**2 * width * 10 + 10),
    )
    decoder = conv_decoder(images[1:], **options)
    assert shapes(decoder, 2, small, small, 10) == (images, (90 * width + width) + middle + up)
    dense = 10 * small**2 * width + small**2 * width
    assert shapes(decoder, 2, 10) == (images, dense + middle + up)


def test_images_need_not_be_square():
    assert shapes(conv_encoder(3, width=2), 1, 8, 12, 1)[0] == (1, 2, 3, 3)
    assert shapes(conv_decoder((8, 12, 1), width=2), 1, 2, 3, 3)[0] == (1, 8, 12, 1)
    assert shapes(conv_decoder((8, 12, 1), width=2), 1, 3)[0] == (1, 8, 12, 1)


@pytest.mark.parametrize("edge", [0, 3])
def test_a_place_of_the_map_sees_its_part_of_the_image_only(edge):
    # Without residual blocks a place depends on 10x10 pixels: four of its own and three around.
    encoder = conv_encoder(2, width=8, blocks=0)
    params, _ = encoder.init(KEY, jnp.zeros((1, 16, 16, 1)))
    image = jax.random.normal(KEY, (1, 16, 16, 1))
    gradient = jax.grad(lambda x: encoder.apply(params, {}, x)[0][0, edge, edge].sum())(image)
    rows = np.flatnonzero(np.abs(gradient[0, :, :, 0]).sum(1))
    assert set(rows) == set(range(max(4 * edge - 3, 0), min(4 * edge + 7, 16)))


@pytest.mark.parametrize(
    ("x", "first", "second", "output"),
    [(2, 0.5, 1.5, 3.5), (2, 0.5, -3, 0), (-3, -0.5, 4, 0), (2, -0.5, -4, 2), (-3, 0.5, 4, 0)],
)
def test_a_residual_block_by_hand(x, first, second, output):
    # relu(x + second * relu(first * relu(x))) on a map of one place.
    kernels = {
        "Conv_0": jnp.zeros((3, 3, 1, 1)).at[1, 1].set(first),
        "Conv_1": jnp.full((1, 1, 1, 1), float(second)),
    }
    params = {name: {"kernel": kernel, "bias": jnp.zeros(1)} for name, kernel in kernels.items()}
    y = ResidualBlocks(1).apply({"params": params}, jnp.full((1, 1, 1, 1), float(x)))
    assert y.shape == (1, 1, 1, 1)
    assert float(y[0, 0, 0, 0]) == output


def test_decoder_output_is_linear():
    # Zero biases and ReLU: positively homogeneous, and not odd.
    decoder = conv_decoder((8, 8, 1), width=8)
    z = jax.random.normal(KEY, (2, 2, 2, 4))
    params, _ = decoder.init(KEY, z)
    output, twice, minus = (decoder.apply(params, {}, k * z)[0] for k in (1.0, 2.0, -1.0))
    np.testing.assert_allclose(twice, 2 * output, rtol=1e-4, atol=1e-5)
    assert np.abs(minus + output).max() > 1e-2
    assert output.min() < 0 < output.max()


def test_the_first_transposed_convolution_keeps_the_scale():
    # After it and its ReLU the mean square is that of what went in, as He et al. 2015 want it.
    decoder = conv_decoder((32, 32, 1), width=64, blocks=0)
    z = jax.random.normal(KEY, (4, 8, 8, 64))
    params, _ = decoder.init(KEY, z)
    kernel = params["ConvTranspose_0"]["kernel"]
    assert kernel.shape == (4, 4, 64, 64)
    # Each output sees 2x2 of the 4x4 taps of 64 channels: variance 2 / (4 * 64).
    assert float(kernel.var()) == pytest.approx(2 / 256, rel=0.02)


@pytest.mark.parametrize("options", [{"features": 0}, {"width": 0}, {"blocks": -1}])
def test_encoder_refuses_sizes(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"conv_encoder\({name}=.*expected at least"):
        conv_encoder(**{"features": 4, **options})


def test_encoder_refuses_an_unknown_output_and_images_that_do_not_divide():
    with pytest.raises(ValueError, match="unknown output 'flat': choose one of 'map', 'vector'"):
        conv_encoder(4, output="flat")
    for shape in ((2, 30, 28, 1), (2, 28, 30, 1), (2, 28, 28)):
        with pytest.raises(ValueError, match=r"conv_encoder: input .* multiples of 4"):
            shapes(conv_encoder(4, width=2), *shape)


@pytest.mark.parametrize("shape", [(30, 28, 1), (28, 30, 1), (28, 28), (28, 28, 0), (0, 28, 1)])
def test_decoder_refuses_shapes(shape):
    with pytest.raises(ValueError, match=r"conv_decoder: shape .* expected \(H, W, C\)"):
        conv_decoder(shape)


def test_decoder_refuses_sizes_and_inputs_that_do_not_fit():
    for options in ({"width": 0}, {"blocks": -1}):
        with pytest.raises(ValueError, match=r"conv_decoder\(.*expected at least"):
            conv_decoder((28, 28, 1), **options)
    for shape in ((2, 8, 7, 4), (2, 7, 8, 4), (2, 7, 7)):
        with pytest.raises(ValueError, match=r"expected \[B, 7, 7, D\] or \[B, D\]"):
            shapes(conv_decoder((28, 28, 1), width=2), *shape)
