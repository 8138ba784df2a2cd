"""Tables of a built engine: what it takes, who computes what, and whether it is still up to date."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import UserError
from export.wording import size_text
from qv_export.show.tables import Table, numbered_families

if TYPE_CHECKING:
    from export.records.engine_record import EngineRecord

Row = tuple[str, ...]
Facts = Mapping[str, Any]

_TENSOR_COLUMNS = ("", "name", "dtype", "profile", "shape, or smallest .. typical .. largest")
_IMPLEMENTATIONS = {
    "plugin": "plugin",
    "native": "native layer of the library",
    "decomposed": "decomposed into standard layers",
}


@dataclass(frozen=True)
class ShownEngine:
    """An engine as `inspect` found it."""

    directory: Path
    record: "EngineRecord"
    stale: tuple[str, ...]
    """Why it would be built anew today; empty if it is up to date."""
    unknown: tuple[str, ...] = ()
    """What cannot be judged here, where the library is missing."""

    @property
    def architectures(self) -> str:
        return ", ".join(f"SM{sm}" for sm in self.record.sms) or "any CPU"

    @property
    def size_text(self) -> str:
        size = sum(file.bytes for file in self.record.files)
        return size_text(size) if size else "-"

    @property
    def state(self) -> str:
        if self.stale:
            return "stale: " + "; ".join(self.stale)
        return "cannot be judged here: " + "; ".join(self.unknown) if self.unknown else "up to date"

    def to_json(self) -> dict[str, Any]:
        judged = {"stale": list(self.stale), "unknown": list(self.unknown)}
        return {"directory": str(self.directory), **judged, **asdict(self.record)}


def shown_engine(directory: Path) -> ShownEngine:
    """Read one engine, and compare it with the bundle that it stands in.

    Raises:
        UserError: no engine there, or an invalid record.
    """
    from engines.store.cache import Freshness, freshness
    from export.bundle import recorded_key
    from export.records.engine_record import read_engine_record

    record = read_engine_record(directory)
    key = recorded_key(directory.resolve().parents[1])
    judged = (
        freshness(directory, record, key)
        if key
        else Freshness(tuple(record.changed_files(directory, read=False)), ())
    )
    shown = ShownEngine(directory, record, judged.stale, judged.unknown)
    with reading_facts(directory):
        if strangers := [name for name, facts in record.facts.items() if facts["graph"] != name]:
            raise ValueError(f"{', '.join(strangers)}: of another graph")
        engine_tables(shown)
    return shown


@contextmanager
def reading_facts(directory: Path) -> Iterator[None]:
    """Say of a record whose facts are not what a builder writes that it is broken: they are bound to no key.

    Raises:
        UserError: the body met a missing entry, or one of another type.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error!s:.200}"
        raise UserError(
            f"{directory / 'engine.json'} holds facts that no builder writes ({reason}).",
            "Build the engine again.",
        ) from None


def engine_tables(engine: ShownEngine) -> list[Table]:
    """The engine as a whole, then each of its graphs."""
    tables = [Table(f"Engine {engine.record.key}", ("what", "value"), tuple(overview_rows(engine)))]
    for graph, facts in engine.record.facts.items():
        tables += [
            Table(f"{graph}: inputs and outputs", _TENSOR_COLUMNS, tuple(tensor_rows(graph, facts))),
            Table(
                f"{graph}: ops of qv-export", ("op", "computed by", "calls", "layers"), tuple(op_rows(facts))
            ),
            Table(
                f"{graph}: layers by type and precision", ("type", "dtype", "count"), tuple(layer_rows(facts))
            ),
        ]
        if facts.get("notes"):
            tables.append(Table(f"{graph}: notes", ("note",), tuple((text,) for text in facts["notes"])))
        if facts["warnings"]:
            warnings = tuple((str(warning["count"]), warning["message"]) for warning in facts["warnings"])
            tables.append(Table(f"{graph}: warnings", ("count", "message"), warnings))
    return tables


