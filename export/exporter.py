"""An export from end to end: a checkpoint becomes a bundle."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from export.bundle import (
    FileRecord,
    Manifest,
    WeightsMode,
    content_key,
    place_weights,
    require_place,
    writing_bundle,
)
from export.checkpoint.tensors import Checkpoint, open_checkpoint, weight_files_of
from export.contract import decoder_stages, rank_of, stage_contract
from export.dtypes import GRAPH_DTYPES
from export.errors import UserError
from export.files.json_object import read_json_object
from export.files.untrusted import MAX_JSON_BYTES, read_own_bytes, require_own_file
from export.models.configuration import KV_CACHE_DTYPES, KV_CACHE_KEY, KvCachePrecision, ModelConfig
from export.models.families import family_of
from export.parallel import balanced_layers
from export.processor.processor import Processor
from export.quantization.calibration.conversations import read_conversations
from export.quantization.describe import precision_of
from export.quantization.make import Part, check_wishes, quantize_checkpoint
from export.quantization.report import REPORT_FILE
from export.records.manifest import Calibration, Source, sha256_of
from export.weights.prepare import needs_new_weights, write_new_weights
from export.weights.safetensors_file import fingerprint_safetensors
from export.weights.writer import write_index

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    import onnx_ir as ir

# What the runtime reads beside the graphs, as far as the checkpoint has it; the processor says what it misses.
_COMPANION_FILES = (
    "config.json",
    "model.safetensors.index.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)

Progress = Callable[[str, float], None]
"""Told the phase, and the fraction of the whole that is done."""

_TRACING_BYTES = 6_000_000_000
"""Tracing both graphs takes about as long as copying this much: what the fraction is worked out with."""


def _vision_graph(source: Checkpoint, dtype: str) -> "dict[str, ir.Model]":
    from export.graphs.assemble import build_graph  # noqa: PLC0415 - torch: seconds, and mistakes are told before
    from export.weights.by_reference import ByReference  # noqa: PLC0415 - onnx_ir

    return {"vision": build_graph("vision", ByReference(source), dtype)}


def _decoder_graphs(
    source: Checkpoint, dtype: str, layers: Sequence[int], num_ranks: int
) -> "dict[str, ir.Model]":
    """By name: of each rank, of each of its stages."""
    from export.graphs.assemble import build_graphs  # noqa: PLC0415 - as above
    from export.weights.by_reference import ByReference  # noqa: PLC0415
    from export.weights.sliced import Sliced  # noqa: PLC0415

    if num_ranks == 1:
        return _cut(
            build_graphs("decoder", [ByReference(source)], dtype)[0], source.config, dtype, layers, None
        )
    ranks = [Sliced(source, rank, num_ranks) for rank in range(num_ranks)]
    graphs: dict[str, ir.Model] = {}
    for rank, whole in enumerate(build_graphs("decoder", ranks, dtype)):
        graphs |= _cut(whole, ranks[rank].config, dtype, layers, rank)
    return graphs


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    dtype: str | None = None,
    weights: WeightsMode = "copy",
    adapter: Path | None = None,
    quantize: Mapping[Part, str | None] | None = None,
    kv_cache: KvCachePrecision | None = None,
    calibrate: Path | None = None,
    static_inputs: bool = False,
    keep_worst: float = 0.0,
    strict: bool = False,
    pipeline_stages: int = 1,
    tensor_parallel: int = 1,
    progress: Progress | None = None,
) -> Manifest:
    """Write the bundle of a Qwen2-VL checkpoint.

    Args:
        checkpoint: a Hugging Face directory.
        output: the bundle's directory; an existing bundle is replaced when the new one is whole.
        dtype: what the graphs compute in; None: the checkpoint's own.
        weights: "copy" for a self-contained bundle, "link" to copy no weight byte.
        adapter: a PEFT LoRA adapter's directory, merged into the weights that it changes; None: there is none.
        quantize: by part of the model ("decoder", "vision", "head"), what becomes of its linear layers: a name of
            `export.quantization.make.SCHEMES`; None: they stay as they are.
        kv_cache: "int8" or "fp8" of cached keys and values; None: in the dtype that the graphs compute in.
        calibrate: conversations that the quantized layers are made for: a folder of pictures, or lines of messages;
            None: each value is rounded by itself.
        static_inputs: let int8 and fp8 round inputs by one scale a layer, found by `calibrate`, instead of one a token.
        keep_worst: share of the quantized weights' bytes that stays as it is after all, where the error is largest.
        strict: refuse a checkpoint whose files contradict each other or hold more than the model, instead of a warning.
        pipeline_stages: how many graphs the decoder is cut into, at the borders of its layers, for as many devices.
        tensor_parallel: among how many ranks the heads, the MLP and the vocabulary are divided, each a device.
        progress: told each phase, and the fraction that is done; None: nobody listens.

    Raises:
        UserError: no sound Qwen2-VL checkpoint, or an output that cannot be written.
    """
    report = progress or _ignore
    report("reading the checkpoint", 0.0)
    _check_dtype(dtype)
    _check_kv_cache(kv_cache)
    wishes = check_wishes(
        quantize or {},
        is_calibrated=calibrate is not None,
        static_inputs=static_inputs,
        keep_worst=keep_worst,
    )
    _require_own_companions(checkpoint)
    # A bundle that could not answer a question would be half a model: fail before the long part.
    opened = None
    if not needs_new_weights(checkpoint, adapter):
        # Before the reference, and with it PyTorch, says which weights there must be.
        if not wishes.schemes or weights == "link":
            require_place(weight_files_of(checkpoint), output, weights)
        opened = _with_processor(open_checkpoint(checkpoint), strict=strict)
    with writing_bundle(output) as directory:
        source, processor = opened or _with_processor(
            write_new_weights(checkpoint, adapter, directory, lambda phase: report(phase, 0.0)), strict=strict
        )
        dtype = dtype or source.dtype
        layers = balanced_layers(source.config, pipeline_stages)
        _check_ranks(source, wishes.schemes, tensor_parallel)
        tools = {
            name: source.config.quantization.source for name in source.packed if source.config.quantization
        }
        kept: list[str] = []
        conversations = None if calibrate is None else read_conversations(calibrate, processor)
        if wishes.schemes or source.packed:
            source, changes = quantize_checkpoint(
                source,
                wishes,
                dtype,
                directory,
                copy=weights == "copy",
                report=report,
                conversations=conversations,
            )
            if changes is not None:
                changes.write(directory)
                kept = [product.name for product in changes.products if product.is_kept]
        source = _with_kv_cache(source, kv_cache)
        work_bytes = _TRACING_BYTES + _bytes_to_copy(source, directory, weights)
        graphs: dict[str, ir.Model] = {}
        report("tracing the vision graph", 0.0)
        graphs |= _vision_graph(source, dtype)
        report("tracing the decoder graph", _TRACING_BYTES / 2 / work_bytes)
        graphs |= _decoder_graphs(source, dtype, layers, tensor_parallel)
        for name, graph in graphs.items():
            # The ranks' graphs differ in what their weights point at alone: one says what all say.
            if rank_of(name) in {None, 0}:
                _check_graph(graph)

        def placed(placed_bytes: int) -> None:
            report("placing the weights", (_TRACING_BYTES + placed_bytes) / work_bytes)

        placed(0)
        weight_records = _place_weights(source, directory, weights, placed)
        report("writing the bundle", 1.0)
        _copy_companions(source, processor, directory)
        bundle_name = source.directory.resolve().name + (f" with {adapter.resolve().name}" if adapter else "")
        division = _Division(layers if len(layers) > 1 else (), tensor_parallel)
        return _write_files(
            source,
            bundle_name,
            directory,
            graphs,
            weight_records,
            dtype,
            weights,
            division,
            precision_of(source.linears, tools, source.config.decoder.kv_cache, kept, dtype),
            None if conversations is None else conversations.record(),
        )


def _check_ranks(source: Checkpoint, schemes: Mapping[Part, Any], num_ranks: int) -> None:
    """Refuse ranks that the decoder does not divide among, before the long part."""
    family_of(source.config.model_type).rank_config(source.config, 0, num_ranks)
    is_quantized = bool(schemes.keys() - {"vision"}) or any(
        not name.startswith("visual.") for name in source.packed
    )
    if num_ranks > 1 and is_quantized:
        raise UserError(
            f"--tensor-parallel {num_ranks}: quantized linear layers are not divided among ranks yet.",
            "Use --pipeline-stages, or leave the decoder unquantized.",
        )


def _cut(
    decoder: "ir.Model", config: ModelConfig, dtype: str, layers: Sequence[int], rank: int | None
) -> "dict[str, ir.Model]":
    from export.graphs.stages import stage_model  # noqa: PLC0415 - onnx_ir

    stages = decoder_stages(layers, rank)
    if len(stages) == 1:
        decoder.graph.name = stages[0].graph
        return {stages[0].graph: decoder}
    return {
        stage.graph: stage_model(decoder, stage, stage_contract(config, dtype, stage)) for stage in stages
    }


def _with_processor(source: Checkpoint, *, strict: bool) -> tuple[Checkpoint, Processor]:
    _tell(source, strict=strict)
    return source, Processor.from_directory(source.directory, source.config)


def _tell(source: Checkpoint, *, strict: bool) -> None:
    if strict and source.notes:
        listed = "\n- ".join(source.notes)
        raise UserError(f"{source.directory} is refused by --strict:\n- {listed}")
    for note in source.notes:
        logger.warning("%s: %s", source.directory, note)


def _ignore(_phase: str, _fraction: float) -> None:
    pass


def _check_graph(graph: "ir.Model") -> None:
    from export.graphs.lint import check_graph  # noqa: PLC0415 - onnx and onnx_ir

    check_graph(graph)


def _check_dtype(dtype: str | None) -> None:
    if dtype is not None and dtype not in GRAPH_DTYPES:
        raise UserError(f"dtype {dtype!r} is none of {', '.join(GRAPH_DTYPES)}.")


def _check_kv_cache(precision: str | None) -> None:
    if precision is not None and precision not in KV_CACHE_DTYPES:
        raise UserError(f"kv_cache {precision!r} is none of {', '.join(KV_CACHE_DTYPES)}.")


def _with_kv_cache(source: Checkpoint, precision: KvCachePrecision | None) -> Checkpoint:
    """With the cache's precision in the configuration: the contract, the reference and the engines read it there."""
    if precision is None:
        return source
    decoder = replace(source.config.decoder, kv_cache=precision)
    changes = {**source.config_changes, KV_CACHE_KEY: precision}
    return replace(source, config=replace(source.config, decoder=decoder), config_changes=changes)


