"""Quantizes a checkpoint's linear layers for a bundle, one tensor at a time."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from export.checkpoint.tensors import SINGLE_FILE, Checkpoint, open_checkpoint
from export.errors import UserError
from export.files.atomic import name_whole_file
from export.inputs import ModelInputs
from export.quantization.calibration.error_feedback import relative_error, with_error_feedback
from export.quantization.linear import Precision, QuantizedLinear
from export.quantization.report import ProductError, QuantizationReport, worst_within
from export.quantization.round_to_nearest import BLOCKS, block_of, input_scale, quantize
from export.quantization.side_file import write_quantized
from export.weights.names import QUANTIZED_FILE
from export.weights.safetensors_file import StoredTensor, read_safetensors_header
from export.weights.values import read_values
from export.weights.writer import write_copied

if TYPE_CHECKING:
    from export.quantization.calibration.statistics import InputStatistics, StatisticsInOrder

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


@dataclass(frozen=True)
class Wishes:
    """What becomes of a checkpoint's linear layers."""

    schemes: Mapping[Part, str]
    """By part of the model, a name of `SCHEMES`."""
    are_inputs_static: bool = False
    """Whether inputs are rounded by a scale of the product's own, found by calibration, instead of one a token."""
    keep_worst: float = 0.0
    """Share of the weights' bytes, of the decoder and the vision encoder, that stays as it is, for its error."""


