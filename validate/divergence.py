"""Where does an engine first go wrong?

Two looks: at the borders between blocks, which gives the curve of error by depth, then into the first block whose
output carries more error than its noise allows. The op named there is the first whose own output does. Noise is
measured at the same values, so what a sound op inherits from the ops before it is no fault of its own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from engines.session import DecoderInputs
from export.config import ModelConfig
from export.processor.processor import ModelInputs
from validate.answers import ExpectedPrompt
from validate.feeds import decode_call, prefill_call
from validate.metrics import compare_tensors
from validate.taps import GraphName, Tap, TapSession, Values, boundary_taps, inner_taps

if TYPE_CHECKING:  # the oracle needs torch, this module does not
    import onnx

    from validate.oracle import Oracle

Stage = Literal["vision", "prefill", "decode"]

ORACLE_DTYPE = {"float32": "float64", "float16": "float32", "bfloat16": "float32"}
"""By the engine's dtype: the precision of the reference that it is measured against."""

ROUNDING_FLOOR = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Error of one value that no op is blamed for: a few units in the last place. A value that is only looked up or
rotated has almost no noise of its own, while two libraries' sines may differ in their last bit."""


@dataclass(frozen=True)
class TapError:
    """Error of one value against the oracle's, worst token, and the noise there."""

    place: str
    node: str
    op_type: str
    error: float
    noise: float
    limit: float
    num_nonfinite: int

    @property
    def ratio(self) -> float:
        return self.error / self.limit

    @property
    def is_wrong(self) -> bool:
        return self.num_nonfinite > 0 or self.error > self.limit


@dataclass(frozen=True)
class Trace:
    """One stage of one prompt by depth, and the inside of the first wrong block."""

    stage: Stage
    by_depth: tuple[TapError, ...]
    inside: tuple[TapError, ...]
    kv_cache: tuple[TapError, ...]
    """Keys and values of each layer; empty for the vision graph."""

    @property
    def culprit(self) -> TapError | None:
        """The first wrong value; inside a block where it has taps."""
        wrong = [error for error in (*self.inside, *self.by_depth) if error.is_wrong]
        return wrong[0] if wrong else None


@dataclass(frozen=True)
class Divergence:
    """What the search found."""

    case: str
    prompt: int
    traces: tuple[Trace, ...]
    """Stages in order, up to and with the first wrong one."""

    @property
    def first(self) -> tuple[Stage, TapError] | None:
        """Stage, block and op where the engine first goes wrong; None where nothing does on this prompt alone."""
        found = [(trace.stage, trace.culprit) for trace in self.traces]
        return next(((stage, culprit) for stage, culprit in found if culprit is not None), None)


@dataclass(frozen=True)
class _Stage:
    """How to look at one stage: engine and oracle, by tap."""

    name: Stage
    graph: GraphName
    engine: Callable[[Sequence[str]], Values]
    oracle: Callable[["Oracle", Sequence[Tap], str], Values]


class Reference(Protocol):
    """An oracle that is in memory only between `load` and `drop`."""

    def load(self) -> "Oracle": ...

    def drop(self) -> None: ...