def _bytes_to_copy(source: Checkpoint, directory: Path, mode: WeightsMode) -> int:
    files = [path for path in source.weight_files if path.parent != directory]
    return sum(path.stat().st_size for path in files) if mode == "copy" else 0


def _place_weights(
    source: Checkpoint, directory: Path, mode: WeightsMode, placed: Callable[[int], None]
) -> list[FileRecord]:
    """The checkpoint's own files by copy or link; what the export wrote is in its place already."""
    written = [path for path in source.weight_files if path.parent == directory]
    own = [path for path in source.weight_files if path not in written]
    records = place_weights(own, directory, mode, placed)
    for path in written:
        fingerprint = fingerprint_safetensors(path)
        records.append(FileRecord(path.name, path.stat().st_size, sha256_of(path), fingerprint))
    if written:
        write_index(directory, [directory / record.name for record in records])
    return records


class _Division(NamedTuple):
    """How the decoder is divided, as a manifest has it."""

    stages: tuple[int, ...]
    tensor_parallel: int


def _write_files(
    source: Checkpoint,
    source_name: str,
    directory: Path,
    graphs: "Mapping[str, ir.Model]",
    weights: list[FileRecord],
    dtype: str,
    weights_mode: WeightsMode,
    division: "_Division",
    precision: Mapping[str, str],
    calibration: Calibration | None,
) -> Manifest:
    import onnx_ir as ir  # noqa: PLC0415 - see above

    for name, graph in graphs.items():
        ir.save(graph, directory / f"{name}.onnx")
    companions = [name for name in (*_COMPANION_FILES, REPORT_FILE) if (directory / name).is_file()]
    graph_records = {name: FileRecord.from_file(directory / f"{name}.onnx") for name in graphs}
    manifest = Manifest(
        qv_export_version=version("qv-export"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tools={package: version(package) for package in ("torch", "onnx", "onnx-ir", "onnxscript")},
        source=Source(source_name, sha256_of(source.directory / "config.json")),
        dtype=dtype,
        weights_mode=weights_mode,
        graphs=graph_records,
        weights=tuple(weights),
        files=tuple(FileRecord.from_file(directory / name) for name in companions),
        key=_key(graph_records, weights),
        precision=precision,
        stages=division.stages,
        tensor_parallel=division.tensor_parallel,
        calibration=calibration,
    )
    manifest.write(directory)
    return manifest


def _require_own_companions(checkpoint: Path) -> None:
    """Refuse a checkpoint whose settings, tokenizer or template are links to elsewhere: they end up in every prompt."""
    problems = []
    for name in _COMPANION_FILES:
        try:
            require_own_file(checkpoint / name, MAX_JSON_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except UserError as error:
            problems.append(str(error))
        except (OSError, ValueError) as error:
            problems.append(f"{checkpoint / name} cannot be read: {error}")
    if problems:
        raise UserError("\n".join(problems))


def _copy_companions(source: Checkpoint, processor: Processor, directory: Path) -> None:
    """Copy what the runtime reads, and let it say what was exported: all that comes later reads it there."""
    for name in _COMPANION_FILES:
        # An index of the checkpoint's own would not know the weights that the export wrote.
        if (source.directory / name).is_file() and not (directory / name).exists():
            (directory / name).write_bytes(read_own_bytes(source.directory / name, MAX_JSON_BYTES))
    path = directory / "config.json"
    if source.config.quantization is not None:
        content = read_json_object(path)
        del content["quantization_config"]  # the side file says it, in the layout that the graphs read
        _write_json(path, content)
    if source.config_changes:
        content = read_json_object(path)
        nested = content.get("text_config")
        if isinstance(nested, dict):
            content["text_config"] = {**nested, **source.config_changes}
        _write_json(path, {**content, **source.config_changes})
    if unused := processor.token_ids_without_a_token():
        path = directory / "generation_config.json"
        content = read_json_object(path) if path.exists() else {}
        suppressed = sorted({*(content.get("suppress_tokens") or []), *unused})
        _write_json(path, {**content, "suppress_tokens": suppressed})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _key(graphs: Mapping[str, FileRecord], weights: list[FileRecord]) -> str:
    """Identity of what the graphs compute: their own bytes, and the weights by fingerprint, copied or linked alike."""
    parts = {f"graph {name}": str(record.sha256) for name, record in graphs.items()}
    parts |= {f"weights {record.name}": str(record.fingerprint) for record in weights}
    return content_key(parts)
