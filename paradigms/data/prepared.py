"""Sets prepared by tensorflow-datasets, read and written without TensorFlow."""

import contextlib
import difflib
import hashlib
import io
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from paradigms.core.errors import InputError, MissingExtraError
from paradigms.data import cache, official
from paradigms.data.cache import Data

_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
_READ_AT_ONCE = 1_000  # records; one by one costs twice the time
_ANSWER_SECONDS = 20


def find(name: str, data_dir: Path) -> Path | None:
    """The folder `<name>/<version>` of the newest prepared version, or None.

    Args:
      name: "name" or "name/config".
      data_dir: it is looked for there and in its folder `tfds`, then in the writable twin.
    """
    for root in (data_dir, data_dir / "tfds", cache.twin(data_dir)):
        versions = [
            file.parent
            for file in (root / name).glob("*/dataset_info.json")
            if _VERSION.fullmatch(file.parent.name)
        ]
        if versions:
            return max(versions, key=lambda folder: [int(n) for n in folder.name.split(".")])
    return None


def identity(folder: Path) -> dict[str, list[int]]:
    """Size in bytes and time in nanoseconds of each file, to see that a set has changed."""
    return {
        file.name: [file.stat().st_size, file.stat().st_mtime_ns]
        for file in folder.iterdir()
        if file.is_file()
    }


def read(folder: Path, split: str) -> Data:
    """Reads one split in the order of its records.

    Args:
      folder: `<name>/<version>`, as `find` gives it.
      split: a split of that set.

    Returns:
      `image`, uint8 [N, H, W, C], and `label`, int32 [N].

    Raises:
      InputError: no such split, not a set of labelled images of one size, a format that cannot be
        read by index, or damaged files.
    """
    tfds = _tfds()
    try:
        builder = tfds.builder_from_directory(folder)
        features, splits = builder.info.features, builder.info.splits
        count = splits[split].num_examples if split in splits else 0
    except Exception as error:  # The files decide what tfds, protobuf or json raise here.
        raise _damaged(folder, error) from error
    if not count:
        raise InputError(
            f"{folder} has no examples in split '{split}': choose from {', '.join(splits)}"
        )
    if not _is_classification(features):
        raise InputError(
            f"{folder}: not a set of images with labels (its features: {', '.join(features)}); "
            f"read it with tensorflow_datasets and pass arrays to data.from_arrays"
        )
    if builder.info.file_format.value != "array_record":
        raise InputError(
            f"{folder}: prepared as {builder.info.file_format.value}, which cannot be read by "
            f"index; prepare it again with --file_format=array_record"
        )
    image = np.empty(0, np.uint8)
    label = np.empty(count, np.int32)
    try:
        source = builder.as_data_source(split=split)
        for start in range(0, count, _READ_AT_ONCE):
            rows = range(start, min(start + _READ_AT_ONCE, count))
            for row, record in zip(rows, source.__getitems__(list(rows)), strict=True):
                if row == 0:
                    image = np.empty((count, *record["image"].shape), np.uint8)
                if record["image"].shape != image.shape[1:]:
                    raise InputError(
                        f"{folder}: its images have different sizes, from "
                        f"{list(image.shape[1:])} to {list(record['image'].shape)}; "
                        f"use data.from_folder, which resizes, or data.Stream"
                    )
                image[row], label[row] = record["image"], record["label"]
    except InputError:
        raise
    except Exception as error:
        raise _damaged(folder, error) from error
    return {"image": image, "label": label}


