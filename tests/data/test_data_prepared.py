"""Sets that somebody else prepared with tensorflow-datasets."""

import io
import os

import numpy as np
import pytest

from paradigms import data
from paradigms.core.errors import InputError
from paradigms.data import cache, prepared

tfds = pytest.importorskip("tensorflow_datasets")
image_module = pytest.importorskip("PIL.Image")


def png(image):
    buffer = io.BytesIO()
    image_module.fromarray(image).save(buffer, "PNG")
    return io.BytesIO(buffer.getvalue())


class Animals(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Thirty pictures of one size, in a split of an unusual name."""

    VERSION = tfds.core.Version("1.0.0")
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=3),
        "file": tfds.features.Text(),
    }

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(self.features),
            disable_shuffling=True,
        )

    def example(self, i):
        return {"image": png(np.full((5, 4, 3), i, np.uint8)), "label": i % 3, "file": str(i)}

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "validation": self._generate_examples()}

    def _generate_examples(self):
        for i in range(30):
            yield i, self.example(i)


def build(builder, folder, **options):
    made = builder(data_dir=folder, file_format="array_record", **options)
    made.download_and_prepare()
    return folder / builder.name / "1.0.0"


def test_any_set_of_labelled_images_loads(tmp_path):
    build(Animals, tmp_path)
    found = data.load("animals", "validation", tmp_path)
    assert set(found) == {"image", "label"}
    assert found["image"].shape == (30, 5, 4, 3)
    assert found["image"][:, 0, 0, 0].tolist() == list(range(30))
    assert found["label"].tolist() == [i % 3 for i in range(30)]
    assert (found["image"].dtype, found["label"].dtype) == (np.uint8, np.int32)


def test_the_cache_follows_the_files(tmp_path, monkeypatch):
    folder = build(Animals, tmp_path)
    data.load("animals", "train", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "read", None)  # a call would fail
        data.load("animals", "train", tmp_path)
    file = next(folder.glob("*train*"))
    os.utime(file, ns=(0, 0))
    calls = []
    monkeypatch.setattr(prepared, "read", lambda *_: calls.append(1) or {"label": np.zeros(1)})
    data.load("animals", "train", tmp_path)
    assert calls


def test_the_newest_version_is_taken(tmp_path):
    for version in ("1.2.0", "1.10.0", "1.9.0", "incomplete.2.0.0", "decoded"):
        (tmp_path / "animals" / version).mkdir(parents=True)
        (tmp_path / "animals" / version / "dataset_info.json").touch()
    assert prepared.find("animals", tmp_path) == tmp_path / "animals" / "1.10.0"
    assert prepared.find("animals/small", tmp_path) is None
    twin = cache.twin(tmp_path / "other") / "animals" / "1.0.0"
    twin.mkdir(parents=True)
    (twin / "dataset_info.json").touch()
    assert prepared.find("animals", tmp_path / "other") == twin


def test_unknown_splits_are_refused(tmp_path):
    build(Animals, tmp_path)
    with pytest.raises(
        InputError, match="no examples in split 'test': choose from train, validation"
    ):
        data.load("animals", "test", tmp_path)


def test_images_of_different_sizes_are_refused(tmp_path):
    class Ragged(Animals, skip_registration=True):
        def example(self, i):
            return {**super().example(i), "image": png(np.zeros((5, 4 + i // 20, 3), np.uint8))}

    build(Ragged, tmp_path)
    with pytest.raises(InputError, match=r"different sizes, from \[5, 4, 3\] to \[5, 5, 3\]"):
        data.load("ragged", "train", tmp_path)


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ("label", None),
        ("label", tfds.features.Scalar(np.float32)),
        ("image", tfds.features.Tensor(shape=(2,), dtype=np.uint8)),
    ],
    ids=["none", "regression", "vector"],
)
def test_a_set_of_another_kind_is_refused(tmp_path, feature, value):
    class Other(Animals, skip_registration=True):
        features = {name: f for name, f in Animals.features.items() if name != feature}

        def example(self, i):
            example = {
                **super().example(i),
                feature: np.float32(i) if feature == "label" else [i, i],
            }
            return {name: example[name] for name in self.features}

    if value is not None:
        Other.features[feature] = value
    build(Other, tmp_path)
    with pytest.raises(InputError, match="not a set of images with labels"):
        data.load("other", "train", tmp_path)


@pytest.mark.parametrize("damage", ["info", "features", "records", "first record"])
def test_a_damaged_set_is_named(tmp_path, damage):
    folder = build(Animals, tmp_path)
    records = next(folder.glob("*train*"))
    if damage == "info":
        (folder / "dataset_info.json").write_text("{")
    elif damage == "features":
        (folder / "features.json").unlink()
    elif damage == "records":
        records.write_bytes(records.read_bytes()[: records.stat().st_size // 2])
    else:
        content = bytearray(records.read_bytes())
        start = content.index(b"PNG")
        content[start : start + 40] = bytes(40)
        records.write_bytes(content)
    with pytest.raises(InputError, match=f"{folder}: damaged prepared set"):
        data.load("animals", "train", tmp_path)


def test_the_official_order_is_where_tfds_puts_the_records():
    hasher = tfds.core.hashing.Hasher("train")
    keys = [hasher.hash_key(i) for i in range(200)]
    where = prepared.official_order("train", 200)
    assert [sorted(keys).index(key) for key in keys] == where.tolist()
