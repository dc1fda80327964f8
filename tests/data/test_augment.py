"""What each augmentation must and must not change."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from paradigms.core.errors import InputError
from paradigms.data import augment

KEY = jax.random.key(0)
SHAPE = (8, 12, 10, 3)
# Full strength for images of SHAPE.
OPERATIONS = {
    "pad_crop": augment.pad_crop(4),
    "pad_crop_constant": augment.pad_crop(4, mode="constant"),
    "translate": augment.translate(4),
    "flip": augment.flip(),
    "rotate": augment.rotate(30.0),
    "cutout": augment.cutout(5),
    "binarise": augment.binarise(),
    "sometimes": augment.sometimes(augment.translate(4), 0.8),
    "compose": augment.compose(augment.pad_crop(2), augment.flip(), augment.cutout(3)),
}
# Compiled once per shape and dtype for all tests; op by op they take several times as long.
COMPILED = {name: jax.jit(operation) for name, operation in OPERATIONS.items()}
MOVERS = sorted(set(OPERATIONS) - {"rotate", "binarise"})


def images(dtype="uint8", shape=SHAPE, seed=0):
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return jnp.asarray(image) if dtype == "uint8" else jnp.asarray(image, jnp.float32) / 255


def change(first, second):
    return np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64)).mean()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_a_pure_function_of_key_and_image(name, dtype):
    operation, image = COMPILED[name], images(dtype)
    before = np.array(image)
    result = operation(KEY, image)
    assert result.shape == image.shape and result.dtype == image.dtype
    np.testing.assert_array_equal(result, operation(KEY, image))
    assert change(result, operation(jax.random.key(1), image)) > 0
    assert change(result, image) > 0
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_image_of_a_batch_has_its_own_draw(name):
    image = jnp.tile(images()[:1], (8, 1, 1, 1))
    distinct = np.unique(np.asarray(COMPILED[name](KEY, image)), axis=0)
    # A flip has two outcomes; anything else has many.
    assert len(distinct) == 2 if name == "flip" else len(distinct) > 4


@pytest.mark.parametrize("name", OPERATIONS)
def test_seeds_under_vmap_equal_separate_runs(name):
    keys, image = jax.random.split(KEY, 3), images()
    mapped = jax.jit(jax.vmap(OPERATIONS[name], (0, None)))(keys, image)
    for key, result in zip(keys, mapped, strict=True):
        # A rounding tie may fall either way where pixels are interpolated.
        np.testing.assert_allclose(
            result, COMPILED[name](key, image), atol=1 if name == "rotate" else 0
        )


ON_EIGHT_DEVICES = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from paradigms.data import augment, colour, geometry, rand_augment

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
shards = NamedSharding(mesh, PartitionSpec("data"))
key, image = jax.random.key(0), np.arange(16 * 12 * 12 * 3, dtype=np.uint8).reshape(16, 12, 12, 3)
operation = jax.jit(
    augment.compose(
        augment.pad_crop(4), augment.translate(2), augment.flip(), augment.cutout(5),
        augment.rotate(20.0), geometry.zoom(), geometry.random_resized_crop(),
        colour.gaussian_blur(), rand_augment.rand_augment(), colour.colour_jitter(),
        augment.binarise(),
    )
)
sharded = jax.device_put(image, shards)
np.testing.assert_array_equal(operation(key, sharded), operation(key, jnp.asarray(image)))
text = operation.lower(key, sharded).compile().as_text()
assert "u8[2,12,12,3]" in text
assert not re.search("all-|collective|u8\\[16,12", text)
"""


def test_a_sharded_batch_stays_where_it_is_and_comes_out_the_same():
    flags = "--xla_force_host_platform_device_count=8"
    result = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES],
        env={
            **os.environ,
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is what this costs
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", MOVERS)
def test_moving_pixels_never_leaves_uint8(name):
    batch, height, width, _ = SHAPE
    traced = str(jax.make_jaxpr(OPERATIONS[name])(KEY, images()))
    assert f"u8[{batch},{height},{width}" in traced
    assert f"f32[{batch},{height},{width}" not in traced


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    "operation",
    [
        augment.identity,
        augment.compose(),
        augment.pad_crop(0),
        augment.pad_crop(0, mode="constant"),
        augment.translate(0),
        augment.flip(0.0),
        augment.rotate(0.0),
        augment.cutout(0),
        augment.sometimes(augment.cutout(5), 0.0),
    ],
)
def test_zero_strength_changes_nothing(operation, dtype):
    image = images(dtype)
    np.testing.assert_array_equal(jax.jit(operation)(KEY, image), image)


