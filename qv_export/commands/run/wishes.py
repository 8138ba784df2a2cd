"""Options of `qv-export run` beyond the question itself: other turns, how tokens are chosen, what is told of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from export.errors import UserError
from export.files.json_object import parse_json
from qv_export.commands.run.question import json_list

_Command = TypeVar("_Command", bound=Callable[..., Any])


class LogitBias(click.ParamType[tuple[int, float]]):
    """ID=BIAS."""

    name = "ID=BIAS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, float]:
        """Split at the sign."""
        token, _, bias = str(value).partition("=")
        try:
            return int(token), float(bias)
        except ValueError:
            self.fail(f"expected a token's id and a number, such as 151645=-100, found {value!r}", param, ctx)


_OPTIONS: tuple[Callable[[_Command], _Command], ...] = (
    click.option(
        "--messages",
        "messages_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A JSON file with a whole conversation, in place of --prompt. Relative paths start at the file.",
    ),
    click.option(
        "--min-p", type=float, help="Sample among tokens at least this share as likely as the likeliest."
    ),
    click.option(
        "--presence-penalty", type=float, help="Taken from every token that the answer holds; -2 to 2."
    ),
    click.option(
        "--frequency-penalty", type=float, help="The same, for each time that it holds it; -2 to 2."
    ),
    click.option(
        "--logit-bias",
        multiple=True,
        type=LogitBias(),
        help="Add to a token's logit; -100 forbids. Repeat it.",
    ),
    click.option("--no-repeat-ngram-size", type=int, help="No run of so many tokens comes twice; 0 is off."),
    click.option("--min-new-tokens", type=int, help="No end before so many tokens."),
    click.option("--stop", "stop_strings", multiple=True, help="End the answer before this text. Repeat it."),
    click.option(
        "--logprobs",
        "num_logprobs",
        type=int,
        help="With --json: how likely each token and the N likeliest were.",
    ),
    click.option("--keep-special-tokens", is_flag=True, help="Leave <|im_end|> and its like in the text."),
    click.option(
        "--draw",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the picture with the answer's boxes drawn on it.",
    ),
    click.option("--add-vision-id/--no-vision-id", default=None, help='Number the pictures ("Picture 1: ").'),
    click.option(
        "--tools",
        "tools_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A JSON file with a list of functions, for templates that render them.",
    ),
    click.option(
        "--template-option",
        "template_options",
        multiple=True,
        metavar="NAME=JSON",
        help="A further variable of the chat template. Repeat it.",
    ),
    click.option("--continue", "continues", is_flag=True, help="Go on with the last message of --messages."),
)


def wish_options(command: _Command) -> _Command:
    """Add them to a command, in the order in which its help lists them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def template_arguments(
    add_vision_id: bool | None, tools_file: Path | None, template_options: Sequence[str], continues: bool
) -> dict[str, Any]:
    """Arguments of `Processor.inputs_from_messages`.

    Raises:
        UserError: a file or value that is no JSON, or a variable without a value or with two.
    """
    variables: dict[str, Any] = {}
    for option in template_options:
        name, equals, value = option.partition("=")
        if not (name and equals):
            raise UserError(f"--template-option {option}: expected NAME=JSON, such as add_vision_id=true.")
        if name in variables:
            raise UserError(f"--template-option {name} is given twice.", "Keep one.")
        variables[name] = _json(value, f"--template-option {name}")
    tools = None if tools_file is None else json_list(tools_file, "tools")
    return {
        "add_vision_id": add_vision_id,
        "tools": tools,
        "chat_template_kwargs": variables,
        "continue_final_message": continues,
    }


def biases(given: Sequence[tuple[int, float]]) -> dict[int, float] | None:
    """Of tokens by their ids; None without any.

    Raises:
        UserError: a token has two.
    """
    by_token = dict(given)
    if len(by_token) < len(given):
        raise UserError("--logit-bias: a token is named twice.", "Keep one.")
    return by_token or None


def _json(text: str, what: str) -> Any:
    try:
        return parse_json(text, what)
    except UserError:
        raise UserError(f"{what} is no JSON. Texts need quotes: NAME='\"text\"'.") from None
