"""`qv-export batch`: a bundle answers a corpus, from a file of requests or from pictures and one prompt."""

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.errors import UserError
from export.files.json_object import read_json_object
from qv_export.parameters import TargetChoice, rank_options
from qv_export.show.console import BarProgress, note, print_json, progress_bar

if TYPE_CHECKING:
    from engines.batch.rows import Row
    from engines.batch.run import Answers, Tally
    from engines.batch.worker import ModelChoice

_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})\Z")


@click.command(short_help="Answer a corpus: a file of requests, or many pictures and one prompt.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--requests",
    "requests_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Requests in OpenAI's batch form, one JSON object a line.",
)
@click.option(
    "--input", "patterns", multiple=True, metavar="GLOB", help="Pictures, such as 'scans/**/*.jpg'."
)
@click.option("--prompt", help="What is asked about each picture of --input.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder of part files, in OpenAI's batch form; one is renamed to .jsonl when it is whole.",
)
@click.option("--resume", is_flag=True, help="Go on with an output that is there: rows by their ids.")
@click.option(
    "--shard",
    default="0/1",
    show_default=True,
    metavar="I/N",
    help="Every N-th row from I on, I from 0 to N-1.",
)
@click.option("--target", type=TargetChoice(), help="What computes. Default: onnxruntime, on the CPU.")
@click.option("--engine", "engine_key", metavar="KEY", help="This very engine, in place of a target.")
@click.option("--slots", "num_slots", type=click.IntRange(min=1), help="Answers written at the same time.")
@click.option("--max-context", type=click.IntRange(min=2), help="Tokens of prompt and answer in one slot.")
@click.option("--threads", "num_threads", type=click.IntRange(min=1), help="CPU threads. Default: all cores.")
@rank_options
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Of each answer to --prompt.")
@click.option(
    "--json-schema",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What each answer to --prompt must look like.",
)
@click.option(
    "--prompt-first",
    is_flag=True,
    help="--prompt before the picture: its tokens are computed once for all. Models that learned it the other way "
    "round may answer worse.",
)
@click.option(
    "--workers",
    "num_workers",
    type=click.IntRange(1, 256),
    help="Processes that answer, each with an engine of its own: one a GPU; on a CPU they share its cores. Default: "
    "one; with --ray one a GPU of the cluster, or one a machine.",
)
@click.option(
    "--ray",
    "ray_address",
    metavar="ADDRESS",
    help="Answer on this Ray cluster (auto: the one that this machine belongs to), which reads files under the same "
    "paths.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def batch(
    bundle: Path,
    requests_file: Path | None,
    patterns: tuple[str, ...],
    prompt: str | None,
    output: Path,
    resume: bool,
    shard: str,
    target: str | None,
    engine_key: str | None,
    num_slots: int | None,
    max_context: int | None,
    num_threads: int | None,
    num_ranks: int | None,
    hostfile: Path | None,
    max_new_tokens: int | None,
    json_schema: Path | None,
    prompt_first: bool,
    num_workers: int | None,
    ray_address: str | None,
    as_json: bool,
) -> None:
    """Answer a corpus with BUNDLE. A row that cannot be answered says so (`error`) and stops no other."""
    from engines.batch.parts import Parts
    from engines.batch.rows import rows_of_requests, shard_of
    from engines.batch.run import run_batch
    from engines.batch.worker import ModelChoice

    number, num_shards = _shard(shard)
    if target and engine_key:
        raise UserError("--engine names an engine, and with it what computes: give it or --target, not both.")
    if requests_file is not None:
        if patterns or prompt is not None or max_new_tokens or json_schema or prompt_first:
            raise UserError(
                "--requests holds whole requests: leave --input, --prompt and what goes with them out."
            )
        rows = rows_of_requests(requests_file)
    else:
        if not patterns or prompt is None:
            raise click.UsageError("Give --requests FILE, or --input GLOB with --prompt TEXT.")
        rows = _rows_of_files(patterns, _fields(max_new_tokens, json_schema), prompt, prompt_first)
    choice = ModelChoice(
        bundle, engine_key or target, num_slots, max_context, num_threads, num_ranks, hostfile
    )
    parts = Parts(output, number, resume=resume)
    with _answers(choice, num_workers, ray_address) as answers, progress_bar() as bar:
        tally = run_batch(answers, shard_of(rows, number, num_shards), parts, partial(_progress, bar))
    result = _summary(tally)
    speed = f"{result['pictures_per_second']} pictures/s, {result['tokens_per_second']} tokens/s"
    if as_json:
        print_json({"output": str(output), **result})
    else:
        note(
            f"{output}: {tally.num_rows} rows, {tally.num_errors} with an error; {speed}; the engine waited "
            f"{result['waiting_share']:.0%} of the time"
        )


