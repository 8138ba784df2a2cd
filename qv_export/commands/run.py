"""`qv-export run`: a bundle answers a question about pictures and videos."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.errors import UserError
from qv_export import api
from qv_export.commands.form_options import form_options, take_form
from qv_export.commands.media_options import budget_of, budget_options, require_media, take_budgets
from qv_export.commands.run_wishes import (
    Told,
    draw_located,
    logprobs_json,
    messages_from_file,
    template_arguments,
    wish_options,
)
from qv_export.parameters import MediaPath, TargetChoice, default_target, device_option
from qv_export.show.console import note, print_answer, print_json, progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from engines.runtime.answer import TokenEvent
    from export.bundle import Bundle
    from export.checkpoint.config import ModelConfig
    from export.checkpoint.generation_config import GenerationConfig
    from export.inputs import ModelInputs

_MEDIA = {"images": "image", "videos": "video"}
_ORDER = "qv_export.media_order"


class MediaCommand(click.Command):
    """Remembers how --image and --video were interleaved, which Click forgets."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        ctx.meta[_ORDER] = [parameter.name for parameter in order if parameter.name in _MEDIA]
        return super().parse_args(ctx, args)


@dataclass(frozen=True)
class Prompt:
    """What the user asks: pictures and videos in the order of the command line, then the text."""

    text: str
    media: tuple[tuple[str, Path], ...]
    system: str | None
    budgets: Mapping[str, Any] = field(default_factory=dict)
    """Pixels, frames and seconds of each of them, as fields of a message's part."""

    def messages(self) -> list[api.Message]:
        """In the chat format of Hugging Face."""
        messages = api.question(self.text, self.media, self.system)
        for part in messages[-1]["content"]:
            if part["type"] != "text":
                part.update(budget_of(part["type"], self.budgets))
        return messages


@click.command(cls=MediaCommand, short_help="Ask a bundle about pictures and videos.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompt", help='The question; "-" reads it from stdin.')
@click.option(
    "--image",
    "images",
    multiple=True,
    type=MediaPath(),
    help="A picture. Repeat it and mix it with --video: they come before the text in the order given.",
)
@click.option(
    "--video",
    "videos",
    multiple=True,
    type=MediaPath(folder_okay=True),
    help="A video file, an animated image, or a folder of frames.",
)
@click.option("--system", help="The system message. Default: the chat template's own.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="Default: the checkpoint's generation_config, or 512.",
)
@click.option("--temperature", type=float, help="0 is greedy. Default: the checkpoint's.")
@click.option("--top-k", type=int, help="Sample among the K likeliest tokens; 0 is off.")
@click.option("--top-p", type=float, help="Sample among the likeliest tokens that make up this probability.")
@click.option("--repetition-penalty", type=float, help="Above 1, tokens that were there become less likely.")
@click.option(
    "--seed", type=click.IntRange(min=0), help="For the same sampled answer again. Default: a new one."
)
@click.option(
    "--max-context",
    type=click.IntRange(min=1),
    help="Tokens in the KV cache. Default: what the prompt needs.",
)
@click.option("--threads", "num_threads", type=click.IntRange(min=1), help="CPU threads. Default: all cores.")
@device_option
@click.option(
    "--prefill-chunk",
    type=click.IntRange(min=1),
    help="Prompt tokens per decoder call. Default: all at once.",
)
@click.option(
    "--target",
    type=TargetChoice(),
    default=default_target,
    show_default="onnxruntime, on the CPU",
    help="TensorRT: the engine of the bundle that fits this machine's GPU and the prompt.",
)
@click.option(
    "--engine",
    "engine_key",
    metavar="KEY",
    help="This very engine of the bundle, in place of a target.",
)
@wish_options
@budget_options
@form_options
@click.option(
    "--strict-media", is_flag=True, help="Refuse any damage of a picture or video. Default: 15 % may be lost."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object: text, token ids, timings, versions."
)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    bundle: Path,
    prompt: str | None,
    images: tuple[Path, ...],
    videos: tuple[Path, ...],
    system: str | None,
    seed: int | None,
    max_context: int | None,
    num_threads: int | None,
    device: str | None,
    prefill_chunk: int | None,
    target: str,
    engine_key: str | None,
    strict_media: bool,
    as_json: bool,
    messages_file: Path | None,
    logit_bias: tuple[tuple[int, float], ...],
    stop_strings: tuple[str, ...],
    keep_special_tokens: bool,
    draw: Path | None,
    add_vision_id: bool | None,
    tools_file: Path | None,
    template_options: tuple[str, ...],
    continues: bool,
    **sampling: Any,
) -> None:
    """Ask the exported model in BUNDLE about pictures and videos. The answer streams to stdout."""
    budgets, form = take_budgets(sampling), take_form(sampling)
    if sampling["num_logprobs"] is not None and not as_json:
        raise UserError("--logprobs are told by --json alone.", "Give that too.")
    if (prompt is None) == (messages_file is None):
        raise click.UsageError("Give either --prompt TEXT or --messages FILE.")
    if messages_file is None:
        assert prompt is not None
        media = interleaved_media(ctx.meta[_ORDER], images, videos)
        require_media({kind for kind, _ in media}, budgets)
        messages = Prompt(read_prompt(prompt), media, system, budgets).messages()
    elif images or videos or system is not None or budgets:
        raise UserError(
            "--messages holds the whole conversation, budgets too: leave --image, --video, --system and options such "
            "as --max-pixels out."
        )
    else:
        messages = messages_from_file(messages_file)
    answer(
        bundle,
        messages,
        template_arguments(add_vision_id, tools_file, template_options, continues),
        {**sampling, "logit_bias": dict(logit_bias) or None},
        Told(stop_strings, keep_special_tokens, draw),
        seed,
        max_context,
        num_threads,
        prefill_chunk,
        engine_key or target,
        device,
        as_json,
        strict_media,
        form,
    )


