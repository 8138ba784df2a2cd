"""Options for pictures and videos, of `qv-export run` and of servers: how large, how many frames, which seconds."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import click

from export.errors import UserError
from export.processor.media.budget import KEYS_OF

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS: tuple[Callable[[_Command], _Command], ...] = (
    click.option(
        "--min-pixels", type=int, help="Of a picture or a video's frame, at least. A token is 28 x 28."
    ),
    click.option("--max-pixels", type=int, help="The same, at most: fewer pixels, fewer tokens."),
    click.option("--resized-height", type=int, help="With --resized-width: this very size, in steps of 28."),
    click.option("--resized-width", type=int, help="See --resized-height."),
    click.option(
        "--fps", type=float, help="Frames of a video that are seen a second. Default: the checkpoint's."
    ),
    click.option("--nframes", type=int, help="So many frames in place of a rate."),
    click.option("--min-frames", type=int, help="Of a video, at least."),
    click.option("--max-frames", type=int, help="Of a video, at most."),
    click.option("--video-start", type=float, help="Second of the film at which it begins to be seen."),
    click.option("--video-end", type=float, help="Second at which that ends."),
    click.option("--total-pixels", type=int, help="Of a whole video: a frame's pixels x half the frames."),
)
_SERVER_OPTIONS: tuple[Callable[[_Command], _Command], ...] = (
    click.option(
        "--min-pixels", type=int, help="Of a picture or a video's frame, at least. A token is 28 x 28."
    ),
    click.option("--max-pixels", type=int, help="The same, at most; a request may ask for no more."),
    click.option("--fps", type=float, help="Frames of a video that are seen a second."),
    click.option("--min-frames", type=int, help="Of a video, at least."),
    click.option("--max-frames", type=int, help="Of a video, at most; a request may ask for no more."),
    click.option(
        "--total-pixels",
        type=int,
        help="Of a whole video: a frame's pixels x half the frames; a request may ask for no more.",
    ),
    click.option(
        "--strict-media",
        is_flag=True,
        help="Refuse any damage of a picture or video. Default: 15 % may be lost.",
    ),
)
BUDGET_NAMES = tuple(sorted(KEYS_OF["video"]))


def budget_options(command: _Command) -> _Command:
    """Add them to a command, in the order in which its help lists them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def server_media_options(command: _Command) -> _Command:
    """Add what a server can be told of all pictures and videos, as arguments of `settings_for`."""

    @functools.wraps(command)
    def taken(**options: Any) -> Any:
        from engines.serving.settings import SERVER_BUDGETS

        given = {name: options.pop(name) for name in (*SERVER_BUDGETS, "strict_media")}
        is_strict = given.pop("strict_media")
        budgets = {name: value for name, value in given.items() if value is not None}
        return command(media={"budgets": budgets, "strict_media": is_strict}, **options)

    for option in reversed(_SERVER_OPTIONS):
        taken = option(taken)
    return cast(_Command, taken)


def take_budgets(options: dict[str, Any]) -> dict[str, Any]:
    """Take the budgets that were given out of a command's options."""
    taken = {name: options.pop(name) for name in BUDGET_NAMES}
    return {name: value for name, value in taken.items() if value is not None}


def budget_of(kind: str, budgets: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a part of this kind can follow."""
    return {name: value for name, value in budgets.items() if name in KEYS_OF[kind]}


def require_media(kinds: set[str], budgets: Mapping[str, Any]) -> None:
    """Refuse a budget that nothing on the command line could follow.

    Raises:
        UserError: one for videos without a video, or any without picture and video.
    """
    followed = {name for kind in kinds for name in KEYS_OF[kind]}
    if vain := [f"--{name.replace('_', '-')}" for name in budgets if name not in followed]:
        needed = "--video" if "image" in kinds else "--image or --video"
        raise UserError(f"{', '.join(vain)}: nothing here could follow it.", f"Give it with {needed}.")
