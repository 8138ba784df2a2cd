"""An inspection as a page that needs nothing from outside."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import qv_export.pages
import validate.report
from export.errors import UserError
from export.files.atomic import replace_text
from export.wording import plain_text
from qv_export.show.inspection import Inspection
from qv_export.show.treemap import treemap

_TEMPLATES = tuple(Path(str(package.__file__)).parent for package in (qv_export.pages, validate.report))
"""Ours, and the validator's: its report has the style that every page of qv-export shares."""


def write_page(inspection: Inspection, path: Path) -> None:
    """Write the page; a reader sees the old one or the whole new one.

    Raises:
        UserError: the place cannot be written.
    """
    page = page_from_inspection(inspection)
    try:
        replace_text(path, plain_text(page, len(page)))
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be written: {reason}.", "Choose another place for --html.") from None


def page_title(inspection: Inspection) -> str:
    """What was looked at, by the name that a person gave it."""
    if inspection.manifest is not None:
        return f"Bundle of {inspection.manifest.source.name}"
    if inspection.kind == "engine":
        return f"Engine {inspection.path.resolve().name}"
    return f"Graph {inspection.path.name}"


def page_from_inspection(inspection: Inspection) -> str:
    """Render HTML: the picture of each graph first, then the tables of the terminal."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    pictures = [
        (name, treemap(graph.modules, f"Weights of {name} by layer"))
        for graph in inspection.graphs
        for name in [Path(graph.path).name]
    ]
    return environment.get_template("inspect.html.jinja").render(
        inspection=inspection,
        title=page_title(inspection),
        pictures=[(name, picture) for name, picture in pictures if picture],
        tables=inspection.tables(),
    )
