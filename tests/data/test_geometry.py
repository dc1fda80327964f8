"""Warps, zooms and resized crops against Pillow and scipy, and what is drawn for them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image

from paradigms.core.errors import InputError
from paradigms.data import geometry

KEY = jax.random.key(0)
SHAPE = (6, 12, 10, 3)


def images(dtype="uint8", shape=SHAPE, seed=0):
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return jnp.asarray(image) if dtype == "uint8" else jnp.asarray(image, jnp.float32) / 255


def affine_maps(count):
    draw = np.random.default_rng(1)
    return np.eye(2, 3) + draw.uniform(-0.5, 0.5, (count, 2, 3)) * [1, 1, 6]


def test_nearest_warp_equals_pillow():
    image, maps = images(), affine_maps(6)
    warp = jax.jit(partial(geometry.warp, fill=(0.0, 0.5, 1.0), nearest=True))
    result = np.asarray(warp(image, jnp.asarray(maps, jnp.float32)))
    _, height, width, _ = SHAPE
    for index, ((a, b, c), (d, e, f)) in enumerate(maps):
        # Pillow counts right before down, from the corner, at the pixels' middles.
        middle = np.array([height, width]) / 2
        to_corner = middle - np.array([[a, b], [d, e]]) @ middle + [c, f]
        expected = Image.fromarray(np.asarray(image[index])).transform(
            (width, height),
            Image.Transform.AFFINE,
            (e, d, to_corner[1], b, a, to_corner[0]),
            fillcolor=(0, 128, 255),
        )
        np.testing.assert_array_equal(result[index], expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_bilinear_warp_with_a_fill_equals_scipy(channels):
    image, maps = images("float32", (4, 9, 8, channels)), affine_maps(4)
    result = jax.jit(partial(geometry.warp, fill=0.5))(image, jnp.asarray(maps, jnp.float32))
    middle = (np.array([9, 8]) - 1) / 2
    for index, map_ in enumerate(maps):
        turn, move = map_[:, :2], map_[:, 2]
        for channel in range(channels):
            expected = scipy.ndimage.affine_transform(
                np.asarray(image[index, ..., channel], np.float64),
                turn,
                middle - turn @ middle + move,
                order=1,
                mode="grid-constant",
                cval=0.5,
            )
            np.testing.assert_allclose(result[index, ..., channel], expected, atol=2e-5)


def test_zoom_by_equals_scipy():
    image, factor = images("float32", (3, 9, 8, 1)), np.array([0.7, 1.0, 1.6])
    result = jax.jit(geometry.zoom_by)(image, jnp.asarray(factor, jnp.float32))
    middle = (np.array([9, 8]) - 1) / 2
    for index in range(3):
        expected = scipy.ndimage.affine_transform(
            np.asarray(image[index, ..., 0], np.float64),
            np.full(2, 1 / factor[index]),
            middle * (1 - 1 / factor[index]),
            order=1,
            mode="grid-constant",
        )
        np.testing.assert_allclose(result[index, ..., 0], expected, atol=2e-5)


def test_zoom_factors_are_uniform_over_the_range():
    # A linear ramp through the middle has the slope 1 / factor.
    ramp = np.tile(np.linspace(0, 1, 9, dtype=np.float32)[:, None], (1500, 1, 3))[..., None]
    zoomed = np.asarray(jax.jit(geometry.zoom((0.8, 1.5)))(KEY, jnp.asarray(ramp)), np.float64)
    factor = 0.25 / (zoomed[:, 5, 1, 0] - zoomed[:, 3, 1, 0])
    assert scipy.stats.kstest(factor, scipy.stats.uniform(0.8, 0.7).cdf).pvalue > 1e-3


BOXES = np.array(
    [
        (0, 0, 12, 10),
        (2, 3, 6, 5),
        (1, 0, 11, 4),
        (2.3, 1.7, 7.9, 3.2),
        (9, 8, 2, 1.5),
        (0, 4, 1, 6),
    ]
)


@pytest.mark.parametrize("size", [None, 5, (20, 3)])
def test_crop_resize_equals_pillow_whether_it_shrinks_or_magnifies(size):
    image = images()
    crop = jax.jit(partial(geometry.crop_resize, size=size))
    result = np.asarray(crop(image, jnp.asarray(BOXES, jnp.float32)), int)
    rows, columns = (size, size) if isinstance(size, int) else size or SHAPE[1:3]
    assert result.shape == (6, rows, columns, 3)
    for index, (top, left, height, width) in enumerate(BOXES):
        expected = Image.fromarray(np.asarray(image[index])).resize(
            (columns, rows),
            Image.Resampling.BILINEAR,
            box=(left, top, left + width, top + height),
        )
        # Pillow rounds between the two passes.
        assert np.abs(result[index] - np.asarray(expected, int)).max() <= 1


def test_floats_are_cropped_as_bytes_are():
    boxes = jnp.asarray(BOXES, jnp.float32)
    crop = jax.jit(geometry.crop_resize)
    floats, whole = crop(images("float32"), boxes), crop(images(), boxes)
    assert floats.dtype == jnp.float32 and whole.dtype == jnp.uint8
    np.testing.assert_allclose(255 * floats, whole, atol=0.501)


def drawn_boxes(monkeypatch, shape, **options):
    seen = []
    monkeypatch.setattr(geometry, "crop_resize", lambda image, box, size: seen.append(box) or image)
    geometry.random_resized_crop(**options)(KEY, jnp.zeros(shape, jnp.uint8))
    box = np.asarray(seen[0], np.float64)
    frame = np.array(shape[1:3])
    # Always inside the image, save for rounding.
    assert (box[:, :2] >= 0).all() and (box[:, 2:] > 0).all()
    assert (box[:, :2] + box[:, 2:] <= frame + 1e-4).all()
    area = box[:, 2:].prod(1) / frame.prod()
    return box, area, np.log(box[:, 3] / box[:, 2])


def uniform(values, low, high):
    return scipy.stats.kstest(values, scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_crop_area_and_log_ratio_are_uniform(monkeypatch):
    # Up to half of the area every ratio of the default range fits.
    box, area, log_ratio = drawn_boxes(monkeypatch, (4000, 32, 32, 1), scale=(0.1, 0.5))
    assert uniform(area, 0.1, 0.5)
    assert uniform(log_ratio, np.log(3 / 4), np.log(4 / 3))
    assert abs(np.corrcoef(area, log_ratio)[0, 1]) < 0.06
    place = box[:, :2] / (32 - box[:, 2:])
    assert uniform(place[:, 0], 0, 1) and uniform(place[:, 1], 0, 1)
    assert abs(np.corrcoef(place.T)[0, 1]) < 0.06


@pytest.mark.parametrize("frame", [(32, 32), (30, 40)])
def test_area_stays_uniform_where_only_some_ratios_fit(monkeypatch, frame):
    _, area, log_ratio = drawn_boxes(monkeypatch, (4000, *frame, 1), scale=(0.08, 1.0))
    assert uniform(area, 0.08, 1.0)
    low = np.maximum(np.log(3 / 4), np.log(area * frame[1] / frame[0]))
    high = np.minimum(np.log(4 / 3), np.log(frame[1] / frame[0] / area))
    wide = high - low > 1e-3
    assert uniform(((log_ratio - low) / (high - low))[wide], 0, 1)


def test_a_box_that_fits_at_no_ratio_is_shrunk(monkeypatch):
    box, area, log_ratio = drawn_boxes(monkeypatch, (50, 10, 100, 1), scale=(0.9, 1.0))
    np.testing.assert_allclose(log_ratio, np.log(4 / 3), rtol=1e-5)
    np.testing.assert_allclose(box[:, 2], 10, rtol=1e-5)
    np.testing.assert_allclose(area, 10 * 40 / 3 / 1000, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    "operation",
    [
        geometry.random_resized_crop((1.0, 1.0), (10 / 12, 10 / 12)),
        geometry.zoom((1.0, 1.0), fill=0.5),
        geometry.rotate(0.0, fill=0.5),
    ],
)
def test_zero_strength_changes_nothing(operation, dtype):
    image = images(dtype)
    result = jax.jit(operation)(KEY, image)
    assert result.dtype == image.dtype
    np.testing.assert_allclose(result, image, atol=1e-5)


def test_strengths_may_be_traced():
    image = images("float32")

    def view(least):
        crop = geometry.random_resized_crop((least, 1.0), (least, 1.0))(KEY, image)
        return geometry.zoom((least, 1.0))(KEY, crop)

    assert np.abs(np.diff(jax.jit(jax.vmap(view))(jnp.array([0.2, 0.9])), axis=0)).mean() > 0.01


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: geometry.random_resized_crop((0.0, 1.0)), "scale is (0.0, 1.0); give two numbers"),
        (lambda: geometry.random_resized_crop((0.5, 1.1)), "cannot exceed the image"),
        (lambda: geometry.random_resized_crop((0.9, 0.5)), "the smaller one first"),
        (lambda: geometry.random_resized_crop(ratio=(2.0, 0.5)), "ratio is (2.0, 0.5)"),
        (lambda: geometry.random_resized_crop(size=0)(KEY, images()), "size is 0"),
        (lambda: geometry.crop_resize(images(), jnp.array([[3.0, 0, 10, 5]])), "12 x 10; give"),
        (lambda: geometry.crop_resize(images(), jnp.array([[-1.0, 0, 10, 5]])), "exceeds"),
        (lambda: geometry.crop_resize(images(), jnp.array([[1.0, 0, 0, 5]])), "empty"),
        (lambda: geometry.zoom((0.0, 1.0)), "zoom: scale is (0.0, 1.0)"),
        (lambda: geometry.zoom((1.2, 1.0)), "the smaller one first"),
        (lambda: geometry.rotate(181.0), "rotate: max_degrees is 181"),
        (lambda: geometry.zoom(fill=(0.1, 0.2))(KEY, images()), "fill has shape (2,)"),
        (lambda: geometry.zoom()(KEY, images()[0]), "uint8[12, 10, 3]"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