def overview_rows(engine: ShownEngine) -> list[Row]:
    """Everything about the engine as a whole."""
    record = engine.record
    versions = [
        f"{name} {value}" for name, value in record.inputs.items() if value[:1].isdigit() and "." in value
    ]
    return [
        ("target", record.target),
        ("architectures", engine.architectures),
        ("state", engine.state),
        ("limits", ", ".join(f"{name} {value}" for name, value in record.limits.items())),
        ("plugins", ", ".join(record.plugins) or "none"),
        ("versions", ", ".join(versions)),
        ("driver", record.driver or "built without one"),
        ("files", engine.size_text if record.files else "none: compiled when it loads"),
        ("built", f"{record.created} in {record.seconds:.1f} s"),
        *((graph, memory_text(facts)) for graph, facts in record.facts.items()),
    ]


def tensor_rows(graph: str, facts: Facts) -> list[Row]:
    """Inputs with the shapes of each profile, outputs; numbered ones of one kind share a row."""
    rows: list[Row] = []
    for direction, key in (("in", "inputs"), ("out", "outputs")):
        families = numbered_families(
            facts[key], lambda tensor: tensor["name"], lambda tensor: str({**tensor, "name": ""})
        )
        for name, tensor in families:
            shapes = [_range_text(profile) for profile in tensor["profiles"]] or [
                _shape_text(tensor["shape"])
            ]
            profiles = profile_names(graph) if tensor["profiles"] else ("",)
            first = (direction, name, tensor["dtype"])
            rows += [
                (*(first if not i else ("", "", "")), profile, shape)
                for i, (profile, shape) in enumerate(zip(profiles, shapes, strict=True))
            ]
    return rows


def profile_names(graph: str) -> tuple[str, ...]:
    """Of a graph's optimization profiles, in the engine's order."""
    return ("vision",) if graph == "vision" else ("prefill", "decode")


def _shape_text(shape: Sequence[int | str]) -> str:
    return f"[{', '.join('?' if dim == -1 else str(dim) for dim in shape)}]"


def _range_text(profile: Facts) -> str:
    shapes = [profile[name] for name in ("minimum", "optimum", "maximum")]
    if shapes[0] == shapes[2]:
        return _shape_text(shapes[0])
    return " .. ".join(map(_shape_text, shapes))


def op_rows(facts: Facts) -> list[Row]:
    """Where each op of ours went."""
    counts = Counter(layer["op"] for layer in facts["layers"] if layer["op"])
    nodes = {op: len({layer["node"] for layer in facts["layers"] if layer["op"] == op}) for op in counts}
    return [
        (op, _IMPLEMENTATIONS[implementation], str(nodes.get(op, 0)), str(counts.get(op, 0)))
        for op, implementation in facts["ops"].items()
    ]


def layer_rows(facts: Facts) -> list[Row]:
    """Layers by type and precision, the most frequent first."""
    counts = Counter((layer["type"], layer["dtype"]) for layer in facts["layers"])
    return [(kind, dtype or "-", str(count)) for (kind, dtype), count in counts.most_common()]


def memory_text(facts: Facts) -> str:
    """What the builder said about memory, in a sentence."""
    parts = [f"{facts['seconds']:.1f} s", f"peak memory {size_text(facts['peak_rss_bytes'])}"]
    if facts["engine_bytes"]:
        parts.append(f"file {size_text(facts['engine_bytes'])}")
    if facts.get("weights_bytes"):
        parts.append(f"weights on the device {size_text(facts['weights_bytes'])}")
    if facts.get("activation_bytes"):
        sizes = ", ".join(
            f"{profile} {size_text(size)}"
            for profile, size in zip(profile_names(facts["graph"]), facts["activation_bytes"], strict=False)
        )
        parts.append(f"activations {sizes}")
    return "; ".join(parts)
