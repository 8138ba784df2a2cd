"""Cost of exporting a quantized checkpoint: a 72B-shaped one in AWQ's layout, of sparse files.

    python -m benchmarks.quantized_export [--work DIR] [--size 72b] [--layers N]

Measures wall seconds and peak RSS of the whole command, imports included, and the bytes of the side file it writes.
Codes are repacked one weight after the other: time grows with the number of layers, memory with the largest weight
alone. So a few layers say what all cost; `--layers 80` writes 37 GB. `--size tiny` shows that the script works.
"""

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import QV_EXPORT, add_work_option
from benchmarks.measure import bytes_text, measure_command, print_table, seconds_text
from examples.random_checkpoint import write_checkpoint
from export.dtypes import DTYPES, num_bytes
from export.weights.names import QUANTIZED_FILE
from export.weights.safetensors_file import StoredTensor, read_safetensors_header

PADDED_INTERMEDIATE = {"72b": 29_696}
"""As the publisher's quantized checkpoint has it: a multiple of 128 for each of 8 devices."""
HEADER = ("AWQ export, {size}-shaped, bfloat16", "seconds", "peak RSS", "limit", "side file")


def write_awq_checkpoint(directory: Path, size: str, num_layers: int | None) -> Path:
    """A sparse checkpoint whose decoder's linear layers are AWQ's, all zero."""
    overrides: dict[str, Any] = (
        {"intermediate_size": PADDED_INTERMEDIATE[size]} if size in PADDED_INTERMEDIATE else {}
    )
    if num_layers is not None:
        overrides["num_hidden_layers"] = num_layers
    write_checkpoint(directory, size=size, sparse=True, dtype="float16", **overrides)
    files = sorted(directory.glob("*.safetensors"))
    group = 128 if size == "72b" else 32
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for stored in (tensor for file in files for tensor in read_safetensors_header(file)):
        tensors |= _awq_tensors(stored, group)
    for path in (*files, *directory.glob("*.index.json")):
        path.unlink()
    _write_sparse(directory / "model.safetensors", tensors)
    content = json.loads((directory / "config.json").read_text())
    content["quantization_config"] = {
        "quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True,
        "modules_to_not_convert": ["visual"],
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(content))
    return directory


def _awq_tensors(stored: StoredTensor, group: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape by name of what stands for a tensor."""
    if not (stored.name.startswith("model.layers.") and stored.name.endswith("_proj.weight")):
        return {stored.name: (stored.dtype, stored.shape)}
    num_outputs, num_inputs = stored.shape
    module = stored.name.removesuffix("weight")
    return {
        f"{module}qweight": ("int32", (num_inputs, num_outputs // 8)),
        f"{module}qzeros": ("int32", (num_inputs // group, num_outputs // 8)),
        f"{module}scales": ("float16", (num_inputs // group, num_outputs)),
    }


def _write_sparse(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    header: dict[str, object] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + num_bytes(dtype, math.prod(shape))
        header[name] = {"dtype": DTYPES[dtype].safetensors, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="72b", help="of the checkpoint (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="of the decoder (default: all of them)")
    add_work_option(parser)
    options = parser.parse_args()
    source, output = options.work.resolve() / "awq-sparse", options.work.resolve() / "awq-exported"
    for path in (source, output):
        shutil.rmtree(path, ignore_errors=True)
    write_awq_checkpoint(source, options.size, options.layers)
    arguments = ("export", str(source), "--output", str(output), "--weights", "link")
    run = measure_command("export", [*QV_EXPORT, *arguments])
    side_bytes = (output / QUANTIZED_FILE).stat().st_size
    layers = "all layers" if options.layers is None else f"{options.layers} layers"
    print_table(
        "Export of a quantized checkpoint",
        (HEADER[0].format(size=options.size), *HEADER[1:]),
        [
            [
                layers,
                seconds_text(run.wall_seconds),
                bytes_text(run.peak_rss_bytes),
                "3 GB",
                bytes_text(side_bytes),
            ]
        ],
    )
    for path in (source, output):
        shutil.rmtree(path)


if __name__ == "__main__":
    main()
