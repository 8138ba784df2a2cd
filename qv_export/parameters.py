"""Command-line parameter types that several commands share."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from export.errors import UserError, with_remedy
from qv_export.commands.media_options import server_media_options


def default_target() -> str:
    """The target that needs nothing but qv-export itself."""
    from engines.backends import default_backend

    return default_backend().name


class TargetChoice(click.Choice[str]):
    """The name of a backend. Asked of the registry when it is needed, so that every command knows a new one."""

    def __init__(self, *, with_reference: bool = False) -> None:
        """`with_reference`: also the targets that only the validator has."""
        self._with_reference = with_reference
        super().__init__(())

    @property
    def choices(self) -> tuple[str, ...]:
        """Every name, in the registry's order."""
        from engines.backends import BACKENDS

        if self._with_reference:
            from validate.reference.targets import REFERENCE_TARGETS

            return (*BACKENDS, *REFERENCE_TARGETS)
        return tuple(BACKENDS)

    @choices.setter
    def choices(self, _value: tuple[str, ...]) -> None:
        """Click sets what it was made with, which is nothing."""


class MistakenValue(click.BadParameter):
    """A value of an option or argument that cannot be meant, and what to give instead."""

    def __init__(
        self, message: str, remedy: str | None, ctx: click.Context | None, param: click.Parameter | None
    ) -> None:
        super().__init__(message, ctx, param)
        self.remedy = remedy

    def __str__(self) -> str:
        return with_remedy(self.message, self.remedy)

    def found(self) -> str:
        """What is wrong, by the option's name."""
        return super().format_message()

    def format_message(self) -> str:
        """What Click shows beneath the command's usage."""
        return with_remedy(self.found(), self.remedy)


class CheckpointPath(click.Path):
    """A checkpoint's directory."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Refuse a hub id, a file or a bundle with what would do instead."""
        from export.checkpoint.path import require_checkpoint

        path = Path(str(super().convert(value, param, ctx)))
        try:
            require_checkpoint(path)
        except UserError as error:
            raise MistakenValue(error.message, error.remedy, ctx, param) from None
        return path


class MediaPath(click.Path):
    """A picture or video on this machine."""

    def __init__(self, *, folder_okay: bool = False) -> None:
        """`folder_okay`: a folder of frames will do."""
        super().__init__(exists=True, dir_okay=folder_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Refuse web addresses by name: nothing is fetched."""
        if str(value).lower().startswith(("http://", "https://", "data:")):
            shown = str(value) if len(str(value)) < 80 else f"{str(value)[:60]}..."
            found = f"{shown!r} is a web address, and `run` fetches nothing."
            raise MistakenValue(found, "Download it first.", ctx, param)
        return Path(str(super().convert(value, param, ctx)))


class Architecture(click.ParamType[int]):
    """A GPU architecture: 89, 8.9, sm89 and sm_89 are one."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Compute capability x 10."""
        text = str(value).lower().removeprefix("sm").removeprefix("_")
        major, dot, minor = text.partition(".")
        digits = f"{major}{minor}" if dot and len(minor) == 1 else text
        if not (digits.isascii() and digits.isdigit() and int(digits) >= 10):
            self.fail(
                f"{value!r} is no architecture. Give compute capability x 10, such as 89 for 8.9.", param, ctx
            )
        return int(digits)


_Command = TypeVar("_Command", bound=Callable[..., Any])

device_option = click.option(
    "--device",
    metavar="cuda[:N]",
    help="Which GPU, for targets on one: cuda:1 is the second. Default: the first.",
)

_RANK_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--ranks",
        "num_ranks",
        type=click.IntRange(min=1),
        metavar="N",
        help="Compute in N processes, one a stage of the bundle; all encode images. Default: in this one.",
    ),
    click.option(
        "--hostfile",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The machines of --ranks, as `mpirun` reads them, this one first. Default: this one, or what Slurm gave.",
    ),
)


def rank_options(command: _Command) -> _Command:
    """In which processes a bundle computes."""
    for option in reversed(_RANK_OPTIONS):
        command = option(command)
    return command


_SERVING_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--slots",
        "num_slots",
        type=click.IntRange(min=1),
        help="Answers written at the same time. Default: 8, or the engine's largest batch.",
    ),
    click.option(
        "--max-context",
        type=click.IntRange(min=2),
        help="Tokens of prompt and answer in one KV slot. Default: the engine's, or 4096, or the model's if that is "
        "less.",
    ),
    click.option(
        "--threads", "num_threads", type=click.IntRange(min=1), help="CPU threads. Default: all cores."
    ),
    device_option,
    click.option("--max-queue", type=click.IntRange(min=1), help="Requests that may wait. Default: 64."),
    click.option(
        "--allow-host",
        "allowed_hosts",
        multiple=True,
        metavar="HOST",
        help="Fetch pictures from this host, or *.HOST below it. Default: web addresses are refused.",
    ),
    server_media_options,
)


def serving_options(command: _Command) -> _Command:
    """What every way of serving a bundle can be told, in the order in which help lists it."""
    for option in reversed((*_SERVING_OPTIONS, *_RANK_OPTIONS)):
        command = option(command)
    return command


class Share(click.ParamType[float]):
    """A percentage, "5%", as the share that it is."""

    name = "share"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """0.05 of "5%"."""
        if isinstance(value, float):
            return value
        number = value.strip().removesuffix("%")
        if number != value.strip() and re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", number):
            share = float(number) / 100
            if share < 1:
                return share
        raise MistakenValue(f"{value!r:.40} is no percentage below 100%.", "Give one such as 5%.", ctx, param)
