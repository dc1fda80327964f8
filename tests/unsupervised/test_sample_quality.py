import numpy as np
import pytest
import scipy.linalg

from paradigms.core.errors import InputError
from paradigms.unsupervised.sample_quality import (
    classifier_score,
    frechet_distance,
    mode_coverage,
)

LINE = [[0.0, 0.0], [10.0, 0.0], [20.0, 0.0]]


def test_modes_by_hand():
    # With std 1 the first two points are near the first centre, the third is just outside the
    # second, the fourth is near the third on its edge, the last nowhere.
    samples = [[0.0, 1.0], [2.0, 2.0], [10.0, 3.01], [20.0, 3.0], [5.1, 50.0]]
    found = mode_coverage(samples, LINE, 1.0)
    share = np.array([2, 2, 1]) / 5
    assert found["modes"] == 2
    assert found["high_quality"] == 3 / 5
    assert found["kl"] == pytest.approx((share * np.log(share * 3)).sum())
    assert mode_coverage(samples, LINE, 1.0, minimum=2)["modes"] == 1
    wider = mode_coverage(samples, LINE, 1.0, sigmas=4.0)
    assert (wider["modes"], wider["high_quality"]) == (3, 4 / 5)
    assert mode_coverage(samples, LINE, 0.5)["high_quality"] == 1 / 5


def test_a_sample_covers_only_its_nearest_mode():
    # Both centres are within three standard deviations of the one sample.
    found = mode_coverage([[0.4]], [[0.0], [1.0]], 1.0)
    assert (found["modes"], found["high_quality"]) == (1, 1)


def test_the_mixture_itself_is_the_reference():
    rng = np.random.default_rng(0)
    centres = np.float64([[x, y] for x in range(-4, 5, 2) for y in range(-4, 5, 2)])
    samples = np.repeat(centres, 1000, axis=0) + rng.normal(scale=0.05, size=(25_000, 2))
    found = mode_coverage(samples, centres, 0.05)
    expected = 1 - np.exp(-9 / 2)
    error = np.sqrt(expected * (1 - expected) / 25_000)
    assert found["modes"] == 25
    assert found["high_quality"] == pytest.approx(expected, abs=4 * error)
    assert found["kl"] == pytest.approx(0, abs=1e-12)
    collapsed = mode_coverage(samples[:1000], centres, 0.05)
    assert collapsed["modes"] == 1
    assert collapsed["kl"] == pytest.approx(np.log(25))


def gaussian(n, mean, covariance, seed):
    """Features with exactly these moments."""
    mean, covariance = np.atleast_1d(np.float64(mean)), np.atleast_2d(np.float64(covariance))
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x.T)))).T
    return mean + x @ np.linalg.cholesky(covariance).T


def test_frechet_distances_that_are_known():
    normal = gaussian(50, np.zeros(3), np.eye(3), 0)
    assert frechet_distance(normal, normal) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(normal, normal[::-1] + [3, 0, 4]) == pytest.approx(25)
    wide = gaussian(40, np.zeros(3), 9 * np.eye(3), 1)
    assert frechet_distance(normal, wide) == pytest.approx(3 * (3 - 1) ** 2)
    assert frechet_distance(gaussian(9, 0, 1, 2), gaussian(8, 1, 4, 3)) == pytest.approx(2)


def test_frechet_distance_of_covariances_that_do_not_commute():
    rng = np.random.default_rng(4)
    a = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)) + 1
    b = rng.normal(size=(80, 5)) @ rng.normal(size=(5, 5))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    expected = shift + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_is_computed_in_float64():
    # In float32 the variance 1 about a mean of 1e4 is lost.
    a = gaussian(50, 0, 1, 5)
    a, b = (np.float32(np.round(a * 64) / 64 + shift) for shift in (1e4, 1e4 + 1))
    assert frechet_distance(a, b) == pytest.approx(1, rel=1e-9)


