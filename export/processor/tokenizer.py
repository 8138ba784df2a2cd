"""Which tokenizer does the checkpoint bring, and how is text encoded so that only templates write special tokens?

`tokenizer.json` where there is one, else `vocab.json` and `merges.txt`, both as published; added tokens also from
`tokenizer_config.json`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from export.errors import UserError
from export.json_object import read_json_object

# Qwen2's split into words: single digits, words with at most one leading sign, runs of signs, white space.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def load_tokenizer(directory: Path) -> Tokenizer:
    """Load a checkpoint's tokenizer with all its added tokens.

    Raises:
        UserError: no tokenizer, a broken file, or added tokens whose ids contradict each other.
    """
    tokenizer_file = directory / "tokenizer.json"
    if tokenizer_file.exists():
        tokenizer = _tokenizer_from_file(tokenizer_file)
    elif (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
        tokenizer = _tokenizer_from_vocabulary(directory / "vocab.json", directory / "merges.txt")
    else:
        raise UserError(
            f"{directory} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt. Copy them from the "
            "model's repository."
        )
    _add_declared_tokens(tokenizer, directory / "tokenizer_config.json")
    return tokenizer


def _tokenizer_from_file(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the Rust library raises bare Exception
        raise UserError(f"{path} cannot be read as a tokenizer: {error}") from None


def _tokenizer_from_vocabulary(vocab: Path, merges: Path) -> Tokenizer:
    try:
        model = models.BPE.from_file(str(vocab), str(merges))
    except Exception as error:  # noqa: BLE001 - the Rust library raises bare Exception
        raise UserError(f"{vocab} and {merges.name} cannot be read as a byte-level BPE: {error}") from None
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _add_declared_tokens(tokenizer: Tokenizer, path: Path) -> None:
    """Add what `added_tokens_decoder` declares and the tokenizer lacks, at the declared ids."""
    declared = read_json_object(path).get("added_tokens_decoder", {}) if path.exists() else {}
    try:
        tokens = {int(token_id): _added_token(entry) for token_id, entry in declared.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: added_tokens_decoder must map ids to tokens, {error!r} is wrong.") from None
    present = tokenizer.get_added_tokens_decoder()
    # The library numbers new tokens one after another, so they must come in the order of their ids.
    for token_id, token in sorted(tokens.items(), key=lambda item: item[0]):
        if token_id not in present:
            tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != token_id:
            raise UserError(
                f"{path}: {token.content!r} is declared with id {token_id}, but the vocabulary gives it "
                f"{tokenizer.token_to_id(token.content)}. Take all tokenizer files from one repository."
            )


def _added_token(entry: Mapping[str, Any]) -> AddedToken:
    flags = {
        name: bool(entry.get(name, False))
        for name in ("lstrip", "rstrip", "single_word", "normalized", "special")
    }
    return AddedToken(str(entry["content"]), **flags)


class SpecialTokens:
    """The added tokens of a tokenizer: where a template wrote them, and how text is encoded without them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder()
        self._added = added
        self.ids = frozenset(added)
        self.texts = frozenset(token.content for token in added.values())
        # Longest first: the library takes the longest token at the leftmost place.
        longest_first = sorted(added.items(), key=lambda item: -len(item[1].content))
        self._pattern = re.compile("|".join(_token_pattern(*item) for item in longest_first) or r"(?!)")
        # The same model without its added tokens: in it, "<|im_end|>" is a word like any other.
        self._plain = Tokenizer(tokenizer.model)
        if tokenizer.normalizer is not None:
            self._plain.normalizer = tokenizer.normalizer
        if tokenizer.pre_tokenizer is not None:
            self._plain.pre_tokenizer = tokenizer.pre_tokenizer

    def split(self, text: str) -> list[tuple[str, int | None]]:
        """Cut at special tokens: pairs of the text before a token and its id, None after the last."""
        pieces: list[tuple[str, int | None]] = []
        start = 0
        while match := self._pattern.search(text, start):
            token_id = int(str(match.lastgroup).removeprefix("id_"))
            token = self._added[token_id]
            before, after = text[start : match.start()], text[match.end() :]
            pieces.append((before.rstrip() if token.lstrip else before, token_id))
            start = len(text) - len(after.lstrip() if token.rstrip else after)
        return [*pieces, (text[start:], None)]

    def encode_plain(self, text: str) -> list[int]:
        """Encode text in which no special token is recognised.

        Raises:
            UserError: the vocabulary itself turns the text into a special token.
        """
        token_ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        smuggled = self.ids.intersection(token_ids)
        if smuggled:
            raise UserError(
                f"The tokenizer turns plain text into the special tokens {sorted(smuggled)}, so user text cannot be "
                "told from the template. Check tokenizer.json: special tokens must not be reachable by merges."
            )
        return token_ids


def _token_pattern(token_id: int, token: AddedToken) -> str:
    """A regular expression that finds the token as the tokenizers library does, in the group `id_<token id>`."""
    pattern = f"(?P<id_{token_id}>{re.escape(token.content)})"
    return rf"(?<!\w){pattern}(?!\w)" if token.single_word else pattern
