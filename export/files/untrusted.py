"""Read files of a directory that a stranger may have written: regular ones, of bounded size, inside of that directory.

A checkpoint or a bundle may hold a link to a secret, a pipe that never ends or a device. What is read from it ends up
in prompts, model repositories and engines, so nothing is opened that is not the directory's own.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from export.errors import UserError

MAX_JSON_BYTES = 64 << 20
"""Of a file of settings, an index or a record; the tokenizer of Qwen2-VL has 7 MB."""


def own_path(path: Path) -> Path:
    """The file behind a path, which must be a regular one of the path's own directory.

    In a download cache of the Hugging Face hub (`models--*/snapshots/REVISION`) every file is a link into `blobs`
    beside `snapshots`; those are the directory's own too.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        UserError: it is a link to elsewhere, or not a regular file.
        OSError: it cannot be looked at.
    """
    try:
        directory = path.parent.resolve(strict=True)
        real = path.resolve(strict=True)
    except RuntimeError:  # a loop of links, up to Python 3.12
        raise UserError(f"{path} is a loop of symbolic links.", "Put the file itself there.") from None
    if not (real.is_relative_to(directory) or real.is_relative_to(_hub_blobs(directory))):
        raise UserError(
            f"{path} is a link to {real}, outside of its directory: it is not read.",
            "Put the file itself there.",
        )
    _require_regular(path, real.lstat())
    return real


def _hub_blobs(directory: Path) -> Path:
    """Where a hub cache keeps what its snapshots link to; the directory itself where it is in none."""
    return directory.parents[1] / "blobs" if directory.parent.name == "snapshots" else directory


def read_own_bytes(path: Path, most_bytes: int) -> bytes:
    """All bytes of a file of a directory that others wrote.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        UserError: a link to elsewhere, not a regular file, or a larger one.
        OSError: it cannot be read.
    """
    with open_regular(path, own_path(path)) as file:
        return _read(path, file, most_bytes)


def require_own_file(path: Path, most_bytes: int) -> None:
    """Refuse what `read_own_bytes` would, for a library that opens the path itself.

    Raises:
        As `read_own_bytes`.
    """
    if own_path(path).stat().st_size > most_bytes:
        raise _too_large(path, most_bytes)


def read_bounded_bytes(path: Path, most_bytes: int) -> bytes:
    """All bytes of a regular file that the user named, wherever a link leads.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        UserError: not a regular file, or a larger one.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        return _read(path, file, most_bytes)


def read_named_text(path: Path, most_bytes: int = MAX_JSON_BYTES) -> str:
    """The text, in UTF-8, of a file that the user named.

    Raises:
        UserError: it cannot be read, is no regular file, is larger, or holds no text.
    """
    try:
        return read_bounded_bytes(path, most_bytes).decode("utf-8")
    except (OSError, ValueError) as error:  # no UTF-8, or a name with a NUL
        raise UserError(f"{path} cannot be read: {error}") from None


def open_regular(path: Path, real: Path | None = None) -> BinaryIO:
    """Open a regular file to read its bytes; a pipe or a device is not waited for.

    Args:
        path: as messages name it; a link there is followed.
        real: the file behind it, found before: no link any more.

    Raises:
        UserError: it is something else.
        OSError: there is none, or it cannot be opened.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if real is None else os.O_NOFOLLOW)
    descriptor = os.open(real or path, flags)
    try:
        _require_regular(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _read(path: Path, file: BinaryIO, most_bytes: int) -> bytes:
    content = b""
    if os.fstat(file.fileno()).st_size <= most_bytes:
        content = file.read(most_bytes + 1)
        if len(content) <= most_bytes:
            return content
    raise _too_large(path, most_bytes)


def _too_large(path: Path, most_bytes: int) -> UserError:
    return UserError(f"{path} is larger than {most_bytes:,} bytes, which no file of its kind is.")


def _require_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UserError(
            f"{path} is not a regular file but {_kind(found.st_mode)}.", "Put the file itself there."
        )


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFLNK: "a link",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def foreign_entries(directory: Path, known: set[str], kept_directories: set[str]) -> list[str]:
    """What is in a directory that is not known, or is a link. Nobody reads hidden names: they are left out.

    Args:
        directory: looked through, but for `kept_directories`.
        known: paths of files inside it, with forward slashes.
        kept_directories: names of directories at its top that have their own owner; links there are named too.

    Returns:
        A sentence for each, "NAME: what it is".
    """
    parents = {str(parent) for name in known for parent in Path(name).parents} - {"."}
    found: list[str] = []
    pending = [directory]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = Path(entry.path).relative_to(directory).as_posix()
                if entry.is_symlink():
                    if name in kept_directories:
                        found.append(f"{name}: is a symbolic link; remove it")
                    elif name in known | parents or not entry.name.startswith("."):
                        found.append(f"{name}: is a symbolic link; copy the bundle with `cp -rL`")
                elif name in kept_directories and entry.is_dir():
                    continue
                elif name in parents and entry.is_dir():
                    pending.append(Path(entry.path))
                elif name not in known and not entry.name.startswith("."):
                    found.append(f"{name}: is not in the manifest")
    return found
