"""Threefry written out: the published answers, in jax's own functions, without a loop."""

import jax
import numpy as np
import pytest

from paradigms.core.state import fold_name
from paradigms.core.threefry import threefry2x32


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [  # Random123's known answers for threefry2x32-20.
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers(key, counter, expected):
    words = (np.asarray([word], np.uint32) for word in (*key, *counter))
    assert tuple(int(word[0]) for word in threefry2x32(*words)) == expected


def test_the_bits_of_jax_are_those_of_the_counters():
    data = np.asarray([[7, 2**31], [2**32 - 1, 5]], np.uint32)
    keys = jax.random.wrap_key_data(data)
    drawn = jax.jit(jax.vmap(lambda key: jax.random.bits(key, (3, 5))))(keys)
    counters = np.zeros(15, np.uint32), np.arange(15, dtype=np.uint32)
    for row, bits in zip(data, drawn, strict=True):
        first, second = threefry2x32(row[:1], row[1:], *counters)
        np.testing.assert_array_equal(bits, (first ^ second).reshape(3, 5))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators have kernels of their own")
def test_no_loop_is_left_on_a_cpu():
    def draw(key):
        return jax.random.normal(fold_name(key, "some"), (3,)), jax.random.split(key, 4)

    assert "while" not in jax.jit(draw).lower(jax.random.key(0)).compile().as_text()
