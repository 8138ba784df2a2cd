"""How commands talk: results go to stdout, progress to stderr."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from export.wording import plain_line, plain_text

_MAX_CELL_CHARACTERS = 2_000

Progress = Callable[[str], None]
BarProgress = Callable[[str, float], None]
"""What is going on, and the fraction of the whole that is done."""


@contextmanager
def progress() -> Iterator[Progress]:
    """Give a function that says which step runs now: a spinner on a terminal, a line in a log, nothing with -q."""
    if _is_quiet():
        yield lambda _step: None
    elif not sys.stderr.isatty():
        yield lambda step: click.echo(step, err=True)
    else:
        from rich.console import Console
        from rich.markup import escape

        with Console(stderr=True).status("") as status:
            yield lambda step: status.update(escape(step))


@contextmanager
def progress_bar() -> Iterator[BarProgress]:
    """A bar with the time left on a terminal, a line for each further tenth in a log, nothing with -q."""
    with _bar(_tenths_to_log()) as report:
        yield report


@contextmanager
def phase_bar() -> Iterator[BarProgress]:
    """The same, for what has few phases: a line for each of them in a log."""
    with _bar(_phases_to_log()) as report:
        yield report


@contextmanager
def _bar(to_log: BarProgress) -> Iterator[BarProgress]:
    if _is_quiet():
        yield lambda _text, _done: None
    elif not sys.stderr.isatty():
        yield to_log
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=1.0)
            yield lambda text, done: bar.update(task, description=text, completed=done)


def _tenths_to_log() -> BarProgress:
    last = -1

    def report(text: str, done: float) -> None:
        nonlocal last
        if int(10 * done) > last:
            last = int(10 * done)
            click.echo(f"[{100 * done:3.0f}%] {text}", err=True)

    return report


def _phases_to_log() -> BarProgress:
    last = ""

    def report(text: str, _done: float) -> None:
        nonlocal last
        if text != last:
            last = text
            click.echo(text, err=True)

    return report


def note(text: str) -> None:
    """Say something on stderr that is not part of the result."""
    if not _is_quiet():
        click.echo(plain_text(text), err=True)


def print_answer(text: str) -> None:
    """Write a piece of a model's answer to stdout.

    Whatever a model says moves no cursor, sets no title and hides nothing: on a terminal control characters are shown
    as escapes. A file or a pipe gets what was said.
    """
    if sys.stdout.isatty():
        text = plain_text(text, most=len(text))
    # errors="replace" by hand: a terminal that is not UTF-8 shows a question mark instead of ending the answer.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def print_json(content: Any) -> None:
    """The one object of `--json`. ASCII: paths may hold bytes that are no text."""
    click.echo(json.dumps(content, indent=2))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; as wide as its content where stdout is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    class QuietConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1, which means a failed gate

    shown = plain_line(title, _MAX_CELL_CHARACTERS)
    table = Table(title=shown, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(plain_text(cell, _MAX_CELL_CHARACTERS) for cell in row))
    # Plain text: names hold brackets and colons that rich would take for markup or emoji.
    console = QuietConsole(
        markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 200
    )
    console.print(table)


def _is_quiet() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().params.get("quiet"))
