"""Binarised MNIST: both forms of its files, and what is refused."""

import hashlib

import numpy as np
import pytest

from paradigms import data
from paradigms.core.errors import InputError
from paradigms.data import binarized


@pytest.fixture
def bits(tmp_path, monkeypatch):
    """Three images for every split, known by their sum; the folder is there and empty."""
    bits = np.random.default_rng(0).integers(0, 2, (3, 784), np.uint8)
    pin = (3, hashlib.sha256(bits.tobytes()).hexdigest())
    monkeypatch.setattr(binarized, "SPLITS", dict.fromkeys(("train", "valid", "test"), pin))
    (tmp_path / "binarized_mnist").mkdir()
    return bits


def write(folder, form, bits):
    place = folder / "binarized_mnist"
    if form == "text":
        lines = "\n".join(" ".join(map(str, row)) for row in bits)
        (place / "binarized_mnist_valid.amat").write_text(lines + "\n")
    else:
        np.savez(place / "binarized_mnist.npz", valid=bits)


@pytest.mark.parametrize("form", ["text", "archive"])
def test_both_forms_give_black_and_white_images(tmp_path, bits, form):
    write(tmp_path, form, bits)
    image = data.binarized_mnist("valid", tmp_path)["image"]
    assert (image.dtype, image.shape) == (np.uint8, (3, 28, 28, 1))
    np.testing.assert_array_equal(image.reshape(3, 784), 255 * bits)


@pytest.mark.parametrize("form", ["text", "archive"])
def test_other_bits_are_refused(tmp_path, bits, form):
    bits[1, 5] ^= 1
    write(tmp_path, form, bits)
    with pytest.raises(InputError, match="not the official bits of valid"):
        data.binarized_mnist("valid", tmp_path)


def test_mistakes_are_one_line(tmp_path, bits):
    with pytest.raises(InputError, match="no split 'validation': choose train, valid, test"):
        data.binarized_mnist("validation", tmp_path)
    with pytest.raises(InputError, match="has neither binarized_mnist_test.amat nor"):
        data.binarized_mnist("test", tmp_path)
    (tmp_path / "binarized_mnist" / "binarized_mnist.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"npz: damaged .* fetch it again"):
        data.binarized_mnist("test", tmp_path)


def test_the_official_set(real_data):
    if not (real_data / "binarized_mnist").is_dir():
        pytest.skip(f"{real_data} has no binarized_mnist")
    image = data.binarized_mnist("test", real_data)["image"]
    assert image.shape == (10_000, 28, 28, 1)
    assert (image > 0).mean() == pytest.approx(0.1326, abs=2e-3)
