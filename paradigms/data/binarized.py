"""MNIST binarised once for all, the set that likelihoods in nats were long reported on."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np

from paradigms.core.errors import InputError

NAME = "binarized_mnist"
# Number of images, and SHA-256 of the uint8 zeros and ones [N, 784].
SPLITS = {
    "train": (50_000, "43490d4d6ac9002727af4426d8748609fdb7e4094fa65ad8d681ea60082a7a5a"),
    "valid": (10_000, "069b4f0beb389b776478c3e872b4df71c95ac4be64d7cbe6d32e24ebac8e6d5e"),
    "test": (10_000, "ca0294c3b8d984c7a1dc891015a8eea6f37bae59a34e35ea0fc8c47110a8dd86"),
}
_PIXELS = 784
_ARCHIVE = f"{NAME}.npz"


def read(folder: Path, split: str) -> np.ndarray:
    """Reads and verifies one split.

    Args:
      folder: has either Larochelle's text files, `binarized_mnist_train.amat` and so on, or
        `binarized_mnist.npz` with arrays of zeros and ones by the names of the splits.
      split: a key of `SPLITS`.

    Returns:
      uint8 `[N, 784]`, zeros and ones, in the order of the text files.

    Raises:
      InputError: there is no file, or it does not hold the official bits.
    """
    size, expected = SPLITS[split]
    text, archive = folder / f"{NAME}_{split}.amat", folder / _ARCHIVE
    if text.is_file():
        source, bits = text, _read_text(text)
    elif archive.is_file():
        source, bits = archive, _read_archive(archive, split)
    else:
        raise InputError(f"{folder} has neither {text.name} nor {_ARCHIVE}: put one of them there")
    right = bits.dtype == np.uint8 and bits.size == size * _PIXELS
    if not right or hashlib.sha256(np.ascontiguousarray(bits).data).hexdigest() != expected:
        raise InputError(f"{source}: these are not the official bits of {split}; fetch it again")
    return bits.reshape(size, _PIXELS)


def _read_text(path: Path) -> np.ndarray:
    characters = np.frombuffer(path.read_bytes(), np.uint8)
    return characters[(characters == ord("0")) | (characters == ord("1"))] - np.uint8(ord("0"))


def _read_archive(path: Path, split: str) -> np.ndarray:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return archive[split]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged ({error}); fetch it again") from error
