"""Colour operations against Pillow, colorsys and scipy, and what is drawn for them."""

import colorsys
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from paradigms.core.errors import InputError, MissingExtraError
from paradigms.data import colour

KEY = jax.random.key(0)
SHAPE = (6, 24, 20, 3)


def images(dtype="uint8", shape=SHAPE, seed=0):
    """Noise of a range and mean of each image's own, so that no image is a typical one."""
    draw = np.random.default_rng(seed)
    low = draw.integers(0, 120, (shape[0], 1, 1, shape[3]))
    image = draw.integers(low, low + draw.integers(5, 136, low.shape), shape).astype(np.uint8)
    return jnp.asarray(image) if dtype == "uint8" else jnp.asarray(image, jnp.float32) / 255


def by_pillow(operation, image, *values):
    """`operation(picture, value)` of each image, with its own value."""
    pictures = [Image.fromarray(picture) for picture in np.asarray(image)]
    rows = zip(pictures, *(np.asarray(value).tolist() for value in values), strict=True)
    return np.stack([np.asarray(operation(*row)) for row in rows]).astype(int)


FACTORS = np.array([0.0, 0.05, 0.6, 1.0, 1.4, 1.9])
BITS = np.array([1, 2, 4, 5, 7, 8])
THRESHOLDS = np.array([0, 60, 128, 200, 255, 256])
# Our function, Pillow's, and its values for the six images.
REFERENCES = {
    "brightness": (
        colour.adjust_brightness,
        lambda picture, f: ImageEnhance.Brightness(picture).enhance(f),
        FACTORS,
    ),
    "contrast": (
        colour.adjust_contrast,
        lambda picture, f: ImageEnhance.Contrast(picture).enhance(f),
        FACTORS,
    ),
    "saturation": (
        colour.adjust_saturation,
        lambda picture, f: ImageEnhance.Color(picture).enhance(f),
        FACTORS,
    ),
    "sharpness": (
        colour.adjust_sharpness,
        lambda picture, f: ImageEnhance.Sharpness(picture).enhance(f),
        FACTORS,
    ),
    "smooth": (
        lambda image: jnp.round(255 * colour.smooth(image)),
        lambda picture: picture.filter(ImageFilter.SMOOTH),
    ),
    "grayscale": (
        colour.to_grayscale,
        lambda picture: ImageOps.grayscale(picture).convert("RGB"),
    ),
    "autocontrast": (colour.autocontrast, ImageOps.autocontrast),
}
EXACT = {
    "equalise": (colour.equalise, ImageOps.equalize),
    "posterise": (colour.posterise, ImageOps.posterize, BITS),
    "solarise": (
        lambda image, level: colour.solarise_from(image, level / 256),
        ImageOps.solarize,
        THRESHOLDS,
    ),
}


@pytest.mark.parametrize("name", [*REFERENCES, *EXACT])
def test_an_operation_equals_pillows(name):
    ours, theirs, *values = {**REFERENCES, **EXACT}[name]
    image = images()
    arrays = [jnp.asarray(v if v.dtype == int else v.astype(np.float32)) for v in values]
    result = np.asarray(jax.jit(ours)(image, *arrays), int)
    distance = np.abs(result - by_pillow(theirs, image, *values)).max()
    # Pillow drops fractions where this rounds, and rounds the mean of the contrast.
    assert distance <= (0 if name in EXACT else 1)


@pytest.mark.parametrize("name", [*REFERENCES, *EXACT])
def test_floats_are_changed_as_bytes_are(name):
    ours, _, *values = {**REFERENCES, **EXACT}[name]
    arrays = [jnp.asarray(v if v.dtype == int else v.astype(np.float32)) for v in values]
    floats = jax.jit(ours)(images("float32"), *arrays)
    whole = jax.jit(ours)(images(), *arrays)
    if name != "smooth":
        assert floats.dtype == jnp.float32 and whole.dtype == jnp.uint8
        assert floats.min() >= 0 and floats.max() <= 1
        np.testing.assert_allclose(255 * floats, whole, atol=0.501)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_solarise_spans_all_and_nothing(dtype):
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    image = levels if dtype == "uint8" else levels / np.float32(255)
    white = 255 if dtype == "uint8" else 1
    pair = np.concatenate([image, image])
    inverted, same = jax.jit(colour.solarise_from)(pair, np.float32([0, 1]))
    np.testing.assert_array_equal(inverted, white - image[0])
    np.testing.assert_array_equal(same, image[0])


