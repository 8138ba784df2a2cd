"""Options of `qv-export run` beyond the question itself: other turns, how tokens are chosen, what is told of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from export.errors import UserError
from export.files.json_object import parse_json
from qv_export import api

if TYPE_CHECKING:
    from engines.runtime.answer import TokenEvent
    from export.processor.processor import Processor
    from export.processor.text.located import Located

_Command = TypeVar("_Command", bound=Callable[..., Any])
_BOX_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")


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


@dataclass(frozen=True)
class Told:
    """What is told of an answer beside its text."""

    stop_strings: tuple[str, ...] = ()
    keep_special_tokens: bool = False
    draw: Path | None = None


def template_arguments(
    add_vision_id: bool | None, tools_file: Path | None, template_options: Sequence[str], continues: bool
) -> dict[str, Any]:
    """Arguments of `Processor.inputs_from_messages`.

    Raises:
        UserError: a file or value that is no JSON.
    """
    variables: dict[str, Any] = {}
    for option in template_options:
        name, _, value = option.partition("=")
        variables[name] = _json(value, f"--template-option {name}")
    tools = None if tools_file is None else _json_list(tools_file, "tools")
    return {
        "add_vision_id": add_vision_id,
        "tools": tools,
        "chat_template_kwargs": variables,
        "continue_final_message": continues,
    }


def messages_from_file(path: Path) -> list[api.Message]:
    """A conversation whose relative paths start at its file.

    Raises:
        UserError: no JSON list there.
    """
    from export.processor.text.conversation import with_paths_from

    messages: list[api.Message] = with_paths_from(_json_list(path, "messages"), path.parent)
    return messages


def logprobs_json(events: "Sequence[TokenEvent]", processor: "Processor") -> list[dict[str, Any]]:
    """How likely each token of an answer was."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token_id": token_id,
            "token": processor.tokenizer.decode([token_id], skip_special_tokens=False),
            "logprob": round(logprob, 6),
        }

    return [
        {**entry(event.token_id, told.logprob), "top": [entry(*one) for one in told.top]}
        for event in events
        if (told := event.logprobs) is not None
    ]


def draw_located(path: Path, located: "Sequence[Located]", messages: Sequence[Mapping[str, Any]]) -> None:
    """Draw what an answer located on the conversation's one picture.

    Raises:
        UserError: there is not one picture, or the place cannot be written.
    """
    from PIL import ImageDraw

    from export.processor.images import load_image
    from export.processor.media.data_urls import source_from_text
    from export.processor.text.chat import media_from_conversation
    from export.processor.text.conversation import read_conversation

    media = media_from_conversation(read_conversation(messages))
    if [medium.kind for medium in media] != ["image"]:
        raise UserError(
            f"--draw needs a conversation with one picture, this one has {len(media)} pictures or videos."
        )
    picture = load_image(source_from_text(media[0].source, "image")).convert("RGB")
    pen = ImageDraw.Draw(picture)
    width = max(2, max(picture.size) // 200)
    for number, one in enumerate(located):
        color = _BOX_COLORS[number % len(_BOX_COLORS)]
        points = list(one.pixels or ())
        if one.kind == "point":
            (x, y), radius = points[0], 2 * width
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=width)
        elif one.kind == "box":
            corners = [sorted(values) for values in zip(*points, strict=True)]
            pen.rectangle(
                (corners[0][0], corners[1][0], corners[0][1], corners[1][1]), outline=color, width=width
            )
        else:
            pen.line([*points, points[0]], fill=color, width=width)
        if one.label:
            pen.text((points[0][0] + width, points[0][1] + width), one.label, fill=color)
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be written: {error}.", "Choose another place for --draw.") from None


def _json(text: str, what: str) -> Any:
    try:
        return parse_json(text, what)
    except UserError:
        raise UserError(f"{what} is no JSON. Texts need quotes: NAME='\"text\"'.") from None


def _json_list(path: Path, what: str) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    content = parse_json(text, str(path))
    if not isinstance(content, list):
        raise UserError(f"{path} must hold a JSON list of {what}, found {type(content).__name__}.")
    return content
