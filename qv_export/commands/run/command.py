"""`qv-export run`: a bundle answers a question about pictures and videos."""

from pathlib import Path
from typing import Any

import click

from export.errors import UserError
from qv_export.commands.form_options import form_options, take_form
from qv_export.commands.media_options import budget_options, require_media, take_budgets
from qv_export.commands.run.answer import ComputePlace, Told, answer
from qv_export.commands.run.question import (
    MEDIA_ORDER,
    MediaCommand,
    Prompt,
    interleaved_media,
    messages_from_file,
    read_prompt,
)
from qv_export.commands.run.wishes import biases, template_arguments, wish_options
from qv_export.parameters import MediaPath, TargetChoice, default_target, device_option, rank_options


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
@rank_options
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
    num_ranks: int | None,
    hostfile: Path | None,
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
        media = interleaved_media(ctx.meta[MEDIA_ORDER], images, videos)
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
        {**sampling, "logit_bias": biases(logit_bias)},
        Told(stop_strings, keep_special_tokens, draw),
        seed,
        max_context,
        prefill_chunk,
        engine_key or target,
        ComputePlace(num_threads, device, num_ranks, hostfile),
        as_json,
        strict_media,
        form,
    )
