"""`qv-export build`: a bundle becomes engines; what they will cost, and whether there is anything to do."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.errors import UserError
from qv_export.parameters import Architecture, TargetChoice
from qv_export.show.console import note, print_json, progress_bar

if TYPE_CHECKING:
    from engines.gpus import GpuFacts
    from engines.sizing.costs import Plan, Shortage
    from engines.sizing.images import PictureSizes
    from engines.store.build import Built
    from engines.store.cache import EngineRequest
    from export.bundle import Bundle

GATE_FAILED = 1
LIMIT_NAMES = ("max_patches", "max_segments", "max_batch", "max_prompt_tokens", "max_context")


@click.command(short_help="Compile a bundle into engines.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target",
    required=True,
    type=TargetChoice(),
    help="tensorrt-rtx builds on any CPU, tensorrt on the GPU that will run it.",
)
@click.option(
    "--sm",
    "sms",
    multiple=True,
    type=Architecture(),
    help="Architecture as compute capability x 10, e.g. 89. Repeat it for several in one engine. "
    "Default: this machine's GPU; tensorrt-rtx without one: 80, 86, 89, 120.",
)
@click.option("--max-patches", type=int, help="Patches of 14 x 14 pixels in one vision call. Default: 16384.")
@click.option(
    "--max-segments",
    type=int,
    help="Pictures and video steps in one vision call. Default: as many, up to 64, as fit on the card.",
)
@click.option("--max-batch", type=int, help="Rows of one decoder call, and KV slots. Default: 8.")
@click.option(
    "--max-prompt-tokens",
    type=int,
    help="Tokens of one prefill call; longer prompts go in chunks. Default: 2048.",
)
@click.option("--max-context", type=int, help="Tokens of prompt and answer in a KV slot. Default: 4096.")
@click.option(
    "--profile-from",
    "pictures",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of pictures like those that will be served: their sizes give the limits that are not given.",
)
@click.option(
    "--pictures-per-prompt",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="With --profile-from: how many of them come together.",
)
@click.option(
    "--hardware-compatibility",
    type=click.Choice(["none", "same_compute_capability", "ampere_plus"]),
    help="tensorrt: other GPUs that the engine must run on. Default: none.",
)
@click.option(
    "--cached-attention",
    type=click.Choice(["native", "plugin"]),
    help="tensorrt: attend to the KV cache with its own layer, or with a kernel that reads only what is valid. "
    "Default: native.",
)
@click.option(
    "--weight-streaming",
    is_flag=True,
    help="For a model larger than its GPU: weights may stay in host memory.",
)
@click.option(
    "--only-logits",
    is_flag=True,
    help="tensorrt, tensorrt-rtx: leave out the candidates beside the logits, which spare serving their way to the "
    "host.",
)
@click.option(
    "--optimization-level", type=click.IntRange(0, 5), help="0 builds fast, 5 runs fast. Default: TensorRT's."
)
@click.option(
    "--timing-cache",
    type=click.Path(dir_okay=False, path_type=Path),
    help="tensorrt: file of measured kernel times, read and written.",
)
@click.option(
    "--jobs", type=click.IntRange(1, 2), default=1, show_default=True, help="Graphs built at the same time."
)
@click.option(
    "--gpu-memory",
    type=click.FloatRange(min=0, min_open=True),
    help="GB of the GPU that will run it, to plan for.",
)
@click.option(
    "--plan", "only_plan", is_flag=True, help="Only say what it will cost; exit 1 if it will not fit."
)
@click.option(
    "--check", "only_check", is_flag=True, help="Only say what would be built, and why; exit 1 if anything."
)
@click.option(
    "--rebuild",
    is_flag=True,
    help="Build although the engine is there: one that came with a bundle from others is only as good as they are.",
)
@click.option("--force", is_flag=True, help="Build although the plan says that it does not fit.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def build(
    ctx: click.Context,
    /,
    bundle: Path,
    target: str,
    sms: tuple[int, ...],
    pictures: Path | None,
    pictures_per_prompt: int,
    jobs: int,
    gpu_memory: float | None,
    only_plan: bool,
    only_check: bool,
    force: bool,
    rebuild: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Compile both graphs of BUNDLE into BUNDLE/engines/KEY.

    The key is a hash over everything that could change the engine: built once, it is used again until one of them
    changes. What it will cost is worked out first.
    """
    if only_plan and only_check:
        raise click.UsageError("--plan and --check each answer instead of a build. Give one of them.")
    from engines.gpus import gpu_facts
    from engines.store.build import reusable
    from export.bundle import open_bundle
    from qv_export.show.build import plan_json, show_built, show_pictures, show_plan

    opened = open_bundle(bundle)
    sizes, proposed = read_pictures(opened, pictures, pictures_per_prompt)
    # Asked only where it matters: nvidia-smi may take a second.
    asked: list[GpuFacts] = []

    def gpus_here() -> "Sequence[GpuFacts]":
        asked.extend(gpu_facts())
        return asked

    request = make_request(opened, target, sms, gpus_here, proposed, choices, gpu_memory)
    gpus = tuple(asked)
    if only_check:
        ctx.exit(GATE_FAILED if show_check(opened, request, as_json) else 0)
    if not only_plan and not rebuild and (built := reusable(opened, request)):
        show_built(built, None, as_json)
        return
    plan = make_plan_of(opened, request, jobs)
    shortages = shortages_of(plan, opened.directory, request, gpus, gpu_memory)
    if sizes is not None and not as_json:
        show_pictures(sizes, request.limits)
    if only_plan:
        if as_json:
            print_json(plan_json(plan, shortages, sizes))
        else:
            named = device_bytes_of(request, gpus, gpu_memory) is not None
            show_plan(plan, shortages, asks_for_card=request.backend.device == "gpu" and not named)
        ctx.exit(GATE_FAILED if shortages else 0)
    if not force:
        require_room(shortages)
    warn_of_known_issues(opened, request)
    show_built(build_or_reuse(opened, request, gpus, jobs, rebuild=rebuild), plan, as_json)


