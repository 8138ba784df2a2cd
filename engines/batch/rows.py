"""The rows of a corpus: from a file of requests, or from pictures and one prompt; dealt to shards, dearest first.

A row can be pickled: it says where its request is read, and whoever answers it reads it there, when it is its turn.
"""

import base64
import json
import mimetypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from export.errors import UserError

PATH = "/v1/chat/completions"
_KINDS = {"image", "image_url", "video", "video_url"}
_MOST_TOLD = 10


class RowSource(Protocol):
    """Where a request is read."""

    def read(self) -> bytes:
        """JSON of the request's body.

        Raises:
            UserError: it cannot be read, or is none.
        """
        ...


@dataclass(frozen=True)
class Row:
    """One request of a corpus."""

    id: str
    source: RowSource
    cost: int = 0
    """Bytes of it: what stands for the work, without reading any of it."""
    num_media: int = 0
    """Pictures and videos in it."""


@dataclass(frozen=True)
class Broken:
    """A row that is none: its answer is an error."""

    message: str

    def read(self) -> bytes:
        raise UserError(self.message)


@dataclass(frozen=True)
class RequestLine:
    """A line of a file in OpenAI's batch form."""

    path: Path
    number: int
    offset: int
    length: int

    def read(self) -> bytes:
        with _readable(self.path), self.path.open("rb") as file:
            file.seek(self.offset)
            line = file.read(self.length)
        content = _content(line, self.number)
        body = {**content["body"]}
        body.pop("model", None)  # one bundle answers
        return json.dumps(body).encode()


@dataclass(frozen=True)
class MediaFile:
    """A picture or a video, and what is asked about it."""

    path: Path
    prompt: str
    is_prompt_first: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of the request, beside its messages."""

    def read(self) -> bytes:
        with _readable(self.path):
            data = self.path.read_bytes()
        request = media_request(
            data, is_video(self.path.name), self.prompt, self.fields, is_prompt_first=self.is_prompt_first
        )
        return json.dumps(request).encode()


@dataclass(frozen=True)
class Given:
    """A request that is there already."""

    body: bytes

    def read(self) -> bytes:
        return self.body


def is_video(name: str) -> bool:
    """By the ending of a file's name."""
    return (mimetypes.guess_type(name)[0] or "image/jpeg").startswith("video/")


def media_request(
    data: bytes, of_video: bool, prompt: str, fields: Mapping[str, Any], *, is_prompt_first: bool
) -> dict[str, Any]:
    """The request that asks one thing about one picture or video."""
    kind = "video" if of_video else "image"
    medium = {"type": kind, kind: base64.b64encode(data).decode()}
    text = {"type": "text", "text": prompt}
    content = [text, medium] if is_prompt_first else [medium, text]
    return {"messages": [{"role": "user", "content": content}], **fields}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What the system says of a file is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def rows_of_requests(path: Path) -> list[Row]:
    """Rows of a file in OpenAI's batch form. A line that is none is a row that will be an error.

    Raises:
        UserError: the file cannot be read, or several rows have one id, by which a run is gone on with.
    """
    rows, offset = [], 0
    with _readable(path), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                rows.append(_row_of_line(line, RequestLine(path.absolute(), number, offset, len(line))))
            offset += len(line)
    require_own_ids(rows)
    return rows


def rows_of_files(
    paths: Iterable[Path], prompt: str, fields: Mapping[str, Any], *, is_prompt_first: bool = False
) -> list[Row]:
    """A row for each picture or video, under its path. One that cannot be read will be an error."""
    return [
        Row(str(path), MediaFile(path.absolute(), prompt, is_prompt_first, fields), _size_of(path), 1)
        for path in paths
    ]


def require_own_ids(rows: Sequence[Row]) -> None:
    """Raises:
    UserError: ids that several rows have; the first of them are named.
    """
    seen: set[str] = set()
    twice = [row.id for row in rows if row.id in seen or seen.add(row.id)]  # type: ignore[func-returns-value]
    if twice:
        named = ", ".join(repr(one) for one in twice[:_MOST_TOLD])
        raise UserError(
            f"{len(twice)} rows have the custom_id of an earlier one: {named:.400}.",
            "Give each an id of its own: answers are told apart by them, and a run is gone on with.",
        )


def shard_of(rows: Iterable[Row], shard: int, num_shards: int) -> list[Row]:
    """Every `num_shards`-th row from number `shard` on."""
    return [row for number, row in enumerate(rows) if number % num_shards == shard]


def dearest_first(rows: Iterable[Row]) -> Iterator[Row]:
    """By cost, so that what takes long does not begin when all else has ended, and neighbours take about as long."""
    return iter(sorted(rows, key=lambda row: -row.cost))


def _row_of_line(line: bytes, source: RequestLine) -> Row:
    try:
        content = _content(line, source.number)
    except _NoRequestError as error:
        return Row(error.id or f"line-{source.number}", Broken(str(error)))
    return Row(content["custom_id"], source, source.length, _num_media(content["body"]))


class _NoRequestError(UserError):
    """A line that is no request; `id` is its own, if it has one."""

    def __init__(self, message: str, identifier: str | None = None) -> None:
        super().__init__(message)
        self.id = identifier


def _content(line: bytes, number: int) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _NoRequestError(f"Line {number} is not JSON: {error}.") from None
    if not isinstance(content, dict) or not isinstance(content.get("custom_id"), str):
        raise _NoRequestError(f"Line {number} needs a custom_id, a text of its own.")
    identifier = content["custom_id"]
    unknown = sorted(content.keys() - {"custom_id", "method", "url", "body"})
    if unknown or content.get("method", "POST") != "POST" or content.get("url", PATH) != PATH:
        raise _NoRequestError(
            f"Line {number} is no POST to {PATH}, or holds other keys: {unknown}.", identifier
        )
    if not isinstance(content.get("body"), dict):
        raise _NoRequestError(f"Line {number} needs a body, an object.", identifier)
    return content


def _num_media(body: Mapping[str, Any]) -> int:
    """As far as the request is sound: what is wrong with it is said when it is answered."""
    messages = body.get("messages")
    contents = [one.get("content") for one in _listed(messages) if isinstance(one, dict)]
    parts = [part for content in contents for part in _listed(content)]
    return sum(isinstance(part, dict) and part.get("type") in _KINDS for part in parts)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