def test_equalise_keeps_what_pillow_keeps_and_clips_at_white():
    draw = np.random.default_rng(0)
    # 8 x 8 has too few pixels; 1019 below the brightest make steps of 3 and overshoot 255.
    equalise = jax.jit(colour.equalise)
    small = draw.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(equalise(small), small)
    flat = np.full((1, 32, 32, 3), 7, np.uint8)
    np.testing.assert_array_equal(equalise(flat), flat)
    np.testing.assert_array_equal(jax.jit(colour.autocontrast)(flat), flat)
    wide = draw.integers(0, 200, (1, 32, 32, 3), dtype=np.uint8)
    wide[0, 0, :5] = 255
    expected = by_pillow(ImageOps.equalize, wide)
    np.testing.assert_array_equal(equalise(wide), expected)


def test_hue_equals_colorsys():
    # Greys and primary colours, where sectors meet, and noise.
    corners = np.array(list(np.ndindex(3, 3, 3)), np.float32) / 2
    pixels = np.concatenate([corners, np.random.default_rng(0).random((37, 3), np.float32)])
    turns = np.array([-0.5, -0.1, 0.0, 0.25, 0.4999], np.float32)
    image = jnp.asarray(np.tile(pixels.reshape(1, 8, 8, 3), (5, 1, 1, 1)))
    result = np.asarray(jax.jit(colour.adjust_hue)(image, jnp.asarray(turns)))
    for index, turn in enumerate(turns):
        for pixel, ours in zip(pixels, result[index].reshape(-1, 3), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel.tolist())
            expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
            np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_hue_of_bytes_is_near_pillows():
    image, shifts = images(), np.array([-100, -20, 0, 10, 64, 127])

    def shifted(picture, levels):
        hue, saturation, value = picture.convert("HSV").split()
        hue = Image.fromarray((np.asarray(hue).astype(int) + levels).astype(np.uint8))
        return Image.merge("HSV", (hue, saturation, value)).convert("RGB")

    turns = np.asarray(shifts / 256, np.float32)
    ours = np.asarray(jax.jit(colour.adjust_hue)(image, turns), int)
    distance = np.abs(ours - by_pillow(shifted, image, shifts))
    # Pillow keeps the hue in 256 levels, 6 to a sector's 255, and the saturation in as many.
    assert distance.max() <= 9 and distance.mean() < 1.5


@pytest.mark.parametrize(("size", "channels"), [(3, 1), (7, 3), (23, 1)])
def test_blur_equals_scipy(size, channels):
    image = images("float32", (4, 24, 15, channels))
    sigma = np.array([0.1, 0.5, 1.3, 2.0])
    result = jax.jit(partial(colour.blur, size=size))(image, jnp.asarray(sigma, jnp.float32))
    for index, width in enumerate(sigma):
        expected = scipy.ndimage.gaussian_filter(
            np.asarray(image[index], np.float64), (width, width, 0), mode="mirror", radius=size // 2
        )
        np.testing.assert_allclose(result[index], expected, atol=1e-5)


