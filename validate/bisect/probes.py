"""The probe points of a graph: which of its values stand for which values inside the reference.

The canonical graphs name a node after the module that it comes from (`/layers.3/self_attn/q_proj/MatMul`), so the graph
itself says what its modules are: what one gives is the last value of its scope. What a function between modules
computes, such as a residual sum, is what the next module takes.
"""

from collections.abc import Iterator, Mapping

import onnx

from engines.session import Probe
from export.bundle import Bundle
from export.checkpoint.config import ModelConfig
from export.contract import GraphName
from export.models.families import family_of, module_of_scope
from plugins.registry import ALL_GATHER, OP_DOMAIN, ROTARY

_MOVES_ONLY = {
    ALL_GATHER.name,
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Cast",
    "CastLike",
    "Identity",
    "Transpose",
}
"""Ops that compute nothing: a wrong value that they give was made by the op before them."""


class GraphProbes:
    """Looks up probes in a canonical graph."""

    def __init__(self, graph: onnx.GraphProto, config: ModelConfig) -> None:
        self._family = family_of(config.model_type)
        self._producers: dict[str, onnx.NodeProto] = {
            name: node for node in graph.node for name in node.output
        }
        self._constants = {initializer.name for initializer in graph.initializer}
        for node in graph.node:  # in topological order: what is made of constants alone is constant
            if all(name in self._constants for name in node.input):
                self._constants.update(node.output)
        self._nodes: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            piece = _scope(node).partition("/")[0]
            if piece.partition(".")[0] in self._family.modules:
                self._nodes.setdefault(piece, []).append(node)

    def borders(self) -> list[Probe]:
        """What each piece gives, in order."""
        return [self._border(piece) for piece in self._nodes]

    def inside(self, piece: str) -> list[Probe]:
        """The modules and ops of one piece in the order in which they run; empty where it has none of its own."""
        modules, seen, found = self._modules(piece), set(), list[Probe]()
        for node in self._nodes.get(piece, ()):
            scope = _scope(node)
            if node.op_type == ROTARY.name:
                found += [
                    self._probe(scope, f"{self._reference(piece)}:{name}", value)
                    for name, value in zip(ROTARY.outputs, node.output, strict=True)
                ]
            elif scope in modules and scope not in seen:
                seen.add(scope)
                found += self._taken(piece, scope, modules)
                found.append(self._given(piece, scope))
        border = self._border(piece) if found else None
        return [*found, border] if border and border.node != found[-1].node else found

    def _border(self, piece: str) -> Probe:
        """Where a piece is a method of the whole model: what its last module gives, or what the next piece takes."""
        value = self._nodes[piece][-1].output[0]
        if self._reference(piece):
            return self._probe(piece, f"{self._reference(piece)}:out", value)
        scope = _scope(self._maker(value))
        if scope in self._modules(piece):
            return self._probe(piece, f"{self._reference(scope)}:out", value)
        pieces = list(self._nodes)
        if piece == pieces[-1]:  # what ranks do with what its last module gave
            return self._probe(piece, f"{self._reference(self._modules(piece)[-1])}:out", value)
        following = pieces[pieces.index(piece) + 1]
        return self._probe(piece, f"{self._reference(self._modules(following)[0])}:in", value)

    def _given(self, piece: str, module: str) -> Probe:
        node = [node for node in self._nodes[piece] if _scope(node) == module][-1]
        return self._probe(module, f"{self._reference(module)}:out", node.output[0])

    def _taken(self, piece: str, module: str, modules: list[str]) -> Iterator[Probe]:
        """What a function of this piece computed for a module."""
        nodes = [node for node in self._nodes[piece] if _scope(node) == module]
        first = (node.input[0] for node in nodes if node.input and node.input[0] not in self._constants)
        value: str = next(first, "")  # "" where a table is looked up
        maker = self._maker(value) if value in self._producers else None
        if maker is not None and _scope(maker).partition("/")[0] == piece and _scope(maker) not in modules:
            # Our op's own output rather than the reshaped one: an engine whose op is a plugin has that value alone.
            own = maker.output[0] if maker.domain == OP_DOMAIN else value
            yield self._probe(_scope(maker), f"{self._reference(module)}:in", own)

    def _modules(self, piece: str) -> list[str]:
        """Scopes of the piece that have no scope inside: modules that hold no other."""
        scopes = list(dict.fromkeys(_scope(node) for node in self._nodes.get(piece, ())))
        return [
            scope
            for scope in scopes
            if scope != piece and not any(other.startswith(f"{scope}/") for other in scopes)
        ]

    def _reference(self, scope: str) -> str:
        """The module of the reference behind a scope; "" where it is the whole model."""
        piece, _, path = scope.partition("/")
        parts = (module_of_scope(self._family, piece), path.replace("/", "."))
        return ".".join(part for part in parts if part)

    def _maker(self, value: str) -> onnx.NodeProto:
        node = self._producers[value]
        while node.op_type in _MOVES_ONLY and node.input[0] in self._producers:
            node = self._producers[node.input[0]]
        return node

    def _probe(self, scope: str, reference: str, value: str) -> Probe:
        node = self._maker(value)
        return Probe(scope, reference, value, node.name, node.op_type)


def _scope(node: onnx.NodeProto) -> str:
    return node.name.removeprefix("/").rpartition("/")[0]


def canonical_graphs(bundle: Bundle) -> Mapping[GraphName, onnx.GraphProto]:
    """Vision encoder and decoder of a bundle without their weights; the stages of a decoder as one graph again."""
    graphs = {
        name: onnx.load(bundle.graph(name), load_external_data=False).graph for name in bundle.graph_names
    }
    decoder = onnx.GraphProto()
    for stage in bundle.stages:
        decoder.MergeFrom(graphs[stage.graph])
    return {"vision": graphs["vision"], "decoder": decoder}
