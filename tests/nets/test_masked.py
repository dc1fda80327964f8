"""The nets of a masked autoencoder: what is masked is never seen, and each patch has its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import nets
from nets.masked import grid_positions
from nets.transformer import Block
from paradigms.data.patches import patchify

KEY = jax.random.key(0)
# 2 x 3 patches of 4x4 pixels and 2 channels.
IMAGE = jax.random.normal(KEY, (2, 8, 12, 2))
GRID, N, PIXELS = (2, 3), 6, 4 * 4 * 2
KEPT = jnp.array([[5, 0, 2], [1, 4, 3]])
PLACE = jnp.argsort(jnp.array([[5, 0, 2, 4, 3, 1], [1, 4, 3, 0, 2, 5]]), axis=1)
ENCODER = nets.mae_encoder(4, 16, 1, 2, 32)
DECODER = nets.mae_decoder(4, 2, GRID, 8, 1, 2, 12)
LATENT = jax.random.normal(KEY, (2, 4, 16))


def numbers(net, *inputs):
    """Params of the net's shapes, larger than at the start, biases and scales included."""
    shapes, model_state = jax.eval_shape(net.init, KEY, *inputs)
    assert model_state == {}
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.float32(generator.normal(0, 0.3, leaf.shape)), shapes)


def waves(grid, width):
    """Half of the features for the row, half for the column; sines and cosines take turns."""
    table = np.zeros((*grid, width))
    half = width // 2
    for row, column, i in np.ndindex(*grid, half // 2):
        scale = 10000 ** (2 * i / half)
        for start, place in ((0, row), (half, column)):
            table[row, column, start + 2 * i] = np.sin(place / scale)
            table[row, column, start + 2 * i + 1] = np.cos(place / scale)
    return table.reshape(-1, width)


def block_and_norm(params, x, heads, mlp_dim):
    """The tokens after the one block, and the last norm."""
    x = jax.jit(Block(heads, mlp_dim).apply)({"params": params["Block_0"]}, np.float32(x))
    x = np.float64(x)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["norm"]["scale"] + params["norm"]["bias"]


def test_positions_of_a_grid():
    np.testing.assert_allclose(grid_positions((3, 5), 12), waves((3, 5), 12), atol=1e-6)


def test_encoder_by_hand():
    params = numbers(ENCODER, IMAGE)
    layer = params["patches"]
    tokens = patchify(IMAGE, 4) @ layer["kernel"] + layer["bias"]
    tokens = tokens + waves(GRID, 16)
    first = np.broadcast_to(params["cls"], (2, 1, 16))
    apply = jax.jit(ENCODER.apply)
    for kept in (None, KEPT):
        x = tokens if kept is None else np.stack([tokens[b][kept[b]] for b in range(2)])
        expected = block_and_norm(params, np.concatenate([first, x], 1), 2, 32)
        inputs = (IMAGE,) if kept is None else (IMAGE, kept)
        latent = apply(params, {}, *inputs)[0]
        assert latent.shape == (2, 1 + x.shape[1], 16)
        np.testing.assert_allclose(latent, expected, atol=2e-5)


def test_the_encoder_never_sees_what_is_masked():
    params, apply = numbers(ENCODER, IMAGE), jax.jit(ENCODER.apply)
    latent = apply(params, {}, IMAGE, KEPT)[0]
    others = patchify(100 * jax.random.normal(jax.random.key(1), IMAGE.shape), 4)
    kept = (jnp.arange(N) == KEPT[..., None]).any(1)
    for hidden, same in ((~kept, True), (kept, False)):
        mixed = jnp.where(hidden[..., None], others, patchify(IMAGE, 4))
        mixed = mixed.reshape(2, 2, 3, 4, 4, 2).swapaxes(2, 3).reshape(IMAGE.shape)
        changed = apply(params, {}, mixed, KEPT)[0]
        assert (changed == latent).all() if same else (changed != latent).any(-1).all()


def test_the_order_of_what_is_kept_is_that_of_the_latent():
    params, apply = numbers(ENCODER, IMAGE), jax.jit(ENCODER.apply)
    order = jnp.array([2, 0, 1])
    latent, turned = (apply(params, {}, IMAGE, kept)[0] for kept in (KEPT, KEPT[:, order]))
    np.testing.assert_allclose(turned[:, 0], latent[:, 0], atol=1e-5)
    np.testing.assert_allclose(turned[:, 1:], latent[:, 1:][:, order], atol=1e-5)
    assert not np.allclose(latent[:, 1], latent[:, 2], atol=0.1)


def test_a_quarter_of_the_patches_is_less_than_half_of_the_work():
    image, kept = jnp.zeros((1, 32, 32, 1)), jnp.zeros((1, 16), int)
    params = numbers(ENCODER, image)
    cost = [
        jax.jit(ENCODER.apply).lower(params, {}, *inputs).compile().cost_analysis()["flops"]
        for inputs in ((image,), (image, kept))
    ]
    assert cost[1] < cost[0] / 2


def test_decoder_by_hand():
    params = numbers(DECODER, LATENT, PLACE)
    x = LATENT @ params["embed"]["kernel"] + params["embed"]["bias"]
    tokens = np.zeros((2, 1 + N, 8))
    tokens[:, 0] = x[:, 0]
    for b in range(2):
        tokens[b, 1:] = params["mask"][0] + waves(GRID, 8)
        for k, patch in enumerate(KEPT[b]):
            tokens[b, 1 + patch] = x[b, 1 + k] + waves(GRID, 8)[patch]
    x = block_and_norm(params, tokens, 2, 12)
    expected = (x @ params["pixels"]["kernel"] + params["pixels"]["bias"])[:, 1:]
    patches = jax.jit(DECODER.apply)(params, {}, LATENT, PLACE)[0]
    assert patches.shape == (2, N, PIXELS)
    np.testing.assert_allclose(patches, expected, atol=2e-5)


def test_all_patches_need_no_mask_token():
    full = jax.random.normal(KEY, (2, 1 + N, 16))
    params = numbers(DECODER, full, PLACE)

    @jax.jit
    def both(params, place):
        return DECODER.apply(params, {}, full, place)[0]

    patches = both(params, PLACE)
    np.testing.assert_array_equal(both({**params, "mask": params["mask"] + 1}, PLACE), patches)
    assert not np.allclose(both(params, PLACE[:, ::-1]), patches, atol=0.1)


def test_the_encoder_is_a_vit_without_learned_positions_and_head():
    image = jnp.zeros((1, 224, 224, 3))
    sizes = {"width": 768, "depth": 12, "heads": 12, "mlp_dim": 3072}
    params, _ = jax.eval_shape(nets.mae_encoder(16, **sizes).init, KEY, image)
    published = 86_567_656  # timm's ViT-B/16, with 197 positions and 1000 classes
    assert nets.count_parameters(params) == published - 197 * 768 - 769 * 1000


def test_decoder_counts_by_hand():
    params, _ = jax.eval_shape(DECODER.init, KEY, LATENT, PLACE)
    block = 4 * (8 * 8 + 8) + (8 * 12 + 12) + (12 * 8 + 8) + 4 * 8
    assert nets.count_parameters(params) == (17 * 8) + 8 + block + 16 + (9 * PIXELS)


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_they_start_uniform_by_xavier_and_all_of_them_learns(name):
    if name == "encoder":
        net, inputs = nets.mae_encoder(4, 16, 1, 2, 32), (IMAGE, KEPT)
    else:
        net, inputs = nets.mae_decoder(4, 2, GRID, 16, 1, 2, 32), (LATENT, PLACE)
    params, _ = jax.jit(net.init)(KEY, *inputs)
    for path, leaf in jax.tree.leaves_with_path(params):
        names = [part.key for part in path]
        if names[-1] in ("bias", "scale"):
            np.testing.assert_array_equal(leaf, float(names[-1] == "scale"))
        elif names[-1] == "kernel":
            matrix = np.reshape(leaf, (-1, leaf.shape[-1]))
            scaled = matrix.ravel() / np.sqrt(6 / sum(matrix.shape))
            assert scipy.stats.kstest(scaled, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3, names
        else:
            assert scipy.stats.kstest(np.ravel(leaf) / 0.02, "norm").pvalue > 1e-3, names

    params = numbers(net, *inputs)
    slopes = jax.jit(jax.grad(lambda p: (net.apply(p, {}, *inputs)[0] ** 3).sum()))(params)
    for path, leaf in jax.tree.leaves_with_path(slopes):
        if [part.key for part in path][-2:] != ["key", "bias"]:  # the same for all scores
            assert np.isfinite(leaf).all() and (leaf != 0).any(), path


@pytest.mark.parametrize("pick", [lambda z: z[:, 0], lambda z: z[:, 1:].mean(1)])
def test_in_bfloat16_and_as_features(pick):
    net = nets.postprocess(ENCODER, pick)
    params = numbers(net, IMAGE)
    half = nets.with_precision(net, "bfloat16")
    exact, rounded = jax.jit(lambda p: [each.apply(p, {}, IMAGE)[0] for each in (net, half)])(
        params
    )
    assert exact.shape == (2, 16) and rounded.dtype == jnp.float32
    np.testing.assert_allclose(exact, rounded, atol=0.1)
    assert not np.array_equal(exact, rounded)


def test_the_decoder_in_bfloat16():
    params = numbers(DECODER, LATENT, PLACE)
    half = nets.with_precision(DECODER, "bfloat16")
    exact, rounded = jax.jit(
        lambda p: [each.apply(p, {}, LATENT, PLACE)[0] for each in (DECODER, half)]
    )(params)
    assert rounded.dtype == jnp.float32 and not np.array_equal(exact, rounded)
    np.testing.assert_allclose(exact, rounded, atol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nets.mae_encoder(0, 8, 1, 2, 8), "mae_encoder: width 8, heads 2, patch_size 0,"),
        (lambda: nets.mae_encoder(4, 8, 1, 3, 8), "width 8 cannot be split over 3 heads"),
        (
            lambda: nets.mae_encoder(4, 6, 1, 2, 8),
            "mae_encoder: width 6 has to hold a sine and a cosine of row and column: choose a mult",
        ),
        (lambda: nets.mae_decoder(4, 1, (0, 2), 8, 1, 2, 8), "rows 0, columns 2, .* at least 1"),
        (
            lambda: ENCODER.init(KEY, jnp.zeros((1, 30, 32, 3))),
            "images of 30x32 cannot be cut into patches of 4x4",
        ),
        (
            lambda: ENCODER.init(KEY, IMAGE, KEPT[0]),
            r"kept of shape \(3,\) for images of 6 patches: expected \[2, K\] with K at most 6",
        ),
        (lambda: ENCODER.init(KEY, IMAGE, jnp.zeros((2, 7), int)), r"kept of shape \(2, 7\)"),
        (lambda: ENCODER.init(KEY, IMAGE, jnp.zeros((1, 3), int)), r"kept of shape \(1, 3\)"),
        (
            lambda: DECODER.init(KEY, LATENT, PLACE[:, :5]),
            r"place of shape \(2, 5\) for a grid of 2x3: expected \[B, 1 \+ K, D\] with K at most 6"
            r", and \[B, 6\]",
        ),
        (
            lambda: DECODER.init(KEY, jnp.zeros((2, 8, 16)), PLACE),
            r"latent of shape \(2, 8, 16\) and place",
        ),
    ],
)
def test_bad_options_are_named_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
