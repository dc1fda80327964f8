"""Text as numbers: characters, bytes, or pairs of them merged (BPE); and windows to evaluate on.

The ids of a tokenizer are its ordinary tokens from 0, and then its special tokens, which no text
gives: a "[MASK]" that someone wrote is six characters. A tokenizer is made from the training text
alone and kept with the run (`save`), since its numbers mean nothing without it.
"""

import dataclasses
import functools
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike

from paradigms.core.errors import InputError, MissingExtraError


class Tokenizer(Protocol):
    """Text as numbers and back; two tokenizers are equal (`==`) if they always agree."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens, special ones included: ids lie in `[0, vocab_size)`."""

    @property
    def special(self) -> dict[str, int]:
        """The ids of the special tokens, by name."""

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, int32 `[N]`."""

    def decode(self, tokens: ArrayLike) -> str:
        """The text of tokens `[N]`; special ones are written by their names."""

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes the tokenizer of again, plain values only."""


@dataclasses.dataclass(frozen=True)
class _WithSpecials(ABC):
    """What the tokenizers share: special tokens behind the ordinary ones."""

    specials: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if len(set(self.specials)) < len(self.specials) or "" in self.specials:
            raise InputError(
                f"special tokens {list(self.specials)}: expected names that differ, none of them "
                "empty"
            )

    @property
    @abstractmethod
    def _ordinary(self) -> int:
        """The number of tokens that are not special."""

    @abstractmethod
    def _text(self, tokens: list[int]) -> str:
        """The text of ordinary tokens."""

    @property
    def vocab_size(self) -> int:
        return self._ordinary + len(self.specials)

    @property
    def special(self) -> dict[str, int]:
        return {name: self._ordinary + i for i, name in enumerate(self.specials)}

    def decode(self, tokens: ArrayLike) -> str:
        array = np.asarray(tokens)
        check_tokens(array, self.vocab_size)
        first = self._ordinary
        return "".join(
            "".join(self.specials[token - first] for token in run)
            if special
            else self._text(list(run))
            for special, run in itertools.groupby(array.tolist(), lambda token: token >= first)
        )

    def to_json(self) -> dict[str, Any]:
        kind = next(name for name, known in _KINDS.items() if known is type(self))
        return {"kind": kind, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Characters(_WithSpecials):
    """One token for each character (Unicode code point) of the training text.

    Attributes:
      characters: all of them, sorted; their places are the ids.
      specials: names of special tokens.
    """

    characters: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.characters or list(self.characters) != sorted(set(self.characters)):
            raise InputError(
                f"characters {self.characters[:20]!r}: expected at least one, sorted, none twice; "
                "make them by Characters.train(text)"
            )

    @classmethod
    def train(cls, text: str, specials: Sequence[str] = ()) -> Self:
        """The characters of `text`; a tokenizer of them knows no other.

        Raises:
          InputError: the text is empty.
        """
        _check_not_empty(text)
        return cls("".join(sorted(set(text))), specials=tuple(specials))

    @property
    def _ordinary(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, int32 `[N]`, one for each character.

        Raises:
          InputError: a character that was not in the training text.
        """
        known, given = _code_points(self.characters), _code_points(text)
        tokens = np.minimum(np.searchsorted(known, given), len(known) - 1)
        unknown = np.flatnonzero(known[tokens] != given)
        if len(unknown):
            raise InputError(
                f"character {text[unknown[0]]!r} at {unknown[0]} was not in the training text "
                f"({len(unknown)} such): leave it out, or take Bytes or Bpe, which know all text"
            )
        return tokens.astype(np.int32)

    def _text(self, tokens: list[int]) -> str:
        return "".join(self.characters[token] for token in tokens)


@dataclasses.dataclass(frozen=True)
class Bytes(_WithSpecials):
    """One token for each byte of the text in UTF-8: 256 of them, and nothing is unknown.

    Attributes:
      specials: names of special tokens.
    """

    @property
    def _ordinary(self) -> int:
        return 256

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, int32 `[N]`, one for each byte."""
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)

    def _text(self, tokens: list[int]) -> str:
        # A model may write bytes that are no character.
        return bytes(tokens).decode(errors="replace")


@dataclasses.dataclass(frozen=True)
class Bpe(_WithSpecials):
    """Byte pair encoding (Sennrich et al. 2016, arXiv:1508.07909) of bytes, as in GPT-2.

    The text is cut into words by GPT-2's rule, a word starts as its UTF-8 bytes, and `merges` are
    applied in their order (Radford et al. 2019, "Language Models are Unsupervised Multitask
    Learners", section 2.2). Nothing is unknown. It needs the package `tokenizers`.

    Attributes:
      merges: the pairs that became one token; bytes are written in GPT-2's printable letters.
      specials: names of special tokens.
    """

    merges: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._model  # noqa: B018  a pair that cannot be merged shows here

    @classmethod
    def train(cls, text: str, vocab_size: int, specials: Sequence[str] = ()) -> Self:
        """Merges the most frequent pair of tokens in `text`, again and again.

        The same text gives the same tokenizer; nothing is downloaded.

        Args:
          text: for training.
          vocab_size: to stop at: 256 bytes, special tokens and merges. A short text runs out of
            pairs before: see `vocab_size` of what is returned.
          specials: names of special tokens.

        Raises:
          InputError: the text is empty, or the vocabulary has no room for the bytes.
          MissingExtraError: the package `tokenizers` is not installed.
        """
        _check_not_empty(text)
        if vocab_size < 256 + len(specials):
            raise InputError(
                f"vocab_size={vocab_size}: 256 bytes and {len(specials)} special tokens need at "
                f"least {256 + len(specials)}"
            )
        _utf8(text)
        library = _tokenizers()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size - len(specials),
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        model = _word_level(library, library.models.BPE())
        model.train_from_iterator([text], trainer=trainer)
        merges = json.loads(model.to_str())["model"]["merges"]
        return cls(tuple((first, second) for first, second in merges), specials=tuple(specials))

    @functools.cached_property
    def _model(self) -> Any:
        library = _tokenizers()
        letters = sorted(library.pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {letter: i for i, letter in enumerate(letters)}
        for first, second in self.merges:
            if first not in vocabulary or second not in vocabulary:
                raise InputError(
                    f"merge of {first!r} and {second!r}: expected tokens that are bytes or were "
                    "merged before; make them by Bpe.train(text, vocab_size)"
                )
            # Two ways may lead to one token.
            vocabulary.setdefault(first + second, len(vocabulary))
        return _word_level(library, library.models.BPE(vocab=vocabulary, merges=list(self.merges)))

    @property
    def _ordinary(self) -> int:
        return self._model.get_vocab_size()

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, int32 `[N]`; ten million characters take some seconds."""
        _utf8(text)
        return np.array(self._model.encode_batch_fast([text])[0].ids, np.int32)

    def _text(self, tokens: list[int]) -> str:
        return self._model.decode(tokens, skip_special_tokens=False)


_KINDS: dict[str, type[Characters | Bytes | Bpe]] = {
    "characters": Characters,
    "bytes": Bytes,
    "bpe": Bpe,
}


def from_json(fields: Any) -> Characters | Bytes | Bpe:
    """The tokenizer whose `to_json` gave `fields`, which are checked.

    Raises:
      InputError: they are not what `to_json` gives.
    """
    kind = _KINDS.get(str(fields.get("kind"))) if isinstance(fields, dict) else None
    if kind is None:
        raise InputError(f"not a tokenizer: expected an object of kind {', '.join(_KINDS)}")
    given = {name: _as_tuple(value) for name, value in fields.items() if name != "kind"}
    if set(given) != {field.name for field in dataclasses.fields(kind)} or not all(
        map(_well_typed, given, given.values())
    ):
        raise InputError(
            f"not a tokenizer of kind {fields['kind']}: its entries {', '.join(given)} are not "
            "those that `save` writes"
        )
    return kind(**given)


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Writes a tokenizer as JSON, for instance into its run directory."""
    path.write_text(json.dumps(tokenizer.to_json()) + "\n", encoding="utf-8")


def load(path: Path) -> Characters | Bytes | Bpe:
    """Reads what `save` wrote.

    Raises:
      InputError: there is no such file, or it holds something else.
    """
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot read this tokenizer ({error})") from error


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Checks that a net was made for this tokenizer.

    Args:
      tokenizer: of the text.
      vocab_size: of the net, V.

    Raises:
      InputError: their numbers of tokens differ.
    """
    if tokenizer.vocab_size != vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the net {vocab_size}: make the "
            f"net for {tokenizer.vocab_size}, or load the tokenizer that was saved with it"
        )


def check_tokens(tokens: np.ndarray, vocab_size: int) -> None:
    """Checks on the host that tokens are ids of a vocabulary; on the device none would complain.

    Args:
      tokens: integers of any shape.
      vocab_size: ids must lie in `[0, vocab_size)`.

    Raises:
      InputError: one does not, with its place and value; or there are no integers at all.
    """
    if tokens.size and tokens.dtype.kind not in "iu":
        raise InputError(f"tokens are {tokens.dtype}: expected integers, the ids of a tokenizer")
    wrong = np.argwhere((tokens < 0) | (tokens >= vocab_size))
    if len(wrong):
        raise InputError(
            f"tokens{wrong[0].tolist()} is {tokens[tuple(wrong[0])]}, outside 0 to "
            f"{vocab_size - 1} ({len(wrong)} such): encode the text with the net's tokenizer"
        )


def windows(tokens: ArrayLike, length: int) -> np.ndarray:
    """Cuts a text into windows, in order, in which each token but the first is predicted once.

    Neighbours share one token, which ends the one and begins the other. The last
    `(N - 1) % length` tokens fill no window and are left out, so that no mask is needed.

    Args:
      tokens: integers `[N]`.
      length: tokens predicted in a window, T: the context of the net.

    Returns:
      int32 `[(N - 1) // T, T + 1]`.

    Raises:
      InputError: the text is empty, or shorter than one window.
    """
    stream = np.asarray(tokens)
    if stream.ndim != 1 or length < 1 or len(stream) <= length:
        raise InputError(
            f"windows of length {length} in tokens of shape {list(stream.shape)}: expected [N], "
            f"and a length from 1 to N - 1"
        )
    starts = np.arange(0, len(stream) - length, length)
    return stream[starts[:, None] + np.arange(length + 1)].astype(np.int32)


def _well_typed(name: str, value: Any) -> bool:
    if name == "characters":
        return isinstance(value, str)
    if not isinstance(value, tuple):
        return False
    if name == "specials":
        return all(isinstance(entry, str) for entry in value)
    return all(
        isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
        for pair in value
    )


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _check_not_empty(text: str) -> None:
    if not text:
        raise InputError("the training text is empty: a tokenizer needs some text to be made from")


def _code_points(text: str) -> np.ndarray:
    # Half of a surrogate pair is a character like others here, as in `str`.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"character {text[error.start]!r} at {error.start} cannot be written in UTF-8: leave "
            "it out"
        ) from error


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError("tokenizers", "text", "byte pair encoding") from error
    return tokenizers


def _word_level(library: Any, model: Any) -> Any:
    """The model between GPT-2's rule for words and its way back from letters to bytes."""
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer
