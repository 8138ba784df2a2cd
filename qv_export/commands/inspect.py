"""`qv-export inspect`: what is in a bundle, graph or engine."""

from pathlib import Path

import click

from qv_export.show.console import note, print_json, print_table


@click.command(short_help="Show what a bundle, a graph or an engine holds.")
@click.argument("path", metavar="BUNDLE|GRAPH|ENGINE", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with a picture of the layers' sizes; it needs nothing from outside.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Read every byte of a bundle's weights and engines, and compare it with what was recorded.",
)
def inspect(path: Path, as_json: bool, html: Path | None, verify: bool) -> None:
    """Show what a bundle, an ONNX graph or a built engine holds: inputs, outputs, operators, layers, weights, versions.

    ENGINE is BUNDLE/engines/KEY or a file in it. A bundle is compared with its manifest on the way, an engine with its
    bundle. Weights are not read unless --verify asks for it, and no engine is loaded.
    """
    from qv_export.show.inspection import inspect_path
    from qv_export.show.page import write_page

    inspection = inspect_path(path)
    if verify:
        verify_bytes(path)
    if html is not None:
        write_page(inspection, html)
        note(f"{html}: written")
    if as_json:
        print_json(inspection.to_json())
    elif html is None:
        for table in inspection.tables():
            print_table(table.title, table.columns, table.rows)


def verify_bytes(path: Path) -> None:
    """Compare every byte of weights and engines with the digests that were recorded.

    Raises:
        UserError: a file differs, or cannot be compared; each is named.
    """
    from export.bundle import open_bundle

    bundle = open_bundle(path)
    bundle.weight_digests()
    engines = bundle.engines()
    for record in engines:
        bundle.engine_digests(record)
    linked = [record.name for record in bundle.manifest.weights if record.sha256 is None]
    whole = f"{len(bundle.manifest.weights) - len(linked)} weight files and {len(engines)} engines are as recorded"
    unknown = f"; {', '.join(linked)}: linked, so no digest was recorded" if linked else ""
    note(f"{path}: every byte of {whole}{unknown}")
