"""MNIST, Fashion-MNIST and CIFAR-10 from their official files, verified byte for byte.

Whatever container the pixels come in, the decoded arrays are compared with pinned SHA-256 sums, so
that a set is always the true one in its official order, and Fashion-MNIST is never MNIST.
"""

import gzip
import hashlib
import io
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from paradigms.core.errors import InputError, MissingExtraError
from paradigms.data.cache import Data


class Official(NamedTuple):
    """What is known beforehand of an official set.

    Attributes:
      title: its name for people.
      shape: of one image, [H, W, C].
      sizes: number of images by split.
      files: SHA-256 of each official file.
      pins: SHA-256 of the decoded uint8 images [N, H, W, C] and uint8 labels [N], by split.
      classes: label names, in the order of the labels.
    """

    title: str
    shape: tuple[int, int, int]
    sizes: Mapping[str, int]
    files: Mapping[str, str]
    pins: Mapping[str, Mapping[str, str]]
    classes: tuple[str, ...]


_MNIST_SIZES = {"train": 60_000, "test": 10_000}
_CIFAR_TAR = "cifar-10-binary.tar.gz"
_CIFAR_RECORDS = 10_000  # images in each binary file; a record is one label byte and 3 planes
_SHEET = 1_000  # images on a WebP sheet, 25 rows of 40

