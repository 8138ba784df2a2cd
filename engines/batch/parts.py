"""The output of a corpus: part files that are renamed when they are whole, and what a killed run left of them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from export.errors import UserError
from export.files.atomic import name_whole_file

ROWS_PER_PART = 1000
_UNFINISHED = ".unfinished"


class Parts:
    """The output: part files of one shard. A part is renamed when it is whole, so that a reader sees whole ones alone.

    Args:
        directory: of the output.
        shard: which of the shards writes.
        resume: go on with what is there; else nothing of this shard may be there.

    Raises:
        UserError: there is output already, and nobody asked to go on with it.
    """

    def __init__(self, directory: Path, shard: int, *, resume: bool) -> None:
        self._directory, self._shard = directory, shard
        found = sorted(directory.glob(f"part-{shard:05}-*"))
        if found and not resume:
            raise UserError(
                f"{directory} has output of this shard already ({found[0].name}).",
                "Give --resume to go on with it, or another output.",
            )
        for unfinished in [path for path in found if path.suffix == _UNFINISHED]:
            _keep_whole_lines(unfinished)
        self._number = len(list(directory.glob(f"part-{shard:05}-*.jsonl")))
        self._file: TextIO | None = None
        self._num_rows = 0

    def done(self) -> set[str]:
        """Ids of the rows that are answered."""
        ids: set[str] = set()
        for part in sorted(self._directory.glob(f"part-{self._shard:05}-*.jsonl")):
            with part.open(encoding="utf-8") as file:
                ids.update(json.loads(line)["custom_id"] for line in file)
        return ids

    def write(self, content: dict[str, Any]) -> None:
        """Add a row; it stays whatever happens to the process afterwards.

        Raises:
            UserError: there is no room for it, or no permission.
        """
        with self._refusing():
            if self._file is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._file = self._unfinished.open("w", encoding="utf-8")
            self._file.write(json.dumps(content, ensure_ascii=False) + "\n")
            self._file.flush()
        self._num_rows += 1
        if self._num_rows >= ROWS_PER_PART:
            self.close()

    def close(self) -> None:
        """Give the last part its name.

        Raises:
            UserError: as `write`; then it keeps the name of what is not whole, which --resume goes on with.
        """
        file, self._file = self._file, None
        if file is None:
            return
        with self._refusing():
            with file:
                file.flush()
                os.fsync(file.fileno())
            name_whole_file(self._unfinished, self._unfinished.with_suffix(""))
        self._number += 1
        self._num_rows = 0

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._unfinished} cannot be written: {error.strerror}. Rows that were written before are kept.",
                "Make room for it, and go on with --resume.",
            ) from None

    @property
    def _unfinished(self) -> Path:
        return self._directory / f"part-{self._shard:05}-{self._number:05}.jsonl{_UNFINISHED}"


def _keep_whole_lines(unfinished: Path) -> None:
    """What a process left that was killed in the middle of a line."""
    data = unfinished.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole:
        unfinished.write_bytes(whole)
        name_whole_file(unfinished, unfinished.with_suffix(""))
    else:
        unfinished.unlink()