def check_wishes(
    schemes: Mapping[Part, str | None],
    *,
    is_calibrated: bool = False,
    static_inputs: bool = False,
    keep_worst: float = 0.0,
) -> Wishes:
    """What is asked, without parts that nothing is asked for.

    Args:
        schemes: by part of the model; None: it stays as it is.
        is_calibrated: whether there are conversations to calibrate by.
        static_inputs: see `Wishes`.
        keep_worst: see `Wishes`.

    Raises:
        UserError: a scheme that there is not, or not for that part, or wishes that do not go together; all at once.
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
    known_schemes = [SCHEMES[name] for part, name in asked.items() if part != "head" and name in SCHEMES]
    if is_calibrated and not known_schemes and not problems:
        problems.append(
            "--calibrate says what the layers of the decoder or the vision encoder are rounded for"
        )
    if not 0 <= keep_worst < 1:
        problems.append(f"--keep-worst is a share from 0 to 100 percent, not {keep_worst:.4g} of the weights")
    if keep_worst and not known_schemes and not problems:
        problems.append(
            "--keep-worst leaves layers of the decoder or the vision encoder out, and none is quantized"
        )
    if static_inputs and not is_calibrated:
        problems.append(
            "static scales of inputs are found by the conversations of --calibrate, and there are none"
        )
    if static_inputs and not any(scheme.per_token for scheme in known_schemes):
        problems.append("static scales are those of rounded inputs, which int8 and fp8 have")
    if problems:
        raise UserError(". ".join(problems) + ".", "Choose another way, or leave it out.")
    return Wishes(asked, static_inputs, keep_worst)


def quantize_checkpoint(
    source: Checkpoint,
    wishes: Wishes,
    dtype: str,
    directory: Path,
    *,
    copy: bool,
    report: Callable[[str, float], None],
    conversations: Iterable[ModelInputs] | None = None,
) -> tuple[Checkpoint, QuantizationReport | None]:
    """Write the quantized linear layers of a checkpoint into `directory`, and open it with them.

    Those that it has are repacked without a change of their numbers, those that are asked for are made.

    Args:
        source: unquantized, or as a tool quantized it.
        wishes: what becomes of its linear layers.
        dtype: what the graphs compute in, and the scales are stored in.
        directory: of the bundle that is being written.
        copy: write the other weights there as well, so that the checkpoint's own files need not be in the bundle.
        report: told the phase, and the fraction that is done.
        conversations: codes are chosen for what products see in them; None: each value by itself.

    Returns:
        It, and what became of its products; None where none was made.

    Raises:
        UserError: nothing can be quantized so, the checkpoint is quantized already, or conversations that a product
            cannot be calibrated by.
    """
    chosen = _chosen(source, wishes.schemes)
    names = [*source.packed, *sorted(chosen, key=_place)]
    seen = None if conversations is None else _seen(source, chosen, conversations, directory, report)
    products: list[ProductError] = []

    def linear_of(name: str) -> QuantizedLinear:
        phase = "quantizing the weights" if chosen else "repacking the weights"
        report(phase, names.index(name) / len(names))
        if name in source.packed:
            return source.packed[name].read()
        statistics = None if seen is None or _is_head(name) else seen.of(name)
        linear, product = _made(name, source.tensors[name], chosen[name], statistics, dtype, wishes)
        products.append(product)
        return linear

    quantized = directory / QUANTIZED_FILE
    write_quantized(quantized, names, linear_of)
    if wishes.keep_worst:
        products = _with_kept(products, wishes.keep_worst)
        _leave_out(quantized, {product.name for product in products if product.is_kept})
    made = {product.name for product in products if not product.is_kept}
    rest = {name: stored for name, stored in source.tensors.items() if name not in made}
    files = (_write_rest(source, rest, directory),) if copy else source.weight_files
    checkpoint = open_checkpoint(source.directory, (*files, quantized))
    return checkpoint, QuantizationReport(tuple(products)) if products else None


def _made(
    name: str,
    stored: StoredTensor,
    scheme_name: str,
    seen: "InputStatistics | None",
    dtype: str,
    wishes: Wishes,
) -> tuple[QuantizedLinear, ProductError]:
    """A layer by its nearest codes, or by those that are best for what was seen, and its error."""
    weight = read_values(stored).astype(np.float32)
    scheme = SCHEMES[scheme_name]
    linear = quantize(weight, scheme.precision, dtype, per_token=scheme.per_token)
    moments = None
    if seen is not None:
        moments = seen.second_moments
        linear = with_error_feedback(linear, weight, moments)
        if wishes.are_inputs_static and linear.activations is not None:
            linear = replace(linear, activations=input_scale(seen.largest, linear.precision, dtype))
    error = math.sqrt(relative_error(linear, weight, moments))
    return linear, ProductError(
        name, scheme_name, error, moments is not None, stored.length_bytes, is_kept=False
    )


def _with_kept(products: Sequence[ProductError], share: float) -> list[ProductError]:
    """The head is none of them: its error is another measure, and it may be the most of all bytes."""
    kept = worst_within([product for product in products if not _is_head(product.name)], share)
    return [replace(product, is_kept=product.name in kept) for product in products]


def _leave_out(path: Path, names: Collection[str]) -> None:
    """Take layers out of a file of quantized ones."""
    stored = {tensor.name: tensor for tensor in read_safetensors_header(path)}
    rest = path.with_name(f".rest.{path.name}")
    write_copied(rest, {name: part for name, part in stored.items() if name.rpartition(".")[0] not in names})
    name_whole_file(rest, path)


def _place(name: str) -> list[str | int]:
    """Where a product stands in the model: the vision encoder before the decoder, blocks by their numbers."""
    parts = re.split(r"(\d+)", name)
    return [0 if name.startswith("visual.") else 1, *(int(x) if x.isdigit() else x for x in parts)]


def _is_head(name: str) -> bool:
    """Whether it is a table of the vocabulary, of which a conversation reads few rows: it is rounded by itself."""
    return _PARTS["head"].fullmatch(name) is not None


def _seen(
    source: Checkpoint,
    chosen: Mapping[str, str],
    conversations: Iterable[ModelInputs],
    scratch: Path,
    report: Callable[[str, float], None],
) -> "StatisticsInOrder":
    from export.quantization.calibration.statistics import StatisticsInOrder, input_statistics  # noqa: PLC0415 - torch

    wanted = [name for name in chosen if not _is_head(name)]
    return StatisticsInOrder(
        input_statistics(
            source, conversations, wanted, scratch, lambda scope: report(f"calibrating {scope}", 0.0)
        )
    )


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