def answer(
    path: Path,
    messages: Sequence[api.Message],
    template: dict[str, Any],
    sampling: dict[str, Any],
    told: Told,
    seed: int | None,
    max_context: int | None,
    num_threads: int | None,
    prefill_chunk: int | None,
    engine: str,
    device: str | None,
    as_json: bool,
    strict_media: bool = False,
    form: Mapping[str, Any] | None = None,
) -> None:
    """Open the bundle, prepare the prompt, generate, print."""
    import secrets
    from importlib.metadata import version

    from export.processor.media.limits import MediaLimits

    clock = Clock()
    with progress() as step:
        step("Opening the bundle")
        bundle = api.as_bundle(path)
        require_context(max_context, bundle.config)
        generation = api.overridden(bundle.generation_config, sampling)
        clock.lap("open")
        step("Preparing pictures and text")
        reader = replace(bundle.processor.reader, limits=MediaLimits(strict=strict_media))
        inputs = bundle.processor.inputs_from_messages(messages, reader, **template)
        for seen in inputs.media:
            for sentence in seen.notes:
                note(sentence)
        capacity = context_capacity(inputs, generation, bundle.config, max_context)
        clock.lap("process")
        step("Loading the graphs")
        # Only now, so that a mistake in the prompt is told before a backend loads its library.
        model = api.load(bundle, engine, max_context=capacity, num_threads=num_threads, device=device)
        clock.lap("load")
        step("Looking and reading")
        seed = secrets.randbits(32) if seed is None else seed
        events = model.events(inputs, generation, seed=seed, prefill_chunk_tokens=prefill_chunk, form=form)
        first_event = next(events)
    text, heard, is_stopped = stream_text(
        chain([first_event], events), bundle.processor.tokenizer, told, echo=not as_json
    )
    located = bundle.processor.located([event.token_id for event in heard], inputs.media)
    result = {
        "text": text,
        "token_ids": [event.token_id for event in heard],
        **outcome(heard[-1], clock),
        "media": [seen.to_json_object() for seen in inputs.media],
        **({"finish_reason": "stop"} if is_stopped else {}),
        **({"located": [asdict(one) for one in located]} if located else {}),
        **({"logprobs": logprobs_json(heard, bundle.processor)} if heard[0].logprobs else {}),
        "capacity_tokens": model.engine.decoder.capacity,
        "engine": model.engine_key,
        "seed": seed,
        "bundle": identity(bundle),
        "versions": {name: version(name) for name in ("qv-export", "onnxruntime", "numpy")},
    }
    if told.draw is not None:
        draw_located(told.draw, located, messages)
    if as_json:
        print_json(result)
    else:
        note(summary(result))


def require_context(max_context: int | None, model: "ModelConfig") -> None:
    """Refuse a KV cache beyond the positions that the model knows.

    Raises:
        UserError: more is asked.
    """
    longest = model.decoder.max_position_embeddings
    if max_context is not None and max_context > longest:
        raise UserError(
            f"--max-context {max_context} is more than the model's {longest}.",
            "Leave it out, or ask for less.",
        )


