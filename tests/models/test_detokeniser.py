"""Text in pieces (complaints 17 and 18): joined they are the whole answer, nothing of them is taken back."""

import pytest
from conftest import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from afina.models.detokeniser import Detokeniser
from afina.models.tokenizer import Tokenizer, wrap

TEXTS = st.text(st.sampled_from("abE ND\n日é🙂\ufffd"), max_size=30)
STOPS = st.lists(st.text(st.sampled_from("abE ND日"), min_size=1, max_size=4), max_size=3)


@pytest.fixture(scope="module")
def bytewise() -> Tokenizer:
    """A token a byte: every character but ASCII's comes in parts."""
    return wrap(byte_tokenizer(), [])


def pieces_of(
    tokenizer: Tokenizer, ids: list[int], stop: list[str], every: int = 1
) -> tuple[list[str], list[int], str | None]:
    """The pieces of an answer and the number of tokens behind each, where it is looked at after `every` tokens."""
    text = Detokeniser(tokenizer, stop)
    pieces, counts = [], []
    for i, token in enumerate(ids):
        text.add(token)
        if text.stopped_by is not None:
            break
        if i % every == 0:
            piece, count = text.take()
            pieces.append(piece)
            counts.append(count)
    text.end()
    piece, count = text.take()
    assert text.text == "".join([*pieces, piece])
    return [*pieces, piece], [*counts, count], text.stopped_by


def cut(tokenizer: Tokenizer, ids: list[int], stop: list[str]) -> tuple[str, str | None]:
    """The slow twin: the text of all tokens so far is searched after each."""
    for n in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:n])
        if n < len(ids):
            text = text.rstrip("\ufffd")  # bytes that are no character yet, or are never one
        found = [(at, string) for string in stop if (at := text.find(string)) >= 0]
        if found:
            at, string = min(found, key=lambda each: each[0])
            return text[:at], string
    return tokenizer.decode(ids), None


@settings(max_examples=400, deadline=None)
@given(text=TEXTS, stop=STOPS, every=st.integers(1, 5))
def test_joined_pieces_are_the_whole_answer_before_the_first_stop(
    bytewise: Tokenizer, text: str, stop: list[str], every: int
) -> None:
    """Complaints 17 and 18."""
    ids = bytewise.encode(text)
    pieces, counts, stopped = pieces_of(bytewise, ids, stop, every)
    assert ("".join(pieces), stopped) == cut(bytewise, ids, stop)
    for i in range(len(pieces)):  # no piece ends within a character
        assert text.startswith("".join(pieces[: i + 1]))
    if stopped is None:
        assert sum(counts) == len(ids)


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 258), max_size=40), every=st.integers(1, 5))
def test_bytes_that_are_no_character_are_replaced_as_the_tokenizer_does(
    bytewise: Tokenizer, ids: list[int], every: int
) -> None:
    assert "".join(pieces_of(bytewise, ids, [], every)[0]) == bytewise.decode(ids)


def test_a_character_in_four_tokens_comes_whole(bytewise: Tokenizer) -> None:
    pieces, counts, _ = pieces_of(bytewise, bytewise.encode("a🙂b"), [])
    assert pieces == ["a", "", "", "", "🙂", "b", ""]
    assert counts == [1, 0, 0, 0, 4, 1, 0]


def test_what_may_begin_a_stop_string_waits(bytewise: Tokenizer) -> None:
    pieces, counts, stopped = pieces_of(bytewise, bytewise.encode("12 ENOUGH"), ["END"])
    assert pieces == ["1", "2", " ", "", "", "ENO", "U", "G", "H", ""]
    assert (counts[5], stopped) == (3, None)
    pieces, counts, stopped = pieces_of(bytewise, bytewise.encode("12 END more"), ["END"])
    assert ("".join(pieces), sum(counts), stopped) == ("12 ", 3, "END")  # tokens of the stop string are not told


def test_a_token_may_hold_text_and_a_stop_string(tiny_words: Tokenizer) -> None:
    pieces, _, stopped = pieces_of(tiny_words, tiny_words.encode("one. two"), ["."])
    assert ("".join(pieces), stopped) == ("one", ".")


def test_of_two_stop_strings_the_one_that_begins_first(bytewise: Tokenizer) -> None:
    text = Detokeniser(bytewise, ["c", "bc"])
    for token in bytewise.encode("abc"):
        text.add(token)
    assert text.stopped_by == "bc"
    assert text.take()[0] == "a"


def test_stop_strings_within_the_least_answer_do_not_end_it(bytewise: Tokenizer) -> None:
    text = Detokeniser(bytewise, ["."])
    for i, token in enumerate(bytewise.encode("a.b.")):
        text.add(token, may_stop=i >= 2)
    assert (text.text, text.stopped_by) == ("a.b", ".")


@pytest.fixture(scope="module")
def tiny_words() -> Tokenizer:
    """Words with the space before them, as SentencePiece has them; unknown characters as bytes."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁one", "▁two", ".", "▁", "one", "▁one."]
    vocabulary = [(word, -float(i)) for i, word in enumerate(words)]
    backend = Backend(models.Unigram(vocabulary, 0, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    inner.chat_template = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    return wrap(inner, [])


@pytest.mark.parametrize("text", ["one two one", "日 one 🙂", "two. 日日", "é"])
def test_words_keep_their_spaces_and_bytes_become_characters(tiny_words: Tokenizer, text: str) -> None:
    ids = tiny_words.encode(text)
    assert tiny_words.decode(ids) == text
    assert "".join(pieces_of(tiny_words, ids, [])[0]) == text


def test_special_tokens_between_words_take_no_space_away(tiny_words: Tokenizer) -> None:
    one, two = tiny_words.encode("one two")
    ids = [one, 2, two, 2, 2, one]
    assert "".join(pieces_of(tiny_words, ids, [])[0]) == tiny_words.decode(ids)