def write(name: str, splits: Mapping[str, Data], data_dir: Path) -> Path:
    """Prepares an official set in array_record format.

    Only the source of the examples differs from the stock preparation, which needs TensorFlow to
    unpack archives and to encode PNG. Keys are those of the stock preparation, and with them the
    order of the records.

    Args:
      name: a key of `official.SETS`.
      splits: for each split `image`, uint8 [N, H, W, C], and `label` [N] in the official order.
      data_dir: where `<name>/<version>` is made; tensorflow-datasets renames it when complete.

    Returns:
      That folder.
    """
    tfds = _tfds()
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "data", "encoding PNG images") from error
    stock = tfds.builder_cls(name)

    def examples(split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        pairs = zip(splits[split]["image"], splits[split]["label"], strict=True)
        for index, (image, label) in enumerate(pairs):
            png = io.BytesIO()
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(png, "PNG")
            example = {"image": io.BytesIO(png.getvalue()), "label": int(label)}
            if "id" in stock_features:
                example["id"] = f"{split}_{index:05d}"
            yield index, example

    class Prepared(stock, skip_registration=True):  # type: ignore[call-arg, misc, valid-type]
        name = stock.name

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
            self.info.features["label"].names = list(official.SETS[name].classes)
            return {split: examples(split) for split in splits}

    try:
        builder = Prepared(data_dir=data_dir, file_format="array_record")
        stock_features = builder.info.features
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    except OSError as error:
        raise InputError(
            f"cannot write {name} to {data_dir} ({error}): free some space there, or choose "
            f"another data folder"
        ) from error
    return Path(builder.data_dir)


def official_order(split: str, size: int) -> np.ndarray:
    """Where the examples of an official set went when it was prepared.

    tensorflow-datasets sorts records by the MD5 sum of the split's name and the example's key, here
    its number.

    Returns:
      int64 [N]: the record at which official example `i` lies.
    """
    sums = [
        hashlib.md5(f"{split}{i}".encode(), usedforsecurity=False).digest() for i in range(size)
    ]
    return np.argsort(sorted(range(size), key=sums.__getitem__))


def download(name: str, split: str, folder: Path) -> dict[str, Path]:
    """Fetches the official files of one split through the download manager of tensorflow-datasets.

    It takes the stock addresses and checks size and SHA-256.

    Args:
      name: a key of `official.SETS`.
      split: "train" or "test".
      folder: the data folder; the files go to `downloads/manual/<name>` there, a folder of their
        own for each set, under their official names.

    Returns:
      Path by official file name.

    Raises:
      InputError: no network; the message says which files to put where.
    """
    tfds = _tfds()
    files = official.files_of(name, split)
    infos = tfds.builder_cls(name).url_infos
    by_file = {info.filename: url for url, info in infos.items()}
    addresses = {file: by_file[file] for file in files}
    target = folder / "downloads" / "manual" / name
    try:
        # Without a network the manager would retry for minutes, a screen of warnings long.
        if not _answers(addresses[files[0]]):
            raise TimeoutError(f"no answer from {urlsplit(addresses[files[0]]).hostname}")
        manager = tfds.download.DownloadManager(
            download_dir=folder / "downloads", dataset_name=name, url_infos=infos
        )
        target.mkdir(parents=True, exist_ok=True)
        for file, path in manager.download(addresses).items():
            # Another process may have fetched and moved the same file.
            with contextlib.suppress(FileNotFoundError):
                Path(path).replace(target / file)
    except Exception as error:  # requests, tfds and the file system each have their own.
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise InputError(
            f"cannot download {name} ({reason}): without a network, put {' and '.join(files)} "
            f"into {folder / name}"
        ) from error
    return {file: target / file for file in files}


def _answers(url: str) -> bool:
    """Whether the server, or the proxy on the way to it, answers at all."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        # The download manager brings certificates of its own, and may trust this server.
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True


def not_prepared(name: str, data_dir: Path) -> InputError:
    """The error for a set that is neither official nor prepared."""
    base = name.split("/")[0]
    names = {*_tfds().list_builders(with_community_datasets=False), *official.SETS}
    if base not in names:
        near = difflib.get_close_matches(base, sorted(names), n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        return InputError(
            f"unknown data set '{name}'{hint}: known are {', '.join(official.SETS)} and the names "
            f"of tensorflow-datasets"
        )
    return InputError(
        f"{name} is not prepared in {data_dir}: in another environment run `pip install "
        f"tensorflow-datasets tensorflow` and `tfds build {name} --data_dir={data_dir} "
        f"--file_format=array_record`"
    )


def _is_classification(features: Mapping[str, Any]) -> bool:
    """Whether examples have an image of bytes and a class number."""
    if not {"image", "label"} <= set(features):
        return False
    image, label = features["image"], features["label"]
    return (
        image.np_dtype == np.uint8
        and len(image.shape) == 3
        and label.shape == ()
        and np.dtype(label.np_dtype).kind in "iu"
    )


def _tfds() -> Any:
    try:
        import importlib_resources  # noqa: F401  tfds needs it and does not declare it
        import tensorflow_datasets as tfds
    except ImportError as error:
        package = "tensorflow-datasets" if error.name != "importlib_resources" else error.name
        raise MissingExtraError(package, "data", "reading this data set") from error
    return tfds


def _damaged(folder: Path, error: Exception) -> InputError:
    reason = str(error).split("\n", 1)[0]
    return InputError(
        f"{folder}: damaged prepared set ({type(error).__name__}: {reason}); "
        f"remove this folder and prepare the set again"
    )
