"""Gaussian mixtures whose modes are known."""

import numpy as np
import pytest

from paradigms.core.errors import InputError
from paradigms.data.mixtures import gaussian_grid, gaussian_ring, grid_centres, ring_centres


def test_the_ring_has_eight_different_centres():
    root = np.sqrt(2)
    expected = [(2, 0), (root, root), (0, 2), (-root, root)]
    expected += [(-x, -y) for x, y in expected]
    centres = ring_centres()
    np.testing.assert_allclose(centres, expected, atol=1e-6)
    assert centres.dtype == np.float32
    np.testing.assert_allclose(ring_centres(2, 0.5), [(0.5, 0), (-0.5, 0)], atol=1e-6)


def test_the_grid_is_that_of_veegan():
    values = [-4, -2, 0, 2, 4]
    centres = grid_centres()
    np.testing.assert_array_equal(centres, [(x, y) for y in values for x in values])
    assert centres.dtype == np.float32
    np.testing.assert_array_equal(
        grid_centres(2, 1.0), 0.5 * np.float32([(-1, -1), (1, -1), (-1, 1), (1, 1)])
    )


@pytest.mark.parametrize(
    ("make", "centres", "std"),
    [(gaussian_ring, ring_centres(), 0.02), (gaussian_grid, grid_centres(), 0.05)],
)
def test_points_are_gaussian_about_the_mode_of_their_label(make, centres, std):
    n = 20_000
    data = make(n)
    assert data["x"].dtype == np.float32 and data["x"].shape == (n, 2)
    assert data["label"].dtype == np.int32 and data["label"].shape == (n,)
    noise = (data["x"] - centres[data["label"]]) / std
    np.testing.assert_allclose(noise.mean(0), 0, atol=4 / np.sqrt(n))
    np.testing.assert_allclose(np.cov(noise.T), np.eye(2), atol=4 * np.sqrt(2 / n))
    # All modes alike, to within four standard errors of a count, and in no order.
    k = len(centres)
    counts = np.bincount(data["label"], minlength=k)
    assert np.abs(counts - n / k).max() < 4 * np.sqrt(n / k)
    assert abs(np.corrcoef(np.arange(n), data["label"])[0, 1]) < 4 / np.sqrt(n)


def test_options_and_seeds():
    ring = gaussian_ring(500, 3, radius=5.0, std=0.1, seed=1)
    assert set(ring["label"]) == {0, 1, 2}
    np.testing.assert_allclose(np.linalg.norm(ring["x"], axis=1), 5, atol=0.6)
    grid = gaussian_grid(500, 2, spacing=10.0, std=0.1)
    np.testing.assert_allclose(np.abs(grid["x"]), 5, atol=0.6)
    for make in (gaussian_ring, gaussian_grid):
        np.testing.assert_array_equal(make(9, seed=3)["x"], make(9, seed=3)["x"])
        assert (make(9, seed=3)["x"] != make(9, seed=4)["x"]).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian_ring(0), "n=0 points with std=0.02: expected at least 1 point"),
        (lambda: gaussian_grid(9, std=0.0), "std=0.0: expected at least 1 point and a positive"),
        (lambda: gaussian_ring(9, std=float("nan")), "std=nan"),
        (lambda: gaussian_ring(9, 0), "modes=0, radius=2.0.: expected at least 1 mode"),
        (lambda: gaussian_ring(9, radius=-1.0), "radius=-1.0"),
        (lambda: gaussian_grid(9, 0), "side=0, spacing=2.0.: expected a side of at least 1"),
        (lambda: gaussian_grid(9, spacing=0.0), "spacing=0.0"),
    ],
)
def test_bad_numbers_are_one_clear_line(make, message):
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
