"""The Python API: what the commands do, as functions.

A path may be a `str` or a `Path`, a bundle also a `Bundle` that is open already. Errors that the caller can mend are
`UserError`, with one message that says how.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.bundle import Bundle, open_bundle
from export.checkpoint.path import require_checkpoint
from export.errors import UserError

if TYPE_CHECKING:
    from engines.bench.report import BenchReport
    from engines.serving.openai.run import Listening
    from engines.sizing.limits import Limits
    from engines.store.build import Built
    from export.models.configuration import KvCachePrecision
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
    kv_cache: "KvCachePrecision | None" = None,
    calibrate: str | Path | None = None,
    static_inputs: bool = False,
    keep_worst: float = 0.0,
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
        kv_cache: "int8" or "fp8": what cached keys and values are kept in; None: as they are computed.
        calibrate: a folder of pictures, or a file with {"messages": [...]} a line: what the layers are quantized for;
            None: each value is rounded by itself.
        static_inputs: with `calibrate`, round the inputs of int8 and fp8 by one scale a layer instead of one a token.
        keep_worst: share of the quantized weights' bytes, such as 0.05, that stays as it is for its error.
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
        adapter=_path(adapter),
        quantize={"decoder": quantize, "vision": quantize_vision, "head": quantize_head},
        kv_cache=kv_cache,
        calibrate=None if calibrate is None else Path(calibrate),
        static_inputs=static_inputs,
        keep_worst=keep_worst,
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
    limits: "Limits | Mapping[str, int] | None" = None,
    jobs: int = 1,
    rebuild: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> "Built":
    """Build the engine of a bundle for a target, unless it is there.

    Args:
        bundle: what is built.
        target: a backend's name, such as "tensorrt-rtx".
        sm: architectures, compute capability x 10; empty: the backend's choice.
        limits: the largest calls; of a mapping's names such as `max_context`, those that are left out have their
            defaults, within the model's context.
        jobs: graphs built at once.
        rebuild: build although the engine is there.
        progress: told what is going on, and the fraction that is done.
        options: the backend's own, such as `weight_streaming=True`.

    Raises:
        UserError: what was asked cannot be built here; what is missing.
        EngineError: the target refuses a graph.
    """
    from engines.backends import backend_of
    from engines.gpus import gpu_facts
    from engines.store.planned import plan_build

    known = backend_of(target).option_names
    if foreign := sorted(options.keys() - known):
        listed = ", ".join(sorted(known)) or "none"
        raise UserError(f"{target} has no option {', '.join(foreign)}. Its options: {listed}.")
    planned = plan_build(
        as_bundle(bundle),
        target,
        gpu_facts=gpu_facts,
        sms=sm,
        limits={} if limits is None else limits if isinstance(limits, Mapping) else asdict(limits),
        options=options,
        jobs=jobs,
    )
    return planned.build(progress or _ignore, rebuild=rebuild)


def validate(
    bundle: str | Path | Bundle,
    engine: str | None = None,
    *,
    level: str = "standard",
    report: str | Path | None = None,
    dtype: str | None = None,
    cases: str | Path | None = None,
    gates: str | Path | None = None,
    golden: str | Path | None = None,
    tasks: str | Path | None = None,
    unquantized: str | Path | None = None,
    max_context: int | None = None,
    max_patches: int | None = None,
    max_batch: int | None = None,
    device: str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> "Report":
    """Compare an engine of a bundle with the PyTorch reference; the verdict is kept in the bundle.

    Args:
        bundle: what is validated.
        engine: a backend's name or an engine's key; None: the default backend. Or "torch", the reference itself.
        level: "quick", "standard" or "exhaustive".
        report: directory for the report's pages; None: none are written.
        dtype: what the reference computes in where it is the engine; None: the graphs' dtype.
        cases: a JSON file of conversations or a folder of images, asked as well.
        gates: TOML with `multiple` and fixed `[limits]` that replace what noise allows.
        golden: compare with this golden set instead of the reference.
        tasks: questions with answers, whose accuracy is compared.
        unquantized: the checkpoint before its weights were quantized, which is asked the tasks as well.
        max_context, max_patches, max_batch: the largest shapes to ask; None: the usual ones, within the engine's.
        device: which GPU, such as "cuda:1", where one computes; None: the first.
        resume: go on with the run that was interrupted before its report was written.
        progress: told what runs now, and the fraction that is done.

    Raises:
        UserError: no such engine, or it cannot run here; files that cannot be read.
    """
    from engines.backends import default_backend
    from validate.run.pipeline import validate_plan
    from validate.run.plan import make_plan

    if golden is not None and tasks is not None:
        raise UserError("A golden set replaces the reference, which the tasks need.", "Leave one out.")
    if unquantized is not None and tasks is None:
        raise UserError("The unquantized checkpoint is asked the questions of the tasks.", "Give those too.")
    plan = make_plan(
        as_bundle(bundle),
        engine or default_backend().name,
        level,
        max_context=max_context,
        max_patches=max_patches,
        max_batch=max_batch,
        dtype=dtype,
        cases=_path(cases),
        gates_file=_path(gates),
        golden=_path(golden),
        tasks=_path(tasks),
        unquantized=_path(unquantized),
        device=device,
    )
    tell = progress or _ignore
    return validate_plan(
        plan, _path(report), lambda text, done, total: tell(text, done / total), resume=resume
    )


def bench(
    bundle: str | Path | Bundle,
    engine: str | None = None,
    *,
    sections: Sequence[str] = (),
    seconds: float = 1.0,
    num_slots: int | None = None,
    max_context: int | None = None,
    num_threads: int | None = None,
    num_ranks: int | None = None,
    hostfile: str | Path | None = None,
    num_clients: Sequence[int] = (),
    num_new_tokens: int | None = None,
    before: "BenchReport | str | Path | None" = None,
    progress: Progress | None = None,
) -> "BenchReport":
    """Measure a bundle's engine on this machine: each part alone, clients that ask at the same time, and memory.

    Args:
        bundle: what is measured.
        engine: a backend's name or an engine's key; None: the default backend.
        sections: of "preprocessing", "vision", "prefill", "decode", "serving" and "memory"; empty: all.
        seconds: how long each figure is measured, three samples at least.
        num_slots: KV slots; None: 8, or the engine's.
        max_context: tokens in one slot; None: 4,096, the engine's, or the model's own if that is less.
        num_threads: CPU threads; None takes every core.
        num_ranks: processes that compute together, as `load` takes them; None: this one.
        hostfile: the machines of the ranks; see `load`.
        num_clients: of serving; empty: one, and as many as there are slots.
        num_new_tokens: of each answer of serving; None: 32.
        before: a report, or its file, that the new one shall be comparable with: refused before anything is measured
            where machine, engine or settings are others. `engines.bench.compare.compare` compares the two.
        progress: told each section, and the fraction of them that is done.

    Raises:
        UserError: no such section, no engine that this machine can load, or a wish that it cannot follow.
        EngineError: the engine fails.
    """
    from engines.backends import BACKENDS
    from engines.bench.compare import require_comparable
    from engines.bench.report import BenchReport, read_report
    from engines.bench.run import DEFAULT_NEW_TOKENS, Wishes, measure_engine, subject_of
    from engines.bench.sampling import Effort
    from engines.bench.sections import SECTIONS
    from engines.open import choose_engine
    from engines.serving.settings import settings_for
    from engines.store.compatibility import this_machine

    if unknown := [name for name in sections if name not in SECTIONS]:
        raise UserError(f"There is no section {', '.join(unknown)}.", f"Choose of {', '.join(SECTIONS)}.")
    older = before if before is None or isinstance(before, BenchReport) else read_report(Path(before))
    opened, machine = as_bundle(bundle), this_machine()
    settings = settings_for(
        opened,
        None if engine in BACKENDS else engine,
        num_slots=num_slots,
        max_context=max_context,
        num_threads=num_threads,
        num_ranks=num_ranks,
        hostfile=_path(hostfile),
        max_queue=None,
        allowed_hosts=(),
    )
    chosen = choose_engine(
        opened, engine, num_slots=settings.num_slots, capacity=settings.capacity, machine=machine
    )
    subject = subject_of(opened, chosen, settings, machine)
    if older is not None:
        require_comparable(older.subject, subject)
    wishes = Wishes(
        tuple(name for name in SECTIONS if name in sections) or SECTIONS,
        Effort(seconds),
        tuple(num_clients),
        num_new_tokens or DEFAULT_NEW_TOKENS,
    )
    return measure_engine(opened, chosen, settings, subject, wishes, progress or _ignore)


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


def serve(
    bundle: str | Path | Bundle,
    engine: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    model_name: str | None = None,
    num_slots: int | None = None,
    max_context: int | None = None,
    num_threads: int | None = None,
    device: str | None = None,
    num_ranks: int | None = None,
    hostfile: str | Path | None = None,
    max_queue: int | None = None,
    allowed_hosts: Sequence[str] = (),
    budgets: Mapping[str, Any] | None = None,
    strict_media: bool = False,
    api_keys: Sequence[str] = (),
    page: bool = True,
    origins: Sequence[str] = (),
    drain_seconds: float = 30.0,
    when_listening: "Callable[[Listening], None] | None" = None,
) -> None:
    """Answer questions to a bundle over OpenAI's API, in this process, until SIGTERM or SIGINT.

    Args:
        bundle: what answers.
        engine: a backend's name or an engine's key; None: the default backend.
        host, port: where to listen; port 0 takes a free one.
        model_name: what clients call it; None: the checkpoint's name.
        num_slots: answers written at the same time; None: 8, or the engine's largest batch.
        max_context: tokens of a KV slot; None: the engine's, or 4,096, or the model's if that is less.
        num_threads: CPU threads; None takes every core.
        device: which GPU, such as "cuda:1", where one computes; None: the first.
        num_ranks, hostfile: processes that compute together, and their machines; as for `load`.
        max_queue: requests that may wait; None: 64.
        allowed_hosts: from which images may be fetched, `*.example.org` for all below one; none: from nowhere.
        budgets: pixels, frames and seconds of all images and videos, such as `{"max_pixels": 200_704}`.
        strict_media: refuse any damage of an image or video; otherwise 15 % may be lost.
        api_keys: of those who may ask; none: anybody who reaches it.
        page: whether the page at / is there.
        origins: of pages whose scripts may ask, such as `https://chat.example.org`; `*` is every one.
        drain_seconds: how long answers that are being written may go on after SIGTERM.
        when_listening: told once the model is warm and connections are taken.

    Raises:
        UserError: an address that cannot be listened on, values out of range, no engine that this machine can load.
    """
    from engines.backends import BACKENDS
    from engines.open import choose_engine
    from engines.serving.openai.http.keys import checked_keys
    from engines.serving.openai.http.origins import checked_origin
    from engines.serving.openai.run import serve_bundle
    from engines.serving.settings import settings_for
    from engines.store.compatibility import this_machine

    opened = as_bundle(bundle)
    settings = settings_for(
        opened,
        None if engine in BACKENDS else engine,
        num_slots=num_slots,
        max_context=max_context,
        num_threads=num_threads,
        device=device,
        num_ranks=num_ranks,
        hostfile=_path(hostfile),
        max_queue=max_queue,
        allowed_hosts=allowed_hosts,
        budgets=budgets,
        strict_media=strict_media,
        drain_seconds=drain_seconds,
    )
    capacity, machine = settings.capacity, this_machine()
    serve_bundle(
        opened,
        choose_engine(opened, engine, num_slots=settings.num_slots, capacity=capacity, machine=machine),
        settings,
        host=host,
        port=port,
        model_name=model_name or opened.manifest.source.name,
        keys=checked_keys(api_keys, "api_keys") if api_keys else (),
        with_page=page,
        origins=tuple(map(checked_origin, origins)),
        when_listening=when_listening or (lambda _listening: None),
    )


def as_bundle(bundle: str | Path | Bundle) -> Bundle:
    """A bundle that is open.

    Raises:
        UserError: no bundle there, or one whose files differ from its manifest.
    """
    return bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _ignore(_text: str, _fraction: float) -> None:
    pass