def read_prompt(prompt: str) -> str:
    """The prompt as given, or stdin for "-".

    Raises:
        UserError: what was given is empty or no UTF-8.
    """
    try:
        # The shell's bytes that are no UTF-8 arrive as lone surrogates, which no tokenizer takes.
        content = sys.stdin.buffer.read() if prompt == "-" else prompt.encode()
        text = content.decode("utf-8").rstrip("\n") if prompt == "-" else prompt
    except UnicodeError as error:
        raise UserError(f"the prompt must be UTF-8: {error}") from None
    if not text.strip():
        source = "stdin" if prompt == "-" else "--prompt"
        raise UserError(
            f"The prompt is empty ({source}).", 'Ask something: --prompt "What is in this picture?"'
        )
    return text


def interleaved_media(
    order: Sequence[str], images: Iterable[Path], videos: Iterable[Path]
) -> tuple[tuple[str, Path], ...]:
    """(kind, path) pairs as they stood on the command line; `order` names a parameter for each."""
    given = {"images": iter(images), "videos": iter(videos)}
    return tuple((_MEDIA[name], next(given[name])) for name in order)


def context_capacity(
    inputs: "ModelInputs", generation: "GenerationConfig", model: "ModelConfig", max_context: int | None
) -> int:
    """KV cache size in tokens: what was asked for, or just what this prompt and its answer need.

    Raises:
        UserError: the prompt leaves no room for an answer.
    """
    num_prompt_tokens = len(inputs.token_ids)
    longest = model.decoder.max_position_embeddings
    capacity = max_context or min(num_prompt_tokens + generation.max_new_tokens, longest)
    if num_prompt_tokens >= capacity:
        limit = f"--max-context {capacity}" if max_context else f"the model's context of {capacity}"
        raise UserError(
            f"the prompt has {num_prompt_tokens} tokens, which leaves no room for an answer in {limit}. "
            "Shorten it, or use fewer or smaller pictures."
        )
    return capacity


def stream_text(
    events: Iterator["TokenEvent"], tokenizer: "Tokenizer", told: Told, *, echo: bool
) -> tuple[str, list["TokenEvent"], bool]:
    """Write text as it comes, never half a character; returns all of it, every event, and whether a stop string came.

    What is not echoed is for a machine, and keeps the marks around boxes and labels.
    """
    from engines.runtime.tokens.text_stream import TextStream

    stream = TextStream(
        tokenizer,
        skip_special_tokens=not told.keep_special_tokens,
        keep_marks=not echo,
        stop_strings=told.stop_strings,
    )
    pieces, heard = [], []
    for event, piece in api.text_pieces(events, stream):
        pieces.append(piece)
        if event is not None:
            heard.append(event)
        if echo:
            print_answer(piece if event is not None else piece + "\n")
    return "".join(pieces), heard, stream.is_stopped


class Clock:
    """Milliseconds of the phases before the first token."""

    def __init__(self) -> None:
        self.laps_ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps_ms[name] = round((now - self._last) * 1000, 3)
        self._last = now


def outcome(last: "TokenEvent", clock: Clock) -> dict[str, Any]:
    """Why it ended, how many tokens, how long each phase took."""
    timings = last.timings
    return {
        "finish_reason": last.finish_reason,
        "num_prompt_tokens": timings.num_prompt_tokens,
        "num_visual_tokens": timings.num_visual_tokens,
        "num_new_tokens": timings.num_new_tokens,
        "timings_ms": {
            **clock.laps_ms,
            "vision": round(timings.vision_seconds * 1000, 3),
            "prefill": round(timings.prefill_seconds * 1000, 3),
            "decode": round(timings.decode_seconds * 1000, 3),
        },
        "decode_tokens_per_second": round(timings.decode_tokens_per_second, 3),
    }


def identity(bundle: "Bundle") -> dict[str, str]:
    """Which bundle answered."""
    manifest = bundle.manifest
    return {
        "path": str(bundle.directory),
        "key": manifest.key,
        "dtype": manifest.dtype,
        "precision": manifest.precision_text,
        "source": manifest.source.name,
    }


def summary(result: dict[str, Any]) -> str:
    """One line for a person."""
    timings_ms = result["timings_ms"]
    phases = ", ".join(
        f"{name} {timings_ms[name]:.0f} ms" for name in ("load", "vision", "prefill", "decode")
    )
    return (
        f"[{result['num_prompt_tokens']} prompt tokens ({result['num_visual_tokens']} visual), "
        f"{result['num_new_tokens']} new, {result['finish_reason']}; {phases}; "
        f"{result['decode_tokens_per_second']:.1f} tokens/s]"
    )
