"""How good samples are: modes covered, Frechet distance, classifier score; all without a network.

The last two take features and logits of a classifier of one's own. They are not FID and inception
score, although they have the same formulas: those names stand for one Inception network trained on
ImageNet, with one way of resizing. Numbers from another classifier compare samples with samples
under that classifier, and with nothing in the literature. State the classifier, its accuracy and
the number of samples beside them.
"""

import numpy as np
from numpy.typing import ArrayLike

from paradigms.core.errors import InputError


def mode_coverage(
    samples: ArrayLike,
    centres: ArrayLike,
    std: float,
    *,
    sigmas: float = 3.0,
    minimum: int = 1,
) -> dict[str, float]:
    """How many modes of a known mixture the samples reach, and how many samples reach a mode.

    Srivastava et al. 2017 (VEEGAN, arXiv:1705.07761), section 4.1: a sample is of high quality
    within three standard deviations of the nearest centre, and a mode is covered when it is the
    nearest of at least one such sample; they draw 2,500. Of the mixture itself the share
    `1 - exp(-9 / 2)` = 98.9 % lies within three standard deviations in two dimensions.

    Args:
      samples: `[N, D]`.
      centres: of the modes, `[K, D]`.
      std: standard deviation of a mode along each axis.
      sigmas: how many of them count as near.
      minimum: samples of high quality that cover a mode.

    Returns:
      `modes` (covered, of K), `high_quality` (share of the samples, in [0, 1]) and `kl` (nats): the
      divergence of the histogram of all samples by nearest centre from the uniform one, 0 where
      all modes are drawn alike and ln K where one alone is.

    Raises:
      InputError: shapes that do not fit, values that are not finite, or a number that is not
        positive.
    """
    points, modes = _finite("mode_coverage", samples), _finite("mode_coverage", centres)
    if points.shape[1] != modes.shape[1]:
        raise InputError(
            f"mode_coverage: samples {points.shape} and centres {modes.shape} differ in dimension"
        )
    if not (std > 0 and sigmas > 0 and minimum >= 1):
        raise InputError(
            f"mode_coverage(std={std}, sigmas={sigmas}, minimum={minimum}): expected positive "
            "numbers"
        )
    distances = np.linalg.norm(points[:, None] - modes, axis=-1)
    nearest = distances.argmin(1)
    good = distances.min(1) <= sigmas * std
    covered = np.bincount(nearest[good], minlength=len(modes)) >= minimum
    share = np.bincount(nearest, minlength=len(modes)) / len(points)
    drawn = share[share > 0]
    return {
        "modes": float(covered.sum()),
        "high_quality": float(good.mean()),
        "kl": float((drawn * np.log(drawn * len(modes))).sum()),
    }


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """The Frechet distance of two sets of features, each taken for a Gaussian.

    `|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))` (Heusel et al. 2017, arXiv:1706.08500,
    equation 6) with means and unbiased covariances, in float64. Of N(0, 1) and N(1, 4) it is 2. It
    is biased upwards for few samples, so compare only what has as many. Not FID: see above.

    Args:
      features_a: `[N, D]`.
      features_b: `[M, D]`, in either order.

    Returns:
      The distance, in squared units of the features, at least 0.

    Raises:
      InputError: features that differ in width or are not finite, or as few rows as columns, with
        which a covariance is singular.
    """
    a, b = (_finite("frechet_distance", features) for features in (features_a, features_b))
    if a.shape[1] != b.shape[1]:
        raise InputError(f"frechet_distance: features {a.shape} and {b.shape} differ in width")
    if min(len(a), len(b)) <= a.shape[1]:
        raise InputError(
            f"frechet_distance: {min(len(a), len(b))} samples of {a.shape[1]} features have a "
            f"singular covariance: take at least {a.shape[1] + 1}"
        )
    cov_a, cov_b = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (a, b))
    # The product of two covariances is not symmetric, but its root has the trace of this one's.
    cross = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False).sum()
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return max(float(shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross), 0.0)


def classifier_score(logits: ArrayLike, splits: int = 1) -> float:
    """`exp(E_x KL(p(y|x) || p(y)))` of a classifier's predictions on samples.

    Salimans et al. 2016, arXiv:1606.03498, section 4: 1 where all predictions are alike, K where
    they are certain and all K classes are drawn alike. Not the inception score: see above.

    Args:
      logits: `[N, K]`.
      splits: into how many parts the samples are cut, in their order; the score is the mean of
        theirs. The paper's tables take 10, whose few samples score lower.

    Returns:
      A number in [1, K].

    Raises:
      InputError: logits that are no finite matrix, or fewer samples than parts.
    """
    values = _finite("classifier_score", logits)
    if not 1 <= splits <= len(values):
        raise InputError(
            f"classifier_score(splits={splits}): expected 1 to {len(values)}, the number of samples"
        )
    values = values - values.max(1, keepdims=True)
    log_p = values - np.log(np.exp(values).sum(1, keepdims=True))
    scores = []
    for part in np.array_split(log_p, splits):
        p = np.exp(part)
        marginal = p.mean(0)
        # A class that no sample has underflows to 0, and counts nothing.
        log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
        scores.append(np.exp((p * (part - log_marginal)).sum(1).mean()))
    return float(np.mean(scores))


def _finite(function: str, array: ArrayLike) -> np.ndarray:
    matrix = np.asarray(array, np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise InputError(f"{function}: got an array {matrix.shape}: expected a matrix [N, D]")
    bad = ~np.isfinite(matrix).all(1)
    if bad.any():
        raise InputError(
            f"{function}: row {bad.argmax()} is not finite ({bad.sum()} of {len(matrix)} rows): "
            "look for NaN where it was made"
        )
    return matrix


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
