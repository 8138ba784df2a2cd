"""What `qv-export inspect` found at a path: a bundle with its engines, a graph, or an engine."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from export.quantization.report import QuantizationReport, read_report
from export.records.manifest import MANIFEST_NAME
from qv_export.show.bundle import bundle_tables, graph_tables, quantization_table
from qv_export.show.engine import ShownEngine, engine_tables, shown_engine
from qv_export.show.graph import GraphFacts, graph_facts_from_file
from qv_export.show.tables import Table

if TYPE_CHECKING:
    from export.records.manifest import Manifest
    from export.records.verdicts import Verdict


@dataclass(frozen=True)
class Inspection:
    """What was found."""

    path: Path
    kind: Literal["bundle", "graph", "engine"]
    manifest: "Manifest | None"
    graphs: tuple[GraphFacts, ...]
    """Of an engine: those that it was built from, where its bundle is around it."""
    engines: tuple[ShownEngine, ...]
    verdicts: "tuple[Verdict, ...]" = ()
    """Of any engine, as the bundle keeps them."""
    quantization: QuantizationReport | None = None
    """What the export changed by quantizing; None: nothing."""

    def tables(self) -> list[Table]:
        """For a person, in order."""
        if self.kind == "engine":
            return engine_tables(self.engines[0])
        tables = [table for facts in self.graphs for table in graph_tables(facts)]
        if self.manifest is None:
            return tables
        changes = [] if self.quantization is None else [quantization_table(self.quantization)]
        return [*bundle_tables(self.manifest, self.engines, self.verdicts), *changes, *tables]

    def to_json(self) -> dict[str, Any]:
        """For a machine. A bundle lists its engines without their layers: inspect one for those."""
        if self.kind == "engine":
            return {"engine": self.engines[0].to_json()}
        graphs = {"graphs": [asdict(facts) for facts in self.graphs]}
        if self.manifest is None:
            return graphs
        engines = [engine.to_json() for engine in self.engines]
        for engine in engines:
            del engine["facts"]
        return {
            "manifest": asdict(self.manifest),
            **graphs,
            "engines": engines,
            "verdicts": [asdict(one) for one in self.verdicts],
            "quantization": None if self.quantization is None else asdict(self.quantization),
        }


def inspect_path(path: Path) -> Inspection:
    """Look at a bundle, a graph or an engine.

    Raises:
        UserError: it is none of them, or differs from what was recorded of it.
    """
    if (
        path.name == "engine.json"
        or path.suffix == ".engine"
        or (path.name == MANIFEST_NAME and path.is_file())
    ):
        path = path.parent
    if (path / "engine.json").is_file():
        return _inspect_engine(path)
    if path.is_dir():
        return _inspect_bundle(path)
    return Inspection(path, "graph", None, (graph_facts_from_file(path),), ())


def _inspect_engine(directory: Path) -> Inspection:
    engine = shown_engine(directory)
    bundle = directory.resolve().parents[1]
    paths = [bundle / f"{graph}.onnx" for graph in engine.record.facts]
    graphs = tuple(graph_facts_from_file(path) for path in paths if path.is_file())
    return Inspection(directory, "engine", None, graphs, (engine,))


def _inspect_bundle(directory: Path) -> Inspection:
    from export.bundle import open_bundle
    from export.records.engine_record import EngineRecord, engine_records

    bundle = open_bundle(directory)
    graphs = tuple(graph_facts_from_file(bundle.graph(name)) for name in bundle.graph_names)
    engines = tuple(
        shown_engine(bundle.engine_directory(name))
        for name, record in engine_records(directory).items()
        if isinstance(record, EngineRecord)
    )
    return Inspection(
        directory,
        "bundle",
        bundle.manifest,
        graphs,
        engines,
        tuple(bundle.all_verdicts()),
        read_report(directory),
    )
