"""`qv-export batch`: a bundle answers a corpus, from a file of requests or from pictures and one prompt."""

import base64
import glob
import json
import mimetypes
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.errors import UserError
from export.files.json_object import read_json_object
from qv_export.parameters import TargetChoice
from qv_export.show.console import note, print_json

if TYPE_CHECKING:
    from engines.batch import Row, Tally

_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})\Z")
_PROGRESS_ROWS = 100


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
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Of each answer to --prompt.")
@click.option(
    "--json-schema",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What each answer to --prompt must look like.",
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
    max_new_tokens: int | None,
    json_schema: Path | None,
    as_json: bool,
) -> None:
    """Answer a corpus with BUNDLE. A row that cannot be answered says so (`error`) and stops no other."""
    from engines.batch import Parts, rows_of_requests, run_batch, shard_of

    number, num_shards = _shard(shard)
    if requests_file is not None:
        if patterns or prompt is not None or max_new_tokens or json_schema:
            raise UserError(
                "--requests holds whole requests: leave --input, --prompt and what goes with them out."
            )
        rows: Iterator[Row] = rows_of_requests(requests_file)
    else:
        if not patterns or prompt is None:
            raise UserError("Give --requests FILE, or --input GLOB with --prompt TEXT.")
        rows = _rows_of_files(patterns, _fields(max_new_tokens, json_schema), prompt)
    parts = Parts(output, number, resume=resume)
    with _served(bundle, engine_key, target, num_slots, max_context, num_threads) as (model, name):
        tally = run_batch(model, name, shard_of(rows, number, num_shards), parts, _progress)
    result = _summary(tally)
    if as_json:
        print_json({"output": str(output), **result})
    else:
        note(
            f"{output}: {tally.num_rows} rows, {tally.num_errors} with an error; {result['rows_per_second']} rows/s, "
            f"{result['tokens_per_second']} tokens/s; slots were free {result['waiting_share']:.0%} of the time"
        )


def _served(
    bundle: Path,
    engine_key: str | None,
    target: str | None,
    num_slots: int | None,
    max_context: int | None,
    num_threads: int | None,
) -> Any:
    from contextlib import contextmanager

    from engines.open import choose_engine
    from engines.serving.served import ServedModel
    from engines.serving.settings import settings_for
    from engines.store.compatibility import this_machine
    from export.bundle import open_bundle

    @contextmanager
    def opened() -> Iterator[tuple[ServedModel, str]]:
        found = open_bundle(bundle)
        settings = settings_for(
            found,
            engine_key,
            num_slots=num_slots,
            max_context=max_context,
            num_threads=num_threads,
            max_queue=None,
            allowed_hosts=(),
        )
        chosen = choose_engine(
            found,
            engine_key or target,
            num_slots=settings.num_slots,
            capacity=settings.capacity,
            machine=this_machine(),
        )
        with ServedModel(found, chosen, settings) as model:
            yield model, found.manifest.source.name

    return opened()


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


def _rows_of_files(patterns: Sequence[str], fields: dict[str, Any], prompt: str) -> "Iterator[Row]":
    from engines.batch import Row

    paths = sorted({path for pattern in patterns for path in glob.glob(pattern, recursive=True)})  # noqa: PTH207 - absolute patterns too
    if not paths:
        raise UserError(
            f"No file is named by {', '.join(patterns)}. Quote the pattern, and check the folder."
        )
    return (Row(path, _body_of_file(Path(path), fields, prompt)) for path in paths)


def _body_of_file(path: Path, fields: dict[str, Any], prompt: str) -> Callable[[], bytes]:
    def body() -> bytes:
        try:
            data = base64.b64encode(path.read_bytes()).decode()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from None
        kind = (mimetypes.guess_type(path.name)[0] or "image/jpeg").partition("/")[0]
        kind = "video" if kind == "video" else "image"
        content = [{"type": kind, kind: data}, {"type": "text", "text": prompt}]
        return json.dumps({"messages": [{"role": "user", "content": content}], **fields}).encode()

    return body


def _progress(tally: "Tally") -> None:
    if tally.num_rows % _PROGRESS_ROWS == 0:
        note(f"{tally.num_rows} rows, {tally.num_rows / tally.seconds:.1f} a second")


def _summary(tally: "Tally") -> dict[str, Any]:
    seconds = max(tally.seconds, 1e-9)
    return {
        "rows": tally.num_rows,
        "errors": tally.num_errors,
        "new_tokens": tally.num_new_tokens,
        "seconds": round(tally.seconds, 3),
        "rows_per_second": round(tally.num_rows / seconds, 2),
        "tokens_per_second": round(tally.num_new_tokens / seconds, 1),
        "waiting_share": round(min(tally.waiting_seconds / seconds, 1.0), 3),
    }
