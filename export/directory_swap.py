"""How is a directory replaced so that a killed run leaves the last good one?

It is filled in a hidden sibling directory and put in place by one rename. That is atomic against a killed process;
after a power cut the file system decides.
"""

import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from export.errors import UserError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
_BAD_PATH = {errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_OLD_SUFFIX = ".old"
_SCRATCH_MARK = ".writing-"


@dataclass(frozen=True)
class DirectoryKind:
    """What is written, and how it is told from a directory that is not ours to replace."""

    name: str
    """With its article, for messages: "a bundle"."""
    is_one: Callable[[Path], bool]
    space_advice: str
    """What to do on a full disk: "Free some"."""


@contextmanager
def replacing_directory(output: Path, kind: DirectoryKind) -> Iterator[Path]:
    """Give a directory to fill; put it in the place of `output` when the body ends well, else leave nothing.

    The last good directory stays until then, whatever happens. What killed runs left beside it is removed first.

    Raises:
        UserError: `output` is something else than `kind` or an empty directory, or there is no space or permission.
    """
    new_parents: list[Path] = []
    scratch: Path | None = None
    try:
        output = require_replaceable(output, kind)
        with explaining_errors(output, kind, preparing=True):
            new_parents = [parent for parent in output.parents if not parent.exists()]
            output.parent.mkdir(parents=True, exist_ok=True)
            settle_leftovers(output)
            scratch, lock = _locked_scratch(output)
        try:
            with explaining_errors(output, kind):
                yield scratch
                _replace_directory(scratch, output)
        finally:
            os.close(lock)
    except BaseException:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):
                parent.rmdir()
        raise
    # After an exchange the old directory stands under the scratch name.
    shutil.rmtree(scratch, ignore_errors=True)


def require_replaceable(output: Path, kind: DirectoryKind) -> Path:
    """Refuse to replace what is not ours: only a directory of this kind, an empty one or nothing.

    Returns:
        `output` without symbolic links, so that a link `current -> v1` stays and its target is replaced.

    Raises:
        UserError: `output` is something else, or cannot be looked at.
    """
    with explaining_errors(output, kind, preparing=True):
        try:
            output = output.resolve()
        except RuntimeError:  # a loop of links, up to Python 3.12
            raise UserError(f"{output} is a loop of symbolic links. Choose another output.") from None
        if not output.exists():
            return output
        if not output.is_dir():
            raise UserError(f"{output} exists and is not a directory. Choose another output.")
        if os.path.ismount(output):
            raise UserError(
                f"{output} is a mount point, which cannot be replaced. Use {output / kind.name.split()[-1]} instead."
            )
        if any(output.iterdir()) and not kind.is_one(output):
            raise UserError(
                f"{output} exists and is not {kind.name}; it will not be replaced. Choose another output."
            )
    return output


@contextmanager
def explaining_errors(
    output: Path, kind: DirectoryKind, *, preparing: bool = False, left: str = "Nothing was written."
) -> Iterator[None]:
    """Say of the body's errors what the user can mend: space, permission and, while preparing, the path.

    Args:
        output: what is being written.
        kind: names it, and what to do on a full disk.
        preparing: a path that cannot be one is the user's mistake too.
        left: a sentence about what is there after an error.

    Raises:
        UserError: one of those. Other errors pass.
    """
    try:
        yield
    except OSError as error:
        if user_error := _user_error(error, output, kind, preparing=preparing, left=left):
            raise user_error from error
        raise


def _scratch_prefix(output: Path) -> str:
    return f".{output.name}{_SCRATCH_MARK}"


def unfinished(directory: Path) -> set[str]:
    """Names in `directory` that a running or a killed process writes or wrote."""
    return {path.name[1:].partition(_SCRATCH_MARK)[0] for path in directory.glob(f".*{_SCRATCH_MARK}*")}


def _locked_scratch(output: Path) -> tuple[Path, int]:
    """Make the directory to fill and lock it. The kernel drops the lock of a killed process."""
    while True:
        scratch = output.parent / f"{_scratch_prefix(output)}{secrets.token_hex(4)}"
        scratch.mkdir()
        lock = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
        # Some network file systems lock no directory: then the directory is not protected, which only
        # another run with the same output could notice.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if scratch.exists():
            return scratch, lock
        # Another run took it for a leftover between mkdir and flock.
        os.close(lock)


def settle_leftovers(output: Path) -> None:
    """Tidy up after killed runs with this output: remove directories that no living process has locked."""
    for leftover in output.parent.glob(f"{glob.escape(_scratch_prefix(output))}*"):
        try:
            lock = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # not a directory of ours
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if leftover.suffix == _OLD_SUFFIX and not output.exists():
                leftover.rename(output)  # killed between two renames: this is the last good one
            else:
                shutil.rmtree(leftover, ignore_errors=True)
        except OSError:
            pass  # in use
        finally:
            os.close(lock)


def _replace_directory(scratch: Path, output: Path) -> None:
    """Put `scratch` in the place of `output`; what was there is left under the name of `scratch`."""
    if not output.exists():
        scratch.rename(output)
    elif not _exchange(scratch, output):
        _replace_in_two_steps(scratch, output)


def _replace_in_two_steps(scratch: Path, output: Path) -> None:
    """For file systems that exchange nothing: `output` is absent for an instant between two renames."""
    old = scratch.with_name(scratch.name + _OLD_SUFFIX)
    output.rename(old)
    try:
        scratch.rename(output)
    except BaseException:
        old.rename(output)
        raise
    old.rename(scratch)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step with Linux's renameat2. False where the kernel or the file system has none."""
    at_working_directory, rename_exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    code = renameat2(
        at_working_directory, os.fsencode(first), at_working_directory, os.fsencode(second), rename_exchange
    )
    if code == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        return False
    raise OSError(number, os.strerror(number), str(second))


def _user_error(
    error: OSError, output: Path, kind: DirectoryKind, *, preparing: bool, left: str
) -> UserError | None:
    """Name what the user can mend: space, permission, the path. Other errors are the machine's."""
    if error.errno in _NO_SPACE:
        return UserError(
            f"No space left while writing {output} ({error.strerror}). {kind.space_advice}. {left}"
        )
    place = error.filename if error.filename is not None else output
    if error.errno in _NO_PERMISSION:
        return UserError(
            f"No permission at {place} ({error.strerror}) while writing {output}. Check its owner and mode, "
            f"or choose another output. {left}"
        )
    if preparing and error.errno in _BAD_PATH:
        return UserError(
            f"{place} cannot be the place of {kind.name}: {error.strerror}. Choose another output."
        )
    return None
