"""Many thresholds, weights and draws of the labels at once, in one compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from semi_supervised.linear import KEY, LABEL, TRUTH, U, X, linear

from paradigms.core.transforms import repeated, resident, run_data, seeded, swept
from paradigms.semi_supervised import (
    fixmatch,
    flexmatch,
    mean_teacher,
    mixmatch,
    pi_model,
    pseudo_label,
    vat,
)

SGD = optax.sgd(0.5)
SIZES = {"labelled": 2, "unlabelled": 4}
# Two draws of the labels, and unlabelled examples that both share.
DRAWS = {
    "labelled": {"x": np.stack([X, X[::-1] + 1]), "label": np.stack([LABEL, LABEL[::-1]])},
    "unlabelled": {"x": U, "label": TRUTH},
}
AXES = {"labelled": 0, "unlabelled": None}


def shaken(key, x):
    return x + 0.3 * jax.random.normal(key, x.shape)


METHODS = {
    "pseudo_label": lambda h: pseudo_label(linear(), SGD, input_name="x", **h),
    "pi_model": lambda h: pi_model(linear(), SGD, augment=shaken, input_name="x", **h),
    "mean_teacher": lambda h: mean_teacher(linear(), SGD, augment=shaken, input_name="x", **h),
    "vat": lambda h: vat(linear(), SGD, input_name="x", **h),
    "mixmatch": lambda h: mixmatch(linear(), SGD, shaken, input_name="x", **h),
    "fixmatch": lambda h: fixmatch(linear(), SGD, shaken, shaken, input_name="x", **h),
    "flexmatch": lambda h: flexmatch(
        linear(), SGD, shaken, shaken, examples=len(U), input_name="x", **h
    ),
}
WEIGHTS = {"weight": (1.0, 4.0)}
POINTS = {
    "pseudo_label": {**WEIGHTS, "threshold": (0.4, 0.6)},
    "pi_model": {**WEIGHTS, "entropy_weight": (0.0, 1.0)},
    "mean_teacher": {**WEIGHTS, "decay": (0.9, 0.5), "entropy_weight": (0.0, 1.0)},
    "vat": {**WEIGHTS, "epsilon": (1.0, 0.3), "entropy_weight": (0.5, 1.0)},
    "mixmatch": {**WEIGHTS, "temperature": (0.5, 1.0)},
    "fixmatch": {**WEIGHTS, "threshold": (0.4, 0.6)},
    "flexmatch": {**WEIGHTS, "threshold": (0.6, 0.95)},
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "fixmatch" else pytest.mark.slow) for name in METHODS],
)
def test_draws_of_labels_and_options_train_in_one_program(name):
    """Each value is used, none compiles anything, and each run is that of its draw and point."""

    def make(h):
        return repeated(resident(METHODS[name](h), SIZES), 8)

    pairs = POINTS[name]
    usual = {option: pair[0] for option, pair in pairs.items()}
    every = {option: pair[1] for option, pair in pairs.items()}

    def both(point):
        """The usual values and those, for each draw."""
        return {option: jnp.array([[usual[option], point[option]]] * 2) for option in pairs}

    keys = jax.random.split(KEY, 2)
    grid = {option: values[0] for option, values in both(every).items()}
    learner = seeded(swept(make, grid), data_axis=AXES)
    start = jax.jit(learner.init)(keys, DRAWS)
    traced = []

    @jax.jit
    def update(state, data):
        traced.append(1)
        return learner.update(state, data)

    after, _ = update(start, DRAWS)
    alone_init = jax.jit(lambda h, key, data: make(h).init(key, data))
    alone_update = jax.jit(lambda h, state, data: make(h).update(state, data)[0])
    for draw in range(2):
        data = run_data(DRAWS, AXES, draw)
        for place, point in enumerate((usual, every)):
            expected = alone_update(point, alone_init(point, keys[draw], data), data)
            np.testing.assert_allclose(
                after.params["w"][draw, place], expected.params["w"], atol=1e-6
            )

    for changed in pairs:
        point = {**usual, changed: every[changed]}
        after, _ = update(start.replace(hparams=both(point)), DRAWS)
        difference = jnp.abs(after.params["w"][:, 1] - after.params["w"][:, 0]).max((1, 2))
        assert (difference > 1e-5).all(), changed
    assert traced == [1]
