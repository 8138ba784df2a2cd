import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from engines.runtime.tokens.text_stream import TextStream
from export.errors import UserError

CORPUS = [
    "The quick brown fox jumps over the lazy dog, twice.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "我能吞下玻璃而不伤身体。日本語の文章も少し。",
    "Съешь же ещё этих мягких французских булок. مرحبا بالعالم",
    "👩‍👩‍👧‍👦 🎉🎉 🇩🇪 ✅",
    *["abab babb aab bba"] * 9,
]


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE like Qwen's, small: all 256 bytes, some merges, special and plain added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|im_end|>", "<|image_pad|>", "<|é ü|>"])
    tokenizer.add_tokens([AddedToken("<tool call>"), AddedToken("naïve")])
    return tokenizer


TOKENIZER = train_tokenizer()
# Ten ids more than there are tokens: a model's embedding table is larger than its tokenizer.
any_token_id = st.integers(0, TOKENIZER.get_vocab_size() + 10)
byte_token_id = st.sampled_from(
    [TOKENIZER.token_to_id(letter) or 0 for letter in pre_tokenizers.ByteLevel.alphabet()]
)
added_token_id = st.sampled_from(sorted(TOKENIZER.get_added_tokens_decoder()))
token_ids_lists = st.lists(any_token_id | byte_token_id | added_token_id, max_size=40)


def stream_pieces(token_ids, **options) -> list[str]:
    stream = TextStream(TOKENIZER, **options)
    return [*(stream.push(token_id) for token_id in token_ids), stream.finish()]


def ids_of_text(text: str) -> list[int]:
    """One token for each byte of the text's UTF-8."""
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [TOKENIZER.token_to_id(letter) or 0 for word, _ in words for letter in word]


@given(text=st.text(max_size=60) | st.sampled_from(CORPUS))
def test_pieces_of_any_text_join_to_the_text(text):
    assert "".join(stream_pieces(TOKENIZER.encode(text).ids, skip_special_tokens=False)) == text


@given(token_ids=token_ids_lists, skip=st.booleans())
def test_pieces_of_any_tokens_join_to_what_the_tokenizer_decodes(token_ids, skip):
    expected = TOKENIZER.decode(token_ids, skip_special_tokens=skip)
    assert "".join(stream_pieces(token_ids, skip_special_tokens=skip)) == expected


@given(text=st.text(min_size=1, max_size=30))
def test_no_piece_of_valid_text_holds_a_broken_character(text):
    pieces = stream_pieces(ids_of_text(text))
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    assert "".join(pieces) == text


def test_text_is_given_out_as_soon_as_its_character_is_complete():
    pieces = stream_pieces(ids_of_text("a🎉b"))
    assert pieces == ["a", "", "", "", "🎉", "b", ""]


def test_an_unfinished_character_at_the_end_becomes_a_replacement_character():
    pieces = stream_pieces(ids_of_text("a🎉")[:-1])
    assert pieces == ["a", "", "", "", "\ufffd"]


def test_invalid_bytes_hold_nothing_back():
    continuation = ids_of_text("é")[1]
    pieces = stream_pieces([continuation] * 100)
    assert pieces == ["\ufffd"] * 100 + [""]


def test_special_tokens_are_left_out_unless_asked_for():
    token_ids = [*TOKENIZER.encode("ok").ids, TOKENIZER.token_to_id("<|im_end|>")]
    assert "".join(stream_pieces(token_ids)) == "ok"
    assert "".join(stream_pieces(token_ids, skip_special_tokens=False)) == "ok<|im_end|>"


def test_stop_strings_inside_one_token_are_found_by_which_is_complete_first():
    assert TOKENIZER.token_to_id("abab") is not None
    assert "".join(stream_pieces([TOKENIZER.token_to_id("abab")], stop_strings=["abab", "ba"])) == "a"


def test_each_token_is_looked_up_once_and_never_decoded_again():
    class Counting:
        """The part of a tokenizer that a stream may use."""

        decoder = TOKENIZER.decoder
        num_lookups = 0

        def get_added_tokens_decoder(self):
            return TOKENIZER.get_added_tokens_decoder()

        def id_to_token(self, token_id):
            self.num_lookups += 1
            return TOKENIZER.id_to_token(token_id)

    counting = Counting()
    stream = TextStream(counting, stop_strings=["zzz"])  # type: ignore[arg-type]
    for token_id in [*TOKENIZER.encode(CORPUS[0]).ids] * 50:
        stream.push(token_id)
    assert counting.num_lookups == 50 * len(TOKENIZER.encode(CORPUS[0]).ids)


def stopped_text(text: str, stop_strings: list[str]) -> str:
    """The truth, character by character: the text before the stop string that is complete first."""
    for end in range(1, len(text) + 1):
        begun = [end - len(stop) for stop in stop_strings if text[:end].endswith(stop)]
        if begun:
            return text[: min(begun)]
    return text


few_letters = st.text("ab🎉", max_size=25)
stop_strings_lists = st.lists(st.text("ab🎉", min_size=1, max_size=4), min_size=1, max_size=3)


@given(text=few_letters, stop_strings=stop_strings_lists, whole_tokens=st.booleans())
def test_the_text_ends_before_the_stop_string_that_is_complete_first(text, stop_strings, whole_tokens):
    token_ids = TOKENIZER.encode(text).ids if whole_tokens else ids_of_text(text)
    stream = TextStream(TOKENIZER, stop_strings=stop_strings)
    given_out = ""
    for token_id in token_ids:
        given_out += stream.push(token_id)
        assert stopped_text(text, stop_strings).startswith(given_out), (
            "text once given out cannot be taken back"
        )
    assert given_out + stream.finish() == stopped_text(text, stop_strings)
    assert stream.is_stopped == any(stop in text for stop in stop_strings)


@given(text=few_letters, stop_strings=stop_strings_lists)
def test_no_more_is_held_back_than_could_begin_a_stop_string(text, stop_strings):
    stream = TextStream(TOKENIZER, stop_strings=stop_strings)
    given_out = "".join(stream.push(token_id) for token_id in ids_of_text(text))
    if not stream.is_stopped:
        held_back = text[len(given_out) :]
        assert held_back == "" or any(stop.startswith(held_back) for stop in stop_strings)


def test_a_false_start_of_a_stop_string_is_given_out_after_all():
    pieces = stream_pieces(ids_of_text("xENx"), stop_strings=["END"])
    assert pieces == ["x", "", "", "ENx", ""]


def test_a_stop_string_may_span_tokens_and_ends_the_stream_for_good():
    stream = TextStream(TOKENIZER, stop_strings=["END"])
    pieces = [stream.push(token_id) for token_id in ids_of_text("xENDmore")]
    assert (pieces, stream.is_stopped, stream.finish()) == (["x"] + [""] * 7, True, "")


def test_a_half_stop_string_at_the_end_is_text():
    assert "".join(stream_pieces(ids_of_text("xEN"), stop_strings=["END"])) == "xEN"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UserError, match="must not be empty"):
        TextStream(TOKENIZER, stop_strings=["a", ""])


def test_a_tokenizer_of_another_kind_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match="decoder is WordPiece, expected ByteLevel"):
        TextStream(tokenizer)
