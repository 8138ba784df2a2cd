"""`qv-export inspect`: what is in this bundle or graph?"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qv_export.console import print_json, print_table, size_text

if TYPE_CHECKING:
    from export.manifest import Manifest
    from qv_export.graph_facts import GraphFacts, TensorFacts


@click.command(short_help="Show what a bundle or a graph holds.")
@click.argument("path", metavar="BUNDLE|GRAPH", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(path: Path, as_json: bool) -> None:
    """Show what a bundle or an ONNX graph holds: inputs, outputs, operators, weights, versions.

    A bundle is compared with its manifest on the way. Weights are not read.
    """
    from export.bundle import open_bundle
    from qv_export.graph_facts import graph_facts_from_file

    bundle = open_bundle(path) if path.is_dir() else None
    graph_paths = [bundle.vision_graph, bundle.decoder_graph] if bundle else [path]
    graphs = [graph_facts_from_file(graph_path) for graph_path in graph_paths]
    if as_json:
        manifest: Any = {"manifest": asdict(bundle.manifest)} if bundle else {}
        print_json({**manifest, "graphs": [asdict(facts) for facts in graphs]})
        return
    if bundle:
        show_manifest(bundle.manifest)
    for facts in graphs:
        show_graph(facts)


def show_manifest(manifest: "Manifest") -> None:
    weights_bytes = sum(record.bytes for record in manifest.weights)
    rows = [
        ("source", f"{manifest.source.name} (config sha256 {manifest.source.config_sha256[:16]})"),
        ("dtype", manifest.dtype),
        ("key", manifest.key),
        ("weights", f"{len(manifest.weights)} files, {size_text(weights_bytes)}, {manifest.weights_mode}"),
        ("verdict", verdict_text(manifest)),
        ("created", manifest.created),
        ("qv-export", manifest.qv_export_version),
        *manifest.tools.items(),
    ]
    print_table("Bundle", ("what", "value"), rows)


def verdict_text(manifest: "Manifest") -> str:
    if manifest.verdict is None:
        return "not validated"
    return ", ".join(f"{name} {value}" for name, value in manifest.verdict.items())


def show_graph(facts: "GraphFacts") -> None:
    opsets = ", ".join(f"{domain} {number}" for domain, number in facts.opsets.items())
    title = f"{Path(facts.path).name}: {facts.producer or 'unknown producer'}; opsets {opsets}; IR {facts.ir_version}"
    rows = [*tensor_rows("in", facts.inputs), *tensor_rows("out", facts.outputs)]
    print_table(title, ("", "name", "dtype", "shape", "what"), rows)
    functions = {function.name: function for function in facts.functions}
    operators = [
        (name, str(count), f"function of {functions[name].num_nodes} nodes" if name in functions else "")
        for name, count in facts.operators.items()
    ]
    print_table("Operators", ("operator", "count", "body"), operators)
    weights = [
        (kind.dtype, str(kind.num_tensors), f"{kind.num_values:,}", size_text(kind.bytes))
        for kind in facts.weights
    ]
    print_table("Weights", ("dtype", "tensors", "values", "size"), weights)
    if facts.weight_files:
        click.echo("in " + ", ".join(facts.weight_files))


def tensor_rows(direction: str, tensors: Iterable["TensorFacts"]) -> list[tuple[str, ...]]:
    """One row a tensor; `past_key.0`, `past_key.1`, ... share one, as 72B has 320 of them."""
    families: dict[tuple[str, ...], list[TensorFacts]] = {}
    for tensor in tensors:
        stem, dot, number = tensor.name.rpartition(".")
        shape = f"[{', '.join(map(str, tensor.shape))}]"
        name = stem + dot if number.isdigit() else tensor.name
        families.setdefault((name, tensor.dtype, shape), []).append(tensor)
    return [
        (direction, family_name(family), dtype, shape, family[0].doc)
        for (_, dtype, shape), family in families.items()
    ]


def family_name(family: Sequence["TensorFacts"]) -> str:
    last = "" if len(family) == 1 else f" .. {family[-1].name.rpartition('.')[2]}"
    return family[0].name + last
