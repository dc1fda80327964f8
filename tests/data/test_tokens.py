"""Tokenizers: round trips, merges by hand, what is saved; and windows that predict once."""

import builtins
import json

import numpy as np
import pytest

from paradigms.core.errors import InputError, MissingExtraError
from paradigms.data import tokens
from paradigms.data.tokens import Bpe, Bytes, Characters, check_tokens, check_vocabulary, windows

SPECIALS = ("[PAD]", "[CLS]", "[MASK]")
UNICODE = "Zwölf Boxkämpfer\r\n\n  jagen 東京 🦜‍🔥 \t'tis [MASK] e\u0301 \u2028end  "
LOW = "low low low lower lowest"


def tokenizers():
    return [
        Characters.train(UNICODE, SPECIALS),
        Bytes(specials=SPECIALS),
        Bpe.train(LOW + UNICODE, 300, SPECIALS),
    ]


@pytest.fixture(params=range(3), ids=["characters", "bytes", "bpe"])
def tokenizer(request):
    return tokenizers()[request.param]


def test_round_trip(tokenizer):
    for text in (UNICODE, UNICODE[::-1], "[MASK]", " ", ""):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert tokenizer.decode(ids) == text
        # No text gives a special token, even one that looks like it.
        check_tokens(ids, tokenizer.vocab_size - len(SPECIALS))


def test_special_tokens_come_last_and_are_written_by_name(tokenizer):
    n = tokenizer.vocab_size
    assert tokenizer.special == {"[PAD]": n - 3, "[CLS]": n - 2, "[MASK]": n - 1}
    first, second = tokenizer.encode("jagen"), tokenizer.encode("東京")
    ids = np.concatenate([[n - 2], first, [n - 1, n - 3], second])
    assert tokenizer.decode(ids) == "[CLS]jagen[MASK][PAD]東京"
    with pytest.raises(InputError, match=rf"tokens\[1\] is {n}, outside 0 to {n - 1}"):
        tokenizer.decode([0, n])


def test_what_is_saved_is_the_tokenizer(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokens.save(tokenizer, path)
    found = tokens.load(path)
    assert found == tokenizer and type(found) is type(tokenizer)
    np.testing.assert_array_equal(found.encode(UNICODE), tokenizer.encode(UNICODE))
    assert found != tokens.from_json({**tokenizer.to_json(), "specials": ["[PAD]"]})
    assert json.loads(path.read_text()) == json.loads(json.dumps(tokenizer.to_json()))


def test_characters_by_hand():
    found = Characters.train("banana\n")
    assert found.characters == "\nabn" and found.vocab_size == 4
    assert found.encode("nab\n").tolist() == [3, 1, 2, 0]
    assert Characters.train("\ud800é🦜").encode("🦜é\ud800").tolist() == [2, 0, 1]
    for text, place in (("bad", 2), ("~", 0), ("a\x00", 1)):
        with pytest.raises(InputError, match=rf"at {place} was not in the training text \(1 such"):
            found.encode(text)


def test_bytes_are_utf_8():
    assert Bytes().encode("é!").tolist() == [0xC3, 0xA9, 0x21]
    assert Bytes().vocab_size == 256 and Bytes().special == {}
    # What a model may write, and what cannot be written.
    assert Bytes().decode([0xC3, 0x21]) == "\ufffd!"
    for broken in (Bytes(), Bpe.train(LOW, 256)):
        with pytest.raises(InputError, match="character '.ud800' at 1 cannot be written in UTF-8"):
            broken.encode("a\ud800")


def test_merges_by_hand():
    found = Bpe.train(LOW, 260)
    # "l o" 5 times, then "lo w" 5, "Ġ low" 4, "Ġlow e" 2; Ġ is a space.
    assert found.merges == (("l", "o"), ("lo", "w"), ("Ġ", "low"), ("Ġlow", "e"))
    assert found.vocab_size == 260
    # "low" is token 257, and " lowe" 259; letters are the 256 before, in their order.
    ids = found.encode("low lower")
    assert [ids[0], ids[1]] == [257, 259] and len(ids) == 3
    assert found.encode("r") == ids[2] < 256
    assert np.unique(found.encode("".join(map(chr, range(128))))).size == 128


def test_training_a_byte_pair_encoding_is_deterministic():
    import tokenizers as library

    text = " ".join(f"{i * i} {i:b}" for i in range(300))
    found = Bpe.train(text, 400, SPECIALS)
    assert found.vocab_size == 400
    assert all(Bpe.train(text, 400, SPECIALS) == found for _ in range(3))
    assert Bpe.train(text, 320).merges == found.merges[:64]
    # The library's own tokenizer, from the same merges, cuts alike.
    letters = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(letters)}
    vocabulary |= {a + b: 256 + i for i, (a, b) in enumerate(found.merges)}
    own = library.ByteLevelBPETokenizer(vocabulary, list(found.merges))
    np.testing.assert_array_equal(found.encode(text[::-1]), own.encode(text[::-1]).ids)


