"""RandAugment: each operation against Pillow, and what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image, ImageEnhance, ImageOps

from paradigms.core.errors import InputError
from paradigms.data import rand_augment as module
from paradigms.data.rand_augment import OPERATIONS, rand_augment, transform

KEY = jax.random.key(0)
HEIGHT, WIDTH = 24, 20


def images(count, seed=0):
    draw = np.random.default_rng(seed)
    low = draw.integers(0, 100, (count, 1, 1, 3))
    return draw.integers(low, low + 130, (count, HEIGHT, WIDTH, 3)).astype(np.uint8)


def affine(picture, a, b, c, d, e, f):
    return picture.transform(
        picture.size, Image.Transform.AFFINE, (a, b, c, d, e, f), fillcolor=(128, 128, 128)
    )


def enhanced(kind):
    return lambda picture, m: kind(picture).enhance(0.95 - 0.9 * abs(m))


# FixMatch, table 12, in Pillow's terms; m is the signed magnitude.
PILLOW = {
    "autocontrast": lambda picture, m: ImageOps.autocontrast(picture),
    "brightness": enhanced(ImageEnhance.Brightness),
    "colour": enhanced(ImageEnhance.Color),
    "contrast": enhanced(ImageEnhance.Contrast),
    "equalise": lambda picture, m: ImageOps.equalize(picture),
    "identity": lambda picture, m: picture,
    "posterise": lambda picture, m: ImageOps.posterize(picture, 8 - min(int(5 * abs(m)), 4)),
    "rotate": lambda picture, m: picture.rotate(30 * m, fillcolor=(128, 128, 128)),
    "sharpness": enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda picture, m: affine(picture, 1, 0.3 * m, 0, 0, 1, 0),
    "shear_y": lambda picture, m: affine(picture, 1, 0, 0, 0.3 * m, 1, 0),
    "solarise": lambda picture, m: ImageOps.solarize(picture, 256 * (1 - abs(m))),
    "translate_x": lambda picture, m: affine(picture, 1, 0, 0.3 * m * WIDTH, 0, 1, 0),
    "translate_y": lambda picture, m: affine(picture, 1, 0, 0, 0, 1, 0.3 * m * HEIGHT),
}
EXACT = {"equalise", "identity", "posterise", "solarise"}
MOVES = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
# No pixel of these lies on the border of two.
MAGNITUDES = (-0.97, -0.31, 0.013, 0.43, 0.771, 1.0)


def test_every_operation_equals_pillow():
    # All operations in one batch, one to an image, as they occur.
    pairs = [(name, m) for name in OPERATIONS for m in MAGNITUDES]
    image = images(len(pairs))
    operation = jnp.array([OPERATIONS.index(name) for name, _ in pairs])
    magnitude = jnp.array([m for _, m in pairs], jnp.float32)
    result = np.asarray(jax.jit(transform)(jnp.asarray(image), operation, magnitude))
    assert result.dtype == np.uint8
    for (name, m), before, after in zip(pairs, image, result, strict=True):
        expected = np.asarray(PILLOW[name](Image.fromarray(before), m)).astype(int)
        distance = np.abs(after - expected)
        if name in MOVES:
            # A position within float32 rounding of a border may fall either way.
            assert (distance.max(-1) > 0).sum() <= 1, (name, m)
        else:
            assert distance.max() <= (0 if name in EXACT else 1), (name, m)
        if name != "identity" and abs(m) > 0.5:
            assert (after != before).any(), (name, m)


def test_the_list_is_that_of_table_12():
    assert set(OPERATIONS) == set(PILLOW) and len(OPERATIONS) == 14


@pytest.fixture
def drawn(monkeypatch):
    """What `transform` is given in one call of an augmentation."""

    def draw(operation, count=4000):
        seen = []

        def record(image, chosen, magnitude, fill):
            seen.append((np.asarray(chosen), np.asarray(magnitude, float), fill))
            return image

        monkeypatch.setattr(module, "transform", record)
        with jax.disable_jit():
            operation(KEY, jnp.zeros((count, 1, 1, 3), jnp.uint8))
        return seen

    return draw


def test_operations_and_magnitudes_are_drawn_uniformly_for_each_image(drawn):
    rounds = drawn(rand_augment(n=3, fill=0.25))
    assert len(rounds) == 3
    for chosen, magnitude, fill in rounds:
        assert scipy.stats.chisquare(np.bincount(chosen, minlength=14)).pvalue > 1e-3
        assert scipy.stats.kstest(magnitude, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3
        assert abs(np.corrcoef(chosen, magnitude)[0, 1]) < 0.06
        assert fill == 0.25
    assert abs(np.corrcoef(rounds[0][0], rounds[1][0])[0, 1]) < 0.06
    assert abs(np.corrcoef(rounds[0][1], rounds[1][1])[0, 1]) < 0.06


def test_a_magnitude_fixes_the_size_but_not_the_direction(drawn):
    for _, magnitude, _ in drawn(rand_augment(magnitude=0.4)):
        np.testing.assert_allclose(np.abs(magnitude), 0.4, rtol=1e-6)
        assert scipy.stats.binomtest(int((magnitude < 0).sum()), 4000).pvalue > 1e-3


# One compilation per dtype for all tests.
COMPILED = jax.jit(rand_augment())


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_it_is_a_pure_function_of_key_and_image(dtype):
    image, others = images(16).astype(dtype), images(16, seed=1).astype(dtype)
    if dtype == "float32":
        image, others = image / np.float32(255), others / np.float32(255)
    operation = COMPILED
    result = np.asarray(operation(KEY, image))
    assert result.shape == image.shape and result.dtype == image.dtype
    assert result.max() <= (255 if dtype == "uint8" else 1)
    np.testing.assert_array_equal(result, operation(KEY, image))
    assert (result != image).any((1, 2, 3)).sum() > 8
    assert (result != np.asarray(operation(jax.random.key(1), image))).any()
    # With other neighbours an image comes out the same.
    others[5] = image[5]
    np.testing.assert_array_equal(np.asarray(operation(KEY, others))[5], result[5])
    if dtype == "float32":
        np.testing.assert_allclose(result * 255, operation(KEY, images(16)), atol=1e-4)


def test_seeds_under_vmap_with_a_traced_magnitude_equal_separate_runs():
    image, keys = images(8), jax.random.split(KEY, 2)
    sizes = np.float32([0.1, 1.0])

    def view(key, size):
        return rand_augment(n=1, magnitude=size)(key, jnp.asarray(image))

    mapped = np.asarray(jax.jit(jax.vmap(view))(keys, sizes), int)
    single = jax.jit(view)
    for key, size, result in zip(keys, sizes, mapped, strict=True):
        # A tie of rounding may fall either way.
        assert (np.abs(np.asarray(single(key, size), int) - result) > 1).mean() < 1e-3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rand_augment(n=0), "rand_augment: n is 0"),
        (lambda: rand_augment(magnitude=10), "magnitude is 10; give a number from 0 to 1"),
        (lambda: rand_augment()(KEY, jnp.zeros((2, 4, 4, 1))), "the image has 1 channel"),
        (
            lambda: jax.eval_shape(rand_augment(fill=128), KEY, jnp.zeros((2, 4, 4, 3))),
            "numbers from 0 to 1",
        ),
        (lambda: rand_augment()(KEY, jnp.zeros((4, 4, 3))), "float32[4, 4, 3]"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
