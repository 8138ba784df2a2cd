"""`qv-export deploy triton`: a bundle becomes a model repository that a server answers with."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from qv_export.parameters import serving_options
from qv_export.show.console import note, print_json


@click.group(short_help="Pack a bundle for a server.")
def deploy() -> None:
    """Pack a bundle for a server."""


@deploy.command(short_help="Write a model repository for Triton Inference Server.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The model repository. One that is there is replaced once the new one is whole.",
)
@serving_options
@click.option(
    "--engine",
    metavar="KEY",
    help="Serve this TensorRT engine of the bundle, on a GPU. Default: ONNX Runtime, on the CPU.",
)
@click.option(
    "--parts",
    "has_parts",
    is_flag=True,
    help="Serve preprocessing and the vision encoder as models of their own, too.",
)
@click.option("--allow-unvalidated", is_flag=True, help="Deploy a bundle that has no passed validation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def triton(
    bundle: Path,
    output: Path,
    num_slots: int | None,
    max_context: int | None,
    num_threads: int | None,
    device: str | None,
    num_ranks: int | None,
    hostfile: Path | None,
    engine: str | None,
    has_parts: bool,
    max_queue: int | None,
    allowed_hosts: tuple[str, ...],
    media: dict[str, Any],
    allow_unvalidated: bool,
    as_json: bool,
) -> None:
    """Write a model repository for Triton Inference Server from BUNDLE.

    It holds the bundle, the runtime and the configuration; the server needs the packages of
    examples/triton/requirements.txt and no torch.
    """
    from engines.serving.settings import settings_for
    from engines.serving.triton.repository import write_repository
    from export.bundle import open_bundle

    opened = open_bundle(bundle)
    settings = settings_for(
        opened,
        engine,
        num_slots=num_slots,
        max_context=max_context,
        num_threads=num_threads,
        device=device,
        num_ranks=num_ranks,
        hostfile=hostfile,
        max_queue=max_queue,
        allowed_hosts=allowed_hosts,
        **media,
    )
    deployment = write_repository(
        opened, output, settings, has_parts=has_parts, allow_unvalidated=allow_unvalidated
    )
    if as_json:
        print_json({"repository": str(output), **asdict(deployment)})
        return
    if not deployment.is_validated:
        note(f"warning: {bundle} has no passed validation of what it serves, and {output} says so.")
    note(f"{output}: ready for `tritonserver --model-repository={output} --disable-auto-complete-config`")