def test_a_feature_that_never_varies_is_no_error():
    rng = np.random.default_rng(6)
    dead = np.concatenate([rng.normal(size=(30, 2)), np.zeros((30, 1))], axis=1)
    assert frechet_distance(dead, dead) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(dead, dead + [0, 0, 2]) == pytest.approx(4)


def test_features_that_depend_on_each_other_are_no_error():
    # Rounding makes some of the zero eigenvalues negative.
    rng = np.random.default_rng(8)
    x = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 9))
    assert np.linalg.eigvalsh(np.cov(x.T)).min() < 0
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)


def test_classifier_scores_that_are_known():
    uniform = np.zeros((6, 4))
    assert classifier_score(uniform) == pytest.approx(1)
    certain = 1e4 * np.eye(4)[np.arange(8) % 4]
    assert classifier_score(certain) == pytest.approx(4)
    # Certain, of one class alone; certain, of two of the four.
    assert classifier_score(certain[::4]) == pytest.approx(1)
    assert classifier_score(certain[np.array([0, 1, 0, 1])]) == pytest.approx(2)
    # p(y|x) = (3/4, 1/4) and (1/4, 3/4), p(y) uniform: the divergence is ln 2 - H(1/4).
    half_sure = np.log([[3.0, 1.0], [1.0, 3.0]]) + [[5.0], [-7.0]]
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert classifier_score(half_sure) == pytest.approx(np.exp(np.log(2) - entropy))
    # One certain and one undecided, p(y) = (3/4, 1/4): the mean is taken of the divergences.
    divergences = [np.log(4 / 3), 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)]
    mixed = [[1e4, 0.0], [0.0, 0.0]]
    assert classifier_score(mixed) == pytest.approx(np.exp(np.mean(divergences)))


def test_splits_are_scored_apart_and_averaged():
    certain = 1e4 * np.eye(3)[[0, 1, 2, 2, 2, 2]]
    assert classifier_score(certain, splits=2) == pytest.approx((3 + 1) / 2)
    values = np.random.default_rng(7).normal(size=(7, 3))
    parts = [classifier_score(values[:4]), classifier_score(values[4:])]
    assert classifier_score(values, splits=2) == pytest.approx(np.mean(parts))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda bad: mode_coverage(bad, LINE, 1.0), "mode_coverage: row 1 is not finite"),
        (lambda bad: frechet_distance(np.zeros((9, 2)), bad), "frechet_distance: row 1 is not"),
        (lambda bad: classifier_score(bad), r"row 1 is not finite \(2 of 4 rows\)"),
        (lambda bad: mode_coverage(np.zeros((3, 3)), LINE, 1.0), "differ in dimension"),
        (lambda bad: mode_coverage(np.zeros(3), LINE, 1.0), r"expected a matrix \[N, D\]"),
        (lambda bad: mode_coverage(np.zeros((0, 2)), LINE, 1.0), r"expected a matrix \[N, D\]"),
        (lambda bad: mode_coverage(LINE, LINE, 0.0), "expected positive numbers"),
        (lambda bad: mode_coverage(LINE, LINE, 1.0, sigmas=-1.0), "expected positive numbers"),
        (lambda bad: mode_coverage(LINE, LINE, 1.0, minimum=0), "expected positive numbers"),
        (lambda bad: frechet_distance(np.eye(4)[:, :2], np.eye(4)[:, :3]), "differ in width"),
        (
            lambda bad: frechet_distance(np.zeros((9, 2)), np.zeros((2, 2))),
            "2 samples of 2 features have a singular covariance: take at least 3",
        ),
        (lambda bad: classifier_score(np.zeros((4, 2)), splits=5), r"expected 1 to 4"),
        (lambda bad: classifier_score(np.zeros((4, 2)), splits=0), r"expected 1 to 4"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    bad = np.zeros((4, 2))
    bad[1, 0], bad[3, 1] = np.nan, np.inf
    with pytest.raises(InputError, match=message) as error:
        call(bad)
    assert "\n" not in str(error.value)
