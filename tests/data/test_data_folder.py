"""A folder of labelled images."""

import numpy as np
import pytest

from paradigms import data
from paradigms.core.errors import InputError

image_module = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path):
    """Two classes; the pictures of each have its colour, and a brightness by file."""
    for name, channel in (("cat", 0), ("Dog", 2)):
        (tmp_path / name).mkdir()
        for i, suffix in enumerate(["png", "bmp", "png"]):
            picture = np.zeros((6, 4, 3), np.uint8)
            picture[..., channel] = 100 + i
            image_module.fromarray(picture).save(tmp_path / name / f"{i}.{suffix}")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "readme.txt").write_text("x")
    return tmp_path


def test_classes_and_files_come_in_sorted_order(folder):
    found, names = data.from_folder(folder, size=(6, 4))
    assert names == ["Dog", "cat"]
    assert found["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert found["image"].shape == (6, 6, 4, 3)
    assert (found["image"].dtype, found["label"].dtype) == (np.uint8, np.int32)
    assert found["image"][:, 0, 0].tolist() == [[0, 0, 100 + i] for i in range(3)] + [
        [100 + i, 0, 0] for i in range(3)
    ]


def test_images_are_resized_to_height_and_width(folder):
    found, _ = data.from_folder(folder, size=(3, 8))
    assert found["image"].shape == (6, 3, 8, 3)
    assert (found["image"][3] == [100, 0, 0]).all()


def test_images_become_grey(folder):
    found, _ = data.from_folder(folder, size=(6, 4), channels=1)
    assert found["image"].shape == (6, 6, 4, 1)
    # ITU-R 601: .299 of red and .114 of blue.
    assert found["image"][[0, 3], 0, 0, 0].tolist() == [round(11.4), round(29.9)]


def test_photographs_are_turned_upright(tmp_path):
    (tmp_path / "a").mkdir()
    picture = image_module.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = image_module.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right of the picture
    picture.save(tmp_path / "a" / "x.png", exif=exif)
    found, _ = data.from_folder(tmp_path, size=(3, 2), channels=1)
    assert found["image"][0, ..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "cut"])
def test_an_unreadable_file_is_named(folder, content):
    path = folder / "cat" / "1.bmp"
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    with pytest.raises(InputError, match=f"{path}: not a readable image"):
        data.from_folder(folder, size=(6, 4))


def test_a_folder_within_a_class_is_named(folder):
    (folder / "cat" / "more").mkdir()
    with pytest.raises(InputError, match="more: not a readable image"):
        data.from_folder(folder, size=(6, 4))


@pytest.mark.parametrize("limit", [20, 11], ids=["warning", "error"])
def test_the_pixel_limit_holds(folder, monkeypatch, limit):
    monkeypatch.setattr(image_module, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match=rf"0\.png: more than {limit} pixels"):
        data.from_folder(folder, size=(6, 4))


def test_sixteen_bits_are_refused_rather_than_clipped(folder):
    path = folder / "cat" / "9.png"
    image_module.fromarray(np.full((6, 4), 3000, np.uint16)).save(path)
    with pytest.raises(InputError, match=f"{path}: more than 8 bits"):
        data.from_folder(folder, size=(6, 4))


def test_folders_that_hold_no_set(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        data.from_folder(tmp_path / "nowhere", size=(6, 4))
    with pytest.raises(InputError, match="no sub-folders"):
        data.from_folder(tmp_path, size=(6, 4))
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match="cat has no images"):
        data.from_folder(tmp_path, size=(6, 4))


def test_bad_sizes(folder):
    with pytest.raises(InputError, match="channels=4"):
        data.from_folder(folder, size=(6, 4), channels=4)
    with pytest.raises(InputError, match=r"size=\(0, 4\)"):
        data.from_folder(folder, size=(0, 4))