@contextmanager
def _answers(choice: "ModelChoice", num_workers: int | None, ray_address: str | None) -> "Iterator[Answers]":
    """What answers: a model in this process, or workers with one each. What cannot be opened is told before."""
    from dataclasses import replace

    from engines.batch.answers import answers_here
    from engines.batch.processes import answers_of_processes, environments_of, threads_of
    from engines.batch.ray_data import answers_of_ray
    from engines.gpus import gpu_facts
    from engines.serving.served import ServedModel
    from export.install import require_extra

    found, chosen, settings = choice.resolve()
    if ray_address is not None:
        require_extra("ray", "A run on a Ray cluster")
        yield partial(answers_of_ray, choice, address=ray_address, num_workers=num_workers)
        return
    if num_workers in {None, 1}:
        with ServedModel(found, chosen, settings) as model:
            yield partial(answers_here, model, found.manifest.source.name)
        return
    assert num_workers is not None
    device = chosen.backend.device
    environments = environments_of(device, num_workers, 0 if device == "cpu" else len(gpu_facts()))
    shared = replace(
        choice, num_threads=choice.num_threads or threads_of(num_workers * (choice.num_ranks or 1))
    )
    yield partial(answers_of_processes, shared, environments=environments)


def _shard(text: str) -> tuple[int, int]:
    found = _SHARD.match(text)
    number, num_shards = (int(found[1]), int(found[2])) if found else (0, 0)
    if number >= num_shards:
        raise UserError(f"--shard must be I/N with I from 0 to N-1, such as 0/4; found {text!r:.40}.")
    return number, num_shards


def _fields(max_new_tokens: int | None, json_schema: Path | None) -> dict[str, Any]:
    fields: dict[str, Any] = {} if max_new_tokens is None else {"max_completion_tokens": max_new_tokens}
    if json_schema is not None:
        fields["guided_json"] = read_json_object(json_schema)
    return fields


def _rows_of_files(
    patterns: Sequence[str], fields: dict[str, Any], prompt: str, prompt_first: bool
) -> "list[Row]":
    from engines.batch.rows import rows_of_files

    paths = sorted({path for pattern in patterns for path in glob.glob(pattern, recursive=True)})  # noqa: PTH207 - absolute patterns too
    if not paths:
        raise UserError(
            f"No file is named by {', '.join(patterns)}. Quote the pattern, and check the folder."
        )
    return rows_of_files(map(Path, paths), prompt, fields, is_prompt_first=prompt_first)


def _progress(bar: BarProgress, tally: "Tally") -> None:
    speed = tally.num_rows / max(tally.seconds, 1e-9)
    bar(
        f"{tally.num_rows:,} of {tally.num_all:,} rows, {tally.num_errors} with an error; {speed:.1f} a second, "
        f"{_duration(tally.seconds_left)} left",
        tally.num_rows / tally.num_all,
    )


def _duration(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return (
        f"{hours} h {minutes % 60} min"
        if hours
        else f"{minutes} min {int(seconds % 60)} s"
        if minutes
        else f"{seconds:.0f} s"
    )


def _summary(tally: "Tally") -> dict[str, Any]:
    seconds = max(tally.seconds, 1e-9)
    return {
        "rows": tally.num_rows,
        "errors": tally.num_errors,
        "pictures": tally.num_media,
        "new_tokens": tally.num_new_tokens,
        "seconds": round(tally.seconds, 3),
        "rows_per_second": round(tally.num_rows / seconds, 2),
        "pictures_per_second": round(tally.num_media / seconds, 2),
        "tokens_per_second": round(tally.num_new_tokens / seconds, 1),
        "waiting_share": round(min(tally.waiting_seconds / seconds, 1.0), 3),
    }
