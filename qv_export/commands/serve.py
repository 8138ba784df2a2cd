"""`qv-export serve`: a bundle answers over OpenAI's API, in this process."""

import ipaddress
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.errors import UserError
from qv_export import api
from qv_export.parameters import TargetChoice, serving_options
from qv_export.show.console import note

if TYPE_CHECKING:
    from engines.serving.openai.run import Listening

KEY_VARIABLE = "QV_EXPORT_API_KEY"


@click.command("serve", short_help="Answer over OpenAI's API, in this process.")
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
    callback=lambda _context, _parameter, origins: _checked(origins),
    help="Let scripts of pages from there ask, such as https://chat.example.org; * is everywhere. Default: none.",
)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="How long answers that are being written may go on after SIGTERM.",
)
def serve_command(
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
    if target and engine_key:
        raise UserError("--engine names an engine, and with it what computes: give it or --target, not both.")
    keys = _keys(api_key_file)
    if not keys and not _is_loopback(host):
        note(
            f"warning: {host} can be reached from other machines, and no API key is asked for (--api-key-file)."
        )
    _log_requests()
    opened = api.as_bundle(bundle)

    def tell(server: "Listening") -> None:
        note(
            f"{server.address}/v1 answers as {server.model_name!r}: {server.settings.num_slots} slots of "
            f"{server.settings.capacity} tokens, {opened.manifest.precision_text}, engine {server.engine_key}, "
            f"warm after {server.warm_up_seconds:.2f} s"
        )

    api.serve(
        opened,
        engine_key or target,
        host=host,
        port=port,
        model_name=model_name,
        num_slots=num_slots,
        max_context=max_context,
        num_threads=num_threads,
        device=device,
        num_ranks=num_ranks,
        hostfile=hostfile,
        max_queue=max_queue,
        allowed_hosts=allowed_hosts,
        **media,
        api_keys=keys,
        page=not no_page,
        origins=origins,
        drain_seconds=drain_seconds,
        when_listening=tell,
    )


def _checked(origins: tuple[str, ...]) -> tuple[str, ...]:
    if not origins:
        return ()
    from engines.serving.openai.http.origins import checked_origin

    return tuple(map(checked_origin, origins))


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
