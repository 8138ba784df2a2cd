"""Options of `qv-export run` for the form of an answer: a schema, an expression, choices or a grammar."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from export.errors import UserError
from export.files.json_object import read_json_object

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS: tuple[Callable[[_Command], _Command], ...] = (
    click.option(
        "--json-schema",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A JSON file with the schema that the answer must meet.",
    ),
    click.option("--regex", help="A regular expression that the whole answer must match."),
    click.option("--choice", multiple=True, help="A text that the answer may be. Repeat it."),
    click.option(
        "--grammar",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A file with a grammar, GBNF or Lark, that the answer must follow.",
    ),
)


def form_options(command: _Command) -> _Command:
    """Add them to a command, in the order in which its help lists them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_form(options: dict[str, Any]) -> dict[str, Any]:
    """Take the form that was asked for out of a command's options; its name is the wish's of `qv_export.Model`.

    Raises:
        UserError: a file cannot be read, or several forms are asked for.
    """
    schema, grammar = options.pop("json_schema"), options.pop("grammar")
    regex, choice = options.pop("regex"), list(options.pop("choice"))
    found = {
        "json_schema": None if schema is None else read_json_object(schema),
        "regex": regex,
        "choice": choice or None,
        "grammar": None if grammar is None else _text(grammar),
    }
    asked = {name: content for name, content in found.items() if content is not None}
    if len(asked) > 1:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise UserError(f"An answer has one form, asked for are {names}.")
    return asked


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
