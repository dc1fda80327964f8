"""Small stand-ins for the official sets, in their file formats, with pins of their own."""

import gzip
import hashlib
import io
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from paradigms.data import official


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """No test writes into the user's cache, nor reads from it."""
    monkeypatch.setenv("PARADIGMS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def real_data():
    """The folder of the real data sets."""
    folder = os.environ.get("PARADIGMS_DATA_DIR")
    if not folder:
        pytest.skip("PARADIGMS_DATA_DIR names no folder of real data")
    return Path(folder)


class Tiny:
    """The three official sets with 50 + 10 examples each, on disk in `folder`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.truth: dict[str, dict[str, dict[str, np.ndarray]]] = {}
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(official, "_CIFAR_RECORDS", 10)
        rng = np.random.default_rng(0)
        for name in ("mnist", "fashion_mnist", "cifar10"):
            shape = official.SETS[name].shape
            self.truth[name] = {
                split: {
                    "image": rng.integers(0, 256, (size, *shape), np.uint8),
                    "label": rng.integers(0, 10, size).astype(np.int32),
                }
                for split, size in (("train", 50), ("test", 10))
            }
            (folder / name).mkdir(parents=True)
            pins = {
                split: {part: _sha256(array) for part, array in data.items()}
                for split, data in self.truth[name].items()
            }
            self.set(name, sizes={"train": 50, "test": 10}, pins=pins)
        for name in ("mnist", "fashion_mnist"):
            for split, prefix in (("train", "train"), ("test", "t10k")):
                data = self.truth[name][split]
                self.put(name, f"{prefix}-images-idx3-ubyte.gz", self.idx(data["image"][..., 0]))
                self.put(
                    name, f"{prefix}-labels-idx1-ubyte.gz", self.idx(data["label"].astype(np.uint8))
                )
        self.put("cifar10", "cifar-10-binary.tar.gz", self.tar(self.cifar_members()))

    def set(self, name: str, **fields: object) -> None:
        """Replaces what is known of a set."""
        self._monkeypatch.setitem(official.SETS, name, official.SETS[name]._replace(**fields))

    def put(self, name: str, file: str, content: bytes) -> Path:
        """Writes a file and makes it the official one."""
        path = self.folder / name / file
        path.write_bytes(content)
        files = {**official.SETS[name].files, file: hashlib.sha256(content).hexdigest()}
        self.set(name, files=files)
        return path

    @staticmethod
    def idx(array: np.ndarray) -> bytes:
        """An IDX file of unsigned bytes, gzipped."""
        header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
        return gzip.compress(header + array.tobytes())

    @staticmethod
    def tar(members: dict[str, bytes]) -> bytes:
        """A gzipped tar archive."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return buffer.getvalue()

    def cifar_members(self) -> dict[str, bytes]:
        """The binary files of CIFAR-10: a label byte, then red, green and blue planes."""
        members = {"cifar-10-batches-bin/batches.meta.txt": b"airplane"}
        for split, data in self.truth["cifar10"].items():
            records = [
                bytes([label]) + image.transpose(2, 0, 1).tobytes()
                for image, label in zip(data["image"], data["label"], strict=True)
            ]
            for i in range(0, len(records), 10):
                part = "test_batch" if split == "test" else f"data_batch_{i // 10 + 1}"
                members[f"cifar-10-batches-bin/{part}.bin"] = b"".join(records[i : i + 10])
        return members


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.astype(np.uint8).tobytes()).hexdigest()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The three official sets in miniature."""
    return Tiny(tmp_path / "data", monkeypatch)
