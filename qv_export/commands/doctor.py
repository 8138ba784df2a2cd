"""`qv-export doctor`: what can be done on this machine, and what is missing for the rest."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from export.wording import size_text
from qv_export.show.console import print_json, print_table, progress

if TYPE_CHECKING:
    from engines.gpus import GpuFacts
    from plugins.tensorrt.report import PluginsReport
    from qv_export.show.machine import MachineFacts

DEVELOPER_EXTRAS = ("dev", "tiny")
"""What no user of the commands needs; `--json` lists their packages too."""


@click.command(short_help="Show what this machine can export, build and run.")
@click.option("--plugins", "with_plugins", is_flag=True, help="Compile the ops' kernels and show what loads.")
@click.option(
    "--engine",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --plugins: which of our kernels this engine's file holds.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(with_plugins: bool, engine: Path | None, as_json: bool) -> None:
    """Show versions, hardware and which targets this machine can build and run.

    Exits 0 on a machine without a GPU too: that is no fault.
    """
    from qv_export.show.machine import machine_facts

    if engine is not None and not with_plugins:
        raise click.UsageError("--engine needs --plugins")
    facts = machine_facts()
    plugins = plugins_report(engine) if with_plugins else None
    if as_json:
        print_json(asdict(facts) | ({} if plugins is None else {"plugins": asdict(plugins)}))
        return
    show(facts)
    if plugins is not None:
        show_plugins(plugins)


def plugins_report(engine: Path | None) -> "PluginsReport":
    from plugins.tensorrt.report import report

    with progress() as step:
        step("Compiling the kernels")
        return report(engine)


def show_plugins(plugins: "PluginsReport") -> None:
    rows = [(name, version or "not installed") for name, version in plugins.packages.items()]
    gpu = plugins.gpu or "none found: kernels are compiled, not loaded"
    from export.install import package_command

    print_table("Plugins", ("what", "value"), [*rows, ("GPU", gpu), ("TensorRT", plugins.registration)])
    kernels = [
        (
            kernel.plugin,
            kernel.architecture,
            f"{kernel.ptx_target}, ISA {kernel.ptx_isa}",
            str(kernel.registers),
            size_text(kernel.shared_bytes),
            size_text(kernel.spill_bytes),
        )
        for kernel in plugins.kernels
    ]
    header = ("plugin", "GPU", "PTX", "registers", "shared", "spilled")
    print_table("Kernels (bfloat16, Qwen2-VL's sizes)", header, kernels)
    if plugins.engine_kernels is not None:
        found = [(item.kernel, item.ptx_target, item.ptx_isa) for item in plugins.engine_kernels]
        print_table("Kernels in the engine", ("kernel", "PTX target", "ISA"), found)
        if not found:
            click.echo("The engine holds none of our kernels: it runs the ops' bodies, as native layers.")
    if plugins.packages.get("triton") is None:
        click.echo(f"note: the kernels are compiled by Triton. Install it: {package_command('triton')}")
    for problem in plugins.problems:
        click.echo(f"note: {problem}")


def show(facts: "MachineFacts") -> None:
    jobs = [(job.name, yes(job.possible), job.advice) for job in facts.jobs]
    print_table("What can be done here", ("job", "here", ""), jobs)
    targets = [
        (target.name, target.version or "-", yes(target.builds), yes(target.runs), target.advice)
        for target in facts.targets
    ]
    print_table("Targets", ("target", "library", "builds here", "runs here", ""), targets)
    print_table("Machine", ("what", "value"), machine_rows(facts))
    packages = [
        (
            package.name,
            package.installed or "-",
            package.required,
            package.extra,
            package_state(package.installed, package.fits),
        )
        for package in facts.packages
        if package.extra not in DEVELOPER_EXTRAS
    ]
    print_table("Packages", ("package", "installed", "needed", "extra", ""), packages)
    for warning in facts.warnings:
        click.echo(f"warning: {warning}")


def machine_rows(facts: "MachineFacts") -> list[tuple[str, str]]:
    gpus = [gpu_text(gpu) for gpu in facts.gpus]
    return [
        ("Python", facts.python),
        ("platform", facts.platform),
        ("CPU cores", str(facts.num_cores)),
        ("memory", size_text(facts.memory_bytes)),
        ("disk free here", size_text(facts.disk_free_bytes)),
        *[("GPU", gpu) for gpu in gpus or ["none found (nvidia-smi lists none)"]],
    ]


def gpu_text(gpu: "GpuFacts") -> str:
    major, minor = gpu.compute_capability
    return f"{gpu.name}, driver {gpu.driver}, SM{major}{minor}, {gpu.memory_mib} MiB"


def package_state(installed: str | None, fits: bool) -> str:
    if installed is None:
        return "not installed"
    return "ok" if fits else "does not fit"


def yes(answer: bool) -> str:
    return "yes" if answer else "no"
