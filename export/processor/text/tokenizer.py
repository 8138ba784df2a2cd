"""The checkpoint's tokenizer, encoding so that only templates write special tokens.

`tokenizer.json` where there is one, else `vocab.json` and `merges.txt`, both as published; added tokens also from
`tokenizer_config.json`.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from export.errors import UserError, is_request_to_stop
from export.files.json_object import read_json_object
from export.files.untrusted import MAX_JSON_BYTES, require_own_file

_MAX_GROWTH = 256
# Unicode's own bounds (UAX 15, table 9), and for a map of its own what compatibility forms do.
_GROWTH_OF_FORMS = {"NFC": 3.0, "NFD": 4.0, "NFKC": 18.0, "NFKD": 18.0, "Precompiled": 18.0, "Lowercase": 3.0}

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
    _refuse_growth(tokenizer, directory)
    return tokenizer


def _refuse_growth(tokenizer: Tokenizer, directory: Path) -> None:
    """Refuse a normalizer that multiplies text: the library ends the whole process when the memory is full."""
    if tokenizer.normalizer is None:
        return
    growth = _growth(json.loads(tokenizer.normalizer.__getstate__()))
    if growth > _MAX_GROWTH:
        raise UserError(
            f"{directory}: the tokenizer's normalizer can make a text {growth:.3g} times as long, of at most "
            f"{_MAX_GROWTH}.",
            "Take the tokenizer files of the model's own repository.",
        )


def _growth(normalizer: Mapping[str, Any]) -> float:
    """How many characters may come of one, at most."""
    kind = normalizer.get("type")
    if kind == "Sequence":
        return math.prod(_growth(part) for part in normalizer["normalizers"])
    if kind == "Replace":
        # A regular expression may match between any two characters; so does a text without characters.
        text = normalizer["pattern"].get("String", "")
        return max(1.0, len(normalizer["content"]) / len(text) if text else 1.0 + len(normalizer["content"]))
    return _GROWTH_OF_FORMS.get(str(kind), 1.0)


@contextmanager
def _library_errors(what: str) -> Iterator[None]:
    """Make whatever the Rust library raises the user's error: bare `Exception`, or a panic, which is not even that."""
    try:
        yield
    except BaseException as error:
        if is_request_to_stop(error) or isinstance(error, UserError):
            raise
        [summary, *_] = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{what}: {summary:.300}") from None


def _tokenizer_from_file(path: Path) -> Tokenizer:
    with _library_errors(f"{path} cannot be read as a tokenizer"):
        require_own_file(path, MAX_JSON_BYTES)
        return Tokenizer.from_file(str(path))


def _tokenizer_from_vocabulary(vocab: Path, merges: Path) -> Tokenizer:
    with _library_errors(f"{vocab} and {merges.name} cannot be read as a byte-level BPE"):
        for path in (vocab, merges):
            require_own_file(path, MAX_JSON_BYTES)
        model = models.BPE.from_file(str(vocab), str(merges))
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
                f"{tokenizer.token_to_id(token.content)}.",
                "Take all tokenizer files from one repository.",
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
        self.ids = frozenset(added)
        self.texts = frozenset(token.content for token in added.values())
        with _library_errors("The tokenizer's added tokens cannot be used"):
            self._finder, self._ids_of_finder = _finder(added)
            # The same model without its added tokens: in it, "<|im_end|>" is a word like any other.
            self._plain = Tokenizer(tokenizer.model)
            if tokenizer.normalizer is not None:
                self._plain.normalizer = tokenizer.normalizer
            if tokenizer.pre_tokenizer is not None:
                self._plain.pre_tokenizer = tokenizer.pre_tokenizer
        self._longest_token = _longest_token(tokenizer)

    def split(self, text: str) -> list[tuple[str, int | None]]:
        """Cut at special tokens: pairs of the text before a token and its id, None after the last.

        Raises:
            UserError: the tokenizers library fails on the text.
        """
        with _library_errors("The tokenizer fails on the prompt"):
            [encoding] = self._finder.encode_batch([text], add_special_tokens=False)
        pieces: list[tuple[str, int | None]] = []
        start = 0
        for found_id, (first, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if found_id in self._ids_of_finder:
                pieces.append((text[start:first], self._ids_of_finder[found_id]))
                start = stop
        return [*pieces, (text[start:], None)]

    def fewest_tokens(self, text: str) -> int:
        """A count that encoding surely reaches, told without encoding; 0 where nothing is sure."""
        return len(text) // self._longest_token if self._longest_token else 0

    def encode_plain(self, text: str) -> list[int]:
        """Encode text in which no special token is recognised. Other threads run meanwhile.

        Raises:
            UserError: the vocabulary itself turns the text into a special token, or the tokenizers library fails.
        """
        with _library_errors("The tokenizer fails on the prompt"):
            # Unlike `encode`, which does the same for one text, this lets go of the interpreter.
            [encoding] = self._plain.encode_batch_fast([text], add_special_tokens=False)
        token_ids: list[int] = encoding.ids
        smuggled = self.ids.intersection(token_ids)
        if smuggled:
            raise UserError(
                f"The tokenizer turns plain text into the special tokens {sorted(smuggled)}, so user text cannot be "
                "told from the template. Check tokenizer.json: special tokens must not be reachable by merges."
            )
        return token_ids


def _finder(added: Mapping[int, AddedToken]) -> tuple[Tokenizer, dict[int, int]]:
    """A tokenizer that knows the added tokens and nothing else, and their true ids by its own.

    So the library itself finds them, by its own rules and in one pass however many they are.
    """
    texts = {token.content for token in added.values()}
    other = next(name for n in range(len(texts) + 1) if (name := f"other{n}") not in texts)
    finder = Tokenizer(models.WordLevel({other: 0}, unk_token=other))
    flags = ("single_word", "lstrip", "rstrip")
    finder.add_tokens(
        [
            AddedToken(token.content, normalized=False, **{flag: getattr(token, flag) for flag in flags})
            for token in added.values()
        ]
    )
    found = {finder.token_to_id(token.content): token_id for token_id, token in added.items()}
    return finder, {finder_id: token_id for finder_id, token_id in found.items() if finder_id is not None}


def _longest_token(tokenizer: Tokenizer) -> int | None:
    """The most characters of a text that one token can stand for; None where a normalizer could remove any number."""
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        return None
    # A byte-level token is spelt with one character a byte. NFC makes one character of three at most.
    longest = max(map(len, tokenizer.get_vocab()), default=1)
    if tokenizer.normalizer is None:
        return longest
    return 3 * longest if isinstance(tokenizer.normalizer, normalizers.NFC) else None
