"""Tables of a bundle's manifest and of a graph."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.wording import size_text
from qv_export.show.tables import Table, numbered_families

if TYPE_CHECKING:
    from export.quantization.report import QuantizationReport
    from export.records.manifest import Manifest
    from export.records.verdicts import Verdict
    from qv_export.show.engine import ShownEngine
    from qv_export.show.graph import FunctionFacts, GraphFacts, GraphTensor

_NUM_WORST = 5
"""Products that are listed by their error."""


def bundle_tables(
    manifest: "Manifest", engines: "Sequence[ShownEngine]", verdicts: "Sequence[Verdict]"
) -> list[Table]:
    """What the manifest says, the engines that were built, and what was said of them."""
    weights_bytes = sum(record.bytes for record in manifest.weights)
    rows = (
        ("source", f"{manifest.source.name} (config sha256 {manifest.source.config_sha256[:16]})"),
        ("dtype", manifest.dtype),
        *((f"{part} layers", words) for part, words in manifest.precision.items()),
        ("key", manifest.key),
        ("weights", f"{len(manifest.weights)} files, {size_text(weights_bytes)}, {manifest.weights_mode}"),
        ("created", manifest.created),
        ("qv-export", manifest.qv_export_version),
        *manifest.tools.items(),
    )
    tables = [Table("Bundle", ("what", "value"), rows)]
    if engines:
        built = tuple(
            (engine.record.key, engine.record.target, engine.architectures, engine.size_text, engine.state)
            for engine in engines
        )
        tables.append(Table("Engines", ("key", "target", "architectures", "size", "state"), built))
    if verdicts:
        tables.append(verdict_table(verdicts))
    else:
        tables.append(Table("Validations", ("result",), (("not validated",),)))
    return tables


def quantization_table(report: "QuantizationReport") -> Table:
    """The products that quantizing changed most."""
    rows = tuple(
        (
            product.name.removesuffix(".weight"),
            product.scheme,
            f"{product.error:.1%}" + ("" if product.is_seen else " of the weight"),
            "kept as it was" if product.is_kept else "",
        )
        for product in report.worst[:_NUM_WORST]
    )
    return Table(f"Quantized: {report.sentence()}", ("product", "way", "error", ""), rows)


def verdict_table(verdicts: "Sequence[Verdict]") -> Table:
    """What validations said, engine by engine."""
    rows = tuple(
        (
            verdict.engine_key,
            verdict.target,
            verdict.level,
            "pass" if verdict.passed else f"FAIL: {verdict.num_failed} gates",
            f"{verdict.num_gates}, {verdict.gate_kind}" + (", smaller shapes" if verdict.is_narrow else ""),
            verdict.created,
        )
        for verdict in verdicts
    )
    return Table("Validations", ("key", "target", "level", "result", "gates", "when"), rows)


def graph_tables(facts: "GraphFacts") -> list[Table]:
    """Inputs and outputs, operators, weights."""
    opsets = ", ".join(f"{domain} {number}" for domain, number in facts.opsets.items())
    title = f"{Path(facts.path).name}: {facts.producer or 'unknown producer'}; opsets {opsets}; IR {facts.ir_version}"
    functions = {function.name: function for function in facts.functions}
    operators = tuple(
        (name, str(count), body_text(functions[name]) if name in functions else "")
        for name, count in facts.operators.items()
    )
    weights = tuple(
        (kind.dtype, str(kind.num_tensors), f"{kind.num_values:,}", size_text(kind.bytes))
        for kind in facts.weights
    )
    files = facts.weight_files
    place = "" if not files else f", in {files[0]}" if len(files) == 1 else f", in {len(files)} files"
    return [
        Table(
            title,
            ("", "name", "dtype", "shape", "what"),
            (*graph_tensor_rows("in", facts.inputs), *graph_tensor_rows("out", facts.outputs)),
        ),
        Table("Operators", ("operator", "count", "body"), operators),
        Table(f"Weights{place}", ("dtype", "tensors", "values", "size"), weights),
    ]


def body_text(function: "FunctionFacts") -> str:
    """Who computes a call of the function."""
    body = f"function of {function.num_nodes} nodes"
    return f"plugin where TensorRT has one, else {body}" if function.takes_plugin else body


def graph_tensor_rows(direction: str, tensors: "Iterable[GraphTensor]") -> list[tuple[str, ...]]:
    """One row a tensor, numbered ones of one kind together."""
    families = numbered_families(
        tensors, lambda tensor: tensor.name, lambda tensor: (tensor.dtype, tensor.shape)
    )
    return [
        (direction, name, tensor.dtype, f"[{', '.join(map(str, tensor.shape))}]", tensor.doc)
        for name, tensor in families
    ]
