"""What `qv-export build` says: what something will cost, and what was built."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from export.wording import command_line, size_text
from qv_export.show.console import note, print_json, print_table
from qv_export.show.engine import reading_facts

if TYPE_CHECKING:
    from engines.sizing.costs import EngineCosts, Shortage
    from engines.sizing.images import ImageSizes
    from engines.sizing.limits import Limits
    from engines.store.build import Built
    from engines.store.planned import PlannedBuild
    from export.records.engine_record import EngineRecord

_BAR_WIDTH = 40


def show_images(sizes: "ImageSizes", limits: "Limits") -> None:
    """A histogram of the folder's pictures, on stderr: it leads to the result and is not part of it."""
    from engines.sizing.choose_limits import options_text
    from engines.sizing.images import histogram

    bins = histogram(sizes.patches)
    most = max(count for _, _, count in bins)
    lines = [f"{len(sizes.patches)} pictures in {sizes.directory}, by patches:"]
    lines += [
        f"{low:>7} .. {high:<7} {'█' * -(-_BAR_WIDTH * count // most):<{_BAR_WIDTH}} {count}"
        for low, high, count in bins
    ]
    shares = ", ".join(f"{percent} % up to {sizes.percentile(percent)}" for percent in (50, 90, 99))
    lines += [f"{shares}; largest {sizes.patches[-1]} patches, {sizes.patches[-1] // 4} tokens"]
    if sizes.skipped:
        lines += [
            f"{len(sizes.skipped)} files are no pictures that can be read; the first: {sizes.skipped[0]}"
        ]
    note("\n".join([*lines, f"Limits: {options_text(asdict(limits))}"]))


def show_check(planned: "PlannedBuild", as_json: bool) -> bool:
    """Say what would be built and why; True if anything."""
    reason, directory = planned.reason(), planned.directory
    if as_json:
        content = {"key": directory.name, "up_to_date": reason is None, "reason": reason}
        print_json({**content, "inputs": planned.inputs})
    else:
        click.echo(f"{directory}: {'up to date' if reason is None else f'would be built ({reason})'}")
    return reason is not None


def show_plan(plan: "EngineCosts", shortages: "Sequence[Shortage]", *, asks_for_card: bool) -> None:
    """From pixels to bytes, as tables.

    Args:
        plan: the plan.
        shortages: what does not fit.
        asks_for_card: it runs on a GPU that nobody named, so common ones are compared.
    """
    from engines.sizing.cards import card_lines

    limits = plan.limits
    rows = [
        (
            "pictures of one vision call",
            f"{plan.max_pixels / 1e6:.1f} megapixels in {limits.max_segments} segments",
        ),
        ("patches", f"{limits.max_patches:,}"),
        ("visual tokens", f"{plan.max_visual_tokens:,}"),
        ("prompt of one prefill call", f"{limits.prompt_tokens:,} tokens x {limits.max_batch} rows"),
        (
            "KV cache",
            f"{size_text(plan.kv_bytes_per_token)} a token, {limits.max_context:,} x {limits.max_batch} slots",
        ),
    ]
    print_table(f"Limits ({plan.target}, {plan.dtype})", ("what", "size"), rows)
    graphs = [
        (
            graph.name,
            f"{graph.num_weights:,}",
            size_text(graph.weights_bytes),
            size_text(graph.activation_bytes),
            size_text(graph.engine_bytes) if graph.engine_bytes else "-",
            size_text(graph.build_ram_bytes),
        )
        for graph in plan.graphs
    ]
    header = ("graph", "weights", "their bytes", "activations at most", "engine file", "memory to build")
    print_table("Graphs", header, graphs)
    totals = [
        ("to run: weights, activations, KV cache", size_text(plan.device_bytes)),
        ("of which KV cache", size_text(plan.kv_cache_bytes)),
        *_several_gpus(plan),
        (f"memory to build, {plan.jobs} at a time", size_text(plan.build_ram_bytes)),
        ("disk", size_text(plan.disk_bytes)),
    ]
    print_table("Together", ("what", "bytes"), totals)
    for line in card_lines(plan) if asks_for_card else ():
        click.echo(line)
    for shortage in shortages:
        click.echo(f"does not fit: {shortage.sentence()}")


