"""The Python API: what the commands do, as functions.

A path may be a `str` or a `Path`, a bundle also a `Bundle` that is open already. Errors that the caller can mend are
`UserError`, with one message that says how.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.bundle import Bundle, open_bundle
from export.checkpoint.path import require_checkpoint
from export.errors import UserError

if TYPE_CHECKING:
    from engines.sizing.limits import Limits
    from engines.store.build import Built
    from export.records.manifest import WeightsMode
    from qv_export.model import Model
    from validate.report.report import Report

DEFAULT_CONTEXT_TOKENS = 4096
"""Of a loaded model's KV slot, or the model's own if that is less: the default of `build` and `deploy` too."""

Progress = Callable[[str, float], None]
"""Told what is going on, and the fraction that is done."""


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    dtype: str | None = None,
    weights: "WeightsMode" = "copy",
    adapter: str | Path | None = None,
    quantize: str | None = None,
    quantize_vision: str | None = None,
    quantize_head: str | None = None,
    strict: bool = False,
    pipeline_stages: int = 1,
    tensor_parallel: int = 1,
    progress: Progress | None = None,
) -> Bundle:
    """Write the bundle of a checkpoint, and open it.

    Args:
        checkpoint: a directory as downloaded from the hub.
        output: the bundle's directory; one that is there is replaced once the new one is whole.
        dtype: what the graphs compute in; None: the checkpoint's own.
        weights: "copy" for a self-contained bundle, "link" to copy no weight byte.
        adapter: a PEFT LoRA adapter's directory, merged into the weights that it changes.
        quantize: "int4", "int8", "int8-weights" or "fp8": what becomes of the decoder's linear layers; None: nothing.
        quantize_vision: the same of the vision encoder's.
        quantize_head: "int4" or "int8-weights", of the token embedding and the projection to the vocabulary.
        strict: refuse what would otherwise be a warning: files that contradict each other or hold more than the model.
        pipeline_stages: how many graphs the decoder is cut into, at the borders of its layers, for as many devices.
        tensor_parallel: among how many ranks the heads, the MLP and the vocabulary are divided, each a device.
        progress: told each phase, and the fraction that is done.

    Raises:
        UserError: no sound Qwen2-VL checkpoint, or an output that cannot be written.
    """
    from export.install import require_extra

    require_checkpoint(Path(checkpoint))
    require_extra("export", "Exporting a checkpoint")
    from export.exporter import export_checkpoint

    manifest = export_checkpoint(
        Path(checkpoint),
        Path(output),
        dtype=dtype,
        weights=weights,
        adapter=None if adapter is None else Path(adapter),
        quantize={"decoder": quantize, "vision": quantize_vision, "head": quantize_head},
        strict=strict,
        pipeline_stages=pipeline_stages,
        tensor_parallel=tensor_parallel,
        progress=progress,
    )
    return Bundle(Path(output), manifest)


def build(
    bundle: str | Path | Bundle,
    target: str,
    *,
    sm: Sequence[int] = (),
    limits: "Limits | None" = None,
    jobs: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> "Built":
    """Build the engine of a bundle for a target, unless it is there.

    Args:
        bundle: what is built.
        target: a backend's name, such as "tensorrt-rtx".
        sm: architectures, compute capability x 10; empty: the backend's choice.
        limits: the largest calls; None: the defaults, within the model's context.
        jobs: graphs built at once.
        progress: told what is going on, and the fraction that is done.
        options: the backend's own, such as `weight_streaming=True`.

    Raises:
        UserError: what was asked cannot be built here; what is missing.
        EngineError: the target refuses a graph.
    """
    from engines.backends import backend_of
    from engines.backends.base import device_costs
    from engines.gpus import gpu_facts
    from engines.sizing.choose_limits import choose_limits
    from engines.store.build import build_engine_directory
    from engines.store.cache import EngineRequest

    opened, backend = as_bundle(bundle), backend_of(target)
    if foreign := sorted(options.keys() - backend.option_names):
        known = ", ".join(sorted(backend.option_names)) or "none"
        raise UserError(f"{target} has no option {', '.join(foreign)}. Its options: {known}.")
    chosen = limits or choose_limits(opened.config, {}, {}, device_costs(backend, opened))
    request = EngineRequest(backend, chosen, backend.architectures(sm, gpu_facts), options)
    return build_engine_directory(opened, request, gpu_facts(), jobs, progress or _ignore)


def validate(
    bundle: str | Path | Bundle,
    engine: str | None = None,
    *,
    level: str = "standard",
    report: str | Path | None = None,
) -> "Report":
    """Compare an engine of a bundle with the PyTorch reference; the verdict is kept in the bundle.

    Args:
        bundle: what is validated.
        engine: a backend's name or an engine's key; None: the default backend.
        level: "quick", "standard" or "exhaustive".
        report: directory for the report's pages; None: none are written.

    Raises:
        UserError: no such engine, or it cannot run here.
    """
    from engines.backends import default_backend
    from validate.run.pipeline import validate_bundle

    target = engine or default_backend().name
    return validate_bundle(as_bundle(bundle), target, level, None if report is None else Path(report))


def load(
    bundle: str | Path | Bundle,
    engine: str | None = None,
    *,
    max_context: int | None = None,
    num_threads: int | None = None,
    device: str | None = None,
    num_ranks: int | None = None,
    hostfile: str | Path | None = None,
) -> "Model":
    """Load a bundle's engine, ready to answer.

    Args:
        bundle: what `export` wrote.
        engine: a backend's name or an engine's key; None: the default backend, ONNX Runtime on the CPU.
        max_context: tokens of prompt and answer together; None: 4,096, or the model's own if that is less.
        num_threads: CPU threads; None takes every core.
        device: which GPU, such as "cuda:1", where one computes; None: the first.
        num_ranks: processes that compute together, one a stage of the bundle; None: this one. Close the model, then.
        hostfile: the machines of the ranks, as `mpirun` reads them; None: this one, or those that Slurm gave.

    Raises:
        UserError: no bundle, or no engine that this machine can load.
        EngineError: the engine's library refuses it.
    """
    from engines.open import choose_engine, open_chosen
    from engines.store.compatibility import this_machine
    from qv_export.model import Model

    opened = as_bundle(bundle)
    longest = opened.config.decoder.max_position_embeddings
    if max_context is not None and not 1 <= max_context <= longest:
        raise UserError(f"max_context must be from 1 to the model's {longest}, found {max_context}.")
    capacity = max_context or min(DEFAULT_CONTEXT_TOKENS, longest)
    chosen = choose_engine(opened, engine, num_slots=1, capacity=capacity, machine=this_machine())
    sessions = open_chosen(
        opened,
        chosen,
        num_slots=1,
        capacity=capacity,
        num_threads=num_threads,
        device=device,
        num_ranks=num_ranks,
        hostfile=None if hostfile is None else str(hostfile),
    )
    return Model(opened, sessions, chosen.key)


def as_bundle(bundle: str | Path | Bundle) -> Bundle:
    """A bundle that is open.

    Raises:
        UserError: no bundle there, or one whose files differ from its manifest.
    """
    return bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))


def _ignore(_text: str, _fraction: float) -> None:
    pass
