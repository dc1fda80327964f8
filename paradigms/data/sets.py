"""Data sets by name: `load` for those of tensorflow-datasets, and those that are read otherwise."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paradigms.core.errors import InputError, MissingExtraError
from paradigms.data import binarized, cache, official, prepared
from paradigms.data.cache import Data

_NAME = re.compile(r"[a-z]\w*(/\w[\w.\-]*)?", re.ASCII)
_SPLIT = re.compile(r"\w+", re.ASCII)


def load(name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> Data:
    """Loads one split of an image classification set into RAM.

    The first start decodes, verifies and writes a decoded cache; later ones only read that. It is
    kept at `<data_dir>/<name>/decoded`, or under `PARADIGMS_CACHE_DIR` (`~/.cache/paradigms`) where
    the data folder is read-only. The search order is: decoded cache; official files in
    `<data_dir>/<name>` or `<data_dir>/downloads/manual/<name>`; a set prepared by
    tensorflow-datasets in `<data_dir>/<name>/<version>` or `<data_dir>/tfds/<name>/<version>`;
    download by tensorflow-datasets. Official files come before a prepared set because they decode
    ten times faster; MNIST, Fashion-MNIST and CIFAR-10 are compared with pinned checksums and come
    in the official order wherever they were found, so the choice cannot be seen.

    Args:
      name: "mnist", "fashion_mnist", "cifar10", or any set of images of one size with labels that
        tensorflow-datasets has prepared in array_record format ("name" or "name/config").
      split: "train" or "test"; a prepared set may have others.
      data_dir: folder of data sets; by default `PARADIGMS_DATA_DIR`, else that of
        tensorflow-datasets (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`).

    Returns:
      `image`, uint8 [N, H, W, C], and `label`, int32 [N].

    Raises:
      InputError: unknown set or split, nothing on disk and no network, or damaged files.
    """
    folder = data_folder(data_dir)
    if name == "digits":
        raise InputError("digits is embedded and has no files: call data.digits(split, seed)")
    if not _NAME.fullmatch(name):
        raise InputError(f"'{name}' is not the name of a data set: use 'mnist' or 'emnist/letters'")
    if not _SPLIT.fullmatch(split):
        raise InputError(f"'{split}' is not the name of a split: use 'train' or 'test'")
    if name in official.SETS:
        sizes = official.SETS[name].sizes
        if split not in sizes:
            raise InputError(f"{name} has no split '{split}': choose {' or '.join(sizes)}")
        pins = official.SETS[name].pins[split]
        return _cached(name, split, folder, pins, lambda: _decode(name, split, folder))
    found = prepared.find(name, folder)
    if found is None:
        raise prepared.not_prepared(name, folder)
    source = prepared.identity(found)
    return _cached(name, split, folder, source, lambda: prepared.read(found, split))


def prepare(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    raw_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Prepares MNIST, Fashion-MNIST or CIFAR-10 for tensorflow-datasets, without TensorFlow.

    `load` needs no preparation. This makes a set in array_record format for
    `tensorflow_datasets.data_source`, with the records of the stock preparation in their order.

    Args:
      name: "mnist", "fashion_mnist" or "cifar10".
      data_dir: where `<name>/<version>` is made, by default as in `load`; for a read-only one its
        twin under `PARADIGMS_CACHE_DIR` is taken, where `load` looks too.
      raw_dir: folder of the official files; by default the places where `load` looks for them, then
        a download.

    Returns:
      The folder of the prepared set; one that is already there is left as it is.

    Raises:
      InputError: unknown set, no files and no network, or damaged files.
    """
    if name not in official.SETS:
        raise InputError(f"cannot prepare '{name}': choose from {', '.join(official.SETS)}")
    folder = data_folder(data_dir)
    found = prepared.find(name, folder)
    if found is not None:
        return found
    splits = {}
    for split in official.SETS[name].sizes:
        if raw_dir is None:
            files = _on_disk(name, split, folder) or _download(name, split, folder)
        else:
            raw = Path(raw_dir).expanduser()
            files = official.find(name, split, raw) or {}
        if not files:
            wanted = ", ".join(official.SETS[name].files)
            raise InputError(f"{raw} lacks official files of {name}: put there {wanted}")
        splits[split] = official.decode(name, split, files)
    return prepared.write(name, splits, cache.home(folder, name))


def binarized_mnist(split: str, data_dir: str | os.PathLike[str] | None = None) -> Data:
    """MNIST binarised once for all (Salakhutdinov & Murray 2008; files by Larochelle), unlabelled.

    Args:
      split: "train" (50,000 images), "valid" (10,000) or "test" (10,000).
      data_dir: folder of data sets, by default as in `load`; its folder `binarized_mnist` holds the
        text files `binarized_mnist_train.amat` and so on, or `binarized_mnist.npz`.

    Returns:
      `image`, uint8 [N, 28, 28, 1], each value 0 or 255.

    Raises:
      InputError: unknown split, nothing on disk, or damaged files.
    """
    if split not in binarized.SPLITS:
        raise InputError(
            f"binarized_mnist has no split '{split}': choose {', '.join(binarized.SPLITS)}"
        )
    bits = binarized.read(data_folder(data_dir) / binarized.NAME, split)
    return {"image": 255 * bits.reshape(-1, 28, 28, 1)}


def digits(split: str, seed: int = 0) -> Data:
    """The 1,797 handwritten digits that come with scikit-learn; nothing is downloaded.

    Args:
      split: "train" (1,297 examples) or "test" (500), stratified by label.
      seed: of the division (scikit-learn's `train_test_split`); results are quoted for 0 and 1.

    Returns:
      `image`, uint8 [N, 8, 8, 1], grey levels 0 to 16 spread over 0 to 255, and `label`, int32 [N].

    Raises:
      InputError: unknown split, or a negative seed.
    """
    if split not in ("train", "test"):
        raise InputError(f"digits has no split '{split}': choose train or test")
    if seed < 0:
        raise InputError(f"digits has no division {seed}: its seed must not be negative")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "data", "the digits data set") from error
    bunch = load_digits()
    train, test = train_test_split(
        np.arange(len(bunch.target)), test_size=500, stratify=bunch.target, random_state=seed
    )
    rows = train if split == "train" else test
    image = np.rint(bunch.images[rows, :, :, None] * (255 / 16)).astype(np.uint8)
    return {"image": image, "label": bunch.target[rows].astype(np.int32)}


def data_folder(given: str | os.PathLike[str] | None) -> Path:
    """The folder of data sets that `load` searches when it is given `data_dir=given`."""
    folder = (
        given
        or os.environ.get("PARADIGMS_DATA_DIR")
        or os.environ.get("TFDS_DATA_DIR")
        or Path("~/tensorflow_datasets")
    )
    path = Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise InputError(f"data folder {path} is a file: give a folder")
    return path


def _cached(name: str, split: str, folder: Path, source: Any, decode: Callable[[], Data]) -> Data:
    """Reads the decoded cache, or decodes and writes it."""
    file = Path(name, "decoded", f"{split}.npz")
    for root in (folder, cache.twin(folder)):
        data = cache.read(root / file, source)
        if data is not None:
            return data
    data = decode()
    cache.write(cache.home(folder, name) / file, source, data)
    return data


def _decode(name: str, split: str, folder: Path) -> Data:
    """Decodes one split of an official set from whatever is there."""
    files = _on_disk(name, split, folder)
    found = prepared.find(name, folder)
    if files is None and found is not None:
        data = prepared.read(found, split)
        order = prepared.official_order(split, len(data["label"]))
        return official.verify(name, split, data["image"][order], data["label"][order], found)
    return official.decode(name, split, files or _download(name, split, folder))


def _on_disk(name: str, split: str, folder: Path) -> dict[str, Path] | None:
    for root in (folder, cache.twin(folder)):
        for place in (root / name, root / "downloads" / "manual" / name):
            files = official.find(name, split, place)
            if files is not None:
                return files
    return None


def _download(name: str, split: str, folder: Path) -> dict[str, Path]:
    return prepared.download(name, split, cache.home(folder, name))
