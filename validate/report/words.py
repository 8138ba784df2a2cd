"""What was asked and what was answered, as text: the part of a report that anybody can judge."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from validate.cases.prompts import PreparedCase
from validate.report.report import Report

_MAX_PROMPT_CHARACTERS = 400
_PADS = re.compile(r"(?:<\|(image|video)_pad\|>)+")
_TURNS = re.compile(r"<\|(?:im_start|im_end|vision_start|vision_end|endoftext)\|>")


@dataclass(frozen=True)
class Sample:
    """One prompt of a case."""

    prompt: str
    reference: str
    """The reference's greedy answer, as far as it was decoded."""
    engine: str
    """What the engine finds likeliest at each step of that answer."""

    @property
    def same(self) -> bool:
        """Whether both say the same."""
        return self.reference == self.engine


def samples_of_cases(
    report: Report, cases: Sequence[PreparedCase], tokenizer: Tokenizer, ends: Collection[int]
) -> dict[str, list[Sample]]:
    """The samples of every case that was measured, by its name.

    Args:
        report: holds what was chosen at each step.
        cases: the same cases, with their tokens.
        tokenizer: the bundle's.
        ends: ids of tokens that end an answer.
    """
    measured = {case.name: case.measured for case in report.cases if case.measured is not None}
    return {
        case.name: [
            Sample(
                _prompt_text(tokenizer.decode(prompt.token_ids.tolist(), skip_special_tokens=False)),
                _answer_text(tokenizer, reference, ends),
                _answer_text(tokenizer, engine, ends),
            )
            for prompt, reference, engine in zip(
                case.prompts, measured[case.name].expected, measured[case.name].likeliest, strict=False
            )
        ]
        for case in cases
        if case.name in measured
    }


def _answer_text(tokenizer: Tokenizer, token_ids: Sequence[int], ends: Collection[int]) -> str:
    """Up to the first end: what comes after it was forced, and nobody would have read it."""
    stop = next((i for i, token_id in enumerate(token_ids) if token_id in ends), len(token_ids))
    return _printable(tokenizer.decode(list(token_ids[:stop]), skip_special_tokens=False))


def _printable(text: str) -> str:
    """Control characters as a dot: a page and its reader's clipboard have no use for them."""
    return "".join(char if char.isprintable() or char == "\n" else "·" for char in text)


def _prompt_text(text: str) -> str:
    """A person's view: an image is one word, the marks of turns are spaces."""
    shown = _PADS.sub(lambda match: f"[{match[1]}]", text)
    shown = _printable(" ".join(_TURNS.sub(" ", shown).split()))
    if len(shown) <= _MAX_PROMPT_CHARACTERS:
        return shown
    half = _MAX_PROMPT_CHARACTERS // 2
    return f"{shown[:half]} … {shown[-half:]}"
