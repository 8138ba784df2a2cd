"""New weight bytes of an export: pickled weights converted, an adapter merged. Everything else stays by reference."""

from collections.abc import Callable
from pathlib import Path

from export.checkpoint.tensors import INDEX_FILE, SINGLE_FILE, Checkpoint, open_checkpoint
from export.errors import UserError
from export.weights import adapter as peft
from export.weights.pickled import convert_pickled, pickled_files


def needs_new_weights(checkpoint: Path, adapter: Path | None) -> bool:
    """Whether an export must write weights of its own beside the checkpoint's, or instead of them."""
    return adapter is not None or is_pickled(checkpoint)


def is_pickled(checkpoint: Path) -> bool:
    has_safetensors = (checkpoint / SINGLE_FILE).exists() or (checkpoint / INDEX_FILE).exists()
    return not has_safetensors and bool(pickled_files(checkpoint))


def write_new_weights(
    checkpoint: Path, adapter: Path | None, directory: Path, report: Callable[[str], None]
) -> Checkpoint:
    """Write an export's own weights into `directory`, and open the checkpoint with them.

    Raises:
        UserError: weights that cannot be converted, an adapter that cannot be merged or does not fit.
    """
    converted = _convert(pickled_files(checkpoint), directory, report) if is_pickled(checkpoint) else None
    base = open_checkpoint(checkpoint, converted)
    if adapter is None:
        return base
    if base.packed:
        raise UserError(
            f"{checkpoint} holds quantized weights ({base.config.quantization}), which no adapter is merged into.",
            "Merge it into the unquantized checkpoint: --adapter together with --quantize.",
        )
    from export.weights.merged import write_merged  # noqa: PLC0415 - torch

    report("merging the adapter")
    scratch = directory / ".adapter.safetensors"
    try:
        weights = None
        if not (adapter / peft.WEIGHTS_FILE).exists() and (adapter / peft.PICKLED_FILE).exists():
            convert_pickled(adapter / peft.PICKLED_FILE, scratch)
            weights = scratch
        is_tied = base.config.decoder.tie_word_embeddings
        merged = write_merged(base.tensors, peft.read_adapter(adapter, weights), directory, is_tied=is_tied)
    finally:
        scratch.unlink(missing_ok=True)
    return open_checkpoint(checkpoint, (*base.weight_files, merged))


def _convert(files: list[Path], directory: Path, report: Callable[[str], None]) -> list[Path]:
    """Name the converted files as Hugging Face names them."""
    targets = []
    for i, path in enumerate(files, start=1):
        report(f"converting {path.name}")
        name = SINGLE_FILE if len(files) == 1 else f"model-{i:05}-of-{len(files):05}.safetensors"
        targets.append(directory / name)
        convert_pickled(path, targets[-1])
    return targets
