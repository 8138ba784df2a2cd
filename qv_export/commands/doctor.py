"""`qv-export doctor`: what can this machine export, build and run, and what is missing?"""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from qv_export.console import print_json, print_table, size_text

if TYPE_CHECKING:
    from qv_export.machine_facts import GpuFacts, MachineFacts


@click.command(short_help="Show what this machine can export, build and run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Show versions, hardware and which targets this machine can build and run.

    Exits 0 on a machine without a GPU too: that is no fault.
    """
    from qv_export.machine_facts import machine_facts

    facts = machine_facts()
    if as_json:
        print_json(asdict(facts))
    else:
        show(facts)


def show(facts: "MachineFacts") -> None:
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
    ]
    print_table("Packages", ("package", "installed", "needed", "extra", ""), packages)
    targets = [(target.name, yes(target.builds), yes(target.runs), target.advice) for target in facts.targets]
    print_table("Targets", ("target", "builds here", "runs here", ""), targets)
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