def test_two_ways_to_one_token():
    merges = (("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"))
    found = Bpe(merges)
    assert found.vocab_size == 256 + 3
    assert found.encode("abc").tolist() == [258]


def test_a_short_text_runs_out_of_pairs():
    assert Bpe.train("ab", 1000).vocab_size == 257


def test_the_package_is_needed_for_byte_pairs_only(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("tokenizers"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert Characters.train("ab").encode("ba").tolist() == [1, 0]
    for make in (lambda: Bpe.train("ab", 256), lambda: Bpe(())):
        with pytest.raises(MissingExtraError, match=r"'tokenizers'.*'paradigms\[text\]'"):
            make()


def test_bad_training_is_one_line():
    for make in (lambda: Characters.train(""), lambda: Bpe.train("", 300)):
        with pytest.raises(InputError, match="the training text is empty"):
            make()
    with pytest.raises(InputError, match="vocab_size=257: 256 bytes and 3 special .* least 259"):
        Bpe.train(LOW, 257, SPECIALS)
    for names in (("a", "a"), ("",)):
        with pytest.raises(InputError, match="expected names that differ"):
            Bytes(specials=names)
    for characters in ("ba", "aa", ""):
        with pytest.raises(InputError, match="expected at least one, sorted, none twice"):
            Characters(characters)
    with pytest.raises(InputError, match="merge of 'lo' and 'w': expected tokens that are bytes"):
        Bpe((("lo", "w"),))


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {},
        {"kind": "words"},
        {"kind": ["bytes"]},
        {"kind": "bytes"},
        {"kind": "bytes", "specials": "[PAD]"},
        {"kind": "bytes", "specials": [1]},
        {"kind": "bytes", "specials": [], "characters": "ab"},
        {"kind": "characters", "specials": [], "characters": ["a"]},
        {"kind": "characters", "specials": [], "characters": "ba"},
        {"kind": "bpe", "specials": [], "merges": [["a"]]},
        {"kind": "bpe", "specials": [], "merges": [["a", 1]]},
        {"kind": "bpe", "specials": [], "merges": ["ab"]},
        {"kind": "bpe", "specials": [], "merges": [["ab", "c"]]},
    ],
)
def test_a_bad_file_is_one_line(tmp_path, fields):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"tokenizer.json: cannot read this tokenizer") as caught:
        tokens.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    for content in (None, b"{", b"\xff", b"[" * 100_000):
        path = tmp_path / "tokenizer.json"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match="cannot read this tokenizer"):
            tokens.load(path)


def test_a_net_for_another_vocabulary_is_refused():
    check_vocabulary(Bytes(), 256)
    with pytest.raises(InputError, match="the tokenizer has 257 tokens and the net 256: make the"):
        check_vocabulary(Bytes(specials=("[PAD]",)), 256)


def test_tokens_outside_the_vocabulary_are_refused():
    check_tokens(np.array([[0, 64]], np.uint8), 65)
    check_tokens(np.array([]), 65)
    with pytest.raises(InputError, match=r"tokens\[0, 1\] is 65, outside 0 to 64 \(1 such\)"):
        check_tokens(np.array([[0, 65]]), 65)
    with pytest.raises(InputError, match=r"tokens\[2\] is -1, outside 0 to 64 \(2 such\)"):
        check_tokens(np.array([0, 3, -1, 70]), 65)
    with pytest.raises(InputError, match="tokens are float64: expected integers"):
        check_tokens(np.array([0.5]), 65)


@pytest.mark.parametrize(("size", "length"), [(13, 4), (14, 4), (16, 4), (17, 4), (5, 4), (3, 1)])
def test_windows_predict_each_token_but_the_first_once(size, length):
    cut = windows(np.arange(100, 100 + size, dtype=np.uint16), length)
    assert cut.dtype == np.int32 and cut.shape == ((size - 1) // length, length + 1)
    whole = size - (size - 1) % length
    np.testing.assert_array_equal(cut[:, 1:].ravel(), np.arange(101, 100 + whole))
    # Each is predicted from the one before it.
    np.testing.assert_array_equal(cut[:, :-1], cut[:, 1:] - 1)


def test_windows_must_fit():
    for stream, length in (([], 1), (range(4), 4), (range(4), 0), ([[1, 2]], 1), (range(4), 9)):
        with pytest.raises(InputError, match=rf"windows of length {length} in tokens of shape"):
            windows(list(stream), length)
