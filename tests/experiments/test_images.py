"""What the image experiments share."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import images
from nets.net import Net


@pytest.mark.parametrize("padding", ["reflect", "constant"])
def test_six_views_are_weighed_in_evaluation_alone(padding):
    """The net gives one pixel off the centre, so that every view shows another one."""
    pixel = Net(
        lambda key, image: ({}, {}),
        lambda params, model_state, image, **_: (image[:, 0, 1], {"seen": 1}),
    )
    net = images.six_views(pixel, padding)
    image = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    training, state = net.apply({}, {}, jnp.asarray(image), train=True)
    np.testing.assert_array_equal(training, image[:, 0, 1])
    assert state == {"seen": 1}

    still = (image[:, 0, 1] + image[:, 0, 3]) / 4
    # Moved down and right by one, row 0 shows what came in: row 1 in a mirror, or nothing.
    moved_down = (image[:, 1, 0] + image[:, 1, 2]) / 8 * (padding == "reflect")
    moved_up = (image[:, 1, 2] + image[:, 1, 4]) / 8
    found, state = net.apply({}, {"kept": 1}, jnp.asarray(image))
    np.testing.assert_allclose(found, still + moved_down + moved_up, atol=1e-6)
    assert state == {"kept": 1}


def test_digits_are_enlarged_by_whole_numbers():
    digits = {"image": np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1), "label": np.int32([3])}
    large = images.enlarged(digits, (28, 30, 3))["image"]
    assert large.shape == (1, 28, 30, 3)
    np.testing.assert_array_equal(large[0, 2:26:3, 3:27:3, 1], digits["image"][0, :, :, 0])
    assert large[0, :2].sum() == large[0, :, :3].sum() == large[0, 26:].sum() == 0
