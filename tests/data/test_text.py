"""Texts by name: where they are found, what is verified, and how downloads fail."""

import gzip
import hashlib
import io
import urllib.error
import urllib.request

import pytest

from paradigms.core.errors import InputError
from paradigms.data import text

CONTENT = "To be, or not to be.\nThat is the naïve question.\n".encode()  # 49 characters


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The sets with a text of 50 bytes in every file, and no network."""

    def source(split_source):
        sha256 = hashlib.sha256(CONTENT).hexdigest()
        return split_source._replace(size=len(CONTENT), sha256=sha256)

    sets = {
        name: {split: source(known) for split, known in splits.items()}
        for name, splits in text.SETS.items()
    }

    def refuse(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(text, "SETS", sets)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def put(folder, file, content=CONTENT):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(gzip.compress(content) if file.endswith(".gz") else content)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_plain_and_gzipped_files_are_read(tmp_path, monkeypatch, ending):
    put(tmp_path / "wikitext2", "test.txt" + ending)
    assert text.load("wikitext2", "test", tmp_path) == CONTENT.decode()
    monkeypatch.setenv("PARADIGMS_DATA_DIR", str(tmp_path))
    assert text.load("wikitext2", "test") == CONTENT.decode()


def test_the_split_of_tiny_shakespeare_is_by_characters(tmp_path):
    put(tmp_path / "tiny_shakespeare", "input.txt")
    train, valid = (text.load("tiny_shakespeare", name, tmp_path) for name in ("train", "valid"))
    assert len(train) == 44  # of 49 characters, in 50 bytes
    assert train + valid == CONTENT.decode()


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"\n", CONTENT.swapcase(), b""])
def test_other_bytes_are_refused(tmp_path, content, ending):
    put(tmp_path / "wikitext2", f"valid.txt{ending}", content)
    with pytest.raises(InputError, match=r"valid.txt(.gz)?: damaged, or not the official valid"):
        text.load("wikitext2", "valid", tmp_path)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    put(tmp_path / "wikitext2", "valid.txt.gz", bytes(10**7))
    read, opened = [], gzip.open

    def watched(path):
        file = opened(path)
        inner = file.read
        file.read = lambda size=-1: read.append(size) or inner(size)
        return file

    monkeypatch.setattr(gzip, "open", watched)
    with pytest.raises(InputError, match="not the official"):
        text.load("wikitext2", "valid", tmp_path)
    assert read == [len(CONTENT) + 1]


def test_a_broken_gzip_file_is_one_line(tmp_path):
    put(tmp_path / "wikitext2", "train.txt.gz")
    path = tmp_path / "wikitext2" / "train.txt.gz"
    for content in (path.read_bytes()[:20], b"text"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"train.txt.gz: damaged \(.*\); fetch it again"):
            text.load("wikitext2", "train", tmp_path)


def test_a_file_that_is_not_there_is_fetched_once(tmp_path, monkeypatch):
    asked = []

    def answer(url, timeout):
        asked.append(url)
        return io.BytesIO(CONTENT)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    for _ in range(2):
        assert text.load("wikitext2", "valid", tmp_path / "new") == CONTENT.decode()
    assert len(asked) == 1 and asked[0].endswith("wikitext-2/valid.txt")
    assert [path.name for path in (tmp_path / "new" / "wikitext2").iterdir()] == ["valid.txt"]


def test_a_read_only_folder_gets_its_files_in_the_cache(tmp_path, monkeypatch, cache_dir):
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o555)
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(CONTENT))
    assert text.load("wikitext2", "valid", folder) == CONTENT.decode()
    assert len(list(cache_dir.rglob("wikitext2/valid.txt"))) == 1
    monkeypatch.undo()
    assert not list(folder.iterdir())


def test_without_a_network_the_message_says_what_to_put_where(tmp_path):
    message = r"cannot download tiny_shakespeare \(.*no route.*\): without a network, put input.txt"
    with pytest.raises(InputError, match=message) as caught:
        text.load("tiny_shakespeare", "train", tmp_path)
    assert str(tmp_path / "tiny_shakespeare") in str(caught.value)
    assert "https://" in str(caught.value) and "\n" not in str(caught.value)


def test_an_answer_that_is_another_file_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"<html>"))
    with pytest.raises(InputError, match="the answer is not the official file"):
        text.load("wikitext2", "valid", tmp_path)
    assert not list(tmp_path.rglob("*.txt*"))


def test_unknown_names_are_one_line(tmp_path):
    with pytest.raises(InputError, match="unknown text 'text8': choose from tiny_shakespeare, wik"):
        text.load("text8", "train", tmp_path)
    with pytest.raises(InputError, match="tiny_shakespeare has no split 'test': choose train, val"):
        text.load("tiny_shakespeare", "test", tmp_path)


def test_the_official_texts(real_data, monkeypatch):
    monkeypatch.undo()
    if not (real_data / "wikitext2").is_dir():
        pytest.skip(f"{real_data} has no wikitext2")
    # nanoGPT, data/shakespeare_char/readme.md; and the counts that are published of WikiText-2.
    train, valid = (text.load("tiny_shakespeare", name, real_data) for name in ("train", "valid"))
    assert (len(train), len(valid), len(set(train + valid))) == (1_003_854, 111_540, 65)
    words = {}
    for split in ("train", "valid", "test"):
        lines = text.load("wikitext2", split, real_data).removesuffix("\n").split("\n")
        words[split] = [word for line in lines for word in [*line.split(), "<eos>"]]
    assert [len(of_split) for of_split in words.values()] == [2_088_628, 217_646, 245_569]
    assert len(set(words["train"])) == 33_278
