"""`qv-export export`: a checkpoint becomes a bundle."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from export.dtypes import GRAPH_DTYPES
from export.wording import command_line, size_text
from qv_export.parameters import CheckpointPath, Share
from qv_export.show.console import note, phase_bar, print_json

if TYPE_CHECKING:
    from export.models.configuration import KvCachePrecision
    from export.records.manifest import Manifest, WeightsMode


@click.command("export", short_help="Turn a checkpoint into a bundle.")
@click.argument("checkpoint", type=CheckpointPath())
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The bundle's directory. A bundle that is there is replaced once the new one is whole.",
)
@click.option(
    "--dtype",
    type=click.Choice(GRAPH_DTYPES),
    help="Weights and activations of the graphs. Default: the checkpoint's own.",
)
@click.option(
    "--weights",
    type=click.Choice(["copy", "link"]),
    default="copy",
    show_default=True,
    help="Copy the weight files, or hard-link them: that copies no byte, on one file system.",
)
@click.option(
    "--adapter",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A PEFT LoRA adapter of this checkpoint, merged into it.",
)
@click.option(
    "--quantize",
    type=click.Choice(["int4", "int8", "int8-weights", "fp8", "nvfp4"]),
    help="The decoder's linear layers: weights in 4 bits (int4), weights and inputs in 8 (int8, fp8), or weights alone "
    "in 8 (int8-weights). Default: as they are stored.",
)
@click.option(
    "--quantize-vision",
    type=click.Choice(["int4", "int8", "int8-weights", "fp8"]),
    help="The vision encoder's linear layers. Fewer than 8 bits cost it dearly.",
)
@click.option(
    "--quantize-head",
    type=click.Choice(["int4", "int8-weights"]),
    help="The token embedding and the projection to the vocabulary.",
)
@click.option(
    "--kv-cache",
    type=click.Choice(["int8", "fp8"]),
    help="Keep cached keys and values in 8 bits, each token of a KV head under a scale of its own: half the memory of "
    "bfloat16's. Default: as they are computed.",
)
@click.option(
    "--calibrate",
    type=click.Path(exists=True, path_type=Path),
    metavar="PICTURES_OR_JSONL",
    help="Quantize for what the model sees in these: a folder of pictures, each with its prompt in a .txt beside it, "
    'or a file with {"messages": [...]} a line. Better than rounding each value by itself; about a hundred will do.',
)
@click.option(
    "--static-inputs",
    is_flag=True,
    help="With --calibrate: round the inputs of int8 and fp8 by one scale a layer, instead of one a token.",
)
@click.option(
    "--keep-worst",
    type=Share(),
    default="0%",
    metavar="SHARE",
    help="Such as 5%: so much of the quantized weights stays as it is, where quantizing changes the product most.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Refuse a checkpoint whose files contradict each other or hold more than the model, instead of a warning.",
)
@click.option(
    "--pipeline-stages",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Cut the decoder into N graphs of neighbouring layers, for models that no single GPU holds.",
)
@click.option(
    "--tensor-parallel",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Divide the decoder's heads, MLP and vocabulary among N ranks, one graph each, for as many GPUs that work on "
    "every token together.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as one JSON object.")
def export_command(
    checkpoint: Path,
    output: Path,
    dtype: str | None,
    weights: "WeightsMode",
    adapter: Path | None,
    quantize: str | None,
    quantize_vision: str | None,
    quantize_head: str | None,
    kv_cache: "KvCachePrecision | None",
    calibrate: Path | None,
    static_inputs: bool,
    keep_worst: float,
    strict: bool,
    pipeline_stages: int,
    tensor_parallel: int,
    as_json: bool,
) -> None:
    """Turn a Qwen2-VL CHECKPOINT into a bundle: two ONNX graphs, weights, tokenizer.

    CHECKPOINT is a directory as downloaded from the hub: config.json, *.safetensors, tokenizer.json.
    """
    from export.quantization.report import read_report
    from qv_export import api

    start = time.perf_counter()
    with phase_bar() as step:
        manifest = api.export(
            checkpoint,
            output,
            dtype=dtype,
            weights=weights,
            adapter=adapter,
            quantize=quantize,
            quantize_vision=quantize_vision,
            quantize_head=quantize_head,
            kv_cache=kv_cache,
            calibrate=calibrate,
            static_inputs=static_inputs,
            keep_worst=keep_worst,
            strict=strict,
            pipeline_stages=pipeline_stages,
            tensor_parallel=tensor_parallel,
            progress=step,
        ).manifest
    seconds = time.perf_counter() - start
    changes = read_report(output)
    if as_json:
        content = {"bundle": str(output), "seconds": round(seconds, 3), "manifest": asdict(manifest)}
        print_json({**content, "quantization": None if changes is None else asdict(changes)})
    else:
        if changes is not None:
            note(f"Quantized: {changes.sentence()}")
        note(export_summary(manifest, output, seconds))


def export_summary(manifest: "Manifest", output: Path, seconds: float) -> str:
    weights_bytes = sum(record.bytes for record in manifest.weights)
    verb = "copied" if manifest.weights_mode == "copy" else "linked"
    return (
        f"{output}: {manifest.precision_text}, key {manifest.key}, {size_text(weights_bytes)} of weights {verb}, "
        f"{seconds:.1f} s\nNext: {command_line('run', output, '--image', 'PICTURE', '--prompt', 'TEXT')}"
    )
