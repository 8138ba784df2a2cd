"""Expected values inside a model: of the reference itself, or as it once said, kept in a golden set.

The reference's values would fill gigabytes for a large model. A golden set keeps a projection of each: every token's
vector projected on 64 fixed random directions, which keeps lengths, and so relative errors, to about a tenth.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from engines.session import Probe, Values
from export.contract import GraphName
from export.files.atomic import replacing_file
from export.inputs import ModelInputs
from validate.records.metrics import compare_tensors
from validate.records.records import ExpectedPrompt, reading

if TYPE_CHECKING:  # the high_precision needs torch, this module does not
    from validate.reference.high_precision import HighPrecisionReference

Stage = Literal["vision", "prefill", "decode"]
GRAPH_OF: Mapping[Stage, GraphName] = {"vision": "vision", "prefill": "decoder", "decode": "decoder"}

Array = npt.NDArray[Any]
PROJECTION_SIZE = 64
"""Directions of a projection: the error of an estimated length is about 1 / sqrt(2 * 64), 9 percent."""


@dataclass(frozen=True, eq=False)
class Expected:
    """One value as it must be, seen through the source's eyes, and how far rounding may carry it."""

    values: Array  # [tokens, C], or [tokens, PROJECTION_SIZE]
    noise: float
    """Error of the worst token when the reference computes in the engine's dtype."""


@dataclass(frozen=True)
class Question:
    """What to look at in one stage of a prompt. The caches are always answered for as well, in the decoder."""

    stage: Stage
    probes: tuple[Probe, ...]


class ExpectedSource(Protocol):
    """Knows the values of one prompt."""

    def ask(
        self, row: int, prompt: ModelInputs, expected: ExpectedPrompt, questions: Sequence[Question]
    ) -> list[Mapping[str, Expected]]:
        """For each question the values of the stage's tokens by `Probe.reference`, and `present_*` for the caches.

        Args: row: the prompt's place in its case.
        """
        ...

    def look(self, values: Array) -> Array:
        """An engine's values [tokens, C] as this source sees them."""
        ...


class Reference(Protocol):
    """An high_precision that is in memory only between `load` and `drop`."""

    def load(self) -> "HighPrecisionReference": ...

    def drop(self) -> None: ...


class ReferenceValues:
    """Asks the reference, one precision above the engine and in the engine's dtype, and drops it again."""

    def __init__(
        self,
        reference: Reference,
        dtypes: tuple[str, str],
        look: Callable[[Array], Array] = lambda values: values,
    ) -> None:
        """Args: dtypes: the high_precision's and the engine's. look: how values are kept, whole or as projections."""
        self._reference = reference
        self._dtypes = dtypes
        self.look = look

    def ask(
        self, row: int, prompt: ModelInputs, expected: ExpectedPrompt, questions: Sequence[Question]
    ) -> list[Mapping[str, Expected]]:
        """See `ExpectedSource`."""
        del row
        high_precision = self._reference.load()
        exact, rounded = (
            self._values_in(high_precision, dtype, prompt, expected, questions) for dtype in self._dtypes
        )
        self._reference.drop()
        return [
            {
                name: Expected(values, compare_tensors(other[name], values).worst_token_error)
                for name, values in one.items()
            }
            for one, other in zip(exact, rounded, strict=True)
        ]

    def _values_in(
        self,
        high_precision: "HighPrecisionReference",
        dtype: str,
        prompt: ModelInputs,
        expected: ExpectedPrompt,
        questions: Sequence[Question],
    ) -> list[Values]:
        answers = []
        whole: dict[frozenset[str], Values] = {}  # prefill and decode are rows of one call
        for question in questions:
            asked = frozenset(probe.reference for probe in question.probes)
            if question.stage == "vision":
                answers.append(self._kept(high_precision.vision_probes(prompt, asked, dtype), asked))
                continue
            if asked not in whole:
                embeds = expected.answer.visual_embeds
                probes = high_precision.decoder_probes(prompt, expected.continuation, embeds, asked, dtype)
                whole[asked] = self._kept(probes, asked)
            rows = rows_of(question.stage, prompt, expected)
            answers.append({name: values[rows] for name, values in whole[asked].items()})
        return answers

    def _kept(self, probes: Values, asked: frozenset[str]) -> Values:
        return {
            name: self.look(values)
            for name, values in probes.items()
            if name in asked or name.startswith("present_")
        }


class RecordedValues:
    """What a golden set keeps of one case."""

    def __init__(self, directory: Path, case: str) -> None:
        self._path = projections_path(directory, case)

    def ask(
        self, row: int, prompt: ModelInputs, expected: ExpectedPrompt, questions: Sequence[Question]
    ) -> list[Mapping[str, Expected]]:
        """See `ExpectedSource`.

        Raises:
            UserError: the file cannot be read, or lacks a value.
        """
        del prompt, expected
        with reading(self._path), np.load(self._path) as arrays:
            return [self._answer(arrays, row, question) for question in questions]

    def look(self, values: Array) -> Array:
        """See `ExpectedSource`."""
        return projection(values)

    def _answer(self, arrays: Any, row: int, question: Question) -> Mapping[str, Expected]:
        prefix = _key(row, question.stage, "")
        asked = {probe.reference for probe in question.probes}
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


def projections_path(directory: Path, case: str) -> Path:
    return directory / f"{case}.taps.npz"


def write_projections(
    directory: Path, case: str, answers: Sequence[tuple[int, Question, Mapping[str, Expected]]]
) -> None:
    """Keep what an `ReferenceValues` that looks through `projection` said of a case: (row, question, answer)."""
    arrays: dict[str, Array] = {}
    for row, question, said in answers:
        for name, expected in said.items():
            key = _key(row, question.stage, name)
            arrays[key], arrays[key + _NOISE] = expected.values, np.array(expected.noise)
    with replacing_file(projections_path(directory, case)) as file:
        np.savez(file, allow_pickle=False, **arrays)


def _key(row: int, stage: Stage, name: str) -> str:
    return f"{row} {stage} {name}"


def rows_of(stage: Stage, prompt: ModelInputs, expected: ExpectedPrompt) -> slice:
    """Which tokens of prompt and continuation a decoder stage computes."""
    length = len(prompt.token_ids)
    return slice(0, length) if stage == "prefill" else slice(length, length + len(expected.continuation))


def projection(values: Array) -> Array:
    """[tokens, C] to [tokens, PROJECTION_SIZE], float64: dot products with random signs, alike on every machine."""
    rows = values.astype(np.float64)
    with np.errstate(invalid="ignore"):  # what is not finite stays so
        return rows @ _signs(rows.shape[1])


@cache
def _signs(size: int) -> npt.NDArray[np.float64]:
    """[C, PROJECTION_SIZE] of +-1/8. One raw word of a PCG64 stream a channel, which NumPy never changes."""
    words = np.random.PCG64(size).random_raw(size).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8)).reshape(size, PROJECTION_SIZE)
    signs: npt.NDArray[np.float64] = (2.0 * bits - 1.0) / PROJECTION_SIZE**0.5
    return signs