def _several_gpus(plan: "EngineCosts") -> list[tuple[str, str]]:
    """What the fullest GPU needs where each stage has one."""
    from engines.sizing.stages import fullest_bytes

    num_stages = len(plan.graphs) - 1
    needed = fullest_bytes(plan.costs_of(plan.limits), plan.limits)
    return [(f"on {num_stages} GPUs, the fullest", size_text(needed))] if num_stages > 1 else []


def plan_json(
    plan: "EngineCosts", shortages: "Sequence[Shortage]", sizes: "ImageSizes | None"
) -> dict[str, Any]:
    """The same as one object."""
    from engines.sizing.cards import smallest_card
    from engines.sizing.images import histogram
    from engines.sizing.stages import fullest_bytes

    pictures = None
    if sizes is not None:
        pictures = {
            "directory": sizes.directory,
            "num_pictures": len(sizes.patches),
            "histogram": [
                {"from_patches": low, "to_patches": high, "count": count}
                for low, high, count in histogram(sizes.patches)
            ],
            "skipped": list(sizes.skipped),
        }
    return {
        "target": plan.target,
        "dtype": plan.dtype,
        "limits": asdict(plan.limits),
        "max_pixels": plan.max_pixels,
        "max_visual_tokens": plan.max_visual_tokens,
        "kv_bytes_per_token": plan.kv_bytes_per_token,
        "kv_cache_bytes": plan.kv_cache_bytes,
        "graphs": [asdict(graph) for graph in plan.graphs],
        "device_bytes": plan.device_bytes,
        "fullest_device_bytes": fullest_bytes(plan.costs_of(plan.limits), plan.limits),
        "build_ram_bytes": plan.build_ram_bytes,
        "disk_bytes": plan.disk_bytes,
        "smallest_card_gb": smallest_card(plan.device_bytes),
        "shortages": [asdict(shortage) for shortage in shortages],
        "pictures": pictures,
    }


def show_built(built: "Built", plan: "EngineCosts | None", as_json: bool) -> None:
    """What stands in the cache now."""
    record = built.record
    if as_json:
        content = {"engine": str(built.directory), "is_new": built.is_new, **asdict(record)}
        print_json(content | ({} if plan is None else {"plan": plan_json(plan, (), None)}))
        return
    if not built.is_new:
        note(f"{built.directory}: nothing to do, {engine_text(record)} was built {record.created}")
        return
    note(f"{built.directory}: {engine_text(record)}, {record.seconds:.1f} s")
    with reading_facts(built.directory):
        lines = [*note_lines(record), *warning_lines(record)]
    for line in lines:
        note(line)
    note(f"Next: {command_line('inspect', built.directory)}")


def engine_text(record: "EngineRecord") -> str:
    """Target, architectures and size in a few words."""
    sms = f" for {', '.join(f'SM{sm}' for sm in record.sms)}" if record.sms else ""
    size = sum(file.bytes for file in record.files)
    return f"{record.target}{sms}{f', {size_text(size)}' if size else ''}"


def note_lines(record: "EngineRecord") -> list[str]:
    """What is unusual about how the engines compute."""
    return [
        f"note: {graph}: {sentence}"
        for graph, facts in record.facts.items()
        for sentence in facts.get("notes", ())
    ]


def warning_lines(record: "EngineRecord") -> list[str]:
    """The library's warnings that ask for something, counted; `inspect` shows all."""
    return [
        f"warning: {graph}, {warning['count']} times: {warning['message']}"
        for graph, facts in record.facts.items()
        for warning in facts["warnings"]
        if not warning.get("is_expected")
    ]
