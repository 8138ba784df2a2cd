"""Answers of a given form: which tokens may come next, by a grammar.

llguidance does it: it has no torch, computes a mask from the state of a parser in well under a step of an engine, and
refuses a schema that it does not wholly follow in place of following a part. The mask of the next token is computed
while the engine computes its logits.
"""

import json
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol

from llguidance import LLMatcher, LLTokenizer, grammar_from
from tokenizers import Tokenizer

from engines.runtime.tokens.masks import Allowed, MaskedMatcher, Vocabulary
from export.errors import UserError

Form = Literal["json", "regex", "choice", "grammar"]

MAX_GRAMMAR_CHARACTERS = 1 << 16
_FORMS_KEPT = 8
"""Compiled: most requests of a server ask for one of few forms."""


class Guide(Protocol):
    """Follows one answer."""

    def begin(self, guides: "Sequence[Any]") -> None:
        """Begin to compute what these allow, this guide being one of them, beside what the caller does next."""
        ...

    def allowed(self) -> Allowed:
        """Which tokens may come next."""
        ...

    def accept(self, token_id: int) -> None:
        """An allowed token came."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether nothing more may come."""
        ...


class GuideMaker:
    """Makes guides for one tokenizer.

    Args:
        tokenizer: the checkpoint's.
        eos_token_ids: what ends an answer.
        vocab_size: rows of the logits, which may be more than there are tokens.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: tuple[int, ...], vocab_size: int) -> None:
        self._tokenizer, self._eos_token_ids = tokenizer, eos_token_ids
        self._vocabulary = Vocabulary(tokenizer, vocab_size)
        self._lock = threading.Lock()
        self._prepared: LLTokenizer | None = None
        self._matcher = lru_cache(_FORMS_KEPT)(self._compile)

    def guides(self, form: Form, content: Any, number: int = 1) -> list[Guide]:
        """Guides of as many answers.

        Args:
            form: what `content` is.
            content: a JSON schema (an object), a regular expression, a list of choices, or a grammar (GBNF or Lark).
            number: of answers.

        Raises:
            UserError: it is malformed, can be met by no text, is too large, or asks for what is not followed.
        """
        matcher = self._matcher(form, _grammar(form, content))
        return [MaskedMatcher(matcher.deep_copy(), self._vocabulary) for _ in range(number)]

    def _compile(self, form: Form, grammar: str) -> LLMatcher:
        tokenizer = self._prepare()
        is_wrong, words = LLMatcher.validate_grammar_with_warnings(grammar, tokenizer)
        matcher = None if is_wrong else LLMatcher(tokenizer, grammar, log_level=0)
        if matcher is None or matcher.is_error():
            reason = words[0] if words else matcher.get_error() if matcher else ""
            raise UserError(f"The {_NAMES[form]} cannot be followed: {reason.strip():.500}")
        return matcher

    def _prepare(self) -> LLTokenizer:
        """Takes about a second for a large vocabulary: once, when the first guide is asked for."""
        with self._lock:
            if self._prepared is None:
                self._prepared = LLTokenizer(self._tokenizer.to_str(), eos_token=list(self._eos_token_ids))
            return self._prepared


_NAMES: dict[Form, str] = {
    "json": "JSON schema",
    "regex": "regular expression",
    "choice": "list of choices",
    "grammar": "grammar",
}


def _grammar(form: Form, content: Any) -> str:
    try:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"The {_NAMES[form]} is no JSON: {error}.") from None
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        raise UserError(
            f"The {_NAMES[form]} has {len(text)} characters, at most {MAX_GRAMMAR_CHARACTERS} are taken."
        )
    try:
        if form == "json":
            grammar: str = _json_grammar(text)
        elif form == "regex":
            grammar = LLMatcher.grammar_from_regex(text)
        elif form == "choice":
            grammar = LLMatcher.grammar_from_lark("start: " + " | ".join(map(_quoted, _choices(content))))
        else:
            grammar = grammar_from("grammar", text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"The {_NAMES[form]} cannot be followed: {error!s:.500}") from None
    return grammar


def _json_grammar(schema: str) -> str:
    # One way to write a value: a small model that may put white space anywhere may write nothing else.
    return LLMatcher.grammar_from_json_schema(
        schema,
        overrides={
            "whitespace_flexible": False,
            "item_separator": ", ",
            "key_separator": ": ",
            "lenient": False,
        },
    )


def _choices(content: Any) -> list[str]:
    if (
        not isinstance(content, list)
        or not content
        or not all(isinstance(one, str) and one for one in content)
    ):
        raise UserError("The list of choices must hold at least one text, and no empty one.")
    return content


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