@pytest.mark.parametrize(("side", "reach"), [(8, 1), (32, 1), (50, 2)])
def test_the_kernel_is_a_tenth_of_the_side_and_odd(side, reach):
    dot = np.zeros((1, side, side + 9, 1), np.float32)
    dot[:, side // 2, side // 2] = 1
    row = np.asarray(jax.jit(colour.blur)(dot, np.float32([50.0])))[0, side // 2, :, 0]
    np.testing.assert_array_equal(np.flatnonzero(row), side // 2 + np.arange(-reach, reach + 1))


# Full strength, and the same at a strength that changes nothing.
OPERATIONS = {
    "colour_jitter": (
        colour.colour_jitter(0.8, 0.8, 0.8, 0.2, 1.0),
        colour.colour_jitter(0, 0, 0, 0),
    ),
    "grayscale": (colour.grayscale(1.0), colour.grayscale(0.0)),
    "gaussian_blur": (colour.gaussian_blur((0.4, 2.0), 1.0), colour.gaussian_blur((1e-2, 1e-2), 1)),
    "solarise": (colour.solarise(0.5, 1.0), colour.solarise(1.0, 1.0)),
}
COMPILED = {name: jax.jit(operation) for name, (operation, _) in OPERATIONS.items()}
DRAWING = ["colour_jitter", "gaussian_blur"]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_changes_images_unless_its_strength_is_zero(name, dtype):
    image = images(dtype)
    result = COMPILED[name](KEY, image)
    assert result.shape == image.shape and result.dtype == image.dtype
    assert result.max() <= (255 if dtype == "uint8" else 1) and result.min() >= 0
    assert np.abs(np.asarray(result, float) - np.asarray(image, float)).mean() > 0
    # The way to hue and back rounds a float.
    still = jax.jit(OPERATIONS[name][1])(KEY, image)
    np.testing.assert_allclose(still, image, atol=0 if dtype == "uint8" else 1e-6)


@pytest.mark.parametrize("name", DRAWING)
def test_draws_are_per_image_and_by_key(name):
    operation, image = COMPILED[name], images("float32")
    result = np.asarray(operation(KEY, image))
    np.testing.assert_array_equal(result, operation(KEY, image))
    assert np.abs(result - np.asarray(operation(jax.random.key(1), image))).mean() > 0
    # With other neighbours an image comes out the same.
    others = np.array(images("float32", seed=1))
    others[2] = image[2]
    others = operation(KEY, others)
    np.testing.assert_allclose(others[2], result[2], atol=1e-6)
    same = np.asarray(operation(KEY, jnp.tile(image[:1], (6, 1, 1, 1))))
    assert len(np.unique(same, axis=0)) == 6


def test_jitter_draws_each_factor_by_itself_over_its_range(monkeypatch):
    # Each operation writes what it was given into a channel of its own.
    def write(channel):
        def apply(image, value):
            return image.at[..., channel].set(value[:, None, None] / 4)

        return apply

    for channel, name in enumerate(("brightness", "contrast", "saturation")):
        monkeypatch.setattr(colour, f"adjust_{name}", write(channel))
    monkeypatch.setattr(colour, "adjust_hue", lambda image, turn: image)
    jitter = jax.jit(colour.colour_jitter(0.5, 0.2, 2.0, 0.0, 1.0))
    factors = 4 * np.asarray(jitter(KEY, jnp.zeros((3000, 1, 1, 3))), float)[:, 0, 0]
    for factor, low, high in zip(factors.T, (0.5, 0.8, 0.0), (1.5, 1.2, 3.0), strict=True):
        law = scipy.stats.uniform(low, high - low)
        assert scipy.stats.kstest(factor, law.cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.08


def test_jitter_turns_the_hue_uniformly_both_ways():
    red = jnp.tile(jnp.array([0.5, 0.0, 0.0]), (3000, 1, 1, 1))
    turned = jax.jit(colour.colour_jitter(0.5, 0, 0, 0.15, 1.0))(KEY, red)
    turned = np.asarray(turned, float)[:, 0, 0]
    # Within a sixth of red, green rises on one side and blue on the other.
    turn = (turned[:, 1] - turned[:, 2]) / turned.max(1) / 6
    assert scipy.stats.kstest(turn, scipy.stats.uniform(-0.15, 0.3).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(turn, turned.max(1))[0, 1]) < 0.08


def test_jitter_runs_all_four_in_every_order(monkeypatch):
    # Each operation shifts a digit of its own in, so that the result spells the order.
    for digit, name in enumerate(("brightness", "contrast", "saturation", "hue"), 1):
        monkeypatch.setattr(
            colour, f"adjust_{name}", lambda image, value, digit=digit: (image + digit) / 10
        )
    keys, image = jax.random.split(KEY, 1000), jnp.zeros((1, 1, 1, 3))
    spelt = jax.jit(jax.vmap(colour.colour_jitter(probability=1.0), (0, None)))(keys, image)
    orders = np.round(1e4 * np.asarray(spelt)[:, 0, 0, 0, 0]).astype(int)
    found, counts = np.unique(orders, return_counts=True)
    assert all(sorted(str(order)) == ["1", "2", "3", "4"] for order in found)
    assert len(found) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_blur_widths_are_uniform_over_the_range():
    # The ratio of neighbour to middle of a blurred dot gives the width away.
    dot = jnp.zeros((1500, 5, 5, 1)).at[:, 2, 2].set(1.0)
    blurred = np.asarray(jax.jit(colour.gaussian_blur((0.5, 2.0), 1.0))(KEY, dot), float)[..., 0]
    share = blurred[:, 2, 2] / blurred[:, 2].sum(1)
    sigma = np.sqrt(-0.5 / np.log((1 - share) / share / 2))
    assert scipy.stats.kstest(sigma, scipy.stats.uniform(0.5, 1.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    "make",
    [
        lambda p: colour.colour_jitter(probability=p),
        colour.grayscale,
        lambda p: colour.gaussian_blur(probability=p),
        lambda p: colour.solarise(0.0, p),
    ],
)
def test_a_probability_counts_images(make):
    image = jnp.tile(images(shape=(1, 3, 4, 3)), (1000, 1, 1, 1))
    result = np.asarray(jax.jit(make(0.3))(KEY, image))
    changed = int((result != np.asarray(image)).any((1, 2, 3)).sum())
    assert scipy.stats.binomtest(changed, 1000, 0.3).pvalue > 1e-3


def test_strengths_may_be_traced():
    image = images("float32", (2, 6, 5, 3))

    def view(strength):
        image_ = colour.colour_jitter(strength, 0.0, 0.0, strength / 4, strength)(KEY, image)
        image_ = colour.gaussian_blur((0.01, 0.01 + strength), strength)(KEY, image_)
        return colour.solarise(1 - strength, 1.0)(KEY, colour.grayscale(strength)(KEY, image_))

    still, changed = jax.jit(jax.vmap(view))(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(still, image, atol=1e-6)
    assert np.abs(changed - image).mean() > 0.01


def test_without_dm_pix_the_hue_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_pix", None)
    with pytest.raises(MissingExtraError, match=r"paradigms\[augment\]"):
        colour.adjust_hue(images(), jnp.zeros(6))


GREY = images(shape=(6, 24, 20, 1))


def test_what_needs_no_colour_takes_one_channel():
    for operation in (colour.gaussian_blur(probability=1.0), colour.solarise(0.2, 1.0)):
        assert jax.eval_shape(operation, KEY, GREY).shape == GREY.shape
    for operation in map(jax.jit, (colour.equalise, colour.autocontrast)):
        channel = operation(images())[..., 1:2]
        np.testing.assert_array_equal(operation(images()[..., 1:2]), channel)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: colour.colour_jitter()(KEY, GREY), "colour_jitter: the image has 1 channel"),
        (lambda: colour.grayscale()(KEY, GREY), "grayscale: the image has 1 channel"),
        (lambda: colour.adjust_contrast(GREY, jnp.ones(6)), "contrast: the image has 1 channel"),
        (lambda: colour.adjust_saturation(GREY, jnp.ones(6)), "give red, green and blue"),
        (lambda: colour.adjust_hue(GREY, jnp.ones(6)), "hue: the image has 1 channel"),
        (lambda: colour.colour_jitter(brightness=-0.1), "colour_jitter: brightness is -0.1"),
        (lambda: colour.colour_jitter(contrast=-1), "contrast is -1; give 0 or more"),
        (lambda: colour.colour_jitter(saturation=float("nan")), "saturation is nan"),
        (lambda: colour.colour_jitter(hue=0.6), "hue is 0.6; give a number from 0 to 0.5"),
        (lambda: colour.colour_jitter(probability=1.1), "colour_jitter: probability is 1.1"),
        (lambda: colour.grayscale(-0.1), "grayscale: probability is -0.1"),
        (lambda: colour.gaussian_blur((0.0, 1.0)), "gaussian_blur: sigma is (0.0, 1.0)"),
        (lambda: colour.gaussian_blur((2.0, 1.0)), "the smaller one first"),
        (lambda: colour.gaussian_blur(probability=2), "gaussian_blur: probability is 2"),
        (lambda: colour.gaussian_blur(size=4)(KEY, images()), "blur: size is 4"),
        (lambda: colour.gaussian_blur(size=41)(KEY, images()), "from 1 to 39"),
        (lambda: colour.solarise(1.5), "solarise: threshold is 1.5"),
        (lambda: colour.solarise(0.5, -1), "solarise: probability is -1"),
        (lambda: colour.equalise(images()[0]), "uint8[24, 20, 3]"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
