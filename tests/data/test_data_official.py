"""Reading and verifying the official files."""

import gzip
import io
import struct
import tarfile

import numpy as np
import pytest

from paradigms.core.errors import InputError
from paradigms.data import official


def decode(tiny, name, split="train"):
    return official.decode(name, split, official.find(name, split, tiny.folder / name))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_decodes_in_the_official_order(tiny, name, split):
    data = decode(tiny, name, split)
    np.testing.assert_array_equal(data["image"], tiny.truth[name][split]["image"])
    np.testing.assert_array_equal(data["label"], tiny.truth[name][split]["label"])
    assert (data["image"].dtype, data["label"].dtype) == (np.uint8, np.int32)


def test_webp_sheets_stand_in_for_the_archive(tmp_path, monkeypatch):
    image_module = pytest.importorskip("PIL.Image")
    # Tiles of one colour each, so that a wrong order of rows and columns would show.
    number = np.arange(1000)
    colours = np.stack([number % 256, number // 256, number % 10], -1).astype(np.uint8)
    image = np.broadcast_to(colours[:, None, None], (1000, 32, 32, 3))
    label = (number % 10).astype(np.uint8)
    sheet = np.empty((800, 1280, 3), np.uint8)
    for i in range(1000):
        row, column = divmod(i, 40)
        sheet[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = colours[i]
    path = tmp_path / "test_00.webp"
    image_module.fromarray(sheet).save(path, lossless=True)
    np.savez(tmp_path / "labels.npz", test=label)
    pins = {"image": official._sha256(image), "label": official._sha256(label)}
    monkeypatch.setitem(
        official.SETS,
        "cifar10",
        official.SETS["cifar10"]._replace(sizes={"test": 1000}, pins={"test": pins}),
    )
    files = official.find("cifar10", "test", tmp_path)
    data = official.decode("cifar10", "test", files)
    np.testing.assert_array_equal(data["image"], image)
    np.testing.assert_array_equal(data["label"], label)

    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match=r"test_00\.webp: damaged sheet"):
        official.decode("cifar10", "test", files)
    (tmp_path / "labels.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"labels\.npz: damaged"):
        official.decode("cifar10", "test", files)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_file_is_named(tiny, name, damage):
    path = tiny.folder / name / official.files_of(name, "train")[0]
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"truncated": len(content) // 2, "empty": 0}.get(damage)])
    with pytest.raises(InputError, match=f"{path}: damaged, or not the official file"):
        decode(tiny, name)


def test_fashion_mnist_is_never_mnist(tiny):
    """Both have the same file names, and the same shapes."""
    file = "train-images-idx3-ubyte.gz"
    source, target = tiny.folder / "mnist" / file, tiny.folder / "fashion_mnist" / file
    target.write_bytes(source.read_bytes())
    with pytest.raises(InputError, match="not the official file of Fashion-MNIST"):
        decode(tiny, "fashion_mnist")


def test_other_pixels_or_order_are_refused(tiny):
    data = decode(tiny, "mnist")
    changed = data["image"].copy()
    changed[-1, -1, -1, -1] ^= 1
    with pytest.raises(InputError, match="train images are not those of MNIST"):
        official.verify("mnist", "train", changed, data["label"], tiny.folder)
    with pytest.raises(InputError, match="train labels are not those of MNIST"):
        official.verify("mnist", "train", data["image"], data["label"][::-1], tiny.folder)


def test_a_malformed_idx_file_is_refused_even_with_the_right_checksum(tiny):
    contents = {
        "short": tiny.idx(np.zeros((49, 28, 28), np.uint8)),
        "long": tiny.idx(np.zeros((51, 28, 28), np.uint8)),
        "rank": tiny.idx(np.zeros((50, 784), np.uint8)),
        "dtype": gzip.compress(struct.pack(">4I", 0x0D03, 50, 28, 28) + bytes(50 * 784)),
        "empty": gzip.compress(b""),
    }
    for content in contents.values():
        tiny.put("mnist", "train-images-idx3-ubyte.gz", content)
        with pytest.raises(InputError, match="not an IDX file of shape"):
            decode(tiny, "mnist")


def test_a_gzip_bomb_is_not_unpacked(tiny, monkeypatch):
    tiny.put("mnist", "train-images-idx3-ubyte.gz", gzip.compress(bytes(50_000_000)))
    read = []
    original = gzip.GzipFile.read

    def bounded(self, size=-1):
        content = original(self, size)
        read.append(len(content))
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", bounded)
    with pytest.raises(InputError, match="not an IDX file"):
        decode(tiny, "mnist")
    assert sum(read) <= 50 * 784 + 17


def test_a_cifar_archive_of_the_wrong_kind_is_refused(tiny):
    good = tiny.cifar_members()
    file, member = "cifar-10-binary.tar.gz", "cifar-10-batches-bin/data_batch_3.bin"
    tiny.put("cifar10", file, tiny.tar({k: v for k, v in good.items() if k != member}))
    with pytest.raises(InputError, match="data_batch_3.bin.*not found"):
        decode(tiny, "cifar10")
    tiny.put("cifar10", file, tiny.tar({**good, member: good[member] + b"0"}))
    with pytest.raises(InputError, match="data_batch_3.bin has the wrong kind or size"):
        decode(tiny, "cifar10")
    tiny.put("cifar10", file, b"not a tar archive")
    with pytest.raises(InputError, match="damaged archive"):
        decode(tiny, "cifar10")

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    tiny.put("cifar10", file, buffer.getvalue())
    with pytest.raises(InputError, match="data_batch_1.bin has the wrong kind or size"):
        decode(tiny, "cifar10")


def test_nothing_of_an_archive_reaches_the_disk(tiny):
    members = {"../evil": b"x", "/evil": b"x", **tiny.cifar_members()}
    tiny.put("cifar10", "cifar-10-binary.tar.gz", tiny.tar(members))
    before = sorted(tiny.folder.parent.rglob("*"))
    decode(tiny, "cifar10")
    assert sorted(tiny.folder.parent.rglob("*")) == before


def test_a_set_is_found_only_whole(tiny):
    (tiny.folder / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
    assert official.find("mnist", "train", tiny.folder / "mnist") is None
    assert official.find("mnist", "test", tiny.folder / "mnist") is not None
    assert official.find("cifar10", "train", tiny.folder / "nowhere") is None


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_checksums_are_those_of_tensorflow_datasets(name):
    tfds = pytest.importorskip("tensorflow_datasets")
    infos = tfds.builder_cls(name).url_infos.values()
    assert official.SETS[name].files == {info.filename: info.checksum for info in infos}


@pytest.mark.parametrize(
    ("name", "first", "counts"),
    [
        # The counts of MNIST's test labels, and the even ones of the others, are published.
        ("mnist", [7, 2, 1, 0, 4], [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
        ("fashion_mnist", [9, 2, 1, 1, 6], [1000] * 10),
        ("cifar10", [3, 8, 8, 0, 6], [1000] * 10),
    ],
)
def test_real_test_splits(real_data, name, first, counts):
    files = official.find(name, "test", real_data / name)
    if files is None:
        pytest.skip(f"no official files of {name} in {real_data}")
    data = official.decode(name, "test", files)
    assert data["label"][:5].tolist() == first
    assert np.bincount(data["label"]).tolist() == counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "mean"),
    [
        # Mean and first labels that every tutorial prints.
        ("mnist", [5, 0, 4, 1, 9], [0.1307]),
        ("fashion_mnist", [9, 0, 0, 3, 0], [0.2860]),
        ("cifar10", [6, 9, 9, 4, 1], [0.4914, 0.4822, 0.4465]),
    ],
)
def test_real_training_splits(real_data, name, first, mean):
    files = official.find(name, "train", real_data / name)
    if files is None:
        pytest.skip(f"no official files of {name} in {real_data}")
    data = official.decode(name, "train", files)
    assert data["label"][:5].tolist() == first
    np.testing.assert_allclose(data["image"].mean((0, 1, 2)) / 255, mean, atol=1e-4)