def read_pictures(
    bundle: "Bundle", pictures: Path | None, pictures_per_prompt: int
) -> tuple["PictureSizes | None", dict[str, int]]:
    """The sizes in a folder, and the limits that they ask for."""
    if pictures is None:
        return None, {}
    from engines.sizing.images import limits_for_pictures, read_picture_sizes
    from export.processor.settings import load_settings

    settings, _ = load_settings(bundle.directory)
    sizes = read_picture_sizes(pictures, settings)
    return sizes, limits_for_pictures(sizes, settings, pictures_per_prompt)


def make_request(
    bundle: "Bundle",
    target: str,
    sms: tuple[int, ...],
    gpus: "Callable[[], Sequence[GpuFacts]]",
    proposed: dict[str, int],
    choices: dict[str, Any],
    gpu_memory_gb: float | None,
) -> "EngineRequest":
    """Everything that decides what is built, checked."""
    from engines.backends import backend_of
    from engines.backends.base import device_costs
    from engines.sizing.choose_limits import choose_limits
    from engines.store.cache import EngineRequest

    backend = backend_of(target)
    given = {name: choices[name] for name in LIMIT_NAMES if choices[name] is not None}
    costs_of = device_costs(backend, bundle)
    limits = choose_limits(bundle.config, given, proposed, costs_of, gpu_memory_gb)
    options = {name: value for name, value in choices.items() if name not in LIMIT_NAMES and value}
    return EngineRequest(backend, limits, backend.architectures(sms, gpus), options)


def make_plan_of(bundle: "Bundle", request: "EngineRequest", jobs: int) -> "Plan":
    from engines.backends.base import bundle_costs
    from engines.sizing.costs import make_plan

    costs_of = bundle_costs(request.backend, bundle)
    dtype = bundle.manifest.dtype
    return make_plan(request.backend.name, bundle.config, dtype, request.limits, costs_of, jobs)


def shortages_of(
    plan: "Plan",
    bundle: Path,
    request: "EngineRequest",
    gpus: "Sequence[GpuFacts]",
    gpu_memory_gb: float | None,
) -> "list[Shortage]":
    """What does not fit into this machine, or into the GPU that will run the engine."""
    from engines.sizing.costs import free_disk_bytes, free_ram_bytes, shortages

    device_bytes = device_bytes_of(request, gpus, gpu_memory_gb)
    return shortages(plan, free_ram_bytes(), free_disk_bytes(bundle), device_bytes)


def device_bytes_of(
    request: "EngineRequest", gpus: "Sequence[GpuFacts]", gpu_memory_gb: float | None
) -> int | None:
    """Memory of the card that will run an engine: the named one's, or this machine's smallest that it is built for."""
    here = [gpu.memory_mib << 20 for gpu in gpus if gpu.sm in request.sms and gpu.memory_mib]
    return int(gpu_memory_gb * 1e9) if gpu_memory_gb else min(here, default=None)


def require_room(shortages: "Sequence[Shortage]") -> None:
    """Refuse a build that does not fit.

    Raises:
        UserError: with everything that is missing and what helps.
    """
    if shortages:
        raise UserError(
            "This build does not fit (--force tries all the same):\n- "
            + "\n- ".join(shortage.sentence() for shortage in shortages)
        )


def show_check(bundle: "Bundle", request: "EngineRequest", as_json: bool) -> bool:
    """Say what would be built and why; True if anything."""
    from engines.store.cache import key_inputs, reason_to_build
    from export.records.manifest import content_key

    inputs = key_inputs(bundle.manifest.key, request)
    key = content_key(inputs)
    reason = reason_to_build(bundle.directory, inputs)
    if as_json:
        print_json({"key": key, "up_to_date": reason is None, "reason": reason, "inputs": inputs})
    else:
        directory = bundle.engine_directory(key)
        click.echo(f"{directory}: {'up to date' if reason is None else f'would be built ({reason})'}")
    return reason is not None


def warn_of_known_issues(bundle: "Bundle", request: "EngineRequest") -> None:
    from engines.backends.known_issues import Situation
    from plugins.registry import known_plugins

    situation = Situation(
        version=request.backend.version() or "0",
        sms=request.sms,
        limits=asdict(request.limits),
        dtype=bundle.manifest.dtype,
        has_plugins=bool(known_plugins()),
    )
    for issue in request.backend.known_issues(situation):
        note(f"warning: {issue.sentence()}")


def build_or_reuse(
    bundle: "Bundle", request: "EngineRequest", gpus: "Sequence[GpuFacts]", jobs: int, *, rebuild: bool
) -> "Built":
    from engines.store.build import build_engine_directory

    with progress_bar() as bar:
        return build_engine_directory(bundle, request, gpus, jobs, bar, rebuild=rebuild)
