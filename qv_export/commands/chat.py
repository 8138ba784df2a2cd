"""`qv-export chat`: several turns with a bundle in the terminal."""

import queue
import shlex
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.errors import UserError
from qv_export.parameters import TargetChoice, rank_options
from qv_export.show.console import note, print_answer

if TYPE_CHECKING:
    from engines.runtime.answer import Event
    from engines.runtime.service import SchedulerService
    from export.bundle import Bundle
    from export.checkpoint.generation_config import GenerationConfig

HELP = "/image PATH and /video PATH show something with the next question, /new begins anew, /quit or Ctrl-D ends."


@click.command(short_help="Talk with a bundle in the terminal.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--system", help="The system message. Default: the chat template's own.")
@click.option("--target", type=TargetChoice(), help="What computes. Default: onnxruntime, on the CPU.")
@click.option("--engine", "engine_key", metavar="KEY", help="This very engine, in place of a target.")
@click.option("--max-context", type=click.IntRange(min=2), help="Tokens of the whole talk. Default: 4096.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Of one answer.")
@click.option("--temperature", type=float, help="0 is greedy. Default: the checkpoint's.")
@click.option("--threads", "num_threads", type=click.IntRange(min=1), help="CPU threads. Default: all cores.")
@rank_options
def chat(
    bundle: Path,
    system: str | None,
    target: str | None,
    engine_key: str | None,
    max_context: int | None,
    max_new_tokens: int | None,
    temperature: float | None,
    num_threads: int | None,
    num_ranks: int | None,
    hostfile: Path | None,
) -> None:
    """Talk with BUNDLE, picture by picture and turn by turn. Ctrl-C ends an answer, not the talk.

    /image PATH and /video PATH show something with the next question, /new begins anew, /quit or Ctrl-D ends.
    """
    from engines.open import choose_engine, open_chosen
    from engines.runtime.scheduler import Scheduler
    from engines.runtime.service import SchedulerService
    from engines.serving.settings import settings_for
    from engines.store.compatibility import this_machine
    from export.bundle import open_bundle
    from export.checkpoint.generation_config import override_generation_config

    opened = open_bundle(bundle)
    settings = settings_for(
        opened,
        engine_key,
        num_slots=1,
        max_context=max_context,
        num_threads=num_threads,
        num_ranks=num_ranks,
        hostfile=hostfile,
        max_queue=None,
        allowed_hosts=(),
    )
    generation = override_generation_config(
        opened.generation_config, max_new_tokens=max_new_tokens, temperature=temperature
    )
    chosen = choose_engine(
        opened, engine_key or target, num_slots=1, capacity=settings.capacity, machine=this_machine()
    )
    engine = open_chosen(
        opened,
        chosen,
        num_slots=1,
        capacity=settings.capacity,
        num_threads=num_threads,
        num_ranks=num_ranks,
        hostfile=settings.hostfile,
    )
    # One slot: what a turn shares with those before it is still in its cache.
    with closing(engine), SchedulerService(Scheduler(*engine, opened.config)) as service:
        note(HELP)
        _talk(Talk(opened, service, generation, system))


@dataclass
class Talk:
    """A talk as it stands."""

    bundle: "Bundle"
    service: "SchedulerService"
    generation: "GenerationConfig"
    system: str | None
    turns: list[dict[str, Any]] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    """Pictures and videos that wait for the next question."""

    def messages(self) -> list[dict[str, Any]]:
        """All turns, in the chat format of Hugging Face."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *self.turns]


def _talk(talk: Talk) -> None:
    while True:
        try:
            line = _read_line()
        except EOFError:
            return
        except KeyboardInterrupt:
            note(HELP)
            continue
        if line in {"/quit", "/exit"}:
            return
        try:
            if line.startswith("/"):
                _follow(line, talk)
            elif line:
                _ask(line, talk)
        except UserError as error:
            note(f"error: {error}")
        except KeyboardInterrupt:  # before the first word: as if it had not been asked
            note("not asked")


def _read_line() -> str:
    prompt = "> " if sys.stdin.isatty() else ""
    return input(prompt).strip()


def _follow(line: str, talk: Talk) -> None:
    command, _, rest = line.partition(" ")
    if command == "/new":
        talk.turns.clear()
        talk.shown.clear()
    elif command in {"/image", "/video"} and rest.strip():
        kind = command[1:]
        # A path as a shell would take it, dragged into the terminal or typed with a space in it.
        try:
            pieces = shlex.split(rest)
        except ValueError:
            pieces = [rest]
        path = Path(pieces[0] if len(pieces) == 1 else rest.strip()).expanduser()
        if not path.exists():
            raise UserError(f"{path} is not there.")
        talk.shown.append({"type": kind, kind: path})
        note(f"{path} goes with the next question")
    else:
        note(HELP)


def _ask(text: str, talk: Talk) -> None:
    """One turn; what fails or is broken off before its first word is forgotten."""
    from engines.runtime.answer import FailureEvent, Request, TokenEvent
    from engines.runtime.tokens.text_stream import TextStream

    turns = [*talk.turns, {"role": "user", "content": [*talk.shown, {"type": "text", "text": text}]}]
    before, talk.turns = talk.turns, turns
    pieces: list[str] = []
    try:
        inputs = talk.bundle.processor.inputs_from_messages(talk.messages())
        stream = TextStream(talk.bundle.processor.tokenizer)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        ticket = talk.service.submit(Request(inputs, talk.generation), events.put)
        event: Event | None = None
        reason: str | None = None
        while event is None or not event.is_last:
            try:
                event = events.get()
            except KeyboardInterrupt:
                talk.service.cancel(ticket)
                continue
            if isinstance(event, FailureEvent):
                raise event.error
            reason = event.finish_reason
            if isinstance(event, TokenEvent):
                pieces.append(stream.push(event.token_id))
                print_answer(pieces[-1])
        pieces.append(stream.finish())
        print_answer(pieces[-1] + "\n")
    except BaseException:
        talk.turns = before
        raise
    talk.shown = []
    timings = event.timings
    talk.turns = [*turns, {"role": "assistant", "content": "".join(pieces)}]
    note(
        f"[{timings.num_prompt_tokens} prompt tokens, {timings.num_reused_tokens} of them from the turns before; "
        f"{timings.num_new_tokens} new, {reason}; {timings.decode_tokens_per_second:.1f} tokens/s]"
    )
