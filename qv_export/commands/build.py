"""`qv-export build`: a bundle becomes engines; what they will cost, and whether there is anything to do."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.errors import UserError
from qv_export.parameters import Architecture, TargetChoice
from qv_export.show.console import note, print_json, progress_bar

if TYPE_CHECKING:
    from engines.sizing.costs import Shortage

GATE_FAILED = 1
LIMIT_NAMES = ("max_patches", "max_segments", "max_batch", "max_prompt_tokens", "max_context")


@click.command("build", short_help="Compile a bundle into engines.")
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
    "--gpus",
    "num_gpus",
    type=click.IntRange(min=1, max=64),
    help="With --plan and --gpu-memory: propose how so many such GPUs hold the model, by ranks, stages and copies.",
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
def build_command(
    ctx: click.Context,
    /,
    bundle: Path,
    target: str,
    sms: tuple[int, ...],
    pictures: Path | None,
    pictures_per_prompt: int,
    jobs: int,
    gpu_memory: float | None,
    num_gpus: int | None,
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
    _require_one_answer(num_gpus, gpu_memory, only_plan=only_plan, only_check=only_check)
    from engines.gpus import gpu_facts
    from engines.store.planned import plan_build
    from export.bundle import open_bundle
    from qv_export.show.build import plan_json, show_built, show_check, show_images, show_plan
    from qv_export.show.divide import show_divisions

    planned = plan_build(
        open_bundle(bundle),
        target,
        gpu_facts=gpu_facts,
        sms=sms,
        limits={name: choices[name] for name in LIMIT_NAMES if choices[name] is not None},
        options={name: value for name, value in choices.items() if name not in LIMIT_NAMES and value},
        images=pictures,
        images_per_prompt=pictures_per_prompt,
        gpu_memory_gb=gpu_memory,
        jobs=jobs,
    )
    if only_check:
        ctx.exit(GATE_FAILED if show_check(planned, as_json) else 0)
    if num_gpus is not None:
        ctx.exit(0 if show_divisions(planned.divisions(num_gpus), as_json=as_json) else GATE_FAILED)
    if not only_plan and not rebuild and (built := planned.built()):
        show_built(built, None, as_json)
        return
    shortages = planned.shortages()
    if planned.sizes is not None and not as_json:
        show_images(planned.sizes, planned.request.limits)
    if only_plan:
        if as_json:
            print_json(plan_json(planned.costs, shortages, planned.sizes))
        else:
            names_no_card = planned.request.backend.device == "gpu" and planned.device_bytes is None
            show_plan(planned.costs, shortages, asks_for_card=names_no_card)
        ctx.exit(GATE_FAILED if shortages else 0)
    if not force:
        require_fit(shortages)
    for issue in planned.known_issues():
        note(f"warning: {issue.sentence()}")
    with progress_bar() as bar:
        built = planned.build(bar, rebuild=rebuild)
    show_built(built, planned.costs, as_json)


def _require_one_answer(
    num_gpus: int | None, gpu_memory: float | None, *, only_plan: bool, only_check: bool
) -> None:
    if only_plan and only_check:
        raise click.UsageError("--plan and --check each answer instead of a build. Give one of them.")
    if num_gpus is not None and not (only_plan and gpu_memory):
        raise click.UsageError(
            "--gpus proposes a division: give --plan and --gpu-memory, GB of one GPU, with it."
        )


def require_fit(shortages: "Sequence[Shortage]") -> None:
    """Refuse a build that does not fit.

    Raises:
        UserError: with everything that is missing and what helps.
    """
    if shortages:
        raise UserError(
            "This build does not fit (--force tries all the same):\n- "
            + "\n- ".join(shortage.sentence() for shortage in shortages)
        )
