"""Finds where an engine first goes wrong.

Two looks: at the borders between blocks, which gives the curve of error by depth, then into the first block whose
output carries more error than its noise allows. The op named there is the first whose own output does. Noise is
measured at the same values, so what a sound op inherits from the ops before it is no fault of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engines.session import Probe, ProbeSession, Values
from export.checkpoint.config import ModelConfig
from export.contract import GraphName
from export.inputs import ModelInputs
from plugins.registry import CACHED_ATTENTION, QUANTIZED_CACHE_ATTENTION
from validate.bisect.expected import GRAPH_OF, Expected, ExpectedSource, Question, Stage, rows_of
from validate.bisect.probes import GraphProbes
from validate.cases.feeds import decode_call, prefill_call
from validate.records.metrics import compare_tensors
from validate.records.records import ExpectedPrompt

if TYPE_CHECKING:
    import onnx

HIGH_PRECISION_DTYPE = {"float32": "float64", "float16": "float32", "bfloat16": "float32"}
"""By the engine's dtype: the precision of the reference that it is measured against."""

ROUNDING_FLOOR = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Error of one value that no op is blamed for: a few units in the last place. A value that is only looked up or
rotated has almost no noise of its own, while two libraries' sines may differ in their last bit."""


@dataclass(frozen=True)
class ProbeError:
    """Error of one value against what it must be, worst token, and the noise there."""

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
    by_depth: tuple[ProbeError, ...]
    inside: tuple[ProbeError, ...]
    kv_cache: tuple[ProbeError, ...]
    """Keys and values of each layer; empty for the vision graph."""

    @property
    def culprit(self) -> ProbeError | None:
        """The first wrong value; inside a block where it has probes."""
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
    def first(self) -> tuple[Stage, ProbeError] | None:
        """Stage, block and op where the engine first goes wrong; None where nothing does on this prompt alone."""
        found = [(trace.stage, trace.culprit) for trace in self.traces]
        return next(((stage, culprit) for stage, culprit in found if culprit is not None), None)


class DivergenceSearch:
    """The search on one prompt. The source speaks before the engine opens: they are never in memory together.

    The decoder gets the reference's visual embeddings, so that an error of the vision graph is not found there again.
    """

    def __init__(
        self,
        probes: ProbeSession,
        source: ExpectedSource,
        config: ModelConfig,
        graphs: "Mapping[GraphName, onnx.GraphProto]",
        dtype: str,
        multiple: float,
    ) -> None:
        """Args: dtype: the engine's. graphs: canonical, whose names the probes have."""
        self._probes = probes
        self._source = source
        self._graphs = graphs
        self._dtype = dtype
        self._multiple = multiple
        self._config = config

    def search(self, case: str, row: int, prompt: ModelInputs, expected: ExpectedPrompt) -> Divergence:
        """Look at vision, prefill and decode in turn, and stop after the first wrong stage."""
        questions = boundary_questions(self._graphs, self._config, prompt)
        said = self._source.ask(row, prompt, expected, questions)
        traces: list[Trace] = []
        for question, answer in zip(questions, said, strict=True):
            values = self._engine_values(question, prompt, expected)
            by_depth = self._errors(question.probes, values, answer)
            wrong = next((error for error in by_depth if error.is_wrong), None)
            inside = () if wrong is None else self._inside(question.stage, wrong.place, row, prompt, expected)
            traces.append(Trace(question.stage, by_depth, inside, self._cache_errors(values, answer)))
            if traces[-1].culprit is not None:
                break
        return Divergence(case, row, tuple(traces))

    def _inside(
        self, stage: Stage, place: str, row: int, prompt: ModelInputs, expected: ExpectedPrompt
    ) -> tuple[ProbeError, ...]:
        probes = GraphProbes(self._graphs[GRAPH_OF[stage]], self._config).inside(place)
        if not probes:
            return ()
        question = Question(stage, tuple(probes))
        [answer] = self._source.ask(row, prompt, expected, [question])
        return self._errors(question.probes, self._engine_values(question, prompt, expected), answer)

    def _engine_values(self, question: Question, prompt: ModelInputs, expected: ExpectedPrompt) -> Values:
        """The stage's tokens only; the engine's cache may be longer than what it holds."""
        if question.stage == "vision":
            return self._probes.vision(prompt.vision, question.probes)
        config, embeds, length = self._config, expected.answer.visual_embeds, len(prompt.token_ids)
        calls = [prefill_call([prompt], [embeds], config, [np.arange(length)])]
        if question.stage == "decode":
            forced = expected.continuation[:, None]
            calls += [decode_call(tokens, [prompt], step, config) for step, tokens in enumerate(forced)]
        rows = rows_of(question.stage, prompt, expected)
        return {name: values[rows] for name, values in self._probes.decoder(calls, question.probes).items()}

    def _errors(
        self, probes: Sequence[Probe], actual: Values, expected: Mapping[str, Expected]
    ) -> tuple[ProbeError, ...]:
        return tuple(self._error(probe, actual[probe.value], expected[probe.reference]) for probe in probes)

    def _cache_errors(self, actual: Values, expected: Mapping[str, Expected]) -> tuple[ProbeError, ...]:
        names = [name for name in actual if name.startswith("present_")]
        op = CACHED_ATTENTION if self._config.decoder.kv_cache is None else QUANTIZED_CACHE_ATTENTION
        probes = [Probe(name, name, name, name, op.name) for name in names]
        return self._errors(probes, actual, expected)

    def _error(self, probe: Probe, actual: npt.NDArray[np.float32], expected: Expected) -> ProbeError:
        num_nonfinite = int((~np.isfinite(actual)).sum())
        error = compare_tensors(self._source.look(actual), expected.values).worst_token_error
        limit = max(self._multiple * expected.noise, ROUNDING_FLOOR[self._dtype])
        return ProbeError(probe.scope, probe.node, probe.op_type, error, expected.noise, limit, num_nonfinite)


def boundary_questions(
    graphs: "Mapping[GraphName, onnx.GraphProto]", config: ModelConfig, prompt: ModelInputs
) -> list[Question]:
    """The borders between blocks, stage by stage; no vision without pictures."""
    stages: list[Stage] = ["prefill", "decode"]
    if prompt.grids:
        stages.insert(0, "vision")
    borders = {name: tuple(GraphProbes(graph, config).borders()) for name, graph in graphs.items()}
    return [Question(stage, borders[GRAPH_OF[stage]]) for stage in stages]


def all_questions(
    graphs: "Mapping[GraphName, onnx.GraphProto]", config: ModelConfig, prompt: ModelInputs
) -> list[Question]:
    """The borders and the inside of every block: what a search may come to ask."""
    found = {name: GraphProbes(graph, config) for name, graph in graphs.items()}
    return [
        Question(
            stage,
            (
                *borders,
                *(probe for border in borders for probe in found[GRAPH_OF[stage]].inside(border.scope)),
            ),
        )
        for stage, borders in (
            (question.stage, question.probes) for question in boundary_questions(graphs, config, prompt)
        )
    ]