class DivergenceSearch:
    """The search on one prompt. The oracle says its part first and is dropped before the engine opens.

    The decoder gets the oracle's visual embeddings, so that an error of the vision graph is not found there again.
    """

    def __init__(
        self,
        taps: TapSession,
        reference: Reference,
        config: ModelConfig,
        graphs: "Mapping[GraphName, onnx.GraphProto]",
        dtypes: tuple[str, str],
        multiple: float,
    ) -> None:
        """Args: dtypes: the engine's and the oracle's. graphs: canonical, whose names the taps have."""
        self._taps = taps
        self._reference = reference
        self._graphs = graphs
        self._dtype, self._oracle_dtype = dtypes
        self._multiple = multiple
        self._config = config

    def search(self, case: str, row: int, prompt: ModelInputs, expected: ExpectedPrompt) -> Divergence:
        """Look at vision, prefill and decode in turn, and stop after the first wrong stage."""
        stages = self._stages(prompt, expected)
        borders = {name: boundary_taps(graph, name, self._config) for name, graph in self._graphs.items()}
        said = self._ask_oracle((stage, borders[stage.graph]) for stage in stages)
        traces: list[Trace] = []
        for stage, pair in zip(stages, said, strict=True):
            traces.append(self._trace(stage, borders[stage.graph], pair))
            if traces[-1].culprit is not None:
                break
        return Divergence(case, row, tuple(traces))

    def _ask_oracle(self, questions: Iterable[tuple[_Stage, Sequence[Tap]]]) -> list[tuple[Values, Values]]:
        """What each stage's taps must be, and what the engine's dtype makes of them."""
        oracle = self._reference.load()
        dtypes = (self._oracle_dtype, self._dtype)
        said = []
        for stage, taps in questions:
            exact, rounded = (stage.oracle(oracle, taps, dtype) for dtype in dtypes)
            said.append((exact, rounded))
        self._reference.drop()
        return said

    def _stages(self, prompt: ModelInputs, expected: ExpectedPrompt) -> list[_Stage]:
        config, embeds = self._config, expected.answer.visual_embeds
        length, steps = len(prompt.token_ids), len(expected.continuation)
        everything = np.arange(length)
        prefill = prefill_call([prompt], [embeds], config, [everything])
        forced = expected.continuation[:, None]
        decode = [decode_call(forced[step], [prompt], step, config) for step in range(steps)]

        def engine_decoder(calls: Sequence[DecoderInputs], rows: slice) -> Callable[[Sequence[str]], Values]:
            def run(names: Sequence[str]) -> Values:
                return _cut(self._taps.decoder(calls, names), rows, length + steps)

            return run

        kept: dict[tuple[tuple[str, ...], str], Values] = {}

        def oracle_decoder(rows: slice) -> Callable[["Oracle", Sequence[Tap], str], Values]:
            def run(oracle: "Oracle", taps: Sequence[Tap], dtype: str) -> Values:
                key = (_modules(taps), dtype)
                if key not in kept:  # prefill and decode are rows of one call
                    kept[key] = oracle.decoder_taps(prompt, expected.continuation, embeds, *key)
                return _cut(kept[key], rows, length + steps)

            return run

        def engine_vision(names: Sequence[str]) -> Values:
            return self._taps.vision((prompt.patches, prompt.positions, prompt.cu_seqlens), names)

        def oracle_vision(oracle: "Oracle", taps: Sequence[Tap], dtype: str) -> Values:
            return oracle.vision_taps(prompt, _modules(taps), dtype)

        first, rest = slice(0, length), slice(length, length + steps)
        vision = [_Stage("vision", "vision", engine_vision, oracle_vision)] if prompt.grids else []
        return [
            *vision,
            _Stage("prefill", "decoder", engine_decoder([prefill], first), oracle_decoder(first)),
            _Stage("decode", "decoder", engine_decoder([prefill, *decode], rest), oracle_decoder(rest)),
        ]

    def _trace(self, stage: _Stage, taps: Sequence[Tap], said: tuple[Values, Values]) -> Trace:
        by_depth, kv_cache = self._errors(stage, taps, said)
        wrong = next((error for error in by_depth if error.is_wrong), None)
        inside: tuple[TapError, ...] = ()
        if wrong and (inner := inner_taps(self._graphs[stage.graph], wrong.place)):
            inside, _ = self._errors(stage, inner, self._ask_oracle([(stage, inner)])[0])
        return Trace(stage.name, by_depth, inside, kv_cache)

    def _errors(
        self, stage: _Stage, taps: Sequence[Tap], said: tuple[Values, Values]
    ) -> tuple[tuple[TapError, ...], tuple[TapError, ...]]:
        """Errors at the taps, and of the caches, which every decoder call yields."""
        expected, rounded = said
        actual = stage.engine([tap.value for tap in taps])
        errors = tuple(
            self._error(tap, actual[tap.value], expected[tap.reference], rounded[tap.reference])
            for tap in taps
        )
        caches = [name for name in actual if name.startswith("present_")]
        kv_cache = tuple(
            self._error(
                Tap(name, name, name, name, "QvCachedAttention"), actual[name], expected[name], rounded[name]
            )
            for name in caches
        )
        return errors, kv_cache

    def _error(
        self,
        tap: Tap,
        actual: npt.NDArray[np.float32],
        expected: npt.NDArray[np.float32],
        rounded: npt.NDArray[np.float32],
    ) -> TapError:
        metrics = compare_tensors(actual.reshape(expected.shape), expected)
        noise = compare_tensors(rounded, expected).worst_token_error
        limit = self._multiple * max(noise, ROUNDING_FLOOR[self._dtype] / self._multiple)
        return TapError(
            tap.scope,
            tap.node,
            tap.op_type,
            metrics.worst_token_error,
            noise,
            limit,
            metrics.num_nonfinite,
        )


def _modules(taps: Sequence[Tap]) -> tuple[str, ...]:
    """Names of the reference modules behind taps; what is no module, such as a rotation, the oracle derives."""
    return tuple(sorted({tap.reference.partition(":")[0] for tap in taps}))


def _cut(values: Values, rows: slice, num_tokens: int) -> Values:
    """The stage's tokens; the engine's cache may be longer than what it holds."""
    return {
        name: value[:num_tokens][rows] if name.startswith("present_") or len(value) == num_tokens else value
        for name, value in values.items()
    }
