"""Who says what the values inside a model must be: the reference itself, or what it once said, kept in a golden set?

The reference's values would fill gigabytes for a large model. A golden set keeps a sketch of each: every token's
vector projected on 64 fixed random directions, which keeps lengths, and so relative errors, to about a tenth.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from export.processor.processor import ModelInputs
from validate.bisect.probes import GraphName, Tap, Values
from validate.records.metrics import compare_tensors
from validate.records.records import ExpectedPrompt, reading

if TYPE_CHECKING:  # the oracle needs torch, this module does not
    from validate.reference.high_precision import Oracle

Stage = Literal["vision", "prefill", "decode"]
GRAPH_OF: Mapping[Stage, GraphName] = {"vision": "vision", "prefill": "decoder", "decode": "decoder"}

Array = npt.NDArray[Any]
SKETCH_SIZE = 64
"""Directions of a sketch: the error of an estimated length is about 1 / sqrt(2 * 64), 9 percent."""


@dataclass(frozen=True, eq=False)
class Expected:
    """One value as it must be, seen through the witness's eyes, and how far rounding may carry it."""

    values: Array  # [tokens, C], or [tokens, SKETCH_SIZE]
    noise: float
    """Error of the worst token when the reference computes in the engine's dtype."""


@dataclass(frozen=True)
class Question:
    """What to look at in one stage of a prompt. The caches are always answered for as well, in the decoder."""

    stage: Stage
    taps: tuple[Tap, ...]


class Witness(Protocol):
    """Knows the values of one prompt."""

    def ask(
        self, row: int, prompt: ModelInputs, expected: ExpectedPrompt, questions: Sequence[Question]
    ) -> list[Mapping[str, Expected]]:
        """For each question the values of the stage's tokens by `Tap.reference`, and `present_*` for the caches.

        Args: row: the prompt's place in its case.
        """
        ...

    def look(self, values: Array) -> Array:
        """An engine's values [tokens, C] as this witness sees them."""
        ...


class Reference(Protocol):
    """An oracle that is in memory only between `load` and `drop`."""

    def load(self) -> "Oracle": ...

    def drop(self) -> None: ...


class OracleWitness:
    """Asks the reference, one precision above the engine and in the engine's dtype, and drops it again."""

    def __init__(
        self,
        reference: Reference,
        dtypes: tuple[str, str],
        look: Callable[[Array], Array] = lambda values: values,
    ) -> None:
        """Args: dtypes: the oracle's and the engine's. look: how values are kept, whole or as sketches."""
        self._reference = reference
        self._dtypes = dtypes
        self.look = look

    def ask(
        self, row: int, prompt: ModelInputs, expected: ExpectedPrompt, questions: Sequence[Question]
    ) -> list[Mapping[str, Expected]]:
        """See `Witness`."""
        del row
        oracle = self._reference.load()
        exact, rounded = (self._testify(oracle, dtype, prompt, expected, questions) for dtype in self._dtypes)
        self._reference.drop()
        return [
            {
                name: Expected(values, compare_tensors(other[name], values).worst_token_error)
                for name, values in one.items()
            }
            for one, other in zip(exact, rounded, strict=True)
        ]

    def _testify(
        self,
        oracle: "Oracle",
        dtype: str,
        prompt: ModelInputs,
        expected: ExpectedPrompt,
        questions: Sequence[Question],
    ) -> list[Values]:
        answers = []
        whole: dict[frozenset[str], Values] = {}  # prefill and decode are rows of one call
        for question in questions:
            asked = frozenset(tap.reference for tap in question.taps)
            if question.stage == "vision":
                answers.append(self._kept(oracle.vision_taps(prompt, asked, dtype), asked))
                continue
            if asked not in whole:
                embeds = expected.answer.visual_embeds
                taps = oracle.decoder_taps(prompt, expected.continuation, embeds, asked, dtype)
                whole[asked] = self._kept(taps, asked)
            rows = rows_of(question.stage, prompt, expected)
            answers.append({name: values[rows] for name, values in whole[asked].items()})
        return answers

    def _kept(self, taps: Values, asked: frozenset[str]) -> Values:
        return {
            name: self.look(values)
            for name, values in taps.items()
            if name in asked or name.startswith("present_")
        }


class RecordedWitness:
    """What a golden set keeps of one case."""

    def __init__(self, directory: Path, case: str) -> None:
        self._path = sketches_path(directory, case)

    def ask(
        self, row: int, prompt: ModelInputs, expected: ExpectedPrompt, questions: Sequence[Question]
    ) -> list[Mapping[str, Expected]]:
        """See `Witness`.

        Raises:
            UserError: the file cannot be read, or lacks a value.
        """
        del prompt, expected
        with reading(self._path), np.load(self._path) as arrays:
            return [self._answer(arrays, row, question) for question in questions]

    def look(self, values: Array) -> Array:
        """See `Witness`."""
        return sketch(values)

    def _answer(self, arrays: Any, row: int, question: Question) -> Mapping[str, Expected]:
        prefix = _key(row, question.stage, "")
        asked = {tap.reference for tap in question.taps}
        asked |= {
            name.removeprefix(prefix)
            for name in arrays.files
            if name.startswith(f"{prefix}present_") and not name.endswith(_NOISE)
        }
        return {
            name: Expected(arrays[prefix + name], float(arrays[prefix + name + _NOISE]))
            for name in sorted(asked)
        }


_NOISE = " noise"


def sketches_path(directory: Path, case: str) -> Path:
    return directory / f"{case}.taps.npz"


def write_sketches(
    directory: Path, case: str, answers: Sequence[tuple[int, Question, Mapping[str, Expected]]]
) -> None:
    """Keep what an `OracleWitness` that looks through `sketch` said of a case: (row, question, answer)."""
    arrays: dict[str, Array] = {}
    for row, question, said in answers:
        for name, expected in said.items():
            key = _key(row, question.stage, name)
            arrays[key], arrays[key + _NOISE] = expected.values, np.array(expected.noise)
    path = sketches_path(directory, case)
    scratch = path.with_name(f".{path.name}.writing")
    with scratch.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    scratch.replace(path)


def _key(row: int, stage: Stage, name: str) -> str:
    return f"{row} {stage} {name}"


def rows_of(stage: Stage, prompt: ModelInputs, expected: ExpectedPrompt) -> slice:
    """Which tokens of prompt and continuation a decoder stage computes."""
    length = len(prompt.token_ids)
    return slice(0, length) if stage == "prefill" else slice(length, length + len(expected.continuation))


def sketch(values: Array) -> Array:
    """[tokens, C] to [tokens, SKETCH_SIZE] in float64: dot products with random signs, the same on every machine."""
    rows = values.astype(np.float64)
    with np.errstate(invalid="ignore"):  # what is not finite stays so
        return rows @ _signs(rows.shape[1])


@cache
def _signs(size: int) -> npt.NDArray[np.float64]:
    """[C, SKETCH_SIZE] of +-1/8. One raw word of a PCG64 stream a channel, which NumPy never changes."""
    words = np.random.PCG64(size).random_raw(size).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8)).reshape(size, SKETCH_SIZE)
    signs: npt.NDArray[np.float64] = (2.0 * bits - 1.0) / SKETCH_SIZE**0.5
    return signs
