"""One file written so that a reader sees the old one or the whole new one, and that no link leads its writer away."""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from export.errors import UserError


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to fill; it takes the place of `path` when the body ends well, else nothing changes.

    Its name is random and must not exist: in a directory that others wrote, a link under a name that could be guessed
    would lead the bytes into any file of the user. A link at `path` itself is replaced, not followed.

    Raises:
        OSError: the place cannot be written.
    """
    # Cut, so that a name near the file system's limit still has room for what is added.
    scratch = path.with_name(f".{path.name[:48]}.{secrets.token_hex(8)}")
    descriptor = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        with suppress(OSError):  # what went wrong before is what must be told
            scratch.unlink()
        raise


def replace_text(path: Path, text: str) -> None:
    """Replace a file's text, in UTF-8; see `replacing_file`.

    Raises:
        OSError: the place cannot be written.
    """
    with replacing_file(path) as file:
        file.write(text.encode("utf-8"))


def name_whole_file(filled: Path, path: Path) -> None:
    """Give a file that was filled over a long time, and may have been taken up again, the name of a whole one.

    Raises:
        OSError: the place cannot be written.
    """
    filled.replace(path)


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file in a place where there is none: a hard link, or a copy where the file system links none.

    Raises:
        UserError: `source` is a link, which may lead to any file of the user, or no regular file.
        OSError: it cannot be read, or the place cannot be written.
    """
    if not stat.S_ISREG(source.lstat().st_mode):
        raise UserError(f"{source} is a link or no regular file: it is not put into {target.parent}.")
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target, follow_symlinks=False)
