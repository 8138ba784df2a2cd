"""Quantizes a checkpoint's linear layers for a bundle, one tensor at a time."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from export.checkpoint.tensors import SINGLE_FILE, Checkpoint, open_checkpoint
from export.errors import UserError
from export.files.atomic import name_whole_file
from export.quantization.linear import Precision, QuantizedLinear
from export.quantization.round_to_nearest import BLOCKS, block_of, quantize
from export.quantization.side_file import write_quantized
from export.weights.names import QUANTIZED_FILE
from export.weights.safetensors_file import StoredTensor
from export.weights.values import read_values
from export.weights.writer import write_copied

Part: TypeAlias = Literal["decoder", "vision", "head"]


@dataclass(frozen=True)
class RoundingScheme:
    """What is rounded of a product, and to what."""

    precision: Precision
    per_token: bool
    """The input too, each token by a scale of its own."""
    summary: str


SCHEMES: Mapping[str, RoundingScheme] = {
    "int4": RoundingScheme(
        "int4", per_token=False, summary="weights in 4 bits, a scale for each 128 of an output"
    ),
    "int8": RoundingScheme(
        "int8", per_token=True, summary="weights and inputs in 8 bits, inputs scaled by token"
    ),
    "int8-weights": RoundingScheme(
        "int8", per_token=False, summary="weights in 8 bits, a scale for each output"
    ),
    "fp8": RoundingScheme(
        "fp8", per_token=True, summary="weights and inputs in 8-bit floats, inputs scaled by token"
    ),
}

_PARTS: Mapping[Part, re.Pattern[str]] = {
    "decoder": re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight"),
    # Not the patch embedding, whose 1,176 inputs no block divides: 0.2 percent of the encoder's weights.
    "vision": re.compile(r"visual\.(blocks\.\d+\.(attn|mlp)\.\w+|merger\.mlp\.\d)\.weight"),
    "head": re.compile(r"(lm_head|model\.embed_tokens)\.weight"),
}


def check_schemes(schemes: Mapping[Part, str | None]) -> dict[Part, str]:
    """What is asked, without parts that nothing is asked for.

    Raises:
        UserError: a scheme that there is not, or not for that part; all at once.
    """
    asked = {part: name for part, name in schemes.items() if name is not None}
    problems = []
    for part, name in asked.items():
        known = [known for known, scheme in SCHEMES.items() if part != "head" or not scheme.per_token]
        if name == "nvfp4":
            problems.append(
                "nvfp4 is not made here: its products run on compute capability 12.0 alone, and nothing of it could be "
                "run or checked so far; int4 is as small, and fp8 as exact"
            )
        elif name not in known:
            problems.append(f"{name!r} is no way to quantize the {part}. Known are {', '.join(known)}")
    if problems:
        raise UserError(". ".join(problems) + ".", "Choose another way, or leave it out.")
    return asked


def quantize_checkpoint(
    source: Checkpoint,
    schemes: Mapping[Part, str],
    dtype: str,
    directory: Path,
    *,
    copy: bool,
    report: Callable[[str, float], None],
) -> Checkpoint:
    """Write the quantized linear layers of a checkpoint into `directory`, and open it with them.

    Those that it has are repacked without a change of their numbers, those that are asked for are made.

    Args:
        source: unquantized, or as a tool quantized it.
        schemes: by part of the model, what becomes of its linear layers: a name of `SCHEMES`.
        dtype: what the graphs compute in, and the scales are stored in.
        directory: of the bundle that is being written.
        copy: write the other weights there as well, so that the checkpoint's own files need not be in the bundle.
        report: told the phase, and the fraction that is done.

    Raises:
        UserError: nothing can be quantized so, or the checkpoint is quantized already.
    """
    chosen = _chosen(source, schemes)
    names = [*source.packed, *chosen]
    done = 0

    def linear_of(name: str) -> QuantizedLinear:
        nonlocal done
        report("quantizing the weights" if chosen else "repacking the weights", done / len(names))
        done += 1
        if name in source.packed:
            return source.packed[name].read()
        weight = read_values(source.tensors[name]).astype(np.float32)
        scheme = SCHEMES[chosen[name]]
        return quantize(weight, scheme.precision, dtype, per_token=scheme.per_token)

    quantized = directory / QUANTIZED_FILE
    write_quantized(quantized, names, linear_of)
    rest = {name: stored for name, stored in source.tensors.items() if name not in chosen}
    files = (_write_rest(source, rest, directory),) if copy else source.weight_files
    return open_checkpoint(source.directory, (*files, quantized))


def _chosen(source: Checkpoint, schemes: Mapping[Part, str]) -> dict[str, str]:
    """The weights that are quantized, and how: what no block divides stays as it is."""
    quantized = {*source.linears, *source.packed}
    if any(_PARTS[part].fullmatch(name) for part in schemes for name in quantized):
        raise UserError(
            f"{source.directory} is quantized already.",
            "Leave --quantize out, or give the checkpoint it was made of.",
        )
    chosen: dict[str, str] = {}
    for part, scheme in schemes.items():
        names = [name for name in source.tensors if _PARTS[part].fullmatch(name)]
        fitting = [name for name in names if _fits(source.tensors[name], scheme)]
        if not fitting:
            raise UserError(
                f"No linear layer of the {part} can be quantized to {scheme}, which wants an even number of outputs "
                f"and a number of inputs that one of {', '.join(map(str, BLOCKS))} divides: "
                f"{'; '.join(f'{name} is {list(source.tensors[name].shape)}' for name in names[:3])}.",
                "Take int8-weights, which any layer can be quantized to.",
            )
        chosen |= dict.fromkeys(fitting, scheme)
    return chosen


def _fits(stored: StoredTensor, scheme: str) -> bool:
    num_outputs, num_inputs = stored.shape
    # Two codes are a byte: an odd row of them would begin inside of one.
    return scheme != "int4" or (block_of(num_inputs) is not None and num_outputs % 2 == 0)


def _write_rest(source: Checkpoint, rest: Mapping[str, StoredTensor], directory: Path) -> Path:
    """What is not quantized as one file, in the place of what an export wrote there before."""
    scratch = directory / ".rest.safetensors"
    write_copied(scratch, rest)
    for path in source.weight_files:
        if path.parent == directory:
            path.unlink()
    path = directory / SINGLE_FILE
    name_whole_file(scratch, path)
    return path
