"""Text from token ids while they still arrive.

A byte-level BPE token is a string of bytes, not of characters: one emoji can take three tokens. So the bytes
go through an incremental UTF-8 decoder that keeps an unfinished character to itself, and each token is
touched once: the cost of an answer is linear in its length. The pieces joined are what `tokenizer.decode`
says of all the ids, U+FFFD for invalid bytes included.
"""

import codecs
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders

from export.errors import UserError
from export.processor.text.located import MARKS


class TextStream:
    r"""Text of one answer, piece by piece.

        stream = TextStream(tokenizer, stop_strings=["\nUser:"])
        for token_id in token_ids:
            show(stream.push(token_id))
            if stream.is_stopped:
                break
        show(stream.finish())

    With stop strings, text that could be the beginning of one is held back until it is clear that it is not.
    The stop string that is complete first ends the text; neither it nor what follows is ever given out.

    Args:
        tokenizer: with a byte-level decoder, as every Qwen2-VL checkpoint has.
        skip_special_tokens: leave out `<|im_end|>` and its like.
        keep_marks: of the special tokens, keep those around boxes and their labels.
        stop_strings: non-empty texts that end the answer.

    Raises:
        UserError: another kind of tokenizer, or an empty stop string.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        keep_marks: bool = False,
        stop_strings: Iterable[str] = (),
    ) -> None:
        if not isinstance(tokenizer.decoder, decoders.ByteLevel):
            raise UserError(
                f"the tokenizer's decoder is {type(tokenizer.decoder).__name__}, expected ByteLevel as in Qwen2-VL. "
                "Check that tokenizer.json belongs to the checkpoint."
            )
        self._tokenizer = tokenizer
        kept = MARKS if keep_marks else frozenset()
        self._skipped = _special_token_ids(tokenizer, kept) if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop_strings = tuple(stop_strings)
        if "" in self._stop_strings:
            raise UserError("a stop string must not be empty.")
        self._held_back = ""
        self.is_stopped = False
        """Whether a stop string ended the text."""

    def push(self, token_id: int) -> str:
        """Take one token; returns the text that is now certain, often "" and never half a character."""
        token = None if token_id in self._skipped else self._tokenizer.id_to_token(token_id)
        # Embedding tables are padded (151,936 rows for 151,657 tokens): an id without a token has no text.
        return "" if token is None else self._release(self._decoder.decode(_bytes_from_token(token)))

    def finish(self) -> str:
        """End the answer; returns what was still held back, an unfinished character as U+FFFD."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held_back
        self._held_back = ""
        return text

    def _release(self, text: str) -> str:
        if self.is_stopped:
            return ""
        text = self._held_back + text
        end = _stop_position(text, self._stop_strings)
        if end is not None:
            self.is_stopped, self._held_back = True, ""
            return text[:end]
        num_held_back = _unfinished_stop_length(text, self._stop_strings)
        split = len(text) - num_held_back
        self._held_back = text[split:]
        return text[:split]


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """The bytes that a token stands for, which may be a part of a character; none for an id without a token."""
    token = tokenizer.id_to_token(token_id)
    return b"" if token is None else _bytes_from_token(token)


def _stop_position(text: str, stop_strings: tuple[str, ...]) -> int | None:
    """Where the stop string begins that is complete first: the same however the text was cut into pieces."""
    found = [(start + len(stop), start) for stop in stop_strings if (start := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def _unfinished_stop_length(text: str, stop_strings: tuple[str, ...]) -> int:
    """Length of the longest end of `text`, which holds no stop string, that begins one."""
    longest = max((len(stop) for stop in stop_strings), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stop_strings):
            return length
    return 0


def _special_token_ids(tokenizer: Tokenizer, kept: frozenset[str]) -> frozenset[int]:
    return frozenset(
        token_id
        for token_id, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and token.content not in kept
    )


def _byte_from_character() -> dict[str, int]:
    """The alphabet of byte-level BPE, as GPT-2 set it.

    Printable Latin-1 bytes are written as themselves, the others, in order, as the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_FROM_CHARACTER = _byte_from_character()


def _bytes_from_token(token: str) -> bytes:
    """A token outside the alphabet (an added token with a space, say) stands for its own UTF-8 bytes."""
    values = [_BYTE_FROM_CHARACTER.get(character) for character in token]
    known = [value for value in values if value is not None]
    return bytes(known) if len(known) == len(values) else token.encode()
