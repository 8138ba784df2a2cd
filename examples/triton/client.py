"""A client of the server: streams an answer over gRPC or HTTP, with any number of pictures and videos.

    python examples/triton/client.py --prompt "What is in this picture?" --image photo.jpg
    python examples/triton/client.py --prompt "Which came first?" --image a.jpg --image b.jpg --protocol http

gRPC sends files as they are and can be cancelled (Ctrl-C frees the server's slot at once); HTTP wants them as base64
and needs no package beyond Python's own. gRPC needs `tritonclient[grpc]`, which qv-export brings.
"""

import base64
import json
import queue
import sys
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

MODEL_NAME = "qwen2_vl"
PORTS = {"grpc": 8001, "http": 8000}
KINDS = {
    "max_tokens": "INT32",
    "temperature": "FP32",
    "top_p": "FP32",
    "top_k": "INT32",
    "seed": "INT64",
    "stream": "BOOL",
}
"""Optional inputs and their types; one that is not given follows the checkpoint's generation_config.json."""

Piece = Mapping[str, str]
"""One response: `text`, and in the last one `finish_reason` and `usage`."""


def messages_from(prompt: str, images: Sequence[str], videos: Sequence[str]) -> list[dict[str, Any]]:
    """One user's message: pictures, videos, then the prompt."""
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    content += [{"type": "video", "video": video} for video in videos]
    content.append({"type": "text", "text": prompt})
    return [{"role": "user", "content": content}]


def stream_over_grpc(
    url: str,
    prompt: str,
    images: Sequence[bytes] = (),
    videos: Sequence[bytes] = (),
    settings: Mapping[str, Any] | None = None,
) -> Generator[Piece, None, None]:
    """Pieces of the answer as they come. Closing the iterator cancels the request.

    Raises:
        RuntimeError: the server's own message.
    """
    try:
        import numpy as np
        from tritonclient import grpc
    except ModuleNotFoundError as missing:
        raise RuntimeError(
            f"gRPC needs the package tritonclient[grpc], and {missing.name} is not installed here. "
            "Install it, or use --protocol http, which needs none."
        ) from None

    def tensor(name: str, kind: str, values: Sequence[Any]) -> Any:
        dtype = {
            "BYTES": np.object_,
            "INT32": np.int32,
            "INT64": np.int64,
            "FP32": np.float32,
            "BOOL": np.bool_,
        }[kind]
        result = grpc.InferInput(name, [len(values)], kind)
        result.set_data_from_numpy(np.array(list(values), dtype))
        return result

    names = [f"media:{i}" for i in range(len(images) + len(videos))]
    messages = messages_from(prompt, names[: len(images)], names[len(images) :])
    inputs = [tensor("messages", "BYTES", [json.dumps(messages).encode()])]
    if names:
        inputs.append(tensor("media", "BYTES", [*images, *videos]))
    asked = {"stream": True, **(settings or {})}
    inputs += [tensor(name, KINDS[name], [value]) for name, value in asked.items()]
    responses: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with grpc.InferenceServerClient(url) as client:
        _require_server(client, url)
        client.start_stream(lambda result, error: responses.put((result, error)))
        is_finished = False
        try:
            client.async_stream_infer(MODEL_NAME, inputs, enable_empty_final_response=True)
            while True:
                result, error = responses.get()
                if error is not None:
                    is_finished = True
                    raise RuntimeError(error.message())
                outputs = [result.as_numpy(name) for name in ("text", "finish_reason", "usage")]
                if all(output is not None for output in outputs):
                    text, finish_reason, usage = (output[0].decode() for output in outputs)
                    yield {"text": text, "finish_reason": finish_reason, "usage": usage}
                is_finished = result.get_response().parameters["triton_final_response"].bool_param
                if is_finished:
                    return
        finally:
            client.stop_stream(cancel_requests=not is_finished)


def _require_server(client: Any, url: str) -> None:
    """A stream to nobody would end in the library's own traceback."""
    from tritonclient.utils import InferenceServerException

    try:
        is_ready = client.is_model_ready(MODEL_NAME, client_timeout=10)
    except InferenceServerException as error:
        raise RuntimeError(f"no server answers gRPC at {url}: {error.message()}. Give its --url.") from None
    if not is_ready:
        raise RuntimeError(f"the server at {url} has no model {MODEL_NAME} that is ready")


def stream_over_http(
    url: str,
    prompt: str,
    images: Sequence[bytes] = (),
    videos: Sequence[bytes] = (),
    settings: Mapping[str, Any] | None = None,
) -> Generator[Piece, None, None]:
    """Pieces of the answer as they come, by server-sent events.

    Raises:
        RuntimeError: the server's own message.
    """
    encoded = [base64.b64encode(data).decode() for data in (*images, *videos)]
    messages = messages_from(prompt, encoded[: len(images)], encoded[len(images) :])
    body = {"messages": json.dumps(messages), "stream": True, **(settings or {})}
    request = urllib.request.Request(
        f"http://{url}/v2/models/{MODEL_NAME}/generate_stream",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request) as response:
            for line in response:
                if line.startswith(b"data:"):
                    piece = json.loads(line.removeprefix(b"data:"))
                    if "error" in piece:
                        raise RuntimeError(piece["error"])
                    yield piece
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode(errors="replace")) from None
    except urllib.error.URLError as error:
        raise RuntimeError(f"no server answers HTTP at {url}: {error.reason}. Give its --url.") from None


@click.command()
@click.option("--prompt", required=True)
@click.option(
    "--image", "images", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--video", "videos", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--protocol", type=click.Choice(sorted(PORTS)), default="grpc", show_default=True)
@click.option("--url", help="Host and port.  [default: localhost:8001 for gRPC, localhost:8000 for HTTP]")
@click.option("--max-tokens", type=int)
@click.option("--temperature", type=float)
@click.option("--top-p", type=float)
@click.option("--top-k", type=int)
@click.option("--seed", type=int)
def main(
    prompt: str,
    images: tuple[Path, ...],
    videos: tuple[Path, ...],
    protocol: str,
    url: str | None,
    **given: float | None,
) -> None:
    """Ask the server about pictures and videos; the answer streams to stdout, its cost goes to stderr."""
    settings = {name: value for name, value in given.items() if value is not None}
    stream = stream_over_grpc if protocol == "grpc" else stream_over_http
    pictures, clips = ([path.read_bytes() for path in paths] for paths in (images, videos))
    try:
        for piece in stream(url or f"localhost:{PORTS[protocol]}", prompt, pictures, clips, settings):
            print(piece["text"], end="", flush=True)
            if piece["finish_reason"]:
                print(flush=True)  # the line ends with the answer: what comes next starts on its own
                print(f"[{piece['finish_reason']}] {piece['usage']}", file=sys.stderr)
    except (RuntimeError, OSError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
