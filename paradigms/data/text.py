"""Texts by name: Tiny Shakespeare and WikiText-2, verified byte for byte."""

import gzip
import hashlib
import http.client
import os
import urllib.request
import uuid
import zlib
from pathlib import Path
from typing import NamedTuple

from paradigms.core.errors import InputError
from paradigms.data import cache
from paradigms.data.sets import data_folder


class Source(NamedTuple):
    """What is known beforehand of an official file.

    Attributes:
      file: its name; the file may also be there gzipped, with `.gz` behind it.
      size: in bytes, unpacked.
      sha256: of the unpacked bytes.
      url: where it is published.
    """

    file: str
    size: int
    sha256: str
    url: str


_KARPATHY = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare"
_PYTORCH = (
    "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"
)
_SHAKESPEARE = Source(
    "input.txt",
    1_115_394,
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    f"{_KARPATHY}/input.txt",
)
# For each set the file of each split; the splits of Tiny Shakespeare share theirs.
SETS: dict[str, dict[str, Source]] = {
    "tiny_shakespeare": {"train": _SHAKESPEARE, "valid": _SHAKESPEARE},
    "wikitext2": {
        "train": Source(
            "train.txt",
            10_797_148,
            "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
            f"{_PYTORCH}/train.txt",
        ),
        "valid": Source(
            "valid.txt",
            1_121_681,
            "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            f"{_PYTORCH}/valid.txt",
        ),
        "test": Source(
            "test.txt",
            1_256_449,
            "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
            f"{_PYTORCH}/test.txt",
        ),
    },
}
_ANSWER_SECONDS = 20


def load(name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> str:
    """Loads one split of a text.

    It is looked for, plain or gzipped, in `<data_dir>/<name>`, and downloaded where it is not.

    - "tiny_shakespeare" (Karpathy 2015): `input.txt`, 1,115,394 characters, 65 of them distinct. It
      has no split of its own. As nanoGPT does, the first 90 %, rounded down, are "train" (1,003,854
      characters) and the rest is "valid" (111,540).
    - "wikitext2" (Merity et al. 2016, arXiv:1609.07843): `train.txt`, `valid.txt`, `test.txt`, with
      rare words replaced by `<unk>`. With one `<eos>` for each line end it has 2,088,628, 217,646
      and 245,569 words, which is what perplexities *per word* are divided by, whatever the tokens.

    Args:
      name: "tiny_shakespeare" or "wikitext2".
      split: "train", "valid", or "test" where there is one.
      data_dir: folder of data sets, by default as in `data.load`.

    Raises:
      InputError: unknown set or split, nothing on disk and no network, or damaged files.
    """
    if name not in SETS:
        raise InputError(f"unknown text '{name}': choose from {', '.join(SETS)}")
    if split not in SETS[name]:
        raise InputError(f"{name} has no split '{split}': choose {', '.join(SETS[name])}")
    source, folder = SETS[name][split], data_folder(data_dir)
    text = _read(_find(name, source, folder) or _download(name, source, folder), source)
    if name == "tiny_shakespeare":
        end = len(text) * 9 // 10
        return text[:end] if split == "train" else text[end:]
    return text


def _find(name: str, source: Source, folder: Path) -> Path | None:
    for root in (folder, cache.twin(folder)):
        for file in (source.file, f"{source.file}.gz"):
            if (root / name / file).is_file():
                return root / name / file
    return None


def _read(path: Path, source: Source) -> str:
    """Reads and verifies a file; one byte too many shows it, however much more there is."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(source.size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged ({error}); fetch it again") from error
    if not _is_official(content, source):
        raise InputError(
            f"{path}: damaged, or not the official {source.file}: delete it and fetch it again"
        )
    return content.decode()


def _is_official(content: bytes, source: Source) -> bool:
    return hashlib.sha256(content).hexdigest() == source.sha256


def _download(name: str, source: Source, folder: Path) -> Path:
    """Fetches a file into `<folder>/<name>`, or its twin where that is read-only."""
    target = cache.home(folder, name) / name / source.file
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with urllib.request.urlopen(source.url, timeout=_ANSWER_SECONDS) as answer:
            content = answer.read(source.size + 1)
        if not _is_official(content, source):
            raise OSError("the answer is not the official file")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, http.client.HTTPException) as error:
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise InputError(
            f"cannot download {name} ({reason}): without a network, put {source.file} of "
            f"{source.url} into {folder / name}"
        ) from error
    return target