SETS: dict[str, Official] = {
    "mnist": Official(
        title="MNIST",
        shape=(28, 28, 1),
        sizes=_MNIST_SIZES,
        files={
            "train-images-idx3-ubyte.gz": (
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
            ),
            "train-labels-idx1-ubyte.gz": (
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
            ),
            "t10k-images-idx3-ubyte.gz": (
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
            ),
            "t10k-labels-idx1-ubyte.gz": (
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
            ),
        },
        pins={
            "train": {
                "image": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
                "label": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
            },
            "test": {
                "image": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
                "label": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
            },
        },
        classes=tuple("0123456789"),
    ),
    "fashion_mnist": Official(
        title="Fashion-MNIST",
        shape=(28, 28, 1),
        sizes=_MNIST_SIZES,
        files={
            "train-images-idx3-ubyte.gz": (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
            ),
            "train-labels-idx1-ubyte.gz": (
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
            ),
            "t10k-images-idx3-ubyte.gz": (
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
            ),
            "t10k-labels-idx1-ubyte.gz": (
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
            ),
        },
        pins={
            "train": {
                "image": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
                "label": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
            },
            "test": {
                "image": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
                "label": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
            },
        },
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "cifar10": Official(
        title="CIFAR-10",
        shape=(32, 32, 3),
        sizes={"train": 50_000, "test": 10_000},
        files={
            _CIFAR_TAR: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        },
        pins={
            "train": {
                "image": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
                "label": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
            },
            "test": {
                "image": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
                "label": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
            },
        },
        classes=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
    ),
}


def files_of(name: str, split: str) -> tuple[str, ...]:
    """The official files that hold one split."""
    if name == "cifar10":
        return (_CIFAR_TAR,)
    prefix = {"train": "train", "test": "t10k"}[split]
    return (f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz")


def _sheets_of(split: str) -> tuple[str, ...]:
    number = SETS["cifar10"].sizes[split] // _SHEET
    return tuple(f"{split}_{i:02d}.webp" for i in range(number))


def find(name: str, split: str, folder: Path) -> dict[str, Path] | None:
    """The files of one split in `folder`, by name, or None unless all are there.

    For CIFAR-10 that is the official binary archive or, failing that, lossless WebP sheets (see
    `decode`).
    """
    choices = [files_of(name, split)]
    if name == "cifar10":
        choices.append((*_sheets_of(split), "labels.npz"))
    for names in choices:
        if all((folder / file).is_file() for file in names):
            return {file: folder / file for file in names}
    return None


def decode(name: str, split: str, files: Mapping[str, Path]) -> Data:
    """Reads and verifies one split.

    Args:
      name: a key of `SETS`.
      split: "train" or "test".
      files: path by official name, as `find` gives them. CIFAR-10 may come as WebP sheets in place
        of its archive: `train_00.webp` to `train_49.webp` and `test_00.webp` to `test_09.webp`,
        each 1280 x 800 pixels in RGB, 25 rows of 40 images of 32 x 32, the image of number
        `1000 * sheet + 40 * row + column` in the split; and `labels.npz`, uint8 arrays `train` and
        `test`.

    Returns:
      `image`, uint8 [N, H, W, C], and `label`, int32 [N], in the official order.

    Raises:
      InputError: a file is damaged or not the official one; the message names it.
    """
    official = SETS[name]
    for file, path in files.items():
        if file in official.files:
            _verify_file(official, path, official.files[file])
    if name != "cifar10":
        images, labels = files_of(name, split)
        count = official.sizes[split]
        image = _read_idx(files[images], (count, *official.shape[:2]))[..., None]
        label = _read_idx(files[labels], (count,))
    elif _CIFAR_TAR in files:
        image, label = _read_cifar_tar(files[_CIFAR_TAR], split)
    else:
        image, label = _read_cifar_sheets(files, split)
    where = next(iter(files.values())).parent
    return verify(name, split, image, label, where)


def verify(name: str, split: str, image: np.ndarray, label: np.ndarray, where: Path) -> Data:
    """Compares decoded arrays with the pinned sums and gives the data set.

    Args:
      name: a key of `SETS`.
      split: "train" or "test".
      image: uint8 [N, H, W, C].
      label: integers [N].
      where: the folder they came from, for the message.

    Raises:
      InputError: these are not the official pixels and labels in the official order.
    """
    official = SETS[name]
    found = {"image": image, "label": label.astype(np.uint8)}
    for part, array in found.items():
        if _sha256(array) != official.pins[split][part]:
            raise InputError(
                f"{where}: the {split} {part}s are not those of {official.title} in the official "
                f"order; remove the files of this set there and fetch or prepare them again"
            )
    return {"image": image, "label": label.astype(np.int32)}


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _verify_file(official: Official, path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise InputError(
            f"{path}: damaged, or not the official file of {official.title} (sha256 {found[:12]}, "
            f"expected {expected[:12]}): delete it and fetch it again"
        )


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An IDX file of unsigned bytes: magic number, big-endian dimensions, then the array."""
    header = 4 * (1 + len(shape))
    size = header + int(np.prod(shape))
    try:
        with gzip.open(path) as file:
            # One byte more than expected shows a file that is too long, without reading it all.
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip file ({error}); fetch it again") from error
    fields = tuple(np.frombuffer(content[:header], ">u4").tolist())
    if len(content) != size or fields != (0x0800 + len(shape), *shape):
        raise InputError(f"{path}: not an IDX file of shape {list(shape)}; fetch it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_cifar_tar(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the wanted members by their exact names; nothing is unpacked to disk."""
    parts = ("test_batch",) if split == "test" else tuple(f"data_batch_{i}" for i in range(1, 6))
    record = 1 + int(np.prod(SETS["cifar10"].shape))
    content = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for part in parts:
                member = archive.getmember(f"cifar-10-batches-bin/{part}.bin")
                file = archive.extractfile(member) if member.isreg() else None
                if file is None or member.size != _CIFAR_RECORDS * record:
                    raise InputError(f"{path}: member {member.name} has the wrong kind or size")
                content[part] = np.frombuffer(file.read(), np.uint8).reshape(-1, record)
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"{path}: damaged archive ({error}); fetch it again") from error
    records = np.concatenate([content[part] for part in parts])
    image = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(image), records[:, 0]


def _read_cifar_sheets(files: Mapping[str, Path], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads lossless WebP sheets; `decode` gives their layout."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "data", "reading WebP images") from error
    try:
        with files["labels.npz"].open("rb") as file, np.load(file, allow_pickle=False) as archive:
            label = archive[split]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{files['labels.npz']}: damaged ({error}); fetch it again") from error
    sheets = _sheets_of(split)
    image = np.empty((len(sheets) * _SHEET, 32, 32, 3), np.uint8)
    for i, sheet in enumerate(sheets):
        try:
            with Image.open(io.BytesIO(files[sheet].read_bytes()), formats=["WEBP"]) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            tiles = pixels.reshape(25, 32, 40, 32, 3).transpose(0, 2, 1, 3, 4)
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{files[sheet]}: damaged sheet ({error}); fetch it again") from error
        image[i * _SHEET : (i + 1) * _SHEET] = tiles.reshape(_SHEET, 32, 32, 3)
    return image, label