@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_shift_equals_numpy_padding_and_slicing(mode):
    _, height, width, _ = SHAPE
    offsets = np.array([(down, right) for down in range(-4, 5) for right in range(-4, 5)])
    image = images(shape=(len(offsets), *SHAPE[1:]))
    padded = np.pad(np.asarray(image), ((0, 0), (4, 4), (4, 4), (0, 0)), mode=mode)
    result = jax.jit(augment.shift, static_argnums=2)(image, jnp.asarray(offsets), mode)
    for index, (down, right) in enumerate(offsets):
        expected = padded[index, 4 - down : 4 - down + height, 4 - right : 4 - right + width]
        np.testing.assert_array_equal(result[index], expected)


def test_shift_moves_down_and_to_the_right_and_may_leave_the_frame():
    image = jnp.zeros((2, 5, 4, 1)).at[:, 1, 1].set(1.0)
    moved = jax.jit(augment.shift)(image, jnp.array([[2, 1], [9, 9]]))
    assert moved[0, 3, 2, 0] == 1 and moved[0].sum() == 1
    assert moved[1].sum() == 0


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize("make", [augment.pad_crop, augment.translate])
def test_offsets_are_uniform_and_both_ends_occur(make, mode):
    # Each pixel holds its own place, so the middle one tells where it came from.
    height, width, bound = 11, 9, 2
    place = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
    image = jnp.asarray(np.tile(place.astype(np.uint8), (5000, 1, 1, 1)))
    middle = np.asarray(jax.jit(make(bound, mode))(KEY, image))[:, height // 2, width // 2].astype(
        int
    )
    offset = np.array([height // 2, width // 2]) - middle
    assert np.abs(offset).max() == bound
    counts = np.zeros((2 * bound + 1,) * 2)
    np.add.at(counts, tuple((offset + bound).T), 1)
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_flip_mirrors_left_and_right_half_of_the_time():
    image = images(shape=(2000, 3, 4, 1))
    result = np.asarray(augment.flip()(KEY, image))
    flipped = (result == np.asarray(image)[:, :, ::-1]).all((1, 2, 3))
    kept = (result == np.asarray(image)).all((1, 2, 3))
    assert (flipped ^ kept).all()
    assert scipy.stats.binomtest(int(flipped.sum()), len(image)).pvalue > 1e-3
    np.testing.assert_array_equal(augment.flip(1.0)(KEY, image), np.asarray(image)[:, :, ::-1])


def test_flip_where_touches_the_flagged_images_only():
    image = images()
    flag = jnp.arange(8) % 3 == 0
    result = augment.flip_where(image, flag)
    np.testing.assert_array_equal(result[flag], np.asarray(image)[flag][:, :, ::-1])
    np.testing.assert_array_equal(result[~flag], image[~flag])


def test_alternating_flags_show_every_example_both_ways():
    index, flags = jnp.arange(2000), jax.jit(augment.alternating_flags)
    epochs = [np.asarray(flags(KEY, index, jnp.array(e))) for e in range(4)]
    np.testing.assert_array_equal(epochs[0], ~epochs[1])
    np.testing.assert_array_equal(epochs[0], epochs[2])
    np.testing.assert_array_equal(epochs[1], epochs[3])
    assert scipy.stats.binomtest(int(epochs[0].sum()), len(index)).pvalue > 1e-3
    # The flag belongs to the example, wherever in a batch it turns up.
    np.testing.assert_array_equal(flags(KEY, index[100:50:-1], jnp.array(0)), epochs[0][100:50:-1])


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_rotation_equals_scipy(size):
    degrees = np.array([-180, -90, -33.3, -5, 0, 0.1, 12.5, 45, 90, 160], np.float32)
    image = images("float32", (len(degrees), *size, 3))
    rotate_by, angles = jax.jit(augment.rotate_by), jnp.deg2rad(jnp.asarray(degrees))
    result = rotate_by(image, angles)
    as_bytes = rotate_by(jnp.round(image * 255).astype(jnp.uint8), angles)
    for index, angle in enumerate(degrees):
        expected = scipy.ndimage.rotate(
            np.asarray(image[index], np.float64),
            float(angle),
            axes=(1, 0),
            reshape=False,
            order=1,
            mode="grid-constant",
        )
        np.testing.assert_allclose(result[index], expected, atol=2e-5)
        np.testing.assert_allclose(as_bytes[index], expected * 255, atol=0.51)


def test_a_quarter_turn_is_counter_clockwise():
    image = images("float32", (1, 6, 6, 2))
    turned = jax.jit(augment.rotate_by)(image, jnp.array([np.pi / 2]))
    np.testing.assert_allclose(turned[0], np.rot90(image[0]), atol=1e-5)


def test_angles_are_uniform_up_to_the_bound():
    # The gradient of a linear ramp turns with the image and gives the angle away.
    ramp = np.tile(np.linspace(0, 1, 9, dtype=np.float32)[:, None], (2000, 1, 9))[..., None]
    turned = np.asarray(jax.jit(augment.rotate(40.0))(KEY, jnp.asarray(ramp)), np.float64)[..., 0]
    down, right = turned[:, 5, 4] - turned[:, 3, 4], turned[:, 4, 5] - turned[:, 4, 3]
    degrees = np.rad2deg(np.arctan2(right, down))
    assert scipy.stats.kstest(degrees, scipy.stats.uniform(-40, 80).cdf).pvalue > 1e-3


def test_erase_paints_the_clipped_square():
    image = images()
    _, height, width, _ = SHAPE
    corners = [(0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1)]
    centres = np.array([*corners, (5, 5), (6, 4), (1, 8), (11, 5)])
    for size in (1, 4, 5):
        erase = jax.jit(partial(augment.erase, size=size, fill=(0.0, 0.5, 1.0)))
        result = np.asarray(erase(image, jnp.asarray(centres)))
        for index, (row, column) in enumerate(centres):
            expected = np.array(image[index])
            top, left = row - size // 2, column - size // 2
            rows = slice(max(top, 0), max(top + size, 0))
            expected[rows, max(left, 0) : max(left + size, 0)] = (0, 128, 255)
            np.testing.assert_array_equal(result[index], expected)


def test_cutout_centres_are_uniform_over_the_image():
    # Of size 1 the square is its centre.
    image = jnp.zeros((6000, 6, 5, 2))
    painted = np.asarray(jax.jit(augment.cutout(1, fill=1.0))(KEY, image)).sum(0)
    np.testing.assert_array_equal(painted[..., 0], painted[..., 1])
    assert painted[..., 0].sum() == len(image)
    assert scipy.stats.chisquare(painted[..., 0].ravel()).pvalue > 1e-3


def test_compose_gives_each_operation_its_own_key_in_order():
    seen = []

    def record(name):
        def apply(key, image):
            seen.append((name, key))
            return image + 1

        return apply

    result = augment.compose(record("a"), record("b"), record("c"))(KEY, images("float32"))
    np.testing.assert_allclose(result, images("float32") + 3, rtol=1e-6)
    assert [name for name, _ in seen] == ["a", "b", "c"]
    keys = [tuple(jax.random.key_data(key).tolist()) for key in (KEY, *(key for _, key in seen))]
    assert len(set(keys)) == 4


def test_sometimes_takes_some_images_whole_from_the_operation():
    image = images(shape=(2000, 2, 3, 1))
    operation = augment.sometimes(lambda key, image: 255 - image, 0.3)
    result = np.asarray(jax.jit(operation)(KEY, image))
    changed = (result == 255 - np.asarray(image)).all((1, 2, 3))
    assert (changed ^ (result == np.asarray(image)).all((1, 2, 3))).all()
    assert scipy.stats.binomtest(int(changed.sum()), len(image), 0.3).pvalue > 1e-3
    always = augment.sometimes(augment.cutout(2), 1)(KEY, image)
    assert change(always, image) > 0


def test_sometimes_draws_apart_from_its_operation():
    # Were the key the same, one half of the places would never be taken.
    image = jnp.zeros((4000, 1, 1, 1))
    noise = augment.sometimes(
        lambda key, image: jax.random.uniform(key, (len(image),))[:, None, None, None], 0.5
    )
    values = np.asarray(jax.jit(noise)(KEY, image), np.float64).ravel()
    assert scipy.stats.kstest(values[values > 0], "uniform").pvalue > 1e-3


def test_a_strength_may_be_traced():
    image = images("float32")
    sweep = jax.jit(jax.vmap(lambda degrees: augment.rotate(degrees)(KEY, image)))
    turned = sweep(jnp.array([0.0, 30.0]))
    np.testing.assert_array_equal(turned[0], image)
    np.testing.assert_allclose(turned[1], COMPILED["rotate"](KEY, image), atol=1e-5)


@pytest.mark.parametrize(("dtype", "most"), [("uint8", 255), ("float32", 1)])
def test_binarise_lights_a_pixel_as_often_as_it_is_bright(dtype, most):
    # One column for each of the 256 intensities.
    image = np.tile(np.arange(256, dtype=np.uint8), (50, 40, 1))[..., None]
    image = image if dtype == "uint8" else image.astype(np.float32) / 255
    bits = np.asarray(jax.jit(augment.binarise())(KEY, jnp.asarray(image)))
    assert set(np.unique(bits)) == {0, most}
    lit = (bits == most).sum((0, 1))[:, 0]
    assert lit[0] == 0 and lit[255] == 2000
    p = np.arange(1, 255) / 255
    scores = (lit[1:255] - 2000 * p) ** 2 / (2000 * p * (1 - p))
    assert scipy.stats.chi2(254).sf(scores.sum()) > 1e-3


def test_normalise_scales_bytes_and_floats_alike():
    operation = augment.normalise(*augment.CIFAR10)
    mean, std = map(np.array, augment.CIFAR10)
    expected = (np.asarray(images(), np.float64) / 255 - mean) / std
    assert operation(images()).dtype == jnp.float32
    np.testing.assert_allclose(operation(images()), expected, atol=1e-5)
    np.testing.assert_allclose(operation(images("float32")), expected, atol=1e-5)


def test_mix_with_known_answers():
    image = jnp.asarray(np.tile(np.uint8([0, 100, 200])[:, None, None, None], (1, 2, 2, 1)))
    mix = jax.jit(augment.mix)
    mixed, soft = mix(image, jnp.eye(3), jnp.array([1, 2, 0]), jnp.array(0.25))
    np.testing.assert_allclose(mixed[:, 0, 0, 0] * 255, [75, 175, 50], rtol=1e-5)
    np.testing.assert_allclose(soft, [[0.25, 0.75, 0], [0, 0.25, 0.75], [0.75, 0, 0.25]])
    clean, hard = mix(images("float32"), jnp.eye(8), jnp.arange(8)[::-1], jnp.array(1.0))
    np.testing.assert_array_equal(clean, images("float32"))
    np.testing.assert_array_equal(hard, jnp.eye(8))


@pytest.mark.parametrize(("make", "dtype"), [(augment.mixup, "uint8"), (augment.cutmix, "float32")])
def test_label_mixing_is_a_pure_function_of_key_and_batch(make, dtype):
    operation, image = jax.jit(make(1.0)), images(dtype)
    labels = jax.nn.softmax(jax.random.normal(KEY, (8, 5)))
    mixed, soft = operation(KEY, image, labels)
    assert mixed.shape == image.shape and mixed.dtype == jnp.float32
    assert soft.shape == labels.shape and soft.dtype == jnp.float32
    assert mixed.min() >= 0 and mixed.max() <= 1
    np.testing.assert_allclose(soft.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(soft.mean(0), labels.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(mixed, operation(KEY, image, labels)[0])
    assert change(mixed, operation(jax.random.key(1), image, labels)[0]) > 0
    assert change(mixed, images("float32")) > 0


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_mixup_draws_one_lambda_per_batch_from_its_beta_distribution(alpha):
    # Images are their labels, so both must be mixed by the same lambda and partner.
    labels = jnp.eye(4)
    image = labels[:, None, None, :]
    keys = jax.random.split(KEY, 600)
    mixed, soft = jax.jit(jax.vmap(augment.mixup(alpha), (0, None, None)))(keys, image, labels)
    np.testing.assert_array_equal(mixed[:, :, 0, 0], soft)
    own = np.asarray(jax.vmap(jnp.diagonal)(soft))
    paired = np.asarray((soft > 0).sum(-1) == 2)
    own = [row[pair] for row, pair in zip(own, paired, strict=True) if pair.any()]
    assert len(own) > 450
    assert max(np.ptp(row) for row in own) == 0
    shares = np.array([row[0] for row in own])
    assert scipy.stats.kstest(shares, scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_paste_mixes_labels_by_the_clipped_area():
    image = jnp.stack([jnp.zeros((5, 6, 2)), jnp.ones((5, 6, 2))])
    mixed, soft = jax.jit(augment.paste)(
        image, jnp.eye(2), jnp.array([1, 0]), jnp.array([-2, 1]), jnp.array([2, 4])
    )
    expected = np.zeros((5, 6, 2))
    expected[:2, 1:4] = 1
    np.testing.assert_array_equal(mixed[0], expected)
    np.testing.assert_array_equal(mixed[1], 1 - expected)
    # 2 x 3 pixels of 30 are left of the box of 4 x 3.
    np.testing.assert_allclose(soft, [[0.8, 0.2], [0.2, 0.8]], rtol=1e-6)


def test_cutmix_labels_tell_the_pixels_pasted():
    # Image i holds the value i everywhere, so the pixels tell their origin.
    batch, height, width = 4, 9, 7
    image = jnp.tile(jnp.arange(batch, dtype=jnp.uint8)[:, None, None, None], (1, height, width, 2))
    keys = jax.random.split(KEY, 400)
    mixed, soft = jax.jit(jax.vmap(augment.cutmix(1.0), (0, None, None)))(
        keys, image, jnp.eye(batch)
    )
    origin = np.round(np.asarray(mixed) * 255).astype(int)
    np.testing.assert_array_equal(origin[..., 0], origin[..., 1])
    counts = (origin[..., :1] == np.arange(batch)).sum((2, 3))
    np.testing.assert_allclose(np.asarray(soft) * height * width, counts, atol=1e-4)
    pasted = origin[..., 0] != np.arange(batch)[:, None, None]
    for boxes in pasted:
        drawn = boxes[boxes.any((1, 2))]
        for box in drawn:
            # One full rectangle, the same for the whole batch.
            np.testing.assert_array_equal(box, drawn[0])
            assert box.sum() == box.any(0).sum() * box.any(1).sum()
    # The areas are distributed as the paper's formulas say, written out once more in numpy.
    draw, frame = np.random.default_rng(0), np.array([height, width])
    size = np.floor(np.sqrt(draw.uniform(size=(20000, 1))) * frame)
    start = draw.integers(0, frame, (20000, 2)) - size // 2
    expected = (np.minimum(start + size, frame) - np.maximum(start, 0)).prod(1)
    areas = pasted.any(1).sum((1, 2))
    assert scipy.stats.ks_2samp(areas[areas > 0], expected[expected > 0]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: augment.pad_crop(-1), "pad_crop: padding is -1"),
        (lambda: augment.pad_crop(2, mode="edge"), "'edge'"),
        (lambda: augment.pad_crop(10)(KEY, images()), "12 x 10; give at most 9"),
        (lambda: augment.translate(-2), "translate: max_shift is -2"),
        (lambda: augment.translate(10, "reflect")(KEY, images()), "give at most 9"),
        (lambda: augment.flip(1.5), "flip: probability is 1.5"),
        (lambda: augment.sometimes(augment.flip(), 1.5), "sometimes: probability is 1.5"),
        (
            lambda: augment.sometimes(lambda key, image: image[:, 1:], 0.5)(KEY, images()),
            "made uint8[8, 11, 10, 3] of uint8[8, 12, 10, 3]",
        ),
        (lambda: augment.rotate(-1.0), "rotate: max_degrees is -1"),
        (lambda: augment.rotate(float("nan")), "rotate: max_degrees is nan"),
        (lambda: augment.cutout(-1), "cutout: size is -1"),
        (lambda: augment.cutout(11)(KEY, images()), "at most 10"),
        (lambda: augment.cutout(2, fill=(0.1, 0.2))(KEY, images()), "fill has shape (2,)"),
        (lambda: augment.cutout(2, fill=128)(KEY, images()), "numbers from 0 to 1"),
        (lambda: augment.normalise((0.5,), (0.0,)), "above 0"),
        (lambda: augment.normalise((0.5,), (0.1, 0.2)), "one number per channel"),
        (lambda: augment.normalise(*augment.MNIST)(images()), "3 channels and mean 1 values"),
        (lambda: augment.mixup(0.0), "mixup: alpha is 0.0"),
        (lambda: augment.cutmix(-1.0), "cutmix: alpha is -1.0"),
        (lambda: augment.mixup(1.0)(KEY, images(), jnp.arange(8)), "int32[8] for 8 images"),
        (lambda: augment.cutmix(1.0)(KEY, images(), jnp.eye(7)), "float32[7, 7] for 8 images"),
        (lambda: augment.flip()(KEY, images()[0]), "uint8[12, 10, 3]"),
        (lambda: augment.flip()(KEY, jnp.ones(SHAPE, jnp.int32)), "image is int32"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
