"""`qv-export serve`: a bundle answers over OpenAI's API, in this process."""

import ipaddress
import logging
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from export.errors import UserError
from qv_export.parameters import TargetChoice, serving_options
from qv_export.show.console import note

KEY_VARIABLE = "QV_EXPORT_API_KEY"


def checked_origin(origin: str) -> str:
    """An origin as browsers send it: scheme, host and port, nothing behind.

    Raises:
        UserError: it is none.
    """
    if origin != "*" and not re.fullmatch(r"https?://[^/\s?#@]+", origin):
        raise UserError(
            f"--allow-origin {origin!r:.80} is no origin. Give scheme and host, such as https://chat.example.org, or *."
        )
    return origin


@click.command(short_help="Answer over OpenAI's API, in this process.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen. 0.0.0.0: everywhere.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."
)
@click.option(
    "--target",
    type=TargetChoice(),
    help="What computes. Default: onnxruntime, on the CPU. TensorRT: the engine of the bundle that fits this GPU.",
)
@click.option(
    "--engine", "engine_key", metavar="KEY", help="This very engine of the bundle, in place of a target."
)
@click.option("--model-name", metavar="NAME", help="What clients call it. Default: the checkpoint's name.")
@serving_options
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Keys of those who may ask, one a line. Default: the key in {KEY_VARIABLE}, or none.",
)
@click.option("--no-page", is_flag=True, help="Leave the page at / out.")
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    callback=lambda _context, _parameter, origins: tuple(map(checked_origin, origins)),
    help="Let scripts of pages from there ask, such as https://chat.example.org; * is everywhere. Default: none.",
)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="How long answers that are being written may go on after SIGTERM.",
)
def serve(
    bundle: Path,
    host: str,
    port: int,
    target: str | None,
    engine_key: str | None,
    model_name: str | None,
    num_slots: int | None,
    max_context: int | None,
    num_threads: int | None,
    device: str | None,
    num_ranks: int | None,
    hostfile: Path | None,
    max_queue: int | None,
    allowed_hosts: tuple[str, ...],
    media: dict[str, Any],
    api_key_file: Path | None,
    no_page: bool,
    origins: tuple[str, ...],
    drain_seconds: float,
) -> None:
    """Answer questions to BUNDLE over OpenAI's API, http://HOST:PORT/v1, and on a page at http://HOST:PORT/.

    It listens once the model is warm. SIGTERM finishes the answers that are being written.
    """
    from engines.open import choose_engine
    from engines.serving.openai.run import listen
    from engines.serving.openai.run import serve as serve_model
    from engines.serving.served import ServedModel
    from engines.serving.settings import settings_for
    from engines.store.compatibility import this_machine
    from export.bundle import open_bundle

    if target and engine_key:
        raise UserError("--engine names an engine, and with it what computes: give it or --target, not both.")
    keys = _keys(api_key_file)
    opened = open_bundle(bundle)
    settings = replace(
        settings_for(
            opened,
            engine_key,
            num_slots=num_slots,
            max_context=max_context,
            num_threads=num_threads,
            device=device,
            num_ranks=num_ranks,
            hostfile=hostfile,
            max_queue=max_queue,
            allowed_hosts=allowed_hosts,
            **media,
        ),
        drain_seconds=drain_seconds,
    )
    chosen = choose_engine(
        opened,
        engine_key or target,
        num_slots=settings.num_slots,
        capacity=settings.capacity,
        machine=this_machine(),
    )
    name = model_name or opened.manifest.source.name
    if not keys and not _is_loopback(host):
        note(
            f"warning: {host} can be reached from other machines, and no API key is asked for (--api-key-file)."
        )
    _log_requests()
    with listen(host, port) as listener, ServedModel(opened, chosen, settings) as model:
        # Bound before the model is loaded, so that a port that is taken is told at once; it listens when it is warm.
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}"
        serve_model(
            model,
            name,
            listener,
            lambda: note(
                f"{address}/v1 answers as {name!r}: {settings.num_slots} slots of {settings.capacity} tokens, "
                f"{opened.manifest.precision_text}, engine {chosen.key}, warm after {model.warm_up_seconds:.2f} s"
            ),
            keys,
            with_page=not no_page,
            origins=origins,
        )


def _keys(file: Path | None) -> tuple[str, ...]:
    from engines.serving.openai.http.keys import checked_keys, read_keys

    if file is not None:
        return read_keys(file)
    key = os.environ.get(KEY_VARIABLE)
    return () if key is None else checked_keys([key], KEY_VARIABLE)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _log_requests() -> None:
    """One JSON line for each request on stderr, unless --quiet."""
    from engines.serving.openai.http.request_log import REQUEST_LOG

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    REQUEST_LOG.addHandler(handler)
    REQUEST_LOG.propagate = False
    if logging.getLogger().level < logging.ERROR:
        REQUEST_LOG.setLevel(logging.INFO)
